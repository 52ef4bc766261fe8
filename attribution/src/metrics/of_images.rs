//! Functions of images: what metrics that explain again, or look at outputs, ask for.

use candle_core::{Device, Tensor};
use pipe_models::MaybeProbe;
use pipe_models::random::Key;

use super::Shape;
use crate::{Evaluator, Inputs, Method, Result, Score};

/// Gives one vector per image: the map of a method, the outputs of a model, its activations. Image i is, or
/// was made from, that of sample `images[i].0`, which decides its target.
pub type OfImages<'a> = dyn Fn(&[(usize, &[f32])]) -> Result<Vec<Vec<f64>>> + 'a;

/// The map `[height, width]` of each image `[channels, height, width]` by a method, channels summed.
///
/// # Errors
/// Whatever the method reports.
pub fn explained(
    method: &dyn Method,
    evaluator: &Evaluator<'_>,
    shape: Shape,
    images: &[(usize, &[f32])],
) -> Result<Vec<Vec<f64>>> {
    if images.is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<f32> = images.iter().flat_map(|(_, image)| image.iter().copied()).collect();
    let values = Tensor::from_vec(values, shape.batch(images.len()), &Device::Cpu)?;
    let inputs = Inputs::of_samples(&values, images.iter().map(|(sample, _)| *sample).collect())?;
    let attribution = method.attribute(evaluator, &inputs)?.values;
    let planes = attribution.dims().get(1).copied().unwrap_or(1);
    let values: Vec<f32> = attribution.flatten_all()?.to_vec1()?;
    let pixels = shape.pixels();
    let map = |row: &[f32]| -> Vec<f64> {
        (0..pixels)
            .map(|pixel| row[pixel..].iter().step_by(pixels).map(|value| f64::from(*value)).sum())
            .collect()
    };
    Ok(values.chunks_exact((planes * pixels).max(1)).map(map).collect())
}

/// Changed images of a set of samples, drawn by the caller: results do not depend on where draws come
/// from.
#[derive(Clone, Copy)]
pub struct Draws<'a> {
    /// Draws per sample.
    pub count: usize,
    /// The image of draw `.0` of the sample at place `.1` of the set.
    pub image: &'a dyn Fn(usize, usize) -> Vec<f32>,
}

impl std::fmt::Debug for Draws<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Draws").field("count", &self.count).finish_non_exhaustive()
    }
}

/// Noise that changes an image a little.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Perturbation {
    /// Uniform in [low, high) for every value.
    Uniform {
        /// The least that is added.
        low: f64,
        /// The most.
        high: f64,
    },
    /// Normal with mean 0.
    Normal {
        /// Its standard deviation.
        deviation: f64,
    },
}

impl Perturbation {
    /// The image with noise, a pure function of the key. `scale` is what the noise is a multiple of: 1, or
    /// the range of the image ([`range`]).
    pub fn add(self, image: &[f32], key: Key, scale: f64) -> Vec<f32> {
        let noise = |counter: u64| match self {
            Self::Uniform { low, high } => low + (high - low) * key.uniform(counter),
            Self::Normal { deviation } => deviation * key.normal(counter),
        };
        let values = image.iter().zip(1u64..);
        values.map(|(value, counter)| (f64::from(*value) + scale * noise(counter)) as f32).collect()
    }
}

/// The greatest value of an image minus its least.
pub fn range(image: &[f32]) -> f64 {
    let (low, high) = image
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
    f64::from(high - low).max(0.0)
}

/// The mean map over the noisy images of a set and the images themselves.
///
/// # Errors
/// Whatever `explain` reports.
pub fn mean_over_noise(
    explain: &OfImages<'_>,
    images: &[(usize, &[f32])],
    draws: Draws<'_>,
) -> Result<Vec<Vec<f64>>> {
    let mut sums = explain(images)?;
    in_draws(images, draws, |_, noisy| {
        for (place, map) in explain(noisy)?.into_iter().enumerate() {
            let sum = &mut sums[place % images.len()];
            sum.iter_mut().zip(map).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    })?;
    let count = (draws.count + 1) as f64;
    sums.iter_mut().flatten().for_each(|sum| *sum /= count);
    Ok(sums)
}

/// Images that are changed and asked about in one call, at least: several draws of a small set share one.
const AT_ONCE: usize = 256;

/// Calls `ask` with the changed images of one or more draws, whole draws in their order; its first argument
/// is the first draw.
pub(super) fn in_draws(
    images: &[(usize, &[f32])],
    draws: Draws<'_>,
    mut ask: impl FnMut(usize, &[(usize, &[f32])]) -> Result<()>,
) -> Result<()> {
    if images.is_empty() {
        return Ok(());
    }
    let together = (AT_ONCE / images.len()).max(1);
    for first in (0..draws.count).step_by(together) {
        let changed: Vec<Vec<f32>> = (first..(first + together).min(draws.count))
            .flat_map(|draw| (0..images.len()).map(move |place| (draws.image)(draw, place)))
            .collect();
        let samples = images.iter().map(|(sample, _)| *sample).cycle();
        let rows: Vec<(usize, &[f32])> = samples.zip(changed.iter().map(Vec::as_slice)).collect();
        ask(first, &rows)?;
    }
    Ok(())
}

/// The score of the input minus a constant: the model that gives for a shifted input what the other gives for
/// the input itself. (Kindermans et al. 2017 correct the bias of the first layer instead, which is the same
/// where nothing is padded, and needs one.)
#[derive(Clone, Copy, Debug)]
pub struct Shifted<'a, S: ?Sized> {
    /// The score that knows nothing of the shift.
    pub score: &'a S,
    /// What is taken off every value.
    pub shift: f64,
}

