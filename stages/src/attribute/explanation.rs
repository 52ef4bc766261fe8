//! From chosen rows to maps, chunk by chunk.

use std::ops::ControlFlow;

use pipe_attribution::{
    AttributionError, Evaluator, Gradient, InputXGradient, Inputs, IntegratedGradients, Method as _,
    Occlusion, Passes,
};
use pipe_engine::{StageContext, StageError};
use pipe_models::PatchGeometry;

use super::baseline::Baselines;
use super::saliency::{SaliencyFile, SaliencyMap, maps};
use super::selection::Explained;
use super::{Method, Params};
use crate::images::ImageSet;
use crate::model::{Model, tensor_error};
use crate::target::{ClassScore, ClassTarget};

/// What was counted on the way.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) passes: Passes,
    pub(super) maps: usize,
    pub(super) not_applicable: usize,
    pub(super) all_zero: usize,
    /// Maps whose sum misses the difference of scores by more than [`GREAT_GAP`].
    pub(super) incomplete: usize,
}

/// A gap beyond this share of the difference of scores is worth a warning.
const GREAT_GAP: f32 = 0.05;

/// Everything that a map is made from.
pub(super) struct Explanation<'a, 'c> {
    pub(super) params: &'a Params,
    pub(super) model: &'a Model,
    pub(super) images: &'a ImageSet,
    pub(super) baselines: &'a Baselines,
    pub(super) context: &'a StageContext<'c>,
}

/// A map, or why there is none.
type Outcome = Result<SaliencyMap, String>;

impl Explanation<'_, '_> {
    /// Writes a row per element of `rows`, in their order.
    pub(super) fn write(
        &self,
        rows: &[Explained],
        file: &mut SaliencyFile<'_>,
    ) -> Result<Counts, StageError> {
        let mut counts = Counts::default();
        for chunk in rows.chunks(self.params.batch.max(1) as usize) {
            self.context.check_cancelled()?;
            let outcomes = self.outcomes(chunk, rows.len(), &mut counts)?;
            for (row, outcome) in chunk.iter().zip(outcomes) {
                match &outcome {
                    Ok(map) => {
                        counts.maps += 1;
                        counts.all_zero += usize::from(map.is_all_zero());
                        let gap = map.relative_gap();
                        counts.incomplete += usize::from(gap.is_some_and(|gap| gap > GREAT_GAP));
                    }
                    Err(_) => counts.not_applicable += 1,
                }
                file.add(&self.images.ids[row.image], row.class, outcome)?;
            }
        }
        Ok(counts)
    }

    fn outcomes(
        &self,
        rows: &[Explained],
        total: usize,
        counts: &mut Counts,
    ) -> Result<Vec<Outcome>, StageError> {
        let targets: Vec<Result<ClassTarget, String>> = rows
            .iter()
            .map(|row| {
                let target = row.target.clone()?;
                self.baselines.check(row.image)?;
                Ok(target)
            })
            .collect();
        let mut images = Vec::new();
        let mut applicable = Vec::new();
        for (row, target) in rows.iter().zip(&targets) {
            if let Ok(target) = target {
                images.push(row.image);
                applicable.push(*target);
            }
        }
        let computed =
            if images.is_empty() { Vec::new() } else { self.explain(&images, &applicable, total, counts)? };
        let mut computed = computed.into_iter();
        let missing = || Err("the method gave no map".to_owned());
        Ok(targets
            .into_iter()
            .map(|target| target.and_then(|_| computed.next().unwrap_or_else(missing)))
            .collect())
    }

