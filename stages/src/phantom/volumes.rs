//! Volumes with reports and labels, in the schema of CT-RATE.

use pipe_engine::cache::Digest;
use pipe_engine::{StageContext, StageError};

use super::expected::Expected;
use super::export::{CtRateFolder, NpzFile, Published, grey_of};
use super::ingest::splits_of;
use super::params::{Export, Params};
use super::places::{Place, TEST, TRAIN, VAL, places};
use super::stream::{Stream, key};
use super::volume::{Chest, FINDINGS, Finding, PREVALENCE, Volume};
use super::{figures, tables};
use crate::ingest::ABNORMALITIES;
use crate::ingest::checks::Checks;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions, write};

/// How deep and how wide a volume is, in millimetres.
const MILLIMETRES: [f64; 3] = [300.0, 360.0, 360.0];
/// Volumes are drawn in blocks of this many, each on all threads.
const BLOCK: usize = 16;

/// One volume, without its voxels.
struct Row {
    place: Place,
    id: String,
    group: String,
    chest: Chest,
    sha: Digest,
}

/// A report, by its sections.
struct Report {
    clinical_information: Option<String>,
    findings: String,
    impression: String,
}

/// Slices of a volume, and voxels a side of each.
pub(super) fn shape(params: &Params) -> [usize; 3] {
    let size = params.size as usize;
    [params.depth.map_or(size * 2 / 3, |depth| depth as usize), size, size]
}

/// Draws all volumes and writes all tables.
pub(super) fn ingest(params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
    let places = places(params);
    let provenance = context.provenance().to_owned();
    let options = WriteOptions { shard_rows: params.part_rows(), provenance: &provenance };
    let schemas = [TableSchema::volumes(), TableSchema::volumes()];
    let mut volumes = TableWriter::new(context.output("volumes")?, &schemas[0], options);
    let mut masks = TableWriter::new(context.output("masks")?, &schemas[1], options);
    let mut export = Exported::new(params, &places, context)?;
    let mut rows: Vec<Row> = Vec::with_capacity(places.len());
    for block in places.chunks(BLOCK) {
        context.check_cancelled()?;
        let drawn: Vec<(Row, Volume)> = block.iter().map(|place| draw(params, place)).collect();
        volumes.push(table(params, &drawn, "i16", &|volume| bytes(&volume.voxels)))?;
        masks.push(table(params, &drawn, "u8", &|volume| volume.labels.clone()))?;
        for (row, volume) in &drawn {
            export.push(params, row, volume)?;
        }
        rows.extend(drawn.into_iter().map(|(row, _)| row));
        context.progress(rows.len() as u64, places.len() as u64, "volumes", &[]);
    }
    volumes.finish(context.output("volumes")?)?;
    masks.finish(context.output("masks")?)?;
    export.finish()?;
    let text = WriteOptions::text(&provenance);
    write(context.output("labels")?, &TableSchema::labels(), &labels(params, &rows), text)?;
    write(context.output("captions")?, &TableSchema::captions(), &captions(params, &rows), text)?;
    let expected = figures::expected_table(&expected(&rows));
    write(context.output("expected")?, &TableSchema::expected(), &expected, text)?;
    checks(params, &rows).write(context.output("checks")?, &provenance)
}

/// The files of a published data set, if they are wanted.
enum Exported {
    None,
    Archive(Box<NpzFile>),
    Folder(Box<CtRateFolder>),
}

impl Exported {
    fn new(params: &Params, places: &[Place], context: &mut StageContext<'_>) -> Result<Self, StageError> {
        Ok(match params.export {
            None => Self::None,
            Some(Export::Medmnist) => {
                let path = context.output("export")?.path("phantoms.npz")?;
                Self::Archive(Box::new(NpzFile::create(&path, shape(params).to_vec(), splits_of(places))?))
            }
            Some(Export::CtRate) => {
                Self::Folder(Box::new(CtRateFolder::new(context.output("export")?.folder())))
            }
        })
    }

    fn push(&mut self, params: &Params, row: &Row, volume: &Volume) -> Result<(), StageError> {
        let bits = bits(&row.chest);
        match self {
            Self::None => Ok(()),
            Self::Archive(archive) => {
                let greys: Vec<u8> = volume.voxels.iter().map(|units| grey_of(*units)).collect();
                let nodule = i64::from(row.chest.findings[0].is_some());
                archive.push(row.place.split, &greys, &[nodule])
            }
            Self::Folder(folder) => {
                let report = report(params.seed as u64, row);
                let [between, within, _] = spacing(shape(params));
                let published = Published {
                    patient: &row.group,
                    voxels: &volume.voxels,
                    shape: shape(params),
                    spacing: [between, within],
                    clinical_information: report.clinical_information.as_deref(),
                    findings: &report.findings,
                    impression: &report.impression,
                    labels: &bits,
                };
                folder.push(row.place.split, &published)
            }
        }
    }

