//! The explanation metrics that the stage offers, and what each needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a metric is a function of, beside the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// A mask.
    Mask,
    /// The model, which is asked about changed images.
    Model,
    /// The model's predictions, and the maps of all other images.
    Predictions,
    /// The method, which explains again: changed images, changed models, another class.
    Method,
}

/// Which way a metric is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Better {
    Higher,
    Lower,
    /// It describes a map and ranks nothing.
    Neither,
}

impl Better {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Higher => "higher",
            Self::Lower => "lower",
            Self::Neither => "none",
        }
    }
}

/// Which modes have a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Modes {
    Both,
    ReferenceOnly,
}

/// The metrics as an enumeration, with their names and facts.
macro_rules! metrics {
    ($($(#[$doc:meta])* $variant:ident = $name:literal: $needs:ident, $better:ident, $modes:ident;)*) => {
        /// A metric of an explanation.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Metric {
            $($(#[$doc])* $variant,)*
        }

        impl Metric {
            /// All of them, cheap ones first.
            pub(super) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name in parameters and in the column `metric`.
            pub(super) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(super) fn needs(self) -> Needs {
                match self { $(Self::$variant => Needs::$needs,)* }
            }

            /// Which way it is better.
            pub(super) fn better(self) -> Better {
                match self { $(Self::$variant => Better::$better,)* }
            }

            fn modes(self) -> Modes {
                match self { $(Self::$variant => Modes::$modes,)* }
            }
        }
    };
}

metrics! {
    /// 1 if the map's maximum lies in the mask.
    PointingGame = "pointing_game": Mask, Higher, Both;
    /// The same within `tolerance` pixels of the mask.
    PointingGameTolerant = "pointing_game_tolerant": Mask, Higher, ReferenceOnly;
    /// A hit times the share of the image outside the mask.
    PointingGameWeighted = "pointing_game_weighted": Mask, Higher, Both;
    /// The share of the map's positive mass inside the mask.
    RelevanceMass = "relevance_mass": Mask, Higher, Both;
    /// The share of the K greatest values inside the mask of K pixels.
    RelevanceRank = "relevance_rank": Mask, Higher, Both;
    /// The share of the greatest 5 % of the values inside the mask.
    TopKIntersection = "top_k_intersection": Mask, Higher, Both;
    /// The share of the magnitudes inside the mask.
    AttributionLocalisation = "attribution_localisation": Mask, Higher, Both;
    /// The same over the mask's share of the image: 1 for a uniform map.
    AttributionLocalisationWeighted = "attribution_localisation_weighted": Mask, Higher, Both;
    /// The area under the ROC curve of the map as a classifier of pixels.
    LocalisationAuc = "localisation_auc": Mask, Higher, Both;
    /// The share of positive mass in the quarters of a mosaic that show the class: the mask has to be such
    /// quarters.
    Focus = "focus": Mask, Higher, Both;
    /// The Gini index of the magnitudes.
    Sparseness = "sparseness": Nothing, Neither, Both;
    /// The entropy of the magnitudes, in nats.
    Complexity = "complexity": Nothing, Neither, Both;
    /// The same over that of a map without any order: between maps of several sizes.
    RelativeComplexity = "relative_complexity": Nothing, Neither, ReferenceOnly;
    /// The number of pixels above 5 % of the greatest magnitude.
    EffectiveComplexity = "effective_complexity": Nothing, Neither, Both;
    /// Whether the greatest magnitudes lie together, by their hull and minimum spanning tree (MST-C).
    Compactness = "compactness": Nothing, Neither, ReferenceOnly;
    /// The area under the curve of the probability while the most relevant pixels are removed.
    Deletion = "deletion": Model, Lower, ReferenceOnly;
    /// The area under the curve of the probability while they are added to a blurred image.
    Insertion = "insertion": Model, Higher, ReferenceOnly;
    /// The area under the curve of the score while the most relevant pixels are removed.
    PixelFlipping = "pixel_flipping": Model, Lower, Both;
    /// The same while the least relevant are.
    PixelFlippingLeastFirst = "pixel_flipping_least_first": Model, Higher, ReferenceOnly;
    /// The area between both curves.
    PixelFlippingGap = "pixel_flipping_gap": Model, Higher, ReferenceOnly;
    /// The area over the curve of the score while the most relevant patches are removed.
    RegionPerturbation = "region_perturbation": Model, Higher, Both;
    /// The same while the least relevant are.
    RegionPerturbationLeastFirst = "region_perturbation_least_first": Model, Lower, Both;
    /// The first minus the second.
    RegionPerturbationGap = "region_perturbation_gap": Model, Higher, ReferenceOnly;
    /// The area under the curve of the score while the most relevant patches are removed.
    Selectivity = "selectivity": Model, Lower, Both;
    /// Pearson's correlation, over random subsets of patches, of their attribution with the fall of the
    /// score without them.
    FaithfulnessCorrelation = "faithfulness_correlation": Model, Higher, Both;
    /// The same over groups of pixels in the order of the map.
    FaithfulnessEstimate = "faithfulness_estimate": Model, Higher, Both;
    /// The mean of the correlation over subsets of an eighth, a quarter and half of the patches.
    SensitivityN = "sensitivity_n": Model, Higher, Both;
    /// The area over the curve of the relative score while the most relevant segments are removed.
    Irof = "irof": Model, Higher, Both;
    /// The squared error of the map's prediction of what a patch costs, at the best scale of the map.
    Infidelity = "infidelity": Model, Lower, Both;
    /// The share of steps that do not lower the score while pixels are restored, the most relevant last.
    Monotonicity = "monotonicity": Model, Higher, Both;
    /// Spearman's correlation of magnitudes with squared changes of the score.
    MonotonicityCorrelation = "monotonicity_correlation": Model, Higher, Both;
    /// The mean probability while the most relevant pixels are filled in from their neighbours.
    Road = "road": Model, Lower, Both;
    /// The same while the least relevant are.
    RoadLeastFirst = "road_least_first": Model, Higher, ReferenceOnly;
    /// The second minus the first.
    RoadGap = "road_gap": Model, Higher, ReferenceOnly;
    /// The same of the share of percentages that leave the class predicted.
    RoadAgreementGap = "road_agreement_gap": Model, Higher, ReferenceOnly;
    /// The share of patches for which map and model disagree on whether they matter.
    NonSensitivity = "non_sensitivity": Model, Lower, Both;
    /// The share of images with like maps that have the same predicted class.
    Sufficiency = "sufficiency": Predictions, Higher, Both;
    /// The share of images whose map is greatest in the same patch that have the same predicted class.
    Consistency = "consistency": Predictions, Higher, Both;
    /// By how much the map's sum misses the difference of scores that it should explain, over that.
    Completeness = "completeness": Method, Lower, Both;
    /// Whether the map stays when the image is shifted and the model takes the shift back.
    InputInvariance = "input_invariance": Method, Higher, Both;
    /// The likeness of the map and that of another class, drawn at random.
    RandomLogit = "random_logit": Method, Lower, Both;
    /// The greatest relative change of the map under small noise.
    MaxSensitivity = "max_sensitivity": Method, Lower, Both;
    /// The mean relative change of the map under small noise.
    AvgSensitivity = "avg_sensitivity": Method, Lower, Both;
    /// The greatest change of the map over that of the image.
    LocalLipschitzEstimate = "local_lipschitz_estimate": Method, Lower, Both;
    /// The greatest change of the map over that of the image, for translations.
    Continuity = "continuity": Method, Lower, Both;
    /// The greatest relative change of the map over that of the image.
    RelativeInputStability = "relative_input_stability": Method, Lower, Both;
    /// The same over the change of the logits.
    RelativeOutputStability = "relative_output_stability": Method, Lower, Both;
    /// The same over the relative change of what the model knows of each place before it pools.
    RelativeRepresentationStability = "relative_representation_stability": Method, Lower, Both;
    /// The relative rise of the map's entropy when the whole model is random.
    EfficientParameterRandomisation = "efficient_parameter_randomisation": Method, Higher, Both;
    /// Spearman's correlation, over the model with more and more layers random, of the map's entropy with that of the
    /// prediction.
    EntropyCorrelation = "entropy_correlation": Method, Higher, Both;
    /// The mean likeness of the map and those of the model with more and more layers random.
    ParameterRandomisation = "parameter_randomisation": Method, Lower, Both;
    /// The same with maps averaged over noisy images.
    SmoothParameterRandomisation = "smooth_parameter_randomisation": Method, Lower, Both;
}

impl Metric {
    /// What is computed if nothing is asked for: localisation, complexity, deletion and insertion.
    pub(super) fn is_standard(self) -> bool {
        match self.needs() {
            Needs::Nothing | Needs::Mask => {
                !matches!(self, Self::Focus | Self::PointingGameWeighted | Self::Compactness)
            }
            Needs::Model => matches!(self, Self::Deletion | Self::Insertion),
            Needs::Predictions | Needs::Method => false,
        }
    }

    /// Whether the recommended set has it.
    pub(super) fn is_recommended(self) -> bool {
        match self {
            Self::PixelFlipping | Self::PixelFlippingGap | Self::RegionPerturbationGap | Self::RoadGap => {
                true
            }
            Self::RoadAgreementGap => true,
            Self::FaithfulnessCorrelation | Self::Infidelity | Self::Completeness => true,
            Self::MaxSensitivity | Self::AvgSensitivity => true,
            Self::ParameterRandomisation | Self::EfficientParameterRandomisation => true,
            Self::RandomLogit => true,
            other => other.is_standard(),
        }
    }

    /// Whether it explains more than twice: for few images only.
    pub(super) fn is_costly(self) -> bool {
        self.needs() == Needs::Method && self != Self::Completeness
    }

    /// Whether its value is a mean over layers, each of which is told too.
    pub(super) fn is_of_layers(self) -> bool {
        matches!(self, Self::ParameterRandomisation | Self::SmoothParameterRandomisation)
    }

    /// Why it is not defined for volumes, if so.
    pub(super) fn undefined_of_volumes(self) -> Option<&'static str> {
        match self {
            Self::Focus => Some("mosaics are flat"),
            Self::Compactness => Some("it is the spread of areas, and the map is one of a volume"),
            Self::Road | Self::RoadLeastFirst | Self::RoadGap | Self::RoadAgreementGap => {
                Some("its imputation from neighbours is defined for flat images")
            }
            _ => None,
        }
    }

    /// Whether Quantus has it.
    pub(super) fn is_in_quantus(self) -> bool {
        self.modes() == Modes::Both
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
