//! The objective of real-time image saliency (Dabkowski and Gal 2017, "Real Time Image Saliency for Black
//! Box Classifiers").
//!
//! A mask keeps what suffices for the class (the preserver), and what is left without it does not (the
//! destroyer); it is small and smooth. The masks themselves come from a network that is trained with this
//! objective for one classifier and one data set.

use candle_core::{D, Result as TensorResult, Tensor};

/// Keeps the slope of a power below 1 from infinity.
const LEAST_AREA: f64 = 0.0005;
/// Takes a class out of a maximum.
const NEVER: f64 = 12_111.0;

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
