//! PMC-CLIP (Lin et al. 2023): CLIP's ResNet, PubMedBERT, and a fusion transformer over both.

mod config;
mod fusion;
mod masking;
mod model;

pub use config::{FusionConfig, PmcClipConfig};
pub use fusion::{is_asked, masked_word_loss, masked_word_share};
pub use masking::{MaskedCaption, mask_words};
pub use model::{LossWeights, PmcClip, PmcLosses};
