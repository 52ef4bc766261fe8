//! Deletion and insertion (Petsiuk, Das and Saenko 2018, RISE).
//!
//! Pixels in decreasing order of the map, all channels together: deletion goes from the image to
//! nothing, insertion from a blurred image to the image. The figure is the area under the curve of the
//! target's score, start included, over the number of steps: in [0, 1] for a probability. A good map
//! has a low deletion and a high insertion.
//!
//! Both depend on what stands for "nothing", and deletion rewards maps that look like noise (the changed
//! images are unlike any real one): state the baseline, and read the figures beside those of controls.

use super::baseline::blurred;
use super::engine::{Change, Engine, Path, Sample, Start};
use super::pixel_flipping::{Order, pixel_flipping};
use super::{Groups, descending};
use crate::Result;

/// The curve of each sample: steps + 1 values.
pub type Curves = Vec<Vec<f64>>;

/// The area under a curve of equal steps over the number of its steps (trapezoids); of a single value,
/// itself.
pub fn area(curve: &[f64]) -> f64 {
    match curve {
        [] => f64::NAN,
        [value] => *value,
        [first, .., last] => (curve.iter().sum::<f64>() - (first + last) / 2.0) / (curve.len() - 1) as f64,
    }
}

/// From the image to `ends[i]`, the most relevant pixels first, `per_step` pixels at a time.
///
/// # Errors
/// Whatever the score reports.
pub fn deletion(
    engine: &Engine<'_>,
    samples: &[Sample<'_>],
    ends: &[Vec<f32>],
    per_step: usize,
) -> Result<Curves> {
    pixel_flipping(engine, samples, ends, per_step, Order::MostRelevantFirst)
}

/// From the blurred image to the image, the most relevant pixels first, `per_step` pixels at a time.
///
/// # Errors
/// Whatever the score reports.
pub fn insertion(engine: &Engine<'_>, samples: &[Sample<'_>], per_step: usize) -> Result<Curves> {
    let shape = engine.shape();
    let groups = |sample: &Sample<'_>| {
        Groups::blocks(descending(sample.map), per_step).in_all_channels(shape.channels, shape.pixels())
    };
    let groups: Vec<Groups> = samples.iter().map(groups).collect();
    let starts: Vec<Vec<f32>> = samples.iter().map(|sample| blurred(sample.image, shape)).collect();
    let paths: Vec<Path<'_>> = samples
        .iter()
        .zip(&starts)
        .zip(&groups)
        .map(|((sample, start), groups)| Path {
            sample: sample.index,
            start,
            end: sample.image,
            groups,
            change: Change::Cumulative,
        })
        .collect();
    engine.curves(&paths, Start::Included)
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::super::engine::tests::Linear;
    use super::*;
    use crate::Evaluator;

    #[test]
    fn areas_of_curves() {
        assert_eq!(area(&[1.0, 0.5, 0.0]), 0.5);
        assert_eq!(area(&[1.0, 1.0]), 1.0);
        assert_eq!(area(&[0.25]), 0.25);
    }

    #[test]
    fn a_linear_model_loses_what_the_map_says() {
        let shape = Shape::flat(2, 1, 2);
        let score = Linear(vec![1.0, 2.0, 4.0, 8.0]);
        let evaluator = Evaluator::new(&score, 3);
        let engine = Engine::new(&evaluator, shape);
        let image = [1.0f32; 4];
        let sample = |map| Sample { index: 0, image: &image, map };
        // Pixels are features (0, 2) and (1, 3): together 5 and 10.
        let samples = [sample(&[0.0, 1.0]), sample(&[1.0, 0.0])];
        let curves = deletion(&engine, &samples, &[vec![0.0; 4], vec![0.0; 4]], 1).unwrap();
        assert_eq!(curves, [[15.0, 5.0, 0.0], [15.0, 10.0, 0.0]]);
        assert!(area(&curves[0]) < area(&curves[1]));
        let curves = insertion(&engine, &samples[..1], 1).unwrap();
        assert_eq!(curves[0].len(), 3);
        assert!((curves[0][2] - 15.0).abs() < 1e-6 && curves[0][0] < 15.0);
        assert_eq!(evaluator.passes().forward, 9);
    }
}
