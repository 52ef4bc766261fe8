//! From chosen rows to maps, chunk by chunk.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use pipe_attribution::{
    Ablated, AttentionRule, AttributionError, Average, Cam, CamWeights, Coalitions, DeepLift, Deviation,
    Evaluator, ExcitationBackprop, ExcitationStart, Features, FullGradient, Gradient, GradientShap,
    GuidedGradient, InputXGradient, Inputs, IterativeSaliency, KernelShap, Masker, MeaningfulPerturbation,
    Method as _, Noise, Occlusion, Passes, Places, PoolRelevance, Rise, Rule, ShapleyValues, Smoothed,
    TrainedSaliency,
};
use pipe_engine::{StageContext, StageError};
use pipe_models::model::{ActivationLayout, AttentionHook, AttentionScope, CamHook};
use pipe_models::random::Key;

use super::attention::relevance;
use super::baseline::Baselines;
use super::saliency::{About, SaliencyFile, SaliencyMap, maps};
use super::selection::Explained;
use super::{Method, Params, wrapped};
use crate::images::Pixels;
use crate::model::{Head, HeadInput, Model, tensor_error};
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
pub(crate) const GREAT_GAP: f32 = 0.05;

/// Where excitation backpropagation ends: the last but one layer of a residual network.
pub(super) const EXCITED: &str = "vision.layer3";

/// The deviation of smoothing in an image of 224 pixels: that of a kernel of 65, of those that Rao, Boehle and Schiele
/// (2022) try.
const SMOOTHING_OF_224: f64 = 16.0;

/// Everything that a map is made from.
pub(super) struct Explanation<'a, 'c> {
    pub(super) params: &'a Params,
    pub(super) model: &'a Model,
    pub(super) images: &'a dyn Pixels,
    pub(super) baselines: &'a Baselines,
    pub(super) context: &'a StageContext<'c>,
    /// The network of `trained_saliency`, if it is given.
    pub(super) masker: Option<Arc<Masker>>,
    /// Channels of the layer of class activation maps, once they were counted.
    pub(super) channels: OnceCell<usize>,
}

