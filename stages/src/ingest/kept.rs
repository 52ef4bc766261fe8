//! Rows that are kept for the end of a long ingest, since only then is known what their table says of them.

use std::marker::PhantomData;
use std::path::Path;

use pipe_engine::StageError;
use pipe_engine::cache::Spill;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Rows in their order: in memory up to a limit, beyond it in a file.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    /// Each row as JSON, behind its length.
    spill: Spill,
    rows: PhantomData<T>,
}

/// Bytes of a length.
const LENGTH: u64 = 4;

impl<T: Serialize + DeserializeOwned> Kept<T> {
    /// Nothing yet; a file will lie in `scratch`.
    pub(crate) fn new(scratch: &Path) -> Self {
        Self { spill: Spill::new(scratch, Spill::LIMIT), rows: PhantomData }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: &T) -> Result<(), StageError> {
        let broken = |error: &dyn std::fmt::Display| StageError::failed(format!("keeping a row: {error}"));
        let text = serde_json::to_vec(row).map_err(|error| broken(&error))?;
        let length = u32::try_from(text.len()).map_err(|error| broken(&error))?;
        Ok(self.spill.append(&[&length.to_le_bytes()[..], &text].concat())?)
    }

    /// All rows in their order, `block` at a time.
    pub(crate) fn blocks(&self, block: usize) -> impl Iterator<Item = Result<Vec<T>, StageError>> {
        let mut place = 0;
        std::iter::from_fn(move || {
            let mut rows = Vec::new();
            while rows.len() < block && place < self.spill.len() {
                match self.row(&mut place) {
                    Ok(row) => rows.push(row),
                    Err(error) => {
                        place = self.spill.len();
                        return Some(Err(error));
                    }
                }
            }
            (!rows.is_empty()).then_some(Ok(rows))
        })
    }

    fn row(&self, place: &mut u64) -> Result<T, StageError> {
        let mut length = [0; LENGTH as usize];
        length.copy_from_slice(&self.spill.read(*place, LENGTH as usize)?);
        let length = u32::from_le_bytes(length);
        let text = self.spill.read(*place + LENGTH, length as usize)?;
        *place += LENGTH + u64::from(length);
        serde_json::from_slice(&text)
            .map_err(|error| StageError::failed(format!("a row that was kept: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(folder.path());
        assert_eq!(kept.blocks(3).count(), 0);
        let rows: Vec<(String, Vec<i64>)> =
            (0..10).map(|row| (format!("a \"{row}\"\n"), (0..row).collect())).collect();
        for row in &rows {
            kept.push(row).unwrap();
        }
        let blocks: Vec<Vec<(String, Vec<i64>)>> = kept.blocks(4).collect::<Result<_, _>>().unwrap();
        assert_eq!(blocks.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
        assert_eq!(blocks.concat(), rows);
    }
}
