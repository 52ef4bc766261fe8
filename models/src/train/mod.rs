//! Optimiser, learning-rate schedule, dropout and losses.

mod adamw;
mod dropout;
pub mod loss;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, Group, clip_gradient_norm};
pub use dropout::Dropout;
pub use schedule::Schedule;
