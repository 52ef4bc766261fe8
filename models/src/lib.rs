//! The foundation models of `pipe`, in candle: architectures, checkpoints, preprocessing, tokenisers.
//!
//! Usable without the engine.

pub mod bert;
pub mod biomed_clip;
pub mod checkpoint;
pub mod clip;
mod config;
pub mod ct_clip;
pub mod device;
pub mod export;
pub mod import;
mod initial;
mod layer;
mod layers;
pub mod model;
mod open_clip;
pub mod ops;
pub mod pmc_clip;
mod positions;
pub mod preprocess;
mod probe;
pub mod process;
mod published;
pub mod random;
pub mod resnet;
mod shapes;
mod sizes;
mod slice_wise;
#[cfg(test)]
mod tests;
pub mod tokenizer;
pub mod train;
pub mod vit;
pub mod vqa;
mod weights;

pub use bert::BertModel;
pub use biomed_clip::BiomedClip;
pub use checkpoint::{CheckpointError, CheckpointFiles};
pub use clip::{ClipConfig, ClipModel, OpenAiClip};
pub use config::ModelConfig;
pub use ct_clip::CtClip;
pub use device::{DeviceName, Precision};
pub use initial::random_parameter;
pub use layer::Layer;
pub use model::{
    DualEncoder, FoundationModel, ImageTower, PatchGeometry, TextTower, WordPredictor, normalise,
};
pub use pmc_clip::PmcClip;
pub use preprocess::Preprocessor;
pub use probe::{Activation, MaybeProbe, Probe};
pub use published::{PUBLISHED, published};
pub use resnet::ResNet;
pub use slice_wise::slice_wise;
pub use tokenizer::{Encoded, Tokenizer};
pub use vit::TimmVit;
pub use weights::{Parameters, Side, Trainable, Weights};
