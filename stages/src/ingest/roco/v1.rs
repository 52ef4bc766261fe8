//! The text files of the repository of ROCO, a line per figure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_engine::StageError;

use super::{Params, Row, Subset, check_count};
use crate::ingest::csv::CsvFile;
use crate::ingest::lines::Lines;
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{RowPlace, SourceFile, SourceFiles};

/// The folder of a split, and how many captions its two subsets have.
const FOLDERS: [(&str, &str, [usize; 2]); 3] = [
    ("train", "train", [65_448, 4_895]),
    ("val", "validation", [8_180, 611]),
    ("test", "test", [8_179, 612]),
];

/// All captions of a subset, in the order of splits and of the files.
pub(super) fn read(
    files: &SourceFiles,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Vec<Row>, StageError> {
    let subsets = [(Subset::Radiology, "radiology"), (Subset::NonRadiology, "non-radiology")];
    let (mut rows, mut seen) = (Vec::new(), BTreeSet::new());
    let mut found = false;
    for (split, folder, counts) in FOLDERS {
        for ((subset, name), published) in subsets.into_iter().zip(counts) {
            if params.subset != Subset::All && params.subset != subset {
                continue;
            }
            let path = format!("{folder}/{name}/captions.txt");
            let file = match files.ending(&path)? {
                None if params.allow_partial => continue,
                _ => files.needed(&path)?,
            };
            found = true;
            let before = rows.len();
            let beside = Beside::read(files, &format!("{folder}/{name}"), rejects)?;
            let mut lines = Lines::open(&file)?;
            while let Some((line, text)) = lines.next_text()? {
                match caption(text, &mut seen) {
                    Ok((id, caption)) => {
                        rows.push(beside.row(id, caption, split, name, (Arc::clone(&file), line)))
                    }
                    Err((id, reason)) => rejects.add(&file, Some(line), id.as_deref(), reason),
                }
            }
            check_count(&file, rows.len() - before, published, params)?;
        }
    }
    match found {
        true => Ok(rows),
        false => {
            Err(files
                .error("it has neither `test/radiology/captions.txt` or its like, nor the tables of ROCOv2"))
        }
    }
}

/// The id and the caption of a line.
fn caption(
    text: Result<String, String>,
    seen: &mut BTreeSet<String>,
) -> Result<(String, String), (Option<String>, String)> {
    let text = text.map_err(|reason| (None, reason))?;
    let (id, caption) =
        text.split_once('\t').ok_or_else(|| (None, "it has no tab between id and caption".to_owned()))?;
    let (id, caption) = (id.trim().to_owned(), caption.trim());
    if id.is_empty() || id.contains('/') {
        return Err((None, "it has no id".to_owned()));
    }
    if caption.is_empty() {
        return Err((Some(id), "it has no caption".to_owned()));
    }
    if !seen.insert(id.clone()) {
        let reason = format!("the id `{id}` stands twice");
        return Err((Some(id), reason));
    }
    Ok((id, caption.to_owned()))
}

/// What the files beside the captions say, by id.
struct Beside {
    cuis: BTreeMap<String, Vec<String>>,
    keywords: BTreeMap<String, Vec<String>>,
    semantic_types: BTreeMap<String, Vec<String>>,
    /// Article and licence.
    licences: BTreeMap<String, (Option<String>, Option<String>)>,
    /// The archive of the article, and the file in it that is the image.
    places: BTreeMap<String, (String, String)>,
}

impl Beside {
    fn read(files: &SourceFiles, folder: &str, rejects: &mut Rejects) -> Result<Self, StageError> {
        let beside = |name: &str| files.ending(&format!("{folder}/{name}"));
        let mut lists = |name: &str| match beside(name)? {
            Some(file) => lists(&file, rejects),
            None => Ok(BTreeMap::new()),
        };
        let (cuis, keywords) = (lists("cuis.txt")?, lists("keywords.txt")?);
        let semantic_types = lists("semtypes.txt")?;
        let links = lists("dlinks.txt")?;
        let places = links.into_iter().filter_map(|(id, fields)| Some((id, link(&fields)?))).collect();
        let licences = match beside("licences.txt")? {
            Some(file) => licences(&file, rejects)?,
            None => BTreeMap::new(),
        };
        Ok(Self { cuis, keywords, semantic_types, licences, places })
    }

    fn row(
        &self,
        id: String,
        caption: String,
        split: &'static str,
        subset: &'static str,
        place: RowPlace,
    ) -> Row {
        let (article, licence) = self.licences.get(&id).cloned().unwrap_or_default();
        Row {
            image_name: format!("images/{id}.jpg"),
            split,
            subset,
            caption,
            cuis: self.cuis.get(&id).cloned(),
            cuis_manual: None,
            keywords: self.keywords.get(&id).cloned(),
            semantic_types: self.semantic_types.get(&id).cloned(),
            article,
            licence,
            published: self.places.get(&id).cloned(),
            id,
            place,
        }
    }
}

/// The archive that a command for `wget` names, and the file in it.
fn link(fields: &[String]) -> Option<(String, String)> {
    let [command, name] = fields else { return None };
    let archive = command.split_whitespace().find(|word| word.contains("://"))?;
    Some((archive.to_owned(), name.clone()))
}

/// Lines of an id, a field that is always empty, and items.
fn lists(file: &SourceFile, rejects: &mut Rejects) -> Result<BTreeMap<String, Vec<String>>, StageError> {
    let mut lists = BTreeMap::new();
    let mut lines = Lines::open(file)?;
    while let Some((line, text)) = lines.next_text()? {
        match text {
            Ok(text) => {
                let mut fields = text.split('\t').map(str::trim);
                let id = fields.next().unwrap_or_default().to_owned();
                lists.insert(id, fields.filter(|item| !item.is_empty()).map(str::to_owned).collect());
            }
            Err(reason) => rejects.add(file, Some(line), None, reason),
        }
    }
    Ok(lists)
}

/// The article of each figure, `PMC4608653` of `PMC4608653_cro-0008-0385-g01.jpg`, and its licence.
fn licences(
    file: &SourceFile,
    rejects: &mut Rejects,
) -> Result<BTreeMap<String, (Option<String>, Option<String>)>, StageError> {
    let mut licences = BTreeMap::new();
    let mut rows = CsvFile::open(file, b',')?;
    let (id, article, licence) = (rows.column("ROCO_ID")?, rows.column("PMC_ID")?, rows.column("CC")?);
    while let Some(row) = rows.next_row()? {
        match row {
            Ok(row) => {
                let article =
                    row.field(article).map(|name| name.split('_').next().unwrap_or(name).to_owned());
                let id = row.field(id).unwrap_or_default().to_owned();
                licences.insert(id, (article, row.field(licence).map(str::to_owned)));
            }
            Err(bad) => rejects.add(file, Some(bad.number), None, bad.reason),
        }
    }
    Ok(licences)
}
