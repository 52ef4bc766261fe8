//! Remove and debias (Rong et al. 2022): removed pixels are filled in from their neighbours, so that the
//! shape of what was removed tells the model little.

use super::engine::{Engine, Sample};
use super::{Order, Shape};
use crate::Result;

/// Weights of the eight neighbours: direct ones 1/6, diagonal ones 1/12.
const NEIGHBOURS: [(i64, i64, f64); 8] = [
    (-1, -1, 1.0 / 12.0),
    (-1, 0, 1.0 / 6.0),
    (-1, 1, 1.0 / 12.0),
    (0, -1, 1.0 / 6.0),
    (0, 1, 1.0 / 6.0),
    (1, -1, 1.0 / 12.0),
    (1, 0, 1.0 / 6.0),
    (1, 1, 1.0 / 12.0),
];

/// Where the conjugate gradients stop: the residual over the right-hand side.
const TOLERANCE: f64 = 1e-9;
/// No image needs more iterations than this to reach it.
const ITERATIONS: usize = 10_000;

/// The linear system that a set of removed pixels makes: every removed pixel is the weighted mean of its
/// neighbours inside the image. Symmetric; positive definite as long as a pixel is kept.
struct System {
    /// For each removed pixel: the sum of the weights of its neighbours.
    diagonal: Vec<f64>,
    /// For each removed pixel: the places, among the removed ones, and weights of removed neighbours.
    inner: Vec<Vec<(usize, f64)>>,
    /// For each removed pixel: the pixels and weights of kept neighbours.
    outer: Vec<Vec<(usize, f64)>>,
}

impl System {
    fn new(shape: Shape, removed: &[u32]) -> Self {
        let mut place = vec![usize::MAX; shape.pixels()];
        for (index, pixel) in removed.iter().enumerate() {
            place[*pixel as usize] = index;
        }
        let (height, width) = (shape.height as i64, shape.width as i64);
        let mut system = Self { diagonal: Vec::new(), inner: Vec::new(), outer: Vec::new() };
        for pixel in removed {
            let (row, column) = (i64::from(*pixel) / width, i64::from(*pixel) % width);
            let (mut sum, mut inner, mut outer) = (0.0, Vec::new(), Vec::new());
            for (down, right, weight) in NEIGHBOURS {
                let (y, x) = (row + down, column + right);
                if (0..height).contains(&y) && (0..width).contains(&x) {
                    let neighbour = (y * width + x) as usize;
                    sum += weight;
                    match place[neighbour] {
                        usize::MAX => outer.push((neighbour, weight)),
                        place => inner.push((place, weight)),
                    }
                }
            }
            system.diagonal.push(sum);
            system.inner.push(inner);
            system.outer.push(outer);
        }
        system
    }

    fn apply(&self, values: &[f64], result: &mut [f64]) {
        for (index, result) in result.iter_mut().enumerate() {
            let neighbours: f64 =
                self.inner[index].iter().map(|(place, weight)| weight * values[*place]).sum();
            *result = self.diagonal[index] * values[index] - neighbours;
        }
    }

    /// The values of the removed pixels of one channel, by conjugate gradients with the diagonal as
    /// preconditioner.
    fn solve(&self, plane: &[f32]) -> Vec<f64> {
        let right: Vec<f64> = self
            .outer
            .iter()
            .map(|kept| kept.iter().map(|(pixel, weight)| weight * f64::from(plane[*pixel])).sum())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let mut values = vec![0.0; right.len()];
        let mut residual = right.clone();
        let mut scaled: Vec<f64> = residual.iter().zip(&self.diagonal).map(|(r, d)| r / d).collect();
        let mut direction = scaled.clone();
        let mut applied = vec![0.0; right.len()];
        let goal = TOLERANCE * dot(&right, &right).sqrt();
        let mut size = dot(&residual, &scaled);
        for _ in 0..ITERATIONS {
            if dot(&residual, &residual).sqrt() <= goal {
                break;
            }
            self.apply(&direction, &mut applied);
            let step = size / dot(&direction, &applied);
            for index in 0..values.len() {
                values[index] += step * direction[index];
                residual[index] -= step * applied[index];
                scaled[index] = residual[index] / self.diagonal[index];
            }
            let next = dot(&residual, &scaled);
            let turn = next / size;
            size = next;
            direction
                .iter_mut()
                .zip(&scaled)
                .for_each(|(direction, scaled)| *direction = scaled + turn * *direction);
        }
        values
    }
}

