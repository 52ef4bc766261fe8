use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestSlake;
use crate::ingest::testing::{checks, copy, json_records, lines, zip_folder};
use crate::table::{Column, Table, read};
use crate::testing::{Made, data, run, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestSlake, &params, &[("source", &tree(folder, "file"))])
}

fn strings<'a>(table: &'a Table, column: &str) -> Vec<&'a str> {
    table.strings(column).unwrap()
}

/// Real questions of 64 images in both languages; the images themselves are not there.
#[test]
fn languages_are_kept_apart_and_the_leak_between_them_is_counted() {
    let Some(folder) = data("slake/train.json") else { return };
    let folder = folder.parent().unwrap();
    let keep =
        |language: &str| json!({ "language": language, "allow_partial": true, "missing_images": "keep" });
    let english = ingest(folder, keep("en")).unwrap();
    // The files' own records, by split and language.
    let files = [("train", "train.json"), ("val", "validate.json"), ("test", "test.json")];
    let records = files.map(|(split, name)| (split, json_records(&folder.join(name))));
    let of = |split: &str, language: &str| -> Vec<&Value> {
        let (_, records) = records.iter().find(|(of, _)| *of == split).unwrap();
        records.iter().filter(|record| language == "both" || record["q_lang"] == language).collect()
    };
    let counts = |language: &str| -> BTreeMap<String, i64> {
        files.iter().map(|(split, _)| ((*split).to_owned(), of(split, language).len() as i64)).collect()
    };
    let images = |split: &str, language: &str| -> BTreeSet<String> {
        of(split, language).iter().map(|record| record["img_name"].to_string()).collect()
    };
    assert_eq!(checks(&english, "questions"), counts("en"));
    let (types, asked) = (checks(&english, "answer type"), checks(&english, "images asked about"));
    for (split, _) in files {
        for kind in ["OPEN", "CLOSED"] {
            let count = of(split, "en").iter().filter(|record| record["answer_type"] == kind).count();
            assert_eq!(types[&format!("{split} {kind}")], count as i64, "{split} {kind}");
        }
        assert_eq!(asked[split], images(split, "en").len() as i64);
    }
    // Within one language no image is in two splits.
    assert!(checks(&english, "image asked about").values().all(|count| *count == 0));
    let both = ingest(folder, keep("both")).unwrap();
    assert_eq!(checks(&both, "questions"), counts("both"));
    let shared = images("test", "both").intersection(&images("train", "both")).count() as i64;
    assert!(shared > 0 && checks(&both, "image asked about")["test train"] == shared);
    let table = read(&english["questions"]).unwrap();
    assert!(strings(&table, "lang").iter().all(|lang| *lang == "en"));
    let knowledge = read(&english["knowledge"]).unwrap();
    let mut graphs: Vec<_> =
        std::fs::read_dir(folder.join("KG")).unwrap().map(|entry| entry.unwrap().path()).collect();
    graphs.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("en_"));
    graphs.sort();
    let facts: usize = graphs.iter().map(|path| lines(path).len() - 1).sum();
    assert_eq!(knowledge.rows(), facts);
    let first = &lines(&graphs[0])[1];
    assert!(first.starts_with(strings(&knowledge, "head")[0]), "{first}");
    let graph = graphs[0].file_stem().unwrap().to_string_lossy().into_owned();
    assert_eq!(strings(&knowledge, "graph")[0], graph.trim_start_matches("en_"));

    let error = ingest(
        folder,
        keep("en")
            .as_object()
            .map(|params| {
                let mut params = params.clone();
                params.remove("allow_partial");
                Value::Object(params)
            })
            .unwrap(),
    )
    .err()
    .unwrap()
    .to_string();
    let found = format!("{} questions in the language `en`, 4919 are published", of("train", "en").len());
    assert!(error.contains(&found), "{error}");
    let error = ingest(folder, json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("there is no image `xmlab"), "{error}");
}

