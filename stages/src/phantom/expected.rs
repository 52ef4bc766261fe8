//! What must be found: figures that follow from the planted truths, computed from the generator's
//! probabilities and the rows, never from a model.

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

/// Ceilings of recall@1/5/10 both ways over one pool of images with one caption each.
pub(super) fn retrieval(split: &'static str, rows: &[(Vec<Fact>, Caption)]) -> Vec<Expected> {
    let mentions: Vec<Vec<(&str, &str)>> = rows
        .iter()
        .map(|(facts, caption)| {
            facts
                .iter()
                .filter(|fact| caption.mentioned.contains(&fact.name))
                .map(|fact| (fact.name, fact.value.as_str()))
                .collect()
        })
        .collect();
    let count = rows.len();
    let mut weights = vec![0.0f64; count * count];
    for (caption, mentioned) in mentions.iter().enumerate() {
        for (image, (facts, _)) in rows.iter().enumerate() {
            weights[caption * count + image] = likelihood(facts, mentioned);
        }
    }
    let mut expected = Vec::new();
    for (direction, by_caption) in [("text_to_image", true), ("image_to_text", false)] {
        for k in [1usize, 5, 10] {
            let mut sum = 0.0;
            for query in 0..count {
                let weight = |other: usize| {
                    if by_caption { weights[query * count + other] } else { weights[other * count + query] }
                };
                let own = weight(query);
                let greater = (0..count).filter(|other| weight(*other) > own).count() as f64;
                let equal = (0..count).filter(|other| weight(*other) == own).count() as f64;
                sum += ((k as f64 - greater) / equal).clamp(0.0, 1.0);
            }
            let value = sum / count.max(1) as f64;
            expected.push(Expected {
                quantity: format!("{direction} recall@{k}"),
                split,
                value,
                error: (value * (1.0 - value) / count.max(1) as f64).sqrt(),
                formula: "mean of clamp((k - G) / T, 0, 1), G better and T equal candidates by the likelihood of the mentioned facts",
            });
        }
    }
    expected
}
