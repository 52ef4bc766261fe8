//! One engine for every metric that changes an image and asks the model again.
//!
//! A [`Path`] leads from one image to another, group of features by group. The engine walks the steps
//! of all paths of all samples as one list and cuts it into batches, so that a batch holds steps of
//! several samples, and only the last one is not full. A changed image is made in the batch's own
//! buffer from the two ends of its path; no step copies another step's result.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::Groups;
use crate::{Evaluator, Inputs, Result};

/// The shape of one image or volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Channels.
    pub channels: usize,
    /// Slices of a volume; nothing for a flat image.
    pub depth: Option<usize>,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Shape {
    /// That of a flat image.
    pub const fn flat(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, depth: None, height, width }
    }

    /// That of a volume.
    pub const fn volume(channels: usize, [slices, height, width]: [usize; 3]) -> Self {
        Self { channels, depth: Some(slices), height, width }
    }

    /// Slices, rows and columns; a flat image is one slice.
    pub fn axes(self) -> [usize; 3] {
        [self.depth.unwrap_or(1), self.height, self.width]
    }

    /// Pixels, or voxels, of one channel.
    pub fn pixels(self) -> usize {
        self.axes().iter().product()
    }

    /// The shape of a batch of so many, as a model takes it.
    pub fn batch(self, count: usize) -> Vec<usize> {
        let depth = self.depth.into_iter();
        [count, self.channels].into_iter().chain(depth).chain([self.height, self.width]).collect()
    }

    /// Values of all channels.
    pub fn features(self) -> usize {
        self.channels * self.pixels()
    }
}

/// How the groups of a path are changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// One more group at each step: step t has the first t groups changed.
    Cumulative,
    /// One group at each step, all others as they were.
    Independent,
}

/// Whether the curve of a path has the score of its unchanged start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The first value of the curve is that of the start.
    Included,
    /// The first value of the curve is that of the first change.
    LeftOut,
}

/// A way from one image to another. All values are channel-major: `[channels, height, width]`, of volumes
/// `[channels, slices, height, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    /// The index of the sample within the set that is explained, for its target.
    pub sample: usize,
    /// The image before any change.
    pub start: &'a [f32],
    /// Where features take their new values from.
    pub end: &'a [f32],
    /// What changes together, in its order.
    pub groups: &'a Groups,
    /// How.
    pub change: Change,
}

impl Path<'_> {
    /// Writes the image of `step` (0 is the start).
    fn fill(&self, step: usize, image: &mut [f32]) {
        image.copy_from_slice(self.start);
        let changed = match (self.change, step) {
            (_, 0) => return,
            (Change::Cumulative, step) => self.groups.first(step),
            (Change::Independent, step) => self.groups.group(step - 1),
        };
        for feature in changed {
            image[*feature as usize] = self.end[*feature as usize];
        }
    }
}

/// Asks a model about changed images of one shape, in full batches.
pub struct Engine<'a> {
    evaluator: &'a Evaluator<'a>,
    shape: Shape,
    device: Device,
}

impl std::fmt::Debug for Engine<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Engine").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl<'a> Engine<'a> {
    /// An engine over an evaluator, which decides the batch and counts the passes. Batches are made on
    /// the CPU.
    pub fn new(evaluator: &'a Evaluator<'a>, shape: Shape) -> Self {
        Self::on(evaluator, shape, &Device::Cpu)
    }

    /// As [`Self::new`], for a model on another device.
    pub fn on(evaluator: &'a Evaluator<'a>, shape: Shape, device: &Device) -> Self {
        Self { evaluator, shape, device: device.clone() }
    }

    /// The shape of the images.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The scores of images that `fill` makes one by one: image i belongs to sample `samples[i]`.
    ///
    /// # Errors
    /// If the score fails or the evaluator's observer asks to stop; likewise below.
    pub fn scores(&self, samples: &[usize], fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Vec<f64>> {
        let length = self.shape.features();
        let mut scores = Vec::with_capacity(samples.len());
        let make = |rows: Range<usize>| {
            let mut values = vec![0.0f32; rows.len() * length];
            let images = values.par_chunks_exact_mut(length).enumerate();
            images.for_each(|(row, image)| fill(rows.start + row, image));
            let images = Tensor::from_vec(values, self.shape.batch(rows.len()), &self.device)?;
            Inputs::of_samples(&images, samples[rows].to_vec())
        };
        self.evaluator.score_each(samples.len(), make, |_, score| scores.push(f64::from(score)))?;
        Ok(scores)
    }

    /// The scores of images as they are, image i being that of sample `images[i].0`.
    ///
    /// # Errors
    /// As [`Self::scores`].
    pub fn plain(&self, images: &[(usize, &[f32])]) -> Result<Vec<f64>> {
        let samples: Vec<usize> = images.iter().map(|(sample, _)| *sample).collect();
        self.scores(&samples, |index, image| image.copy_from_slice(images[index].1))
    }

    /// The scores along each path: one value per group, before them that of the start if it is included.
    ///
    /// # Errors
    /// As [`Self::scores`].
    pub fn curves(&self, paths: &[Path<'_>], start: Start) -> Result<Vec<Vec<f64>>> {
        let first = match start {
            Start::Included => 0,
            Start::LeftOut => 1,
        };
        let steps: Vec<(usize, usize)> = paths
            .iter()
            .enumerate()
            .flat_map(|(index, path)| (first..=path.groups.len()).map(move |step| (index, step)))
            .collect();
        let samples: Vec<usize> = steps.iter().map(|(path, _)| paths[*path].sample).collect();
        let scores = self.scores(&samples, |index, image| {
            let (path, step) = steps[index];
            paths[path].fill(step, image);
        })?;
        let mut scores = scores.into_iter();
        Ok(paths.iter().map(|path| scores.by_ref().take(path.groups.len() + 1 - first).collect()).collect())
    }
}

/// A sample to be scored: its image and its map.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Its index within the set that is explained, for its target.
    pub index: usize,
    /// `[channels, height, width]`, of volumes `[channels, slices, height, width]`, as the model takes it.
    pub image: &'a [f32],
    /// The same without channels, which are summed.
    pub map: &'a [f64],
}

