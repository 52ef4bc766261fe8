//! Principal components of rows of values.

/// Passes over all pairs of columns at most; some ten are enough for a thousand of them.
const SWEEPS: usize = 40;
/// Columns whose cosine is less are orthogonal.
const ORTHOGONAL: f64 = 1e-12;

/// What rows of `columns` values are along their first `kept` principal axes, row-major and centred: the axes along which
/// the rows differ most, each at right angles to those before. Of either direction of an axis that in which the value of
/// greatest size is positive.
///
/// The columns are turned against each other in pairs until all are orthogonal (one-sided rotations after Hestenes 1958
/// and Jacobi 1846), one after the other in double precision, so that the digits do not depend on the number of threads.
pub(crate) fn principal_components(values: &[f32], columns: usize, kept: usize) -> Vec<f32> {
    let rows = values.len().checked_div(columns).unwrap_or(0);
    let kept = kept.min(columns);
    let mut own: Vec<Vec<f64>> = (0..columns)
        .map(|column| {
            let column: Vec<f64> =
                values.iter().skip(column).step_by(columns).map(|value| f64::from(*value)).collect();
            let mean = column.iter().sum::<f64>() / rows as f64;
            column.into_iter().map(|value| value - mean).collect()
        })
        .collect();
    orthogonalise(&mut own);
    own.sort_by(|a, b| dot(b, b).total_cmp(&dot(a, a)));
    for column in &mut own {
        let greatest =
            column.iter().fold(0.0f64, |most, value| if value.abs() > most.abs() { *value } else { most });
        if greatest < 0.0 {
            column.iter_mut().for_each(|value| *value = -*value);
        }
    }
    (0..rows).flat_map(|row| own[..kept].iter().map(move |column| column[row] as f32)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Turns pairs of columns until all are orthogonal.
fn orthogonalise(columns: &mut [Vec<f64>]) {
    let total: f64 = columns.iter().map(|column| dot(column, column)).sum();
    for _ in 0..SWEEPS {
        let mut turned = false;
        for first in 0..columns.len() {
            let (before, behind) = columns.split_at_mut(first + 1);
            let a = &mut before[first];
            let mut own = dot(a, a);
            for b in behind {
                let (other, both) = (dot(b, b), dot(a, b));
                // Of columns that are nothing beside the others only rounding is left.
                let is_nothing = own.min(other) <= 1e-24 * total;
                if is_nothing || both.abs() <= ORTHOGONAL * (own * other).sqrt() {
                    continue;
                }
                turned = true;
                let slope = (other - own) / (2.0 * both);
                let tangent = slope.signum() / (slope.abs() + (slope * slope + 1.0).sqrt());
                let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
                let sine = cosine * tangent;
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                }
                own -= tangent * both;
            }
        }
        if !turned {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_of_a_turned_ellipse_are_found() {
        // Points along (3, 4) / 5 with little across, moved away from 0.
        let points = [(-2.0, 0.1), (-1.0, -0.2), (0.0, 0.2), (1.0, -0.2), (2.0, 0.1)];
        let values: Vec<f32> = points
            .iter()
            .flat_map(|(along, across)| {
                [7.0 + 0.6 * along - 0.8 * across, 0.8 * along + 0.6 * across - 3.0, 5.0]
            })
            .map(|value: f64| value as f32)
            .collect();
        let found = principal_components(&values, 3, 2);
        for ((along, across), found) in points.iter().zip(found.chunks_exact(2)) {
            assert!((found[0].abs() - along.abs() as f32).abs() < 1e-5, "{found:?}");
            assert!((found[1] - *across as f32).abs() < 1e-5 || (found[1] + *across as f32).abs() < 1e-5);
        }
        assert_eq!(principal_components(&values, 3, 9).len(), 15, "there are no more axes than columns");
    }

    #[test]
    fn nothing_is_lost_when_all_axes_are_kept() {
        let key = pipe_models::random::Key(3);
        let values: Vec<f32> = (1..=12 * 5).map(|counter| key.normal(counter) as f32).collect();
        let found = principal_components(&values, 5, 5);
        let distance = |values: &[f32], a: usize, b: usize| -> f32 {
            let row = |row: usize| &values[row * 5..(row + 1) * 5];
            row(a).iter().zip(row(b)).map(|(a, b)| (a - b).powi(2)).sum()
        };
        let sizes: Vec<f32> =
            (0..5).map(|axis| found.iter().skip(axis).step_by(5).map(|v| v * v).sum()).collect();
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        for other in 1..12 {
            assert!((distance(&values, 0, other) - distance(&found, 0, other)).abs() < 1e-4);
        }
    }
}
