//! The stage as a whole: tables, copies, threads and parameters.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{AnyKind, Artifact};
use serde_json::json;

use crate::phantom::IngestPhantom;
use crate::table::{Column, Table, read};
use crate::testing::{Made, run, run_on};

fn ingest(params: &serde_json::Value) -> Made {
    run(&IngestPhantom, params, &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn table(made: &Made, port: &str) -> Table {
    read(&made[port]).unwrap()
}

/// The files of an artifact, by what they hold.
fn files(artifact: &Artifact) -> BTreeSet<Vec<u8>> {
    artifact.files.iter().map(|file| std::fs::read(&file.location).unwrap()).collect()
}

fn lists<'a>(table: &'a Table, name: &str) -> &'a [Option<Vec<String>>] {
    match table.column(name) {
        Some(Column::ListUtf8(values)) => values,
        other => panic!("{name}: {other:?}"),
    }
}

/// A figure of `expected`.
fn figure(expected: &Table, quantity: &str, split: &str, subset: &str) -> f64 {
    let [quantities, splits, subsets] =
        ["quantity", "split", "subset"].map(|name| expected.strings(name).unwrap());
    let row = (0..expected.rows())
        .find(|row| (quantities[*row], splits[*row], subsets[*row]) == (quantity, split, subset))
        .unwrap_or_else(|| panic!("no {quantity} of {split}, {subset}"));
    expected.float64("value").unwrap()[row].unwrap()
}

/// The pairs that a check names, with its count.
fn check(checks: &Table, name: &str, split: &str, other: &str) -> (i64, BTreeMap<String, String>) {
    let [names, splits, others] = ["check", "split", "other"].map(|name| checks.strings(name).unwrap());
    let row = (0..checks.rows())
        .find(|row| (names[*row], splits[*row], others[*row]) == (name, split, other))
        .unwrap_or_else(|| panic!("no check {name} of {split} and {other}"));
    let examples = lists(checks, "examples")[row].clone().unwrap();
    let pair = |text: &String| {
        let (id, twin) = text.split_once(" = ").unwrap();
        (id.to_owned(), twin.to_owned())
    };
    (checks.int64("count").unwrap()[row].unwrap(), examples.iter().map(pair).collect())
}

/// Planted copies are found again, to the row, by the checks that know nothing of the planting.
#[test]
fn leaks_and_duplicates_are_found_exactly() {
    let made = ingest(&json!({
        "train": 400, "val": 60, "test": 300, "size": 28, "leak": 0.05, "leak_near": 0.08, "duplicates": 0.1,
    }));
    let images = table(&made, "images");
    let (ids, splits) = (images.strings("image_id").unwrap(), images.strings("split").unwrap());
    let (shas, groups) = (images.strings("sha").unwrap(), images.strings("group_id").unwrap());
    let leak_of = images.utf8("truth_leak_of").unwrap();
    let duplicate_of = images.utf8("truth_duplicate_of").unwrap();
    let row_of: BTreeMap<&str, usize> = ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
    let (mut copies, mut near, mut repeats) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for row in 0..images.rows() {
        if let Some(source) = &leak_of[row] {
            assert_eq!(splits[row], "test");
            let source_row = row_of[source.as_str()];
            assert_eq!(splits[source_row], "train");
            let planted = if groups[row] == groups[source_row] { &mut near } else { &mut copies };
            planted.insert(ids[row].to_owned(), source.clone());
            assert_eq!(shas[row] == shas[source_row], groups[row] != groups[source_row]);
        }
        if let Some(source) = &duplicate_of[row] {
            assert_eq!(shas[row], shas[row_of[source.as_str()]]);
            assert!(row_of[source.as_str()] < row);
            repeats
                .entry(splits[row])
                .or_insert_with(BTreeMap::new)
                .insert(ids[row].to_owned(), source.clone());
        }
    }
    assert!((5..=30).contains(&copies.len()), "{} copies of 300", copies.len());
    assert!((10..=45).contains(&near.len()), "{} near copies of 300", near.len());
    let (checks, expected) = (table(&made, "checks"), table(&made, "expected"));
    let (count, found) = check(&checks, "same image", "test", "train");
    assert_eq!((count as usize, &found), (copies.len(), &copies));
    assert_eq!(figure(&expected, "copies of training images", "test", "all"), count as f64);
    let (count, found) = check(&checks, "same patient", "test", "train");
    assert_eq!(count as usize, near.len());
    assert!(found.keys().eq(near.keys()));
    assert_eq!(figure(&expected, "other images of training patients", "test", "all"), count as f64);
    for split in ["train", "val", "test"] {
        let (count, found) = check(&checks, "same image", split, split);
        assert_eq!((count as usize, &found), (repeats[split].len(), &repeats[split]), "{split}");
        assert_eq!(figure(&expected, "repeated images", split, "all"), count as f64);
    }
    assert_eq!(check(&checks, "same image", "val", "train").0, 0);
    assert_eq!(check(&checks, "same patient", "val", "train").0, 0);
}

