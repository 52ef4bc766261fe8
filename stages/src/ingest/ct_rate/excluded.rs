//! Volumes that the publisher says are none of a chest: early releases have heads among them.

use std::collections::BTreeSet;

use pipe_engine::StageError;

use super::tables::Volume;
use crate::ingest::lines::Lines;
use crate::ingest::source::SourceFiles;

/// The published lists, a volume or a scan a line.
const LISTS: [&str; 2] = ["no_chest_train.txt", "no_chest_valid.txt"];

/// What the lists name, without the ending of files.
#[derive(Default)]
pub(super) struct Excluded(BTreeSet<String>);

impl Excluded {
    /// Reads the lists that are there.
    pub(super) fn read(files: &SourceFiles) -> Result<Self, StageError> {
        let mut names = BTreeSet::new();
        for name in LISTS {
            let Some(file) = files.ending(name)? else { continue };
            let mut lines = Lines::open(&file)?;
            while let Some((number, line)) = lines.next_text()? {
                let line = line.map_err(|reason| file.error(format!("row {number}: {reason}")))?;
                let name = line.trim().rsplit('/').next().unwrap_or_default();
                names.insert(name.trim_end_matches(".nii.gz").to_owned());
            }
        }
        Ok(Self(names))
    }

    /// Whether a volume, its scan or its patient is named.
    pub(super) fn has(&self, volume: &Volume) -> bool {
        let names = [Some(&volume.id), volume.scan.as_ref(), Some(&volume.patient)];
        names.into_iter().flatten().any(|name| self.0.contains(name))
    }
}
