//! Optimiser, learning-rate schedule and losses.

mod adamw;
pub mod loss;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, Group, clip_gradient_norm};
pub use schedule::Schedule;
