//! CT-RATE's folder `dataset`: a NIfTI file per volume, and tables of reports, labels and metadata.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use pipe_engine::StageError;

use super::failed;
use crate::ingest::ABNORMALITIES;

/// Stored values are Hounsfield units plus this, as the metadata say.
const OFFSET: i16 = 1024;
const MISSING: &str = "Not given.";

/// A folder that is being written.
pub(in crate::phantom) struct CtRateFolder {
    folder: PathBuf,
    splits: [Split; 2],
}

/// The rows of the tables of a published split.
struct Split {
    /// In the names of volumes, and in those of tables of reports and metadata.
    short: &'static str,
    long: &'static str,
    patients: usize,
    /// Who the last volume was of, and how many of theirs there are.
    last: Option<(String, u8)>,
    reports: String,
    labels: String,
    metadata: String,
}

/// A volume with what is said of it.
pub(in crate::phantom) struct Published<'a> {
    /// The patient, whose volumes follow each other.
    pub(in crate::phantom) patient: &'a str,
    /// Hounsfield units, `[slices, rows, columns]`.
    pub(in crate::phantom) voxels: &'a [i16],
    pub(in crate::phantom) shape: [usize; 3],
    /// Millimetres between slices, and between rows or columns.
    pub(in crate::phantom) spacing: [f32; 2],
    pub(in crate::phantom) clinical_information: Option<&'a str>,
    pub(in crate::phantom) findings: &'a str,
    pub(in crate::phantom) impression: &'a str,
    /// One bit per abnormality.
    pub(in crate::phantom) labels: &'a [i64],
}

impl Split {
    fn new(short: &'static str, long: &'static str) -> Self {
        let names: Vec<String> = ABNORMALITIES.iter().map(|name| quoted(name)).collect();
        Self {
            short,
            long,
            patients: 0,
            last: None,
            reports: "VolumeName,ClinicalInformation_EN,Technique_EN,Findings_EN,Impressions_EN\n".to_owned(),
            labels: format!("VolumeName,{}\n", names.join(",")),
            metadata: "VolumeName,XYSpacing,ZSpacing,RescaleSlope,RescaleIntercept\n".to_owned(),
        }
    }
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

impl CtRateFolder {
    /// A folder without volumes.
    pub(in crate::phantom) fn new(folder: &Path) -> Self {
        let splits = [Split::new("train", "train"), Split::new("valid", "validation")];
        Self { folder: folder.to_owned(), splits }
    }

    /// Adds a volume; all that is not for training goes to the published validation split.
    pub(in crate::phantom) fn push(&mut self, split: &str, one: &Published<'_>) -> Result<(), StageError> {
        let split = &mut self.splits[usize::from(split != "train")];
        let scans = match &split.last {
            Some((patient, scans)) if patient == one.patient => scans + 1,
            _ => {
                split.patients += 1;
                0
            }
        };
        split.last = Some((one.patient.to_owned(), scans));
        let patient = format!("{}_{}", split.short, split.patients);
        let scan = format!("{patient}_{}", char::from(b'a' + scans));
        let name = format!("{scan}_1.nii.gz");
        let folder = self.folder.join(split.short).join(&patient).join(&scan);
        std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let path = folder.join(&name);
        write_nifti(&path, one).map_err(failed(&path))?;
        let text = [one.clinical_information.unwrap_or(MISSING), MISSING, one.findings, one.impression];
        let bits: Vec<String> = one.labels.iter().map(i64::to_string).collect();
        let [between, within] = one.spacing;
        split.reports.push_str(&format!("{name},{}\n", text.map(quoted).join(",")));
        split.labels.push_str(&format!("{name},{}\n", bits.join(",")));
        split.metadata.push_str(&format!("{name},\"[{within}, {within}]\",{between},1,-{OFFSET}\n"));
        Ok(())
    }

    /// Writes the tables.
    pub(in crate::phantom) fn finish(self) -> Result<(), StageError> {
        for split in self.splits {
            for (folder, name, text) in [
                ("radiology_text_reports", format!("{}_reports.csv", split.long), split.reports),
                ("multi_abnormality_labels", format!("{}_predicted_labels.csv", split.short), split.labels),
                ("metadata", format!("{}_metadata.csv", split.long), split.metadata),
            ] {
                let folder = self.folder.join(folder);
                std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
                let path = folder.join(name);
                std::fs::write(&path, text).map_err(failed(&path))?;
            }
        }
        Ok(())
    }
}

/// A volume as gzipped NIfTI-1 of 16 bits: rows along x, which is fastest, columns along y, slices along z.
fn write_nifti(path: &Path, one: &Published<'_>) -> std::io::Result<()> {
    let [slices, rows, columns] = one.shape;
    let [between, within] = one.spacing;
    let mut header = [0; 352];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &348i32.to_le_bytes());
    let sizes = [3, rows as i16, columns as i16, slices as i16, 1, 1, 1, 1];
    put(40, &sizes.map(i16::to_le_bytes).concat());
    put(70, &4i16.to_le_bytes());
    put(72, &16i16.to_le_bytes());
    put(76, &[1.0, within, within, between].map(f32::to_le_bytes).concat());
    put(108, &352f32.to_le_bytes());
    put(112, &1f32.to_le_bytes());
    put(344, b"n+1\0");
    let mut file = GzEncoder::new(BufWriter::new(File::create(path)?), Compression::default());
    file.write_all(&header)?;
    let mut slice = Vec::with_capacity(rows * columns * 2);
    for of_slice in one.voxels.chunks_exact(rows * columns).take(slices) {
        slice.clear();
        for column in 0..columns {
            for row in 0..rows {
                slice.extend((of_slice[row * columns + column] + OFFSET).to_le_bytes());
            }
        }
        file.write_all(&slice)?;
    }
    file.finish()?.flush()
}
