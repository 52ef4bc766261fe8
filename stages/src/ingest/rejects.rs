//! Rows that cannot be used: counted, listed with their place, and too many of them are an error.

use std::path::{Path, PathBuf};

use pipe_engine::{OutputWriter, StageContext, StageError};
use serde::{Deserialize, Serialize};

use super::checks::Checks;
use super::kept::Kept;
use super::source::SourceFile;
use super::tally::Tally;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// Rows that are written at once.
const BLOCK: usize = 4096;

/// A row that is left out.
#[derive(Debug, Serialize, Deserialize)]
struct Reject {
    /// The path inside the source: where the source lies is no part of a result.
    file: String,
    /// Line, record or member, from 1.
    row: Option<i64>,
    id: Option<String>,
    reason: String,
}

/// Collects what is left out: in memory up to a limit, beyond it in a file.
#[derive(Debug)]
pub(crate) struct Rejects {
    rows: Kept<Reject>,
    count: u64,
    /// How often a row was left out for a reason, without what is particular to the row.
    reasons: Tally<String>,
    /// Where the first one lies, what it is called inside the source, and what is wrong with it.
    first: Option<(PathBuf, String, String)>,
    /// Why rows could not be kept: told by the next check.
    failed: Option<StageError>,
}

impl Rejects {
    /// Nothing yet; a file will lie in `scratch`.
    pub(crate) fn new(scratch: &Path) -> Self {
        Self { rows: Kept::new(scratch), count: 0, reasons: Tally::default(), first: None, failed: None }
    }

    /// Leaves out row `row` (from 1) of `file`.
    pub(crate) fn add(
        &mut self,
        file: &SourceFile,
        row: Option<usize>,
        id: Option<&str>,
        reason: impl Into<String>,
    ) {
        let reject = Reject {
            file: file.path.clone(),
            row: row.map(|row| row as i64),
            id: id.map(str::to_owned),
            reason: reason.into(),
        };
        self.first.get_or_insert_with(|| (file.shown(), reject.file.clone(), reject.what()));
        self.reasons.add(without_particulars(&reject.reason), 1);
        self.keep(&reject);
    }

    fn keep(&mut self, reject: &Reject) {
        self.count += 1;
        if self.failed.is_none() {
            self.failed = self.rows.push(reject).err();
        }
    }

    /// Adds what was left out elsewhere, behind all that is here.
    pub(crate) fn append(&mut self, other: Self) -> Result<(), StageError> {
        self.failed = self.failed.take().or(other.failed);
        self.first = self.first.take().or(other.first);
        self.reasons.append(other.reasons);
        for rows in other.rows.blocks(BLOCK) {
            rows?.iter().for_each(|reject| self.keep(reject));
        }
        Ok(())
    }

    /// How many rows are left out.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Counts what is left out by what is wrong with it.
    pub(crate) fn count_reasons(&self, checks: &mut Checks) {
        let others = (self.reasons.others() > 0).then(|| ("other reasons", self.reasons.others()));
        let named = self.reasons.iter().map(|(reason, count)| (reason.as_str(), count));
        for (reason, count) in named.chain(others) {
            checks.fact("left out", reason.to_owned(), count);
        }
    }

    /// Fails if there are more than `most`, naming the first.
    pub(crate) fn check(&mut self, most: i64) -> Result<(), StageError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let count = self.count;
        let Some((place, _, what)) = self.first.as_ref().filter(|_| i128::from(count) > i128::from(most))
        else {
            return Ok(());
        };
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        let reason = format!("{what}{more}; `max_rejects = {count}` leaves such rows out");
        Err(StageError::input(place, reason))
    }

    /// Checks a last time, warns if rows are left out, and writes the table.
    pub(crate) fn write(
        mut self,
        most: i64,
        port: &str,
        context: &mut StageContext<'_>,
    ) -> Result<(), StageError> {
        self.check(most)?;
        if let Some((_, file, what)) = &self.first {
            let count = self.count;
            let rows = if count == 1 { "1 row is" } else { &format!("{count} rows are") };
            context.warn(&format!("{rows} left out; the first: `{file}`: {what}"));
        }
        let provenance = context.provenance().to_owned();
        self.table(context.output(port)?, &provenance)
    }

    fn table(&self, output: &mut OutputWriter, provenance: &str) -> Result<(), StageError> {
        let schema = TableSchema::rejects();
        let mut writer = TableWriter::new(output, &schema, WriteOptions::text(provenance));
        writer.push(table(&[]))?;
        for rows in self.rows.blocks(BLOCK) {
            writer.push(table(&rows?))?;
        }
        writer.finish(output)
    }
}

fn table(rows: &[Reject]) -> Table {
    Table::new()
        .with("file", Column::texts(rows.iter().map(|reject| reject.file.clone())))
        .with("row", Column::Int64(rows.iter().map(|reject| reject.row).collect()))
        .with("id", Column::Utf8(rows.iter().map(|reject| reject.id.clone()).collect()))
        .with("reason", Column::texts(rows.iter().map(|reject| reject.reason.clone())))
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