/// Figures that were computed from the same records by somebody else.
#[test]
fn the_checks_count_what_was_counted_before() {
    let (Some(folder), Some(file)) = (data("slake"), data("goldens-metrics/vqa_floors.json")) else { return };
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let golden = &golden["slake_en"];
    let made = ingest(&folder, json!({ "allow_partial": true, "missing_images": "keep" })).unwrap();
    assert_eq!(json!(checks(&made, "questions")["train"]), golden["train_rows"]);
    for (check, key) in
        [("answer not in training", "answer_unseen"), ("question in training", "question_seen")]
    {
        let counts = checks(&made, check);
        for (name, part) in [("test", "all"), ("test OPEN", "OPEN"), ("test CLOSED", "CLOSED")] {
            let part = &golden["parts"][part];
            let share = counts[name] as f64 / part["n"].as_f64().unwrap() * 100.0;
            assert!((share - part[key].as_f64().unwrap()).abs() < 1e-4, "{check} {name}: {share}");
        }
    }
    // Knowledge is asked for in the records of the knowledge graph alone.
    let table = read(&made["questions"]).unwrap();
    let (bases, contents) = (strings(&table, "base_type"), strings(&table, "content_type"));
    assert!(bases.iter().zip(contents).all(|(base, content)| (*base == "kvqa") == (content == "KG")));
    let Some(Column::ListUtf8(triples)) = table.column("triple") else { panic!() };
    assert!(triples.iter().all(|triple| triple.as_ref().is_some_and(|triple| triple.len() == 3)));
}

/// Invented images with masks, boxes and facts, in the published layout.
#[test]
fn masks_boxes_and_facts_belong_to_their_images() {
    let Some(folder) = data("fixture-slake") else { return };
    let made = ingest(&folder, json!({ "allow_partial": true })).unwrap();
    let images = read(&made["images"]).unwrap();
    let records: Vec<Value> = ["train.json", "validate.json", "test.json"]
        .iter()
        .flat_map(|name| json_records(&folder.join(name)))
        .filter(|record| record["q_lang"] == "en")
        .collect();
    let named: BTreeSet<String> = records.iter().map(|record| record["img_name"].to_string()).collect();
    assert_eq!(images.rows(), named.len());
    assert_eq!(read(&made["questions"]).unwrap().rows(), records.len());
    let organs: Vec<String> = lines(&folder.join("mask.txt"))
        .iter()
        .map(|line| line.split_once(':').unwrap().1.trim().to_owned())
        .collect();
    let masks = read(&made["masks"]).unwrap();
    let ids = strings(&images, "image_id");
    assert!(strings(&masks, "image_id").iter().all(|id| ids.contains(id)));
    assert!(strings(&masks, "region").iter().all(|region| organs.iter().any(|organ| organ == region)));
    let size = |row: usize| match (images.column("width"), images.column("height")) {
        (Some(Column::Int32(widths)), Some(Column::Int32(heights))) => {
            Some((widths[row]? as u32, heights[row]? as u32))
        }
        _ => None,
    };
    for (row, mask) in masks.images("mask").unwrap().iter().enumerate() {
        let decoded = image::load_from_memory(&mask.as_ref().unwrap().0).unwrap().into_luma8();
        let row_of = ids.iter().position(|id| *id == strings(&masks, "image_id")[row]).unwrap();
        assert_eq!(Some(decoded.dimensions()), size(row_of));
        let inside = decoded.pixels().filter(|pixel| pixel.0[0] == 255).count() as i64;
        assert_eq!(Some(inside), masks.int64("pixels").unwrap()[row]);
    }
    let boxes = read(&made["boxes"]).unwrap();
    let side = |name: &str, row: usize| boxes.float64(name).unwrap()[row].unwrap();
    let mut row = 0;
    // Rows stand in the order of the images' names.
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    for id in sorted {
        let detections = folder.join("imgs").join(id).join("detection.json");
        let detections = if detections.exists() { json_records(&detections) } else { Vec::new() };
        for (name, sides) in detections.iter().flat_map(|detection| detection.as_object().unwrap()) {
            assert_eq!(
                (strings(&boxes, "image_id")[row], strings(&boxes, "region")[row]),
                (id, name.as_str())
            );
            let found = ["x", "y", "width", "height"].map(|name| side(name, row));
            assert_eq!(json!(found), *sides);
            row += 1;
        }
    }
    assert!(row > 0 && row == boxes.rows());
    // A tail may hold commas: `#` alone divides.
    let knowledge = read(&made["knowledge"]).unwrap();
    let facts = lines(&folder.join("KG/en_organ.csv"));
    let tails = strings(&knowledge, "tail");
    assert!(facts[1..].iter().all(|fact| tails.contains(&fact.splitn(3, '#').nth(2).unwrap().trim())));
}

