//! Real-time image saliency without the network that makes it fast (Dabkowski and Gal 2017): a mask for each image, found
//! by descent with the same objective.

use candle_core::{Tensor, Var};
use pipe_models::random::Key;

use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::real_time_saliency::{
    BORDER, LEADS, POWERS, area_loss, blurred, enlarged, share_of, shown, smoothness_loss,
};
use crate::{AttributionError, Result};

/// A mask in \[0, 1\] for each image, 1 where the evidence is: what it keeps suffices for the class, and what is left
/// without it does not. The score has to be the lead of a class over the best other one.
///
/// The loss is `destroyer + area * mean((m + 0.0005)^0.3) + smoothness * differences + preserver`, with hinges that want a
/// lead of 1 in what is kept and of -5 in what is left; what is gone is a blurred copy or noise on a random colour, by
/// turns at random. The mask is `|a| / (|a| + |b|)` of two channels of `cells` by `cells`, enlarged linearly; by descent
/// with Nesterov's momentum. `2 steps` forward and backward passes per row, and one forward pass for s(x).
#[derive(Clone, Debug)]
pub struct IterativeSaliency {
    /// Values of the mask along each axis.
    pub cells: usize,
    /// Steps of descent.
    pub steps: usize,
    /// Its rate.
    pub learning_rate: f64,
    /// Its momentum.
    pub momentum: f64,
    /// The price of the mask's area.
    pub area: f64,
    /// The price of its roughness.
    pub smoothness: f64,
    /// The weight of what is kept, where that of what is left is 1.
    pub preserver: f64,
    /// Decide what stands for what is gone, one key per sample.
    pub keys: Vec<Key>,
}

impl IterativeSaliency {
    /// The settings of the authors' repository.
    pub fn new(keys: Vec<Key>) -> Self {
        Self {
            cells: 32,
            steps: 200,
            learning_rate: 0.1,
            momentum: 0.9,
            area: 11.0,
            smoothness: 0.5,
            preserver: 0.2,
            keys,
        }
    }

    /// Channels, rows and columns.
    fn shape(&self, row_shape: &[usize]) -> Result<[usize; 3]> {
        match row_shape {
            [channels, rows, columns] if *rows > 1 && *columns > 1 && self.cells > 0 && self.steps > 0 => {
                Ok([*channels, *rows, *columns])
            }
            _ => Err(AttributionError::Settings(format!(
                "{} steps with masks of {} cells do not fit inputs of {row_shape:?}: images are needed",
                self.steps, self.cells
            ))),
        }
    }
}

impl Method for IterativeSaliency {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let [channels, height, width] = self.shape(inputs.row_shape())?;
        if let Some(sample) = inputs.samples().iter().find(|sample| **sample >= self.keys.len()) {
            return Err(AttributionError::Settings(format!("sample {sample} has no key for its noise")));
        }
        let (rows, length, plane) = (inputs.rows(), inputs.row_length(), height * width);
        let scores = evaluator.scores(inputs)?;
        let values = inputs.host()?;
        let blurred = values
            .chunks_exact(length.max(1))
            .map(|x| blurred(x, [channels, height, width]))
            .collect::<Result<Vec<_>>>()?;
        let seen = |channels: &Tensor| enlarged(&share_of(channels)?, [height, width]);
        let count = 2 * self.cells * self.cells;
        let mut parameters = vec![0.5f32; rows * count];
        let mut speed = vec![0.0f32; rows * count];
        let shape = (rows, 2, self.cells, self.cells);
        for step in 0..self.steps {
            let variable = Var::from_vec(parameters.clone(), shape, inputs.values().device())?;
            let mask = seen(variable.as_tensor())?;
            let kept: Vec<f32> = mask.detach().flatten_all()?.to_vec1()?;
            let slopes = self.slopes(evaluator, inputs, [&values, &kept], &blurred, (step, plane))?;
            let slopes = Tensor::from_vec(slopes, mask.shape(), mask.device())?;
            // Prices are means over masks: of each its own, as if it stood alone.
            let area = (area_loss(&mask, POWERS[0])? * (self.area * rows as f64))?;
            let roughness = (smoothness_loss(&mask, POWERS[1], BORDER)? * (self.smoothness * rows as f64))?;
            let gradients = ((area + roughness)? + (mask * slopes)?.sum_all()?)?.backward()?;
            let Some(gradient) = gradients.get(&variable) else { break };
            let gradient: Vec<f32> = gradient.flatten_all()?.to_vec1()?;
            for ((parameter, speed), gradient) in parameters.iter_mut().zip(&mut speed).zip(gradient) {
                *speed = self.momentum as f32 * *speed + gradient;
                *parameter -= self.learning_rate as f32 * (gradient + self.momentum as f32 * *speed);
            }
        }
        let found = Tensor::from_vec(parameters, shape, inputs.values().device())?;
        Ok(Attribution { values: seen(&found)?, scores, baseline_scores: None, completeness_gaps: None })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.shape(row_shape)?;
        Ok(Passes { forward: 1 + 2 * self.steps as u64, backward: 2 * self.steps as u64 })
    }
}

