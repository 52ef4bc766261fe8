//! Whether explanations point at the lesion, beside maps that know nothing of the model.
//!
//! The samples are correctly classified nodules, effusions and consolidations; what is explained is the
//! margin of the logit over that of `none`.

use std::collections::BTreeMap;

use crate::published;
use crate::table::Table;

/// Which maps were scored.
#[derive(Clone, Copy)]
struct Maps {
    weights: &'static str,
    explanation: &'static str,
    reference: &'static str,
}

const fn trained(explanation: &'static str, reference: &'static str) -> Maps {
    Maps { weights: "trained", explanation, reference }
}

impl Maps {
    fn scores(self) -> Table {
        published(
            "scored/scores",
            &[
                ("model", "medical"),
                ("weights", self.weights),
                ("explanation", self.explanation),
                ("reference", self.reference),
            ],
        )
    }

    /// The mean of a metric, for the maps themselves or for a control in the same table.
    fn mean(self, method: &str, metric: &str) -> f64 {
        mean(&self.scores(), method, metric)
    }

    fn own(self, metric: &str) -> f64 {
        self.mean(self.explanation, metric)
    }

    fn mask_share(self) -> f64 {
        mask_share(&self.scores())
    }

    /// The better of the two controls of this reference: the method on random weights, and the difference
    /// to the reference itself.
    fn best_control(self, metric: &str) -> f64 {
        let random = Maps { weights: "random", ..self };
        random.own(metric).max(self.mean("abs_difference_to_reference", metric))
    }
}

/// The mean of a metric over the samples.
fn mean(scores: &Table, method: &str, metric: &str) -> f64 {
    let (methods, metrics, values) =
        (scores.texts("method"), scores.texts("metric"), scores.numbers("value"));
    let own: Vec<f64> = (0..values.len())
        .filter(|row| methods[*row].as_deref() == Some(method) && metrics[*row].as_deref() == Some(metric))
        .filter_map(|row| values[row])
        .collect();
    let least = if metric == "deletion" { 20 } else { 50 };
    assert!(own.len() >= least, "{method}, {metric}: {} samples", own.len());
    own.iter().sum::<f64>() / own.len() as f64
}

/// The mean share of the mask in the image: what a map that knows nothing has of its mass there.
fn mask_share(scores: &Table) -> f64 {
    let shares: BTreeMap<String, f64> = scores
        .texts("id")
        .into_iter()
        .zip(scores.numbers("mask_share"))
        .filter_map(|(id, share)| Some((id?, share?)))
        .collect();
    shares.values().sum::<f64>() / shares.len() as f64
}

#[test]
fn integrated_gradients_and_occlusion_find_lesions_against_the_mean_image() {
    for explanation in ["integrated_gradients", "occlusion"] {
        let maps = trained(explanation, "mean");
        let (pointing, control) = (maps.own("pointing_game"), maps.best_control("pointing_game"));
        assert!(pointing >= 0.5, "{explanation}: pointing game {pointing}");
        assert!(pointing - control >= 0.2, "{explanation}: pointing game {pointing}, control {control}");
        let random = maps.mean("random", "pointing_game").max(maps.mask_share());
        assert!(pointing >= 5.0 * random, "{explanation}: pointing game {pointing}, random map {random}");
        let (mass, share) = (maps.own("relevance_mass"), maps.mask_share());
        assert!(mass >= 6.0 * share, "{explanation}: mass {mass} in masks of {share}");
    }
}

#[test]
fn the_gradient_alone_finds_less() {
    let maps = trained("input_x_gradient", "mean");
    let (pointing, control) = (maps.own("pointing_game"), maps.best_control("pointing_game"));
    assert!(pointing - control >= 0.1, "pointing game {pointing}, control {control}");
    let (mass, share) = (maps.own("relevance_mass"), maps.mask_share());
    assert!(mass >= 4.0 * share, "mass {mass} in masks of {share}");
}

/// Controls stand in every table, and are not near zero: a lesion is what differs from the mean.
#[test]
fn controls_stand_beside_every_method() {
    for explanation in ["input_x_gradient", "integrated_gradients", "occlusion"] {
        for weights in ["trained", "random"] {
            let maps = Maps { weights, explanation, reference: "mean" };
            for control in ["random", "center", "edge", "abs_difference_to_reference"] {
                for metric in ["pointing_game", "relevance_mass", "localisation_auc"] {
                    let value = maps.mean(control, metric);
                    assert!((0.0..=1.0).contains(&value), "{control}, {metric}: {value}");
                }
            }
        }
    }
    let maps = trained("integrated_gradients", "mean");
    assert!(maps.mean("center", "localisation_auc") > 0.6, "lesions lie centrally");
    assert!((maps.mean("random", "localisation_auc") - 0.5).abs() < 0.03);
    assert!(maps.mean("abs_difference_to_reference", "localisation_auc") > 0.7, "lesions are unusual");
}

/// The upper control: against the same patient without the lesion there is nothing else to point at.
#[test]
fn the_lesion_free_twin_is_the_best_reference() {
    let maps = trained("integrated_gradients", "twin");
    let (pointing, mass) = (maps.own("pointing_game"), maps.own("relevance_mass"));
    assert!(pointing >= 0.95, "pointing game {pointing}");
    assert!(mass >= 0.75, "mass {mass}");
}

/// Plain Input x Gradient measures distance from mid grey: little better than chance, but better.
#[test]
fn plain_input_x_gradient_is_shown_as_it_is() {
    let scores = published("scored_plainly/scores", &[]);
    let (mass, share) = (mean(&scores, "input_x_gradient", "relevance_mass"), mask_share(&scores));
    assert!(mass >= 1.2 * share, "mass {mass} in masks of {share}");
}

/// Removing what a good map points at makes the model change its mind sooner.
#[test]
fn deletion_tells_good_maps_from_random_ones() {
    let maps = trained("occlusion", "mean");
    let (own, random) = (maps.own("deletion"), maps.mean("random", "deletion"));
    assert!(own < random, "deletion {own}, random map {random}");
}
