//! Rows that cannot be used: counted, listed with their place, and too many of them are an error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pipe_engine::{OutputWriter, StageContext, StageError};

use super::checks::Checks;
use super::source::SourceFile;
use crate::table::{Column, Table, TableSchema, WriteOptions, write};

/// A row that is left out.
#[derive(Debug)]
struct Reject {
    /// The path inside the source: where the source lies is no part of a result.
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
    /// Where the first one lies.
    first: Option<PathBuf>,
}

impl Rejects {
    /// Leaves out row `row` (from 1) of `file`.
    pub(crate) fn add(
        &mut self,
        file: &SourceFile,
        row: Option<usize>,
        id: Option<&str>,
        reason: impl Into<String>,
    ) {
        self.first.get_or_insert_with(|| file.shown());
        self.rows.push(Reject {
            file: file.path.clone(),
            row: row.map(|row| row as i64),
            id: id.map(str::to_owned),
            reason: reason.into(),
        });
    }

    /// Adds what was left out elsewhere, behind all that is here.
    pub(crate) fn append(&mut self, other: Self) {
        self.first = self.first.take().or(other.first);
        self.rows.extend(other.rows);
    }

    /// How many rows are left out.
    pub(crate) fn count(&self) -> usize {
        self.rows.len()
    }

    /// Counts what is left out by what is wrong with it.
    pub(crate) fn count_reasons(&self, checks: &mut Checks) {
        let mut counts = BTreeMap::new();
        for reject in &self.rows {
            *counts.entry(without_particulars(&reject.reason)).or_default() += 1;
        }
        for (reason, count) in counts {
            checks.fact("left out", reason, count);
        }
    }

    /// Fails if there are more than `most`, naming the first.
    pub(crate) fn check(&self, most: i64) -> Result<(), StageError> {
        let count = self.rows.len();
        let (Some(first), Some(file)) = (self.rows.first(), &self.first) else { return Ok(()) };
        if count as i64 <= most {
            return Ok(());
        }
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        let reason = format!("{}{more}; `max_rejects = {count}` leaves such rows out", first.what());
        Err(StageError::input(file, reason))
    }

    /// Checks a last time, warns if rows are left out, and writes the table.
    pub(crate) fn write(
        self,
        most: i64,
        port: &str,
        context: &mut StageContext<'_>,
    ) -> Result<(), StageError> {
        self.check(most)?;
        if let Some(first) = self.rows.first() {
            let count = self.rows.len();
            let rows = if count == 1 { "1 row is" } else { &format!("{count} rows are") };
            context.warn(&format!("{rows} left out; the first: `{}`: {}", first.file, first.what()));
        }
        let provenance = context.provenance().to_owned();
        self.table(context.output(port)?, &provenance)
    }

    fn table(&self, output: &mut OutputWriter, provenance: &str) -> Result<(), StageError> {
        let table = Table::new()
            .with("file", Column::texts(self.rows.iter().map(|reject| reject.file.clone())))
            .with("row", Column::Int64(self.rows.iter().map(|reject| reject.row).collect()))
            .with("id", Column::Utf8(self.rows.iter().map(|reject| reject.id.clone()).collect()))
            .with("reason", Column::texts(self.rows.iter().map(|reject| reject.reason.clone())));
        write(output, &TableSchema::rejects(), &table, WriteOptions::text(provenance))
    }
}

/// A reason without the names and numbers in it, which are those of a single row.
fn without_particulars(reason: &str) -> String {
    let mut plain = String::with_capacity(reason.len());
    // Every second piece stands between two marks.
    for (place, piece) in reason.split('`').enumerate() {
        if place % 2 == 1 {
            plain.push_str("`...`");
            continue;
        }
        let mut before = ' ';
        for character in piece.chars() {
            match (character.is_ascii_digit(), before.is_ascii_digit()) {
                (true, true) => {}
                (true, false) => plain.push('N'),
                (false, _) => plain.push(character),
            }
            before = character;
        }
    }
    plain
}

impl Reject {
    fn what(&self) -> String {
        let place = self.row.map(|row| format!("row {row}: ")).unwrap_or_default();
        format!("{place}{}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_without_names_and_numbers() {
        let plain = without_particulars;
        assert_eq!(
            plain("the id `a 1` stands twice, first in row 12"),
            "the id `...` stands twice, first in row N"
        );
        assert_eq!(plain("it has 2 fields, the header 30"), "it has N fields, the header N");
        assert_eq!(plain("`a.jpg`: it cannot be decoded"), plain("`b 2.jpg`: it cannot be decoded"));
        assert_eq!(plain("it names no image"), "it names no image");
    }
}
