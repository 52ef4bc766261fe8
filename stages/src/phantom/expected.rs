//! What must be found: figures that follow from the planted truths, computed from the generator's
//! probabilities and the rows, never from a model.

use std::collections::BTreeMap;

use super::captions::{Caption, Fact};

/// One figure.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) quantity: String,
    pub(super) split: &'static str,
    pub(super) value: f64,
    /// Standard error of the figure in a sample of this size, for bounds.
    pub(super) error: f64,
    pub(super) formula: &'static str,
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
            expected.push(Expected {
                quantity: format!("{direction} recall@{k}"),
                split,
                value,
                error: (value * (1.0 - value) / count).sqrt(),
                formula: "mean of clamp((k - G) / T, 0, 1), G better and T equal candidates by the likelihood of the mentioned facts",
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

/// What a model can reach that reads nothing but the marker: it says abnormal where one is.
pub(super) fn marker_only(split: &'static str, rho: f64) -> [Expected; 2] {
    ["accuracy", "auroc"].map(|metric| Expected {
        quantity: format!("marker-only {metric}"),
        split,
        value: (1.0 + rho) / 2.0,
        error: 0.0,
        formula: "(1 + rho) / 2, rho the correlation of marker and finding in this split",
    })
}

/// What a perfect model reaches against labels of which a share `eta` was replaced; `positive` is the
/// share of the second class where there are two.
pub(super) fn label_noise(split: &'static str, eta: f64, positive: Option<f64>) -> Vec<Expected> {
    let mut expected = vec![Expected {
        quantity: "accuracy of a perfect model".to_owned(),
        split,
        value: 1.0 - eta,
        error: 0.0,
        formula: "1 - eta",
    }];
    if let Some(p) = positive {
        let truly_positive = |right: f64, wrong: f64| right / (right + wrong);
        let p1 = truly_positive(p * (1.0 - eta), (1.0 - p) * eta);
        let p0 = truly_positive(p * eta, (1.0 - p) * (1.0 - eta));
        let value = 0.5 * (1.0 + p1 - p0);
        // No prevalence of one class alone has an AUROC.
        if value.is_finite() {
            expected.push(Expected {
                quantity: "auroc of a perfect model".to_owned(),
                split,
                value,
                error: 0.0,
                formula: "(1 + p1 - p0) / 2, p1 and p0 the true prevalence among labels 1 and 0",
            });
        }
    }
    expected
}
