//! Whether a map points at a given region. No model is asked.
//!
//! Maps have one channel (channels summed before). For every figure the value of a map that knows
//! nothing is worth stating: a uniform map has mass and rank accuracy equal to the mask's share of the
//! image, and an AUC of 0.5.

mod auc;
mod focus;
mod mask;
mod mass;
mod pointing_game;
mod rank;

pub use auc::auc;
pub use focus::focus;
pub use mask::Mask;
pub use mass::{Weighting, attribution_localisation, relevance_mass_accuracy};
pub use pointing_game::{pointing_game, weighted_pointing_game};
pub use rank::{relevance_rank_accuracy, top_k_intersection};