/// The images of samples, as [`Engine::plain`] takes them.
pub(super) fn images<'a>(samples: &[Sample<'a>]) -> Vec<(usize, &'a [f32])> {
    samples.iter().map(|sample| (sample.index, sample.image)).collect()
}

/// Paths of samples with their own ends and groups.
pub(super) fn paths<'a>(
    samples: &[Sample<'a>],
    ends: &'a [Vec<f32>],
    groups: &'a [Groups],
    change: Change,
) -> Vec<Path<'a>> {
    samples
        .iter()
        .zip(ends)
        .zip(groups)
        .map(|((sample, end), groups)| Path {
            sample: sample.index,
            start: sample.image,
            end,
            groups,
            change,
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;

    /// A linear score: one weight per feature, times the number of the sample.
    pub(crate) struct Linear(pub(crate) Vec<f32>);

    impl Score for Linear {
        fn score(
            &self,
            input: &Tensor,
            samples: &[usize],
            _probe: MaybeProbe<'_>,
        ) -> candle_core::Result<Tensor> {
            let weight = Tensor::from_slice(&self.0, (self.0.len(), 1), input.device())?;
            let factor: Vec<f32> = samples.iter().map(|sample| *sample as f32 + 1.0).collect();
            let factor = Tensor::from_vec(factor, samples.len(), input.device())?;
            input.flatten_from(1)?.matmul(&weight)?.squeeze(1)? * factor
        }
    }

    #[test]
    fn volumes_are_given_with_their_slices() {
        struct Slices;
        impl Score for Slices {
            fn score(&self, input: &Tensor, _: &[usize], _: MaybeProbe<'_>) -> candle_core::Result<Tensor> {
                // The last slice of the last channel.
                let (_, channels, slices, _, _) = input.dims5()?;
                input.narrow(1, channels - 1, 1)?.narrow(2, slices - 1, 1)?.flatten_from(1)?.sum(1)
            }
        }
        let shape = Shape::volume(2, [3, 1, 2]);
        assert_eq!((shape.pixels(), shape.features(), shape.batch(4)), (6, 12, vec![4, 2, 3, 1, 2]));
        let evaluator = Evaluator::new(&Slices, 2);
        let image: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let engine = Engine::new(&evaluator, shape);
        assert_eq!(engine.plain(&[(0, &image), (0, &image), (0, &image)]).unwrap(), [21.0; 3]);
    }

    #[test]
    fn steps_of_samples_share_batches() {
        let shape = Shape::flat(1, 1, 3);
        let score = Linear(vec![1.0, 10.0, 100.0]);
        let groups = Groups::blocks(vec![2, 0, 1], 2);
        let one = Groups::new([[1]]);
        let (start, end) = ([1.0, 1.0, 1.0], [0.0, 2.0, 0.0]);
        let path = |sample, groups, change| Path { sample, start: &start, end: &end, groups, change };
        let paths = [
            path(0, &groups, Change::Cumulative),
            path(1, &groups, Change::Independent),
            path(0, &one, Change::Cumulative),
        ];
        for batch in [1, 2, 3, 100] {
            let evaluator = Evaluator::new(&score, batch);
            let engine = Engine::new(&evaluator, shape);
            let curves = engine.curves(&paths, Start::Included).unwrap();
            assert_eq!(curves, [vec![111.0, 10.0, 20.0], vec![222.0, 20.0, 242.0], vec![111.0, 121.0]]);
            let curves = engine.curves(&paths, Start::LeftOut).unwrap();
            assert_eq!(curves, [vec![10.0, 20.0], vec![20.0, 242.0], vec![121.0]]);
            assert_eq!(evaluator.passes().forward, 8 + 5);
        }
    }
}
