//! Golden tests: our numbers against the outputs of the reference implementations.
//!
//! The folder is `PIPE_GOLDENS` (default `../shared/goldens` beside the repository), for `metrics`
//! `PIPE_DATA` (default `../shared/data`). Every dimension and constant comes from their files, so
//! another folder of the same layout runs unchanged.

mod attribution;
mod engine;
mod harness;
mod json;
mod metrics;
mod models;
mod vqa;
mod xai_metrics;
