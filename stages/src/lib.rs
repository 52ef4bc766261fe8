//! The stage kinds of `pipe`: what each reads, computes and writes. The only crate that knows the
//! engine, the models and the attribution methods.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod checkpoint;
mod classification;
pub mod embed;
pub mod evaluate_classify;
mod evaluator;
pub mod finetune;
mod images;
pub mod ingest;
mod ipc;
mod labels;
mod logistic;
mod model;
pub mod phantom;
mod png;
mod registry;
mod report;
pub mod retrieve;
mod statistics;
pub mod table;
#[cfg(test)]
mod testing;
mod texts;
pub mod tokenize;
pub mod tokenizer;

pub use pipe_models::process;
pub use registry::registry;
