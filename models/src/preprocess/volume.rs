//! Computed tomography for CT-CLIP: Hounsfield units, one spacing, one size (Hamamci et al. 2024, the
//! authors' inference script), and flat or small images as volumes.

use std::ops::Range;

use rayon::prelude::*;

/// Resampled scans are at most this long on any axis.
const LENGTH_LIMIT: f64 = 65_536.0;

/// A scan as NIfTI stores it, its values of any type that an `f64` holds exactly.
#[derive(Clone, Copy, Debug)]
pub struct CtScan<'a, T> {
    /// Stored values `[rows, columns, slices]`, slices fastest.
    pub voxels: &'a [T],
    /// Rows, columns, slices.
    pub shape: [usize; 3],
    /// Hounsfield units are `slope * voxel + intercept`.
    pub slope: f64,
    /// See `slope`.
    pub intercept: f64,
    /// Millimetres from one row, and from one column, to the next.
    pub spacing_in_plane: f64,
    /// Millimetres from one slice to the next.
    pub spacing_between_planes: f64,
}

/// When Hounsfield units are clipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClipOrder {
    /// Before resampling, as the authors' inference script does.
    BeforeResampling,
    /// After it, as their training script does.
    AfterResampling,
}

/// What happens to a scan before the model sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct CtPreprocessor {
    /// Slices, rows and columns that the model takes.
    pub size: [usize; 3],
    /// Millimetres between slices, rows and columns after resampling.
    pub spacing: [f64; 3],
    /// Hounsfield units beyond these are clipped.
    pub window: [f64; 2],
    /// When they are.
    pub order: ClipOrder,
}

/// A scan that cannot be preprocessed.
#[derive(Debug, thiserror::Error)]
pub enum CtError {
    /// The number of voxels is not that of the shape, or there is none.
    #[error("the scan has {voxels} voxels, its shape {shape:?} another number")]
    Shape {
        /// Voxels there are.
        voxels: usize,
        /// Rows, columns, slices.
        shape: [usize; 3],
    },
    /// A spacing or factor that no scan has.
    #[error("{what} of the scan is {value}; a positive number below 1000 is expected")]
    Number {
        /// Which one.
        what: &'static str,
        /// The value found.
        value: f64,
    },
    /// The scan would become longer than any body.
    #[error("resampled, the scan would have {size:?} slices, rows and columns")]
    Size {
        /// Slices, rows, columns.
        size: [f64; 3],
    },
}

impl CtPreprocessor {
    /// CT-CLIP's: 240 slices 1.5 mm apart, 480 x 480 pixels of 0.75 mm, -1000 to 1000 HU.
    pub fn ct_clip() -> Self {
        Self {
            size: [240, 480, 480],
            spacing: [1.5, 0.75, 0.75],
            window: [-1000.0, 1000.0],
            order: ClipOrder::BeforeResampling,
        }
    }

    /// Slices, rows and columns of a scan after resampling.
    fn resampled_size<T>(&self, scan: &CtScan<'_, T>) -> std::result::Result<[usize; 3], CtError> {
        let [rows, columns, slices] = scan.shape;
        let count = rows.checked_mul(columns).and_then(|plane| plane.checked_mul(slices));
        if count != Some(scan.voxels.len()) || count == Some(0) {
            return Err(CtError::Shape { voxels: scan.voxels.len(), shape: scan.shape });
        }
        let spacings = [
            ("the slice spacing", scan.spacing_between_planes),
            ("the pixel spacing", scan.spacing_in_plane),
        ];
        for (what, value) in spacings {
            if !(value > 0.0 && value < 1000.0) {
                return Err(CtError::Number { what, value });
            }
        }
        for (what, value) in [("the slope", scan.slope), ("the intercept", scan.intercept)] {
            if !value.is_finite() {
                return Err(CtError::Number { what, value });
            }
        }
        // The ratio of the spacings is rounded first, as in the authors' code: 30 pixels of 0.7 mm
        // become 27 of 0.75 mm.
        let size = [
            slices as f64 * (scan.spacing_between_planes / self.spacing[0]),
            rows as f64 * (scan.spacing_in_plane / self.spacing[1]),
            columns as f64 * (scan.spacing_in_plane / self.spacing[2]),
        ];
        if size.iter().any(|length| !(1.0..LENGTH_LIMIT).contains(length)) {
            return Err(CtError::Size { size });
        }
        Ok(size.map(|length| length as usize))
    }

    /// The Hounsfield units of the resampled scan, clipped and each as `unit` stores it, and its slices, rows and
    /// columns. Nothing larger is held than the scan and what is returned.
    ///
    /// # Errors
    /// If shape, spacing or factors are not those of a scan.
    pub fn hounsfield_units<T, U>(
        &self,
        scan: &CtScan<'_, T>,
        unit: impl Fn(f64) -> U + Sync,
    ) -> std::result::Result<(Vec<U>, [usize; 3]), CtError>
    where
        T: Copy + Sync,
        f64: From<T>,
        U: Copy + Default + Send,
    {
        let size = self.resampled_size(scan)?;
        Ok((self.resample(scan, size, size.map(|length| 0..length), unit), size))
    }

