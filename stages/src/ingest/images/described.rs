//! What is said of each image: by the folders it lies in, or by a row of a CSV file.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_engine::{Artifact, StageError};

use super::{FolderMeaning, Params};
use crate::ingest::csv::CsvFile;
use crate::ingest::pictures::Picture;
use crate::ingest::rejects::Rejects;
use crate::ingest::splits::{canonical, drawn};

/// An image with what is said of it.
pub(super) struct Described {
    pub(super) picture: Picture,
    pub(super) labels: Vec<String>,
    pub(super) caption: Option<String>,
}

/// Names that end like this are images.
const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

fn is_image(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_lowercase());
    !name.starts_with('.') && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// The images below a folder, in the order of their paths.
pub(super) fn from_folders(
    folder: &Artifact,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Vec<Described>, StageError> {
    let mut rows = Vec::new();
    for file in folder.files.iter().filter(|file| is_image(&file.path)) {
        let parts: Vec<&str> = file.path.split('/').collect();
        let (name, folders) = (file.path.as_str(), &parts[..parts.len() - 1]);
        if folders.len() < params.folders.len() {
            let reason =
                format!("it lies in {} folders; `folders` names {}", folders.len(), params.folders.len());
            rejects.add(name, None, Some(name), reason);
            continue;
        }
        let said = |meaning: FolderMeaning| {
            let place = params.folders.iter().position(|known| *known == meaning)?;
            Some(folders[place].to_owned())
        };
        let group = said(FolderMeaning::Group);
        let split = match said(FolderMeaning::Split) {
            Some(written) => match canonical(&written) {
                Some(split) => split,
                None => {
                    rejects.add(name, None, Some(name), unknown_split(&written));
                    continue;
                }
            },
            None => drawn(params.seed, group.as_deref().unwrap_or(name), params.val, params.test),
        };
        rows.push(Described {
            picture: Picture {
                id: name.to_owned(),
                split,
                path: name.to_owned(),
                location: file.location.clone(),
                modality: None,
                region: None,
                licence: params.licence.clone(),
                group,
                row: None,
            },
            labels: said(FolderMeaning::Label).into_iter().collect(),
            caption: None,
        });
    }
    Ok(rows)
}

fn unknown_split(written: &str) -> String {
    format!("`{written}` is no split; train, val and test are, and their usual longer names")
}

/// The rows of a CSV file, in its order. Their images have to lie in the folder.
pub(super) fn from_csv(
    path: &Path,
    name: &str,
    folder: &Artifact,
    params: &Params,
    rejects: &mut Rejects,
) -> Result<Vec<Described>, StageError> {
    let mut file = CsvFile::open(path, params.delimiter.bytes().next().unwrap_or(b','))?;
    let column = |wanted: &str| file.column(wanted);
    let optional = |wanted: &Option<String>| wanted.as_deref().map(column).transpose();
    let columns = &params.columns;
    let image = column(&columns.image)?;
    let (id, split, label) = (optional(&columns.id)?, optional(&columns.split)?, optional(&columns.label)?);
    let (caption, group) = (optional(&columns.caption)?, optional(&columns.group)?);
    let (modality, region) = (optional(&columns.modality)?, optional(&columns.region)?);
    let licence = optional(&columns.licence)?;
    let files: BTreeMap<&str, &Path> =
        folder.files.iter().map(|file| (file.path.as_str(), file.location.as_path())).collect();
    let mut rows = Vec::new();
    while let Some(record) = file.next_row()? {
        let record = match record {
            Ok(record) => record,
            Err(bad) => {
                rejects.add(name, Some(bad.number), None, bad.reason);
                continue;
            }
        };
        let row = record.number;
        let field = |column: Option<usize>| column.and_then(|column| record.field(column));
        let owned = |column: Option<usize>| field(column).map(str::to_owned);
        let Some(written) = field(Some(image)) else {
            rejects.add(name, Some(row), None, "it names no image");
            continue;
        };
        // Only what lies in the folder is found: no path leads out of it.
        let found = written.strip_prefix("./").unwrap_or(written);
        let Some(location) = files.get(found) else {
            rejects.add(name, Some(row), field(id), format!("the folder has no file `{written}`"));
            continue;
        };
        let id = field(id).unwrap_or(found).to_owned();
        let group = owned(group);
        let split = match field(split) {
            Some(written) => match canonical(written) {
                Some(split) => split,
                None => {
                    rejects.add(name, Some(row), Some(&id), unknown_split(written));
                    continue;
                }
            },
            None if split.is_some() => {
                rejects.add(name, Some(row), Some(&id), "it has no split");
                continue;
            }
            None => drawn(params.seed, group.as_deref().unwrap_or(&id), params.val, params.test),
        };
        let labels = match (field(label), &params.label_separator) {
            (None, _) => Vec::new(),
            (Some(label), None) => vec![label.to_owned()],
            (Some(labels), Some(separator)) => labels
                .split(separator.as_str())
                .map(|label| label.trim().to_owned())
                .filter(|label| !label.is_empty())
                .collect(),
        };
        rows.push(Described {
            picture: Picture {
                id,
                split,
                path: found.to_owned(),
                location: (*location).to_owned(),
                modality: owned(modality),
                region: owned(region),
                licence: owned(licence).or_else(|| params.licence.clone()),
                group,
                row: Some(row),
            },
            labels,
            caption: owned(caption),
        });
    }
    Ok(rows)
}
