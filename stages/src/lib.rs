//! The stage kinds of `pipe`: what each reads, computes and writes. The only crate that knows the
//! engine, the models and the attribution methods.

#![forbid(unsafe_code)]

pub mod artifact;
pub mod phantom;
mod registry;
mod report;
pub mod table;

pub use registry::registry;
