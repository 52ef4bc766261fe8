//! Metrics that explain again: changed images, changed models, another class.

mod randomisation;
mod robustness;

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::metrics::{
    Baseline, Drawn, Engine, Part, Perturbation, Preparation, Sample, Scale, Shape, Value, completeness,
    completeness_quantus, input_invariance, range,
};
use pipe_attribution::{AttributionError, Evaluator, Passes};
use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::faithfulness::{Asked, CHUNK, pixels, stage_error};
use super::layers::RandomLayers;
use super::metric::Metric;
use super::{Mode, Params};
use crate::attribute::{Again, Changed};
use crate::images::{Pixels, count_passes};
use crate::model::{DEVICE, Model, tensor_error};
use crate::target::ClassTarget;

/// Bins of the histogram of efficient parameter randomisation.
pub(super) const BINS: usize = 100;
/// Translations of continuity in Quantus.
pub(super) const QUANTUS_TRANSLATIONS: usize = 28;
/// Smooth parameter randomisation: the deviation of the noise as a share of the image's range.
pub(super) const SMOOTH_NOISE: f64 = 0.1;
/// What input invariance adds to every value.
const SHIFT: f32 = -1.0;
/// A map that is explained again may differ from the stored one by this share of its norm: rounding, in other
/// batches.
const SAME: f64 = 0.01;

/// The noise of a metric of robustness: of the image's range, but in Quantus.
pub(super) fn noise_of(metric: Metric, params: &Params) -> Perturbation {
    let noise = params.noise;
    match (metric, params.mode == Mode::Quantus) {
        (Metric::LocalLipschitzEstimate, true) => Perturbation::Normal { deviation: 0.1 },
        (Metric::LocalLipschitzEstimate, false) => Perturbation::Normal { deviation: noise },
        (Metric::MaxSensitivity | Metric::AvgSensitivity, true) => {
            Perturbation::Uniform { low: -0.2, high: 0.2 }
        }
        (_, true) => Perturbation::Uniform { low: 0.02, high: 0.2 },
        (_, false) => Perturbation::Uniform { low: -noise, high: noise },
    }
}

/// A value, or why there is none.
type Outcome = Result<f64, String>;
type Images<'a> = [(usize, &'a [f32])];
type Vectors = pipe_attribution::Result<Vec<Vec<f64>>>;

/// What is explained again, and with what.
pub(super) struct Explaining<'a, 'c> {
    pub(super) again: &'a Again<'a, 'c>,
    pub(super) model: &'a Model,
    /// Whether the classes of the model are texts.
    pub(super) of_texts: bool,
    pub(super) layers: &'a RandomLayers<'a>,
    pub(super) images: &'a dyn Pixels,
    pub(super) shape: Shape,
    pub(super) params: &'a Params,
    pub(super) context: &'a StageContext<'c>,
    /// Images that were explained so far, and will have been in the end.
    pub(super) done: &'a Cell<u64>,
    pub(super) total: u64,
}

impl Explaining<'_, '_> {
    /// Images that are explained for one map, in a model of so many layers.
    pub(super) fn images_of(metric: Metric, params: &Params, layers: usize) -> u64 {
        let (draws, layers) = (params.draws.max(1) as u64, layers as u64);
        match metric {
            Metric::ParameterRandomisation | Metric::EntropyCorrelation => layers,
            Metric::SmoothParameterRandomisation => (layers + 1) * (draws + 1),
            Metric::Completeness => 2,
            Metric::RandomLogit | Metric::InputInvariance | Metric::EfficientParameterRandomisation => 1,
            _ => draws,
        }
    }

