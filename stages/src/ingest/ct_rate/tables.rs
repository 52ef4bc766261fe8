//! What the CSV files of CT-RATE say of each volume.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_engine::StageError;

use super::CaptionText;
use crate::ingest::csv::{CsvFile, CsvRow};
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{RowPlace, SourceFile, SourceFiles};
use crate::ingest::splits::named_in;

/// The abnormalities, in the order of the published columns.
pub(crate) const LABELS: [&str; 18] = [
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
];

/// A volume, or a report that has none.
pub(super) struct Volume {
    /// `train_1_a_1`.
    pub(super) id: String,
    /// `train_1`.
    pub(super) patient: String,
    /// `train_1_a`.
    pub(super) scan: Option<String>,
    pub(super) split: &'static str,
    pub(super) labels: Option<Vec<i64>>,
    pub(super) report: Option<Report>,
    /// How stored values become Hounsfield units. Nothing where there are no volumes.
    pub(super) acquisition: Option<Acquisition>,
    /// The row that names the volume.
    pub(super) place: RowPlace,
}

/// A report.
#[derive(Clone)]
pub(super) struct Report {
    /// What CT-CLIP reads.
    pub(super) text: String,
    pub(super) clinical_information: Option<String>,
    pub(super) technique: Option<String>,
    pub(super) findings: Option<String>,
    pub(super) impression: Option<String>,
}

/// A row of the metadata.
#[derive(Clone, Copy)]
pub(super) struct Acquisition {
    /// Millimetres between rows, and between columns.
    pub(super) in_plane: f64,
    /// Millimetres between slices.
    pub(super) between_planes: f64,
    pub(super) slope: f64,
    pub(super) intercept: f64,
}

/// The volumes that a table of metadata names.
struct Named<'a> {
    table: &'a SourceFile,
    volumes: BTreeSet<String>,
}

impl Named<'_> {
    /// Whether the table names a volume.
    fn check(&self, volume: &str) -> Result<(), String> {
        match self.volumes.contains(volume) {
            true => Ok(()),
            false => Err(format!("`{}` does not name its volume", self.table.name())),
        }
    }
}

/// Rows of a file by volume; a volume that stands twice, and a row that cannot be read, is rejected. `volumes` becomes
/// every volume that the file names, rejected or not.
fn by_volume<T>(
    csv: &mut CsvFile<'_>,
    file: &SourceFile,
    volumes: &mut BTreeSet<String>,
    rejects: &mut Rejects,
    read: impl Fn(&str, &CsvRow) -> Result<T, String>,
) -> Result<Vec<(String, usize, T)>, StageError> {
    let name = csv.column("VolumeName")?;
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(row) = csv.next_row()? {
        let row = match row {
            Ok(row) => row,
            Err(bad) => {
                rejects.add(file, Some(bad.number), None, bad.reason);
                continue;
            }
        };
        let Some(volume) = row.field(name) else {
            rejects.add(file, Some(row.number), None, "it names no volume");
            continue;
        };
        let volume = volume.trim_end_matches(".nii.gz").to_owned();
        volumes.insert(volume.clone());
        let taken = read(&volume, &row).and_then(|value| match seen.insert(volume.clone()) {
            true => Ok(value),
            false => Err("its volume stands twice".to_owned()),
        });
        match taken {
            Ok(value) => rows.push((volume, row.number, value)),
            Err(reason) => rejects.add(file, Some(row.number), Some(&volume), reason),
        }
    }
    Ok(rows)
}

fn number(row: &CsvRow, column: usize, name: &str) -> Result<f64, String> {
    let written = row.field(column).unwrap_or_default();
    // A list such as `[0.75, 0.75]` stands for its first number.
    let first = written.trim_matches(['[', ']', '(', ')']).split(',').next().unwrap_or_default().trim();
    match first.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(format!("`{written}` is no {name}")),
    }
}

