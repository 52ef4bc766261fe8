//! Randomisation: does a map depend on the model and on the class at all? A map that stays the same when
//! parameters are drawn anew (Adebayo et al. 2018), or when another class is explained (Sixt, Granz and
//! Landgraf 2020), explains the image and not the model.

use pipe_models::random::Key;

use super::{Draws, Mode, OfImages, Preparation, Sample, Undefined, Value, mean_over_noise, spearman};
use crate::Result;

/// A function of images in the model some of whose layers are drawn anew; layers are counted from the input
/// on. The parameters of a layer are the same in every call, whatever other layers are drawn.
pub type OfRandomised<'a> = dyn Fn(&[usize], &[(usize, &[f32])]) -> Result<Vec<Vec<f64>>> + 'a;

/// In which order layers are drawn anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerOrder {
    /// From the input on; each stays random when the next becomes so.
    #[default]
    BottomUp,
    /// From the output back.
    TopDown,
    /// One at a time, from the input on.
    Independent,
}

impl LayerOrder {
    /// The layers that are random at each step, the newest one last.
    pub fn steps(self, layers: usize) -> Vec<Vec<usize>> {
        match self {
            Self::BottomUp => (1..=layers).map(|count| (0..count).collect()).collect(),
            Self::TopDown => (1..=layers).map(|count| (layers - count..layers).rev().collect()).collect(),
            Self::Independent => (0..layers).map(|layer| vec![layer]).collect(),
        }
    }
}

/// How like the maps of a model and of the same with layers drawn anew are.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerSimilarities {
    /// With the model as it is, one per sample.
    pub original: Vec<Value>,
    /// `[step][sample]`.
    pub layers: Vec<Vec<Value>>,
}

impl LayerSimilarities {
    /// The mean over layers of each sample. Quantus puts the unchanged model's value, 1, among them, which
    /// moves the mean up.
    pub fn average(&self, mode: Mode) -> Vec<Value> {
        (0..self.original.len())
            .map(|sample| {
                let original = (mode == Mode::Quantus).then(|| self.original[sample].clone());
                let layers = self.layers.iter().map(|layer| layer[sample].clone());
                let values: Vec<f64> =
                    original.into_iter().chain(layers).collect::<std::result::Result<_, _>>()?;
                match values.len() {
                    0 => Err(Undefined::Constant),
                    count => Ok(values.iter().sum::<f64>() / count as f64),
                }
            })
            .collect()
    }

    /// The similarities when all layers of the order are random.
    pub fn last(&self) -> &[Value] {
        self.layers.last().unwrap_or(&self.original)
    }
}

/// Which layers of a model are randomised, and what is done with the maps.
#[derive(Clone, Copy)]
pub struct Randomisation<'a> {
    /// The samples with the maps of their images, as the method gave them.
    pub samples: &'a [Sample<'a>],
    /// Layers that can be drawn anew.
    pub layers: usize,
    /// Their order.
    pub order: LayerOrder,
    /// What is done to the maps of a model together.
    pub preparation: Preparation,
    /// The method, for the model with layers drawn anew.
    pub explain: &'a OfRandomised<'a>,
}

impl std::fmt::Debug for Randomisation<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Randomisation").field("order", &self.order).finish_non_exhaustive()
    }
}