/// What `checks` says of data without copies: that somebody looked.
#[test]
fn without_copies_the_checks_are_zero() {
    let made =
        ingest(&json!({ "train": 200, "test": 100, "size": 28, "images_per_patient": [0.6, 0.25, 0.15] }));
    let checks = table(&made, "checks");
    for (split, other) in [("test", "train"), ("train", "train"), ("test", "test")] {
        assert_eq!(check(&checks, "same image", split, other).0, 0, "{split} and {other}");
    }
    assert_eq!(check(&checks, "same patient", "test", "train").0, 0);
    let images = table(&made, "images");
    let groups: BTreeSet<&str> = images.strings("group_id").unwrap().into_iter().collect();
    // 1.55 images of a patient on average.
    assert!((170..220).contains(&groups.len()), "{} patients of 300 images", groups.len());
    // Finding, side and size are the patient's.
    let mut patients: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in ["truth_finding", "truth_side", "truth_size", "truth_device"] {
        patients.clear();
        for (group, value) in
            images.strings("group_id").unwrap().into_iter().zip(images.strings(name).unwrap())
        {
            patients.entry(group).or_default().push(value);
        }
        assert!(patients.values().all(|values| values.iter().all(|value| *value == values[0])), "{name}");
    }
    let shas: BTreeSet<&str> = images.strings("sha").unwrap().into_iter().collect();
    assert_eq!(shas.len(), 300, "images of a patient differ");
}

fn everything(train: i64) -> serde_json::Value {
    json!({
        "train": train, "val": 20, "test": 60, "size": 28, "shard_rows": 4, "questions": 2, "paraphrase": true,
        "images_per_patient": [0.6, 0.25, 0.15], "leak": 0.1, "leak_near": 0.1, "duplicates": 0.1,
        "caption_swap": 0.2, "label_noise": 0.1, "twins": ["lesion", "marker", "device", "side"],
    })
}

/// 1,000 more training rows: rows of before keep every value, and parts their bytes.
#[test]
fn further_rows_change_none() {
    let (few, many) = (ingest(&everything(100)), ingest(&everything(1100)));
    for port in ["images", "labels", "captions", "questions", "masks", "twins", "twin_labels"] {
        let key = if port == "questions" { "qid" } else { "image_id" };
        let rows = |made: &Made| -> BTreeMap<String, Vec<String>> {
            let table = table(made, port);
            let value = |row: usize| -> Vec<String> {
                let one = table.select(&[row]);
                one.columns().iter().map(|column| format!("{column:?}")).collect()
            };
            let key = |row: usize| format!("{:?}", table.select(&[row]).column(key));
            (0..table.rows()).map(|row| (key(row), value(row))).collect()
        };
        let (before, after) = (rows(&few), rows(&many));
        assert!(before.len() > 50, "{port} has {} rows", before.len());
        for (key, value) in before {
            assert_eq!(after.get(&key), Some(&value), "{port}");
        }
    }
    // Parts are cut by content: the seam between training and the rest is all that changes.
    let (before, after) = (files(&few["images"]), files(&many["images"]));
    let changed = before.difference(&after).count();
    assert!(before.len() > 20 && changed <= 3, "{changed} of {} parts changed", before.len());
}

#[test]
fn threads_change_nothing() {
    let params = everything(300);
    let kind = IngestPhantom;
    let [one, four] = [1, 4].map(|threads| run_on(threads, &kind, &params, &[]).unwrap());
    assert_eq!(one.artifacts.len(), 9);
    for (port, artifact) in &one.artifacts {
        assert_eq!(files(artifact), files(&four[port]), "{port}");
    }
}

