//! Metrics that ask the model about changed images.

mod quantus;
mod reference;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use pipe_attribution::metrics::{
    Curves, Engine, Groups, Order, Prediction, Sample, Shape, Value, deletion, patch_order, patches,
    pixel_flipping, quantus_step, region_perturbation, road,
};
use pipe_attribution::{AttributionError, Evaluator, Passes};
use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::metric::Metric;
use super::references::References;
use super::{Params, ScoreSpace};
use crate::images::{Pixels, count_passes};
use crate::model::tensor_error;
use crate::target::ClassScore;

/// Samples whose images and curves are in memory at once.
pub(super) const CHUNK: usize = 64;

/// ROAD: percentages of removed pixels.
pub(super) const PERCENTAGES: [f64; 9] = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0];
/// ROAD: the deviation of what is added to filled-in pixels, in the normalised space.
pub(super) const ROAD_NOISE: f64 = 0.01;
/// Monotonicity correlation and non-sensitivity of Quantus: what is nearly 0.
pub(super) const EPSILON: f64 = 1e-5;
/// Non-sensitivity: a patch does not matter below this share of the magnitudes, and of the score.
pub(super) const NON_SENSITIVE: [f64; 2] = [0.001, 0.001];
/// Region perturbation of Quantus removes at most this many patches.
pub(super) const QUANTUS_REGIONS: usize = 100;
/// The size of a subset of features in Quantus.
pub(super) const QUANTUS_SUBSET: usize = 224;
/// Sensitivity-n: shares of the patches that a subset has.
pub(super) const SHARES: [f64; 3] = [0.125, 0.25, 0.5];

/// Superpixels: how much place counts beside colour.
pub(super) const COMPACTNESS: f64 = 10.0;

/// Faithfulness correlation: the share of the patches that a subset has.
pub(super) const SHARE: f64 = 0.25;

/// One map that is scored.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The index of its subject: chooses the target.
    pub(super) subject: usize,
    /// The row of its image.
    pub(super) image: usize,
    pub(super) map: &'a [f64],
}

/// What the model is asked with.
pub(super) struct Faithfulness<'a, 'c> {
    /// The logit of each subject's class, or its margin over that of `against`.
    pub(super) logit: &'a ClassScore<'a>,
    /// The class whose logit is subtracted, if one is.
    pub(super) against: Option<usize>,
    /// The class's probability, and whether it is predicted.
    pub(super) probability: &'a ClassScore<'a>,
    pub(super) agreement: &'a ClassScore<'a>,
    pub(super) images: &'a dyn Pixels,
    /// What removed pixels become.
    pub(super) removed: &'a References,
    pub(super) shape: Shape,
    pub(super) params: &'a Params,
    pub(super) context: &'a StageContext<'c>,
    /// Images that the model was asked about so far, and will have been in the end.
    pub(super) done: &'a Cell<u64>,
    pub(super) total: u64,
}

/// The images of a set of rows, flat.
pub(super) fn pixels(images: &dyn Pixels, rows: &[usize]) -> Result<Vec<f32>, StageError> {
    images.batch(rows)?.flatten_all().and_then(|pixels| pixels.to_vec1()).map_err(tensor_error)
}

/// Errors of the library as errors of the stage.
pub(super) fn stage_error(error: AttributionError) -> StageError {
    match error {
        AttributionError::Stopped => StageError::Cancelled,
        AttributionError::Tensor(error) => tensor_error(error),
        other => StageError::failed(other.to_string()),
    }
}

/// The score that a metric follows, unless the parameters say otherwise: what its authors took, or Quantus.
pub(super) fn score_space(metric: Metric, params: &Params) -> ScoreSpace {
    use Metric::*;
    let quantus = params.mode == super::Mode::Quantus;
    match (params.score, metric) {
        (_, Deletion | Insertion) => ScoreSpace::Probability,
        (_, RoadAgreementGap) => ScoreSpace::Agreement,
        (Some(space), _) => space,
        (None, FaithfulnessCorrelation | FaithfulnessEstimate | Infidelity) => ScoreSpace::Logit,
        (None, PixelFlipping | PixelFlippingLeastFirst | PixelFlippingGap | SensitivityN) if !quantus => {
            ScoreSpace::Logit
        }
        (None, RegionPerturbation | RegionPerturbationLeastFirst | RegionPerturbationGap | Selectivity)
            if !quantus =>
        {
            ScoreSpace::Logit
        }
        (None, _) => ScoreSpace::Probability,
    }
}

