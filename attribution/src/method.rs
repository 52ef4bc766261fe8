//! What every method takes and gives.

use candle_core::{DType, Tensor};

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