#[test]
fn questions_stand_in_published_columns() {
    let params = |schema: &str| json!({ "train": 150, "test": 50, "size": 28, "questions": 3, "schema": schema, "paraphrase": true });
    let made = ingest(&params("vqa_rad"));
    let questions = table(&made, "questions");
    assert_eq!(questions.rows(), 200 * 3 * 2);
    let ids: BTreeSet<i64> = questions.int64("qid").unwrap().iter().map(|id| id.unwrap()).collect();
    assert_eq!(ids.len(), questions.rows());
    let (answers, types) = (questions.strings("answer").unwrap(), questions.strings("answer_type").unwrap());
    for (answer, answer_type) in answers.iter().zip(types) {
        assert_eq!(["yes", "no"].contains(answer), answer_type == "CLOSED");
    }
    let distinct = |table: &Table, name: &str| -> Vec<String> {
        let values: BTreeSet<&str> = table.strings(name).unwrap().into_iter().collect();
        values.into_iter().map(str::to_owned).collect()
    };
    assert_eq!(distinct(&questions, "phrase_type"), ["freeform", "para", "test_freeform", "test_para"]);
    let published = ["ABN", "COUNT", "MODALITY", "ORGAN", "PLANE", "POS", "PRES", "SIZE"];
    assert_eq!(distinct(&questions, "question_type"), published);
    // Two questions to a link, with one answer.
    let mut links: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (link, answer) in questions.strings("link_id").unwrap().into_iter().zip(answers) {
        links.entry(link).or_default().push(answer);
    }
    assert!(links.values().all(|pair| pair.len() == 2 && pair[0] == pair[1]));
    let slake = table(&ingest(&params("slake")), "questions");
    let published = ["Abnormality", "Modality", "Organ", "Plane", "Position", "Quantity", "Size"];
    assert_eq!(distinct(&slake, "content_type"), published);
    assert_eq!(lists(&slake, "triple")[0].as_ref().unwrap(), &["vhead", "_", "_"]);
    assert!(slake.utf8("question_type").unwrap().iter().all(Option::is_none));
    assert_eq!(slake.strings("question").unwrap(), questions.strings("question").unwrap());
}

#[test]
fn the_expected_table_has_the_figures_of_every_knob() {
    let made = ingest(&json!({
        "train": 300, "test": 200, "size": 28, "task": "abnormal", "questions": 2, "label_noise_test": 0.2,
        "shortcut_test": 0.5, "p_normal": 0.5,
    }));
    let expected = table(&made, "expected");
    let exact = [
        ("marker-only accuracy", "all", 0.75 * 0.6 + 0.2),
        ("accuracy of a perfect model", "all", 0.8),
        ("auroc of a perfect model", "all", 0.8),
        ("majority accuracy of the generator", "all", 0.5),
        ("multimodal accuracy", "all", 1.0),
        ("question-only accuracy", "needs=question", 1.0),
        ("question-only accuracy", "needs=both", 0.5),
        ("image-only accuracy", "needs=both", 0.5),
        ("auc of a random map", "all", 0.5),
        ("copies of training images", "all", 0.0),
    ];
    for (quantity, subset, value) in exact {
        let found = figure(&expected, quantity, "test", subset);
        assert!((found - value).abs() < 1e-9, "{quantity}, {subset}: {found}, not {value}");
    }
    let share = figure(&expected, "pointing game of a random map", "test", "focal");
    let near = figure(&expected, "tolerant pointing game of a random map", "test", "focal");
    assert!(share > 0.01 && near > 1.5 * share, "{share}, {near}");
    for quantity in ["text_to_image recall@10", "question-only accuracy of a lookup", "image-only accuracy"] {
        let value = figure(&expected, quantity, "test", "all");
        assert!(value > 0.1 && value < 0.9, "{quantity}: {value}");
    }
    // A marker that goes with one finding.
    let made = ingest(&json!({
        "train": 20, "test": 50, "size": 28, "weights": "chest", "task": "finding-chest",
        "shortcut_target": "effusion", "shortcut_test": -0.8,
    }));
    let found = figure(&table(&made, "expected"), "marker-only auroc", "test", "effusion");
    assert!((found - 0.1).abs() < 1e-9);
}

