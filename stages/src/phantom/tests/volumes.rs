//! Volumes: what is planted is what the tables and the voxels say.

use pipe_engine::AnyKind;
use pipe_engine::cache::Digest;
use serde_json::json;

use crate::phantom::IngestPhantom;
use crate::phantom::volume::{Chest, FINDINGS, PREVALENCE};
use crate::table::{Column, Table, read};
use crate::testing::{Made, run, run_on};

fn params() -> serde_json::Value {
    json!({ "domain": "volume", "seed": 5, "size": 36, "train": 30, "test": 12 })
}

fn table(made: &Made, port: &str) -> Table {
    read(&made[port]).unwrap()
}

fn binary<'a>(table: &'a Table, name: &str) -> Vec<&'a [u8]> {
    match table.column(name) {
        Some(Column::Binary(values)) => values.iter().map(|value| value.as_deref().unwrap()).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

fn texts(table: &Table, name: &str) -> Vec<Vec<String>> {
    match table.column(name) {
        Some(Column::ListUtf8(values)) => values.iter().map(|value| value.clone().unwrap()).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn tables_agree_on_what_is_planted() {
    let made = run(&IngestPhantom, &params(), &[]).unwrap();
    let (volumes, masks, labels) = (table(&made, "volumes"), table(&made, "masks"), table(&made, "labels"));
    let captions = table(&made, "captions");
    assert_eq!((volumes.rows(), masks.rows(), labels.rows(), captions.rows()), (42, 42, 42, 42));
    assert_eq!(volumes.column("shape"), Some(&Column::ListInt32(vec![Some(vec![24, 36, 36]); 42])));
    let names: Vec<String> = serde_json::from_str(&labels.metadata["label_names"]).unwrap();
    let never: Vec<String> = serde_json::from_str(&labels.metadata["never_present"]).unwrap();
    assert_eq!((names.len(), never.len()), (18, 13));
    let planted = texts(&volumes, "truth_findings");
    let bits = labels.list_int64("label").unwrap();
    let reports = captions.strings("findings").unwrap();
    let impressions = captions.strings("impression").unwrap();
    let outlined = binary(&masks, "voxels");
    for row in 0..42 {
        let there: Vec<&str> = names
            .iter()
            .zip(bits[row].as_ref().unwrap())
            .filter_map(|(name, bit)| (*bit == 1).then_some(name.as_str()))
            .collect();
        let mut expected: Vec<&str> = planted[row].iter().map(String::as_str).collect();
        expected.sort_by_key(|name| names.iter().position(|known| known == name));
        assert_eq!(there, expected);
        for (place, (name, words)) in FINDINGS.iter().enumerate() {
            let is_there = planted[row].iter().any(|finding| finding == name);
            assert_eq!(reports[row].contains(&format!("No {words}.")), !is_there, "{}", reports[row]);
            assert_eq!(impressions[row].contains(words), is_there, "{}", impressions[row]);
            let voxels = outlined[row].iter().filter(|label| usize::from(**label) == place + 1).count();
            assert_eq!(voxels > 0, is_there, "{name} in {voxels} voxels of volume {row}");
        }
    }
    assert!(impressions.contains(&"No significant abnormality."));
    // The voxels are those that the row's digest names.
    let shas = volumes.strings("sha").unwrap();
    for (sha, voxels) in shas.into_iter().zip(binary(&volumes, "voxels")) {
        assert_eq!(voxels.len(), 24 * 36 * 36 * 2);
        assert_eq!(Digest::of(voxels).to_hex(), sha);
    }
}

#[test]
fn findings_are_where_they_are_outlined_and_have_their_density() {
    let mut seen = [0; 5];
    for patient in 0..60 {
        let chest = Chest::draw(3, patient, 0);
        let (volume, plain) = (chest.volume(32, 48), chest.without_findings().volume(32, 48));
        for (place, finding) in chest.findings.iter().enumerate() {
            let Some(finding) = finding else { continue };
            let inside: Vec<usize> =
                (0..volume.labels.len()).filter(|at| usize::from(volume.labels[*at]) == place + 1).collect();
            let mean =
                inside.iter().map(|at| f64::from(volume.voxels[*at])).sum::<f64>() / inside.len() as f64;
            let (low, high) =
                [(-150.0, 100.0), (-60.0, 60.0), (-300.0, 60.0), (0.0, 100.0), (200.0, 720.0)][place];
            assert!((low..high).contains(&mean), "{}: {mean} HU", FINDINGS[place].0);
            if let Some(side) = finding.side {
                let x = inside.iter().map(|at| (at % 48) as f64).sum::<f64>() / inside.len() as f64;
                assert_eq!(x < 24.0, side.name() == "right", "{}", FINDINGS[place].0);
            }
            seen[place] += 1;
        }
        // Outside of what the findings touch the twin is the same, to the bit.
        let differ: Vec<usize> =
            (0..plain.voxels.len()).filter(|at| plain.voxels[*at] != volume.voxels[*at]).collect();
        let outlined = volume.labels.iter().filter(|label| **label > 0).count();
        assert_eq!(differ.is_empty(), outlined == 0);
        assert!(
            differ.len() <= 6 * outlined.max(1),
            "{} voxels differ, {outlined} are outlined",
            differ.len()
        );
        assert!(plain.labels.iter().all(|label| *label == 0));
    }
    assert!(seen.iter().all(|count| *count > 5), "{seen:?}");
}

#[test]
fn findings_are_as_frequent_as_promised() {
    let chests: Vec<Chest> = (0..4000).map(|patient| Chest::draw(11, patient, 0)).collect();
    for (place, share) in PREVALENCE.into_iter().enumerate() {
        let count = chests.iter().filter(|chest| chest.findings[place].is_some()).count() as f64;
        let error = (share * (1.0 - share) / 4000.0).sqrt();
        assert!((count / 4000.0 - share).abs() < 4.0 * error, "{}: {count}", FINDINGS[place].0);
    }
    let both = chests.iter().filter_map(|chest| Some((chest.findings[0]?, chest.findings[2]?)));
    for (nodule, consolidation) in both {
        assert_ne!(nodule.side, consolidation.side);
    }
}

/// Every machine draws the same bytes, whatever the number of threads.
#[test]
fn volumes_are_pinned() {
    let kind = IngestPhantom;
    let [one, four] = [1, 4].map(|threads| run_on(threads, &kind, &params(), &[]).unwrap());
    let digest = |made: &Made| {
        let table = table(made, "volumes");
        let bytes: Vec<u8> = binary(&table, "voxels").concat();
        Digest::of(&bytes).to_hex()
    };
    assert_eq!(digest(&one), digest(&four));
    assert_eq!(digest(&one), "fb37ef886e20157825ac0c6709b8f3d6815e75fdda0290069f03abacd81c0918");
}

#[test]
fn knobs_of_images_are_refused() {
    let problems = |text: serde_json::Value| {
        let resolved = AnyKind::resolve(&IngestPhantom, &text);
        resolved.err().map(|problems| format!("{problems:?}")).unwrap_or_default()
    };
    let text = problems(json!({ "domain": "volume", "contrast": 0.5, "twins": ["lesion"] }));
    assert!(text.contains("contrast") && text.contains("twins"), "{text}");
    assert!(problems(json!({ "depth": 9 })).contains("images have no depth"));
    assert_eq!(problems(params()), "");
}
