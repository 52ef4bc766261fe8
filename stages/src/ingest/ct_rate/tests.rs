use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestCtRate;
use crate::ingest::testing::{checks, copy, csv_rows, reasons, source_file, strings};
use crate::table::{Column, Table, read};
use crate::testing::{Made, data, run, source, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestCtRate, &params, &[("source", &tree(folder, "file"))])
}

/// A row of a CSV file by the names of its columns.
type Row = BTreeMap<String, String>;

fn csv(path: &Path) -> Vec<Row> {
    let table = source_file(path);
    let mut file = crate::ingest::csv::CsvFile::open(&table, b',').unwrap();
    let names = file.header().to_vec();
    let mut rows = Vec::new();
    while let Some(row) = file.next_row().unwrap() {
        let row = row.ok().unwrap();
        let field =
            |(place, name): (usize, &String)| (name.clone(), row.field(place).unwrap_or_default().to_owned());
        rows.push(names.iter().enumerate().map(field).collect());
    }
    rows
}

fn shapes(table: &Table) -> Vec<Vec<i32>> {
    table.list_int32("shape").unwrap().iter().flatten().cloned().collect()
}

fn voxels(table: &Table, row: usize) -> Vec<i16> {
    let Some(Column::Binary(voxels)) = table.column("voxels") else { panic!() };
    voxels[row].as_ref().unwrap().chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Invented volumes in the published layout.
#[test]
fn volumes_reports_and_labels_belong_together() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let made = ingest(&folder, json!({ "spacing": [], "allow_partial": true })).unwrap();
    let volumes = read(&made["volumes"]).unwrap();
    let ids = strings(&volumes, "image_id");
    let metadata =
        ["train", "validation"].map(|name| csv(&folder.join(format!("metadata/{name}_metadata.csv"))));
    let rows: Vec<&Row> = metadata.iter().flatten().collect();
    let names: Vec<&str> = rows.iter().map(|row| row["VolumeName"].trim_end_matches(".nii.gz")).collect();
    assert_eq!(ids, names);
    assert_eq!(strings(&volumes, "split").iter().filter(|split| *split == "val").count(), metadata[1].len());
    let Some(Column::ListFloat32(spacings)) = volumes.column("spacing") else { panic!() };
    for (place, (id, row)) in ids.iter().zip(&rows).enumerate() {
        let (scan, _) = id.rsplit_once('_').unwrap();
        let (patient, _) = scan.rsplit_once('_').unwrap();
        assert_eq!(
            (strings(&volumes, "group_id")[place].as_str(), strings(&volumes, "scan")[place].as_str()),
            (patient, scan)
        );
        let number =
            |text: &str| text.trim_matches(['[', ']']).split(',').next().unwrap().parse::<f64>().unwrap();
        let (within, between) = (number(&row["XYSpacing"]), number(&row["ZSpacing"]));
        assert_eq!(spacings[place].as_deref().unwrap(), [between as f32, within as f32, within as f32]);
        // Hounsfield units by the metadata alone, slices first.
        let split = id.split('_').next().unwrap();
        let path = folder.join(split).join(patient).join(scan).join(format!("{id}.nii.gz"));
        let nifti = crate::ingest::nifti::read(&source_file(&path)).unwrap();
        let [height, width, depth] = nifti.shape;
        assert_eq!(shapes(&volumes)[place], [depth as i32, height as i32, width as i32]);
        let (slope, intercept) = (number(&row["RescaleSlope"]), number(&row["RescaleIntercept"]));
        let units = voxels(&volumes, place);
        for (row, column, slice) in
            [(0, 0, 0), (height - 1, width - 1, depth - 1), (7, 30, depth / 2), (height / 2, 7, 4)]
        {
            let stored = nifti.voxels.value((row * width + column) * depth + slice);
            let expected = (slope * stored + intercept).clamp(-1000.0, 1000.0).round() as i16;
            assert_eq!(
                units[(slice * height + row) * width + column],
                expected,
                "{id} {row} {column} {slice}"
            );
        }
    }
    let labels = read(&made["labels"]).unwrap();
    assert_eq!(strings(&labels, "image_id"), ids);
    assert_eq!(labels.metadata["task"], "multi-label, binary-class");
    let bits = ["train", "valid"]
        .map(|name| csv(&folder.join(format!("multi_abnormality_labels/{name}_predicted_labels.csv"))));
    for (id, label) in ids.iter().zip(labels.list_int64("label").unwrap()) {
        let row = bits.iter().flatten().find(|row| row["VolumeName"] == format!("{id}.nii.gz")).unwrap();
        let expected: Vec<i64> = super::LABELS.iter().map(|name| row[*name].parse().unwrap()).collect();
        assert_eq!(label.as_ref().unwrap(), &expected, "{id}");
    }
    assert_eq!(checks(&made, "class")["train Cardiomegaly"], {
        let all = labels.list_int64("label").unwrap().iter().flatten();
        all.zip(strings(&labels, "split")).filter(|(label, split)| label[2] == 1 && split == "train").count()
            as i64
    });
    let captions = read(&made["captions"]).unwrap();
    let reports = ["train", "validation"]
        .map(|name| csv(&folder.join(format!("radiology_text_reports/{name}_reports.csv"))));
    for (place, id) in strings(&captions, "image_id").iter().enumerate() {
        let row = reports.iter().flatten().find(|row| row["VolumeName"] == format!("{id}.nii.gz")).unwrap();
        let given = |name: &str| Some(row[name].clone()).filter(|text| text != "Not given.");
        let (findings, impression) = (given("Findings_EN"), given("Impressions_EN"));
        let text = [&findings, &impression].into_iter().flatten().cloned().collect::<String>();
        let text: String = text.chars().filter(|mark| !"\"'()".contains(*mark)).collect();
        assert_eq!(strings(&captions, "caption")[place], text);
        assert_eq!(captions.utf8("findings").unwrap()[place], findings);
        assert_eq!(captions.utf8("impression").unwrap()[place], impression);
    }
    let patients = |split: &str| {
        let of = strings(&volumes, "group_id").into_iter().zip(strings(&volumes, "split"));
        of.filter(|(_, of)| of == split).map(|(patient, _)| patient).collect::<BTreeSet<_>>().len() as i64
    };
    assert_eq!(checks(&made, "patients")["train"], patients("train"));
    assert_eq!(checks(&made, "same patient")["val train"], 0);
    assert!(checks(&made, "same patient")["train train"] > 0);
}

