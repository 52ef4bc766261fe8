//! The `checks` table of an ingest: what there is, and what is shared that should not be.

use std::collections::BTreeMap;

use pipe_engine::{Artifact, Figures, OutputWriter, StageError};

use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};

/// Pairs that are named as examples of a duplicate, unless all are wanted.
const EXAMPLES: usize = 20;

/// What the table counts, named `check[split,other,value]`: the summary of a data set.
///
/// # Errors
/// If the table is damaged.
pub(crate) fn figures(artifact: &Artifact) -> Result<Figures, StageError> {
    let table = read(artifact)?;
    let (checks, counts) = (table.as_text("check")?, table.int64("count")?);
    let keys = ["split", "other", "value"].map(|name| table.as_text(name));
    let keys = keys.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut figures = Figures::new();
    for (row, count) in counts.iter().enumerate() {
        let (Some(check), Some(count)) = (&checks[row], count) else { continue };
        let keys: Vec<&str> = keys.iter().filter_map(|column| column[row].as_deref()).collect();
        figures.insert(format!("{check}[{}]", keys.join(", ")), *count as f64);
    }
    Ok(figures)
}

/// Collects rows of the table.
#[derive(Debug)]
pub(crate) struct Checks {
    rows: Vec<Check>,
    /// How many pairs are named.
    examples: usize,
}

impl Default for Checks {
    fn default() -> Self {
        Self { rows: Vec::new(), examples: EXAMPLES }
    }
}

#[derive(Debug)]
struct Check {
    check: &'static str,
    split: Option<String>,
    other: Option<String>,
    value: Option<String>,
    count: i64,
    examples: Option<Vec<String>>,
}

impl Checks {
    /// Checks that name every pair of duplicates.
    pub(crate) fn naming_all() -> Self {
        Self { rows: Vec::new(), examples: usize::MAX }
    }

    /// How often `value` is there in `split`.
    pub(crate) fn count(&mut self, check: &'static str, split: &str, value: Option<String>, count: u64) {
        let split = Some(split.to_owned());
        self.rows.push(Check { check, split, other: None, value, count: count as i64, examples: None });
    }

    /// What is so of the whole data set.
    pub(crate) fn fact(&mut self, check: &'static str, value: String, count: u64) {
        self.rows.push(Check {
            check,
            split: None,
            other: None,
            value: Some(value),
            count: count as i64,
            examples: None,
        });
    }

    /// For each split, how many of its rows have an equal row before them in the same split; for each
    /// pair of splits, how many rows of the later one have an equal row in the earlier one. Zeros are
    /// rows too: they say that somebody looked. `rows` are (split, id, what is compared), and splits
    /// are paired in the order of `splits`.
    pub(crate) fn duplicates<K: Ord + Copy>(
        &mut self,
        check: &'static str,
        splits: &[&str],
        rows: &[(&str, &str, K)],
    ) {
        // The first row of each key and split.
        let mut first: BTreeMap<(K, usize), &str> = BTreeMap::new();
        let mut within: Vec<Vec<String>> = vec![Vec::new(); splits.len()];
        let place = |split: &str| splits.iter().position(|known| *known == split);
        for (split, id, key) in rows {
            let Some(split) = place(split) else { continue };
            match first.get(&(*key, split)) {
                Some(earlier) => within[split].push(format!("{id} = {earlier}")),
                None => {
                    first.insert((*key, split), id);
                }
            }
        }
        for (index, split) in splits.iter().enumerate() {
            self.shared(check, split, split, std::mem::take(&mut within[index]));
            for (earlier, other) in splits[..index].iter().enumerate() {
                let mut pairs = Vec::new();
                for (_, id, key) in rows.iter().filter(|(of, ..)| of == split) {
                    if let Some(twin) = first.get(&(*key, earlier)) {
                        pairs.push(format!("{id} = {twin}"));
                    }
                }
                self.shared(check, split, other, pairs);
            }
        }
    }

    /// What `split` shares with `other`, as pairs or names.
    pub(crate) fn shared(&mut self, check: &'static str, split: &str, other: &str, mut pairs: Vec<String>) {
        let count = pairs.len() as u64;
        pairs.truncate(self.examples);
        self.counted(check, split, other, count, pairs);
    }

    /// How many examples are named.
    pub(crate) fn examples(&self) -> usize {
        self.examples
    }

    /// As [`Self::shared`], where more are counted than named.
    pub(crate) fn counted(
        &mut self,
        check: &'static str,
        split: &str,
        other: &str,
        count: u64,
        examples: Vec<String>,
    ) {
        let (split, other) = (Some(split.to_owned()), Some(other.to_owned()));
        let count = count as i64;
        self.rows.push(Check { check, split, other, value: None, count, examples: Some(examples) });
    }

    /// Writes the table.
    pub(crate) fn write(&self, output: &mut OutputWriter, provenance: &str) -> Result<(), StageError> {
        let text =
            |value: &dyn Fn(&Check) -> Option<String>| Column::Utf8(self.rows.iter().map(value).collect());
        let table = Table::new()
            .with("check", Column::texts(self.rows.iter().map(|row| row.check)))
            .with("split", text(&|row| row.split.clone()))
            .with("other", text(&|row| row.other.clone()))
            .with("value", text(&|row| row.value.clone()))
            .with("count", Column::Int64(self.rows.iter().map(|row| Some(row.count)).collect()))
            .with("examples", Column::ListUtf8(self.rows.iter().map(|row| row.examples.clone()).collect()));
        write(output, &TableSchema::checks(), &table, WriteOptions::text(provenance))
    }
}
