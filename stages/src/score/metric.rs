//! The explanation metrics that the stage offers, and what each needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A metric of an explanation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 if the map's maximum lies in the mask.
    PointingGame,
    /// The same within `tolerance` pixels of the mask.
    PointingGameTolerant,
    /// The share of the map's positive mass inside the mask.
    RelevanceMass,
    /// The share of the K greatest values inside the mask of K pixels.
    RelevanceRank,
    /// The share of the greatest 5 % of the values inside the mask.
    TopKIntersection,
    /// The share of the magnitudes inside the mask.
    AttributionLocalisation,
    /// The same over the mask's share of the image: 1 for a uniform map.
    AttributionLocalisationWeighted,
    /// The area under the ROC curve of the map as a classifier of pixels.
    LocalisationAuc,
    /// The Gini index of the magnitudes.
    Sparseness,
    /// The entropy of the magnitudes, in nats.
    Complexity,
    /// The number of pixels above 5 % of the greatest magnitude.
    EffectiveComplexity,
    /// The area under the curve of the probability while the most relevant pixels are removed.
    Deletion,
    /// The area under the curve of the probability while they are added to a blurred image.
    Insertion,
}

/// What a metric is a function of, beside the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Needs {
    Nothing,
    Mask,
    Model,
}

impl Metric {
    /// All of them, cheap ones first.
    pub(super) const ALL: [Self; 13] = [
        Self::PointingGame,
        Self::PointingGameTolerant,
        Self::RelevanceMass,
        Self::RelevanceRank,
        Self::TopKIntersection,
        Self::AttributionLocalisation,
        Self::AttributionLocalisationWeighted,
        Self::LocalisationAuc,
        Self::Sparseness,
        Self::Complexity,
        Self::EffectiveComplexity,
        Self::Deletion,
        Self::Insertion,
    ];

    /// Its name in parameters and in the column `metric`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PointingGame => "pointing_game",
            Self::PointingGameTolerant => "pointing_game_tolerant",
            Self::RelevanceMass => "relevance_mass",
            Self::RelevanceRank => "relevance_rank",
            Self::TopKIntersection => "top_k_intersection",
            Self::AttributionLocalisation => "attribution_localisation",
            Self::AttributionLocalisationWeighted => "attribution_localisation_weighted",
            Self::LocalisationAuc => "localisation_auc",
            Self::Sparseness => "sparseness",
            Self::Complexity => "complexity",
            Self::EffectiveComplexity => "effective_complexity",
            Self::Deletion => "deletion",
            Self::Insertion => "insertion",
        }
    }

    pub(super) fn needs(self) -> Needs {
        match self {
            Self::Sparseness | Self::Complexity | Self::EffectiveComplexity => Needs::Nothing,
            Self::Deletion | Self::Insertion => Needs::Model,
            _ => Needs::Mask,
        }
    }

    /// Whether Quantus has it.
    pub(super) fn is_in_quantus(self) -> bool {
        !matches!(self, Self::PointingGameTolerant | Self::Deletion | Self::Insertion)
    }

    /// Which way it is better, for the table's metadata.
    pub(super) fn direction(self) -> &'static str {
        match self {
            Self::Sparseness | Self::Complexity | Self::EffectiveComplexity => "none",
            Self::Deletion => "lower",
            _ => "higher",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_tables_are_those_of_parameters() {
        for metric in Metric::ALL {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }
}