    fn explain(
        &self,
        images: &[usize],
        targets: &[ClassTarget],
        total: usize,
        counts: &mut Counts,
    ) -> Result<Vec<Outcome>, StageError> {
        let inputs = Inputs::new(&self.images.batch(images)?).map_err(attribution_error)?;
        let score = ClassScore::new(self.model, targets)?;
        let method = self.method(images)?;
        let cost = method.cost(inputs.row_shape()).map_err(attribution_error)?.forward.max(1);
        let done = (counts.maps + counts.not_applicable) as u64;
        let before = counts.passes.forward;
        let observer = |passes: Passes| {
            let figures = [("forward passes", (before + passes.forward) as f64)];
            self.context.progress(done + passes.forward / cost, total as u64, "maps", &figures);
            match self.context.check_cancelled() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let evaluator = Evaluator::new(&score, self.params.batch.max(1) as usize).observed(&observer);
        let attribution = method.attribute(&evaluator, &inputs).map_err(attribution_error)?;
        let passes = evaluator.passes();
        counts.passes.forward += passes.forward;
        counts.passes.backward += passes.backward;
        maps(&attribution, self.params.method).map_err(tensor_error)
    }

    /// The method with the baselines of these images.
    fn method(&self, images: &[usize]) -> Result<Box<dyn pipe_attribution::Method>, StageError> {
        let params = self.params;
        let baseline = || self.baselines.of(params, images);
        Ok(match params.method {
            Method::Gradient => Box::new(Gradient),
            Method::InputXGradient => Box::new(InputXGradient { baseline: baseline()? }),
            Method::IntegratedGradients => Box::new(IntegratedGradients {
                steps: params.steps.max(1) as usize,
                quadrature: params.quadrature.into(),
                baseline: baseline()?,
                multiply_by_inputs: true,
            }),
            Method::Occlusion => {
                let geometry = self.model.image_tower()?.geometry();
                let (window, stride) = window(params, geometry)?;
                Box::new(Occlusion {
                    window: vec![geometry.channels, window, window],
                    strides: vec![geometry.channels, stride, stride],
                    baseline: baseline()?,
                })
            }
        })
    }
}

/// Side and stride of the occluding window: 32 and 16 pixels at 224 in proportion, in whole patches, so
/// that no window cuts one.
fn window(params: &Params, geometry: PatchGeometry) -> Result<(usize, usize), StageError> {
    let (side, patch) = (geometry.image[0], geometry.patch[0]);
    let patches = |pixels_of_224: f64| {
        let patches = (pixels_of_224 * side as f64 / 224.0 / patch as f64).round().max(1.0);
        patches as usize * patch
    };
    let window = params.window.map_or_else(|| patches(32.0), |window| window as usize);
    let stride = params.stride.map_or_else(|| patches(16.0).min(window), |stride| stride as usize);
    if window > side || stride > window {
        let message = format!(
            "windows of {window} pixels that stand {stride} apart do not fit an image of {side}: `window` has to \
             lie within 1 and {side}, `stride` within 1 and the window"
        );
        return Err(StageError::failed(message));
    }
    Ok((window, stride))
}

fn attribution_error(error: AttributionError) -> StageError {
    match error {
        AttributionError::Stopped => StageError::Cancelled,
        AttributionError::Tensor(error) => tensor_error(error),
        other => StageError::failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_patches_in_proportion_to_the_image() {
        let sizes = |side: usize, patch: usize| {
            let geometry = PatchGeometry {
                channels: 3,
                depth: None,
                image: [side, side],
                patch: [patch, patch],
                prefix_tokens: 1,
            };
            window(&Params::default(), geometry).unwrap()
        };
        assert_eq!(sizes(224, 16), (32, 16));
        assert_eq!(sizes(224, 32), (32, 32));
        assert_eq!(sizes(224, 14), (28, 14));
        assert_eq!(sizes(48, 8), (8, 8));
        assert_eq!(sizes(48, 4), (8, 4));
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let geometry =
            PatchGeometry { channels: 3, depth: None, image: [48, 48], patch: [8, 8], prefix_tokens: 1 };
        let with = |window, stride| super::window(&Params { window, stride, ..Params::default() }, geometry);
        assert_eq!(with(Some(5), None).unwrap(), (5, 5));
        assert!(with(Some(49), None).is_err());
        assert!(with(None, Some(9)).is_err());
    }
}