fn pixels_per_step(params: &Params, shape: Shape) -> usize {
    shape.pixels().div_ceil(params.steps.max(1) as usize).max(1)
}

/// Steps that a curve really has: whole pixels change at each, in Quantus features that divide the pixels.
pub(super) fn steps(params: &Params, shape: Shape) -> usize {
    match params.mode {
        super::Mode::Reference => shape.pixels().div_ceil(pixels_per_step(params, shape)),
        super::Mode::Quantus => shape.features().div_ceil(features_in_step(params, shape)),
    }
}

/// Features that change at a step in Quantus: of the numbers that it takes the one that makes `steps` or hardly fewer.
pub(super) fn features_in_step(params: &Params, shape: Shape) -> usize {
    quantus_step(shape, pixels_per_step(params, shape) * shape.channels)
}

/// Whether pixels become what the parameter `baseline` says.
pub(super) fn uses_baseline(metric: Metric) -> bool {
    use Metric::*;
    !matches!(metric, Insertion | Road | RoadLeastFirst | RoadGap | RoadAgreementGap | Irof)
}

/// What one call of the library gave, for the metrics that are read off it.
type Memo = RefCell<BTreeMap<(Kind, bool, ScoreSpace), Rc<Curves>>>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pixels,
    Patches,
    Imputed,
}

impl Faithfulness<'_, '_> {
    /// Pixels that change at a step: a curve has at most `steps` of them.
    fn pixels_per_step(&self) -> usize {
        pixels_per_step(self.params, self.shape)
    }

    /// Images that the model is asked about for one map.
    pub(super) fn images_of(metric: Metric, params: &Params, shape: Shape) -> u64 {
        use Metric::*;
        let steps = steps(params, shape) as u64;
        let patches = patches(shape, params.patch_side(shape)).len() as u64;
        let is_quantus = params.mode == super::Mode::Quantus;
        match metric {
            MonotonicityCorrelation if is_quantus => steps * params.draws.max(1) as u64 + 1,
            NonSensitivity if is_quantus => shape.features() as u64 + 1,
            Deletion | Insertion | PixelFlipping | PixelFlippingLeastFirst => steps + 1,
            PixelFlippingGap => 2 * (steps + 1),
            Irof if shape.depth.is_none() => params.segments.max(1) as u64 + 1,
            RegionPerturbation | RegionPerturbationLeastFirst | Selectivity | Irof | Infidelity => {
                patches + 1
            }
            RegionPerturbationGap => 2 * (patches + 1),
            FaithfulnessCorrelation => params.subsets.max(1) as u64 + 1,
            SensitivityN => SHARES.len() as u64 * (params.subsets.max(1) as u64 + 1),
            Road | RoadLeastFirst => PERCENTAGES.len() as u64,
            RoadGap | RoadAgreementGap => 2 * PERCENTAGES.len() as u64,
            NonSensitivity => patches + 1,
            _ => steps + 1,
        }
    }

    /// The values of each metric for each map. `greatest` is the greatest magnitude of all maps of the call,
    /// by which Quantus divides, and `prediction` how the maps predict what a change costs.
    pub(super) fn values(
        &self,
        metrics: &[Metric],
        maps: &[Asked<'_>],
        greatest: f64,
        prediction: Prediction,
    ) -> Result<Vec<Vec<Value>>, StageError> {
        let mut values = vec![Vec::with_capacity(maps.len()); metrics.len()];
        for chunk in maps.chunks(self.images.at_a_time(CHUNK as i64) as usize) {
            self.context.check_cancelled()?;
            let rows: Vec<usize> = chunk.iter().map(|asked| asked.image).collect();
            let pixels = pixels(self.images, &rows)?;
            let samples: Vec<Sample<'_>> = chunk
                .iter()
                .zip(pixels.chunks_exact(self.shape.features()))
                .map(|(asked, image)| Sample { index: asked.subject, image, map: asked.map })
                .collect();
            let ends = match metrics.iter().any(|metric| uses_baseline(*metric)) {
                true => rows
                    .iter()
                    .zip(&samples)
                    .map(|(row, sample)| self.removed.image(*row, &self.images.ids()[*row], sample.image))
                    .collect::<Result<_, _>>()?,
                false => Vec::new(),
            };
            let part = Part {
                setting: self,
                samples: &samples,
                ends: &ends,
                rows: &rows,
                greatest,
                prediction,
                memo: RefCell::default(),
            };
            for (metric, values) in metrics.iter().zip(&mut values) {
                values.extend(part.values(*metric)?);
            }
        }
        Ok(values)
    }
}

/// The samples of one chunk.
struct Part<'a, 'f, 'c> {
    setting: &'a Faithfulness<'f, 'c>,
    samples: &'a [Sample<'a>],
    ends: &'a [Vec<f32>],
    /// The row of each sample's image.
    rows: &'a [usize],
    /// The greatest magnitude of all maps.
    greatest: f64,
    /// How a map predicts what a change costs.
    prediction: Prediction,
    memo: Memo,
}

