//! Subgroups: how far a figure differs between groups of samples.

use super::classifier::{ClassifierScores, Task};

/// Figures of one group.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GroupRates {
    /// Samples.
    pub n: usize,
    /// Macro AUROC; undefined without both classes.
    pub auroc: Option<f64>,
    /// Accuracy.
    pub accuracy: Option<f64>,
    /// Of a binary task: the share of positives with a score above 0.5.
    pub true_positive_rate: Option<f64>,
    /// The share of negatives above 0.5.
    pub false_positive_rate: Option<f64>,
    /// The share of all above 0.5.
    pub positive_rate: Option<f64>,
}

impl GroupRates {
    /// The figures of the samples that `belongs` holds, each counted by its weight.
    pub fn of(scores: &ClassifierScores, belongs: &[bool], weights: &[f64]) -> Self {
        let within: Vec<f64> = weights
            .iter()
            .zip(belongs)
            .map(|(weight, belongs)| if *belongs { *weight } else { 0.0 })
            .collect();
        let (mut true_positive_rate, mut false_positive_rate, mut positive_rate) = (None, None, None);
        if scores.task() == Task::Binary {
            (true_positive_rate, false_positive_rate) = scores.rates(|score| score > 0.5, &within);
            let total: f64 = within.iter().sum();
            let positive: f64 = within
                .iter()
                .enumerate()
                .map(|(row, weight)| weight * f64::from(scores.prediction(row)[0]))
                .sum();
            positive_rate = (total > 0.0).then(|| positive / total);
        }
        Self {
            n: belongs.iter().filter(|belongs| **belongs).count(),
            auroc: scores.auroc(&within),
            accuracy: scores.accuracy(&within),
            true_positive_rate,
            false_positive_rate,
            positive_rate,
        }
    }
}

/// How far groups differ; a group whose figure is undefined is left out of that comparison.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Disparity {
    /// The least AUROC.
    pub worst_auroc: Option<f64>,
    /// The greatest minus the least AUROC.
    pub auroc_gap: Option<f64>,
    /// The greater of the spreads of true and of false positive rates.
    pub equalised_odds: Option<f64>,
    /// The spread of the true positive rates.
    pub equal_opportunity: Option<f64>,
    /// The spread of the shares that are called positive.
    pub demographic_parity: Option<f64>,
}

impl Disparity {
    /// Compares groups.
    pub fn between(groups: &[GroupRates]) -> Self {
        let spread = |figure: fn(&GroupRates) -> Option<f64>| -> Option<f64> {
            let values = || groups.iter().filter_map(figure);
            Some(values().reduce(f64::max)? - values().reduce(f64::min)?)
        };
        let equal_opportunity = spread(|group| group.true_positive_rate);
        let false_positives = spread(|group| group.false_positive_rate);
        Self {
            worst_auroc: groups.iter().filter_map(|group| group.auroc).reduce(f64::min),
            auroc_gap: spread(|group| group.auroc),
            equalised_odds: equal_opportunity.zip(false_positives).map(|(a, b)| a.max(b)),
            equal_opportunity,
            demographic_parity: spread(|group| group.positive_rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_one_class_is_left_out_of_what_it_does_not_define() {
        let rows = [0.9, 0.2, 0.8, 0.7, 0.6].map(|score| vec![score]).to_vec();
        let scores =
            ClassifierScores::new(Task::Binary, rows, [1, 0, 1, 0, 1].map(|label| vec![label]).to_vec());
        let of = |members: [usize; 5], group| {
            let belongs: Vec<bool> = members.iter().map(|member| *member == group).collect();
            GroupRates::of(&scores, &belongs, &[1.0; 5])
        };
        let members = [0, 0, 1, 1, 2];
        let groups = [of(members, 0), of(members, 1), of(members, 2)];
        assert_eq!(groups[2].auroc, None);
        assert_eq!(groups[2].true_positive_rate, Some(1.0));
        let disparity = Disparity::between(&groups);
        assert_eq!((disparity.worst_auroc, disparity.auroc_gap), (Some(1.0), Some(0.0)));
        assert_eq!((disparity.equalised_odds, disparity.equal_opportunity), (Some(1.0), Some(0.0)));
        assert_eq!(disparity.demographic_parity, Some(0.5));
    }
}
