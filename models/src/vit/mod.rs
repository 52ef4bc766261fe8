//! The vision transformer (Dosovitskiy et al. 2021) in the variants of CLIP and of timm.

mod timm;
mod transformer;

pub use timm::TimmVit;
pub use transformer::{VisionConfig, VisionTransformer};
