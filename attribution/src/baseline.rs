//! What an input is compared with: the absence of everything.
//!
//! The choice decides the result, so it is always named. In a normalised input space zero is the mean
//! colour of the data, not black.

use candle_core::{DType, Tensor};

use crate::blur::gaussian_blur;
use crate::method::Inputs;
use crate::{AttributionError, Result};

/// The baseline x' of a method that has one.
#[derive(Clone, Debug, Default)]
pub enum Baseline {
    /// Zero: the mean colour, where inputs are normalised.
    #[default]
    Zero,
    /// One value everywhere.
    Constant(f32),
    /// One value per channel.
    PerChannel(Vec<f32>),
    /// A tensor shared by all samples, `[1, channels, ...]`, or one row per sample,
    /// `[samples, channels, ...]`, of which each input takes the row of its sample.
    Tensor(Tensor),
    /// The input itself behind a Gaussian blur of this standard deviation, in pixels, along every axis
    /// but the channels'.
    Blur(f64),
}

impl Baseline {
    /// Black before a normalisation by `mean` and `std` per channel.
    pub fn black(mean: &[f64], std: &[f64]) -> Self {
        Self::PerChannel(mean.iter().zip(std).map(|(mean, std)| (-mean / std) as f32).collect())
    }

    /// The baselines of `inputs`.
    ///
    /// # Errors
    /// If the shape does not fit theirs.
    pub fn of(&self, inputs: &Inputs) -> Result<BaselineRows> {
        let length = inputs.row_length();
        let shared = |values: Vec<f32>| BaselineRows { values, length, places: vec![0; inputs.rows()] };
        match self {
            Self::Zero => Ok(shared(vec![0.0; length])),
            Self::Constant(value) => Ok(shared(vec![*value; length])),
            Self::PerChannel(channels) => {
                let count = inputs.row_shape()[0];
                if channels.len() != count {
                    return Err(AttributionError::Settings(format!(
                        "the baseline has {} channels, the inputs {count}",
                        channels.len()
                    )));
                }
                let plane = length / count;
                Ok(shared(channels.iter().flat_map(|value| std::iter::repeat_n(*value, plane)).collect()))
            }
            Self::Tensor(tensor) => of_tensor(tensor, inputs),
            Self::Blur(sigma) => {
                let mut values = Vec::with_capacity(inputs.rows() * length);
                for row in inputs.host()?.chunks_exact(length) {
                    values.extend(gaussian_blur(row, inputs.row_shape(), *sigma)?);
                }
                Ok(BaselineRows { values, length, places: (0..inputs.rows()).collect() })
            }
        }
    }
}

fn of_tensor(tensor: &Tensor, inputs: &Inputs) -> Result<BaselineRows> {
    let length = inputs.row_length();
    let rows = tensor.dims().first().copied().unwrap_or(0);
    if rows == 0 || &tensor.dims()[1..] != inputs.row_shape() {
        return Err(AttributionError::Settings(format!(
            "the baseline is {:?}; [1 or samples, {:?}] fits the inputs",
            tensor.dims(),
            inputs.row_shape()
        )));
    }
    let places: Vec<usize> = match rows {
        1 => vec![0; inputs.rows()],
        _ => inputs.samples().to_vec(),
    };
    if let Some(sample) = places.iter().find(|place| **place >= rows) {
        return Err(AttributionError::Settings(format!("sample {sample} has no baseline; there are {rows}")));
    }
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(BaselineRows { values, length, places })
}

/// The baseline of each row of some inputs.
#[derive(Clone, Debug)]
pub struct BaselineRows {
    values: Vec<f32>,
    length: usize,
    /// Where each row's values stand.
    places: Vec<usize>,
}

impl BaselineRows {
    /// The values of the baseline of `row`.
    pub fn row(&self, row: usize) -> &[f32] {
        let start = self.places[row] * self.length;
        &self.values[start..start + self.length]
    }

    /// The baselines as inputs of their own, for the same samples.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn inputs(&self, inputs: &Inputs) -> Result<Inputs> {
        let mut values = Vec::with_capacity(inputs.rows() * self.length);
        (0..inputs.rows()).for_each(|row| values.extend_from_slice(self.row(row)));
        inputs.rows_like(values, inputs.samples().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::testing::normal;

    fn inputs() -> Inputs {
        Inputs::of_samples(&normal(3, &[3, 2, 4, 5]), vec![1, 0, 1]).unwrap()
    }

    #[test]
    fn constants_fill_rows_and_channels() {
        let inputs = inputs();
        assert!(Baseline::Zero.of(&inputs).unwrap().row(2).iter().all(|value| *value == 0.0));
        assert!(Baseline::Constant(0.5).of(&inputs).unwrap().row(0).iter().all(|value| *value == 0.5));
        let rows = Baseline::black(&[0.5, 0.2], &[0.25, 0.1]).of(&inputs).unwrap();
        assert!(rows.row(1)[..20].iter().chain(&rows.row(1)[20..]).all(|value| *value == -2.0));
        let rows = Baseline::PerChannel(vec![1.0, 2.0]).of(&inputs).unwrap();
        assert_eq!((rows.row(0)[19], rows.row(0)[20]), (1.0, 2.0));
    }

    #[test]
    fn a_tensor_is_shared_or_taken_by_sample() {
        let inputs = inputs();
        let shared = normal(4, &[1, 2, 4, 5]);
        let rows = Baseline::Tensor(shared.clone()).of(&inputs).unwrap();
        let values: Vec<f32> = shared.flatten_all().unwrap().to_vec1().unwrap();
        assert!((0..3).all(|row| rows.row(row) == values));
        let own = normal(5, &[2, 2, 4, 5]);
        let rows = Baseline::Tensor(own.clone()).of(&inputs).unwrap();
        let values: Vec<f32> = own.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(rows.row(0), &values[40..]);
        assert_eq!(rows.row(1), &values[..40]);
        assert_eq!(rows.inputs(&inputs).unwrap().values().dims(), [3, 2, 4, 5]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let inputs = inputs();
        for wrong in [
            Baseline::PerChannel(vec![0.0; 3]),
            Baseline::Tensor(normal(4, &[1, 2, 5, 4])),
            Baseline::Tensor(Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap()),
            Baseline::Blur(0.0),
            Baseline::Blur(f64::NAN),
        ] {
            assert!(matches!(wrong.of(&inputs), Err(AttributionError::Settings(_))), "{wrong:?}");
        }
        let far = Inputs::of_samples(&normal(3, &[1, 2, 4, 5]), vec![7]).unwrap();
        assert!(Baseline::Tensor(normal(5, &[2, 2, 4, 5])).of(&far).is_err());
    }
}
