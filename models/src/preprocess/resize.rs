//! Resizing as Pillow and as PyTorch do it, to the bit: separable, rows first, with eight-bit rounding
//! between the passes. Only the part that is needed is computed; it does not depend on the rest.

use std::ops::Range;

/// How a resized pixel is made of its neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle.
    Bilinear,
    /// A cubic with a = -0.5 (Keys 1981).
    Bicubic,
}

impl Filter {
    /// The reach of the kernel on either side, in pixels of the coarser image.
    fn support(self) -> f64 {
        if self == Self::Bicubic { 2.0 } else { 1.0 }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bilinear if x < 1.0 => 1.0 - x,
            _ => 0.0,
        }
    }
}

/// Whose fixed-point numbers the weights become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rounding {
    /// Pillow's: 22 bits after the point.
    Pillow,
    /// PyTorch's for tensors of bytes: as many bits as let the greatest weight of an axis fit 16 bits.
    Torch,
}

/// The weights of one axis: for each output pixel its first input pixel and integer weights.
struct Axis {
    precision: u32,
    weights: Vec<(usize, Vec<i32>)>,
}

impl Axis {
    /// The weights of the output pixels `range` of `output`.
    fn new(input: usize, output: usize, range: Range<usize>, filter: Filter, rounding: Rounding) -> Self {
        // PyTorch's precision depends on all weights of the axis.
        let computed = if rounding == Rounding::Torch { 0..output } else { range.clone() };
        let first = computed.start;
        let real: Vec<(usize, Vec<f64>)> =
            computed.map(|index| real_weights(input, output, index, filter)).collect();
        let precision = match rounding {
            Rounding::Pillow => 32 - 8 - 2,
            Rounding::Torch => {
                let greatest =
                    real.iter().flat_map(|(_, weights)| weights).fold(0.0f64, |max, weight| max.max(*weight));
                let fits = |bits: &u32| 0.5 + greatest * f64::from(1u32 << bits) < f64::from(1u32 << 15);
                (1..=22).take_while(fits).last().unwrap_or(0)
            }
        };
        let one = f64::from(1u32 << precision);
        let fixed = |weight: &f64| {
            let value = weight * one;
            if value < 0.0 { (value - 0.5) as i32 } else { (value + 0.5) as i32 }
        };
        let weights = real[range.start - first..range.end - first]
            .iter()
            .map(|(first, weights)| (*first, weights.iter().map(fixed).collect()))
            .collect();
        Self { precision, weights }
    }

    /// The input pixels that are read.
    fn reach(&self) -> Range<usize> {
        let start = self.weights.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.weights.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        start..end
    }
}

/// Weights of one output pixel that sum to 1. Shrinking widens the kernel: that is the antialiasing.
pub(crate) fn real_weights(input: usize, output: usize, index: usize, filter: Filter) -> (usize, Vec<f64>) {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let inverse = 1.0 / stretch;
    let centre = (index as f64 + 0.5) * scale;
    let first = ((centre - support + 0.5) as i64).max(0) as usize;
    let last = ((centre + support + 0.5) as usize).min(input);
    let mut weights: Vec<f64> =
        (first..last).map(|pixel| filter.at((pixel as f64 - centre + 0.5) * inverse)).collect();
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    (first, weights)
}

/// A part of a resized image: the whole would be `width * height`, the part is the columns and rows
/// that lie in the ranges.
pub(super) struct Part {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// An image of `N` bytes a pixel.
pub(super) struct Plane<'a> {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: &'a [u8],
}

/// Resizes an image of `N` channels and returns the part. An axis that keeps its size is not filtered.
pub(super) fn resize<const N: usize>(
    image: &Plane<'_>,
    part: &Part,
    filter: Filter,
    rounding: Rounding,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        return nearest::<N>(image, part);
    }
    let vertical = (image.height != part.height)
        .then(|| Axis::new(image.height, part.height, part.rows.clone(), filter, rounding));
    let rows = vertical.as_ref().map_or(part.rows.clone(), Axis::reach);
    let stride = image.width * N;
    let source = &image.pixels[rows.start * stride..rows.end * stride];
    let width = part.columns.len();
    let narrow = if image.width == part.width {
        source
            .chunks_exact(stride)
            .flat_map(|row| &row[part.columns.start * N..part.columns.end * N])
            .copied()
            .collect()
    } else {
        let axis = Axis::new(image.width, part.width, part.columns.clone(), filter, rounding);
        horizontal::<N>(source, stride, &axis)
    };
    match vertical {
        Some(axis) => vertical_pass(&narrow, width * N, rows.start, &axis),
        None => narrow,
    }
}

fn clip(sum: i32, precision: u32) -> u8 {
    (sum >> precision).clamp(0, 255) as u8
}

fn half(precision: u32) -> i32 {
    (1 << precision) >> 1
}

