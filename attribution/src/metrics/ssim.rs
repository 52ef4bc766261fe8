//! Structural similarity (Wang et al. 2004) of two maps: uniform windows of seven, sample variances, the range
//! of both maps together.

use super::{Undefined, Value};

/// Side of a window.
const WINDOW: usize = 7;

/// Sums over one window.
#[derive(Clone, Copy, Default)]
struct Sums {
    a: f64,
    b: f64,
    aa: f64,
    bb: f64,
    ab: f64,
}

impl Sums {
    fn add(self, other: Self) -> Self {
        Self {
            a: self.a + other.a,
            b: self.b + other.b,
            aa: self.aa + other.aa,
            bb: self.bb + other.bb,
            ab: self.ab + other.ab,
        }
    }

    /// The similarity in a window of `n` values of maps with this range.
    fn similarity(self, n: f64, range: f64) -> f64 {
        let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
        let sample = n / (n - 1.0);
        let (a, b) = (self.a / n, self.b / n);
        let variance_a = sample * (self.aa / n - a * a);
        let variance_b = sample * (self.bb / n - b * b);
        let covariance = sample * (self.ab / n - a * b);
        (2.0 * a * b + c1) * (2.0 * covariance + c2) / ((a * a + b * b + c1) * (variance_a + variance_b + c2))
    }
}

/// The mean over all windows of `window` slices, rows and columns that fit into slices of `height` rows and `width`
/// columns.
fn mean(a: &[f64], b: &[f64], [height, width]: [usize; 2], window: [usize; 3]) -> Value {
    let slices = a.len().min(b.len()) / (height * width).max(1);
    let [deep, rows, columns] = window;
    let both = || a.iter().chain(b).copied();
    let range = both().fold(f64::NEG_INFINITY, f64::max) - both().fold(f64::INFINITY, f64::min);
    if slices < deep || height < rows || width < columns || range.is_nan() || range <= 0.0 {
        return Err(Undefined::Constant);
    }
    let sums = |index: usize| {
        let (a, b) = (a[index], b[index]);
        Sums { a, b, aa: a * a, bb: b * b, ab: a * b }
    };
    let (mut total, n) = (0.0, (deep * rows * columns) as f64);
    // Windows of the same slices and rows share the sums over their columns.
    for front in 0..=slices - deep {
        for top in 0..=height - rows {
            let lines = || (front..front + deep).flat_map(|z| (top..top + rows).map(move |y| z * height + y));
            let column =
                |x: usize| lines().fold(Sums::default(), |all, line| all.add(sums(line * width + x)));
            let column: Vec<Sums> = (0..width).map(column).collect();
            for left in 0..=width - columns {
                let window = column[left..left + columns].iter();
                let window = window.fold(Sums::default(), |all, sums| all.add(*sums));
                total += window.similarity(n, range);
            }
        }
    }
    Ok(total / ((slices - deep + 1) * (height - rows + 1) * (width - columns + 1)) as f64)
}

/// That of two maps of volumes of slices, rows and columns, in windows of seven along each axis; where there are fewer
/// slices, of all of them.
///
/// # Errors
/// If a map has fewer than seven rows or columns, or both have one value everywhere.
pub fn volume_ssim(a: &[f64], b: &[f64], [slices, height, width]: [usize; 3]) -> Value {
    mean(a, b, [height, width], [WINDOW.min(slices.max(1)), WINDOW, WINDOW])
}

/// The structural similarity of two maps of this width.
///
/// # Errors
/// If a map has fewer than seven rows or columns, or both have one value everywhere.
pub fn ssim(a: &[f64], b: &[f64], width: usize) -> Value {
    let height = a.len().min(b.len()) / width.max(1);
    mean(a, b, [height, width], [1, WINDOW, WINDOW])
}

/// That of two maps as sequences, row by row, as Quantus computes it: it is not that of images.
///
/// # Errors
/// If the maps are shorter than a window, or both have one value everywhere.
pub fn flat_ssim(a: &[f64], b: &[f64]) -> Value {
    mean(a, b, [1, a.len().min(b.len())], [1, 1, WINDOW])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_like_itself() {
        let map: Vec<f64> = (0..70).map(|index| f64::from(index * index % 11)).collect();
        let negative: Vec<f64> = map.iter().map(|value| 10.0 - value).collect();
        for similarity in [flat_ssim, |a: &[f64], b: &[f64]| ssim(a, b, 10)] {
            assert!((similarity(&map, &map).unwrap() - 1.0).abs() < 1e-12);
            assert!(similarity(&map, &negative).unwrap() < 0.5);
            assert!(similarity(&map[..3], &map[..3]).is_err());
            assert!(similarity(&[1.0; 70], &[1.0; 70]).is_err());
        }
    }

    #[test]
    fn one_window_by_hand() {
        // Of a 7 x 7 image there is one window: as a sequence of 49 it is the same computation.
        let a: Vec<f64> = (0..49).map(|index| f64::from(index % 5)).collect();
        let b: Vec<f64> = (0..49).map(|index| f64::from(index % 3)).collect();
        let sums = (0..49).fold(Sums::default(), |all, index| {
            let (a, b) = (a[index], b[index]);
            all.add(Sums { a, b, aa: a * a, bb: b * b, ab: a * b })
        });
        assert!((ssim(&a, &b, 7).unwrap() - sums.similarity(49.0, 4.0)).abs() < 1e-12);
        // Of two such slices the windows span both.
        let (two_a, two_b) = ([a.clone(), b.clone()].concat(), [b, a].concat());
        let both = (0..98).fold(Sums::default(), |all, index| {
            let (a, b) = (two_a[index], two_b[index]);
            all.add(Sums { a, b, aa: a * a, bb: b * b, ab: a * b })
        });
        let volume = volume_ssim(&two_a, &two_b, [2, 7, 7]).unwrap();
        assert!((volume - both.similarity(98.0, 4.0)).abs() < 1e-12);
    }
}
