//! The MedMNIST evaluator (Yang et al. 2023, package `medmnist`, `evaluator.py`): AUROC and accuracy of
//! class probabilities, by the task of the labels and never by the shape of an array.

use crate::model::HeadDescription;
use crate::statistics::{Ranking, argmax, softmax};

/// Samples with probabilities, ready to be scored with any weights.
pub(crate) struct Evaluator<'a> {
    description: &'a HeadDescription,
    targets: Vec<&'a [i64]>,
    probabilities: Vec<Vec<f64>>,
    /// One per class.
    rankings: Vec<Ranking>,
}

/// Probabilities of a sample: softmax over classes, or a sigmoid per label.
pub(crate) fn probabilities(logits: &[f32], description: &HeadDescription) -> Vec<f64> {
    if description.is_multi_label() {
        logits.iter().map(|logit| 1.0 / (1.0 + libm::exp(-f64::from(*logit)))).collect()
    } else {
        softmax(logits)
    }
}

impl<'a> Evaluator<'a> {
    /// Samples with their logits, one per class.
    pub(crate) fn new<'b>(
        description: &'a HeadDescription,
        samples: impl Iterator<Item = (&'a [i64], &'b [f32])>,
    ) -> Self {
        let (targets, probabilities): (Vec<&[i64]>, Vec<Vec<f64>>) =
            samples.map(|(target, logits)| (target, probabilities(logits, description))).unzip();
        let rankings = (0..description.classes.len())
            .map(|class| Ranking::new(&probabilities.iter().map(|row| row[class]).collect::<Vec<_>>()))
            .collect();
        Self { description, targets, probabilities, rankings }
    }

    /// Whether a sample belongs to a class.
    pub(crate) fn positive(&self, class: usize, row: usize) -> bool {
        let target = self.targets[row];
        if self.description.is_multi_label() { target[class] == 1 } else { target[0] == class as i64 }
    }

    /// The classes whose AUROC enters the mean: a binary task is scored by class 1 alone.
    pub(crate) fn scored_classes(&self) -> std::ops::Range<usize> {
        let count = self.description.classes.len();
        if self.description.task == "binary-class" { count - 1..count } else { 0..count }
    }

    /// One class against the rest; nothing where all samples or none belong to it.
    pub(crate) fn class_auroc(&self, class: usize, weight: impl Fn(usize) -> f64) -> Option<f64> {
        self.rankings[class].auroc(|row| self.positive(class, row), weight)
    }

    /// The unweighted mean over classes; nothing where one of them has none.
    pub(crate) fn auroc(&self, weight: impl Fn(usize) -> f64) -> Option<f64> {
        let classes = self.scored_classes();
        let count = classes.len() as f64;
        let mut sum = 0.0;
        for class in classes {
            sum += self.class_auroc(class, &weight)?;
        }
        Some(sum / count)
    }

    /// How right the answer to a sample is: 0 or 1, for multi-label data the share of right bits.
    pub(crate) fn right(&self, row: usize) -> f64 {
        let (target, probabilities) = (self.targets[row], &self.probabilities[row]);
        if self.description.is_multi_label() {
            let bits = probabilities.iter().zip(target).filter(|(p, bit)| (**p > 0.5) == (**bit == 1));
            bits.count() as f64 / target.len() as f64
        } else if self.description.task == "binary-class" {
            let positive = probabilities.last().is_some_and(|p| *p > 0.5);
            f64::from(u8::from(positive == (target[0] == 1)))
        } else {
            f64::from(u8::from(argmax(probabilities) as i64 == target[0]))
        }
    }

    /// The mean of [`Self::right`].
    pub(crate) fn accuracy(&self) -> f64 {
        let rows = self.targets.len();
        (0..rows).map(|row| self.right(row)).sum::<f64>() / rows.max(1) as f64
    }
}
