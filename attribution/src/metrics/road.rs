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
/// neighbours inside the image. Symmetric; positive definite as long as a pixel is kept. It is the same for every
/// channel: all are solved at once.
struct System<'a> {
    removed: &'a [u32],
    /// For each removed pixel: the sum of the weights of its neighbours inside the image.
    diagonal: Vec<f64>,
    /// For each removed pixel: the place of each neighbour among the removed ones; one behind the last where it is kept
    /// or outside, whose value is zero.
    inner: Vec<[u32; 8]>,
    shape: Shape,
}

impl<'a> System<'a> {
    fn new(shape: Shape, removed: &'a [u32]) -> Self {
        let nowhere = removed.len() as u32;
        let mut place = vec![nowhere; shape.pixels()];
        for (index, pixel) in (0u32..).zip(removed) {
            place[*pixel as usize] = index;
        }
        let mut system =
            Self { removed, diagonal: Vec::new(), inner: Vec::with_capacity(removed.len()), shape };
        for pixel in removed {
            let (mut sum, mut inner) = (0.0, [nowhere; 8]);
            for (slot, (neighbour, weight)) in inner.iter_mut().zip(system.neighbours(*pixel)) {
                if let Some(neighbour) = neighbour {
                    sum += weight;
                    *slot = place[neighbour];
                }
            }
            system.diagonal.push(sum);
            system.inner.push(inner);
        }
        system
    }

    /// The eight neighbours of a pixel with their weights; nothing outside the image.
    fn neighbours(&self, pixel: u32) -> impl Iterator<Item = (Option<usize>, f64)> {
        let (height, width) = (self.shape.height as i64, self.shape.width as i64);
        let (row, column) = (i64::from(pixel) / width, i64::from(pixel) % width);
        NEIGHBOURS.into_iter().map(move |(down, right, weight)| {
            let (y, x) = (row + down, column + right);
            let is_inside = (0..height).contains(&y) && (0..width).contains(&x);
            (is_inside.then_some((y * width + x) as usize), weight)
        })
    }

    /// What kept neighbours give to each removed pixel of a channel.
    fn right(&self, plane: &[f32]) -> Vec<f64> {
        let nowhere = self.removed.len() as u32;
        let of_pixel = |(pixel, inner): (&u32, &[u32; 8])| {
            let neighbours = self.neighbours(*pixel).zip(inner);
            let kept = neighbours.filter(|(_, place)| **place == nowhere);
            kept.filter_map(|((neighbour, weight), _)| Some(weight * f64::from(plane[neighbour?]))).sum()
        };
        self.removed.iter().zip(&self.inner).map(of_pixel).collect()
    }

    /// The product with `values`, which have a zero behind their last.
    fn apply(&self, values: &[f64], result: &mut [f64]) {
        for (index, result) in result.iter_mut().enumerate() {
            let terms = NEIGHBOURS.iter().zip(&self.inner[index]);
            let neighbours: f64 = terms.map(|((_, _, weight), place)| weight * values[*place as usize]).sum();
            *result = self.diagonal[index] * values[index] - neighbours;
        }
    }

    /// The values of the removed pixels of each channel, by conjugate gradients with the diagonal as
    /// preconditioner. A channel that has reached the goal rests while others go on.
    fn solve(&self, image: &[f32]) -> Vec<Vec<f64>> {
        let planes = image.chunks_exact(self.shape.pixels().max(1));
        let mut channels: Vec<Descent> = planes.map(|plane| Descent::new(self, self.right(plane))).collect();
        for _ in 0..ITERATIONS {
            let mut goes_on = false;
            for channel in &mut channels {
                goes_on |= channel.step(self);
            }
            if !goes_on {
                break;
            }
        }
        channels.into_iter().map(|channel| channel.values).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The conjugate gradients of one channel.
struct Descent {
    values: Vec<f64>,
    residual: Vec<f64>,
    /// With a zero behind its last value.
    direction: Vec<f64>,
    applied: Vec<f64>,
    goal: f64,
    size: f64,
}

impl Descent {
    fn new(system: &System<'_>, right: Vec<f64>) -> Self {
        let mut direction: Vec<f64> = right.iter().zip(&system.diagonal).map(|(r, d)| r / d).collect();
        let size = dot(&right, &direction);
        direction.push(0.0);
        let (values, applied) = (vec![0.0; right.len()], vec![0.0; right.len()]);
        Self {
            values,
            goal: TOLERANCE * dot(&right, &right).sqrt(),
            residual: right,
            direction,
            applied,
            size,
        }
    }

    /// One iteration, unless the goal is reached: whether it was one.
    fn step(&mut self, system: &System<'_>) -> bool {
        if dot(&self.residual, &self.residual).sqrt() <= self.goal {
            return false;
        }
        system.apply(&self.direction, &mut self.applied);
        let step = self.size / dot(&self.direction, &self.applied);
        let mut next = 0.0;
        for index in 0..self.values.len() {
            self.values[index] += step * self.direction[index];
            self.residual[index] -= step * self.applied[index];
            next += self.residual[index] * (self.residual[index] / system.diagonal[index]);
        }
        let turn = next / self.size;
        self.size = next;
        for (index, diagonal) in system.diagonal.iter().enumerate() {
            self.direction[index] = self.residual[index] / diagonal + turn * self.direction[index];
        }
        true
    }
}

/// The image with the `removed` pixels filled in from their neighbours; `noise[c][i]` is added to removed
/// pixel i of channel c (nothing where it is empty). At least one pixel has to be kept: the value of all
/// is otherwise 0.
pub fn imputed(image: &[f32], shape: Shape, removed: &[u32], noise: &[Vec<f64>]) -> Vec<f32> {
    let solved = System::new(shape, removed).solve(image);
    let mut result = image.to_vec();
    for ((channel, plane), values) in result.chunks_exact_mut(shape.pixels().max(1)).enumerate().zip(&solved)
    {
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
    use pipe_models::random::Key;

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

    /// Channels are solved together and have the values that each has alone, to the bit; each is the weighted mean of
    /// its neighbours.
    #[test]
    fn channels_are_solved_at_once() {
        let shape = Shape::flat(3, 20, 24);
        let key = Key(5);
        let image: Vec<f32> = (1..=3 * 480).map(|place| key.normal(place) as f32).collect();
        let mut removed: Vec<u32> =
            (0..480).filter(|pixel| key.below(2000 + pixel, 10) < 7).map(|pixel| pixel as u32).collect();
        removed.reverse();
        let together = imputed(&image, shape, &removed, &[]);
        for channel in 0..3 {
            let plane = &image[channel * 480..(channel + 1) * 480];
            let alone = imputed(plane, Shape::flat(1, 20, 24), &removed, &[]);
            assert_eq!(alone, together[channel * 480..(channel + 1) * 480]);
            let system = System::new(shape, &removed);
            for pixel in &removed {
                let inside =
                    || system.neighbours(*pixel).filter_map(|(place, weight)| Some((place?, weight)));
                let sum: f64 = inside().map(|(_, weight)| weight).sum();
                let mean =
                    inside().map(|(place, weight)| weight * f64::from(alone[place])).sum::<f64>() / sum;
                assert!((mean - f64::from(alone[*pixel as usize])).abs() < 1e-6, "{mean}");
            }
        }
    }

    #[test]
    fn everything_removed_is_nothing() {
        let shape = Shape::flat(1, 2, 2);
        assert_eq!(imputed(&[1.0; 4], shape, &[0, 1, 2, 3], &[]), [0.0; 4]);
    }
}
