//! The loss of a classifier over a batch, in pieces if need be, with classes weighed.

use std::ops::Range;

use candle_core::{Result, Tensor};
use pipe_models::train::loss;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{DEVICE, HeadDescription};

/// How much the samples of a class count while a model learns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// Every sample counts the same.
    Equal,
    /// Samples of a class count in inverse proportion to their number: n / (classes * n of the class). Of
    /// independent labels positives count as much as all negatives of their label.
    Balanced,
}

/// A batch of `count` samples in so many pieces, as equal as can be; none is empty.
pub(super) fn pieces(count: usize, pieces: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = pieces.clamp(1, count.max(1));
    (0..pieces).map(move |piece| piece * count / pieces..(piece + 1) * count / pieces)
}

/// The loss of a step, whose pieces add up to it.
pub(super) struct Losses {
    is_multi_label: bool,
    /// By class, or of the positives of each label; none if all count the same.
    weights: Option<Vec<f32>>,
}

impl Losses {
    /// Of samples like those that are learned from.
    pub(super) fn new(balance: ClassWeights, description: &HeadDescription, train: &[&Vec<i64>]) -> Self {
        let is_multi_label = description.is_multi_label();
        if balance == ClassWeights::Equal {
            return Self { is_multi_label, weights: None };
        }
        let classes = description.classes.len();
        let mut counts = vec![0usize; classes];
        for target in train {
            match is_multi_label {
                true => target.iter().zip(&mut counts).for_each(|(bit, count)| *count += *bit as usize),
                false => counts[target[0] as usize] += 1,
            }
        }
        let weight = |count: &usize| match (is_multi_label, *count) {
            // No loss asks for the weight of a class without a sample.
            (_, 0) => 1.0,
            (true, count) => (train.len() - count) as f32 / count as f32,
            (false, count) => train.len() as f32 / (classes * count) as f32,
        };
        Self { is_multi_label, weights: Some(counts.iter().map(weight).collect()) }
    }

    /// What a piece of a batch adds to its loss: `logits` `[piece, classes]`, `targets` of the whole batch.
    pub(super) fn of(&self, logits: &Tensor, piece: Range<usize>, targets: &[&Vec<i64>]) -> Result<Tensor> {
        let (count, share) = (piece.len(), piece.len() as f64 / targets.len() as f64);
        let own = &targets[piece];
        let weights = match &self.weights {
            Some(weights) => Some(Tensor::from_slice(weights, weights.len(), &DEVICE)?),
            None => None,
        };
        if self.is_multi_label {
            let bits: Vec<f32> = own.iter().flat_map(|target| target.iter().map(|bit| *bit as f32)).collect();
            let bits = Tensor::from_vec(bits, logits.shape(), &DEVICE)?;
            return match weights {
                None => loss::binary_cross_entropy(logits, &bits)? * share,
                Some(weights) => loss::weighted_binary_cross_entropy(logits, &bits, &weights)? * share,
            };
        }
        let classes: Vec<u32> = own.iter().map(|target| target[0] as u32).collect();
        let classes = Tensor::from_vec(classes, count, &DEVICE)?;
        match (&self.weights, weights) {
            (Some(values), Some(weights)) => {
                let total = targets.iter().map(|target| f64::from(values[target[0] as usize])).sum();
                loss::weighted_cross_entropy(logits, &classes, &weights, total)
            }
            _ => loss::cross_entropy(logits, &classes)? * share,
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn description(task: &str) -> HeadDescription {
        HeadDescription { classes: ["a", "b"].map(str::to_owned).to_vec(), task: task.to_owned() }
    }

    #[test]
    fn pieces_add_up_to_the_loss_of_their_batch_and_its_gradient() {
        let values: Vec<f32> = (0..14).map(|value| (value as f32 * 0.7).sin()).collect();
        let logits = Var::from_tensor(&Tensor::from_vec(values, (7, 2), &DEVICE).unwrap()).unwrap();
        let classes: Vec<Vec<i64>> = [0, 1, 0, 0, 0, 1, 0].map(|class| vec![class]).to_vec();
        let bits: Vec<Vec<i64>> = classes.iter().map(|class| vec![class[0], 1 - class[0]]).collect();
        for (task, targets) in [("multi-class", &classes), ("multi-label, binary-class", &bits)] {
            let targets: Vec<&Vec<i64>> = targets.iter().collect();
            for balance in [ClassWeights::Equal, ClassWeights::Balanced] {
                let losses = Losses::new(balance, &description(task), &targets);
                let total = |count: usize| {
                    let of = |piece: Range<usize>| {
                        losses
                            .of(&logits.narrow(0, piece.start, piece.len()).unwrap(), piece, &targets)
                            .unwrap()
                    };
                    let sum = pieces(7, count).map(of).reduce(|a, b| (a + b).unwrap()).unwrap();
                    let gradient = sum.backward().unwrap().get(&logits).unwrap().clone();
                    let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    (sum.to_scalar::<f32>().unwrap(), gradient)
                };
                let (whole, gradient) = total(1);
                for count in [2, 3, 7, 99] {
                    let (sum, own) = total(count);
                    assert!((sum - whole).abs() < 1e-6, "{task} {balance:?}: {sum}, {whole}");
                    assert!(gradient.iter().zip(&own).all(|(a, b)| (a - b).abs() < 1e-6));
                }
            }
        }
    }

    #[test]
    fn a_balanced_loss_is_that_of_equally_many_samples() {
        let losses = |targets: &[Vec<i64>]| {
            let targets: Vec<&Vec<i64>> = targets.iter().collect();
            Losses::new(ClassWeights::Balanced, &description("multi-class"), &targets)
        };
        assert_eq!(losses(&[vec![0], vec![0], vec![0], vec![1]]).weights, Some(vec![4.0 / 6.0, 2.0]));
        assert_eq!(losses(&[vec![0], vec![0]]).weights, Some(vec![0.5, 1.0]));
    }
}
