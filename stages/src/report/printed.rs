//! The maps of a run as sheets for print, without a page.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Pictured, StageError};

use super::collect::Collected;
use super::gallery::{Maps, gallery};
use super::pictures::Pictures;
use crate::artifact;

/// What is shown beside maps.
const BESIDE: [pipe_engine::ArtifactType; 4] =
    [artifact::IMAGES, artifact::VOLUMES, artifact::MASKS, artifact::LABELS];

/// Sheets of the maps among `results`, those of one output of one stage together: PNG files of `most` samples, and tables
/// that say what stands where.
///
/// # Errors
/// If a result is damaged.
pub(crate) fn sheets(results: &[Pictured], most: usize) -> Result<Vec<(String, Vec<u8>)>, StageError> {
    let mut galleries: BTreeMap<String, Vec<&Pictured>> = BTreeMap::new();
    for one in results.iter().filter(|one| one.result.artifact.artifact_type == artifact::SALIENCY.0) {
        galleries.entry(format!("{}.{}", one.result.stage, one.result.port)).or_default().push(one);
    }
    let mut files = Vec::new();
    for (name, members) in galleries {
        let mut known = BTreeSet::new();
        let beside = members.iter().flat_map(|one| &one.beside).filter(|result| {
            BESIDE.iter().any(|kind| result.artifact.artifact_type == kind.0)
                && known.insert((result.artifact.digest, &result.axes))
        });
        let collected = Collected::of(beside.map(|result| (&*result.port, &result.axes, &result.artifact)))?;
        let maps: Vec<Maps<'_>> = members
            .iter()
            .map(|one| Maps { input: &name, axes: &one.result.axes, artifact: &one.result.artifact })
            .collect();
        // All pictures would fit into the page that nobody sees.
        let mut pictures = Pictures::new(u64::MAX).with_sheets(true);
        gallery(&maps, &collected, most, &mut pictures)?;
        files.extend(pictures.into_files(""));
    }
    Ok(files)
}