impl Randomisation<'_> {
    fn images(&self) -> Vec<(usize, &[f32])> {
        super::engine::images(self.samples)
    }

    fn prepared(&self) -> Vec<Vec<f64>> {
        let maps: Vec<Vec<f64>> = self.samples.iter().map(|sample| sample.map.to_vec()).collect();
        self.preparation.of(&maps)
    }

    /// Model parameter randomisation (Adebayo et al. 2018): one explanation per layer. Lower is better.
    ///
    /// # Errors
    /// Whatever the explanation reports; likewise below.
    pub fn similarities(&self, similarity: &dyn Fn(&[f64], &[f64]) -> Value) -> Result<LayerSimilarities> {
        let (maps, images) = (self.prepared(), self.images());
        let layers = self.order.steps(self.layers).into_iter().map(|layers| {
            let changed = self.preparation.of(&(self.explain)(&layers, &images)?);
            Ok(similarities(&maps, &changed, similarity))
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(LayerSimilarities { original: similarities(&maps, &maps, similarity), layers })
    }

    /// The same with maps averaged over `count` noisy images and the image (Hedström et al. 2023).
    /// `noisy(step, draw, place)`: step 0 is the model as it is. Quantus compares averages with the maps as they
    /// are, reference with the average of the model as it is.
    ///
    /// # Errors
    /// As [`Self::similarities`].
    pub fn smooth_similarities(
        &self,
        count: usize,
        noisy: &dyn Fn(usize, usize, usize) -> Vec<f32>,
        similarity: &dyn Fn(&[f64], &[f64]) -> Value,
        mode: Mode,
    ) -> Result<LayerSimilarities> {
        let images = self.images();
        let smooth = |step: usize, layers: &[usize]| -> Result<Vec<Vec<f64>>> {
            let explain = |images: &[(usize, &[f32])]| (self.explain)(layers, images);
            let image = |draw: usize, place: usize| noisy(step, draw, place);
            let maps = mean_over_noise(&explain, &images, Draws { count, image: &image })?;
            Ok(self.preparation.of(&maps))
        };
        let original = smooth(0, &[])?;
        let maps = match mode {
            Mode::Quantus => self.prepared(),
            Mode::Reference => original.clone(),
        };
        let layers = self
            .order
            .steps(self.layers)
            .into_iter()
            .zip(1..)
            .map(|(layers, step)| Ok(similarities(&maps, &smooth(step, &layers)?, similarity)));
        let layers = layers.collect::<Result<_>>()?;
        Ok(LayerSimilarities { original: similarities(&maps, &original, similarity), layers })
    }

    /// Efficient model parameter randomisation (Hedström et al. 2023): the relative rise of the entropy of the
    /// map's histogram when all layers are random. Higher is better. One explanation, beside the given one.
    ///
    /// # Errors
    /// As [`Self::similarities`].
    pub fn entropy_rise(&self, bins: usize) -> Result<Vec<Value>> {
        let all: Vec<usize> = (0..self.layers).collect();
        let changed = self.preparation.of(&(self.explain)(&all, &self.images())?);
        let entropy = |map: &Vec<f64>| discrete_entropy(map, bins);
        let before = self.prepared();
        Ok(before.iter().map(entropy).zip(changed.iter().map(entropy)).map(rise).collect())
    }

    /// The entropies of maps and of outputs, layer by layer. `outputs` gives probabilities.
    ///
    /// # Errors
    /// As [`Self::similarities`].
    pub fn entropies(&self, bins: usize, outputs: &OfRandomised<'_>) -> Result<LayerEntropies> {
        let images = self.images();
        let of_outputs = |layers: &[usize]| -> Result<Vec<f64>> {
            Ok(outputs(layers, &images)?.iter().map(|shares| entropy(shares)).collect())
        };
        let of_maps = |maps: &[Vec<f64>]| maps.iter().map(|map| discrete_entropy(map, bins)).collect();
        let mut entropies =
            LayerEntropies { maps: vec![of_maps(&self.prepared())], outputs: vec![of_outputs(&[])?] };
        for layers in self.order.steps(self.layers) {
            let changed = self.preparation.of(&(self.explain)(&layers, &images)?);
            entropies.maps.push(of_maps(&changed));
            entropies.outputs.push(of_outputs(&layers)?);
        }
        Ok(entropies)
    }
}

/// Entropies of maps and outputs: of the model as it is, then step by step; `[step][sample]`.
#[derive(Clone, PartialEq, Debug)]
pub struct LayerEntropies {
    /// Of the histograms of maps.
    pub maps: Vec<Vec<f64>>,
    /// Of the predicted probabilities.
    pub outputs: Vec<Vec<f64>>,
}

impl LayerEntropies {
    /// The rank correlation, over the steps, of both entropies of each sample.
    pub fn correlations(&self) -> Vec<Value> {
        let column =
            |rows: &[Vec<f64>], sample: usize| rows.iter().map(|row| row[sample]).collect::<Vec<_>>();
        let samples = self.maps.first().map_or(0, Vec::len);
        (0..samples)
            .map(|sample| spearman(&column(&self.outputs, sample), &column(&self.maps, sample)))
            .collect()
    }
}

/// Similarity of each map with another of the same sample.
fn similarities(
    maps: &[Vec<f64>],
    others: &[Vec<f64>],
    similarity: &dyn Fn(&[f64], &[f64]) -> Value,
) -> Vec<Value> {
    maps.iter().zip(others).map(|(map, other)| similarity(map, other)).collect()
}

/// The relative rise from one entropy to another.
fn rise((before, after): (f64, f64)) -> Value {
    if before > 0.0 { Ok((after - before) / before) } else { Err(Undefined::Constant) }
}

/// The entropy of shares, in nats.
fn entropy(shares: &[f64]) -> f64 {
    shares.iter().filter(|share| **share > 0.0).map(|share| -share * libm::log(*share)).sum()
}

/// The entropy in nats of the values' histogram: equal bins between the map's least and greatest value,
/// the last one closed.
pub fn discrete_entropy(map: &[f64], bins: usize) -> f64 {
    let low = map.iter().copied().fold(f64::INFINITY, f64::min);
    let high = map.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Equal values have a bin around them.
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let bins = bins.max(1);
    let mut counts = vec![0usize; bins];
    for value in map {
        let place = ((value - low) / (high - low) * bins as f64) as usize;
        counts[place.min(bins - 1)] += 1;
    }
    let shares: Vec<f64> = counts.iter().map(|count| *count as f64 / map.len() as f64).collect();
    entropy(&shares)
}

/// A class that is not `target`, of `classes`: each other one is as likely. Nothing if there is no other.
pub fn other_class(key: Key, target: usize, classes: usize) -> Option<usize> {
    if classes < 2 {
        return None;
    }
    let drawn = key.below(1, classes as u64 - 1) as usize;
    Some(if drawn < target { drawn } else { drawn + 1 })
}

/// Random logit (Sixt, Granz and Landgraf 2020): how like each map is that of another class, which
/// `explain_other` explains. Lower is better. One explanation.
///
/// # Errors
/// Whatever the explanation reports.
pub fn random_logit(
    samples: &[Sample<'_>],
    explain_other: &OfImages<'_>,
    preparation: Preparation,
    similarity: &dyn Fn(&[f64], &[f64]) -> Value,
) -> Result<Vec<Value>> {
    let others = preparation.of(&explain_other(&super::engine::images(samples))?);
    let maps: Vec<Vec<f64>> = samples.iter().map(|sample| sample.map.to_vec()).collect();
    Ok(similarities(&preparation.of(&maps), &others, similarity))
}

/// Input invariance (Kindermans et al. 2017): 1 if a map stays the same, to 1e-4 + 1e-5 |value|, when every
/// value of the image is shifted and the model takes the shift back ([`super::Shifted`]; `explain_shifted`
/// explains that model). Higher is better. Quantus forgets to shift the first value. One explanation.
///
/// # Errors
/// Whatever the explanation reports.
pub fn input_invariance(
    samples: &[Sample<'_>],
    explain_shifted: &OfImages<'_>,
    shift: f32,
    mode: Mode,
) -> Result<Vec<f64>> {
    let moved: Vec<Vec<f32>> = samples
        .iter()
        .map(|sample| {
            let mut image: Vec<f32> = sample.image.iter().map(|value| value + shift).collect();
            if let (Mode::Quantus, Some(first)) = (mode, image.first_mut()) {
                *first = sample.image[0];
            }
            image
        })
        .collect();
    let rows: Vec<(usize, &[f32])> =
        samples.iter().zip(&moved).map(|(sample, image)| (sample.index, image.as_slice())).collect();
    let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 + 1e-5 * b.abs();
    let is_same =
        |(sample, map): (&Sample<'_>, Vec<f64>)| f64::from(u8::from(sample.map.iter().zip(&map).all(close)));
    Ok(samples.iter().zip(explain_shifted(&rows)?).map(is_same).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Part, Scale};
    use std::cell::Cell;

    const RAW: Preparation = Preparation { scale: Scale::None, part: Part::Signed };

    #[test]
    fn orders_of_layers() {
        assert_eq!(LayerOrder::BottomUp.steps(3), [vec![0], vec![0, 1], vec![0, 1, 2]]);
        assert_eq!(LayerOrder::TopDown.steps(3), [vec![2], vec![2, 1], vec![2, 1, 0]]);
        assert_eq!(LayerOrder::Independent.steps(2), [vec![0], vec![1]]);
    }

    /// A "method" whose maps become noise as layers become random.
    fn randomised(layers: &[usize], images: &[(usize, &[f32])]) -> Result<Vec<Vec<f64>>> {
        let map = |(_, image): &(usize, &[f32])| -> Vec<f64> {
            let value =
                |(value, draw): (&f32, u64)| f64::from(*value) + layers.len() as f64 * Key(3).normal(draw);
            image.iter().zip(1..).map(value).collect()
        };
        Ok(images.iter().map(map).collect())
    }

    #[test]
    fn maps_that_depend_on_the_model_lose_their_likeness() {
        let image: Vec<f32> = (0..50).map(|index| index as f32 / 10.0).collect();
        let map: Vec<f64> = image.iter().map(|value| f64::from(*value)).collect();
        let samples = [Sample { index: 0, image: &image, map: &map }];
        let asked = Cell::new(0);
        let explain = |layers: &[usize], images: &[(usize, &[f32])]| {
            asked.set(asked.get() + images.len());
            randomised(layers, images)
        };
        let randomisation = Randomisation {
            samples: &samples,
            layers: 3,
            order: LayerOrder::BottomUp,
            preparation: RAW,
            explain: &explain,
        };
        let similarities = randomisation.similarities(&|a, b| spearman(a, b)).unwrap();
        // One explanation per layer.
        assert_eq!(asked.get(), 3);
        let value = |step: usize| similarities.layers[step][0].clone().unwrap();
        assert!((similarities.original[0].clone().unwrap() - 1.0).abs() < 1e-12);
        assert!(value(0) > value(2) && value(0) < 1.0);
        let mean = similarities.average(Mode::Reference)[0].clone().unwrap();
        assert!((mean - (value(0) + value(1) + value(2)) / 3.0).abs() < 1e-12);
        let with_original = similarities.average(Mode::Quantus)[0].clone().unwrap();
        assert!((with_original - (3.0 * mean + 1.0) / 4.0).abs() < 1e-12);
        assert_eq!(similarities.last()[0], similarities.layers[2][0]);
        asked.set(0);
        let rise = randomisation.entropy_rise(10).unwrap()[0].clone().unwrap();
        assert!(asked.get() == 1 && rise < 0.0, "equal bins of a ramp have the greatest entropy: {rise}");
        asked.set(0);
        let noisy = |_, _, _| image.clone();
        let smooth =
            |mode| randomisation.smooth_similarities(2, &noisy, &|a, b| spearman(a, b), mode).unwrap();
        // Three images for each of four models.
        let reference = smooth(Mode::Reference);
        assert_eq!(asked.get(), 12);
        for (step, layer) in similarities.layers.iter().enumerate() {
            for similarities in [&reference, &smooth(Mode::Quantus)] {
                let ours = similarities.layers[step][0].clone().unwrap();
                assert!((ours - layer[0].clone().unwrap()).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn entropies_by_layer_are_correlated() {
        let image: Vec<f32> = (0..50).map(|index| index as f32 / 10.0).collect();
        let map: Vec<f64> = image.iter().map(|value| f64::from(*value)).collect();
        let samples = [Sample { index: 0, image: &image, map: &map }];
        let randomisation = Randomisation {
            samples: &samples,
            layers: 2,
            order: LayerOrder::TopDown,
            preparation: RAW,
            explain: &randomised,
        };
        let outputs = |layers: &[usize], _: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
            Ok(vec![if layers.is_empty() { vec![0.5, 0.5] } else { vec![1.0, 0.0] }])
        };
        let entropies = randomisation.entropies(10, &outputs).unwrap();
        assert_eq!(entropies.maps.len(), 3);
        assert_eq!(entropies.outputs.iter().map(|row| row[0]).collect::<Vec<_>>()[1..], [0.0, 0.0]);
        assert!((entropies.outputs[0][0] - 2f64.ln()).abs() < 1e-12);
        assert!(entropies.correlations()[0].clone().unwrap() > 0.8);
    }

    #[test]
    fn entropies_of_histograms() {
        assert_eq!(discrete_entropy(&[1.0; 5], 10), 0.0);
        assert!((discrete_entropy(&[0.0, 0.0, 1.0, 1.0], 2) - 2f64.ln()).abs() < 1e-12);
        // The last bin is closed: 1.0 shares it with 0.9.
        assert!((discrete_entropy(&[0.0, 0.9, 1.0], 2) - 0.636_514_168_294_813).abs() < 1e-12);
        assert_eq!(rise((2.0, 3.0)), Ok(0.5));
        assert_eq!(rise((0.0, 3.0)), Err(Undefined::Constant));
    }

    #[test]
    fn another_class_is_never_the_target() {
        let mut seen = [0; 4];
        for draw in 0..200 {
            seen[other_class(Key(5).sub(draw), 2, 4).unwrap()] += 1;
        }
        assert!(seen[2] == 0 && [seen[0], seen[1], seen[3]].iter().all(|count| *count > 40), "{seen:?}");
        assert_eq!(other_class(Key(1), 0, 1), None);
    }

    #[test]
    fn another_class_is_explained_once() {
        let samples = [Sample { index: 0, image: &[0.0], map: &[1.0, 2.0, 3.0] }];
        let other = |images: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
            Ok(vec![vec![3.0, 2.0, 1.0]; images.len()])
        };
        let values = random_logit(&samples, &other, RAW, &|a, b| spearman(a, b)).unwrap();
        assert!((values[0].clone().unwrap() + 1.0).abs() < 1e-12);
    }

    #[test]
    fn invariance_has_a_tolerance() {
        let samples = [Sample { index: 0, image: &[1.0, 2.0], map: &[1.0, 2.0] }];
        let value = |shifted: f64, mode| {
            let explain = |images: &[(usize, &[f32])]| -> Result<Vec<Vec<f64>>> {
                // The model takes the shift of 1 back; its map is the input that it sees.
                let map = |image: &[f32]| image.iter().map(|x| f64::from(*x) - 1.0 + shifted).collect();
                Ok(images.iter().map(|(_, image)| map(image)).collect())
            };
            input_invariance(&samples, &explain, 1.0, mode).unwrap()[0]
        };
        assert_eq!((value(5e-5, Mode::Reference), value(1e-3, Mode::Reference)), (1.0, 0.0));
        assert_eq!(value(0.0, Mode::Quantus), 0.0);
    }
}