    /// The volume that the model takes, `[1, slices, rows, columns]`: a thousandth of the Hounsfield
    /// units, the centre cut out, what is missing around it -1.
    ///
    /// # Errors
    /// If shape, spacing or factors are not those of a scan.
    pub fn volume<T>(&self, scan: &CtScan<'_, T>) -> std::result::Result<Vec<f32>, CtError>
    where
        T: Copy + Sync,
        f64: From<T>,
    {
        let size = self.resampled_size(scan)?;
        let cut: [Range<usize>; 3] = std::array::from_fn(|axis| {
            let start = size[axis].saturating_sub(self.size[axis]) / 2;
            start..size[axis].min(start + self.size[axis])
        });
        let block = self.resample(scan, size, cut.clone(), |value| (value / 1000.0) as f32);
        let [slices, rows, columns] = self.size;
        let before: [usize; 3] = std::array::from_fn(|axis| (self.size[axis] - cut[axis].len()) / 2);
        let mut volume = vec![-1.0f32; slices * rows * columns];
        let width = cut[2].len();
        for (index, line) in block.chunks_exact(width).enumerate() {
            let (slice, row) = (before[0] + index / cut[1].len(), before[1] + index % cut[1].len());
            let start = (slice * rows + row) * columns + before[2];
            volume[start..start + width].copy_from_slice(line);
        }
        Ok(volume)
    }

    /// A part of the resampled scan.
    fn resample<T, U>(
        &self,
        scan: &CtScan<'_, T>,
        size: [usize; 3],
        part: [Range<usize>; 3],
        unit: impl Fn(f64) -> U + Sync,
    ) -> Vec<U>
    where
        T: Copy + Sync,
        f64: From<T>,
        U: Copy + Default + Send,
    {
        let [low, high] = self.window;
        let units = |place: usize| scan.slope * f64::from(scan.voxels[place]) + scan.intercept;
        let [rows, columns, slices] = scan.shape;
        let source = Source { shape: [slices, rows, columns], strides: [1, columns * slices, slices] };
        match self.order {
            ClipOrder::BeforeResampling => {
                trilinear(&source, size, part, |place| units(place).clamp(low, high), unit)
            }
            ClipOrder::AfterResampling => {
                trilinear(&source, size, part, units, |value| unit(value.clamp(low, high)))
            }
        }
    }
}

/// How a volume lies in memory.
struct Source {
    /// Slices, rows, columns.
    shape: [usize; 3],
    strides: [usize; 3],
}

/// The two neighbours of each output index along an axis, as offsets, and the weight of the second.
fn neighbours(input: usize, output: usize, stride: usize, range: Range<usize>) -> Vec<(usize, usize, f64)> {
    let ratio = input as f64 / output as f64;
    range
        .map(|index| {
            let place = if input == output {
                index as f64
            } else {
                // Pixels are areas: half a pixel is added before scaling and taken off after it.
                (ratio * (index as f64 + 0.5) - 0.5).max(0.0)
            };
            let first = (place as usize).min(input - 1);
            let second = (first + 1).min(input - 1);
            (first * stride, second * stride, (place - first as f64).clamp(0.0, 1.0))
        })
        .collect()
}

/// A part of a volume resized to `size`, linear along each axis, edges repeated, no antialiasing
/// (PyTorch's `interpolate` with `align_corners = false`); each value as `store` keeps it.
fn trilinear<U: Copy + Default + Send>(
    source: &Source,
    size: [usize; 3],
    part: [Range<usize>; 3],
    value: impl Fn(usize) -> f64 + Sync,
    store: impl Fn(f64) -> U + Sync,
) -> Vec<U> {
    let [slices, rows, columns]: [Vec<_>; 3] = std::array::from_fn(|axis| {
        neighbours(source.shape[axis], size[axis], source.strides[axis], part[axis].clone())
    });
    let mix = |weight: f64, first: f64, second: f64| (1.0 - weight) * first + weight * second;
    let plane = rows.len() * columns.len();
    let mut block = vec![U::default(); slices.len() * plane];
    if plane == 0 {
        return block;
    }
    block.par_chunks_exact_mut(plane).zip(&slices).for_each(|(plane, slice)| {
        for (line, row) in plane.chunks_exact_mut(columns.len()).zip(&rows) {
            for (out, column) in line.iter_mut().zip(&columns) {
                let along = |start: usize| mix(column.2, value(start + column.0), value(start + column.1));
                let across = |start: usize| mix(row.2, along(start + row.0), along(start + row.1));
                *out = store(mix(slice.2, across(slice.0), across(slice.1)));
            }
        }
    });
    block
}

/// A volume of bytes `[slices, rows, columns]` resized to `size`, its range mapped to [-1, 1]: how a
/// small volume without Hounsfield units is shown to CT-CLIP.
///
/// # Errors
/// If the number of bytes is not that of the shape, or a length is zero.
pub fn byte_volume(
    voxels: &[u8],
    shape: [usize; 3],
    size: [usize; 3],
) -> std::result::Result<Vec<f32>, CtError> {
    let [slices, rows, columns] = shape;
    let count = slices.checked_mul(rows).and_then(|area| area.checked_mul(columns));
    if count != Some(voxels.len()) || voxels.is_empty() || size.contains(&0) {
        return Err(CtError::Shape { voxels: voxels.len(), shape });
    }
    let source = Source { shape, strides: [rows * columns, columns, 1] };
    let value = |place: usize| 2.0 * f64::from(voxels[place]) / 255.0 - 1.0;
    Ok(trilinear(&source, size, size.map(|length| 0..length), value, |value| value as f32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan<T>(voxels: &[T], shape: [usize; 3]) -> CtScan<'_, T> {
        CtScan {
            voxels,
            shape,
            slope: 1.0,
            intercept: -1024.0,
            spacing_in_plane: 0.75,
            spacing_between_planes: 1.5,
        }
    }

    fn small(size: [usize; 3]) -> CtPreprocessor {
        CtPreprocessor { size, ..CtPreprocessor::ct_clip() }
    }

    #[test]
    fn a_scan_of_the_right_spacing_is_only_cut_and_padded() {
        // Rows 1, columns 2, slices 3: voxel = 100 * column + 10 * slice, in HU.
        let voxels: Vec<f32> = (0..6).map(|index| (index / 3 * 100 + index % 3 * 10 + 1024) as f32).collect();
        let volume = small([1, 2, 4]).volume(&scan(&voxels, [1, 2, 3])).unwrap();
        // The middle slice; the missing row lies behind, the missing columns on either side.
        let thousandths: Vec<i32> = volume.iter().map(|value| (value * 1000.0).round() as i32).collect();
        assert_eq!(thousandths, [-1000, 10, 110, -1000, -1000, -1000, -1000, -1000]);
    }

    #[test]
    fn clipping_before_and_after_resampling_differs() {
        let voxels = [0.0, 4048.0];
        let scan = CtScan { spacing_between_planes: 3.0, ..scan(&voxels, [1, 1, 2]) };
        let units = |order| {
            CtPreprocessor { order, ..small([4, 1, 1]) }
                .hounsfield_units(&scan, |unit| unit as f32)
                .unwrap()
                .0
        };
        assert_eq!(units(ClipOrder::BeforeResampling), [-1000.0, -500.0, 500.0, 1000.0]);
        assert_eq!(units(ClipOrder::AfterResampling), [-1000.0, -12.0, 1000.0, 1000.0]);
    }

    /// The type that values are stored in says nothing of the volume, and the type of the units only how they are rounded.
    #[test]
    fn integers_are_resampled_as_the_same_numbers() {
        let whole: Vec<i16> = (0..60).map(|place| (place * 7919 % 2500) as i16).collect();
        let floats: Vec<f32> = whole.iter().map(|value| f32::from(*value)).collect();
        let shape = [5, 4, 3];
        let whole = CtScan { spacing_in_plane: 0.7, spacing_between_planes: 2.0, ..scan(&whole, shape) };
        let floats = CtScan { spacing_in_plane: 0.7, spacing_between_planes: 2.0, ..scan(&floats, shape) };
        let preprocessor = small([5, 4, 4]);
        assert_eq!(preprocessor.volume(&whole).unwrap(), preprocessor.volume(&floats).unwrap());
        let (units, size) = preprocessor.hounsfield_units(&floats, |unit| unit as f32).unwrap();
        let (rounded, same) =
            preprocessor.hounsfield_units(&whole, |unit| (unit as f32).round() as i16).unwrap();
        assert_eq!(size, same);
        assert_eq!(rounded, units.iter().map(|unit| unit.round() as i16).collect::<Vec<_>>());
    }

    #[test]
    fn scans_that_are_none_are_refused() {
        let voxels = [0.0; 8];
        let good = scan(&voxels, [2, 2, 2]);
        let preprocessor = CtPreprocessor::ct_clip();
        assert!(preprocessor.volume(&good).is_ok());
        for bad in [
            CtScan { shape: [2, 2, 3], ..good },
            CtScan { shape: [usize::MAX, 2, 2], ..good },
            CtScan { voxels: &voxels[..0], shape: [0, 2, 2], ..good },
            CtScan { spacing_in_plane: 0.0, ..good },
            CtScan { spacing_in_plane: f64::NAN, ..good },
            CtScan { spacing_between_planes: 1e6, ..good },
            CtScan { spacing_between_planes: 1e-3, ..good },
            CtScan { slope: f64::INFINITY, ..good },
        ] {
            assert!(preprocessor.volume(&bad).is_err(), "{bad:?}");
        }
        let tall = vec![0.0; 70_000];
        assert!(preprocessor.volume(&scan(&tall, [70_000, 1, 1])).is_err());
    }

    #[test]
    fn bytes_become_volumes() {
        let volume = byte_volume(&[0, 255], [2, 1, 1], [4, 1, 2]).unwrap();
        assert_eq!(volume, [-1.0, -1.0, -0.5, -0.5, 0.5, 0.5, 1.0, 1.0]);
        assert!(byte_volume(&[0], [2, 1, 1], [4, 1, 1]).is_err());
    }
}
