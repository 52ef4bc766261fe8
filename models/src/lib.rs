//! The foundation models of `pipe`, in candle: architectures, checkpoints, preprocessing, tokenisers.
//!
//! Usable without the engine.

mod byte_pairs;
pub mod checkpoint;
pub mod clip;
mod model;
pub mod ops;
pub mod preprocess;
mod probe;
pub mod process;
pub mod random;
pub mod tokenizer;
pub mod train;

pub use checkpoint::{CheckpointError, CheckpointFiles, Trainable};
pub use clip::{ClipConfig, ClipModel, normalise};
pub use model::{DualEncoder, ImageTower, PatchGeometry, TextTower};
pub use preprocess::Preprocessor;
pub use probe::{Activation, MaybeProbe, Probe};
pub use tokenizer::{Encoded, Tokenizer};