/// The image with the `removed` pixels filled in from their neighbours; `noise[c][i]` is added to removed
/// pixel i of channel c (nothing where it is empty). At least one pixel has to be kept: the value of all
/// is otherwise 0.
pub fn imputed(image: &[f32], shape: Shape, removed: &[u32], noise: &[Vec<f64>]) -> Vec<f32> {
    let system = System::new(shape, removed);
    let mut result = image.to_vec();
    for (channel, plane) in result.chunks_exact_mut(shape.pixels().max(1)).enumerate() {
        let values = system.solve(plane);
        let noise = noise.get(channel).map_or(&[][..], Vec::as_slice);
        for (index, pixel) in removed.iter().enumerate() {
            let noise = noise.get(index).copied().unwrap_or(0.0);
            plane[*pixel as usize] = (values[index] + noise) as f32;
        }
    }
    result
}

/// How many pixels a percentage is.
pub fn pixels_of(shape: Shape, percentage: f64) -> usize {
    (shape.pixels() as f64 * percentage / 100.0) as usize
}

/// The score of each sample after each percentage of its pixels was removed, in this order of the map.
/// `noise(percentage index, sample place, channel, count)` gives what is added to the removed pixels.
///
/// For agreement of the prediction instead of a probability, give a score that is 1 where the predicted
/// class is the target. A figure of a map is the mean over percentages of the curve with the least
/// relevant pixels first minus that with the most relevant first.
///
/// # Errors
/// Whatever the score reports.
pub fn road(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    percentages: &[f64],
    order: Order,
    noise: &(dyn Fn(usize, usize, usize, usize) -> Vec<f64> + Sync),
) -> Result<Vec<Vec<f64>>> {
    let shape = engine.shape();
    let orders: Vec<Vec<u32>> = samples.iter().map(|sample| order.of(sample.map)).collect();
    let rows: Vec<usize> = samples.iter().flat_map(|sample| vec![sample.index; percentages.len()]).collect();
    let count = percentages.len();
    let scores = engine.scores(&rows, |row, image| {
        let (sample, percentage) = (row / count, row % count);
        let removed = &orders[sample][..pixels_of(shape, percentages[percentage])];
        let noise: Vec<Vec<f64>> =
            (0..shape.channels).map(|channel| noise(percentage, sample, channel, removed.len())).collect();
        image.copy_from_slice(&imputed(samples[sample].image, shape, removed, &noise));
    })?;
    Ok(scores.chunks(count.max(1)).map(<[f64]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plane_is_filled_in_exactly() {
        // A linear ramp is its own neighbours' mean away from the border.
        let shape = Shape::flat(2, 6, 7);
        let ramp: Vec<f32> = (0..84).map(|index| (index % 42 / 7 * 3 + index % 7) as f32 + 1.0).collect();
        let removed = [8, 9, 16, 17, 24, 30];
        let mut holes = ramp.clone();
        for pixel in removed {
            holes[pixel as usize] = -99.0;
            holes[42 + pixel as usize] = 55.0;
        }
        for (ours, expected) in imputed(&holes, shape, &removed, &[]).iter().zip(&ramp) {
            assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
        }
        let noisy = imputed(&holes, shape, &removed, &[vec![0.5; 6], vec![]]);
        assert!((noisy[8] - ramp[8] - 0.5).abs() < 1e-5 && (noisy[50] - ramp[50]).abs() < 1e-5);
    }

    #[test]
    fn everything_removed_is_nothing() {
        let shape = Shape::flat(1, 2, 2);
        assert_eq!(imputed(&[1.0; 4], shape, &[0, 1, 2, 3], &[]), [0.0; 4]);
    }
}
