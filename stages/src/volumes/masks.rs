//! Masks of volumes, brought to what a model sees of these.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Artifact, StageError};
use pipe_models::Preprocessor;

use super::{Stored, VolumeRows, VolumeSet, lengths, prepared, squares};
use crate::table::{metadata, read_columns};

/// A table of masks: at each voxel the number of a region, or 0.
pub(crate) struct MaskSet {
    masks: VolumeSet,
    /// The numbers that count; all if there are none.
    regions: BTreeSet<u8>,
    /// Volumes in Hounsfield units, which are resampled by their spacing.
    in_units: BTreeSet<String>,
}

impl MaskSet {
    /// The masks of these ids, whose `volumes` tell how they are brought to `size` (slices, rows, columns). Only
    /// `regions` count, by their names in the table's metadata; all if none is named.
    ///
    /// # Errors
    /// If a table is damaged, or a region is not known.
    pub(crate) fn read(
        masks: &Artifact,
        volumes: &Artifact,
        ids: &BTreeSet<&str>,
        size: [usize; 3],
        regions: &[String],
    ) -> Result<Self, StageError> {
        let names = metadata(masks)?.get("regions").cloned().unwrap_or_else(|| "[]".to_owned());
        let names: Vec<String> = serde_json::from_str(&names)
            .map_err(|error| StageError::input("masks", format!("its `regions` are no list: {error}")))?;
        let number = |region: &String| {
            let place = names.iter().position(|name| name == region);
            place.and_then(|place| u8::try_from(place + 1).ok()).ok_or_else(|| {
                StageError::input("masks", format!("it has no region `{region}`; it has {names:?}"))
            })
        };
        let regions = regions.iter().map(number).collect::<Result<_, _>>()?;
        let table = read_columns(volumes, &["image_id", "dtype"])?;
        let types = table.strings("image_id")?.into_iter().zip(table.strings("dtype")?);
        let in_units = types.filter(|(id, dtype)| *dtype == "i16" && ids.contains(id));
        let in_units = in_units.map(|(id, _)| id.to_owned()).collect();
        Ok(Self { masks: VolumeSet::choose(masks, VolumeRows::Only(ids), size)?, regions, in_units })
    }

    /// What `see` makes of each mask, by the id of its volume.
    ///
    /// # Errors
    /// If a mask is damaged.
    pub(crate) fn each(
        &self,
        see: impl Fn(&Self, usize) -> Result<Vec<bool>, StageError>,
    ) -> Result<BTreeMap<String, Vec<bool>>, StageError> {
        let ids = self.masks.ids.iter().enumerate();
        ids.map(|(place, id)| Ok((id.clone(), see(self, place)?))).collect()
    }

    /// A mask in the geometry of a model of volumes.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn whole(&self, place: usize) -> Result<Vec<bool>, StageError> {
        let in_units = self.in_units.contains(&self.masks.ids[place]);
        self.masks.with(place, |stored| {
            let inside = self.inside(stored)?;
            // The greatest and the least that a model sees: what is more than half inside is above 0.
            let values = if in_units {
                let units =
                    inside.iter().flat_map(|inside| if *inside { 1000i16 } else { -1000 }.to_le_bytes());
                let voxels: Vec<u8> = units.collect();
                prepared(&Stored { voxels: &voxels, dtype: "i16", ..*stored }, self.masks.size)?
            } else {
                prepared(&Stored { voxels: &bytes(&inside), dtype: "u8", ..*stored }, self.masks.size)?
            };
            Ok(values.iter().map(|value| *value > 0.0).collect())
        })
    }

    /// The slices of a mask that a model of flat images sees, one after another.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn slices(&self, place: usize, preprocessor: &Preprocessor) -> Result<Vec<bool>, StageError> {
        self.masks.with(place, |stored| {
            let voxels = bytes(&self.inside(stored)?);
            let seen = squares(&Stored { voxels: &voxels, dtype: "u8", ..*stored }, preprocessor)?;
            // Of three slices as colours the one in the middle.
            Ok(seen.as_chunks::<3>().0.iter().map(|pixel| pixel[1] > 127).collect())
        })
    }

    fn inside(&self, stored: &Stored<'_>) -> Result<Vec<bool>, String> {
        if stored.dtype != "u8" {
            return Err(format!("a mask of `{}` is no mask: numbers of regions are `u8`", stored.dtype));
        }
        super::check_length(stored.voxels, lengths(stored.shape)?, 1)?;
        let counts = |number: &u8| match self.regions.is_empty() {
            true => *number != 0,
            false => self.regions.contains(number),
        };
        Ok(stored.voxels.iter().map(counts).collect())
    }
}

fn bytes(inside: &[bool]) -> Vec<u8> {
    inside.iter().map(|inside| if *inside { 255 } else { 0 }).collect()
}