#[test]
fn damaged_annotations_are_listed() {
    let Some(published) = data("fixture-slake") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    std::fs::write(folder.path().join("imgs/xmlab1/mask.png"), b"nothing").unwrap();
    std::fs::write(folder.path().join("imgs/xmlab2/detection.json"), br#"[{"Liver": [1, 2]}]"#).unwrap();
    std::fs::write(folder.path().join("imgs/xmlab3/detection.json"), b"[{").unwrap();
    let mut records = json_records(&folder.path().join("train.json"));
    records.insert(1, json!(["no", "record"]));
    std::fs::write(folder.path().join("train.json"), serde_json::to_string(&records).unwrap()).unwrap();
    std::fs::write(folder.path().join("KG/._en_organ.csv"), b"\x00\x01\xff").unwrap();
    std::fs::write(folder.path().join("KG/en_organ.csv"), "organ#attribute#value\nLiver#function\n").unwrap();
    let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(folder.path(), json!({ "allow_partial": true, "max_rejects": 5 })).unwrap();
    let rejects = read(&made["rejects"]).unwrap();
    let reasons = strings(&rejects, "reason").join("; ");
    for part in [
        "it is a list",
        "it is no JSON",
        "cannot be decoded",
        "`Liver` has no four numbers",
        "no `head#relation#tail`",
    ] {
        assert!(reasons.contains(part), "{reasons}");
    }
    std::fs::remove_file(folder.path().join("validate.json")).unwrap();
    let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("it has no file `validate.json`"), "{error}");
}

#[test]
fn every_question_that_lacks_its_image_is_counted() {
    let Some(published) = data("fixture-slake") else { return };
    let folder = TempDir::new().unwrap();
    copy(&published, folder.path());
    let asked = |split: &str| -> Vec<String> {
        let records = json_records(&folder.path().join(split)).into_iter();
        let english = records.filter(|record| record["q_lang"] == "en");
        english.map(|record| record["img_name"].as_str().unwrap().to_owned()).collect()
    };
    let training = asked("train.json");
    let of = |image: &String| training.iter().filter(|one| *one == image).count() as i64;
    let image = training.iter().find(|image| of(image) > 1).unwrap();
    let path = folder.path().join("imgs").join(image);
    for damaged in [true, false] {
        if damaged {
            std::fs::write(&path, b"none").unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let params = |most: i64| json!({ "allow_partial": true, "max_rejects": most });
        assert!(ingest(folder.path(), params(of(image) - 1)).is_err());
        let made = ingest(folder.path(), params(of(image))).unwrap();
        let rejects = read(&made["rejects"]).unwrap();
        assert_eq!(rejects.rows() as i64, of(image));
        let name = image.trim_end_matches("/source.jpg");
        assert!(strings(&rejects, "reason").iter().all(|reason| reason.contains(name)));
        let all = training.len() + asked("validate.json").len() + asked("test.json").len();
        assert_eq!(read(&made["questions"]).unwrap().rows() + rejects.rows(), all);
    }
}

/// The images in an archive of their own, as Hugging Face has them, give the same tables.
#[test]
fn archives_give_what_folders_give() {
    let Some(published) = data("fixture-slake") else { return };
    let folder = TempDir::new().unwrap();
    for name in ["train.json", "test.json", "mask.txt"] {
        std::fs::copy(published.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::copy(published.join("validate.json"), folder.path().join("validation.json")).unwrap();
    zip_folder(&published, &folder.path().join("imgs.zip"), |path| path.starts_with("imgs/"));
    zip_folder(&published, &folder.path().join("KG.zip"), |path| path.starts_with("KG/"));
    let (whole, packed) = (
        ingest(&published, json!({ "allow_partial": true })).unwrap(),
        ingest(folder.path(), json!({ "allow_partial": true })).unwrap(),
    );
    for (port, artifact) in &whole.artifacts {
        assert_eq!(artifact.digest, packed[port].digest, "{port}");
    }
}
