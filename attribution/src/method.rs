//! What every method takes and gives.

use candle_core::{DType, Tensor};

use crate::blur::gaussian_blur;
use crate::evaluator::{Evaluator, Passes};
use crate::{AttributionError, Result};

/// An attribution method: how much each input value contributes to each sample's score.
///
/// Methods are composed by wrapping ([`crate::Absolute`]), not by flags.
pub trait Method: Send + Sync {
    /// Attributes the scores of all rows of `inputs`. Results do not depend on the evaluator's batch
    /// size beyond rounding, nor on the number of threads at all.
    ///
    /// # Errors
    /// If settings do not fit the inputs, the model fails, or the observer asks to stop.
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution>;

    /// What one row of this shape (`[channels, ...]`) costs: exactly the passes that
    /// [`Self::attribute`] makes for it.
    ///
    /// # Errors
    /// If settings do not fit the shape.
    fn cost(&self, row_shape: &[usize]) -> Result<Passes>;
}

impl<M: Method + ?Sized> Method for Box<M> {
    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        (**self).cost(row_shape)
    }

    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        (**self).attribute(evaluator, inputs)
    }
}

/// Rows to explain: model inputs after preprocessing, and the sample that each was made from.
#[derive(Clone, Debug)]
pub struct Inputs {
    values: Tensor,
    samples: Vec<usize>,
}

impl Inputs {
    /// One row per sample: `[samples, channels, ...]`, any number of further axes (height and width;
    /// depth, height and width; tokens and width).
    ///
    /// # Errors
    /// As [`Self::of_samples`].
    pub fn new(values: &Tensor) -> Result<Self> {
        let rows = values.dims().first().copied().unwrap_or(0);
        Self::of_samples(values, (0..rows).collect())
    }

    /// Row i was made from sample `samples[i]`: that number chooses the target of
    /// [`crate::Score::score`] and the row of a [`crate::Baseline::Tensor`].
    ///
    /// # Errors
    /// If there are fewer than two axes, or not one sample per row.
    pub fn of_samples(values: &Tensor, samples: Vec<usize>) -> Result<Self> {
        if values.dims().len() < 2 || values.dims()[0] != samples.len() {
            return Err(AttributionError::Settings(format!(
                "inputs are rows of at least one axis, one per sample; these are {:?} for {} samples",
                values.dims(),
                samples.len()
            )));
        }
        Ok(Self { values: values.to_dtype(DType::F32)?.detach().contiguous()?, samples })
    }

    /// The rows, `[rows, channels, ...]`, f32.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The sample of each row.
    pub fn samples(&self) -> &[usize] {
        &self.samples
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.samples.len()
    }

    /// The shape of one row: `[channels, ...]`.
    pub fn row_shape(&self) -> &[usize] {
        &self.values.dims()[1..]
    }

    /// The number of values of one row.
    pub fn row_length(&self) -> usize {
        self.row_shape().iter().product()
    }

    /// All values, row by row.
    pub(crate) fn host(&self) -> Result<Vec<f32>> {
        Ok(self.values.flatten_all()?.to_vec1()?)
    }

    /// Rows of the same shape on the same device, from values in row-major order.
    pub(crate) fn rows_like(&self, values: Vec<f32>, samples: Vec<usize>) -> Result<Self> {
        let mut shape = self.values.dims().to_vec();
        shape[0] = samples.len();
        Ok(Self { values: Tensor::from_vec(values, shape, self.values.device())?, samples })
    }

    /// A tensor with a row per row of the inputs, `[rows, shape...]`.
    pub(crate) fn tensor(&self, values: Vec<f32>, row_shape: &[usize]) -> Result<Tensor> {
        let shape: Vec<usize> = std::iter::once(self.rows()).chain(row_shape.iter().copied()).collect();
        Ok(Tensor::from_vec(values, shape, self.values.device())?)
    }
}

/// What a method gives.
#[derive(Clone, Debug)]
pub struct Attribution {
    /// `[rows, channels, ...]` as the inputs. Where a method cannot tell channels apart (occlusion by
    /// windows over all of them), the channel axis has length 1.
    pub values: Tensor,
    /// The score s(x) of each row.
    pub scores: Vec<f32>,
    /// The score s(x') of each row's baseline, where the method evaluates it.
    pub baseline_scores: Option<Vec<f32>>,
    /// For methods that promise completeness: the sum of each row's attribution minus
    /// (s(x) - s(x')), which is 0 but for the error of the quadrature.
    pub completeness_gaps: Option<Vec<f32>>,
}

