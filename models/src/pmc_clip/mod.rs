//! PMC-CLIP (Lin et al. 2023): CLIP's ResNet, PubMedBERT, and a fusion transformer over both.

mod config;
mod fusion;
mod masking;
mod model;

pub use config::{FusionConfig, PmcClipConfig};
pub use fusion::masked_word_loss;
pub use masking::{MaskedCaption, mask_words};
pub use model::{LossWeights, PmcClip, PmcLosses};
