//! What an ingest of phantoms counts, and what its splits share.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::cache::Digest;

use super::labels;
use super::params::{Domain, Params};
use super::places::{TEST, TRAIN, VAL};
use super::rows::Row;
use crate::ingest::checks::Checks;

/// The checks of all rows. Every copy is named: what was planted is to be found again to the row.
pub(super) fn of(params: &Params, rows: &[Row]) -> Checks {
    let mut checks = Checks::naming_all();
    let splits: Vec<&str> = [TRAIN, VAL, TEST]
        .into_iter()
        .filter(|split| rows.iter().any(|row| row.place.split == *split))
        .collect();
    let names = labels::names(params);
    for split in &splits {
        let of_split: Vec<&Row> = rows.iter().filter(|row| row.place.split == *split).collect();
        checks.count("samples", split, None, of_split.len() as u64);
        for (class, name) in names.iter().enumerate() {
            let has = |row: &&&Row| {
                if labels::is_multi_label(params) {
                    row.label[class] == 1
                } else {
                    row.label[0] == class as i64
                }
            };
            let count = of_split.iter().filter(has).count();
            checks.count("class", split, Some((*name).to_owned()), count as u64);
        }
        let mut shapes: BTreeMap<String, u64> = BTreeMap::new();
        for row in &of_split {
            let channels = if row.is_grey() { 1 } else { 3 };
            *shapes.entry(format!("{0} x {0} x {channels}", params.size)).or_default() += 1;
        }
        for (shape, count) in shapes {
            checks.count("shape", split, Some(shape), count);
        }
    }
    let images: Vec<(&str, &str, Digest)> =
        rows.iter().map(|row| (row.place.split, row.id.as_str(), row.sha)).collect();
    checks.duplicates("same image", &splits, &images);
    if params.domain == Domain::Medical {
        let patients: Vec<(&str, &str, &str)> =
            rows.iter().map(|row| (row.place.split, row.id.as_str(), row.group.as_str())).collect();
        checks.duplicates("same patient", &splits, &patients);
    }
    if params.has_questions() {
        let answers = |row: &Row| row.questions.iter().map(|one| one.answer()).collect::<Vec<_>>();
        let training = rows.iter().filter(|row| row.place.is_training());
        let known: BTreeSet<&str> = training.flat_map(answers).collect();
        for split in splits.iter().filter(|split| **split != TRAIN) {
            let of_split = rows.iter().filter(|row| row.place.split == *split);
            let unseen = of_split.flat_map(answers).filter(|answer| !known.contains(answer)).count();
            checks.count("answer not in training", split, None, unseen as u64);
        }
    }
    checks
}
