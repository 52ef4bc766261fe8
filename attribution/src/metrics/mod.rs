//! What explanations are scored with, after Quantus (Hedström et al. 2023, JMLR 24(34)).
//!
//! Families:
//!
//! * **Localisation** and **complexity** are pure functions of one map (and a mask): plain `f64`
//!   slices in, a number out, no model.
//! * **Faithfulness** asks a model about changed images. Every such metric is a few lines over one
//!   [`Engine`]: images, ordered groups of features, what they change to, cumulatively or one by one.
//!   Steps of many samples share batches.
//! * **Robustness** and **randomisation** explain again: changed images ([`Robustness`]), changed models
//!   ([`Randomisation`]). They take the method as a function of images ([`OfImages`]), and draws from
//!   outside ([`Draws`]).
//!
//! Two modes, wherever the published implementation and the definition differ: [`Mode::Reference`] is
//! what the papers define, per sample; [`Mode::Quantus`] is Quantus 0.6.0 with its quirks, for
//! comparison with published tables. Where Quantus fails, that mode refuses with the reason.
//!
//! **Ties.** Every order is stable: equal values keep ascending index (row-major, channels outermost).
//! The position of a map's maximum is the first one in that order. Coarse maps (occlusion, patch maps
//! repeated to pixels) have many ties: the pointing game then judges the top left pixel of the best
//! plateau.
//!
//! **Undefined** is an [`Undefined`] with its reason, never NaN and never 0.

mod baseline;
mod compactness;
mod completeness;
mod complexity;
#[cfg(test)]
mod costs;
mod deletion;
mod engine;
mod faithfulness_correlation;
mod faithfulness_estimate;
mod infidelity;
mod irof;
mod localisation;
mod monotonicity;
mod of_images;
mod order;
mod pieces;
mod pixel_flipping;
mod prepare;
mod randomisation;
#[cfg(test)]
mod ranking;
mod region_perturbation;
mod road;
mod robustness;
mod segments;
mod similarity;
mod ssim;
mod sufficiency;

pub use baseline::{Baseline, blur_weights, blurred};
pub use compactness::compactness;
pub use completeness::{
    CompletenessGap, completeness, completeness_quantus, non_sensitivity, non_sensitivity_of_patches,
};
pub use complexity::{complexity, effective_complexity, sparseness};
pub use deletion::{Curves, area, deletion, insertion};
pub use engine::{Change, Engine, Path, Sample, Shape, Start};
pub use faithfulness_correlation::{faithfulness_correlation, random_subsets, sensitivity_n_quantus};
pub use faithfulness_estimate::faithfulness_estimate;
pub use infidelity::{
    Drops, Prediction, infidelity_of_changes, infidelity_of_patches, infidelity_quantus, squared_error,
};
pub use irof::{channel_means, irof, irof_quantus};
pub use localisation::{
    Mask, Weighting, attribution_localisation, auc, focus, pointing_game, relevance_mass_accuracy,
    relevance_rank_accuracy, top_k_intersection, weighted_pointing_game,
};
pub use monotonicity::{
    monotonicity, monotonicity_correlation, monotonicity_correlation_of_ends, non_decreasing_share,
};
pub use of_images::{Draws, OfImages, Perturbation, Shifted, explained, mean_over_noise, range};
pub use order::{Groups, ascending, check_step, descending, first_maximum, quantus_step};
pub use pieces::{Removed, removals};
pub use pixel_flipping::{Order, pixel_flipping, pixel_flipping_quantus, trapezoid};
pub use prepare::{
    Part, Preparation, Scale, by_largest_magnitude, by_second_moment, in_channels, normalise_together,
};
pub use randomisation::{
    LayerEntropies, LayerOrder, LayerSimilarities, OfRandomised, Randomisation, discrete_entropy,
    input_invariance, other_class, random_logit,
};
pub use region_perturbation::{
    area_over_curve, patch_depth, patch_order, patches, region_perturbation, region_perturbation_quantus,
};
pub use road::{imputed, pixels_of, road};
pub use robustness::{Drawn, Robustness, consistency, first_signs, translated, translations};
pub use segments::superpixels;
pub use similarity::{Similarity, average_ranks, cosine, kendall, pearson, spearman};
pub use ssim::{flat_ssim, ssim, volume_ssim};
pub use sufficiency::{Distance, sufficiency};

/// Which definition of a metric is meant, where two exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What the paper defines, a function of one sample.
    #[default]
    Reference,
    /// What Quantus 0.6.0 computes, quirks included.
    Quantus,
}

/// Why a metric has no value.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Undefined {
    /// Localisation without anything to find.
    #[error("the mask is empty")]
    EmptyMask,
    /// Localisation where nothing can be missed.
    #[error("the mask covers the whole image")]
    FullMask,
    /// Shares of nothing.
    #[error("the map has no mass")]
    NoMass,
    /// A correlation with something constant.
    #[error("what is correlated does not vary")]
    Constant,
    /// A comparison with nobody.
    #[error("no other sample has a like map")]
    NoNeighbour,
    /// A draw that changed what is predicted, where that matters.
    #[error("the changed images are predicted as another class")]
    PredictionChanged,
    /// The published implementation raises an error, or returns what cannot be meant.
    #[error("Quantus 0.6.0 has no value here: {0}")]
    Refused(&'static str),
}

/// A metric's value for one sample.
pub type Value = Result<f64, Undefined>;
