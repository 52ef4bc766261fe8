//! The network of real-time image saliency (Dabkowski and Gal 2017): one pass of a classifier and of a small decoder of its
//! features is a mask. It is trained for one classifier on a table of images.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, Device, Result as TensorResult, Tensor, Var, bail};
use pipe_models::ops::composed::sigmoid;
use pipe_models::ops::{Window, activate, conv2d, linear};
use pipe_models::random::Key;
use pipe_models::{Activation, Probe};

use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::real_time_saliency::{enlarged, share_of};
use crate::{AttributionError, Result};

/// Pixels of an image along a side for each value of a mask.
const QUARTER: usize = 4;
/// Keeps the size of a place from zero.
const LEAST_SQUARE: f64 = 1e-6;
const KERNEL: usize = 3;
/// A convolution that keeps the size.
const SAME: Window = Window { stride: 1, padding: 1 };

/// A layer of the classifier that a masker reads: a map, or tokens that are the cells of a grid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskerLayer {
    /// Its name, as probes see it.
    pub name: String,
    /// Tokens before the first cell; 0 of a map.
    pub prefix: usize,
    /// Rows and columns.
    pub grid: [usize; 2],
    /// Values of each place.
    pub channels: usize,
}

impl MaskerLayer {
    /// `[batch, rows, columns, channels]` with a mean square of 1 at each place, whatever the scale of the layer.
    fn laid_out(&self, value: &Tensor) -> TensorResult<Tensor> {
        let ([rows, columns], channels) = (self.grid, self.channels);
        let batch = value.dim(0)?;
        let value = match value.dims() {
            [_, own, height, width] if [*own, *height, *width] == [channels, rows, columns] => {
                value.permute((0, 2, 3, 1))?.contiguous()?
            }
            [_, tokens, own] if [*tokens, *own] == [self.prefix + rows * columns, channels] => value
                .narrow(1, self.prefix, rows * columns)?
                .contiguous()?
                .reshape((batch, rows, columns, channels))?,
            found => {
                bail!("`{}` is {found:?}, not {channels} values at {rows} x {columns} places", self.name)
            }
        };
        let size = (value.sqr()?.mean_keepdim(D::Minus1)? + LEAST_SQUARE)?.sqrt()?;
        value.broadcast_div(&size)
    }
}

/// Remembers the layers that a masker reads while a classifier looks at images.
pub struct MaskerProbe<'a> {
    layers: &'a [MaskerLayer],
    seen: RefCell<Vec<Option<Tensor>>>,
}

impl Probe for MaskerProbe<'_> {
    fn activation(&self, name: &str, value: Tensor) -> TensorResult<Tensor> {
        if let Some(place) = self.layers.iter().position(|layer| layer.name == name) {
            self.seen.borrow_mut()[place] = Some(value.detach());
        }
        Ok(value)
    }
}

impl MaskerProbe<'_> {
    /// What was seen, the finest layer first, `[batch, rows, columns, channels]` each. No gradient leads through it.
    ///
    /// # Errors
    /// If the classifier did not show a layer, or one of another shape.
    pub fn features(&self) -> TensorResult<Vec<Tensor>> {
        let seen = self.seen.borrow();
        self.layers
            .iter()
            .zip(seen.iter())
            .map(|(layer, seen)| match seen {
                Some(value) => layer.laid_out(value),
                None => bail!("the classifier did not show its layer `{}`", layer.name),
            })
            .collect()
    }
}

/// What a masker is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaskerSizes {
    /// What it reads, the finest layer first; at least one.
    pub layers: Vec<MaskerLayer>,
    /// Classes that it can be asked for.
    pub classes: usize,
    /// Channels between its layers.
    pub width: usize,
    /// Rows and columns of an image.
    pub image: [usize; 2],
}

impl MaskerSizes {
    /// Rows and columns of a mask: a quarter of the image's, or as many as the finest layer has.
    pub fn mask(&self) -> [usize; 2] {
        let finest = self.layers.first().map_or([1; 2], |layer| layer.grid);
        [0, 1].map(|axis| self.image[axis].div_ceil(QUARTER).max(finest[axis]))
    }