fn bits(row: &CsvRow, columns: &[usize]) -> Result<Vec<i64>, String> {
    let bit = |(column, name): (&usize, &str)| match row.field(*column) {
        Some("0" | "0.0") => Ok(0),
        Some("1" | "1.0") => Ok(1),
        written => Err(format!("`{}` is no label of `{name}`; 0 and 1 are", written.unwrap_or_default())),
    };
    columns.iter().zip(LABELS).map(bit).collect()
}

fn label_columns(csv: &CsvFile<'_>) -> Result<Vec<usize>, StageError> {
    LABELS.iter().map(|name| csv.column(name)).collect()
}

/// A text; `Not given.` is none.
fn given(row: &CsvRow, column: usize) -> Option<String> {
    row.field(column).filter(|text| *text != "Not given.").map(str::to_owned)
}

/// What CT-CLIP's code takes out of reports.
const LEFT_OUT: [char; 4] = ['"', '\'', '(', ')'];

/// The caption of a report: the wanted parts, one behind the other, without [`LEFT_OUT`].
fn caption_of(findings: Option<&str>, impression: Option<&str>, caption: CaptionText) -> String {
    let impression = match caption {
        CaptionText::FindingsAndImpressions => impression,
        CaptionText::Findings => None,
    };
    let parts = [findings, impression].into_iter().flatten();
    parts.flat_map(str::chars).filter(|character| !LEFT_OUT.contains(character)).collect()
}

/// The labels of a file by volume; those of no volume are rejected.
fn labels(
    file: &SourceFile,
    named: &Named<'_>,
    rejects: &mut Rejects,
) -> Result<BTreeMap<String, Vec<i64>>, StageError> {
    let mut csv = CsvFile::open(file, b',')?;
    let columns = label_columns(&csv)?;
    let rows = by_volume(&mut csv, file, &mut BTreeSet::new(), rejects, |volume, row| {
        named.check(volume)?;
        bits(row, &columns)
    })?;
    Ok(rows.into_iter().map(|(volume, _, bits)| (volume, bits)).collect())
}

/// The reports of a file by volume; those of no volume are rejected.
fn reports(
    file: &SourceFile,
    named: &Named<'_>,
    caption: CaptionText,
    rejects: &mut Rejects,
) -> Result<BTreeMap<String, Report>, StageError> {
    let mut csv = CsvFile::open(file, b',')?;
    let columns = ["ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN"];
    let columns = columns.map(|name| csv.column(name));
    let [clinical, technique, findings, impression] = columns;
    let (clinical, technique, findings, impression) = (clinical?, technique?, findings?, impression?);
    let rows = by_volume(&mut csv, file, &mut BTreeSet::new(), rejects, |volume, row| {
        named.check(volume)?;
        let (findings, impression) = (given(row, findings), given(row, impression));
        Ok(Report {
            text: caption_of(findings.as_deref(), impression.as_deref(), caption),
            clinical_information: given(row, clinical),
            technique: given(row, technique),
            findings,
            impression,
        })
    })?;
    Ok(rows.into_iter().map(|(volume, _, report)| (volume, report)).collect())
}