/// A completeness gap as a share of the difference of scores that it is missing from; none where that is nearly 0,
/// against the score.
pub fn relative_gap(score: f32, baseline_score: f32, gap: f32) -> Option<f32> {
    let way = (score - baseline_score).abs();
    (way > 1e-3 * score.abs().max(1e-6)).then_some(gap.abs() / way)
}

/// The absolute values of another method's attribution.
#[derive(Clone, Copy, Debug)]
pub struct Absolute<M>(pub M);

impl<M: Method> Method for Absolute<M> {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let attribution = self.0.attribute(evaluator, inputs)?;
        Ok(Attribution { values: attribution.values.abs()?, completeness_gaps: None, ..attribution })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.0.cost(row_shape)
    }
}

/// Another method's attribution, blurred by a Gaussian: S-IxG and S-IntGrad of Rao, Boehle and Schiele (2022) around
/// Input x Gradient and Integrated Gradients. Channels are blurred each on its own; borders are mirrored, so that
/// every channel keeps its sum.
#[derive(Clone, Copy, Debug)]
pub struct Blurred<M> {
    /// The method.
    pub method: M,
    /// The standard deviation in pixels of the input, above 0. On a coarser grid it is as much smaller as the grid's
    /// last axis is shorter.
    pub sigma: f64,
}

impl<M: Method> Method for Blurred<M> {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let attribution = self.method.attribute(evaluator, inputs)?;
        let shape = attribution.values.dims()[1..].to_vec();
        let width = |shape: &[usize]| shape.last().copied().unwrap_or(1).max(1) as f64;
        let sigma = self.sigma * width(&shape) / width(inputs.row_shape());
        let values: Vec<f32> = attribution.values.flatten_all()?.to_vec1()?;
        let mut blurred = Vec::with_capacity(values.len());
        for row in values.chunks_exact(shape.iter().product::<usize>().max(1)) {
            blurred.extend(gaussian_blur(row, &shape, sigma)?);
        }
        Ok(Attribution { values: inputs.tensor(blurred, &shape)?, ..attribution })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.method.cost(row_shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Smooth, assert_close, host, normal};
    use crate::{InputXGradient, IntegratedGradients, Occlusion};

    #[test]
    fn wrappers_change_values_and_neither_scores_nor_cost() {
        let score = Smooth::new(5, &[2, 6, 8]);
        let inputs = Inputs::new(&normal(6, &[3, 2, 6, 8])).unwrap();
        let evaluator = Evaluator::new(&score, 64);
        let plain = IntegratedGradients::default().attribute(&evaluator, &inputs).unwrap();
        let blurred = Blurred { method: IntegratedGradients::default(), sigma: 1.5 };
        assert_eq!(
            blurred.cost(&[2, 6, 8]).unwrap(),
            IntegratedGradients::default().cost(&[2, 6, 8]).unwrap()
        );
        let blurred = blurred.attribute(&evaluator, &inputs).unwrap();
        assert_eq!((&blurred.scores, &blurred.completeness_gaps), (&plain.scores, &plain.completeness_gaps));
        let expected = host(&plain.values);
        let expected: Vec<f32> =
            expected.chunks_exact(96).flat_map(|row| gaussian_blur(row, &[2, 6, 8], 1.5).unwrap()).collect();
        assert_eq!(host(&blurred.values), expected);
        let sums = |values: &Tensor| values.flatten_from(2).unwrap().sum(2).unwrap();
        assert_close(&sums(&blurred.values), &sums(&plain.values), 1e-4);
        // From the inside out: the absolute value of what is blurred, or what is blurred of absolute values.
        let outer = Absolute(Blurred { method: InputXGradient::default(), sigma: 1.5 });
        let inner = Blurred { method: Absolute(InputXGradient::default()), sigma: 1.5 };
        let [outer, inner] = [&outer as &dyn Method, &inner].map(|method| {
            let values = method.attribute(&evaluator, &inputs).unwrap().values;
            host(&values).into_iter().map(f64::from).sum::<f64>()
        });
        assert!(outer < 0.9 * inner, "{outer} {inner}");
    }

    #[test]
    fn a_blur_without_width_is_refused() {
        let score = Smooth::new(5, &[1, 4, 4]);
        let inputs = Inputs::new(&normal(6, &[1, 1, 4, 4])).unwrap();
        let occlusion =
            Occlusion { window: vec![1, 2, 2], strides: vec![1, 2, 2], baseline: Default::default() };
        let method = Blurred { method: occlusion, sigma: 0.0 };
        let result = method.attribute(&Evaluator::new(&score, 4), &inputs);
        assert!(matches!(result, Err(AttributionError::Settings(_))));
    }
}
