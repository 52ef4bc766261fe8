//! Metrics that ask the model, as Quantus 0.6.0 computes them.

use pipe_attribution::metrics::{
    Baseline, Groups, Mode, Order, Sample, Similarity, Undefined, Value, faithfulness_correlation,
    faithfulness_estimate, infidelity_quantus, irof_quantus, monotonicity_correlation, non_sensitivity,
    pixel_flipping_quantus, random_subsets, region_perturbation_quantus, trapezoid,
};
use pipe_engine::StageError;

use super::super::Baseline as Named;
use super::super::metric::Metric;
use super::{EPSILON, Part, QUANTUS_REGIONS, QUANTUS_SUBSET, defined, features_in_step, score_space};

impl Part<'_, '_, '_> {
    /// As Quantus has it; maps come divided by the greatest magnitude of all where that matters.
    pub(super) fn quantus(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
        let setting = self.setting;
        let (params, samples, shape) = (setting.params, self.samples, setting.shape);
        let space = score_space(metric, params);
        let baseline = match params.removal() {
            Named::Zero => Baseline::Constant(0.0),
            Named::Black => Baseline::Black,
            Named::Mean => Baseline::Mean,
            other => {
                let message = format!("Quantus has no `{}` for whole batches", other.name());
                return Err(StageError::failed(message));
            }
        };
        let per_step = features_in_step(params, shape);
        let mean = |curve: &[f64]| curve.iter().sum::<f64>() / curve.len().max(1) as f64;
        let refused = |reason| Ok(vec![Err(Undefined::Refused(reason)); samples.len()]);
        let regions = |order, most: usize| {
            let patches = self.patches();
            let mut orders = self.orders(&patches, order);
            orders.iter_mut().for_each(|order| order.truncate(most));
            self.ask(space, |engine| {
                region_perturbation_quantus(engine, samples, params.patch_side(shape), &orders, baseline)
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