    /// Names and shapes of all parameters, and how many inputs each value of theirs has.
    fn parameters(&self) -> Vec<(String, Vec<usize>, usize)> {
        let deepest = self.layers.last().map_or(0, |layer| layer.channels);
        let (width, window) = (self.width, KERNEL * KERNEL);
        let mut all = vec![
            ("selector.weight".to_owned(), vec![self.classes, deepest], deepest),
            ("selector.bias".to_owned(), vec![self.classes], 0),
            ("mask.weight".to_owned(), vec![2, KERNEL, KERNEL, width], window * width),
            ("mask.bias".to_owned(), vec![2], 0),
        ];
        for (place, layer) in self.layers.iter().enumerate() {
            all.push((format!("lateral.{place}.weight"), vec![width, layer.channels], layer.channels));
            all.push((format!("lateral.{place}.bias"), vec![width], 0));
            if place + 1 < self.layers.len() {
                let shape = vec![width, KERNEL, KERNEL, 2 * width];
                all.push((format!("merge.{place}.weight"), shape, 2 * width * window));
                all.push((format!("merge.{place}.bias"), vec![width], 0));
            }
        }
        all
    }
}

/// The decoder: the deepest layer, of which a class chooses places, enlarged layer by layer and joined with the finer ones,
/// down to two channels whose shares are the mask.
#[derive(Clone, Debug)]
pub struct Masker {
    sizes: MaskerSizes,
    parameters: BTreeMap<String, Var>,
}

impl Masker {
    /// One that knows nothing yet: weights are drawn by `key`.
    ///
    /// # Errors
    /// If there is no layer, or the device fails.
    pub fn random(sizes: MaskerSizes, key: Key) -> Result<Self> {
        let draw = |(number, (name, shape, inputs)): (usize, (String, Vec<usize>, usize))| {
            let count = shape.iter().product::<usize>() as u64;
            let key = key.sub(number as u64 + 1);
            let values: Vec<f32> = match inputs {
                // The two channels begin alike, away from the corner of their absolute value.
                0 if name == "mask.bias" => vec![1.0; count as usize],
                0 => vec![0.0; count as usize],
                inputs => {
                    let deviation = libm::sqrt(2.0 / inputs as f64);
                    (1..=count).map(|counter| (key.normal(counter) * deviation) as f32).collect()
                }
            };
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        };
        let tensors = sizes.parameters().into_iter().enumerate().map(draw);
        let tensors = tensors.collect::<TensorResult<BTreeMap<_, _>>>()?;
        Self::new(sizes, tensors)
    }

    /// One of these tensors, by the names of [`Self::tensors`].
    ///
    /// # Errors
    /// If there is no layer, or a tensor is missing, left over or of another shape.
    pub fn new(sizes: MaskerSizes, mut tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        if sizes.layers.is_empty() || sizes.classes == 0 || sizes.width == 0 {
            return Err(AttributionError::Settings("a masker reads a layer, for a class".to_owned()));
        }
        let mut parameters = BTreeMap::new();
        for (name, shape, _) in sizes.parameters() {
            let found = tensors.remove(&name);
            match found {
                Some(tensor) if tensor.dims() == shape => {
                    parameters.insert(name, Var::from_tensor(&tensor.detach())?);
                }
                other => {
                    let found = other.as_ref().map(Tensor::dims);
                    return Err(AttributionError::Settings(format!(
                        "the masker's `{name}` is {found:?}; {shape:?} is expected"
                    )));
                }
            }
        }
        match tensors.keys().next() {
            Some(name) => Err(AttributionError::Settings(format!("the masker has no `{name}`"))),
            None => Ok(Self { sizes, parameters }),
        }
    }

    /// What it is made of.
    pub fn sizes(&self) -> &MaskerSizes {
        &self.sizes
    }

