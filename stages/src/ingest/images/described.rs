//! What is said of each image: by the folders it lies in, or by a row of a CSV file.

use std::sync::Arc;

use pipe_engine::StageError;

use super::{FolderMeaning, Params};
use crate::ingest::csv::CsvFile;
use crate::ingest::pictures::{Content, Picture};
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{SourceFile, SourceFiles};
use crate::ingest::splits::{canonical, drawn};

/// An image with what is said of it.
pub(super) struct Described {
    pub(super) picture: Picture,
    pub(super) labels: Vec<String>,
    pub(super) caption: Option<String>,
    /// The file that says so, and the row in it: a CSV file, or the image itself.
    pub(super) place: (Arc<SourceFile>, Option<usize>),
}

impl Described {
    /// Leaves it out.
    pub(super) fn reject(&self, rejects: &mut Rejects, reason: impl Into<String>) {
        let (file, row) = &self.place;
        rejects.add(file, *row, Some(&self.picture.id), reason);
    }

    /// The row that names it, from 1; 0 where none does.
    pub(super) fn number(&self) -> u64 {
        self.place.1.unwrap_or_default() as u64
    }

    /// Why its labels are no class, if they have to be.
    pub(super) fn without_class(&self, params: &Params) -> Option<String> {
        if !params.has_labels() {
            return None;
        }
        let unknown = |label: &&String| !params.classes.is_empty() && !params.classes.contains(label);
        match self.labels.iter().find(unknown) {
            Some(label) => Some(format!("`{label}` is no class; those are {:?}", params.classes)),
            None if params.label_separator.is_none() && self.labels.is_empty() => {
                Some("it has no label".to_owned())
            }
            None => None,
        }
    }
}

/// Where rows stand: they are read as often as they are asked for, and not kept.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// In the paths of the images.
    InFolders(&'a SourceFiles),
    /// In a CSV file that names images of a folder.
    InCsv(&'a Arc<SourceFile>, &'a SourceFiles),
}

/// Takes a row.
type Take<'t> = &'t mut dyn FnMut(Described) -> Result<(), StageError>;

impl Rows<'_> {
    /// Gives each row that can be used to `take`, in their order; the others are rejected.
    pub(super) fn each(
        self,
        params: &Params,
        rejects: &mut Rejects,
        take: Take<'_>,
    ) -> Result<(), StageError> {
        match self {
            Self::InFolders(files) => from_folders(files, params, rejects, take),
            Self::InCsv(table, files) => from_csv(table, files, params, rejects, take),
        }
    }
}

/// Names that end like this are images.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp"];

fn is_image(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_lowercase());
    !name.starts_with('.') && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// The images below a folder, in the order of their paths.
fn from_folders(
    files: &SourceFiles,
    params: &Params,
    rejects: &mut Rejects,
    take: Take<'_>,
) -> Result<(), StageError> {
    for file in files.filtered(is_image) {
        let file = file?;
        let parts: Vec<&str> = file.path.split('/').collect();
        let (name, folders) = (file.path.as_str(), &parts[..parts.len() - 1]);
        if folders.len() < params.folders.len() {
            let reason =
                format!("it lies in {} folders; `folders` names {}", folders.len(), params.folders.len());
            rejects.add(&file, None, Some(name), reason);
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
                    rejects.add(&file, None, Some(name), unknown_split(&written));
                    continue;
                }
            },
            None => drawn(params.seed, group.as_deref().unwrap_or(name), params.val, params.test),
        };
        take(Described {
            picture: Picture {
                id: name.to_owned(),
                split,
                path: name.to_owned(),
                content: Content::File(Arc::clone(&file)),
                modality: None,
                region: None,
                licence: params.licence.clone(),
                group,
                named_by: None,
            },
            labels: said(FolderMeaning::Label).into_iter().collect(),
            caption: None,
            place: (Arc::clone(&file), None),
        })?;
    }
    Ok(())
}

fn unknown_split(written: &str) -> String {
    format!("`{written}` is no split; train, val and test are, and their usual longer names")
}

/// The rows of a CSV file, in its order. Their images have to lie in the folder.
fn from_csv(
    table: &Arc<SourceFile>,
    files: &SourceFiles,
    params: &Params,
    rejects: &mut Rejects,
    take: Take<'_>,
) -> Result<(), StageError> {
    let mut file = CsvFile::open(table, params.delimiter.bytes().next().unwrap_or(b','))?;
    let column = |wanted: &str| file.column(wanted);
    let optional = |wanted: &Option<String>| wanted.as_deref().map(column).transpose();
    let columns = &params.columns;
    let image = column(&columns.image)?;
    let (id, split, label) = (optional(&columns.id)?, optional(&columns.split)?, optional(&columns.label)?);
    let (caption, group) = (optional(&columns.caption)?, optional(&columns.group)?);
    let (modality, region) = (optional(&columns.modality)?, optional(&columns.region)?);
    let licence = optional(&columns.licence)?;
    while let Some(record) = file.next_row()? {
        let record = match record {
            Ok(record) => record,
            Err(bad) => {
                rejects.add(table, Some(bad.number), None, bad.reason);
                continue;
            }
        };
        let row = record.number;
        let field = |column: Option<usize>| column.and_then(|column| record.field(column));
        let owned = |column: Option<usize>| field(column).map(str::to_owned);
        let Some(written) = field(Some(image)) else {
            rejects.add(table, Some(row), None, "it names no image");
            continue;
        };
        // Only what lies in the folder is found: no path leads out of it.
        let found = written.strip_prefix("./").unwrap_or(written);
        let Some(image) = files.exactly(found)? else {
            rejects.add(table, Some(row), field(id), format!("the folder has no file `{written}`"));
            continue;
        };
        let id = field(id).unwrap_or(found).to_owned();
        let group = owned(group);
        let split = match field(split) {
            Some(written) => match canonical(written) {
                Some(split) => split,
                None => {
                    rejects.add(table, Some(row), Some(&id), unknown_split(written));
                    continue;
                }
            },
            None if split.is_some() => {
                rejects.add(table, Some(row), Some(&id), "it has no split");
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
        take(Described {
            picture: Picture {
                id,
                split,
                path: found.to_owned(),
                content: Content::File(image),
                modality: owned(modality),
                region: owned(region),
                licence: owned(licence).or_else(|| params.licence.clone()),
                group,
                named_by: Some((Arc::clone(table), row)),
            },
            labels,
            caption: owned(caption),
            place: (Arc::clone(table), Some(row)),
        })?;
    }
    Ok(())
}
