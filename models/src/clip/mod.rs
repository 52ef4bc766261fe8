//! CLIP (Radford et al. 2021): an image tower and a causal text transformer, in the
//! layouts of Hugging Face and of OpenAI.

mod config;
mod model;
mod open_ai;
mod random;
mod text;

pub use crate::model::normalise;
pub use crate::vit::{VisionConfig, VisionTransformer};
pub use config::{ClipConfig, EotRule, TextConfig};
pub use model::ClipModel;
pub use open_ai::{OpenAiClip, OpenAiClipConfig, OpenAiImage};
pub use text::TextTransformer;
