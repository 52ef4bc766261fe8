//! Metrics that ask the model about changed images.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;

use pipe_attribution::metrics::{
    Baseline, Curves, Engine, Groups, Mode, Order, Prediction, Sample, Shape, Similarity, Undefined, Value,
    area, area_over_curve, channel_means, deletion, faithfulness_correlation, faithfulness_estimate,
    infidelity_of_patches, infidelity_quantus, insertion, irof, irof_quantus, monotonicity,
    monotonicity_correlation, monotonicity_correlation_of_ends, non_decreasing_share, non_sensitivity,
    non_sensitivity_of_patches, patch_order, patches, pixel_flipping, pixel_flipping_quantus, random_subsets,
    region_perturbation, region_perturbation_quantus, road, trapezoid,
};
use pipe_attribution::{AttributionError, Evaluator, Passes};
use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::metric::Metric;
use super::references::References;
use super::{Params, ScoreSpace};
use crate::images::Pixels;
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
    /// The logit of each subject's class, and its probability.
    pub(super) logit: &'a ClassScore<'a>,
    pub(super) probability: &'a ClassScore<'a>,
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

/// Steps that a curve really has: whole pixels change at each.
pub(super) fn steps(params: &Params, shape: Shape) -> usize {
    shape.pixels().div_ceil(pixels_per_step(params, shape))
}

