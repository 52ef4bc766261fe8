//! Several inputs of a model explained together, as image and question in visual question answering.

use candle_core::{DType, Result as TensorResult, Tensor};

use crate::method::Inputs;
use crate::{AttributionError, Result};

/// Inputs of different shapes laid out as one row, so that any method attributes them together: Integrated
/// Gradients then go from all baselines to all inputs on one path, and are complete over the sum of both.
/// The row has one channel; methods that mean places (occlusion, RISE, maps) have no use for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joint {
    shapes: Vec<Vec<usize>>,
}

impl Joint {
    /// Of parts that have these shapes without the axis of samples.
    pub fn new(shapes: &[&[usize]]) -> Self {
        Self { shapes: shapes.iter().map(|shape| shape.to_vec()).collect() }
    }

    /// The number of values of each part.
    pub fn lengths(&self) -> Vec<usize> {
        self.shapes.iter().map(|shape| shape.iter().product()).collect()
    }

    /// Parts `[samples, shape...]` as rows `[samples, 1, values of all parts]`: inputs, or a baseline of
    /// them.
    ///
    /// # Errors
    /// If their shapes are others, or they have different numbers of samples.
    pub fn join(&self, parts: &[&Tensor]) -> Result<Tensor> {
        let fits = parts.len() == self.shapes.len()
            && parts.iter().zip(&self.shapes).all(|(part, shape)| part.dims().get(1..) == Some(shape));
        if !fits {
            return Err(AttributionError::Settings(format!(
                "parts of {:?} do not fit a joint input of {:?}",
                parts.iter().map(|part| part.dims()).collect::<Vec<_>>(),
                self.shapes
            )));
        }
        let flat: Vec<Tensor> = parts
            .iter()
            .map(|part| part.to_dtype(DType::F32)?.flatten_from(1))
            .collect::<TensorResult<_>>()?;
        Ok(Tensor::cat(&flat, 1)?.unsqueeze(1)?)
    }

    /// The parts of rows `[rows, 1, values of all parts]`, with the graph to them kept: what a score does
    /// first, and how attributions are read.
    ///
    /// # Errors
    /// If the rows have another length.
    pub fn split(&self, rows: &Tensor) -> TensorResult<Vec<Tensor>> {
        let (count, _, _) = rows.dims3()?;
        let mut start = 0;
        self.shapes
            .iter()
            .zip(self.lengths())
            .map(|(shape, length)| {
                let part = rows.narrow(2, start, length)?.contiguous()?;
                start += length;
                part.reshape([&[count], shape.as_slice()].concat())
            })
            .collect()
    }

    /// The share of each part in the absolute attribution of each row, `[rows][parts]`: how much an
    /// answer rests on the image and how much on the question. Zeros where nothing is attributed.
    ///
    /// # Errors
    /// As [`Self::split`].
    pub fn shares(&self, attribution: &Tensor) -> Result<Vec<Vec<f32>>> {
        let inputs = Inputs::new(attribution)?;
        let lengths = self.lengths();
        if inputs.row_length() != lengths.iter().sum::<usize>() {
            return Err(AttributionError::Settings(format!(
                "an attribution of {:?} is not of a joint input of {:?}",
                attribution.dims(),
                self.shapes
            )));
        }
        let values = inputs.host()?;
        let of_row = |row: &[f32]| {
            let mut start = 0;
            let masses: Vec<f64> = lengths
                .iter()
                .map(|length| {
                    let part = &row[start..start + length];
                    start += length;
                    part.iter().map(|value| f64::from(value.abs())).sum()
                })
                .collect();
            let total: f64 = masses.iter().sum();
            masses.iter().map(|mass| if total > 0.0 { (mass / total) as f32 } else { 0.0 }).collect()
        };
        Ok(values.chunks_exact(inputs.row_length()).map(of_row).collect())
    }
}

#[cfg(test)]
mod tests {
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::testing::{host, normal};
    use crate::{Evaluator, InputXGradient, Method, Score};

    #[test]
    fn parts_come_back_as_they_were() {
        let joint = Joint::new(&[&[3, 2, 2], &[4, 5]]);
        let (image, text) = (normal(1, &[2, 3, 2, 2]), normal(2, &[2, 4, 5]));
        let rows = joint.join(&[&image, &text]).unwrap();
        assert_eq!(rows.dims(), [2, 1, 32]);
        let parts = joint.split(&rows).unwrap();
        assert_eq!((parts[0].dims(), parts[1].dims()), (image.dims(), text.dims()));
        assert_eq!((host(&parts[0]), host(&parts[1])), (host(&image), host(&text)));
        assert!(joint.join(&[&text, &image]).is_err());
        assert!(joint.shares(&image).is_err());
    }

    #[test]
    fn shares_say_what_a_score_rests_on() {
        /// Thrice the sum of the first part plus that of the second.
        struct Sums(Joint);
        impl Score for Sums {
            fn score(&self, x: &Tensor, _: &[usize], _: MaybeProbe<'_>) -> TensorResult<Tensor> {
                let parts = self.0.split(x)?;
                (parts[0].flatten_from(1)?.sum(1)? * 3.0)? + parts[1].flatten_from(1)?.sum(1)?
            }
        }
        let joint = Joint::new(&[&[2], &[1, 2]]);
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &candle_core::Device::Cpu).unwrap();
        let rows = joint.join(&[&ones(&[3, 2]), &ones(&[3, 1, 2])]).unwrap();
        let score = Sums(joint.clone());
        let attribution = InputXGradient::default()
            .attribute(&Evaluator::new(&score, 2), &Inputs::new(&rows).unwrap())
            .unwrap();
        for shares in joint.shares(&attribution.values).unwrap() {
            assert_eq!(shares, [0.75, 0.25]);
        }
    }
}
