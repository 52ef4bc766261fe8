//! What an answer loses without windows of the image and without words of the question.

use pipe_attribution::{Absolute, Baseline, Method as _, Occlusion};
use pipe_engine::StageError;

use super::explanation::{Counts, Parts, Samples};
use super::score::Layout;
use super::shares::{presences, whole};
use super::shown::Pieces;
use crate::attribute::{Reduction, Wrapper, attribution_error, maps, window};
use crate::model::tensor_error;

impl Samples<'_, '_> {
    /// Windows of the image before the whole question, and words of the question before the whole image.
    ///
    /// # Errors
    /// If the model fails or the run is stopped.
    pub(super) fn occlusion(&self, counts: &mut Counts) -> Result<Vec<Parts>, StageError> {
        let (params, pictures) = (self.params(), self.explanation.pictures);
        let (side, samples) = (pictures.side, self.pieces.len());
        let layout = |grid: [usize; 2], pieces: &Pieces| Layout { grid, pieces: pieces.words.clone() };
        let windows = self.presence(self.pieces.iter().map(|pieces| layout([side; 2], pieces)).collect())?;
        let [window, stride] = window([params.window, params.stride], side, pictures.patch)?;
        let method = Occlusion {
            window: vec![1, window, window],
            strides: vec![1, stride, stride],
            baseline: Baseline::Zero,
        };
        let is_absolute = params.wrap.contains(&Wrapper::Absolute);
        let method: Box<dyn pipe_attribution::Method> =
            if is_absolute { Box::new(Absolute(method)) } else { Box::new(method) };
        let image = whole(samples, side)?;
        let of_image = self.counted(&windows, counts, |evaluator| {
            method.attribute(evaluator, &image).map_err(attribution_error)
        })?;
        let maps = maps(&of_image, Reduction::One, &[side; 2]).map_err(tensor_error)?;
        // The image as one cell, which is there.
        let layouts: Vec<Layout> = self.pieces.iter().map(|pieces| layout([1, 1], pieces)).collect();
        let mut rows = Vec::new();
        for (sample, layout) in layouts.iter().enumerate() {
            rows.extend((0..layout.pieces.len()).map(|word| {
                let present = (0..layout.len()).map(|place| place != layout.cells() + word);
                (sample, present.collect())
            }));
        }
        let without =
            self.counted(&self.presence(layouts)?, counts, |evaluator| presences(evaluator, &rows))?;
        let mut without = without.into_iter();
        Ok(maps
            .into_iter()
            .enumerate()
            .map(|(row, map)| {
                let falls = without.by_ref().take(self.pieces[row].words.len());
                let falls = falls.map(|score| of_image.scores[row] - score);
                let falls = falls.map(|fall| if is_absolute { fall.abs() } else { fall }).collect();
                let words = self.words(row, falls, &of_image);
                Parts { map, words, gradient_share: None, shares: None, removed: None }
            })
            .collect())
    }
}
