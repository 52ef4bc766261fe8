//! The stage kinds of `pipe`: what each reads, computes and writes. The only crate that knows the
//! engine, the models and the attribution methods.

#![forbid(unsafe_code)]

pub mod ablate;
mod arrow_file;
pub mod artifact;
pub mod attribute;
pub mod attribute_text;
pub mod attribute_vqa;
pub mod card;
pub mod checkpoint;
mod classification;
mod classifier;
pub mod command;
pub mod compare;
pub mod compare_saliency;
mod comparison;
pub mod compute;
pub mod corrupt;
mod discriminability;
pub mod embed;
pub mod evaluate_classify;
pub mod evaluate_vqa;
mod explained;
mod features;
pub mod finetune;
mod finite;
mod framing;
mod guard;
mod images;
pub mod ingest;
mod ipc;
mod labels;
mod linear_probe;
mod lookup;
mod masker;
mod mean_image;
mod medmnist_scores;
mod metrics;
mod model;
pub mod mosaic;
pub mod neighbours;
pub mod overlap;
pub mod phantom;
mod pieces;
mod png;
mod query;
mod registry;
mod report;
pub mod resplit;
mod retrieval;
pub mod retrieve;
pub mod score;
pub mod score_grid;
pub mod score_reliability;
pub mod score_text;
pub mod statistics;
pub mod table;
mod target;
#[cfg(test)]
mod testing;
mod texts;
pub mod tokenize;
pub mod tokenizer;
mod truth;
mod volumes;
pub mod vqa;
mod weight_noise;

pub use pipe_models::process;
pub use registry::registry;
