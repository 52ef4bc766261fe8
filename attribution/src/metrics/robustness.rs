//! Robustness: how much a map changes when the image hardly does. Images are changed, explained again, and
//! both maps compared, draw by draw; lower is better.

use super::of_images::in_draws;
use super::{Draws, Mode, OfImages, Preparation, Sample, Shape, Undefined, Value};
use crate::Result;

/// What is changed, and how it is explained.
pub struct Robustness<'a> {
    /// The samples with the maps of their images, as the method gave them.
    pub samples: &'a [Sample<'a>],
    /// The changed images.
    pub draws: Draws<'a>,
    /// The method.
    pub explain: &'a OfImages<'a>,
    /// What is done to maps, of one draw together, before they are compared.
    pub preparation: Preparation,
    /// The outputs of the model, if only changes that leave the predicted class count.
    pub outputs: Option<&'a OfImages<'a>>,
}

impl std::fmt::Debug for Robustness<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Robustness").field("draws", &self.draws).finish_non_exhaustive()
    }
}

/// One image before and after a change.
struct Pair<'a> {
    maps: [&'a [f64]; 2],
    images: [&'a [f32]; 2],
    /// What the relative stabilities compare with; empty elsewhere.
    described: [&'a [f64]; 2],
}

/// A value for each draw of each sample.
#[derive(Clone, PartialEq, Debug)]
pub struct Drawn {
    /// `[sample][draw]`.
    values: Vec<Vec<f64>>,
    /// Whether the prediction stayed, if that matters.
    kept: Option<Vec<Vec<bool>>>,
}

impl Drawn {
    /// The draws of a sample that count. Quantus has no value as soon as a prediction changed; reference
    /// leaves those draws out.
    fn counted(&self, sample: usize, mode: Mode) -> std::result::Result<Vec<f64>, Undefined> {
        let kept = |draw: &usize| self.kept.as_ref().is_none_or(|kept| kept[sample][*draw]);
        let values = &self.values[sample];
        let rest: Vec<f64> = (0..values.len()).filter(kept).map(|draw| values[draw]).collect();
        if rest.is_empty() || (mode == Mode::Quantus && rest.len() < values.len()) {
            return Err(Undefined::PredictionChanged);
        }
        let rest: Vec<f64> = rest.into_iter().filter(|value| !value.is_nan()).collect();
        if rest.is_empty() { Err(Undefined::NoMass) } else { Ok(rest) }
    }

    /// The greatest of the draws of each sample. Undefined if the prediction changed: in every draw
    /// (reference), in one (Quantus).
    pub fn greatest(&self, mode: Mode) -> Vec<Value> {
        let greatest = |values: Vec<f64>| values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        (0..self.values.len()).map(|sample| self.counted(sample, mode).map(greatest)).collect()
    }

    /// The mean of the draws of each sample; undefined as [`Self::greatest`].
    pub fn average(&self, mode: Mode) -> Vec<Value> {
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        (0..self.values.len()).map(|sample| self.counted(sample, mode).map(mean)).collect()
    }

    /// The share of draws of each sample that left the prediction as it was; 1 where that does not matter.
    pub fn kept_shares(&self) -> Vec<f64> {
        let share =
            |kept: &Vec<bool>| kept.iter().filter(|kept| **kept).count() as f64 / kept.len().max(1) as f64;
        match &self.kept {
            Some(kept) => kept.iter().map(share).collect(),
            None => vec![1.0; self.values.len()],
        }
    }
}

impl Robustness<'_> {
    /// The distance of both maps over the norm of the first: the greatest is max-sensitivity, the mean
    /// avg-sensitivity (Yeh et al. 2019).
    ///
    /// # Errors
    /// Whatever explanation or model report; likewise below.
    pub fn sensitivity(&self) -> Result<Drawn> {
        self.compare(None, &|pair| {
            let [map, changed] = pair.maps;
            distance(map, changed) / norm(map.iter().copied())
        })
    }

    /// The distance of both maps over that of their images: the greatest is the local Lipschitz estimate
    /// (Alvarez-Melis and Jaakkola 2018).
    ///
    /// # Errors
    /// As [`Self::sensitivity`].
    pub fn local_lipschitz(&self) -> Result<Drawn> {
        self.compare(None, &|pair| {
            distance(pair.maps[0], pair.maps[1]) / (image_distance(pair.images) + 1e-10)
        })
    }

    /// The summed difference of both maps over the distance of their images: the greatest over translations
    /// ([`translated`]) is continuity (Montavon, Samek and Müller 2018, as Quantus has it).
    ///
    /// # Errors
    /// As [`Self::sensitivity`].
    pub fn continuity(&self) -> Result<Drawn> {
        self.compare(None, &|pair| {
            let difference: f64 = pair.maps[0].iter().zip(pair.maps[1]).map(|(a, b)| (a - b).abs()).sum();
            difference / (image_distance(pair.images) + 1e-9)
        })
    }

    /// The relative change of the map over that of the image: the greatest is relative input stability
    /// (Agarwal et al. 2022).
    ///
    /// # Errors
    /// As [`Self::sensitivity`].
    pub fn relative_input_stability(&self, mode: Mode) -> Result<Drawn> {
        self.compare(None, &|pair| {
            let [before, after] = pair.images.map(|image| image.iter().map(|value| f64::from(*value)));
            relative_stability(pair, relative_difference(before, after), mode)
        })
    }

    /// The relative change of the map over the distance of the outputs: relative output stability.
    ///
    /// # Errors
    /// As [`Self::sensitivity`].
    pub fn relative_output_stability(&self, outputs: &OfImages<'_>, mode: Mode) -> Result<Drawn> {
        self.compare(Some(outputs), &|pair| {
            relative_stability(pair, distance(pair.described[0], pair.described[1]), mode)
        })
    }

    /// The relative change of the map over that of activations: relative representation stability.
    ///
    /// # Errors
    /// As [`Self::sensitivity`].
    pub fn relative_representation_stability(
        &self,
        representations: &OfImages<'_>,
        mode: Mode,
    ) -> Result<Drawn> {
        self.compare(Some(representations), &|pair| {
            let [before, after] = pair.described.map(|values| values.iter().copied());
            relative_stability(pair, relative_difference(before, after), mode)
        })
    }

    fn compare(&self, describe: Option<&OfImages<'_>>, value: &dyn Fn(&Pair<'_>) -> f64) -> Result<Drawn> {
        let count = self.samples.len();
        let images = super::engine::images(self.samples);
        let raw: Vec<Vec<f64>> = self.samples.iter().map(|sample| sample.map.to_vec()).collect();
        let maps = self.preparation.of(&raw);
        let describe = |images: &[(usize, &[f32])]| describe.map(|describe| describe(images)).transpose();
        let predict = |images: &[(usize, &[f32])]| -> Result<Option<Vec<Option<usize>>>> {
            let outputs = self.outputs.map(|outputs| outputs(images)).transpose()?;
            Ok(outputs.map(|rows| rows.iter().map(|row| super::first_maximum(row)).collect()))
        };
        let (described, predicted) = (describe(&images)?, predict(&images)?);
        let mut values = vec![Vec::with_capacity(self.draws.count); count];
        let mut kept = predicted.as_ref().map(|_| vec![Vec::with_capacity(self.draws.count); count]);
        in_draws(&images, self.draws, |_, rows| {
            let again = (self.explain)(rows)?;
            let (described_again, predicted_again) = (describe(rows)?, predict(rows)?);
            for (draw, raw) in again.chunks(count).enumerate() {
                for (place, changed) in self.preparation.of(raw).iter().enumerate() {
                    let row = draw * count + place;
                    let described = match (&described, &described_again) {
                        (Some(before), Some(after)) => [before[place].as_slice(), after[row].as_slice()],
                        _ => [&[][..]; 2],
                    };
                    values[place].push(value(&Pair {
                        maps: [&maps[place], changed],
                        images: [images[place].1, rows[row].1],
                        described,
                    }));
                    if let (Some(kept), Some(before), Some(after)) = (&mut kept, &predicted, &predicted_again)
                    {
                        kept[place].push(before[place] == after[row]);
                    }
                }
            }
            Ok(())
        })?;
        Ok(Drawn { values, kept })
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

fn image_distance([a, b]: [&[f32]; 2]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

/// The norm of (a - b) / a, elementwise, with 1e-6 where a is exactly 0.
fn relative_difference(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    norm(a.zip(b).map(|(a, b)| (a - b) / if a == 0.0 { 1e-6 } else { a }))
}

/// The relative difference of the maps over a change. Reference: a change below 1e-6 counts as that;
/// Quantus: only one of exactly 0 does.
fn relative_stability(pair: &Pair<'_>, change: f64, mode: Mode) -> f64 {
    let change = match mode {
        Mode::Reference => change.max(1e-6),
        Mode::Quantus if change == 0.0 => 1e-6,
        Mode::Quantus => change,
    };
    let [map, changed] = pair.maps.map(|map| map.iter().copied());
    relative_difference(map, changed) / change
}

/// An image moved by `columns` to the right (to the left if negative); what becomes free takes `fill`.
pub fn translated(image: &[f32], shape: Shape, columns: i64, fill: f32) -> Vec<f32> {
    let width = shape.width as i64;
    image
        .chunks_exact(shape.width.max(1))
        .flat_map(|row| {
            (0..width).map(move |column| {
                let source = column - columns;
                if (0..width).contains(&source) { row[source as usize] } else { fill }
            })
        })
        .collect()
}

/// The shifts of continuity, in columns, `steps` of them. Quantus goes through the whole width, so that the
/// image leaves on one side and comes back on the other; reference stays within a tenth of the width.
pub fn translations(width: usize, steps: usize, mode: Mode) -> Vec<i64> {
    let steps = steps.max(1) as i64;
    match mode {
        Mode::Quantus => {
            let step = (2 * width as i64 + 1) / steps;
            (1..=steps).map(|index| index * step - width as i64).collect()
        }
        Mode::Reference => {
            let reach = (width as f64 / 10.0).max(1.0);
            let place = |index: i64| 2.0 * reach * (index as f64 / (steps - 1).max(1) as f64) - reach;
            let mut shifts: Vec<i64> = (0..steps).map(|index| place(index).round() as i64).collect();
            // The image where it is says nothing.
            shifts.retain(|shift| *shift != 0);
            shifts.dedup();
            shifts
        }
    }
}

/// For each sample, of the others whose map has the same label, the share with the same predicted class
/// (Dasgupta, Frost and Moshkovitz 2022). Higher is better. Nobody with the same label: undefined
/// (reference), 0 (Quantus, which also adds 1e-9 to the number of others).
pub fn consistency<L: PartialEq>(labels: &[L], predicted: &[usize], mode: Mode) -> Vec<Value> {
    (0..labels.len())
        .map(|sample| {
            let like = |other: &usize| *other != sample && labels[*other] == labels[sample];
            let others: Vec<usize> = (0..labels.len()).filter(like).collect();
            let same = others.iter().filter(|other| predicted[**other] == predicted[sample]).count() as f64;
            match (others.len(), mode) {
                (count, Mode::Quantus) => Ok(same / (count as f64 + 1e-9)),
                (0, Mode::Reference) => Err(Undefined::NoNeighbour),
                (count, Mode::Reference) => Ok(same / count as f64),
            }
        })
        .collect()
}

/// Quantus's label of a map: the signs of its first five values (not of its five greatest).
pub fn first_signs(map: &[f64]) -> Vec<i8> {
    map.iter().take(5).map(|value| if *value == 0.0 { 0 } else { value.signum() as i8 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Part, Scale, explained};
    use crate::testing::Smooth;
    use crate::{Evaluator, InputXGradient};
    use pipe_models::random::Key;

    const RAW: Preparation = Preparation { scale: Scale::None, part: Part::Signed };

    /// The drawn values of one sample whose map is `map(image)`.
    fn of_one(
        image: &[f32],
        changed: &[f32],
        map: &dyn Fn(&[f32]) -> Vec<f64>,
        value: impl Fn(&Robustness<'_>) -> Result<Drawn>,
    ) -> f64 {
        let own = map(image);
        let explain = |images: &[(usize, &[f32])]| Ok(images.iter().map(|(_, image)| map(image)).collect());
        let robustness = Robustness {
            samples: &[Sample { index: 0, image, map: &own }],
            draws: Draws { count: 1, image: &|_, _| changed.to_vec() },
            explain: &explain,
            preparation: RAW,
            outputs: None,
        };
        value(&robustness).unwrap().values[0][0]
    }

    #[test]
    fn hand_computed_changes() {
        let same = |image: &[f32]| image.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        assert_eq!(of_one(&[3.0, 4.0], &[3.0, 5.0], &same, |robustness| robustness.sensitivity()), 0.2);
        let triple = |image: &[f32]| vec![3.0 * f64::from(image[0]), 0.0];
        let close = |ours: f64, expected: f64| assert!((ours - expected).abs() < 1e-6, "{ours} {expected}");
        close(of_one(&[1.0], &[2.0], &triple, |robustness| robustness.local_lipschitz()), 3.0);
        close(of_one(&[1.0, 1.0], &[2.0, 1.0], &triple, |robustness| robustness.continuity()), 3.0);
        let stable = |robustness: &Robustness<'_>| robustness.relative_input_stability(Mode::Quantus);
        close(of_one(&[2.0], &[1.0], &same, stable), 1.0);
        let outputs = |images: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
            Ok(images.iter().map(|(_, image)| vec![1e-9 * f64::from(image[0])]).collect())
        };
        for (mode, expected) in [(Mode::Reference, 0.5e6), (Mode::Quantus, 0.5e9)] {
            let value = of_one(&[2.0], &[1.0], &same, |robustness| {
                robustness.relative_output_stability(&outputs, mode)
            });
            assert!((value / expected - 1.0).abs() < 1e-6, "{value}");
        }
    }

    #[test]
    fn one_changed_prediction_is_too_much_for_quantus() {
        let drawn = |kept: Option<[bool; 3]>| Drawn {
            values: vec![vec![1.0, 5.0, 3.0]],
            kept: kept.map(|kept| vec![kept.to_vec()]),
        };
        assert_eq!(drawn(None).greatest(Mode::Quantus), [Ok(5.0)]);
        let one = drawn(Some([true, false, true]));
        assert_eq!(one.greatest(Mode::Quantus), [Err(Undefined::PredictionChanged)]);
        assert_eq!(
            (one.greatest(Mode::Reference), one.average(Mode::Reference)),
            (vec![Ok(3.0)], vec![Ok(2.0)])
        );
        assert!((one.kept_shares()[0] - 2.0 / 3.0).abs() < 1e-12);
        assert!(drawn(Some([false; 3])).average(Mode::Reference)[0].is_err());
        let undefined = Drawn { values: vec![vec![f64::NAN]], kept: None };
        assert_eq!(undefined.greatest(Mode::Reference), [Err(Undefined::NoMass)]);
    }

    #[test]
    fn every_draw_is_explained_once_whatever_the_batch() {
        let shape = Shape::flat(2, 2, 2);
        let score = Smooth::new(1, &[2, 2, 2]);
        let images: Vec<Vec<f32>> =
            (0..3).map(|row| (1..=8).map(|draw| Key(row).normal(draw) as f32).collect()).collect();
        let draw = |draw: usize, place: usize| -> Vec<f32> {
            let noise = crate::metrics::Perturbation::Normal { deviation: 0.1 };
            noise.add(&images[place], Key(7).sub(draw as u64), 1.0)
        };
        let mut all: Vec<Vec<Value>> = Vec::new();
        for batch in [1, 2, 7, 64] {
            let evaluator = Evaluator::new(&score, batch);
            let explain =
                |images: &[(usize, &[f32])]| explained(&InputXGradient::default(), &evaluator, shape, images);
            let rows: Vec<(usize, &[f32])> = images.iter().map(Vec::as_slice).enumerate().collect();
            let maps = explain(&rows).unwrap();
            let samples: Vec<Sample<'_>> = rows
                .iter()
                .zip(&maps)
                .map(|((index, image), map)| Sample { index: *index, image, map })
                .collect();
            let before = evaluator.passes();
            let outputs = |images: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
                Ok(images.iter().map(|(_, image)| image.iter().map(|v| f64::from(*v)).collect()).collect())
            };
            let robustness = Robustness {
                samples: &samples,
                draws: Draws { count: 5, image: &draw },
                explain: &explain,
                preparation: RAW,
                outputs: Some(&outputs),
            };
            all.push(robustness.sensitivity().unwrap().greatest(Mode::Reference));
            // Five explanations per sample.
            assert_eq!(evaluator.passes().forward - before.forward, 15);
            assert_eq!(evaluator.passes().backward - before.backward, 15);
        }
        for values in &all[1..] {
            for (ours, first) in values.iter().zip(&all[0]) {
                assert!((ours.clone().unwrap() - first.clone().unwrap()).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn shifts_leave_the_image_on_the_other_side() {
        let shape = Shape::flat(1, 2, 3);
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(translated(&image, shape, 1, 0.0), [0.0, 1.0, 2.0, 0.0, 4.0, 5.0]);
        assert_eq!(translated(&image, shape, -2, 9.0), [3.0, 9.0, 9.0, 6.0, 9.0, 9.0]);
        assert_eq!(translations(28, 14, Mode::Quantus)[..3], [-24, -20, -16]);
        let near = translations(224, 11, Mode::Reference);
        assert_eq!((near[0], near.len(), near[9]), (-22, 10, 22));
        assert_eq!(translations(4, 11, Mode::Reference), [-1, 1]);
    }

    #[test]
    fn consistency_counts_like_maps() {
        let labels = [first_signs(&[1.0, -1.0]), first_signs(&[2.0, -3.0]), first_signs(&[-1.0, 0.0])];
        let reference = consistency(&labels, &[0, 0, 0], Mode::Reference);
        assert_eq!(reference, [Ok(1.0), Ok(1.0), Err(Undefined::NoNeighbour)]);
        assert_eq!(consistency(&labels, &[0, 1, 0], Mode::Quantus), [Ok(0.0), Ok(0.0), Ok(0.0)]);
    }
}
