//! Draws of one purpose in a fixed order.

use pipe_models::random::{Key, Part};

/// The draws of a key, one after another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    key: Key,
    counter: u64,
}

/// The key of a purpose of phantoms.
pub(super) fn key(seed: u64, domain: &str, purpose: &str, numbers: &[u64]) -> Key {
    let mut parts: Vec<Part<'_>> = vec![domain.into(), purpose.into()];
    parts.extend(numbers.iter().map(|number| Part::Number(*number)));
    Key::derive("phantom/1", seed, &parts)
}

impl Stream {
    pub(super) fn new(key: Key) -> Self {
        Self { key, counter: 0 }
    }

    fn uniform(&mut self) -> f64 {
        self.counter += 1;
        self.key.uniform(self.counter)
    }

    /// Uniform in [a, b).
    pub(super) fn f(&mut self, a: f64, b: f64) -> f64 {
        a + (b - a) * self.uniform()
    }

    /// Uniform in [-s, s).
    pub(super) fn j(&mut self, s: f64) -> f64 {
        self.f(-s, s)
    }

    /// An integer below n.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.counter += 1;
        self.key.below(self.counter, n)
    }

    /// Whether an event of probability p happens.
    pub(super) fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// An index drawn by weight.
    pub(super) fn weighted(&mut self, weights: &[f64]) -> usize {
        let target = self.uniform() * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        for (index, weight) in weights.iter().enumerate() {
            sum += weight;
            if target < sum {
                return index;
            }
        }
        weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    }

    /// One of the items, uniformly.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}
