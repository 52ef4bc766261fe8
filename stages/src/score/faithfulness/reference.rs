//! Metrics that ask the model, as the papers define them.

use std::rc::Rc;

use pipe_attribution::metrics::{
    Curves, Groups, Order, Sample, Similarity, Value, area, area_over_curve, channel_means,
    faithfulness_correlation, faithfulness_estimate, infidelity_of_patches, insertion, irof, monotonicity,
    monotonicity_correlation_of_ends, non_decreasing_share, non_sensitivity_of_patches, random_subsets,
    superpixels,
};
use pipe_engine::StageError;
use rayon::prelude::*;

use super::super::ScoreSpace;
use super::super::metric::Metric;
use super::{COMPACTNESS, EPSILON, Kind, NON_SENSITIVE, Part, SHARE, SHARES, defined, score_space};

impl Part<'_, '_, '_> {
    pub(super) fn reference(&self, metric: Metric) -> Result<Vec<Value>, StageError> {
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
            Metric::RoadGap | Metric::RoadAgreementGap => {
                gap(swapped(self.both(Kind::Imputed, space, mean)?))
            }
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
                let segments = self.segments();
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

    /// The segments of each image; a volume's are its patches.
    fn segments(&self) -> Vec<Groups> {
        let setting = self.setting;
        if setting.shape.depth.is_some() {
            return vec![self.patches(); self.samples.len()];
        }
        let count = setting.params.segments.max(1) as usize;
        let shape = setting.shape;
        let of = |sample: &Sample<'_>| superpixels(sample.image, shape, count, COMPACTNESS);
        self.samples.par_iter().map(of).collect()
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
}
