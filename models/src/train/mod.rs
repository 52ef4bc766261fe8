//! Optimiser, parameter groups, learning-rate schedule, low-rank adaptation and losses.

mod adamw;
mod groups;
mod lora;
pub mod loss;
mod schedule;

pub use adamw::{AdamW, AdamWOptions, Group, clip_gradient_norm};
pub use groups::{layer_of, layer_wise};
pub use lora::{Lora, LoraOptions};
pub use schedule::{Schedule, WarmUp};
