//! Metrics of one map and its mask: no model is asked.

use pipe_attribution::metrics::{
    self, Distance, Mask, Mode, Part, Shape, Weighting, attribution_localisation, auc, by_largest_magnitude,
    compactness, complexity, consistency, effective_complexity, first_maximum, first_signs, focus, patches,
    pointing_game, relevance_mass_accuracy, relevance_rank_accuracy, sparseness, sufficiency,
    top_k_intersection, weighted_pointing_game,
};

use super::metric::Metric;

/// The share of pixels of the top-k intersection.
pub(super) const TOP_SHARE: f64 = 0.05;
/// A magnitude above this share of the greatest one counts.
const EFFECTIVE: f64 = 0.05;

/// Sufficiency: maps are neighbours within this share of the greatest distance.
pub(super) const THRESHOLD: f64 = 0.6;

/// Effective complexity: what counts, in a mode. Quantus's threshold counts practically everything.
pub(super) fn epsilon(mode: Mode) -> f64 {
    if mode == Mode::Quantus { 1e-5 } else { EFFECTIVE }
}

/// What the metrics of a set of maps have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    /// Pixels of a row of a map.
    pub(super) width: usize,
    /// Pixels, or voxels, around the mask that the tolerant pointing game accepts.
    pub(super) tolerance: f64,
    /// Quantus mode: the greatest magnitude of all maps of the call, by which each is divided, and the
    /// number of maps.
    pub(super) together: Option<(f64, usize)>,
}

impl Settings {
    /// The value of a metric that needs a mask, or why there is none.
    pub(super) fn localised(&self, metric: Metric, map: &[f64], mask: &Mask) -> Result<f64, String> {
        if metric == Metric::Focus {
            let quarters = quarters(mask, map.len(), self.width)
                .ok_or("the mask is no set of quarters, so the image is no mosaic")?;
            let share = focus(map, self.width, quarters);
            return match share {
                // Quantus divides by a little more than nothing.
                Err(_) if self.mode == Mode::Quantus => Ok(0.0),
                share => share.map_err(|reason| reason.to_string()),
            };
        }
        self.in_mask(metric, map, mask).map_err(|reason| reason.to_string())
    }

    fn in_mask(&self, metric: Metric, map: &[f64], mask: &Mask) -> metrics::Value {
        let quantus = self.mode == Mode::Quantus;
        match metric {
            Metric::PointingGame => pointing_game(map, mask, 0.0, self.mode),
            Metric::PointingGameTolerant => pointing_game(map, mask, self.tolerance, self.mode),
            // Signed sums have no bounds; Quantus takes them all the same.
            Metric::RelevanceMass if quantus => relevance_mass_accuracy(map, mask),
            Metric::RelevanceMass => relevance_mass_accuracy(&Part::Positive.of(map), mask),
            Metric::PointingGameWeighted => weighted_pointing_game(map, mask, 0.0, self.mode),
            Metric::RelevanceRank => relevance_rank_accuracy(map, mask),
            Metric::TopKIntersection => {
                let k = (map.len() as f64 * TOP_SHARE).ceil() as usize;
                top_k_intersection(map, mask, k, false, self.mode)
            }
            Metric::AttributionLocalisation => {
                attribution_localisation(&Part::Absolute.of(map), mask, Weighting::None, self.mode)
            }
            Metric::AttributionLocalisationWeighted => {
                let weighting = match self.together {
                    Some((_, maps)) if quantus => {
                        Weighting::Slice { features: maps.saturating_sub(2) * map.len() }
                    }
                    _ => Weighting::Area,
                };
                attribution_localisation(&Part::Absolute.of(map), mask, weighting, self.mode)
            }
            _ => auc(map, mask),
        }
    }

    /// The value of a metric of the map alone.
    pub(super) fn alone(&self, metric: Metric, map: &[f64]) -> metrics::Value {
        match metric {
            // Equal magnitudes, which Quantus makes of nothing, are not sparse.
            Metric::Sparseness if self.mode == Mode::Quantus && is_nothing(map) => Ok(0.0),
            Metric::Sparseness => sparseness(map),
            Metric::Complexity => complexity(map),
            Metric::RelativeComplexity => Ok(complexity(map)? / libm::log(map.len().max(2) as f64)),
            Metric::Compactness => compactness(map, self.width),
            _ => {
                let normalised: Vec<f64> = match self.together {
                    Some((greatest, _)) if self.mode == Mode::Quantus && greatest > 0.0 => {
                        map.iter().map(|value| value / greatest).collect()
                    }
                    _ => by_largest_magnitude(map),
                };
                Ok(effective_complexity(&normalised, epsilon(self.mode)))
            }
        }
    }
}

