//! Robustness: how much a map changes when the image hardly does. The explanation is computed again for
//! each changed image; these are functions of what was before and after.
//!
//! Lower is better, except for [`consistency`]. Values per draw are gathered by [`greatest`] and
//! [`average`].

use super::{Mode, Shape, Undefined, Value};

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b))
}

fn image_distance(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

/// The distance of two maps over the norm of the first: what max- and avg-sensitivity gather (Yeh et al.
/// 2019).
pub fn relative_change(map: &[f64], changed: &[f64]) -> f64 {
    distance(map, changed) / norm(map.iter().copied())
}

/// The distance of two maps over that of their images (local Lipschitz estimate; Alvarez-Melis and Jaakkola
/// 2018).
pub fn local_lipschitz(map: &[f64], changed: &[f64], image: &[f32], changed_image: &[f32]) -> f64 {
    distance(map, changed) / (image_distance(image, changed_image) + 1e-10)
}

/// The summed difference of two maps over the distance of their images (continuity; Montavon, Samek and
/// Müller 2018, as Quantus has it).
pub fn continuity(map: &[f64], changed: &[f64], image: &[f32], changed_image: &[f32]) -> f64 {
    let difference: f64 = map.iter().zip(changed).map(|(a, b)| (a - b).abs()).sum();
    difference / (image_distance(image, changed_image) + 1e-9)
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

/// The shifts of Quantus's continuity: `steps` of them, through the width and out on the other side.
pub fn continuity_shifts(width: usize, steps: usize) -> impl Iterator<Item = i64> {
    let step = ((2 * width + 1) / steps.max(1)) as i64;
    (1..=steps as i64).map(move |index| index * step - width as i64)
}

/// The norm of (a - b) / a, elementwise, with 1e-6 where a is exactly 0.
pub fn relative_difference(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    norm(a.zip(b).map(|(a, b)| (a - b) / if a == 0.0 { 1e-6 } else { a }))
}

/// Relative stability (Agarwal et al. 2022): the relative difference of two maps over `change`, that of
/// the inputs or representations, or the distance of the outputs. Reference: a change below 1e-6 counts
/// as that; Quantus: only one of exactly 0 does.
pub fn relative_stability(map: &[f64], changed: &[f64], change: f64, mode: Mode) -> f64 {
    let change = match mode {
        Mode::Reference => change.max(1e-6),
        Mode::Quantus if change == 0.0 => 1e-6,
        Mode::Quantus => change,
    };
    relative_difference(map.iter().copied(), changed.iter().copied()) / change
}

/// The draws that count. `kept[i]`: the prediction of draw i is that of the image. Quantus has no value
/// as soon as one changed; reference leaves those out.
fn counted(values: &[f64], kept: Option<&[bool]>, mode: Mode) -> Result<Vec<f64>, Undefined> {
    let kept = |index: usize| kept.is_none_or(|kept| kept[index]);
    let rest: Vec<f64> = (0..values.len()).filter(|index| kept(*index)).map(|index| values[index]).collect();
    let all_changed = rest.is_empty();
    if all_changed || (mode == Mode::Quantus && rest.len() < values.len()) {
        return Err(Undefined::PredictionChanged);
    }
    Ok(rest)
}

/// The greatest of the draws; `kept` says which left the prediction as it was, where that matters.
///
/// # Errors
/// If the prediction changed: in every draw (reference), in one (Quantus).
pub fn greatest(values: &[f64], kept: Option<&[bool]>, mode: Mode) -> Value {
    Ok(counted(values, kept, mode)?.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

/// The mean of the draws.
///
/// # Errors
/// As [`greatest`].
pub fn average(values: &[f64], kept: Option<&[bool]>, mode: Mode) -> Value {
    let values = counted(values, kept, mode)?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
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

    #[test]
    fn hand_computed_changes() {
        assert_eq!(relative_change(&[3.0, 4.0], &[3.0, 5.0]), 0.2);
        assert!((local_lipschitz(&[1.0], &[3.0], &[0.0], &[0.5]) - 4.0).abs() < 1e-6);
        assert!((continuity(&[1.0, 1.0], &[3.0, 0.0], &[0.0], &[0.5]) - 6.0).abs() < 1e-6);
        let change = relative_difference([2.0, 0.0].into_iter(), [1.0, 0.0].into_iter());
        assert_eq!(change, 0.5);
        assert_eq!(relative_stability(&[2.0], &[1.0], change, Mode::Quantus), 1.0);
        assert_eq!(relative_stability(&[2.0], &[1.0], 1e-9, Mode::Reference), 0.5e6);
        assert_eq!(relative_stability(&[2.0], &[1.0], 0.0, Mode::Quantus), 0.5e6);
    }

    #[test]
    fn one_changed_prediction_is_too_much_for_quantus() {
        let (values, kept) = ([1.0, 5.0, 3.0], [true, false, true]);
        assert_eq!(greatest(&values, None, Mode::Quantus), Ok(5.0));
        assert_eq!(greatest(&values, Some(&kept), Mode::Quantus), Err(Undefined::PredictionChanged));
        assert_eq!(greatest(&values, Some(&kept), Mode::Reference), Ok(3.0));
        assert_eq!(average(&values, Some(&kept), Mode::Reference), Ok(2.0));
        assert!(average(&values, Some(&[false; 3]), Mode::Reference).is_err());
    }

    #[test]
    fn shifts_leave_the_image_on_the_other_side() {
        let shape = Shape { channels: 1, height: 2, width: 3 };
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(translated(&image, shape, 1, 0.0), [0.0, 1.0, 2.0, 0.0, 4.0, 5.0]);
        assert_eq!(translated(&image, shape, -2, 9.0), [3.0, 9.0, 9.0, 6.0, 9.0, 9.0]);
        assert_eq!(continuity_shifts(28, 14).collect::<Vec<_>>()[..3], [-24, -20, -16]);
    }

    #[test]
    fn consistency_counts_like_maps() {
        let labels = [first_signs(&[1.0, -1.0]), first_signs(&[2.0, -3.0]), first_signs(&[-1.0, 0.0])];
        let reference = consistency(&labels, &[0, 0, 0], Mode::Reference);
        assert_eq!(reference, [Ok(1.0), Ok(1.0), Err(Undefined::NoNeighbour)]);
        assert_eq!(consistency(&labels, &[0, 1, 0], Mode::Quantus), [Ok(0.0), Ok(0.0), Ok(0.0)]);
    }
}