/// The volumes that the metadata of both splits name, in their order.
pub(super) fn read(
    files: &SourceFiles,
    caption: CaptionText,
    rejects: &mut Rejects,
) -> Result<Vec<Volume>, StageError> {
    let mut volumes = Vec::new();
    // The validation split has two names.
    for (split, long, short) in [("train", "train", "train"), ("val", "validation", "valid")] {
        let Some(file) = files.ending(&format!("{long}_metadata.csv"))? else { continue };
        let mut csv = CsvFile::open(&file, b',')?;
        let columns =
            ["XYSpacing", "ZSpacing", "RescaleSlope", "RescaleIntercept"].map(|name| csv.column(name));
        let [xy, z, slope, intercept] = columns;
        let (xy, z, slope, intercept) = (xy?, z?, slope?, intercept?);
        let mut named = Named { table: &file, volumes: BTreeSet::new() };
        let rows = by_volume(&mut csv, &file, &mut named.volumes, rejects, |_, row| {
            Ok(Acquisition {
                in_plane: number(row, xy, "spacing in the plane")?,
                between_planes: number(row, z, "spacing between planes")?,
                slope: number(row, slope, "slope")?,
                intercept: number(row, intercept, "intercept")?,
            })
        })?;
        let labels = match files.ending(&format!("{short}_predicted_labels.csv"))? {
            Some(file) => labels(&file, &named, rejects)?,
            None => BTreeMap::new(),
        };
        let mut reports = match files.ending(&format!("{long}_reports.csv"))? {
            Some(file) => reports(&file, &named, caption, rejects)?,
            None => BTreeMap::new(),
        };
        for (id, row, acquisition) in rows {
            // train_1_a_1 is the first reconstruction of the scan train_1_a of the patient train_1.
            let scan = id.rsplit_once('_').map(|(scan, _)| scan.to_owned());
            let patient = scan.as_deref().and_then(|scan| scan.rsplit_once('_'));
            let Some(patient) = patient.map(|(patient, _)| patient.to_owned()) else {
                rejects.add(
                    &file,
                    Some(row),
                    Some(&id),
                    format!("`{id}` is no `split_patient_scan_reconstruction`"),
                );
                continue;
            };
            volumes.push(Volume {
                patient,
                scan,
                split,
                labels: labels.get(&id).cloned(),
                report: reports.remove(&id).filter(|report: &Report| !report.text.is_empty()),
                acquisition: Some(acquisition),
                id,
                place: (Arc::clone(&file), row),
            });
        }
    }
    match volumes.is_empty() {
        true => {
            Err(files.error("it has neither `train_metadata.csv` nor `validation_metadata.csv` with volumes"))
        }
        false => Ok(volumes),
    }
}

/// The file of labelled reports, if the source is that file.
pub(super) fn labelled_reports(files: &SourceFiles) -> Result<Option<Arc<SourceFile>>, StageError> {
    for file in files.filtered(|path| path.ends_with(".csv")) {
        let file = file?;
        let csv = CsvFile::open(&file, b',')?;
        if ["AccessionNo", "report_text"].iter().all(|name| csv.header().iter().any(|header| header == name))
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Reports with labels that people gave, by which CT-RATE's text classifier was trained.
pub(super) fn read_labelled_reports(
    file: &Arc<SourceFile>,
    rejects: &mut Rejects,
) -> Result<Vec<Volume>, StageError> {
    let split = named_in(&file.path).unwrap_or("train");
    let mut csv = CsvFile::open(file, b',')?;
    let (number, text) = (csv.column("AccessionNo")?, csv.column("report_text")?);
    let columns = label_columns(&csv)?;
    let mut volumes = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(row) = csv.next_row()? {
        let row = match row {
            Ok(row) => row,
            Err(bad) => {
                rejects.add(file, Some(bad.number), None, bad.reason);
                continue;
            }
        };
        let (Some(id), Some(text)) = (row.field(number), row.field(text)) else {
            rejects.add(file, Some(row.number), row.field(number), "it lacks a number or a text");
            continue;
        };
        let labels = match bits(&row, &columns) {
            Ok(_) if !seen.insert(id.to_owned()) => {
                rejects.add(file, Some(row.number), Some(id), format!("the id `{id}` stands twice"));
                continue;
            }
            Ok(labels) => labels,
            Err(reason) => {
                rejects.add(file, Some(row.number), Some(id), reason);
                continue;
            }
        };
        let report = Report {
            text: text.to_owned(),
            clinical_information: None,
            technique: None,
            findings: None,
            impression: None,
        };
        volumes.push(Volume {
            id: id.to_owned(),
            patient: id.to_owned(),
            scan: None,
            split,
            labels: Some(labels),
            report: Some(report),
            acquisition: None,
            place: (Arc::clone(file), row.number),
        });
    }
    Ok(volumes)
}
