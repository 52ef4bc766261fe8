//! The objective of real-time image saliency (Dabkowski and Gal 2017, "Real Time Image Saliency for Black
//! Box Classifiers").
//!
//! A mask keeps what suffices for the class (the preserver), and what is left without it does not (the
//! destroyer); it is small and smooth. Masks come from a network that is trained with this objective for one classifier and
//! one data set ([`crate::Masker`]), or are found image by image ([`crate::IterativeSaliency`]).

use candle_core::{D, Result as TensorResult, Tensor};
use pipe_models::random::Key;

use crate::Result;
use crate::blur::{Border, gaussian_taps, smoothed};
use crate::resize::{Interpolation, resize};

/// Keeps the slope of a power below 1 from infinity.
const LEAST_AREA: f64 = 0.0005;
/// Takes a class out of a maximum.
const NEVER: f64 = 12_111.0;

/// The power of the price of an area, and of that of differences.
pub(crate) const POWERS: [f64; 2] = [0.3, 2.0];
/// The price of a border in units of that of a difference.
pub(crate) const BORDER: f64 = 0.3;
/// The lead that the class shall have in what is kept, and lack in what is left.
pub(crate) const LEADS: [f64; 2] = [1.0, 5.0];
/// Deviation and radius of the blur that stands for what is gone, for an image of 224.
const BLUR_OF_224: [f64; 2] = [11.0, 27.0];
/// Of noise that stands for it, of its colour on either side of zero, and of noise on the image: shares of the range.
const NOISE: [f64; 3] = [0.055, 0.165, 0.015];
/// Keeps a mask whose two channels are zero from having no value.
const LEAST: f64 = 1e-8;

/// The share `|a| / (|a| + |b|)` of two channels `[rows, 2, height, width]`, `[rows, 1, height, width]`.
pub(crate) fn share_of(channels: &Tensor) -> TensorResult<Tensor> {
    let parts = channels.abs()?;
    let (kept, left) = (parts.narrow(1, 0, 1)?, parts.narrow(1, 1, 1)?);
    &kept / ((&kept + left)? + LEAST)?
}

/// Maps `[rows, channels, height, width]` enlarged linearly between the centres of their places; gradients flow through.
///
/// # Errors
/// Whatever the device reports.
pub fn enlarged(maps: &Tensor, [height, width]: [usize; 2]) -> TensorResult<Tensor> {
    let (_, _, rows, columns) = maps.dims4()?;
    let across = enlarging(columns, width, maps)?.t()?.contiguous()?;
    enlarging(rows, height, maps)?.broadcast_matmul(maps)?.broadcast_matmul(&across)
}

/// The matrix `[to, from]` that enlarges a line linearly.
fn enlarging(from: usize, to: usize, like: &Tensor) -> TensorResult<Tensor> {
    let mut columns = Vec::with_capacity(from * to);
    for cell in 0..from {
        let line: Vec<f32> = (0..from).map(|place| f32::from(u8::from(place == cell))).collect();
        columns.extend(resize(&line, &[from], &[to], Interpolation::Centres));
    }
    Tensor::from_vec(columns, (from, to), like.device())?.t()?.contiguous()
}

/// A blurred copy of an image of channels, rows and columns.
pub(crate) fn blurred(x: &[f32], shape: [usize; 3]) -> Result<Vec<f32>> {
    let [sigma, radius] = BLUR_OF_224.map(|pixels| pixels * shape[1] as f64 / 224.0);
    let taps = gaussian_taps(sigma.max(0.1), radius.round().max(1.0) as usize);
    smoothed(x, &shape, &taps, Border::Mirrored)
}

/// An image with noise, and what stands for what is gone of it: by turns at random its blurred copy, or noise on a
/// random colour.
pub(crate) fn shown(x: &[f32], blurred: &[f32], plane: usize, key: Key) -> [Vec<f32>; 2] {
    let [least, greatest] = x.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[least, greatest], value| {
        [least.min(*value), greatest.max(*value)]
    });
    let [noise, colour, on_image] = NOISE.map(|share| share * f64::from(greatest - least));
    let normal = |stream: u64, place: usize| key.sub(stream).normal(place as u64 + 1);
    let gone = match key.below(1, 2) {
        0 => blurred.to_vec(),
        _ => (0..x.len())
            .map(|place| {
                let share = key.sub(2).uniform((place / plane) as u64 + 1) * 2.0 - 1.0;
                (colour * share + noise * normal(3, place)) as f32
            })
            .collect(),
    };
    let image = x.iter().enumerate();
    let image = image.map(|(place, x)| (f64::from(*x) + on_image * normal(4, place)) as f32).collect();
    [image, gone]
}