fn defined(values: impl IntoIterator<Item = f64>) -> Vec<Value> {
    values.into_iter().map(Ok).collect()
}

impl Part<'_, '_, '_> {
    /// Calls the library with an engine, and reports its passes.
    fn ask<T>(
        &self,
        space: ScoreSpace,
        call: impl FnOnce(&Engine<'_>) -> pipe_attribution::Result<T>,
    ) -> Result<T, StageError> {
        let setting = self.setting;
        let score = match space {
            ScoreSpace::Logit => setting.logit,
            ScoreSpace::Probability => setting.probability,
            ScoreSpace::Agreement => setting.agreement,
        };
        let before = setting.done.get();
        let observer = |passes: Passes| {
            let done = before + passes.forward;
            setting.context.progress(done, setting.total.max(done), "images", &[]);
            match setting.context.host().cancelled() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        let batch = setting.images.at_a_time(setting.params.batch).max(1) as usize;
        let evaluator = Evaluator::new(score, batch).observed(&observer);
        let result = call(&Engine::new(&evaluator, setting.shape));
        setting.done.set(before + evaluator.passes().forward);
        count_passes(setting.context, evaluator.passes());
        result.map_err(stage_error)
    }

    /// The curves of a kind, which several metrics are read off.
    fn curves(&self, kind: Kind, order: Order, space: ScoreSpace) -> Result<Rc<Curves>, StageError> {
        let key = (kind, order == Order::MostRelevantFirst, space);
        if let Some(curves) = self.memo.borrow().get(&key) {
            return Ok(curves.clone());
        }
        let setting = self.setting;
        let keys: Vec<Key> = (0..self.samples.len()).map(|sample| self.key("pipe road/1", sample)).collect();
        let curves = self.ask(space, |engine| match kind {
            Kind::Pixels if order == Order::MostRelevantFirst => {
                deletion(engine, self.samples, self.ends, setting.pixels_per_step())
            }
            Kind::Pixels => pixel_flipping(engine, self.samples, self.ends, setting.pixels_per_step(), order),
            Kind::Patches => {
                let patches = self.patches();
                region_perturbation(engine, self.samples, &patches, &self.orders(&patches, order), self.ends)
            }
            Kind::Imputed => {
                let noise = |percentage: usize, sample: usize, channel: usize, count: usize| {
                    let key = keys[sample].sub(percentage as u64).sub(channel as u64);
                    (1..=count as u64).map(|draw| ROAD_NOISE * key.normal(draw)).collect()
                };
                road(engine, self.samples, &PERCENTAGES, order, &noise)
            }
        })?;
        let curves = Rc::new(curves);
        self.memo.borrow_mut().insert(key, curves.clone());
        Ok(curves)
    }

    /// Numbers of both orders.
    fn both(
        &self,
        kind: Kind,
        space: ScoreSpace,
        value: impl Fn(&[f64]) -> f64,
    ) -> Result<(Vec<f64>, Vec<f64>), StageError> {
        let of = |order| -> Result<Vec<f64>, StageError> {
            Ok(self.curves(kind, order, space)?.iter().map(|curve| value(curve)).collect())
        };
        Ok((of(Order::MostRelevantFirst)?, of(Order::LeastRelevantFirst)?))
    }

    fn patches(&self) -> Groups {
        patches(self.setting.shape, self.setting.params.patch_side(self.setting.shape))
    }

    fn orders(&self, patches: &Groups, order: Order) -> Vec<Vec<u32>> {
        self.samples.iter().map(|sample| patch_order(sample.map, patches, order)).collect()
    }

    /// A key of a sample's image: neither of its place nor of those beside it.
    fn key(&self, domain: &str, sample: usize) -> Key {
        let id = self.setting.images.ids()[self.rows[sample]].as_str();
        Key::derive(domain, self.setting.params.seed as u64, &[id.into()])
    }

    fn values(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
        match self.setting.params.mode {
            super::Mode::Reference => self.reference(metric),
            super::Mode::Quantus => self.quantus(metric),
        }
    }
}
