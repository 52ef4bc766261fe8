//! CLIP with a vision transformer and a causal text transformer (Radford et al. 2021), in the Hugging
//! Face layout.

mod config;
mod model;
mod random;
mod transformer;

pub use config::{ClipConfig, EotRule, TextConfig, VisionConfig};
pub use model::{ClipModel, TextTransformer, VisionTransformer, normalise};