/// Images `[rows, channels, height, width]` with a little noise, and what stands for what is gone of each: a blurred copy,
/// or noise on a random colour, as its key decides.
///
/// # Errors
/// If there is not a key per image, or the device fails.
pub fn without(images: &Tensor, keys: &[Key]) -> Result<[Tensor; 2]> {
    let (rows, channels, height, width) = images.dims4()?;
    if keys.len() != rows {
        let reason = format!("{rows} images have {} keys", keys.len());
        return Err(crate::AttributionError::Settings(reason));
    }
    let values: Vec<f32> = images.flatten_all()?.to_vec1()?;
    let (mut noisy, mut gone) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len()));
    for (x, key) in values.chunks_exact((channels * height * width).max(1)).zip(keys) {
        let [own, left] = shown(x, &blurred(x, [channels, height, width])?, height * width, *key);
        noisy.extend(own);
        gone.extend(left);
    }
    let tensor = |values: Vec<f32>| Tensor::from_vec(values, images.shape(), images.device());
    Ok([tensor(noisy)?, tensor(gone)?])
}

/// What a masker is asked for of one image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The class.
    pub class: u32,
    /// Whether the image does not show it: then there is nothing to keep.
    pub is_fake: bool,
}

/// The prices of the objective, that of what is left of the image being 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct MaskerPrices {
    /// Of the area that is kept.
    pub area: f64,
    /// Of differences between neighbours.
    pub smoothness: f64,
    /// Of what is kept.
    pub preserver: f64,
}

impl Default for MaskerPrices {
    /// Those of the authors' repository.
    fn default() -> Self {
        Self { area: 8.0, smoothness: 0.5, preserver: 0.3 }
    }
}

impl MaskerPrices {
    /// The objective that masks `[rows, 1, height, width]` are trained with, as large as the images that are `shown`, whose
    /// values are `gone` where a mask is 0: what is kept leads for its class by 1, and what is left lags by 5. Of a class
    /// that is not there, what is kept lags by 1 and what is left leads by 1. `logits` are those of the classifier,
    /// `[rows, classes]`, which sees each image twice.
    ///
    /// # Errors
    /// If the shapes do not fit or the classifier fails.
    pub fn loss(
        &self,
        masks: &Tensor,
        [shown, gone]: [&Tensor; 2],
        asked: &[Asked],
        logits: &dyn Fn(&Tensor) -> TensorResult<Tensor>,
    ) -> TensorResult<Tensor> {
        let way = (shown - gone)?;
        let kept = (gone + way.broadcast_mul(masks)?)?;
        let left = (shown - way.broadcast_mul(masks)?)?;
        let logits = logits(&Tensor::cat(&[&kept, &left], 0)?)?;
        let [keep, lack] = LEADS;
        let preserver =
            hinges(&logits.narrow(0, 0, asked.len())?, asked, [Wanted::Above(keep), Wanted::Below(keep)])?;
        let destroyer = hinges(
            &logits.narrow(0, asked.len(), asked.len())?,
            asked,
            [Wanted::Below(lack), Wanted::Above(keep)],
        )?;
        let area = (area_loss(masks, POWERS[0])? * self.area)?;
        let roughness = (smoothness_loss(masks, POWERS[1], BORDER)? * self.smoothness)?;
        ((destroyer + area)? + roughness)? + (preserver * self.preserver)?
    }
}

/// The mean over rows of what is missing of a lead, wanted of classes that are there and of those that are not.
fn hinges(logits: &Tensor, asked: &[Asked], [of_real, of_fake]: [Wanted; 2]) -> TensorResult<Tensor> {
    let classes = logits.dim(D::Minus1)?;
    let mut sum = Tensor::zeros((), logits.dtype(), logits.device())?;
    for (is_fake, wanted) in [(false, of_real), (true, of_fake)] {
        let rows: Vec<u32> =
            (0..asked.len()).filter(|row| asked[*row].is_fake == is_fake).map(|row| row as u32).collect();
        if rows.is_empty() {
            continue;
        }
        let count = rows.len();
        let one_hot: Vec<f32> = rows
            .iter()
            .flat_map(|row| {
                let own = asked[*row as usize].class as usize;
                (0..classes).map(move |class| f32::from(u8::from(class == own)))
            })
            .collect();
        let one_hot = Tensor::from_vec(one_hot, (count, classes), logits.device())?;
        let own = logits.contiguous()?.index_select(&Tensor::from_vec(rows, count, logits.device())?, 0)?;
        sum = (sum + (margin_loss(&own, &one_hot, wanted)? * (count as f64 / asked.len() as f64))?)?;
    }
    Ok(sum)
}

/// The mean of `(m + 0.0005)^power` over all values of masks, or of the masks themselves at power 1.
///
/// # Errors
/// Whatever the device reports; likewise below.
pub fn area_loss(masks: &Tensor, power: f64) -> TensorResult<Tensor> {
    if power == 1.0 {
        return masks.mean_all();
    }
    (masks + LEAST_AREA)?.powf(power)?.mean_all()
}