impl Settings {
    /// The values of a metric that compares each map with all others, whose predicted classes are given.
    pub(super) fn among_others(
        &self,
        metric: Metric,
        maps: &[&[f64]],
        predicted: &[usize],
        shape: Shape,
        patch: usize,
    ) -> Vec<metrics::Value> {
        let scale = match self.together {
            Some((greatest, _)) if self.mode == Mode::Quantus && greatest > 0.0 => Some(greatest),
            _ => None,
        };
        let magnitudes = |map: &&[f64]| {
            let magnitudes = Part::Absolute.of(map);
            match scale {
                Some(greatest) => magnitudes.iter().map(|value| value / greatest).collect(),
                None => by_largest_magnitude(&magnitudes),
            }
        };
        if metric == Metric::Sufficiency {
            let maps: Vec<Vec<f64>> = maps.iter().map(magnitudes).collect();
            return sufficiency(&maps, predicted, THRESHOLD, Distance::default(), self.mode);
        }
        if self.mode == Mode::Quantus {
            let labels: Vec<Vec<i8>> = maps.iter().map(|map| first_signs(&Part::Absolute.of(map))).collect();
            return consistency(&labels, predicted, self.mode);
        }
        let patches = patches(shape, patch);
        let labels: Vec<Option<usize>> = maps.iter().map(|map| first_maximum(&patches.sums(map))).collect();
        consistency(&labels, predicted, self.mode)
    }
}

fn is_nothing(map: &[f64]) -> bool {
    map.iter().all(|value| *value == 0.0)
}

/// The quarters of an image that a mask consists of; nothing if it is not made of quarters.
fn quarters(mask: &Mask, pixels: usize, width: usize) -> Option<[bool; 4]> {
    let height = pixels / width.max(1);
    let quarter =
        |pixel: usize| 2 * usize::from(pixel / width >= height / 2) + usize::from(pixel % width >= width / 2);
    let mut inside: [Option<bool>; 4] = [None; 4];
    for pixel in 0..pixels {
        let is_inside = mask.contains(pixel);
        if *inside[quarter(pixel)].get_or_insert(is_inside) != is_inside {
            return None;
        }
    }
    let inside = inside.map(|inside| inside.unwrap_or(false));
    inside.contains(&true).then_some(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: Mode) -> Settings {
        Settings { mode, width: 4, tolerance: 1.0, together: Some((4.0, 4)) }
    }

    /// Two rows of four: the mask is the first two pixels of the first row.
    fn mask() -> Mask {
        Mask::new((0..8).map(|index| index < 2).collect(), 4).unwrap()
    }

    #[test]
    fn hand_computed_localisation() {
        let map = [0.5, -1.0, 2.0, 0.0, 0.0, 0.0, -0.5, 0.0];
        let value = |metric| settings(Mode::Reference).localised(metric, &map, &mask()).unwrap();
        assert_eq!(value(Metric::PointingGame), 0.0);
        assert_eq!(value(Metric::PointingGameTolerant), 1.0);
        assert_eq!(value(Metric::RelevanceMass), 0.2);
        assert_eq!(value(Metric::RelevanceRank), 0.5);
        assert_eq!(value(Metric::TopKIntersection), 0.0);
        assert_eq!(value(Metric::AttributionLocalisation), 0.375);
        assert_eq!(value(Metric::AttributionLocalisationWeighted), 1.5);
        // Of twelve pairs (inside, outside) the first pixel wins five and the second none.
        assert_eq!(value(Metric::LocalisationAuc), 5.0 / 12.0);
    }

    #[test]
    fn quantus_takes_signs_and_slices_as_they_come() {
        let map = [0.5, -1.0, 2.0, 0.0, 0.0, 0.0, -0.5, 0.0];
        let value = |metric| settings(Mode::Quantus).localised(metric, &map, &mask()).unwrap();
        assert_eq!(value(Metric::RelevanceMass), -0.5);
        assert!((value(Metric::AttributionLocalisationWeighted) - 0.375 * 2.0 / 16.0).abs() < 1e-9);
    }

    #[test]
    fn hand_computed_complexity() {
        let map = [0.0, 1.0, 0.0, -1.0, 0.0, 0.04, 0.0, 0.0];
        let reference = settings(Mode::Reference);
        assert_eq!(reference.alone(Metric::EffectiveComplexity, &map), Ok(2.0));
        assert_eq!(settings(Mode::Quantus).alone(Metric::EffectiveComplexity, &map), Ok(3.0));
        assert!(reference.alone(Metric::Sparseness, &map).unwrap() > 0.7);
        let nothing = [0.0; 8];
        assert_eq!(settings(Mode::Quantus).alone(Metric::Sparseness, &nothing), Ok(0.0));
        assert!(reference.alone(Metric::Sparseness, &nothing).is_err());
        let two = [1.0, 0.0, -1.0, 0.0];
        assert!((reference.alone(Metric::Complexity, &two).unwrap() - 2f64.ln()).abs() < 1e-9);
        assert!((reference.alone(Metric::RelativeComplexity, &two).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_mosaic_is_known_by_its_mask() {
        let map = [1.0, 2.0, 0.0, 1.0, 1.0, 0.0, -3.0, 3.0];
        let of = |inside: &dyn Fn(usize) -> bool| {
            let mask = Mask::new((0..8).map(inside).collect(), 4).unwrap();
            settings(Mode::Reference).localised(Metric::Focus, &map, &mask)
        };
        assert_eq!(of(&|pixel| pixel % 4 < 2), Ok(0.5));
        assert_eq!(of(&|pixel| !(2..=5).contains(&pixel)), Ok(0.75));
        assert!(of(&|pixel| pixel < 3).is_err() && of(&|_| false).is_err());
        let mask = Mask::new((0..8).map(|pixel| pixel % 4 < 2).collect(), 4).unwrap();
        let of_nothing = |mode| settings(mode).localised(Metric::Focus, &[-1.0; 8], &mask);
        assert!(of_nothing(Mode::Reference).is_err() && of_nothing(Mode::Quantus) == Ok(0.0));
    }
}
