//! What of patients leaves: names, ids, captions and file names that occur nowhere else are looked for in all that is handed on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader as _, SerializedFileReader};

use crate::study::{Study, text};

const STUDY: &str = r#"[pipeline]
name = "clinic"
format = 1

[stage.clinic]
kind = "ingest.images"
inputs = { source = "file:images", table = "file:rows.csv" }
params = { columns = { image = "file", id = "id", label = "finding", group = "patient", caption = "words", split = "split" } }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "clinic.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = 32, seed = 1 }

[stage.tuned]
kind = "finetune.classify"
inputs = { images = "clinic.images", labels = "clinic.labels", checkpoint = "initial" }
params = { mode = "full", epochs = 1, batch = 8 }

[stage.tested]
kind = "evaluate.classify"
inputs = { images = "clinic.images", labels = "clinic.labels", checkpoint = "tuned.checkpoint" }

[stage.figures]
kind = "report"
inputs = { tested = "tested.metrics", learned = "tuned.log", checked = "clinic.checks" }

[stage.samples]
kind = "report"
inputs = { tested = "tested.predictions" }
"#;

/// What tells of single patients: each occurs in one column or name alone.
const ID: &str = "IDCANARY";
const PATIENT: &str = "PATIENTCANARY";
const CAPTION: &str = "CAPTIONCANARY";
const FILE: &str = "FILECANARY";
const ALL: [&str; 4] = [ID, PATIENT, CAPTION, FILE];

/// An uncompressed picture of 32 x 32 pixels of one colour with a square in another one.
fn picture(seed: usize) -> Vec<u8> {
    let size = 32usize;
    let bytes = 54 + size * size * 3;
    let mut file = b"BM".to_vec();
    for number in [bytes as u32, 0, 54, 40, size as u32, size as u32] {
        file.extend(number.to_le_bytes());
    }
    file.extend([1, 0, 24, 0]);
    file.extend([0; 24]);
    for place in 0..size * size {
        let inside = (place / size + seed) % 7 < 3 && (place % size) > seed % 20;
        file.extend([if inside { 200 } else { 20 }, (seed * 9 % 251) as u8, (place % 13) as u8]);
    }
    file
}

fn study() -> Study {
    let study = Study::new(STUDY);
    let mut rows = "file,id,finding,patient,words,split\n".to_owned();
    for row in 0..64 {
        let (split, finding) = (["train", "test"][row / 32], ["none", "nodule"][row % 2]);
        let patient = row / 2;
        rows.push_str(&format!(
            "{FILE}{row}.bmp,{ID}{row},{finding},{PATIENT}{patient},{CAPTION}{row} of {finding},{split}\n"
        ));
        study.write_file(&format!("images/{FILE}{row}.bmp"), picture(row));
    }
    study.write_file("rows.csv", rows);
    study.run(&[]).expect(0);
    study
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("it is a folder") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

/// The canaries in the name or the content of a file; of tables in their rows and metadata, which are packed.
fn told(path: &Path) -> BTreeSet<&'static str> {
    let mut content = path.to_string_lossy().into_owned();
    content.push_str(&String::from_utf8_lossy(&std::fs::read(path).expect("it can be read")));
    if path.extension().is_some_and(|extension| extension == "parquet") {
        let reader = SerializedFileReader::new(std::fs::File::open(path).expect("it is there"));
        let reader = reader.expect("it is a table");
        content.push_str(&format!("{:?}", reader.metadata().file_metadata().key_value_metadata()));
        for row in reader.get_row_iter(None).expect("it has rows") {
            content.push_str(&row.expect("it can be read").to_string());
        }
    }
    ALL.into_iter().filter(|canary| content.contains(canary)).collect()
}

fn told_by(folder: &Path) -> BTreeSet<&'static str> {
    files(folder).iter().flat_map(|path| told(path)).collect()
}

#[test]
fn nothing_of_single_patients_is_in_aggregates_and_in_reports_of_figures() {
    let study = study();
    // That they are found where they are: in tables of samples, and in an export of everything.
    assert_eq!(told_by(&study.path("results/clinic/clinic")), ALL.into());
    assert!(told_by(&study.path("results/clinic/tested/predictions")).contains(ID));
    let whole = study.path("whole");
    study.pipe(&["export", "study.toml", "last", text(&whole)]).expect(0);
    assert_eq!(told_by(&whole), ALL.into());

    let aggregates = study.path("aggregates");
    study.pipe(&["export", "study.toml", "last", text(&aggregates), "--aggregate-only"]).expect(0);
    for path in files(&aggregates) {
        assert_eq!(told(&path), [].into(), "{}", path.display());
    }
    assert!(aggregates.join("results/tested/metrics").is_dir(), "figures are there");

    // A report shows what it is given: figures are of nobody, predictions name samples and never their patients.
    for path in files(&study.path("results/clinic/figures")) {
        assert_eq!(told(&path), [].into(), "{}", path.display());
    }
    let samples = told_by(&study.path("results/clinic/samples"));
    assert!(!samples.contains(PATIENT) && !samples.contains(CAPTION), "{samples:?}");
}