/// Whether pixels become what the parameter `baseline` says.
pub(super) fn uses_baseline(metric: Metric) -> bool {
    use Metric::*;
    !matches!(metric, Insertion | Road | RoadLeastFirst | RoadGap | Irof)
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
        match metric {
            Deletion | Insertion | PixelFlipping | PixelFlippingLeastFirst => steps + 1,
            PixelFlippingGap => 2 * (steps + 1),
            RegionPerturbation | RegionPerturbationLeastFirst | Selectivity | Irof | Infidelity => {
                patches + 1
            }
            RegionPerturbationGap => 2 * (patches + 1),
            FaithfulnessCorrelation => params.subsets.max(1) as u64 + 1,
            SensitivityN => SHARES.len() as u64 * (params.subsets.max(1) as u64 + 1),
            Road | RoadLeastFirst => PERCENTAGES.len() as u64,
            RoadGap => 2 * PERCENTAGES.len() as u64,
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

    /// Random subsets of patches as groups of features.
    fn subsets(&self, share: f64) -> Vec<Groups> {
        let patches = self.patches();
        let shape = self.setting.shape;
        let size = (patches.len() as f64 * share).ceil() as usize;
        let count = self.setting.params.subsets.max(1) as usize;
        let of = |sample: usize| {
            let key = self.key("pipe subsets/1", sample).sub((share * 1000.0) as u64);
            let chosen = random_subsets(key, count, size, patches.len());
            let pixels = chosen.iter().map(|subset| {
                subset.iter().flat_map(|patch| patches.group(*patch as usize)).copied().collect::<Vec<_>>()
            });
            Groups::new(pixels).in_all_channels(shape.channels, shape.pixels())
        };
        (0..self.samples.len()).map(of).collect()
    }

    fn values(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
        match self.setting.params.mode {
            super::Mode::Reference => self.reference(metric),
            super::Mode::Quantus => self.quantus(metric),
        }
    }

    fn reference(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
        let setting = self.setting;
        let space = score_space(metric, setting.params);
        let (samples, ends) = (self.samples, self.ends);
        let most = Order::MostRelevantFirst;
        let gap = |(a, b): (Vec<f64>, Vec<f64>)| defined(a.iter().zip(&b).map(|(a, b)| a - b));
        let swapped = |(a, b)| (b, a);
        let mean = |curve: &[f64]| curve.iter().sum::<f64>() / curve.len() as f64;
        // Features in a step, all channels of its pixels.
        let per_step = setting.pixels_per_step() * setting.shape.channels;
        let features = |curves: Rc<Curves>, value: fn(&[f64]) -> f64| {
            defined(curves.iter().map(|curve| value(curve)).collect::<Vec<_>>())
        };
        Ok(match metric {
            Metric::Deletion | Metric::PixelFlipping => {
                features(self.curves(Kind::Pixels, most, space)?, area)
            }
            Metric::Insertion => {
                let step = setting.pixels_per_step();
                let curves = self.ask(space, |engine| insertion(engine, samples, step))?;
                defined(curves.iter().map(|curve| area(curve)))
            }
            Metric::PixelFlippingLeastFirst => {
                features(self.curves(Kind::Pixels, Order::LeastRelevantFirst, space)?, area)
            }
            Metric::PixelFlippingGap => gap(swapped(self.both(Kind::Pixels, space, area)?)),
            Metric::RegionPerturbation => features(self.curves(Kind::Patches, most, space)?, area_over_curve),
            Metric::RegionPerturbationLeastFirst => {
                features(self.curves(Kind::Patches, Order::LeastRelevantFirst, space)?, area_over_curve)
            }
            Metric::RegionPerturbationGap => gap(self.both(Kind::Patches, space, area_over_curve)?),
            Metric::Selectivity => features(self.curves(Kind::Patches, most, space)?, area),
            Metric::Road => defined(self.curves(Kind::Imputed, most, space)?.iter().map(|curve| mean(curve))),
            Metric::RoadLeastFirst => {
                let curves = self.curves(Kind::Imputed, Order::LeastRelevantFirst, space)?;
                defined(curves.iter().map(|curve| mean(curve)))
            }
            Metric::RoadGap => gap(swapped(self.both(Kind::Imputed, space, mean)?)),
            Metric::FaithfulnessCorrelation => {
                let subsets = self.subsets(SHARE);
                self.ask(space, |engine| faithfulness_correlation(engine, samples, &subsets, ends))?
            }
            Metric::SensitivityN => self.mean_over_sizes(space)?,
            Metric::FaithfulnessEstimate => self.ask(space, |engine| {
                faithfulness_estimate(engine, samples, ends, per_step, Similarity::Pearson)
            })?,
            Metric::Irof => {
                let shape = setting.shape;
                let ends: Vec<Vec<f32>> =
                    samples.iter().map(|sample| channel_means(sample.image, shape)).collect();
                let segments = vec![self.patches(); samples.len()];
                defined(self.ask(space, |engine| irof(engine, samples, &segments, &ends))?)
            }
            Metric::Infidelity => {
                let patches = self.patches();
                let drops = self.ask(space, |engine| {
                    infidelity_of_patches(engine, samples, &patches, ends, self.prediction)
                })?;
                defined(drops.iter().map(|drops| drops.infidelity(true)))
            }
            Metric::Monotonicity => {
                let curves = self.ask(space, |engine| monotonicity(engine, samples, ends, per_step))?;
                defined(curves.iter().map(|curve| non_decreasing_share(curve)))
            }
            Metric::MonotonicityCorrelation => self.ask(space, |engine| {
                monotonicity_correlation_of_ends(engine, samples, ends, per_step, EPSILON)
            })?,
            _ => {
                let patches = self.patches();
                self.ask(space, |engine| {
                    non_sensitivity_of_patches(engine, samples, &patches, ends, NON_SENSITIVE)
                })?
            }
        })
    }

    /// Sensitivity-n: the mean of the correlations of subsets of several sizes.
    fn mean_over_sizes(&self, space: ScoreSpace) -> Result<Vec<Value>, StageError> {
        let mut sums: Vec<Value> = vec![Ok(0.0); self.samples.len()];
        for share in SHARES {
            let subsets = self.subsets(share);
            let values = self
                .ask(space, |engine| faithfulness_correlation(engine, self.samples, &subsets, self.ends))?;
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = sum.clone().and_then(|sum| Ok(sum + value? / SHARES.len() as f64));
            }
        }
        Ok(sums)
    }

    /// As Quantus has it; maps come divided by the greatest magnitude of all where that matters.
    fn quantus(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
        let setting = self.setting;
        let (params, samples, shape) = (setting.params, self.samples, setting.shape);
        let space = score_space(metric, params);
        let baseline = match params.baseline {
            super::Baseline::Zero => Baseline::Constant(0.0),
            super::Baseline::Black => Baseline::Black,
            super::Baseline::Mean => Baseline::Mean,
            other => {
                let message = format!("Quantus has no `{}` for whole batches", other.name());
                return Err(StageError::failed(message));
            }
        };
        let per_step = setting.pixels_per_step() * shape.channels;
        let mean = |curve: &[f64]| curve.iter().sum::<f64>() / curve.len().max(1) as f64;
        let refused = |reason| Ok(vec![Err(Undefined::Refused(reason)); samples.len()]);
        let regions = |order, most: usize| {
            let patches = self.patches();
            let mut orders = self.orders(&patches, order);
            orders.iter_mut().for_each(|order| order.truncate(most));
            self.ask(space, |engine| {
                region_perturbation_quantus(engine, samples, &patches, &orders, baseline)
            })
        };
        let drop =
            |curve: &Vec<f64>| mean(&curve[1..].iter().map(|value| curve[0] - value).collect::<Vec<_>>());
        Ok(match metric {
            Metric::PixelFlipping => {
                let curves =
                    self.ask(space, |engine| pixel_flipping_quantus(engine, samples, baseline, per_step))?;
                defined(curves.iter().map(|curve| trapezoid(curve)))
            }
            Metric::RegionPerturbation => {
                defined(regions(Order::MostRelevantFirst, QUANTUS_REGIONS)?.iter().map(drop))
            }
            Metric::RegionPerturbationLeastFirst => {
                defined(regions(Order::LeastRelevantFirst, QUANTUS_REGIONS)?.iter().map(drop))
            }
            Metric::Selectivity => {
                let curves = regions(Order::MostRelevantFirst, usize::MAX)?;
                defined(curves.iter().map(|curve| mean(&curve[1..])))
            }
            Metric::FaithfulnessCorrelation => {
                if shape.features() <= QUANTUS_SUBSET {
                    return refused("its subsets of 224 features are more than the image has");
                }
                let count = params.subsets.max(1) as usize;
                let subset = |sample| {
                    random_subsets(
                        self.key("pipe subsets/1", sample),
                        count,
                        QUANTUS_SUBSET,
                        shape.features(),
                    )
                };
                let subsets: Vec<Groups> = (0..samples.len()).map(subset).collect();
                let ends = baseline.images(samples);
                self.ask(space, |engine| faithfulness_correlation(engine, samples, &subsets, &ends))?
            }
            Metric::FaithfulnessEstimate => {
                let ends = baseline.images(samples);
                self.ask(space, |engine| {
                    faithfulness_estimate(engine, samples, &ends, per_step, Similarity::Pearson)
                })?
            }
            Metric::SensitivityN => {
                return refused("its values are of steps, over all images of a batch, not of images");
            }
            Metric::Irof => {
                let segments = vec![Groups::default(); samples.len()];
                self.ask(space, |engine| irof_quantus(engine, samples, &segments, baseline))?
            }
            Metric::Infidelity => {
                let side = params.patch_side(shape);
                self.ask(space, |engine| infidelity_quantus(engine, samples, &[side], baseline))?
            }
            // Nothing ever changes there.
            Metric::Monotonicity => vec![Ok(1.0); samples.len()],
            Metric::MonotonicityCorrelation => {
                let groups = shape.features().div_ceil(per_step);
                let draws = params.draws.max(1) as usize;
                let value = |group: usize, draw: usize, sample: usize| {
                    let key = self.key("pipe monotonicity/1", sample).sub(group as u64);
                    key.uniform(draw as u64 + 1) as f32
                };
                let values: Vec<Vec<Vec<f32>>> = (0..groups)
                    .map(|group| {
                        let draw =
                            |draw| (0..samples.len()).map(|sample| value(group, draw, sample)).collect();
                        (0..draws).map(draw).collect()
                    })
                    .collect();
                self.ask(space, |engine| {
                    monotonicity_correlation(engine, samples, &values, per_step, EPSILON)
                })?
            }
            Metric::Road => {
                return refused("its indices run over all channels of an image, its imputation over one");
            }
            _ => {
                let scale = if self.greatest > 0.0 { self.greatest } else { 1.0 };
                let maps: Vec<Vec<f64>> = samples
                    .iter()
                    .map(|sample| sample.map.iter().map(|value| value / scale).collect())
                    .collect();
                let samples: Vec<Sample<'_>> =
                    samples.iter().zip(&maps).map(|(sample, map)| Sample { map, ..*sample }).collect();
                defined(self.ask(space, |engine| {
                    non_sensitivity(engine, &samples, baseline, EPSILON, Mode::Quantus)
                })?)
            }
        })
    }
}
