//! Dropout (Srivastava et al. 2014) as a probe of a training pass.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::Probe;
use crate::ops::masked;
use crate::random::Key;

/// Drops values where the original model does, and scales the rest so that the mean stays. Which values
/// fall is a function of seed, step, place and index: not of threads, and not of other places.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    seed: u64,
    step: u64,
}

impl Dropout {
    /// The dropout of one training step.
    pub fn new(seed: u64, step: u64) -> Self {
        Self { seed, step }
    }
}

/// Draws that one thread makes at once.
const DRAWS: usize = 1 << 13;

impl Probe for Dropout {
    fn dropout(&self, name: &str, rate: f64, value: Tensor) -> Result<Tensor> {
        let key = Key::derive("pipe dropout/1", self.seed, &[self.step.into(), name.into()]);
        let kept = (1.0 / (1.0 - rate)) as f32;
        // Each draw decides on two values.
        let dropped = (rate * 2f64.powi(32)) as u64;
        let factor = |bits: u64| if bits < dropped { 0.0 } else { kept };
        let count = value.elem_count();
        let mut mask = vec![0.0f32; count.next_multiple_of(2)];
        mask.par_chunks_mut(2 * DRAWS).enumerate().for_each(|(block, mask)| {
            for (pair, counter) in mask.chunks_exact_mut(2).zip((block * DRAWS) as u64 + 1..) {
                let bits = key.bits(counter);
                pair.copy_from_slice(&[factor(bits >> 32), factor(bits & 0xFFFF_FFFF)]);
            }
        });
        mask.truncate(count);
        masked(&value, mask)
    }

    fn drops_values(&self) -> bool {
        true
    }

    fn looks_into(&self, _name: &str) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn values_are_dropped_at_the_rate_and_the_mean_stays() {
        let ones = Tensor::ones((100, 100), DType::F32, &Device::Cpu).unwrap();
        let drop = |step, name: &str| {
            let dropped = Dropout::new(1, step).dropout(name, 0.1, ones.clone()).unwrap();
            dropped.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = drop(0, "text.embeddings");
        let zeros = first.iter().filter(|value| **value == 0.0).count();
        assert!((900..1100).contains(&zeros), "{zeros} of 10000");
        assert!(first.iter().all(|value| *value == 0.0 || *value == 1.0 / 0.9));
        assert_eq!(first, drop(0, "text.embeddings"), "a step can be repeated");
        assert_ne!(first, drop(1, "text.embeddings"));
        assert_ne!(first, drop(0, "text.layers.0"));
    }
}