    /// What an optimiser changes, by name.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// The parameters as they are, detached.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.parameters.iter().map(|(name, variable)| (name.clone(), variable.as_detached_tensor())).collect()
    }

    /// What sees the classifier's layers for it.
    pub fn probe(&self) -> MaskerProbe<'_> {
        let layers = &self.sizes.layers;
        MaskerProbe { layers, seen: RefCell::new(vec![None; layers.len()]) }
    }

    fn parameter(&self, name: &str) -> TensorResult<&Tensor> {
        match self.parameters.get(name) {
            Some(variable) => Ok(variable.as_tensor()),
            None => bail!("the masker has no `{name}`"),
        }
    }

    /// How much each place of the deepest layer speaks for a class, `[batch, rows, columns]`.
    fn votes(&self, features: &[Tensor], classes: &[u32]) -> TensorResult<Tensor> {
        let Some(deepest) = features.last() else { bail!("there are no features") };
        let (batch, rows, columns, channels) = deepest.dims4()?;
        let classes = Tensor::from_slice(classes, classes.len(), deepest.device())?;
        let own =
            self.parameter("selector.weight")?.index_select(&classes, 0)?.reshape((batch, channels, 1))?;
        let bias = self.parameter("selector.bias")?.index_select(&classes, 0)?.reshape((batch, 1, 1))?;
        let votes = deepest.reshape((batch, rows * columns, channels))?.matmul(&own)?;
        let votes = (votes / (channels as f64).sqrt())?.broadcast_add(&bias)?;
        votes.reshape((batch, rows, columns))
    }

    /// The logit of each class's being in its image, `[batch]`: what the selector of classes learns from first.
    ///
    /// # Errors
    /// If the shapes do not fit; likewise below.
    pub fn presence(&self, features: &[Tensor], classes: &[u32]) -> TensorResult<Tensor> {
        self.votes(features, classes)?.flatten_from(1)?.mean(1)
    }

    /// The mask of each image for its class, in \[0, 1\], `[batch, 1, rows, columns]` of [`MaskerSizes::mask`].
    ///
    /// # Errors
    /// As above.
    pub fn masks(&self, features: &[Tensor], classes: &[u32]) -> TensorResult<Tensor> {
        let rectified = |x: Tensor| activate(&x, Activation::Relu);
        let lateral = |place: usize, x: &Tensor| {
            let weight = self.parameter(&format!("lateral.{place}.weight"))?;
            rectified(linear(x, weight, Some(self.parameter(&format!("lateral.{place}.bias"))?))?)
        };
        let deepest = features.len().saturating_sub(1);
        let chosen = sigmoid(&self.votes(features, classes)?)?.unsqueeze(3)?;
        let mut x = lateral(deepest, &features[deepest].broadcast_mul(&chosen)?)?;
        for place in (0..deepest).rev() {
            let up = larger(&x, self.sizes.layers[place].grid)?;
            let both = Tensor::cat(&[&up, &lateral(place, &features[place])?], 3)?;
            let bias = self.parameter(&format!("merge.{place}.bias"))?;
            x = rectified(conv2d(
                &both,
                self.parameter(&format!("merge.{place}.weight"))?,
                Some(bias),
                SAME,
            )?)?;
        }
        let x = larger(&x, self.sizes.mask())?;
        let channels = conv2d(&x, self.parameter("mask.weight")?, Some(self.parameter("mask.bias")?), SAME)?;
        share_of(&channels.permute((0, 3, 1, 2))?.contiguous()?)
    }
}

/// `[batch, rows, columns, channels]` enlarged linearly.
fn larger(x: &Tensor, to: [usize; 2]) -> TensorResult<Tensor> {
    if [x.dim(1)?, x.dim(2)?] == to {
        return Ok(x.clone());
    }
    enlarged(&x.permute((0, 3, 1, 2))?.contiguous()?, to)?.permute((0, 2, 3, 1))?.contiguous()
}

/// The mask that a trained [`Masker`] makes for the class of each sample. The score has to be of the classifier that it was
/// trained for. One forward pass per row, in which the classifier's layers are read, and one of the masker, which is not
/// counted: it is small beside the classifier.
#[derive(Clone, Debug)]
pub struct TrainedSaliency {
    /// The trained network.
    pub masker: Arc<Masker>,
    /// The class that each sample is asked for.
    pub classes: Vec<u32>,
}

impl Method for TrainedSaliency {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let sizes = self.masker.sizes();
        if inputs.row_shape().get(1..) != Some(&sizes.image[..]) {
            return Err(AttributionError::Settings(format!(
                "the masker is of images of {:?}, not of {:?}",
                sizes.image,
                inputs.row_shape()
            )));
        }
        let (mut masks, mut scores) = (Vec::new(), Vec::with_capacity(inputs.rows()));
        for part in evaluator.parts(inputs)? {
            let probe = self.masker.probe();
            scores.extend(host(&evaluator.probed(&part, part.values(), &probe)?)?);
            let class = |sample: &usize| match self.classes.get(*sample) {
                Some(class) if (*class as usize) < sizes.classes => Ok(*class),
                class => Err(AttributionError::Settings(format!(
                    "sample {sample} is asked for class {class:?} of {}",
                    sizes.classes
                ))),
            };
            let classes = part.samples().iter().map(class).collect::<Result<Vec<_>>>()?;
            let found = self.masker.masks(&probe.features()?, &classes)?;
            masks.extend(found.detach().flatten_all()?.to_vec1::<f32>()?);
        }
        let [rows, columns] = sizes.mask();
        Ok(Attribution {
            values: inputs.tensor(masks, &[1, rows, columns])?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: 0 })
    }
}

