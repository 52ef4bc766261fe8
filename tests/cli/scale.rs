//! How long nothing takes: start-up, and runs of large studies that are up to date.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::study::Study;

/// `checkpoint` is the cheapest kind: a chain of models is a chain of copies.
fn ignored() {}

/// The least of several times, so that a busy machine shows less.
fn least(times: usize, mut work: impl FnMut()) -> Duration {
    (0..times)
        .map(|_| {
            let started = Instant::now();
            work();
            started.elapsed()
        })
        .min()
        .expect("at least once")
}
