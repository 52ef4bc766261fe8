//! The foundation models of `pipe`, in candle: architectures, checkpoints, preprocessing, tokenisers.
//!
//! Usable without the engine.

mod model;
pub mod ops;
mod probe;
pub mod random;

pub use model::{DualEncoder, ImageTower, PatchGeometry, TextTower};
pub use probe::{Activation, MaybeProbe, Probe};
