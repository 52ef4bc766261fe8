//! Figures of merit, their intervals and tests, as plain functions over slices.
//!
//! What is undefined is `None`, never NaN: the AUROC of one class, the recall of no positives. A
//! `weights` argument says how often each sample counts (all ones, or what a bootstrap has drawn);
//! definitions that several libraries give differently state theirs.

mod additive;
mod calibration;
mod classifier;
mod confusion;
mod correlation;
#[cfg(test)]
mod coverage;
mod curves;
mod delong;
mod distribution;
mod equivalence;
mod floors;
mod holm;
mod hubness;
mod mcnemar;
mod principal;
mod ranking;
mod recall;
mod reliance;
mod resampling;
mod shapley;
mod spread;
mod subgroups;
mod wilcoxon;

pub use additive::additive_projection;
pub use calibration::{BINS, Calibration, CalibrationBin};
pub use classifier::{ClassifierScores, Task, argmax, softmax};
pub use confusion::{Confusion, Disagreement};
pub use correlation::{Correlation, kendall_tau_b, spearman};
pub use curves::{mean_curve, precision_recall, roc};
pub use delong::{DeLong, delong, delong_interval};
pub use distribution::two_sided_normal;
pub use equivalence::equivalence;
pub use floors::{MostFrequent, Overlap};
pub use holm::holm;
pub use hubness::hubness_skewness;
pub use mcnemar::{McNemar, mcnemar};
pub(crate) use principal::principal_components;
pub use ranking::{Ranking, midranks, threshold_at_specificity};
pub use recall::{Rank, mean_rank, median_rank, random_hit, recall};
pub use reliance::{Change, Changes, Scale, perceptual_score, relative_share, synergy};
pub use resampling::{Estimate, Groups, REPLICATES, Resampled, bootstrap, bootstrap_all, mean, percentile};
pub use shapley::{shapley, text_share};
pub use spread::Spread;
pub use subgroups::{Disparity, GroupRates};
pub use wilcoxon::{Method, Wilcoxon, Zeros, wilcoxon};