    /// The values of each metric for each map. `classes[i]` is what map i explains.
    pub(super) fn values(
        &self,
        metrics: &[Metric],
        maps: &[Asked<'_>],
        classes: &[usize],
    ) -> Result<Vec<ByMap>, StageError> {
        // What Quantus normalises together has to be together.
        let size = match self.params.mode {
            Mode::Quantus => maps.len().max(1),
            Mode::Reference => self.images.at_a_time(CHUNK as i64) as usize,
        };
        let mut values: Vec<ByMap> = metrics
            .iter()
            .map(|metric| {
                let steps = if metric.is_of_layers() { self.layers.len() } else { 0 };
                ByMap {
                    values: Vec::with_capacity(maps.len()),
                    kept: Vec::new(),
                    steps: vec![Vec::new(); steps],
                }
            })
            .collect();
        for (chunk, classes) in maps.chunks(size).zip(classes.chunks(size)) {
            self.context.check_cancelled()?;
            let places: Vec<usize> = chunk.iter().map(|asked| asked.image).collect();
            let pixels = pixels(self.images, &places)?;
            let targets: Vec<ClassTarget> = classes.iter().map(|class| self.again.target(*class)).collect();
            let samples: Vec<Sample<'_>> = chunk
                .iter()
                .zip(pixels.chunks_exact(self.shape.features()))
                .enumerate()
                .map(|(index, (asked, image))| Sample { index, image, map: asked.map })
                .collect();
            let chunk = Chunk {
                setting: self,
                samples: &samples,
                places: &places,
                targets: &targets,
                failure: RefCell::default(),
                sensitivity: RefCell::default(),
                kept: RefCell::default(),
                layers: RefCell::default(),
            };
            let unlike = chunk.is_another()?;
            for (metric, values) in metrics.iter().zip(&mut values) {
                let outcomes = match &unlike {
                    Some(reason) => vec![Err(reason.clone()); samples.len()],
                    None => chunk.values(*metric)?,
                };
                // Without layers there are reasons only.
                let layers = chunk.layers.take();
                for (step, own) in values.steps.iter_mut().enumerate() {
                    own.extend_from_slice(layers.get(step).unwrap_or(&outcomes));
                }
                let kept = chunk.kept.take().into_iter().map(Some);
                values.kept.extend(kept.chain(std::iter::repeat(None)).take(outcomes.len()));
                values.values.extend(outcomes);
            }
        }
        Ok(values)
    }
}

/// What a metric gave for each map.
#[derive(Default)]
pub(super) struct ByMap {
    pub(super) values: Vec<Outcome>,
    /// Of metrics that draw changed images, for each map: the share of draws that left the predicted class, if that
    /// matters.
    pub(super) kept: Vec<Option<f64>>,
    /// `[step][map]`: metrics of parameter randomisation have a value for each further layer.
    pub(super) steps: Vec<Vec<Outcome>>,
}

/// The samples that are explained together; they are numbered within the chunk.
struct Chunk<'a, 'e, 'c> {
    setting: &'a Explaining<'e, 'c>,
    samples: &'a [Sample<'a>],
    /// The place of each sample in the image set.
    places: &'a [usize],
    targets: &'a [ClassTarget],
    /// What went wrong inside a call of the library.
    failure: RefCell<Option<StageError>>,
    /// Max- and avg-sensitivity are read off the same draws.
    sensitivity: RefCell<Option<Drawn>>,
    /// The share of draws of each sample that left the predicted class, of the metric that was computed last; empty where
    /// that does not matter.
    kept: RefCell<Vec<f64>>,
    /// `[step][sample]`, of the metric of parameter randomisation that was computed last.
    layers: RefCell<Vec<Vec<Outcome>>>,
}

