//! What the rows of a part read of another table: its rows by image, as digests for the keys of parts.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::cache::{Digest, Value};
use pipe_engine::{Artifact, StageError};

use crate::ipc::{read_file, texts};
use crate::table::{read_columns, read_without, row_digests};

/// Columns whose content another column of the table names (`sha`): they need not be read.
const BY_DIGEST: &[&str] = &["image", "voxels"];

/// The rows of a table by the image that they belong to.
pub(crate) struct LookedUp {
    rows: BTreeMap<String, Vec<Digest>>,
    /// What holds for all rows.
    common: String,
}

impl LookedUp {
    /// The rows of `artifact` by its column `column`; `common` is what a reader takes from the table beside
    /// its rows.
    ///
    /// # Errors
    /// If the table is damaged or has no such column.
    pub(crate) fn read(artifact: &Artifact, column: &str, common: &str) -> Result<Self, StageError> {
        let table = read_without(artifact, BY_DIGEST)?;
        let mut rows: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
        let digests = row_digests(&table);
        for (id, digest) in table.utf8(column)?.iter().zip(digests) {
            // A row of no image is never found.
            if let Some(id) = id {
                rows.entry(id.clone()).or_default().push(digest);
            }
        }
        Ok(Self { rows, common: common.to_owned() })
    }

    /// The digest of the rows of these images.
    pub(crate) fn digest(&self, ids: &BTreeSet<String>) -> Digest {
        let rows_of = |id: &String| {
            let rows = self.rows.get(id).into_iter().flatten();
            Value::List(vec![Value::string(id), Value::List(rows.map(|row| Value::Digest(*row)).collect())])
        };
        let rows = Value::List(ids.iter().map(rows_of).collect());
        Value::List(vec![Value::string(&self.common), rows]).digest("pipe looked-up rows v1")
    }
}

/// The ids of the images of some splits (all if empty) in a part of an images table.
///
/// # Errors
/// If it is damaged.
pub(crate) fn image_ids(part: &Artifact, splits: &[&str]) -> Result<BTreeSet<String>, StageError> {
    let table = read_columns(part, &["image_id", "split"])?;
    let chosen = table.select(&table.rows_of_splits(splits));
    Ok(chosen.strings("image_id")?.into_iter().map(str::to_owned).collect())
}

/// The digests of the rows of an images table that each part of a table of questions (of some splits; all if empty)
/// is about.
///
/// # Errors
/// If a table is damaged.
pub(crate) fn images_asked_about(
    parts: &[Artifact],
    images: &Artifact,
    splits: &[String],
) -> Result<Vec<Digest>, StageError> {
    let splits: Vec<&str> = splits.iter().map(String::as_str).collect();
    let images = LookedUp::read(images, "image_id", "")?;
    parts.iter().map(|part| Ok(images.digest(&image_ids(part, &splits)?))).collect()
}

/// The ids of the images that a part of a table of maps explains.
///
/// # Errors
/// If it is damaged.
pub(crate) fn explained_ids(part: &Artifact) -> Result<BTreeSet<String>, StageError> {
    let mut ids = BTreeSet::new();
    for file in part.files_ending(".arrow") {
        let batch = read_file(&file.location)?;
        // Maps of answers name their image beside the question.
        let found = texts(&batch, "image_id")
            .or_else(|| texts(&batch, "id"))
            .ok_or_else(|| StageError::input(&file.path, "it has no column `id`"))?;
        ids.extend(found.into_iter().flatten());
    }
    Ok(ids)
}
