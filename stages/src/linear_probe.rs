//! A linear classifier on features: regularised logistic regression, its strength chosen on held-out rows.

use pipe_engine::StageError;
use pipe_models::train::logistic::{LogisticError, Samples, fit, sweep};

use crate::model::HeadDescription;

/// Features `[rows, width]` with a label each: one class, or a bit per class.
#[derive(Clone, Copy)]
pub(crate) struct Labelled<'a> {
    pub(crate) features: &'a [f32],
    pub(crate) width: usize,
    pub(crate) targets: &'a [&'a Vec<i64>],
}

impl Labelled<'_> {
    /// The class of each row; for multi-label data, whether bit `label` is set.
    fn classes(&self, label: Option<usize>) -> Vec<usize> {
        self.targets.iter().map(|target| target[label.unwrap_or(0)] as usize).collect()
    }
}

/// How one regression went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    pub(crate) c: f64,
    pub(crate) train_accuracy: f64,
    pub(crate) val_accuracy: Option<f64>,
}

/// A trained probe: logit = weight x + bias.
#[derive(Clone, Debug)]
pub(crate) struct LinearProbe {
    /// `[classes, width]`.
    pub(crate) weight: Vec<f32>,
    /// `[classes]`.
    pub(crate) bias: Vec<f32>,
    /// One, or one per label.
    pub(crate) fits: Vec<Fit>,
}

impl LinearProbe {
    /// One softmax regression, or one of two classes for each label. Without `c` the strength of best
    /// accuracy on the validation rows (on every fifth training row, if there are none) is taken.
    ///
    /// # Errors
    /// If the solver fails.
    pub(crate) fn train(
        train: Labelled<'_>,
        val: Labelled<'_>,
        description: &HeadDescription,
        c: Option<f64>,
    ) -> Result<Self, StageError> {
        let width = train.width;
        let problems: Vec<Option<usize>> = if description.is_multi_label() {
            (0..description.classes.len()).map(Some).collect()
        } else {
            vec![None]
        };
        let mut probe = Self { weight: Vec::new(), bias: Vec::new(), fits: Vec::new() };
        for label in problems {
            let classes = if label.is_some() { 2 } else { description.classes.len() };
            let (train_labels, val_labels) = (train.classes(label), val.classes(label));
            let samples = Samples { features: train.features, width, labels: &train_labels, classes };
            let held_out = Samples { features: val.features, width, labels: &val_labels, classes };
            let has_val = !val_labels.is_empty();
            let c = match c {
                Some(c) => c,
                None if has_val => sweep(samples, held_out).map_err(failed)?,
                None => {
                    let (kept, held) = fifth(train.features, width, &train_labels);
                    let kept = Samples { features: &kept.0, width, labels: &kept.1, classes };
                    sweep(kept, Samples { features: &held.0, width, labels: &held.1, classes })
                        .map_err(failed)?
                }
            };
            let fitted = fit(samples, c).map_err(failed)?;
            probe.fits.push(Fit {
                c,
                train_accuracy: fitted.accuracy(samples),
                val_accuracy: has_val.then(|| fitted.accuracy(held_out)),
            });
            if label.is_some() {
                // A sigmoid of the difference of the two logits.
                let difference = |index: usize| (fitted.weight[width + index] - fitted.weight[index]) as f32;
                probe.weight.extend((0..width).map(difference));
                probe.bias.push((fitted.bias[1] - fitted.bias[0]) as f32);
            } else {
                probe.weight.extend(fitted.weight.iter().map(|value| *value as f32));
                probe.bias.extend(fitted.bias.iter().map(|value| *value as f32));
            }
        }
        Ok(probe)
    }

    /// Logits `[rows, classes]` of features `[rows, width]`.
    pub(crate) fn logits(&self, features: &[f32], width: usize) -> Vec<Vec<f32>> {
        let logit = |x: &[f32], (w, bias): (&[f32], &f32)| {
            let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            (sum + f64::from(*bias)) as f32
        };
        features
            .chunks_exact(width)
            .map(|x| self.weight.chunks_exact(width).zip(&self.bias).map(|class| logit(x, class)).collect())
            .collect()
    }
}

fn failed(error: LogisticError) -> StageError {
    StageError::failed(error.to_string())
}

type Rows = (Vec<f32>, Vec<usize>);

/// Every fifth row apart, for choosing C where there is no validation split.
fn fifth(features: &[f32], width: usize, labels: &[usize]) -> (Rows, Rows) {
    let (mut kept, mut held): (Rows, Rows) = Default::default();
    for (row, (x, label)) in features.chunks_exact(width).zip(labels).enumerate() {
        let side = if row % 5 == 4 { &mut held } else { &mut kept };
        side.0.extend_from_slice(x);
        side.1.push(*label);
    }
    (kept, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_label_has_a_logit_of_its_own() {
        let description = HeadDescription {
            classes: vec!["left".into(), "high".into()],
            task: "multi-label, binary-class".into(),
        };
        let features: Vec<f32> = (0..40).flat_map(|row| [(row % 2) as f32, (row / 20) as f32]).collect();
        let targets: Vec<Vec<i64>> = (0..40).map(|row| vec![row % 2, row / 20]).collect();
        let targets: Vec<&Vec<i64>> = targets.iter().collect();
        let train = Labelled { features: &features, width: 2, targets: &targets };
        let none = Labelled { features: &[], width: 2, targets: &[] };
        let probe = LinearProbe::train(train, none, &description, Some(100.0)).unwrap();
        assert_eq!((probe.fits.len(), probe.fits[0].val_accuracy), (2, None));
        let logits = probe.logits(&[1.0, 0.0], 2);
        assert!(logits[0][0] > 1.0 && logits[0][1] < -1.0, "{logits:?}");
    }
}