#[cfg(test)]
mod tests {
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::real_time_saliency::{Asked, MaskerPrices, without};
    use crate::testing::host as values_of;
    use crate::{Score, enlarged};

    const SIDE: usize = 16;

    /// Two classes: bright in the upper left quarter, or in the lower right one. Its layers are means of cells of 2 and 4
    /// pixels, the second as tokens behind one that is none.
    struct Quarters;

    fn cells(x: &Tensor, length: usize) -> TensorResult<Tensor> {
        let (batch, _, rows, columns) = x.dims4()?;
        let x = x.mean_keepdim(1)?;
        let x = x.reshape((batch, rows / length, length, columns / length, length))?;
        x.mean(4)?.mean(2)?.unsqueeze(1)
    }

    /// A place beside what it is not: two channels.
    fn channels(x: &Tensor) -> TensorResult<Tensor> {
        Tensor::cat(&[x, &x.affine(-1.0, 1.0)?], 1)
    }

    impl Quarters {
        fn logits(&self, x: &Tensor, probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            if let Some(probe) = probe {
                probe.activation("fine", channels(&cells(x, 2)?)?)?;
                let coarse = channels(&cells(x, 4)?)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
                probe.activation("coarse", Tensor::cat(&[&coarse.narrow(1, 0, 1)?, &coarse], 1)?)?;
            }
            let half = SIDE / 2;
            let quarter =
                |start: usize| x.narrow(2, start, half)?.narrow(3, start, half)?.flatten_from(1)?.mean(1);
            Tensor::stack(&[&quarter(0)?, &quarter(half)?], 1)?.affine(24.0, -6.0)
        }
    }

    impl Score for Quarters {
        fn score(&self, x: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            self.logits(x, probe)?.narrow(1, 0, 1)?.squeeze(1)
        }
    }

    fn sizes() -> MaskerSizes {
        let layer = |name: &str, prefix, side| MaskerLayer {
            name: name.to_owned(),
            prefix,
            grid: [side; 2],
            channels: 2,
        };
        let layers = vec![layer("fine", 0, 8), layer("coarse", 1, 4)];
        MaskerSizes { layers, classes: 2, width: 6, image: [SIDE; 2] }
    }

    /// Images of one quarter that is bright, of class 0 and 1 in turn.
    fn images(count: usize) -> Tensor {
        let pixel = |place: usize| {
            let (image, y, x) = (place / (3 * SIDE * SIDE), place / SIDE % SIDE, place % SIDE);
            let is_first = y.max(x) < SIDE / 2;
            let is_last = y.min(x) >= SIDE / 2;
            if (image % 2 == 0 && is_first) || (image % 2 == 1 && is_last) { 1.0 } else { 0.1f32 }
        };
        let values: Vec<f32> = (0..count * 3 * SIDE * SIDE).map(pixel).collect();
        Tensor::from_vec(values, (count, 3, SIDE, SIDE), &Device::Cpu).unwrap()
    }

