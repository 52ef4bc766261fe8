//! Rows that cannot be used: counted, listed with their place, and too many of them are an error.

use pipe_engine::{OutputWriter, StageContext, StageError};

use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// A row that is left out.
#[derive(Debug)]
struct Reject {
    file: String,
    /// Line, record or member, from 1.
    row: Option<i64>,
    id: Option<String>,
    reason: String,
}

/// Collects what is left out.
#[derive(Debug, Default)]
pub(crate) struct Rejects {
    rows: Vec<Reject>,
}

impl Rejects {
    /// Leaves out row `row` (from 1) of `file`.
    pub(crate) fn add(
        &mut self,
        file: impl Into<String>,
        row: Option<usize>,
        id: Option<&str>,
        reason: impl Into<String>,
    ) {
        let row = row.map(|row| row as i64);
        self.rows.push(Reject { file: file.into(), row, id: id.map(str::to_owned), reason: reason.into() });
    }

    /// Fails if there are more than `most`, naming the first; otherwise warns if there are any.
    pub(crate) fn check(&self, most: i64, context: &StageContext<'_>) -> Result<(), StageError> {
        let Some(first) = self.rows.first() else { return Ok(()) };
        let place = first.row.map(|row| format!("row {row}: ")).unwrap_or_default();
        let count = self.rows.len();
        if count as i64 > most {
            let reason = match count {
                1 => format!("{place}{}", first.reason),
                _ => format!("{place}{} (and {} more)", first.reason, count - 1),
            };
            let reason = format!("{reason}; `max_rejects = {count}` leaves such rows out");
            return Err(StageError::input(&first.file, reason));
        }
        context.warn(&format!(
            "{count} rows are left out; the first: `{}`: {place}{}",
            first.file, first.reason
        ));
        Ok(())
    }

    /// Writes the table.
    pub(crate) fn write(&self, output: &mut OutputWriter, provenance: &str) -> Result<(), StageError> {
        let table = Table::new()
            .with("file", Column::texts(self.rows.iter().map(|reject| reject.file.clone())))
            .with("row", Column::Int64(self.rows.iter().map(|reject| reject.row).collect()))
            .with("id", Column::Utf8(self.rows.iter().map(|reject| reject.id.clone()).collect()))
            .with("reason", Column::texts(self.rows.iter().map(|reject| reject.reason.clone())));
        write(output, &TableSchema::rejects(), &table, WriteOptions::text(provenance))
    }
}