#[test]
fn captions_may_be_the_findings_alone() {
    let Some(published) = data("fixture-ct-rate/dataset") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    let reports = folder.path().join("radiology_text_reports/train_reports.csv");
    let text = std::fs::read_to_string(&reports).unwrap();
    // Marks of a CSV field stand twice.
    let quoted = "\"The \"\"tree\"\" (in bud), patient's left.\"";
    let text = text.replacen("Findings (invented): Cardiomegaly; Lung nodule; Bronchiectasis.", quoted, 1);
    std::fs::write(&reports, text).unwrap();
    let caption = |params: Value| {
        let made = ingest(folder.path(), params).unwrap();
        let captions = read(&made["captions"]).unwrap();
        assert_eq!(strings(&captions, "findings")[0], "The \"tree\" (in bud), patient's left.");
        strings(&captions, "caption")[0].clone()
    };
    assert_eq!(
        caption(json!({ "caption": "findings", "allow_partial": true })),
        "The tree in bud, patients left."
    );
    assert_eq!(
        caption(json!({ "allow_partial": true })),
        "The tree in bud, patients left.Impression invented."
    );
}

/// The window is narrow enough to cut at edges that resampling smooths.
#[test]
fn clipping_may_follow_resampling() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let units = |clip: &str| {
        let params =
            json!({ "reconstructions": "first", "window": [-100, 100], "clip": clip, "allow_partial": true });
        voxels(&read(&ingest(&folder, params).unwrap()["volumes"]).unwrap(), 0)
    };
    let (before, after) = (units("before_resampling"), units("after_resampling"));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().chain(&after).all(|unit| (-100..=100).contains(unit)));
    let differing = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(differing > 0 && differing < before.len() / 2, "{differing} of {}", before.len());
}

/// As many voxels as fit: 40 pixels of 0.8 mm become 42 of 0.75 mm.
#[test]
fn scans_are_resampled_to_one_spacing() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let made =
        ingest(&folder, json!({ "reconstructions": "first", "valid_as": "test", "allow_partial": true }))
            .unwrap();
    let volumes = read(&made["volumes"]).unwrap();
    let metadata =
        ["train", "validation"].map(|name| csv(&folder.join(format!("metadata/{name}_metadata.csv"))));
    let is_first = |row: &&Row| row["VolumeName"].ends_with("_1.nii.gz");
    let rows: Vec<&Row> = metadata.iter().flatten().filter(is_first).collect();
    assert_eq!(volumes.rows(), rows.len());
    assert_eq!(strings(&volumes, "split").last().unwrap(), "test");
    let whole =
        read(&ingest(&folder, json!({ "spacing": [], "allow_partial": true })).unwrap()["volumes"]).unwrap();
    for (id, shape) in strings(&volumes, "image_id").iter().zip(shapes(&volumes)) {
        let place = strings(&whole, "image_id").iter().position(|known| known == id).unwrap();
        let Some(Column::ListFloat32(spacings)) = whole.column("spacing") else { panic!() };
        let own = spacings[place].as_ref().unwrap();
        let resampled =
            |axis: usize, target: f32| (shapes(&whole)[place][axis] as f32 * own[axis] / target) as i32;
        assert_eq!(shape, [resampled(0, 1.5), resampled(1, 0.75), resampled(2, 0.75)], "{id}");
    }
    let units = voxels(&volumes, 0);
    assert_eq!(units.len() as i32, shapes(&volumes)[0].iter().product::<i32>());
    assert!(units.iter().all(|unit| (-1000..=1000).contains(unit)));
    assert!(units.iter().any(|unit| *unit > 0) && units.iter().any(|unit| *unit < -500));
}

