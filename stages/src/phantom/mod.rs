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
mod expected;
mod factors;
mod general;
mod ingest;
mod medical;
mod sites;
mod stream;
#[cfg(test)]
mod tests;

pub use ingest::IngestPhantom;
