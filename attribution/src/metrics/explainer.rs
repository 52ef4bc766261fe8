//! A method as a function from images to maps: what metrics that explain again need.

use candle_core::{Device, Tensor};

use super::Shape;
use crate::{Evaluator, Inputs, Method, Result};

/// Explains images by a method, channels summed.
pub struct Explainer<'a> {
    method: &'a dyn Method,
    evaluator: &'a Evaluator<'a>,
    shape: Shape,
}

impl std::fmt::Debug for Explainer<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Explainer").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl<'a> Explainer<'a> {
    /// An explainer of images of one shape.
    pub fn new(method: &'a dyn Method, evaluator: &'a Evaluator<'a>, shape: Shape) -> Self {
        Self { method, evaluator, shape }
    }

    /// The map `[height, width]` of each image `[channels, height, width]`; beside it stands the sample
    /// that it is or was made from.
    ///
    /// # Errors
    /// Whatever the method reports.
    pub fn maps(&self, images: &[(usize, &[f32])]) -> Result<Vec<Vec<f64>>> {
        let Shape { channels, height, width } = self.shape;
        let values: Vec<f32> = images.iter().flat_map(|(_, image)| image.iter().copied()).collect();
        let values = Tensor::from_vec(values, (images.len(), channels, height, width), &Device::Cpu)?;
        let inputs = Inputs::of_samples(&values, images.iter().map(|(sample, _)| *sample).collect())?;
        let attribution = self.method.attribute(self.evaluator, &inputs)?;
        let planes = attribution.values.dims().get(1).copied().unwrap_or(1);
        let values: Vec<f32> = attribution.values.flatten_all()?.to_vec1()?;
        let pixels = self.shape.pixels();
        let map = |row: &[f32]| -> Vec<f64> {
            (0..pixels)
                .map(|pixel| row[pixel..].iter().step_by(pixels).map(|value| f64::from(*value)).sum())
                .collect()
        };
        Ok(values.chunks_exact((planes * pixels).max(1)).map(map).collect())
    }
}