#[test]
fn what_is_damaged_or_missing_is_named() {
    let Some(published) = data("fixture-ct-rate/dataset") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    let scan = folder.path().join("train/train_1/train_1_a");
    let bytes = std::fs::read(scan.join("train_1_a_1.nii.gz")).unwrap();
    std::fs::write(scan.join("train_1_a_1.nii.gz"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::remove_file(scan.join("train_1_a_2.nii.gz")).unwrap();
    let labels = folder.path().join("multi_abnormality_labels/train_predicted_labels.csv");
    let text = std::fs::read_to_string(&labels).unwrap();
    std::fs::write(
        &labels,
        text.replacen("train_2_a_1.nii.gz,0", "train_2_a_1.nii.gz,2", 1).replacen(
            "train_2_a_1.nii.gz,1",
            "train_2_a_1.nii.gz,2",
            1,
        ),
    )
    .unwrap();
    let metadata = folder.path().join("metadata/validation_metadata.csv");
    let text = std::fs::read_to_string(&metadata).unwrap();
    std::fs::write(&metadata, text.replacen("[0.8, 0.8]", "wide", 1)).unwrap();
    let error = ingest(folder.path(), json!({})).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(folder.path(), json!({ "max_rejects": 3, "allow_partial": true })).unwrap();
    assert_eq!(checks(&made, "volume of the tables that is not there").values().sum::<i64>(), 1);
    let reasons = reasons(&made).join("; ");
    for part in ["`2` is no label of `Medical material`", "`wide` is no spacing in the plane", "it ends in"] {
        assert!(reasons.contains(part), "{reasons}");
    }
    // Without `allow_partial` the tables have to be whole.
    let error = ingest(&published, json!({})).err().unwrap().to_string();
    assert!(error.contains("volumes of the split `train`, 47149 are published"), "{error}");
}

/// Labels and reports of a volume that the metadata do not name are no row of any table.
#[test]
fn labels_and_reports_of_no_volume_are_counted() {
    let Some(published) = data("fixture-ct-rate/dataset") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    let metadata = folder.path().join("metadata/train_metadata.csv");
    let text = std::fs::read_to_string(&metadata).unwrap();
    let of = |line: &&str| !line.starts_with("train_2_a_1.nii.gz");
    let rest: Vec<&str> = text.lines().filter(of).collect();
    assert_eq!(rest.len(), text.lines().count() - 1);
    std::fs::write(&metadata, rest.join("\n")).unwrap();
    let params = |most: i64| json!({ "max_rejects": most, "allow_partial": true });
    let error = ingest(folder.path(), params(1)).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(folder.path(), params(2)).unwrap();
    let rejects = read(&made["rejects"]).unwrap();
    assert_eq!(strings(&rejects, "id"), ["train_2_a_1", "train_2_a_1"]);
    let files = strings(&rejects, "file").join(" ");
    assert!(files.contains("train_predicted_labels.csv") && files.contains("train_reports.csv"), "{files}");
    assert!(
        reasons(&made).iter().all(|reason| reason.contains("`train_metadata.csv` does not name its volume"))
    );
    // What stands in a row of the metadata that was rejected is lost with that row.
    std::fs::write(&metadata, text.replacen("[0.8, 0.8]", "wide", 1)).unwrap();
    assert_eq!(read(&ingest(folder.path(), params(1)).unwrap()["rejects"]).unwrap().rows(), 1);
}

/// What the publisher says is no chest is left out: a scan, or one reconstruction of it.
#[test]
fn what_is_no_chest_is_left_out() {
    let Some(published) = data("fixture-ct-rate/dataset") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    let list = "train_1_a\n\ndataset/train/train_2/train_2_a/train_2_a_1.nii.gz\n";
    std::fs::write(folder.path().join("metadata/no_chest_train.txt"), list).unwrap();
    let ids = |params: Value| {
        strings(&read(&ingest(folder.path(), params).unwrap()["volumes"]).unwrap(), "image_id")
    };
    let all = ids(json!({ "allow_partial": true, "chest_only": false }));
    let is_left = |id: &&String| !id.starts_with("train_1_a_") && *id != "train_2_a_1";
    let expected: Vec<String> = all.iter().filter(is_left).cloned().collect();
    assert!(expected.len() < all.len() - 1);
    assert_eq!(ids(json!({ "allow_partial": true })), expected);
}

/// Real reports with labels that people gave; there are no volumes.
#[test]
fn labelled_reports_read_without_volumes() {
    let Some(file) = data("ct-rate-reports/labelled_reports.csv") else { return };
    let made = run(&IngestCtRate, &json!({}), &[("source", &source(&file))]).unwrap();
    assert_eq!(read(&made["volumes"]).unwrap().rows(), 0);
    let (labels, captions) = (read(&made["labels"]).unwrap(), read(&made["captions"]).unwrap());
    let rows = csv_rows(&file) as usize;
    assert_eq!((labels.rows(), captions.rows()), (rows, rows));
    assert!(labels.list_int64("label").unwrap().iter().all(|label| label.as_ref().unwrap().len() == 18));
}