    fn finish(self) -> Result<(), StageError> {
        match self {
            Self::None => Ok(()),
            Self::Archive(archive) => archive.finish(),
            Self::Folder(folder) => folder.finish(),
        }
    }
}

/// Millimetres from one voxel to the next along each axis.
fn spacing(shape: [usize; 3]) -> [f32; 3] {
    std::array::from_fn(|axis| (MILLIMETRES[axis] / shape[axis] as f64) as f32)
}

fn draw(params: &Params, place: &Place) -> (Row, Volume) {
    let origin = place.origin;
    let chest = Chest::draw(params.seed as u64, origin.patient, origin.image);
    let [depth, size, _] = shape(params);
    let volume = chest.volume(depth, size);
    let sha = Digest::of(&bytes(&volume.voxels));
    let row = Row { place: place.clone(), id: place.id(params), group: place.group(params), chest, sha };
    (row, volume)
}

/// Little endian.
fn bytes(voxels: &[i16]) -> Vec<u8> {
    voxels.iter().flat_map(|voxel| voxel.to_le_bytes()).collect()
}

fn metadata(params: &Params, units: &str) -> [(&'static str, String); 3] {
    [
        ("dataset", tables::dataset(params)),
        ("licence", tables::LICENCE.to_owned()),
        ("units", units.to_owned()),
    ]
}

fn table(params: &Params, rows: &[(Row, Volume)], dtype: &str, voxels: &dyn Fn(&Volume) -> Vec<u8>) -> Table {
    let content: Vec<Vec<u8>> = rows.iter().map(|(_, volume)| voxels(volume)).collect();
    let shape = shape(params);
    let sizes: Vec<i32> = shape.iter().map(|size| *size as i32).collect();
    let spacing = spacing(shape).to_vec();
    let same = |text: &str| Column::texts(rows.iter().map(|_| text));
    let units = if dtype == "u8" { "0 or the number of a finding" } else { "Hounsfield units" };
    let findings = |text: &dyn Fn(usize, &Finding) -> Option<String>| {
        let of = |row: &Row| {
            let there = row.chest.findings.iter().enumerate();
            there.filter_map(|(place, finding)| text(place, finding.as_ref()?)).collect::<Vec<String>>()
        };
        Column::ListUtf8(rows.iter().map(|(row, _)| Some(of(row))).collect())
    };
    let digests: Vec<String> = content.iter().map(|bytes| Digest::of(bytes).to_hex()).collect();
    let table = Table::new()
        .with("image_id", Column::texts(rows.iter().map(|(row, _)| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|(row, _)| row.place.split)))
        .with("voxels", Column::Binary(content.into_iter().map(Some).collect()))
        .with("dtype", same(dtype))
        .with("shape", Column::ListInt32(rows.iter().map(|_| Some(sizes.clone())).collect()))
        .with("spacing", Column::ListFloat32(rows.iter().map(|_| Some(spacing.clone())).collect()))
        .with("sha", Column::texts(digests))
        .with("modality", same("CT"))
        .with("region", same("chest"))
        .with("licence", same(tables::LICENCE))
        .with("group_id", Column::texts(rows.iter().map(|(row, _)| row.group.clone())))
        .with("truth_findings", findings(&|place, _| Some(FINDINGS[place].0.to_owned())))
        .with(
            "truth_sides",
            findings(&|_, finding| Some(finding.side.map_or("none", |side| side.name()).to_owned())),
        )
        .with("truth_sizes", findings(&|_, finding| Some(size(finding).to_owned())))
        .with_all_metadata(&metadata(params, units));
    match dtype {
        "u8" => {
            let names: Vec<&str> = FINDINGS.iter().map(|(name, _)| *name).collect();
            table.with_metadata("regions", serde_json::json!(names).to_string())
        }
        _ => table,
    }
}

fn size(finding: &Finding) -> &'static str {
    if finding.large { "large" } else { "small" }
}

/// One bit for each abnormality of CT-RATE, of which phantoms have five.
fn bits(chest: &Chest) -> Vec<i64> {
    let there = |name: &str| {
        let place = FINDINGS.iter().position(|(known, _)| *known == name);
        place.is_some_and(|place| chest.findings[place].is_some())
    };
    ABNORMALITIES.iter().map(|name| i64::from(there(name))).collect()
}

fn labels(params: &Params, rows: &[Row]) -> Table {
    let never: Vec<&str> =
        ABNORMALITIES.into_iter().filter(|name| FINDINGS.iter().all(|(known, _)| known != name)).collect();
    Table::new()
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.place.split)))
        .with("label", Column::ListInt64(rows.iter().map(|row| Some(bits(&row.chest))).collect()))
        .with_metadata("task", "multi-label, binary-class")
        .with_metadata("label_names", serde_json::json!(ABNORMALITIES).to_string())
        .with_metadata("never_present", serde_json::json!(never).to_string())
        .with_all_metadata(&metadata(params, ""))
}

