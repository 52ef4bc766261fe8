//! Optimiser, parameter groups, learning-rate schedule, low-rank adaptation, dropout, batch norms, losses, and linear probes.

mod adamax;
mod adamw;
mod cholesky;
mod dropout;
mod groups;
mod lanes;
pub mod logistic;
mod lora;
pub mod loss;
mod norms;
mod quasi_newton;
mod schedule;
mod slots;

pub use adamax::{Adamax, AdamaxOptions};
pub use adamw::{AdamW, AdamWOptions};
pub use dropout::Dropout;
pub use groups::{layer_of, layer_wise};
pub use lora::{Lora, LoraOptions};
pub use norms::BatchStatistics;
pub use schedule::{EpochSchedule, Schedule, WarmUp};
pub use slots::{Group, Moments, add_gradients, clip_gradient_norm};
