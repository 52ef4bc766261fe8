use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestCtRate;
use crate::ingest::testing::{checks, copy, reasons, strings};
use crate::table::{Column, Table, read};
use crate::testing::{Made, data, run, source, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestCtRate, &params, &[("source", &tree(folder, "file"))])
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
    let made = ingest(&folder, json!({ "spacing": [] })).unwrap();
    let volumes = read(&made["volumes"]).unwrap();
    let ids = strings(&volumes, "image_id");
    assert_eq!(ids.len(), 12);
    assert_eq!(ids[0], "train_1_a_1");
    assert_eq!(strings(&volumes, "group_id")[3], "train_2");
    assert_eq!(strings(&volumes, "scan")[3], "train_2_a");
    assert_eq!(strings(&volumes, "split")[11], "val");
    // 40 x 36 pixels; slices of 3 mm or 2 mm.
    assert_eq!(shapes(&volumes)[..2], [[20, 40, 36], [30, 40, 36]]);
    let Some(Column::ListFloat32(spacings)) = volumes.column("spacing") else { panic!() };
    assert_eq!(spacings[0].as_deref().unwrap(), [3.0, 0.8, 0.8]);
    // Stored values are Hounsfield units plus 1024, by the metadata alone.
    let path = folder.join("train/train_1/train_1_a/train_1_a_1.nii.gz");
    let file = crate::ingest::source::SourceFiles::of(&source(&path)).unwrap();
    let nifti = crate::ingest::nifti::read(file.iter().next().unwrap()).unwrap();
    let units = voxels(&volumes, 0);
    for (row, column, slice) in [(0, 0, 0), (39, 35, 19), (7, 30, 11), (30, 7, 4)] {
        let stored = nifti.voxels[(row * 36 + column) * 20 + slice];
        let expected = (stored - 1024.0).clamp(-1000.0, 1000.0) as i16;
        assert_eq!(units[(slice * 40 + row) * 36 + column], expected, "{row} {column} {slice}");
    }
    let labels = read(&made["labels"]).unwrap();
    assert_eq!(strings(&labels, "image_id"), ids);
    assert_eq!(labels.metadata["task"], "multi-label, binary-class");
    let first = labels.list_int64("label").unwrap()[0].clone().unwrap();
    let present: Vec<usize> = (0..18).filter(|class| first[*class] == 1).collect();
    assert_eq!(present, [2, 9, 16]);
    assert_eq!(checks(&made, "class")["train Cardiomegaly"], {
        let all = labels.list_int64("label").unwrap().iter().flatten();
        all.zip(strings(&labels, "split")).filter(|(label, split)| label[2] == 1 && split == "train").count()
            as i64
    });
    let captions = read(&made["captions"]).unwrap();
    assert_eq!(
        strings(&captions, "caption")[..2],
        [
            "Findings invented: Cardiomegaly; Lung nodule; Bronchiectasis.Impression invented.",
            "Findings invented: Cardiomegaly; Lung nodule; Bronchiectasis."
        ]
    );
    assert_eq!(captions.utf8("impression").unwrap()[..2], [Some("Impression (invented).".to_owned()), None]);
    assert_eq!(checks(&made, "patients")["train"], 3);
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
    assert_eq!(caption(json!({ "caption": "findings" })), "The tree in bud, patients left.");
    assert_eq!(caption(json!({})), "The tree in bud, patients left.Impression invented.");
}

/// The window is narrow enough to cut at edges that resampling smooths.
#[test]
fn clipping_may_follow_resampling() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let units = |clip: &str| {
        let params = json!({ "reconstructions": "first", "window": [-100, 100], "clip": clip });
        voxels(&read(&ingest(&folder, params).unwrap()["volumes"]).unwrap(), 0)
    };
    let (before, after) = (units("before_resampling"), units("after_resampling"));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().chain(&after).all(|unit| (-100..=100).contains(unit)));
    let differing = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert!(differing > 0 && differing < before.len() / 2, "{differing} of {}", before.len());
}

/// 0.8 mm pixels become 0.75 mm ones: 42 and 38 of them; slices of 3 and of 2 mm become 40 of 1.5 mm.
#[test]
fn scans_are_resampled_to_one_spacing() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let made = ingest(&folder, json!({ "reconstructions": "first", "valid_as": "test" })).unwrap();
    let volumes = read(&made["volumes"]).unwrap();
    assert_eq!(volumes.rows(), 6);
    assert_eq!(strings(&volumes, "split")[5], "test");
    assert!(shapes(&volumes).iter().all(|shape| *shape == [40, 42, 38]), "{:?}", shapes(&volumes));
    let units = voxels(&volumes, 0);
    assert_eq!(units.len(), 40 * 42 * 38);
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
    // Without `allow_partial` the volume that is not there is a fourth row that is left out.
    let error = ingest(folder.path(), json!({ "max_rejects": 3 })).err().unwrap().to_string();
    assert!(error.contains("(and 3 more)"), "{error}");
}

/// Real reports with labels that people gave; there are no volumes.
#[test]
fn labelled_reports_read_without_volumes() {
    let Some(file) = data("ct-rate-reports/labelled_reports.csv") else { return };
    let made = run(&IngestCtRate, &json!({}), &[("source", &source(&file))]).unwrap();
    assert_eq!(read(&made["volumes"]).unwrap().rows(), 0);
    let (labels, captions) = (read(&made["labels"]).unwrap(), read(&made["captions"]).unwrap());
    assert_eq!((labels.rows(), captions.rows()), (40, 40));
    assert!(labels.list_int64("label").unwrap().iter().all(|label| label.as_ref().unwrap().len() == 18));
}
