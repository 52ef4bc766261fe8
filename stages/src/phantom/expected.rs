//! What must be found: figures that follow from the planted truths, computed from the generator's
//! probabilities and the rows, never from a model.

use std::collections::BTreeMap;

use super::captions::{Caption, Fact};
use super::rows::Area;

/// One figure.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) quantity: String,
    pub(super) split: &'static str,
    /// The rows that are meant: `all`, or a name.
    pub(super) subset: String,
    pub(super) value: f64,
    /// Standard error of the figure in a sample of this size, for bounds.
    pub(super) error: f64,
    pub(super) formula: &'static str,
}

impl Expected {
    /// A figure of all rows that sampling does not blur.
    pub(super) fn exact(
        quantity: impl Into<String>,
        split: &'static str,
        value: f64,
        formula: &'static str,
    ) -> Self {
        Self { quantity: quantity.into(), split, subset: "all".to_owned(), value, error: 0.0, formula }
    }
}

/// The probability that an image with these facts gets a caption that mentions exactly `caption`'s, up
/// to a factor that all images share.
fn likelihood(facts: &[Fact], mentioned: &[(&str, &str)]) -> f64 {
    let mut weight = 1.0;
    for (name, value) in mentioned {
        match facts.iter().find(|fact| fact.name == *name) {
            Some(fact) if fact.value == *value => weight *= fact.kappa,
            _ => return 0.0,
        }
    }
    for fact in facts {
        if !mentioned.iter().any(|(name, _)| *name == fact.name) {
            weight *= 1.0 - fact.kappa;
        }
    }
    weight
}

/// What retrieval can tell apart: rows with the same facts of which the same are mentioned.
struct Class<'a> {
    facts: &'a [Fact],
    mentioned: Vec<(&'a str, &'a str)>,
    rows: usize,
}

/// Better and equal candidates of a query.
#[derive(Clone, Copy, Default)]
struct Rivals {
    greater: usize,
    equal: usize,
}

/// Ceilings of recall@1/5/10 both ways over one pool of images with one caption each.
pub(super) fn retrieval(split: &'static str, rows: &[(Vec<Fact>, Caption)]) -> Vec<Expected> {
    let mut rivals = [vec![Rivals::default(); rows.len()], vec![Rivals::default(); rows.len()]];
    for members in compatible(rows).values() {
        let (classes, class_of) = classes(rows, members);
        for (place, own) in classes.iter().enumerate() {
            let own_weight = likelihood(own.facts, &own.mentioned);
            let mut found = [Rivals::default(); 2];
            for other in &classes {
                let weights =
                    [likelihood(other.facts, &own.mentioned), likelihood(own.facts, &other.mentioned)];
                for (rivals, weight) in found.iter_mut().zip(weights) {
                    if weight > own_weight {
                        rivals.greater += other.rows;
                    } else if weight == own_weight {
                        rivals.equal += other.rows;
                    }
                }
            }
            for (row, class) in members.iter().zip(&class_of) {
                if *class == place {
                    (rivals[0][*row], rivals[1][*row]) = (found[0], found[1]);
                }
            }
        }
    }
    let count = rows.len().max(1) as f64;
    let mut expected = Vec::new();
    for (direction, rivals) in ["text_to_image", "image_to_text"].into_iter().zip(rivals) {
        for k in [1usize, 5, 10] {
            let hits = rivals
                .iter()
                .map(|one| ((k as f64 - one.greater as f64) / one.equal.max(1) as f64).clamp(0.0, 1.0));
            let value = hits.sum::<f64>() / count;
            let formula = "mean of clamp((k - G) / T, 0, 1), G better and T equal candidates by the likelihood of the mentioned facts";
            expected.push(Expected {
                error: (value * (1.0 - value) / count).sqrt(),
                ..Expected::exact(format!("{direction} recall@{k}"), split, value, formula)
            });
        }
    }
    expected
}

/// Rows by their facts that are always mentioned: between different ones every likelihood is zero.
fn compatible(rows: &[(Vec<Fact>, Caption)]) -> BTreeMap<Vec<(&str, &str)>, Vec<usize>> {
    let mut groups: BTreeMap<Vec<(&str, &str)>, Vec<usize>> = BTreeMap::new();
    for (row, (facts, _)) in rows.iter().enumerate() {
        let certain = facts.iter().filter(|fact| fact.kappa == 1.0);
        let certain = certain.map(|fact| (fact.name, fact.value.as_str())).collect();
        groups.entry(certain).or_default().push(row);
    }
    groups
}

/// The classes among `members`, and the class of each member.
fn classes<'a>(rows: &'a [(Vec<Fact>, Caption)], members: &[usize]) -> (Vec<Class<'a>>, Vec<usize>) {
    let mut known: BTreeMap<(Vec<&str>, Vec<(&str, &str)>), usize> = BTreeMap::new();
    let mut classes: Vec<Class<'a>> = Vec::new();
    let class_of = members
        .iter()
        .map(|row| {
            let (facts, caption) = &rows[*row];
            let mentioned: Vec<(&str, &str)> = facts
                .iter()
                .filter(|fact| caption.mentioned.contains(&fact.name))
                .map(|fact| (fact.name, fact.value.as_str()))
                .collect();
            let key = (facts.iter().map(|fact| fact.value.as_str()).collect(), mentioned.clone());
            let class = *known.entry(key).or_insert_with(|| {
                classes.push(Class { facts, mentioned, rows: 0 });
                classes.len() - 1
            });
            classes[class].rows += 1;
            class
        })
        .collect();
    (classes, class_of)
}