impl IterativeSaliency {
    /// The slope of both hinges along each place of each mask, `[rows, places]`.
    fn slopes(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
        [values, kept]: [&[f32]; 2],
        blurred: &[Vec<f32>],
        (step, plane): (usize, usize),
    ) -> Result<Vec<f32>> {
        let (rows, length) = (inputs.rows(), inputs.row_length());
        let shown: Vec<[Vec<f32>; 2]> = (0..rows)
            .map(|row| {
                let key = self.keys[inputs.samples()[row]].sub(step as u64 + 1);
                shown(&values[row * length..(row + 1) * length], &blurred[row], plane, key)
            })
            .collect();
        let mut slopes = vec![0.0f32; rows * plane];
        // Of each row what the mask keeps, then what it leaves.
        evaluator.gradient_each(
            2 * rows,
            |range| {
                let mut masked = Vec::with_capacity(range.len() * length);
                let mut samples = Vec::with_capacity(range.len());
                for pair in range {
                    let row = pair / 2;
                    let [x, gone] = &shown[row];
                    masked.extend(x.iter().zip(gone).enumerate().map(|(index, (x, gone))| {
                        let kept = kept[row * plane + index % plane];
                        let share = if pair % 2 == 0 { kept } else { 1.0 - kept };
                        share * x + (1.0 - share) * gone
                    }));
                    samples.push(inputs.samples()[row]);
                }
                inputs.rows_like(masked, samples)
            },
            |pair, lead, gradient| {
                let row = pair / 2;
                // Both are prices per unit of lead; the mask takes from what is left what it adds to what is kept.
                let weight = match pair % 2 {
                    0 if f64::from(lead) < LEADS[0] => -self.preserver as f32,
                    1 if f64::from(lead) > -LEADS[1] => -1.0,
                    _ => return,
                };
                let [x, gone] = &shown[row];
                for (index, ((x, gone), gradient)) in x.iter().zip(gone).zip(gradient).enumerate() {
                    slopes[row * plane + index % plane] += weight * gradient * (x - gone);
                }
            },
        )?;
        Ok(slopes)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result as TensorResult};
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;
    use crate::testing::host;

    const SIDE: usize = 16;

    /// The mean of a quarter, the upper left one of even samples and the lower right one of odd ones.
    struct Quarter;

    impl Score for Quarter {
        fn score(&self, x: &Tensor, samples: &[usize], _: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let (_, channels, rows, columns) = x.dims4()?;
            let inside = |sample: &usize| -> Vec<f32> {
                let first = 1 - sample % 2;
                (0..channels * rows * columns)
                    .map(|place| {
                        let is_first = place / columns % rows < rows / 2 && place % columns < columns / 2;
                        let is_last = place / columns % rows >= rows / 2 && place % columns >= columns / 2;
                        if (first == 1 && is_first) || (first == 0 && is_last) { 20.0 } else { 0.0 }
                    })
                    .collect()
            };
            let weights: Vec<f32> = samples.iter().flat_map(inside).collect();
            let weights = Tensor::from_vec(weights, x.shape(), x.device())?;
            // A lead of 7 for the image, of -13 for nothing.
            (x * weights)?.flatten_from(1)?.mean(1)?.affine(4.0, -13.0)
        }
    }

    fn inputs(rows: usize) -> Inputs {
        // Bright everywhere; the first pixel is dark, so that there is a range.
        let image = |place: usize| if place.is_multiple_of(SIDE * SIDE) { 0.0 } else { 1.0f32 };
        let values: Vec<f32> = (0..rows * 3 * SIDE * SIDE).map(image).collect();
        Inputs::new(&Tensor::from_vec(values, (rows, 3, SIDE, SIDE), &Device::Cpu).unwrap()).unwrap()
    }

    fn method(steps: usize) -> IterativeSaliency {
        IterativeSaliency { cells: 8, steps, area: 1.0, ..IterativeSaliency::new(vec![Key(3), Key(4)]) }
    }

    #[test]
    fn the_mask_finds_what_the_class_needs() {
        let method = method(60);
        let evaluator = Evaluator::new(&Quarter, 3);
        let found = method.attribute(&evaluator, &inputs(2)).unwrap();
        assert_eq!(found.values.dims(), [2, 1, SIDE, SIDE]);
        let cost = method.cost(&[3, SIDE, SIDE]).unwrap();
        assert_eq!(cost, Passes { forward: 121, backward: 120 });
        assert_eq!(evaluator.passes(), Passes { forward: 242, backward: 240 });
        let values = host(&found.values);
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        let mean = |row: usize, y: usize, x: usize| {
            let places = (0..SIDE * SIDE).filter(|at| at / SIDE / 8 == y && at % SIDE / 8 == x);
            places.map(|at| f64::from(values[row * SIDE * SIDE + at])).sum::<f64>() / 64.0
        };
        for (row, quarter) in [(0, 0), (1, 1)] {
            let (own, other) = (mean(row, quarter, quarter), mean(row, 1 - quarter, 1 - quarter));
            assert!(own > other + 0.3, "{row}: {own} {other}");
        }
        // Neither the batch nor the company matters.
        let alone = method.attribute(&Evaluator::new(&Quarter, 1), &inputs(1)).unwrap();
        for (ours, expected) in host(&alone.values).iter().zip(&values) {
            assert!((ours - expected).abs() < 1e-4, "{ours} {expected}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(method(5).cost(&[4, 10]).is_err());
        let unkeyed = IterativeSaliency { keys: Vec::new(), ..method(5) };
        let result = unkeyed.attribute(&Evaluator::new(&Quarter, 1), &inputs(1));
        assert!(matches!(result, Err(AttributionError::Settings(_))));
    }
}
