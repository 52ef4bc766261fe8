//! Deletion and insertion: the model is asked about changed images.

use std::cell::Cell;
use std::ops::ControlFlow;

use pipe_attribution::metrics::{Engine, Sample, Shape, area, deletion, insertion};
use pipe_attribution::{AttributionError, Evaluator, Passes};
use pipe_engine::{StageContext, StageError};

use super::metric::Metric;
use super::references::References;
use crate::images::ImageSet;
use crate::model::tensor_error;
use crate::target::ClassScore;

/// Samples whose images and curves are in memory at once.
const CHUNK: usize = 64;

/// One map that is scored.
pub(super) struct Asked<'a> {
    /// The index of its subject: chooses the target.
    pub(super) subject: usize,
    /// The row of its image.
    pub(super) image: usize,
    pub(super) map: &'a [f64],
}

/// What the model is asked with.
pub(super) struct Faithfulness<'a, 'c> {
    /// The probability of each subject's class.
    pub(super) score: &'a ClassScore<'a>,
    pub(super) images: &'a ImageSet,
    /// What removed pixels become.
    pub(super) removed: &'a References,
    pub(super) shape: Shape,
    /// Steps of a curve.
    pub(super) steps: usize,
    pub(super) batch: usize,
    pub(super) context: &'a StageContext<'c>,
    /// Images that the model was asked about so far, and will have been in the end.
    pub(super) done: &'a Cell<u64>,
    pub(super) total: u64,
}

impl Faithfulness<'_, '_> {
    /// Pixels that change at a step: a curve has at most `steps` of them.
    fn pixels_per_step(&self) -> usize {
        self.shape.pixels().div_ceil(self.steps.max(1))
    }

    /// Images that the model is asked about for one map and metric.
    pub(super) fn images_per_curve(pixels: usize, steps: usize) -> u64 {
        let per_step = pixels.div_ceil(steps.max(1)).max(1);
        pixels.div_ceil(per_step) as u64 + 1
    }

    /// The value of a metric for each map.
    pub(super) fn values(&self, metric: Metric, maps: &[Asked<'_>]) -> Result<Vec<f64>, StageError> {
        let mut values = Vec::with_capacity(maps.len());
        for chunk in maps.chunks(CHUNK) {
            self.context.check_cancelled()?;
            values.extend(self.of_chunk(metric, chunk)?);
        }
        Ok(values)
    }

    fn of_chunk(&self, metric: Metric, maps: &[Asked<'_>]) -> Result<Vec<f64>, StageError> {
        let rows: Vec<usize> = maps.iter().map(|asked| asked.image).collect();
        let pixels: Vec<f32> = self
            .images
            .batch(&rows)?
            .flatten_all()
            .and_then(|pixels| pixels.to_vec1())
            .map_err(tensor_error)?;
        let samples: Vec<Sample<'_>> = maps
            .iter()
            .zip(pixels.chunks_exact(self.shape.features()))
            .map(|(asked, image)| Sample { index: asked.subject, image, map: asked.map })
            .collect();
        let before = self.done.get();
        let observer = |passes: Passes| {
            let done = before + passes.forward;
            self.context.progress(done, self.total.max(done), "images", &[]);
            match self.context.host().cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let evaluator = Evaluator::new(self.score, self.batch).observed(&observer);
        let engine = Engine::new(&evaluator, self.shape);
        let curves = match metric {
            Metric::Insertion => insertion(&engine, &samples, self.pixels_per_step()),
            _ => {
                let ends: Result<Vec<Vec<f32>>, StageError> =
                    rows.iter().map(|row| self.removed.image(*row)).collect();
                deletion(&engine, &samples, &ends?, self.pixels_per_step())
            }
        };
        self.done.set(before + evaluator.passes().forward);
        let curves = curves.map_err(|error| match error {
            AttributionError::Stopped => StageError::Cancelled,
            AttributionError::Tensor(error) => tensor_error(error),
            other => StageError::failed(other.to_string()),
        })?;
        Ok(curves.iter().map(|curve| area(curve)).collect())
    }
}