impl Chunk<'_, '_, '_> {
    fn params(&self) -> &Params {
        self.setting.params
    }

    /// Images of a pass through the model.
    fn batch(&self) -> usize {
        self.setting.images.at_a_time(self.params().batch).max(1) as usize
    }

    fn is_quantus(&self) -> bool {
        self.params().mode == Mode::Quantus
    }

    fn mode(&self) -> pipe_attribution::metrics::Mode {
        self.params().mode.into()
    }

    /// Remembers an error of the stage on its way through the library.
    fn carried<T>(&self, result: Result<T, StageError>) -> pipe_attribution::Result<T> {
        result.map_err(|error| {
            *self.failure.borrow_mut() = Some(error);
            AttributionError::Stopped
        })
    }

    /// The maps of changed images by a model.
    fn explain(
        &self,
        model: &Model,
        targets: &[ClassTarget],
        shift: Option<f32>,
        images: &Images<'_>,
    ) -> Vectors {
        let changed = Changed { places: self.places, targets, images, shift };
        let maps = self.carried(self.setting.again.explain(model, changed))?;
        let done = self.setting.done.get() + images.len() as u64;
        self.setting.done.set(done);
        self.setting.context.progress(done, self.setting.total.max(done), "images", &[]);
        maps.map_err(AttributionError::NotApplicable)
    }

    fn explain_again(&self, images: &Images<'_>) -> Vectors {
        self.explain(self.setting.model, self.targets, None, images)
    }

    /// The maps of a model with layers drawn anew.
    fn explain_random(&self, layers: &[usize], images: &Images<'_>) -> Vectors {
        let model = self.carried(self.setting.layers.model(layers))?;
        self.explain(&model, self.targets, None, images)
    }

    /// Rows of a function of pixels as the model takes them, flat.
    fn rows_of(
        &self,
        images: &Images<'_>,
        of: impl Fn(&Tensor) -> Result<Tensor, StageError>,
    ) -> Result<Vec<Vec<f64>>, StageError> {
        let mut rows = Vec::with_capacity(images.len());
        for part in images.chunks(self.batch()) {
            self.setting.context.check_cancelled()?;
            let values: Vec<f32> = part.iter().flat_map(|(_, image)| image.iter().copied()).collect();
            let pixels = Tensor::from_vec(values, self.setting.shape.batch(part.len()), &DEVICE);
            let rows_of_part = of(&pixels.map_err(tensor_error)?)?.flatten_from(1);
            let values: Vec<Vec<f32>> = rows_of_part.and_then(|rows| rows.to_vec2()).map_err(tensor_error)?;
            rows.extend(values.into_iter().map(|row| row.into_iter().map(f64::from).collect::<Vec<_>>()));
        }
        count_passes(self.setting.context, Passes { forward: images.len() as u64, backward: 0 });
        Ok(rows)
    }

    /// The probabilities of all classes by a model with layers drawn anew.
    fn random_probabilities(&self, layers: &[usize], images: &Images<'_>) -> Vectors {
        let model = self.carried(self.setting.layers.model(layers))?;
        let mut rows = self.carried(self.rows_of(images, |pixels| model.logits(pixels, None)))?;
        for row in &mut rows {
            let greatest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.iter_mut().for_each(|logit| *logit = libm::exp(*logit - greatest));
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|power| *power /= sum);
        }
        Ok(rows)
    }

    fn logits(&self, images: &Images<'_>) -> Vectors {
        self.carried(self.rows_of(images, |pixels| self.setting.model.logits(pixels, None)))
    }

    fn representations(&self, images: &Images<'_>) -> Vectors {
        self.carried(self.rows_of(images, |pixels| {
            self.setting.model.image_tower()?.features(pixels, None).map_err(tensor_error)
        }))
    }

    fn images(&self) -> Vec<(usize, &[f32])> {
        self.samples.iter().map(|sample| (sample.index, sample.image)).collect()
    }

    /// Why the first map is not the one that is made again, if so.
    fn is_another(&self) -> Result<Option<String>, StageError> {
        let Some(first) = self.samples.first() else { return Ok(None) };
        let changed = Changed {
            places: self.places,
            targets: self.targets,
            images: &[(first.index, first.image)],
            shift: None,
        };
        let again = match self.setting.again.explain(self.setting.model, changed)? {
            Ok(mut maps) => maps.remove(0),
            Err(reason) => return Ok(Some(reason)),
        };
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let difference = norm(&mut first.map.iter().zip(&again).map(|(a, b)| a - b));
        let size = norm(&mut first.map.iter().copied());
        let is_same = difference <= SAME * size || (size == 0.0 && difference == 0.0);
        Ok((!is_same).then(|| {
            format!(
                "the method gives another map than the stored one when it explains again (it differs by {:.0} % of \
                 its norm)",
                100.0 * difference / size
            )
        }))
    }

    /// A key of a sample's image: neither of its place nor of those beside it.
    fn key(&self, domain: &str, place: usize) -> Key {
        let id = self.setting.images.ids()[self.places[place]].as_str();
        Key::derive(domain, self.params().seed as u64, &[id.into()])
    }

    /// An image with noise; a share of its range, but in Quantus.
    fn noisy(&self, noise: Perturbation, domain: &str, draw: usize, place: usize) -> Vec<f32> {
        let image = self.samples[place].image;
        let scale = if self.is_quantus() { 1.0 } else { range(image) };
        noise.add(image, self.key(domain, place).sub(draw as u64), scale)
    }

    fn values(&self, metric: Metric) -> Result<Vec<Outcome>, StageError> {
        let result = match metric {
            Metric::InputInvariance if self.is_quantus() => Err(AttributionError::NotApplicable(
                "Quantus 0.6.0 corrects the bias of the first convolution, which a wrapped model does not show"
                    .to_owned(),
            )),
            Metric::Completeness => self.completeness(),
            Metric::InputInvariance => self.invariance(),
            Metric::RandomLogit => self.random_logit(),
            Metric::ParameterRandomisation
            | Metric::SmoothParameterRandomisation
            | Metric::EntropyCorrelation
            | Metric::EfficientParameterRandomisation => self.randomisation(metric),
            other => self.robustness(other),
        };
        if let Some(failure) = self.failure.borrow_mut().take() {
            return Err(failure);
        }
        match result {
            Ok(values) => {
                Ok(values.into_iter().map(|value| value.map_err(|reason| reason.to_string())).collect())
            }
            Err(AttributionError::NotApplicable(reason)) => Ok(vec![Err(reason); self.samples.len()]),
            Err(error) => Err(stage_error(error)),
        }
    }

    fn invariance(&self) -> pipe_attribution::Result<Vec<Value>> {
        // The tolerance is absolute: maps of all scales are judged alike if their greatest magnitude is 1.
        let maps: Vec<(Vec<f64>, f64)> = self
            .samples
            .iter()
            .map(|sample| {
                let greatest = sample.map.iter().fold(0.0f64, |greatest, value| greatest.max(value.abs()));
                let scale = if greatest > 0.0 { greatest } else { 1.0 };
                (sample.map.iter().map(|value| value / scale).collect(), scale)
            })
            .collect();
        let samples: Vec<Sample<'_>> =
            self.samples.iter().zip(&maps).map(|(sample, (map, _))| Sample { map, ..*sample }).collect();
        let explain = |images: &Images<'_>| -> Vectors {
            let mut again = self.explain(self.setting.model, self.targets, Some(SHIFT), images)?;
            for ((sample, _), map) in images.iter().zip(&mut again) {
                map.iter_mut().for_each(|value| *value /= maps[*sample].1);
            }
            Ok(again)
        };
        Ok(input_invariance(&samples, &explain, SHIFT, self.mode())?.into_iter().map(Ok).collect())
    }

    fn completeness(&self) -> pipe_attribution::Result<Vec<Value>> {
        let score = self.carried(self.setting.again.score(self.setting.model, self.targets))?;
        let observer = |_: Passes| match self.setting.context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(&score, self.batch()).observed(&observer);
        let engine = Engine::new(&evaluator, self.setting.shape);
        let values = if self.is_quantus() {
            let raw: Vec<Vec<f64>> = self.samples.iter().map(|sample| sample.map.to_vec()).collect();
            let maps = Preparation { scale: Scale::Together, part: Part::Signed }.of(&raw);
            let samples: Vec<Sample<'_>> =
                self.samples.iter().zip(&maps).map(|(sample, map)| Sample { map, ..*sample }).collect();
            completeness_quantus(&engine, &samples, Baseline::Black)?
        } else {
            let baselines = self.setting.again.baselines(self.places, &self.images());
            let baselines = self.carried(baselines)?.map_err(AttributionError::NotApplicable)?;
            completeness(&engine, self.samples, &baselines)?.iter().map(|gap| gap.relative).collect()
        };
        self.setting.done.set(self.setting.done.get() + evaluator.passes().forward);
        count_passes(self.setting.context, evaluator.passes());
        Ok(values.into_iter().map(Ok).collect())
    }
}
