//! ROCO as its mirrors have it: a table of id, published name and caption per split, without concepts and
//! licences. The name begins with the article.

use std::collections::BTreeSet;
use std::sync::Arc;

use pipe_engine::StageError;

use super::{Params, Row, Subset, check_count};
use crate::ingest::csv::CsvFile;
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{SourceFile, SourceFiles};

/// A split, the beginning of its tables' names, and how many captions its two subsets have.
const TABLES: [(&str, &str, [usize; 2]); 3] =
    [("train", "train", [65_448, 4_895]), ("val", "val", [8_180, 611]), ("test", "test", [8_179, 612])];

/// The table of a split and subset. One that lies in no folder of a subset is of radiology.
fn table(files: &SourceFiles, split: &str, subset: &str) -> Result<Option<Arc<SourceFile>>, StageError> {
    let name = format!("{split}data.csv");
    let folder = |file: &SourceFile| file.path.rsplit('/').nth(1).map(str::to_owned);
    let of_subset = |file: &Arc<SourceFile>| match folder(file).as_deref() {
        Some(known @ ("radiology" | "non-radiology")) => known == subset,
        _ => subset == "radiology",
    };
    Ok(files.all_ending(&name)?.into_iter().find(of_subset))
}

/// Whether the source is a mirror.
pub(super) fn is_there(files: &SourceFiles) -> Result<bool, StageError> {
    let mut found = false;
    for (_, name, _) in TABLES {
        found |= files.ending(&format!("{name}data.csv"))?.is_some();
    }
    Ok(found)
}

/// All captions of a subset, in the order of splits and of the files.
pub(super) fn read(
    files: &SourceFiles,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Vec<Row>, StageError> {
    let subsets = [(Subset::Radiology, "radiology"), (Subset::NonRadiology, "non-radiology")];
    let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
    for (split, name, counts) in TABLES {
        for ((subset, folder), published) in subsets.into_iter().zip(counts) {
            if params.subset != Subset::All && params.subset != subset {
                continue;
            }
            let Some(file) = table(files, name, folder)? else {
                if params.allow_partial {
                    continue;
                }
                return Err(files.error(format!("it has no file `{name}data.csv` of {folder} images")));
            };
            let before = rows.len();
            read_table(&file, files, (split, folder), &mut seen, rejects, &mut rows)?;
            check_count(&file, rows.len() - before, published, params)?;
        }
    }
    Ok(rows)
}

fn read_table(
    file: &Arc<SourceFile>,
    files: &SourceFiles,
    (split, subset): (&'static str, &'static str),
    seen: &mut BTreeSet<String>,
    rejects: &mut Rejects,
    rows: &mut Vec<Row>,
) -> Result<(), StageError> {
    let mut csv = CsvFile::open(file, b',')?;
    let (id, name, caption) = (csv.column("id")?, csv.column("name")?, csv.column("caption")?);
    while let Some(row) = csv.next_row()? {
        let row = match row {
            Ok(row) => row,
            Err(bad) => {
                rejects.add(file, Some(bad.number), None, bad.reason);
                continue;
            }
        };
        let (Some(id), Some(name), Some(caption)) = (row.field(id), row.field(name), row.field(caption))
        else {
            let reason = "it lacks an id, a name or a caption";
            rejects.add(file, Some(row.number), row.field(id), reason);
            continue;
        };
        if !seen.insert(id.to_owned()) {
            rejects.add(file, Some(row.number), Some(id), format!("the id `{id}` stands twice"));
            continue;
        }
        // Mirrors call an image as its article does, or by its id as the repository's script does.
        let published = format!("images/{name}");
        let image_name = match files.ending(&published)? {
            Some(_) => published,
            None => format!("images/{id}.jpg"),
        };
        rows.push(Row {
            id: id.to_owned(),
            split,
            subset,
            caption: caption.to_owned(),
            image_name,
            cuis: None,
            cuis_manual: None,
            keywords: None,
            semantic_types: None,
            article: name.split_once('_').map(|(article, _)| article.to_owned()),
            licence: None,
            published: None,
            place: (Arc::clone(file), row.number),
        });
    }
    Ok(())
}