/// A method, or why there is none for the model.
pub(super) type Applicable = Result<Box<dyn pipe_attribution::Method>, String>;

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
        for chunk in rows.chunks(self.at_a_time()) {
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
                let image = &self.images.ids()[row.image];
                let about = About { image: image.clone(), question: None };
                file.add(row.caption.as_ref().unwrap_or(image), about, row.class, row.correct, outcome)?;
            }
        }
        Ok(counts)
    }

    /// Rows of a pass through the model.
    fn at_a_time(&self) -> usize {
        self.images.at_a_time(self.params.batch).max(1) as usize
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
        // The paper's is a probability; a logit has no scale on which masks could be averaged.
        let score = self.params.method.explained(score);
        let method = match self.method(images, targets)? {
            Ok(method) => method,
            Err(reason) => return Ok(vec![Err(reason); images.len()]),
        };
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
        let evaluator = Evaluator::new(&score, self.at_a_time()).observed(&observer);
        let attribution = method.attribute(&evaluator, &inputs);
        let passes = evaluator.passes();
        counts.passes.forward += passes.forward;
        counts.passes.backward += passes.backward;
        let attribution = match attribution {
            Err(AttributionError::NotApplicable(reason)) => return Ok(vec![Err(reason); images.len()]),
            other => other.map_err(attribution_error)?,
        };
        maps(&attribution, self.params.reduction(), &self.images.map_shape()).map_err(tensor_error)
    }

    /// The method with the baselines of these images and everything that is wrapped around it, or why the model has
    /// none.
    pub(super) fn method(&self, images: &[usize], targets: &[ClassTarget]) -> Result<Applicable, StageError> {
        let side = self.model.image_tower()?.geometry().image[1] as f64;
        let sigma = self.params.smoothing.unwrap_or(SMOOTHING_OF_224 * side / 224.0);
        let bare = self.bare(images, targets)?;
        Ok(bare.map(|method| wrapped(method, &self.params.wrap, &|| self.noise(images), sigma)))
    }

    /// The method alone.
    fn bare(&self, images: &[usize], targets: &[ClassTarget]) -> Result<Applicable, StageError> {
        let params = self.params;
        let baseline = || self.baselines.of(params, images);
        let tower = self.model.image_tower()?;
        let cam = |weights| Cam::of_tower(tower.cam_hook(), &tower.geometry(), weights);
        let geometry = tower.geometry();
        if geometry.depth.is_some() && params.method.is_of_flat_images() {
            let reason = format!("`{}` is defined here for flat images", params.method.name());
            return Ok(Err(reason));
        }
        let blocks = || {
            let shape = self.images.map_shape();
            Features::grid(&shape, &vec![params.blocks as usize; shape.len()]).map_err(attribution_error)
        };
        let smoothed = |average| Smoothed { method: Gradient, noise: self.noise(images), average };
        let method: Box<dyn pipe_attribution::Method> = match params.method {
            Method::Gradient => Box::new(Gradient),
            Method::InputXGradient => Box::new(InputXGradient { baseline: baseline()? }),
            Method::IntegratedGradients => params.integration().method(baseline()?),
            Method::Occlusion => {
                let [side, stride] =
                    window([params.window, params.stride], geometry.image[0], geometry.patch[0])?;
                let channels = if params.per_channel { 1 } else { geometry.channels };
                let (mut windows, mut strides) = (vec![channels], vec![channels]);
                if let Some(depth) = geometry.depth {
                    let [slices, apart] =
                        window([params.slices, params.slice_stride], depth.slices, depth.patch)?;
                    windows.push(slices);
                    strides.push(apart);
                }
                windows.extend([side; 2]);
                strides.extend([stride; 2]);
                Box::new(Occlusion { window: windows, strides, baseline: baseline()? })
            }
            Method::SmoothGrad => Box::new(smoothed(Average::Mean)),
            Method::SmoothGradSquared => Box::new(smoothed(Average::MeanOfSquares)),
            Method::VarGrad => Box::new(smoothed(Average::Variance)),
            Method::GuidedBackpropagation => Box::new(GuidedGradient { rule: Rule::Guided }),
            Method::Deconvolution => Box::new(GuidedGradient { rule: Rule::Deconvolution }),
            Method::DeepLift => Box::new(DeepLift { baseline: baseline()?, ..DeepLift::default() }),
            Method::ExcitationBackpropagation | Method::ContrastiveExcitationBackpropagation => {
                let CamHook { name, layout } = tower.cam_hook();
                if layout != ActivationLayout::Map {
                    let reason = "excitation backpropagation is defined for convolutional networks with ReLU";
                    return Ok(Err(reason.to_owned()));
                }
                let is_contrastive = params.method == Method::ContrastiveExcitationBackpropagation;
                Box::new(ExcitationBackprop {
                    layer: EXCITED.to_owned(),
                    contrast: is_contrastive.then(|| name.clone()),
                    start: ExcitationStart::Activation(name),
                })
            }
            Method::FullGradient => Box::new(FullGradient::default()),
            Method::Cam => match self.class_weights(targets)? {
                Ok(weights) => Box::new(cam(CamWeights::Given(weights))),
                Err(reason) => return Ok(Err(reason)),
            },
            Method::GradCam => Box::new(cam(CamWeights::Gradient)),
            Method::GradCamPlusPlus => Box::new(cam(CamWeights::GradientPlusPlus)),
            Method::LayerCam => Box::new(cam(CamWeights::Layer)),
            Method::ScoreCam => Box::new(self.counted(cam(CamWeights::Score), images)?),
            Method::AblationCam => {
                Box::new(self.counted(cam(CamWeights::AblationBySize(Ablated::Zero)), images)?)
            }
            Method::Rise => {
                let key = Key::derive("pipe rise/1", params.seed as u64, &[]);
                Box::new(Rise {
                    grid: params.cells as usize,
                    baseline: baseline()?,
                    ..Rise::new(params.masks as usize, key)
                })
            }
            Method::GradientShap => Box::new(GradientShap {
                pool: vec![baseline()?],
                noise: self.noise(images),
                places: Places::Uniform(self.keys("pipe attribution places/1", images)),
            }),
            Method::ShapleyValues => Box::new(ShapleyValues { features: blocks()?, baseline: baseline()? }),
            Method::KernelShap => Box::new(KernelShap {
                features: blocks()?,
                baseline: baseline()?,
                coalitions: Coalitions::Drawn {
                    samples: params.coalitions as usize,
                    keys: self.keys("pipe attribution coalitions/1", images),
                },
            }),
            Method::MeaningfulPerturbation => {
                let side = tower.geometry().image[0];
                let keys = self.keys("pipe attribution jitter/1", images);
                Box::new(MeaningfulPerturbation {
                    baseline: baseline()?,
                    steps: params.descent_steps as usize,
                    ..MeaningfulPerturbation::new(side, keys)
                })
            }
            Method::IterativeSaliency | Method::TrainedSaliency if !self.explains_leads()? => {
                let reason = "the method explains by how much a class leads over the best other of several that \
                              exclude each other";
                return Ok(Err(reason.to_owned()));
            }
            Method::TrainedSaliency => match &self.masker {
                Some(masker) => Box::new(TrainedSaliency {
                    masker: Arc::clone(masker),
                    classes: targets.iter().map(|target| target.class as u32).collect(),
                }),
                None => {
                    let reason = "the network that finds the mask is no input here: a stage `masker` trains it for one \
                                  classifier as it is, without random weights";
                    return Ok(Err(reason.to_owned()));
                }
            },
            Method::IterativeSaliency => {
                let keys = self.keys("pipe attribution saliency/1", images);
                Box::new(IterativeSaliency {
                    steps: params.descent_steps as usize,
                    ..IterativeSaliency::new(keys)
                })
            }
            Method::AttentionPool => match tower.attention_hooks().as_slice() {
                [AttentionHook { name, scope: AttentionScope::Pool }] => {
                    Box::new(PoolRelevance { layer: name.clone(), grid: geometry.grid().to_vec() })
                }
                _ => {
                    let reason = "the model does not pool its last map by attention";
                    return Ok(Err(reason.to_owned()));
                }
            },
            Method::AttentionRollout | Method::AttentionRelevance => {
                let rule = match params.method {
                    Method::AttentionRollout => AttentionRule::Rollout,
                    _ => AttentionRule::Gradient,
                };
                match relevance(tower, rule, params.last_layers) {
                    Ok(method) => method,
                    Err(reason) => return Ok(Err(reason)),
                }
            }
        };
        Ok(Ok(method))
    }

    /// Whether there is a best other class that a class leads over.
    fn explains_leads(&self) -> Result<bool, StageError> {
        let description = &self.model.head()?.description;
        let is_choice = !description.is_multi_label() && description.classes.len() > 1;
        Ok(is_choice && self.params.against.is_none())
    }

    /// The weights of each target in the linear classifier, `[targets, width]`, or why they weight no activation.
    fn class_weights(&self, targets: &[ClassTarget]) -> Result<Result<Tensor, String>, StageError> {
        if !self.model.image_tower()?.pools_by_mean() {
            let reason = "a class activation map is that of a linear classifier on the mean over the last map, and \
                          something else stands between the last map and this classifier; `grad_cam` is its \
                          generalisation";
            return Ok(Err(reason.to_owned()));
        }
        let head = self.model.head()?;
        if head.input != HeadInput::Embedding {
            let reason = "the classifier sees embeddings of unit length: it is not linear in the last map; `grad_cam` \
                          is defined there";
            return Ok(Err(reason.to_owned()));
        }
        weights_of(head, targets).map(Ok).map_err(tensor_error)
    }

    /// A class activation map that takes a pass per channel, with their number: what it will cost. One pass the
    /// first time.
    fn counted(&self, cam: Cam, images: &[usize]) -> Result<Cam, StageError> {
        let channels = match self.channels.get() {
            Some(channels) => *channels,
            None => {
                let inputs = Inputs::new(&self.images.batch(&images[..1])?).map_err(attribution_error)?;
                let target = [ClassTarget { class: 0, against: None }];
                let score = ClassScore::new(self.model, &target)?;
                let channels =
                    cam.channels_of(&Evaluator::new(&score, 1), &inputs).map_err(attribution_error)?;
                *self.channels.get_or_init(|| channels)
            }
        };
        Ok(Cam { channels: Some(channels), ..cam })
    }

    fn noise(&self, images: &[usize]) -> Noise {
        Noise::Normal {
            draws: self.params.draws as usize,
            deviation: Deviation::OfRange(self.params.noise),
            keys: self.keys("pipe attribution noise/1", images),
        }
    }

    /// Keys that depend on an image's id alone: neither on its place nor on those beside it.
    fn keys(&self, domain: &str, images: &[usize]) -> Vec<Key> {
        let key = |image: &usize| {
            let id = self.images.ids()[*image].as_str();
            Key::derive(domain, self.params.seed as u64, &[id.into()])
        };
        images.iter().map(key).collect()
    }
}

