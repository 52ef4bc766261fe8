//! Batch norms that learn, as a probe of a training pass.

use crate::Probe;

/// A training pass of a network whose batch norms take the statistics of the batch, which the running ones follow:
/// how a network is trained from random weights.
#[derive(Clone, Copy, Debug)]
pub struct BatchStatistics;

impl Probe for BatchStatistics {
    fn trains_norms(&self) -> bool {
        true
    }

    fn looks_into(&self, _name: &str) -> bool {
        false
    }
}
