//! Golden tests: our numbers against the outputs of the reference implementations.
//!
//! The folder is `PIPE_GOLDENS` (default `../shared/goldens` beside the repository). Every dimension
//! and constant comes from its files, so another folder of the same layout runs unchanged.

mod attribution;
mod engine;
mod harness;
mod models;
mod xai_metrics;
