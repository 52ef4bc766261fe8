//! CT-CLIP (Hamamci et al. 2024): a factorised vision transformer over CT volumes with vector-quantised
//! tokens, and CXR-BERT.
//!
//! A volume of 240 x 480 x 480 voxels has 13,824 tokens. Where gradients are wanted, patches and layers are
//! computed again in the backward pass, so that a volume fits into a few gigabytes.

mod config;
mod layer;
mod model;
mod position_bias;
mod vit;
mod zero_shot;

pub use config::{Adaptation, CtClipConfig, CtVitConfig, QuantiserGradient};
pub use model::CtClip;
pub use vit::CtVit;
pub use zero_shot::{PATHOLOGIES, pathology_probability, prompts};