fn report(seed: u64, row: &Row) -> Report {
    let Place { patient, image, .. } = row.place;
    let mut stream = Stream::new(key(seed, "medical", "report", &[patient, image]));
    let mut findings = Vec::new();
    let mut impression = Vec::new();
    for ((_, name), finding) in FINDINGS.iter().zip(&row.chest.findings) {
        let Some(finding) = finding else {
            findings.push(format!("No {name}."));
            continue;
        };
        let size = size(finding);
        findings.push(match finding.side {
            Some(side) => format!("There is a {size} {name} on the {}.", side.name()),
            None if *name == "cardiomegaly" => "The heart is enlarged.".to_owned(),
            None => format!("There is {name}."),
        });
        impression.push(match finding.side {
            Some(side) => format!("{size} {name} on the {}", side.name()),
            None => (*name).to_owned(),
        });
    }
    let asked = ["Cough.", "Dyspnea.", "Chest pain."];
    let given = stream.chance(0.5);
    let clinical = *stream.pick(&asked);
    Report {
        clinical_information: given.then(|| clinical.to_owned()),
        findings: findings.join(" "),
        impression: if impression.is_empty() {
            "No significant abnormality.".to_owned()
        } else {
            format!("{}.", impression.join(", "))
        },
    }
}

fn captions(params: &Params, rows: &[Row]) -> Table {
    let reports: Vec<Report> = rows.iter().map(|row| report(params.seed as u64, row)).collect();
    let text = |value: &dyn Fn(&Report) -> Option<String>| Column::Utf8(reports.iter().map(value).collect());
    Table::new()
        .with("caption_id", Column::Int64(rows.iter().map(|row| Some(row.place.number(0))).collect()))
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.place.split)))
        // Findings and impression without anything between them, as CT-CLIP reads them.
        .with("caption", text(&|report| Some(format!("{}{}", report.findings, report.impression))))
        .with("clinical_information", text(&|report| report.clinical_information.clone()))
        .with("technique", text(&|_| None))
        .with("findings", text(&|report| Some(report.findings.clone())))
        .with("impression", text(&|report| Some(report.impression.clone())))
        .with_metadata("task", "retrieval")
        .with_all_metadata(&metadata(params, ""))
}

/// How often each finding is there, and how often whoever always gives the commoner answer is right.
fn expected(rows: &[Row]) -> Vec<Expected> {
    let mut figures = Vec::new();
    for split in [TRAIN, VAL, TEST] {
        let of_split: Vec<&Row> = rows.iter().filter(|row| row.place.split == split).collect();
        if of_split.is_empty() {
            continue;
        }
        for (share, (name, _)) in PREVALENCE.into_iter().zip(FINDINGS) {
            let error = (share * (1.0 - share) / of_split.len() as f64).sqrt();
            let subset = name.to_owned();
            let figure = |quantity: &str, value: f64, formula: &'static str| Expected {
                quantity: quantity.to_owned(),
                split,
                subset: subset.clone(),
                value,
                error,
                formula,
            };
            figures.push(figure("prevalence", share, "probability of the finding"));
            figures.push(figure("accuracy of the majority", share.max(1.0 - share), "max(p, 1 - p)"));
        }
    }
    figures
}

fn checks(params: &Params, rows: &[Row]) -> Checks {
    let mut checks = Checks::naming_all();
    let splits: Vec<&str> = [TRAIN, VAL, TEST]
        .into_iter()
        .filter(|split| rows.iter().any(|row| row.place.split == *split))
        .collect();
    let shape = shape(params).map(|size| size.to_string()).join(" x ");
    for split in &splits {
        let of_split: Vec<&Row> = rows.iter().filter(|row| row.place.split == *split).collect();
        checks.count("volumes", split, None, of_split.len() as u64);
        for (class, name) in ABNORMALITIES.into_iter().enumerate() {
            let count = of_split.iter().filter(|row| bits(&row.chest)[class] == 1).count();
            checks.count("class", split, Some(name.to_owned()), count as u64);
        }
        checks.count("shape", split, Some(shape.clone()), of_split.len() as u64);
    }
    let same: Vec<(&str, &str, Digest)> =
        rows.iter().map(|row| (row.place.split, row.id.as_str(), row.sha)).collect();
    checks.duplicates("same volume", &splits, &same);
    let patients: Vec<(&str, &str, &str)> =
        rows.iter().map(|row| (row.place.split, row.id.as_str(), row.group.as_str())).collect();
    checks.duplicates("same patient", &splits, &patients);
    checks
}
