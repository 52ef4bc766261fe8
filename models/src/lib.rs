//! The foundation models of `pipe`, in candle: architectures, checkpoints, preprocessing, tokenisers.
//!
//! Usable without the engine.

mod byte_pairs;
pub mod checkpoint;
pub mod clip;
mod config;
mod layers;
pub mod model;
pub mod ops;
pub mod preprocess;
mod probe;
pub mod process;
pub mod random;
pub mod tokenizer;
pub mod train;
pub mod vit;
mod weights;

pub use checkpoint::{CheckpointError, CheckpointFiles};
pub use clip::{ClipConfig, ClipModel};
pub use config::ModelConfig;
pub use model::{DualEncoder, FoundationModel, ImageTower, PatchGeometry, TextTower, normalise};
pub use preprocess::Preprocessor;
pub use probe::{Activation, MaybeProbe, Probe};
pub use tokenizer::Tokenizer;
pub use weights::{Parameters, Side, Trainable};
