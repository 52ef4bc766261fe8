//! The tables of ROCOv2, one of captions and two of concepts per split.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_engine::StageError;

use super::{Params, Row, check_count};
use crate::ingest::csv::CsvFile;
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{SourceFile, SourceFiles};

/// The beginning of the names of a split's files, and how many captions it has.
const SPLITS: [(&str, &str, usize); 3] =
    [("train", "train", 59_958), ("val", "valid", 9_904), ("test", "test", 9_927)];

/// Whether the source is the second version.
pub(super) fn is_there(files: &SourceFiles) -> Result<bool, StageError> {
    let mut found = false;
    for (_, name, _) in SPLITS {
        found |= files.ending(&format!("{name}_captions.csv"))?.is_some();
    }
    Ok(found)
}

/// All captions, in the order of splits and of the files.
pub(super) fn read(
    files: &SourceFiles,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Vec<Row>, StageError> {
    let licences = match files.ending("license_information.csv")? {
        Some(file) => licences(&file, rejects)?,
        None => BTreeMap::new(),
    };
    let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
    for (split, name, published) in SPLITS {
        let path = format!("{name}_captions.csv");
        let file = match files.ending(&path)? {
            None if params.allow_partial => continue,
            _ => files.needed(&path)?,
        };
        let mut concepts = |ending: &str| match files.ending(&format!("{name}_{ending}.csv"))? {
            Some(file) => lists(&file, rejects),
            None => Ok(BTreeMap::new()),
        };
        let (cuis, manual) = (concepts("concepts")?, concepts("concepts_manual")?);
        let before = rows.len();
        let mut csv = CsvFile::open(&file, b',')?;
        let (id, caption) = (csv.column("ID")?, csv.column("Caption")?);
        while let Some(row) = csv.next_row()? {
            let row = match row {
                Ok(row) => row,
                Err(bad) => {
                    rejects.add(&file, Some(bad.number), None, bad.reason);
                    continue;
                }
            };
            let (Some(id), Some(caption)) = (row.field(id), row.field(caption)) else {
                rejects.add(&file, Some(row.number), row.field(id), "it lacks an id or a caption");
                continue;
            };
            if !seen.insert(id.to_owned()) {
                rejects.add(&file, Some(row.number), Some(id), format!("the id `{id}` stands twice"));
                continue;
            }
            let (article, licence) = licences.get(id).cloned().unwrap_or_default();
            rows.push(Row {
                id: id.to_owned(),
                split,
                subset: "radiology",
                caption: caption.to_owned(),
                image_name: format!("{id}.jpg"),
                cuis: cuis.get(id).cloned(),
                cuis_manual: manual.get(id).cloned(),
                keywords: None,
                semantic_types: None,
                article,
                licence,
                published: None,
                place: (Arc::clone(&file), row.number),
            });
        }
        check_count(&file, rows.len() - before, published, params)?;
    }
    Ok(rows)
}

/// Concepts by id, `;` between them.
fn lists(file: &SourceFile, rejects: &mut Rejects) -> Result<BTreeMap<String, Vec<String>>, StageError> {
    let mut lists = BTreeMap::new();
    let mut csv = CsvFile::open(file, b',')?;
    let (id, cuis) = (csv.column("ID")?, csv.column("CUIs")?);
    while let Some(row) = csv.next_row()? {
        match row {
            Ok(row) => {
                let items = row.field(cuis).unwrap_or_default().split(';').map(str::trim);
                let items = items.filter(|item| !item.is_empty()).map(str::to_owned).collect();
                lists.insert(row.field(id).unwrap_or_default().to_owned(), items);
            }
            Err(bad) => rejects.add(file, Some(bad.number), None, bad.reason),
        }
    }
    Ok(lists)
}

/// Article and licence by id. The columns are found by what their names contain.
fn licences(
    file: &SourceFile,
    rejects: &mut Rejects,
) -> Result<BTreeMap<String, (Option<String>, Option<String>)>, StageError> {
    let mut csv = CsvFile::open(file, b',')?;
    let place =
        |wanted: &dyn Fn(&str) -> bool| csv.header().iter().position(|name| wanted(&name.to_lowercase()));
    let id = place(&|name| matches!(name.trim(), "id" | "image" | "image_id")).unwrap_or(0);
    let article = place(&|name| name.contains("pmc"));
    let licence = place(&|name| name.contains("licen"));
    let mut licences = BTreeMap::new();
    while let Some(row) = csv.next_row()? {
        match row {
            Ok(row) => {
                let field = |column: Option<usize>| row.field(column?).map(str::to_owned);
                let key = row.field(id).unwrap_or_default().trim_end_matches(".jpg").to_owned();
                licences.insert(key, (field(article), field(licence)));
            }
            Err(bad) => rejects.add(file, Some(bad.number), None, bad.reason),
        }
    }
    Ok(licences)
}