/// What a model can reach that reads nothing but the marker: it says that the target is there where the
/// marker is. With label noise `noise` = (share of replaced labels, share of the target).
pub(super) fn marker_only(
    split: &'static str,
    subset: &str,
    rho: f64,
    noise: Option<(f64, f64)>,
) -> Vec<Expected> {
    let right = (1.0 + rho) / 2.0;
    let (eta, [p0, p1]) = noise.map_or((0.0, [0.0, 1.0]), |(eta, p)| (eta, true_share(p, eta)));
    let accuracy = right * (1.0 - 2.0 * eta) + eta;
    let auroc = 0.5 + (2.0 * right - 1.0) * (p1 - p0) / 2.0;
    let formulas = match noise {
        None => ["(1 + rho) / 2, rho the correlation of marker and target in this split"; 2],
        Some(_) => [
            "a (1 - 2 eta) + eta, a = (1 + rho) / 2",
            "1/2 + rho (p1 - p0) / 2, p1 and p0 the true prevalence among labels 1 and 0",
        ],
    };
    [("accuracy", accuracy, formulas[0]), ("auroc", auroc, formulas[1])]
        .into_iter()
        .filter(|(_, value, _)| value.is_finite())
        .map(|(metric, value, formula)| Expected {
            subset: subset.to_owned(),
            ..Expected::exact(format!("marker-only {metric}"), split, value, formula)
        })
        .collect()
}

/// The true prevalence among rows with label 0 and with label 1, if a share `p` is truly positive and a
/// share `eta` of the labels is wrong.
fn true_share(p: f64, eta: f64) -> [f64; 2] {
    let share = |right: f64, wrong: f64| right / (right + wrong);
    [share(p * eta, (1.0 - p) * (1.0 - eta)), share(p * (1.0 - eta), (1.0 - p) * eta)]
}

/// What a perfect model reaches against labels of which a share `eta` was replaced; `positive` are the
/// shares of the positive class of each binary label, if labels are binary.
pub(super) fn label_noise(split: &'static str, eta: f64, positive: &[f64]) -> Vec<Expected> {
    let accuracy = Expected::exact("accuracy of a perfect model", split, 1.0 - eta, "1 - eta");
    let areas = positive.iter().map(|p| {
        let [p0, p1] = true_share(*p, eta);
        0.5 * (1.0 + p1 - p0)
    });
    // Where one class is alone there is no such area.
    let areas: Vec<f64> = areas.filter(|area| area.is_finite()).collect();
    let auroc = (!areas.is_empty()).then(|| {
        let value = areas.iter().sum::<f64>() / areas.len() as f64;
        let formula = "(1 + p1 - p0) / 2, p1 and p0 the true prevalence among labels 1 and 0";
        Expected::exact("auroc of a perfect model", split, value, formula)
    });
    std::iter::once(accuracy).chain(auroc).collect()
}

/// What a map of independent random values scores, on average over pictures with a mask.
pub(super) fn random_map(split: &'static str, subset: &str, areas: &[Area]) -> Vec<Expected> {
    let count = areas.len() as f64;
    let mean = |value: &dyn Fn(&Area) -> f64| areas.iter().map(value).sum::<f64>() / count;
    let share = mean(&|area| area.share());
    let near = mean(&|area| area.near as f64 / area.pixels as f64);
    let hits = |share: f64| (share * (1.0 - share) / count).sqrt();
    // Uniform values: the mass of m of P pixels has the variance s (1 - s) / 3 P, s = m / P, to first order.
    let mass = mean(&|area| area.share() * (1.0 - area.share()) / (3.0 * area.pixels as f64));
    // The variance of the area under the curve between m values and k others from one distribution.
    let area_variance = mean(&|area| {
        let (m, k) = (area.inside as f64, (area.pixels - area.inside) as f64);
        (m + k + 1.0) / (12.0 * m * k)
    });
    [
        ("pointing game of a random map", share, hits(share), "mean share of the mask in the image"),
        (
            "tolerant pointing game of a random map",
            near,
            hits(near),
            "mean share of the pixels inside the mask or within 15 of 224 pixels of it",
        ),
        (
            "relevance mass of a random map",
            share,
            (mass / count).sqrt(),
            "mean share of the mask in the image",
        ),
        ("auc of a random map", 0.5, (area_variance / count).sqrt(), "1 / 2"),
    ]
    .into_iter()
    .map(|(quantity, value, error, formula)| Expected {
        subset: subset.to_owned(),
        error,
        ..Expected::exact(quantity, split, value, formula)
    })
    .collect()
}
