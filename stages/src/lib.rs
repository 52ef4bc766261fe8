//! The stage kinds of `pipe`: what each reads, computes and writes. The only crate that knows the
//! engine, the models and the attribution methods.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod attribute;
pub mod checkpoint;
mod classification;
pub mod embed;
pub mod evaluate_classify;
pub mod finetune;
mod images;
mod ipc;
mod labels;
mod logistic;
mod mean_image;
mod model;
pub mod phantom;
mod registry;
mod report;
pub mod retrieve;
pub mod score;
mod statistics;
pub mod table;
mod target;
pub mod tokenizer;

pub use pipe_models::process;
pub use registry::registry;
