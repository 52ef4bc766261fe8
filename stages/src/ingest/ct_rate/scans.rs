//! Volumes in Hounsfield units, as they are stored.

use std::sync::Arc;

use image::DynamicImage;
use pipe_engine::StageError;
use pipe_engine::cache::Digest;
use pipe_models::preprocess::volume::{CtPreprocessor, CtScan};

use super::Params;
use super::tables::Acquisition;
use crate::ingest::nifti::{self, Nifti, Voxels};
use crate::ingest::sheets::middle_slice;
use crate::ingest::source::{SourceFile, SourceFiles};

/// A volume on its way into the table.
pub(super) struct Scan {
    /// Hounsfield units as i16, low byte first, `[slices, rows, columns]`.
    pub(super) voxels: Vec<u8>,
    pub(super) shape: Vec<i32>,
    /// Millimetres.
    pub(super) spacing: Vec<f32>,
    pub(super) digest: Digest,
}

impl Scan {
    /// Its middle slice, the window from black to white.
    pub(super) fn picture(&self, window: [i64; 2]) -> DynamicImage {
        let [low, high] = window.map(|bound| bound as f64);
        let shape = [0, 1, 2].map(|axis| self.shape[axis] as usize);
        let value = |place: usize| {
            f64::from(i16::from_le_bytes([self.voxels[2 * place], self.voxels[2 * place + 1]]))
        };
        middle_slice(shape, value, low, high)
    }
}

/// The file of a volume. The publisher's corrected folders, `train_fixed` and `valid_fixed`, come first.
pub(super) fn file(files: &SourceFiles, id: &str) -> Result<Option<Arc<SourceFile>>, StageError> {
    let corrected = |file: &&Arc<SourceFile>| file.path.split('/').any(|part| part.ends_with("_fixed"));
    let name = format!("{id}.nii.gz");
    match files.all_ending(&name)?.iter().find(corrected) {
        Some(file) => Ok(Some(Arc::clone(file))),
        None => files.ending(&name),
    }
}

/// Reads a volume and brings it to the wanted spacing. At most the voxels as stored and as written are in memory.
pub(super) fn prepare(file: &SourceFile, acquisition: &Acquisition, params: &Params) -> Result<Scan, String> {
    let read = nifti::read(file)?;
    let (units, shape, spacing) = match &read.voxels {
        Voxels::I8(voxels) => units(voxels, &read, acquisition, params),
        Voxels::U8(voxels) => units(voxels, &read, acquisition, params),
        Voxels::I16(voxels) => units(voxels, &read, acquisition, params),
        Voxels::U16(voxels) => units(voxels, &read, acquisition, params),
        Voxels::F32(voxels) => units(voxels, &read, acquisition, params),
    }?;
    let voxels = units.into_flattened();
    if voxels.len() > i32::MAX as usize {
        return Err(format!("it has {} voxels, more than a cell of a table can hold", voxels.len() / 2));
    }
    Ok(Scan {
        digest: Digest::of(&voxels),
        voxels,
        shape: shape.iter().map(|size| *size as i32).collect(),
        spacing: spacing.iter().map(|size| *size as f32).collect(),
    })
}

/// Columns of voxels that are turned together.
const COLUMNS: usize = 64;

/// The nearest whole number that 16 bits hold; of two that are as near, the one further from zero.
fn rounded(unit: f32) -> i16 {
    // As `f32::round` says it, which is a call for each voxel where the processor's own is not assumed.
    let whole = unit as i32 as f32;
    let beyond = unit - whole;
    let whole = if beyond.abs() >= 0.5 { whole + 1f32.copysign(unit) } else { whole };
    whole as i16
}

/// Hounsfield units as i16, low byte first; slices, rows and columns, and the millimetres between them.
type Units = (Vec<[u8; 2]>, [usize; 3], [f64; 3]);

fn units<T>(voxels: &[T], read: &Nifti, acquisition: &Acquisition, params: &Params) -> Result<Units, String>
where
    T: Copy + Sync,
    f64: From<T>,
{
    let [rows, columns, slices] = read.shape;
    // The header's own factors, which are 1 and 0 in what is published, come before those of the metadata.
    let slope = acquisition.slope * read.slope;
    let intercept = acquisition.slope * read.intercept + acquisition.intercept;
    let [low, high] = params.window.map(|bound| bound as f64);
    // A unit is rounded as a number of 32 bits.
    let stored = |unit: f64| rounded(unit as f32).to_le_bytes();
    if let [z, x, y] = params.spacing[..] {
        let preprocessor = CtPreprocessor {
            spacing: [z, x, y],
            window: [low, high],
            order: params.clip.into(),
            ..CtPreprocessor::ct_clip()
        };
        let scan = CtScan {
            voxels,
            shape: read.shape,
            slope,
            intercept,
            spacing_in_plane: acquisition.in_plane,
            spacing_between_planes: acquisition.between_planes,
        };
        let resampled = preprocessor.hounsfield_units(&scan, stored);
        let (units, shape) = resampled.map_err(|error| error.to_string())?;
        return Ok((units, shape, [z, x, y]));
    }
    let (plane, mut units) = (rows * columns, vec![[0; 2]; voxels.len()]);
    // Some columns at a time: their voxels stay near while all slices take theirs.
    for first in (0..plane).step_by(COLUMNS) {
        let columns = &voxels[first * slices..(first + COLUMNS).min(plane) * slices];
        for slice in 0..slices {
            let of_slice = columns[slice..].iter().step_by(slices);
            for (unit, voxel) in units[slice * plane + first..].iter_mut().zip(of_slice) {
                *unit = stored((slope * f64::from(*voxel) + intercept).clamp(low, high));
            }
        }
    }
    let spacing = [acquisition.between_planes, acquisition.in_plane, acquisition.in_plane];
    Ok((units, [slices, rows, columns], spacing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_rounded_as_numbers_are() {
        let near =
            [0.5, 1.5, 2.5, 0.499_999_97, 8_388_607.5, 32_766.5, 32_767.5, 1e9, 3e9, f32::INFINITY, f32::NAN];
        let many = (-70_000..70_000).map(|step| step as f32 * 0.25);
        for unit in many.chain(near).flat_map(|unit| [unit, -unit]) {
            assert_eq!(rounded(unit), unit.round() as i16, "{unit}");
        }
    }
}
