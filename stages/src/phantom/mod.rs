//! Phantoms: images, captions and masks drawn from a seed, with planted truths.
//!
//! A row is a small record of [`factors`]; image, mask, caption, label and expected figures are all
//! computed from it, and nothing is read back out of pixels. Every purpose (anatomy, lesion,
//! acquisition, noise, caption) has a random stream of its own, so that changing one factor changes
//! nothing else, to the bit: a row and the same row without its lesion are *twins*.
//!
//! Arithmetic is f64 with exactly rounded operations only, so that every machine draws the same bytes.

mod acquisition;
mod canvas;
mod captions;
mod checks;
mod expected;
mod export;
mod factors;
mod figures;
mod general;
mod ingest;
mod labels;
mod language_prior;
mod medical;
mod params;
mod places;
mod questions;
mod rows;
mod sites;
mod stream;
mod tables;
#[cfg(test)]
mod tests;
mod topics;
mod twins;
mod volume;
mod volumes;

pub use ingest::IngestPhantom;
pub use params::{
    Domain, Export, Exposure, Kappa, Params, Prior, PriorByType, PriorRule, PriorTest, QuestionSchema, Style,
    Target, Task, Twin, Weights,
};