fn horizontal<const N: usize>(source: &[u8], stride: usize, axis: &Axis) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(source.len() / stride * axis.weights.len() * N);
    for row in source.chunks_exact(stride) {
        for (first, weights) in &axis.weights {
            let mut sums = [half(axis.precision); N];
            let (neighbours, _) = row[first * N..(first + weights.len()) * N].as_chunks::<N>();
            for (pixel, weight) in neighbours.iter().zip(weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            pixels.extend(sums.map(|sum| clip(sum, axis.precision)));
        }
    }
    pixels
}

/// `source` begins with row `start`.
fn vertical_pass(source: &[u8], stride: usize, start: usize, axis: &Axis) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(axis.weights.len() * stride);
    let mut sums = vec![0; stride];
    for (first, weights) in &axis.weights {
        sums.fill(half(axis.precision));
        for (row, weight) in source[(first - start) * stride..].chunks_exact(stride).zip(weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        pixels.extend(sums.iter().map(|sum| clip(*sum, axis.precision)));
    }
    pixels
}

fn nearest<const N: usize>(image: &Plane<'_>, part: &Part) -> Vec<u8> {
    let columns = places(image.width, part.width, &part.columns);
    let rows = places(image.height, part.height, &part.rows);
    let (pixels, _) = image.pixels.as_chunks::<N>();
    rows.iter()
        .map(|row| &pixels[row * image.width..])
        .flat_map(|row| columns.iter().flat_map(|column| row[*column]))
        .collect()
}

/// The nearest input pixel of each output pixel of a range.
fn places(input: usize, output: usize, range: &Range<usize>) -> Vec<usize> {
    let scale = input as f64 / output as f64;
    range.clone().map(|index| (((index as f64 + 0.5) * scale) as usize).min(input - 1)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(width: usize, height: usize) -> Part {
        Part { width, height, columns: 0..width, rows: 0..height }
    }

    const KINDS: [(Filter, Rounding); 5] = [
        (Filter::Nearest, Rounding::Pillow),
        (Filter::Bilinear, Rounding::Pillow),
        (Filter::Bicubic, Rounding::Pillow),
        (Filter::Bilinear, Rounding::Torch),
        (Filter::Bicubic, Rounding::Torch),
    ];

    #[test]
    fn a_constant_image_stays_constant() {
        let pixels = vec![77; 5 * 9 * 3];
        let image = Plane { width: 5, height: 9, pixels: &pixels };
        for (filter, rounding) in KINDS {
            for (width, height) in [(7, 3), (1, 1), (5, 20), (200, 9)] {
                let resized = resize::<3>(&image, &whole(width, height), filter, rounding);
                assert_eq!(resized, vec![77; width * height * 3], "{filter:?} {rounding:?}");
            }
        }
    }

    #[test]
    fn a_step_overshoots_only_with_the_cubic() {
        let pixels = [50, 50, 50, 200, 200, 200];
        let image = Plane { width: 6, height: 1, pixels: &pixels };
        let resized = |filter| resize::<1>(&image, &whole(12, 1), filter, Rounding::Pillow);
        assert!(resized(Filter::Bicubic).iter().any(|value| *value < 50 || *value > 200));
        assert!(resized(Filter::Bilinear).iter().all(|value| (50..=200).contains(value)));
        assert_eq!(resized(Filter::Nearest), [50, 50, 50, 50, 50, 50, 200, 200, 200, 200, 200, 200]);
    }

    proptest! {
        #[test]
        fn a_part_equals_the_same_part_of_the_whole(
            (width, height) in (1usize..40, 1usize..40),
            (new_width, new_height) in (1usize..40, 1usize..40),
            cuts in proptest::array::uniform4(0.0f64..1.0),
            kind in proptest::sample::select(&KINDS[..]),
            seed in any::<u32>(),
        ) {
            let pixels: Vec<u8> = (0..(width * height * 2) as u32)
                .map(|index| (index.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
                .collect();
            let image = Plane { width, height, pixels: &pixels };
            let range = |length: usize, a: f64, b: f64| {
                let [a, b] = [a, b].map(|cut| (cut * length as f64) as usize);
                a.min(b)..a.max(b) + 1
            };
            let (columns, rows) = (range(new_width, cuts[0], cuts[1]), range(new_height, cuts[2], cuts[3]));
            let all = resize::<2>(&image, &whole(new_width, new_height), kind.0, kind.1);
            let expected: Vec<u8> = rows
                .clone()
                .flat_map(|row| {
                    all[(row * new_width + columns.start) * 2..(row * new_width + columns.end) * 2].to_vec()
                })
                .collect();
            let part = Part { width: new_width, height: new_height, columns, rows };
            prop_assert_eq!(resize::<2>(&image, &part, kind.0, kind.1), expected);
        }
    }
}