#[test]
fn twins_keep_their_rows_noise_and_name_them() {
    let made = ingest(&json!({ "train": 0, "test": 80, "size": 28, "twins": ["side", "lesion", "device"] }));
    let (images, twins) = (table(&made, "images"), table(&made, "twins"));
    let sides = images.utf8("truth_side").unwrap().iter().flatten().count();
    let findings = images.strings("truth_finding").unwrap().iter().filter(|name| **name != "none").count();
    assert_eq!(twins.rows(), sides + findings + 80);
    // A twin without its lesion is normal; the others are labelled as their rows.
    let (labels, twin_labels) = (table(&made, "labels"), table(&made, "twin_labels"));
    let of_row: BTreeMap<&str, &Option<Vec<i64>>> =
        labels.strings("image_id").unwrap().into_iter().zip(labels.list_int64("label").unwrap()).collect();
    let kinds = twin_labels.strings("truth_twin").unwrap();
    assert_eq!(kinds, twins.strings("truth_twin").unwrap());
    for (row, label) in twin_labels.list_int64("label").unwrap().iter().enumerate() {
        let own = of_row[twin_labels.strings("twin_of").unwrap()[row]];
        assert_eq!(*label, if kinds[row] == "lesion" { Some(vec![0]) } else { own.clone() });
    }
    let ids = images.strings("image_id").unwrap();
    let (of, side) = (twins.strings("twin_of").unwrap(), twins.strings("truth_side").unwrap());
    for (row, kind) in
        twins.strings("truth_twin").unwrap().into_iter().enumerate().filter(|(_, one)| *one == "side")
    {
        assert_eq!(kind, "side");
        let own = ids.iter().position(|id| *id == of[row]).unwrap();
        assert_ne!(images.strings("truth_side").unwrap()[own], side[row]);
    }
}

fn problems(params: serde_json::Value) -> Vec<String> {
    match IngestPhantom.resolve(&params) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .into_iter()
            .map(|problem| {
                format!("{}: {} ({})", problem.path, problem.message, problem.help.unwrap_or_default())
            })
            .collect(),
    }
}

#[test]
fn contradictory_parameters_are_refused_with_what_would_be_right() {
    let refused = [
        (json!({ "task": "shape" }), "task", "finding-chest"),
        (json!({ "domain": "general", "task": "severity" }), "task", "shape, colour or count"),
        (json!({ "domain": "general", "questions": 2 }), "questions", "domain = \"medical\""),
        (json!({ "domain": "general", "style": "report" }), "style", "medical"),
        (json!({ "task": "finding-chest" }), "task", "weights = \"chest\""),
        (json!({ "findings_per_image": 2 }), "findings_per_image", "task = \"findings\""),
        (json!({ "weights": "chest", "shortcut_target": "cyst" }), "shortcut_target", "nodule, effusion"),
        (json!({ "leak": 0.7, "leak_near": 0.6 }), "leak_near", "lower one"),
        (json!({ "leak": 0.1, "train": 10 }), "train", "raise `train`"),
        (json!({ "style": "report", "kappa": { "finding": 0.5 } }), "kappa.finding", "kappa.finding"),
        (json!({ "prior_test": "anti" }), "prior_test", "questions = 2"),
        (json!({ "paraphrase": true }), "paraphrase", "questions = 2"),
        (json!({ "images_per_patient": [0.0, 0.0] }), "images_per_patient", "0.25"),
        (json!({ "train": 0, "test": 0 }), "train", "`test`"),
    ];
    for (params, path, help) in refused {
        let problems = problems(params.clone());
        assert_eq!(problems.len(), 1, "{params}: {problems:?}");
        assert!(
            problems[0].starts_with(&format!("{path}: ")) && problems[0].contains(help),
            "{}",
            problems[0]
        );
    }
    let accepted = [
        json!({ "questions": 2, "prior": 0.5, "prior_test": "anti" }),
        json!({ "questions": 2, "prior": { "presence": 0.9 }, "prior_test": { "presence": 0.1 } }),
        json!({ "questions": 2, "prior_test": 0 }),
        json!({ "domain": "general", "leak": 0.1, "duplicates": 0.1, "caption_swap": 0.1 }),
        json!({ "kappa": { "plane": 1.0 }, "weights": "thesis" }),
    ];
    for params in accepted {
        assert_eq!(problems(params.clone()), Vec::<String>::new(), "{params}");
    }
}