/// The rows of the targets in a head, minus those of what each is measured against.
fn weights_of(head: &Head, targets: &[ClassTarget]) -> candle_core::Result<Tensor> {
    let weights: Vec<Vec<f32>> = head.weight.detach().to_dtype(DType::F32)?.to_vec2()?;
    let width = head.weight.dims2()?.1;
    let values: Vec<f32> = targets
        .iter()
        .flat_map(|target| {
            let against = target.against.map(|class| weights[class].as_slice());
            let weight = move |(place, weight): (usize, &f32)| weight - against.map_or(0.0, |row| row[place]);
            weights[target.class].iter().enumerate().map(weight)
        })
        .collect();
    Tensor::from_vec(values, (targets.len(), width), head.weight.device())
}

/// Window and stride of occlusion along an axis, as far as they are `given`: 32 and 16 pixels at 224 in
/// proportion, in whole patches, so that no window cuts one.
///
/// # Errors
/// If they do not fit an image of this side.
pub(crate) fn window(given: [Option<i64>; 2], side: usize, patch: usize) -> Result<[usize; 2], StageError> {
    let patches = |pixels_of_224: f64| {
        let patches = (pixels_of_224 * side as f64 / 224.0 / patch as f64).round().max(1.0);
        patches as usize * patch
    };
    let window = given[0].map_or_else(|| patches(32.0), |window| window as usize);
    let stride = given[1].map_or_else(|| patches(16.0).min(window), |stride| stride as usize);
    if window > side || stride > window {
        let message = format!(
            "windows of {window} pixels that stand {stride} apart do not fit an image of {side}: `window` has to \
             lie within 1 and {side}, `stride` within 1 and the window"
        );
        return Err(StageError::failed(message));
    }
    Ok([window, stride])
}

/// A stop is no failure, and tensor errors have no place that the user knows.
pub(crate) fn attribution_error(error: AttributionError) -> StageError {
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
        let sizes = |side: usize, patch: usize| window([None; 2], side, patch).unwrap();
        assert_eq!(sizes(224, 16), [32, 16]);
        assert_eq!(sizes(224, 32), [32, 32]);
        assert_eq!(sizes(224, 14), [28, 14]);
        assert_eq!(sizes(48, 8), [8, 8]);
        assert_eq!(sizes(48, 4), [8, 4]);
    }

    #[test]
    fn windows_that_do_not_fit_are_refused() {
        let with = |window, stride| super::window([window, stride], 48, 8);
        assert_eq!(with(Some(5), None).unwrap(), [5, 5]);
        assert!(with(Some(49), None).is_err());
        assert!(with(None, Some(9)).is_err());
    }
}