    #[test]
    fn training_finds_what_the_class_needs() {
        let masker = Masker::random(sizes(), Key(5)).unwrap();
        let options = pipe_models::train::AdamWOptions { weight_decay: 0.0, ..Default::default() };
        let mut rule = pipe_models::train::AdamW::new(masker.variables(), options, |_, _| {
            pipe_models::train::Group { rate: 1.0, decay: false }
        });
        let images = images(4);
        let prices = MaskerPrices { area: 2.0, ..MaskerPrices::default() };
        let mut first = None;
        let mut last = 0.0;
        for step in 0..60u64 {
            let asked: Vec<Asked> = (0..4)
                .map(|row| {
                    let is_fake = Key(9).sub(step).uniform(row + 1) < 0.3;
                    Asked { class: (row as u32 + u32::from(is_fake)) % 2, is_fake }
                })
                .collect();
            let classes: Vec<u32> = asked.iter().map(|asked| asked.class).collect();
            let keys: Vec<Key> = (0..4).map(|row| Key(step).sub(row + 1)).collect();
            let [shown, gone] = without(&images, &keys).unwrap();
            let probe = masker.probe();
            Quarters.logits(&shown, Some(&probe)).unwrap();
            let masks = masker.masks(&probe.features().unwrap(), &classes).unwrap();
            let masks = enlarged(&masks, [SIDE; 2]).unwrap();
            let logits = |x: &Tensor| Quarters.logits(x, None);
            let loss = prices.loss(&masks, [&shown, &gone], &asked, &logits).unwrap();
            last = loss.to_scalar::<f32>().unwrap();
            first.get_or_insert(last);
            rule.step(&loss.backward().unwrap(), 0.02, 1.0).unwrap();
        }
        assert!(last < 0.8 * first.unwrap(), "{first:?} {last}");
        let method = TrainedSaliency { masker: Arc::new(masker), classes: vec![0, 1] };
        let inputs = Inputs::new(&images.narrow(0, 0, 2).unwrap()).unwrap();
        let evaluator = Evaluator::new(&Quarters, 1);
        let found = method.attribute(&evaluator, &inputs).unwrap();
        assert_eq!(evaluator.passes(), Passes { forward: 2, backward: 0 });
        assert_eq!(method.cost(&[3, SIDE, SIDE]).unwrap(), Passes { forward: 1, backward: 0 });
        assert_eq!(found.values.dims(), [2, 1, 8, 8]);
        let values = values_of(&found.values);
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        let mean = |row: usize, quarter: usize| {
            let inside = |place: &usize| place / 8 / 4 == quarter && place % 8 / 4 == quarter;
            (0..64).filter(inside).map(|place| f64::from(values[row * 64 + place])).sum::<f64>() / 16.0
        };
        for row in [0, 1] {
            assert!(
                mean(row, row) > mean(row, 1 - row) + 0.2,
                "{row}: {} {}",
                mean(row, row),
                mean(row, 1 - row)
            );
        }
        // Neither the batch nor the company matters.
        let together = method.attribute(&Evaluator::new(&Quarters, 8), &inputs).unwrap();
        for (one, other) in values_of(&together.values).iter().zip(&values) {
            assert!((one - other).abs() < 1e-5);
        }
    }

    #[test]
    fn the_selector_learns_which_class_is_there() {
        let masker = Masker::random(sizes(), Key(5)).unwrap();
        let probe = masker.probe();
        Quarters.logits(&images(2), Some(&probe)).unwrap();
        let features = probe.features().unwrap();
        assert_eq!(features[1].dims(), [2, 4, 4, 2]);
        let logits = masker.presence(&features, &[0, 1]).unwrap();
        let gradients = logits.sum_all().unwrap().backward().unwrap();
        let reached = |name: &str| gradients.get(masker.variables()[name].as_tensor()).is_some();
        assert!(reached("selector.weight") && reached("selector.bias") && !reached("mask.weight"));
    }

    #[test]
    fn a_masker_is_what_its_tensors_say() {
        let masker = Masker::random(sizes(), Key(5)).unwrap();
        let again = Masker::new(sizes(), masker.tensors()).unwrap();
        assert_eq!(again.sizes(), masker.sizes());
        let mut more = masker.tensors();
        more.insert("other".to_owned(), Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap());
        assert!(Masker::new(sizes(), more).unwrap_err().to_string().contains("other"));
        let mut less = masker.tensors();
        less.remove("mask.bias");
        assert!(Masker::new(sizes(), less).unwrap_err().to_string().contains("mask.bias"));
        let method = TrainedSaliency { masker: Arc::new(again), classes: vec![0] };
        let evaluator = Evaluator::new(&Quarters, 4);
        // The second sample has no class, and images of another size no layers.
        let two = Inputs::new(&images(2)).unwrap();
        assert!(method.attribute(&evaluator, &two).is_err());
        let small = Inputs::new(&images(1).narrow(2, 0, 8).unwrap()).unwrap();
        assert!(method.attribute(&evaluator, &small).is_err());
    }
}
