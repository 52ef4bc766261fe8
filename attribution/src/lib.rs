//! Attribution methods and their metrics over any model of `pipe-models`.
//!
//! Usable without the engine.

pub mod metrics;
mod score;

pub use score::Score;
