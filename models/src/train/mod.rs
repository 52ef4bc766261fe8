//! Optimiser, parameter groups, learning-rate schedule, low-rank adaptation, dropout and losses.

mod adamw;
mod dropout;
mod groups;
mod lora;
pub mod loss;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, Group, Moments, clip_gradient_norm};
pub use dropout::Dropout;
pub use groups::{layer_of, layer_wise};
pub use lora::{Lora, LoraOptions};
pub use schedule::{Schedule, WarmUp};