/// The sum of the absolute differences of neighbours to a power, and of the masks' outermost values to it
/// times `border`, over the power and the number of masks `[masks, 1, rows, columns]`.
///
/// # Errors
/// If masks have fewer than two rows or columns.
pub fn smoothness_loss(masks: &Tensor, power: f64, border: f64) -> TensorResult<Tensor> {
    let (count, _, rows, columns) = masks.dims4()?;
    let raised = |values: Tensor| values.abs()?.powf(power)?.sum_all();
    let difference = |axis: usize, length: usize| {
        raised((masks.narrow(axis, 1, length - 1)? - masks.narrow(axis, 0, length - 1)?)?)
    };
    let mut sum = (difference(2, rows)? + difference(3, columns)?)?;
    for (axis, place) in [(2, 0), (2, rows - 1), (3, 0), (3, columns - 1)] {
        sum = (sum + (raised(masks.narrow(axis, place, 1)?)? * border)?)?;
    }
    sum / (power * count as f64)
}

/// What a class's logit should be.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Wanted {
    /// Above every other by this much: the preserver.
    Above(f64),
    /// Below the best other by this much: the destroyer.
    Below(f64),
}

/// The hinge loss of Carlini and Wagner on `logits` `[rows, classes]` for the classes of `one_hot` (the same
/// shape): the mean over rows of how much is missing.
///
/// # Errors
/// If the shapes differ.
pub fn margin_loss(logits: &Tensor, one_hot: &Tensor, wanted: Wanted) -> TensorResult<Tensor> {
    let own = (logits * one_hot)?.sum(D::Minus1)?;
    let others = ((logits * one_hot.affine(-1.0, 1.0)?)? - (one_hot * NEVER)?)?.max(D::Minus1)?;
    let missing = match wanted {
        Wanted::Above(margin) => ((others - own)? + margin)?,
        Wanted::Below(margin) => ((own - others)? + margin)?,
    };
    missing.relu()?.mean_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::testing::{host, normal};

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn number(loss: Tensor) -> f64 {
        f64::from(loss.to_scalar::<f32>().unwrap())
    }

    #[test]
    fn losses_are_those_of_their_definition() {
        let mask = tensor(&[0.0, 1.0, 0.5, 0.5, 0.5, 0.5], &[1, 1, 2, 3]);
        assert!((number(area_loss(&mask, 1.0).unwrap()) - 0.5).abs() < 1e-6);
        let root = (0.0005f64.sqrt() + 1.0005f64.sqrt() + 4.0 * 0.5005f64.sqrt()) / 6.0;
        assert!((number(area_loss(&mask, 0.5).unwrap()) - root).abs() < 1e-6);
        // Down 0.25 + 0.25 + 0, right 1 + 0.25; corners twice: 1.25 + 0.75 and 0.25 + 0.5 at the border.
        let expected = (1.75 + 0.3 * 2.75) / 2.0;
        assert!((number(smoothness_loss(&mask, 2.0, 0.3).unwrap()) - expected).abs() < 1e-6);
        let logits = tensor(&[2.0, 1.0, 0.0, -1.0, 3.0, 0.0], &[2, 3]);
        let classes = tensor(&[1.0, 0.0, 0.0, 0.0, 0.0, 1.0], &[2, 3]);
        let of = |wanted| number(margin_loss(&logits, &classes, wanted).unwrap());
        assert_eq!(of(Wanted::Above(1.5)), (0.5 + 4.5) / 2.0);
        assert_eq!(of(Wanted::Below(1.5)), (2.5 + 0.0) / 2.0);
    }

    #[test]
    fn losses_have_their_gradient() {
        let start = (normal(3, &[2, 1, 3, 4]).sqr().unwrap() + 0.3).unwrap();
        let losses: [fn(&Tensor) -> TensorResult<Tensor>; 3] = [
            |mask| area_loss(mask, 0.3),
            |mask| smoothness_loss(mask, 2.0, 0.3),
            |mask| margin_loss(&mask.reshape((6, 4))?, &one_hot(), Wanted::Above(1.0)),
        ];
        for loss in losses {
            let mask = Var::from_tensor(&start).unwrap();
            let gradient = host(loss(&mask).unwrap().backward().unwrap().get(&mask).unwrap());
            for (index, gradient) in gradient.iter().enumerate() {
                let at = |delta: f32| {
                    let mut moved = host(&start);
                    moved[index] += delta;
                    number(loss(&tensor(&moved, &[2, 1, 3, 4])).unwrap())
                };
                let difference = (at(2e-3) - at(-2e-3)) / 4e-3;
                assert!((difference - f64::from(*gradient)).abs() < 2e-2, "{index}: {difference} {gradient}");
            }
        }
    }

    fn one_hot() -> Tensor {
        let values: Vec<f32> = (0..24).map(|index| f32::from(u8::from(index % 5 == 0))).collect();
        tensor(&values, &[6, 4])
    }
}