impl<S: Score + ?Sized> Score for Shifted<'_, S> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> candle_core::Result<Tensor> {
        self.score.score(&(input - self.shift)?, samples, probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Smooth, host, normal};
    use crate::{Gradient, InputXGradient};

    const SHAPE: Shape = Shape::flat(2, 2, 2);

    #[test]
    fn maps_are_sums_over_channels() {
        let score = Smooth::new(1, &[2, 2, 2]);
        let evaluator = Evaluator::new(&score, 2);
        let images = normal(3, &[3, 2, 2, 2]);
        let all = Gradient.attribute(&evaluator, &Inputs::new(&images).unwrap()).unwrap();
        let all = host(&all.values);
        let rows = host(&images);
        let rows: Vec<(usize, &[f32])> = rows.chunks(8).enumerate().collect();
        let maps = explained(&Gradient, &evaluator, SHAPE, &rows).unwrap();
        assert_eq!(maps.len(), 3);
        assert_eq!(maps[2][1], f64::from(all[17]) + f64::from(all[21]));
        assert!(explained(&Gradient, &evaluator, SHAPE, &[]).unwrap().is_empty());
    }

    #[test]
    fn noise_is_within_its_bounds_and_of_its_key() {
        let image = [1.0f32, -1.0, 0.5];
        let uniform = Perturbation::Uniform { low: 0.02, high: 0.2 };
        let noisy = uniform.add(&image, Key(4), 2.0);
        for (noisy, value) in noisy.iter().zip(&image) {
            assert!((0.039..0.401).contains(&(noisy - value)), "{noisy} {value}");
        }
        assert_eq!(noisy, uniform.add(&image, Key(4), 2.0));
        assert_ne!(noisy, uniform.add(&image, Key(5), 2.0));
        assert_eq!(Perturbation::Normal { deviation: 0.0 }.add(&image, Key(1), 1.0), image);
        assert_eq!(range(&image), 2.0);
    }

    #[test]
    fn draws_come_whole_and_in_order() {
        let image = [0.0f32; 1];
        let images: Vec<(usize, &[f32])> = (0..100).map(|sample| (sample, &image[..])).collect();
        let draws = Draws { count: 5, image: &|draw, place| vec![(100 * draw + place) as f32] };
        let mut seen = Vec::new();
        in_draws(&images, draws, |first, rows| {
            assert!(rows.len() == 200 || rows.len() == 100, "{}", rows.len());
            assert_eq!(rows[0], (0, &[100.0 * first as f32][..]));
            seen.extend(rows.iter().map(|(_, image)| image[0]));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, (0..500).map(|index| index as f32).collect::<Vec<_>>());
    }

    #[test]
    fn the_image_itself_is_one_of_the_mean() {
        let explain = |images: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
            Ok(images.iter().map(|(_, image)| vec![f64::from(image[0])]).collect())
        };
        let draws = Draws { count: 2, image: &|draw, _| vec![3.0 * (draw + 1) as f32] };
        assert_eq!(mean_over_noise(&explain, &[(0, &[0.0])], draws).unwrap(), [[3.0]]);
    }

    #[test]
    fn a_shifted_model_does_not_see_the_shift() {
        let score = Smooth::new(1, &[2, 2, 2]);
        let shifted = Shifted { score: &score, shift: 2.0 };
        let image: Vec<f32> = host(&normal(3, &[8]));
        let moved: Vec<f32> = image.iter().map(|value| value + 2.0).collect();
        let (plain, again) = (Evaluator::new(&score, 1), Evaluator::new(&shifted, 1));
        let of = |method: &dyn Method, evaluator: &Evaluator<'_>, image: &[f32]| {
            explained(method, evaluator, SHAPE, &[(0, image)]).unwrap().remove(0)
        };
        let gradients = (of(&Gradient, &plain, &image), of(&Gradient, &again, &moved));
        gradients.0.iter().zip(&gradients.1).for_each(|(a, b)| assert!((a - b).abs() < 1e-5));
        let method = InputXGradient::default();
        let products = (of(&method, &plain, &image), of(&method, &again, &moved));
        assert!(products.0.iter().zip(&products.1).any(|(a, b)| (a - b).abs() > 1e-2));
    }
}
