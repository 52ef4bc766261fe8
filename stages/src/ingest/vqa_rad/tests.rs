use std::collections::BTreeMap;
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestVqaRad;
use crate::ingest::testing::{checks, json_records};
use crate::table::{Table, read};
use crate::testing::{Made, data, run, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestVqaRad, &params, &[("source", &tree(folder, "file"))])
}

fn strings<'a>(table: &'a Table, column: &str) -> Vec<&'a str> {
    table.strings(column).unwrap()
}

/// All records of VQA-RAD, in the layout of the MEVF code.
#[test]
fn the_whole_data_set_has_the_published_counts() {
    let Some(folder) = data("vqa-rad-mevf/trainset.json") else { return };
    let folder = folder.parent().unwrap();
    let counts = ["trainset.json", "testset.json"].map(|name| json_records(&folder.join(name)).len());
    if counts != [3064, 451] {
        println!("SKIPPED published counts: `{}` has {counts:?} records", folder.display());
        return;
    }
    let made = ingest(folder, json!({ "protocol": "mevf-3064" })).unwrap();
    assert_eq!(checks(&made, "questions"), BTreeMap::from([("train".into(), 3064), ("test".into(), 451)]));
    let types = checks(&made, "answer type");
    assert_eq!((types["train CLOSED"], types["train OPEN"]), (1823, 1241));
    assert_eq!((types["test CLOSED"], types["test OPEN"]), (272, 179));
    let phrases = checks(&made, "phrase type");
    assert_eq!((phrases["train freeform"], phrases["train para"], phrases["train frame"]), (1206, 591, 1267));
    assert_eq!((phrases["test freeform"], phrases["test para"]), (308, 143));
    let images = checks(&made, "images asked about");
    assert_eq!((images["train"], images["test"]), (314, 203));
    assert_eq!(checks(&made, "image asked about")["test train"], 203);
    assert_eq!(checks(&made, "image without a question").values().copied().collect::<Vec<_>>(), [1]);
    // Which wordings are those of test questions follows from the numbers of the records.
    assert_eq!(checks(&made, "templated wording of a test question")["test train"], 284);
    let table = read(&made["questions"]).unwrap();
    let twins = table.bools("training_twin").unwrap();
    let splits = strings(&table, "split");
    let count =
        |value| (0..table.rows()).filter(|row| splits[*row] == "test" && twins[*row] == value).count();
    assert_eq!((count(Some(true)), count(Some(false)), count(None)), (284, 167, 0));
    assert!((0..table.rows()).all(|row| splits[row] == "test" || twins[row].is_none()));
    // Fourteen test questions stand in the training file to the letter.
    assert_eq!(checks(&made, "same image and question")["test train"], 14);

    let made = ingest(folder, json!({ "protocol": "clean-2773" })).unwrap();
    assert_eq!(checks(&made, "questions"), BTreeMap::from([("train".into(), 2773), ("test".into(), 451)]));
    // One stands among the published training questions themselves.
    assert_eq!(checks(&made, "same image and question")["test train"], 1);
    assert_eq!(checks(&made, "templated wording of a test question")["test train"], 0);
    // Which questions have a twin is a fact of the data, not of the protocol.
    let twins = read(&made["questions"]).unwrap().bools("training_twin").unwrap().to_vec();
    assert_eq!(twins.iter().filter(|twin| **twin == Some(true)).count(), 284);

    let made = ingest(folder, json!({ "protocol": "published-1797" })).unwrap();
    assert_eq!(checks(&made, "questions"), BTreeMap::from([("train".into(), 1797), ("test".into(), 451)]));
    let types = checks(&made, "answer type");
    assert_eq!((types["train CLOSED"], types["train OPEN"]), (1027, 770));
    assert_eq!(checks(&made, "image asked about")["test train"], 202);
    assert_eq!(checks(&made, "images asked about")["train"], 313);
    // 60.9 % of the open test answers never occur in training.
    assert_eq!((checks(&made, "answer not in training")["test OPEN"] as f64 / 179.0 * 1000.0).round(), 609.0);
}

/// What was counted in the 2,248 published records, whose fields the files of the MEVF code repeat.
#[test]
fn the_published_records_have_the_published_fields() {
    let Some(folder) = data("vqa-rad-mevf/trainset.json") else { return };
    let folder = folder.parent().unwrap();
    let counts = ["trainset.json", "testset.json"].map(|name| json_records(&folder.join(name)).len());
    if counts != [3064, 451] {
        println!("SKIPPED published fields: `{}` has {counts:?} records", folder.display());
        return;
    }
    let made = ingest(folder, json!({ "protocol": "published-1797" })).unwrap();
    let table = read(&made["questions"]).unwrap();
    let count =
        |column: &str, value: &str| strings(&table, column).iter().filter(|known| **known == value).count();
    assert_eq!(["CHEST", "ABD", "HEAD"].map(|organ| count("organ", organ)), [794, 739, 715]);
    let types = [
        ("PRES", 800),
        ("POS", 316),
        ("ABN", 202),
        ("OTHER", 194),
        ("Other", 2),
        ("MODALITY", 185),
        ("SIZE", 171),
        ("PLANE", 120),
        ("ATTRIB", 87),
        ("ORGAN", 59),
        ("COLOR", 52),
        ("COUNT", 24),
        ("POS, PRES", 6),
        ("ATRIB", 1),
        ("PRSE", 1),
    ];
    assert_eq!(types.map(|(name, _)| (name, count("question_type", name))), types);
    // Typing errors are mended beside what is written, and pairs are taken apart.
    let Some(crate::table::Column::ListUtf8(parts)) = table.column("question_types") else { panic!() };
    let of =
        |name: &str| parts.iter().flatten().filter(|parts| parts.iter().any(|part| part == name)).count();
    assert_eq!((of("ATRIB"), of("PRSE"), of("Other"), of("POS, PRES")), (0, 0, 0, 0));
    assert!(of("ATTRIB") > 88 && of("PRES") > 801 && of("OTHER") == 196);
    // Closed is not the same as yes or no, and no open answer is one of the two.
    let plain = |row: usize| ["yes", "no"].contains(&strings(&table, "answer_norm")[row]);
    let of_type = |kind: &str, is_plain: bool| {
        let types = strings(&table, "answer_type");
        (0..table.rows()).filter(|row| types[*row] == kind && plain(*row) == is_plain).count()
    };
    assert_eq!((of_type("CLOSED", false), of_type("OPEN", true), of_type("OPEN", false)), (106, 0, 949));
    // Hugging Face's variant leaves out repetitions: 1,797 - 3 - 1 = 1,793.
    let repeated = checks(&made, "same image, question and answer");
    assert_eq!((repeated["train train"], repeated["test train"]), (3, 1));
    // With the templated wordings, 22.9 % of the open test answers are missing.
    let made = ingest(folder, json!({ "protocol": "mevf-3064" })).unwrap();
    assert_eq!(checks(&made, "answer not in training")["test OPEN"], 41);
}

/// A part of the public file, with the known oddities of its records.
#[test]
fn the_public_file_gives_all_three_protocols() {
    let Some(folder) = data("vqa-rad") else { return };
    let count = |protocol: &str| {
        let made = ingest(&folder, json!({ "protocol": protocol, "allow_partial": true })).unwrap();
        let counts = checks(&made, "questions");
        (counts["train"], counts["test"])
    };
    // The definition of the protocols, record by record.
    let records = json_records(&folder.join(super::PUBLIC));
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().trim().to_lowercase();
    let (test, train): (Vec<&Value>, Vec<&Value>) =
        records.iter().partition(|record| text(record, "phrase_type").starts_with("test_"));
    let frames: Vec<(String, String)> = records
        .iter()
        .map(|record| (text(record, "image_name"), text(record, "question_frame")))
        .filter(|(_, frame)| !frame.is_empty() && frame != "null")
        .collect();
    let is_tested = |frame: &&(String, String)| {
        test.iter().any(|record| {
            let wordings = [text(record, "question"), text(record, "question_frame")];
            text(record, "image_name") == frame.0 && wordings.contains(&frame.1)
        })
    };
    let (train, test) = (train.len() as i64, test.len() as i64);
    let tested = frames.iter().filter(is_tested).count() as i64;
    assert_eq!(count("published-1797"), (train, test));
    assert_eq!(count("mevf-3064"), (train + frames.len() as i64, test));
    assert_eq!(count("clean-2773"), (train + frames.len() as i64 - tested, test));
    if (train, test) != (1797, 451) {
        let error = ingest(&folder, json!({})).err().unwrap().to_string();
        assert!(error.contains(&format!("gives {train} training and {test} test records")), "{error}");
    }

    // Both layouts tell the same twins and the same clean records.
    for protocol in ["mevf-3064", "clean-2773"] {
        let images = tempfile::tempdir().unwrap();
        crate::ingest::testing::copy(&folder.join("mevf"), images.path());
        crate::ingest::testing::copy(&folder.join("VQA_RAD Image Folder"), images.path());
        let params = json!({ "protocol": protocol, "allow_partial": true });
        let twins = |made: &Made| -> Vec<(String, Option<bool>)> {
            let table = read(&made["questions"]).unwrap();
            let rows = strings(&table, "question").into_iter().map(str::to_owned);
            let mut rows: Vec<_> = rows.zip(table.bools("training_twin").unwrap().to_vec()).collect();
            rows.sort();
            rows
        };
        let (public, mevf) =
            (ingest(&folder, params.clone()).unwrap(), ingest(images.path(), params).unwrap());
        assert_eq!(twins(&public), twins(&mevf), "{protocol}");
    }

    // The order and the texts of the training file of the MEVF code, wordings included.
    let made = ingest(&folder, json!({ "protocol": "mevf-3064", "allow_partial": true })).unwrap();
    let table = read(&made["questions"]).unwrap();
    let published = json_records(&folder.join("mevf/trainset.json"));
    let (images, questions) = (strings(&table, "image_id"), strings(&table, "question"));
    for (row, record) in published.iter().enumerate() {
        assert_eq!(
            (images[row], questions[row]),
            (record["image_name"].as_str().unwrap(), record["question"].as_str().unwrap())
        );
    }
    // Every answer is text, every type one of two.
    assert!(strings(&table, "answer").iter().all(|answer| !answer.is_empty()));
    assert!(strings(&table, "answer_type").iter().all(|kind| ["OPEN", "CLOSED"].contains(kind)));
    // A number that is written as a text is a number all the same.
    let number = |record: &Value| record["qid"].as_i64().or_else(|| record["qid"].as_str()?.parse().ok());
    let qids = table.int64("qid").unwrap();
    assert!(records.iter().all(|record| number(record).is_some() && qids.contains(&number(record))));
    let images = read(&made["images"]).unwrap();
    let named: std::collections::BTreeSet<String> =
        records.iter().map(|record| text(record, "image_name")).collect();
    assert_eq!(images.rows(), named.len());
    assert!(strings(&images, "group_id").iter().all(|case| case.starts_with("https://medpix")));
}

/// Figures that were computed from the same records by somebody else.
#[test]
fn the_checks_count_what_was_counted_before() {
    let (Some(folder), Some(file)) = (data("vqa-rad"), data("goldens-metrics/vqa_floors.json")) else {
        return;
    };
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let share = |count: i64, of: &Value| (count as f64 / of.as_f64().unwrap() * 1e6).round() / 1e4;
    for (protocol, block) in [
        ("published-1797", "vqa_rad_published_train"),
        ("mevf-3064", "vqa_rad_mevf_train"),
        ("clean-2773", "vqa_rad_mevf_clean_train"),
    ] {
        let made = ingest(&folder, json!({ "protocol": protocol, "allow_partial": true })).unwrap();
        let golden = &golden[block];
        assert_eq!(json!(checks(&made, "questions")["train"]), golden["train_rows"]);
        for (check, key) in
            [("answer not in training", "answer_unseen"), ("question in training", "question_seen")]
        {
            let counts = checks(&made, check);
            for (name, part) in [("test", "all"), ("test OPEN", "OPEN"), ("test CLOSED", "CLOSED")] {
                let part = &golden["parts"][part];
                assert_eq!(
                    share(counts[name], &part["n"]),
                    part[key].as_f64().unwrap(),
                    "{protocol} {check} {name}"
                );
            }
        }
    }
    let leaks = &golden["leaks"];
    let made = ingest(&folder, json!({ "protocol": "mevf-3064", "allow_partial": true })).unwrap();
    let images = checks(&made, "images asked about");
    assert_eq!(
        (json!(images["train"]), json!(images["test"])),
        (leaks["vqa_rad_train_images"].clone(), leaks["vqa_rad_test_images"].clone())
    );
    assert_eq!(json!(checks(&made, "image asked about")["test train"]), leaks["vqa_rad_shared_images"]);
    assert_eq!(
        json!(checks(&made, "templated wording of a test question")["test train"]),
        leaks["mevf_test_records_with_own_frame_in_train"]
    );
    assert_eq!(
        json!(checks(&made, "same image and question")["test train"]),
        leaks["mevf_test_verbatim_in_train"]
    );
}

#[test]
fn validation_takes_whole_images() {
    let Some(folder) = data("vqa-rad") else { return };
    let params = json!({ "allow_partial": true, "val": 0.3, "seed": 2 });
    let made = ingest(&folder, params).unwrap();
    let counts = checks(&made, "questions");
    let records = json_records(&folder.join(super::PUBLIC));
    let is_test =
        |record: &&Value| record["phrase_type"].as_str().is_some_and(|phrase| phrase.starts_with("test_"));
    assert_eq!(
        counts["train"] + counts["val"],
        records.iter().filter(|record| !is_test(record)).count() as i64
    );
    assert_eq!(checks(&made, "image asked about")["val train"], 0);
}

/// One image, and records that are changed by each case.
fn small(change: impl Fn(&mut Vec<Value>)) -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut records: Vec<Value> = (0..3)
        .map(|qid| {
            json!({
                "qid": qid, "image_name": "synpic1.jpg", "question": format!("is it {qid}?"), "answer": "yes", "answer_type": "CLOSED ",
                "question_type": "PRSE, Other", "phrase_type": if qid == 2 { "test_freeform" } else { "freeform" }, "question_frame": "NULL",
            })
        })
        .collect();
    change(&mut records);
    std::fs::write(folder.path().join(super::PUBLIC), serde_json::to_string(&records).unwrap()).unwrap();
    let pixels = image::RgbImage::from_pixel(9, 7, image::Rgb([10, 20, 30]));
    pixels.save(folder.path().join("synpic1.jpg")).unwrap();
    folder
}

#[test]
fn odd_values_are_converted_as_published_ones_are() {
    let folder = small(|records| {
        records[0]["qid"] = json!("0");
        records[0]["answer"] = json!(3);
        records[1].as_object_mut().unwrap().remove("answer_type");
        records[1].as_object_mut().unwrap().remove("question_frame");
    });
    let made = ingest(folder.path(), json!({ "allow_partial": true })).unwrap();
    let table = read(&made["questions"]).unwrap();
    assert_eq!(table.int64("qid").unwrap(), [Some(0), Some(1), Some(2)]);
    assert_eq!(strings(&table, "answer"), ["3", "yes", "yes"]);
    // What is not said is not guessed.
    assert_eq!(strings(&table, "answer_type"), ["CLOSED", "", "CLOSED"]);
    let untrimmed = json!({ "allow_partial": true, "untrimmed_types": true });
    let untrimmed = read(&ingest(folder.path(), untrimmed).unwrap()["questions"]).unwrap();
    assert_eq!(strings(&untrimmed, "answer_type"), ["OPEN", "", "OPEN"]);
    assert_eq!(strings(&table, "question_type")[0], "PRSE, Other");
    let Some(crate::table::Column::ListUtf8(types)) = table.column("question_types") else { panic!() };
    assert_eq!(types[0].as_deref().unwrap(), ["PRES", "OTHER"]);
}

#[test]
fn what_is_wrong_is_refused_with_its_record() {
    type Change = fn(&mut Vec<Value>);
    let cases: &[(Change, &str)] = &[
        (|records| records[1]["qid"] = json!("one"), "row 2: its `qid` is no whole number"),
        (|records| records[1]["qid"] = json!(0), "row 2: its `qid` stands twice"),
        (|records| records[2]["question"] = json!(" "), "row 3: it has no `question`"),
        (|records| records[2]["answer"] = json!(null), "row 3: it has no `answer`"),
        (|records| records[1]["image_name"] = json!("../synpic1.jpg"), "there is no image `../synpic1.jpg`"),
        (|records| records[1] = json!([1]), "row 2: it is a list"),
    ];
    for (change, reason) in cases {
        let folder = small(change);
        let error = ingest(folder.path(), json!({ "allow_partial": true })).err().unwrap();
        assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "`{error}` should say `{reason}`");
    }
    // A record without a question, and one that is none.
    let folder = small(|records| {
        records[0] = json!("no record");
        records[2]["question"] = json!("");
    });
    let made = ingest(folder.path(), json!({ "allow_partial": true, "max_rejects": 2 })).unwrap();
    let rejects = read(&made["rejects"]).unwrap();
    assert_eq!(rejects.int64("row").unwrap(), [Some(1), Some(3)]);
    assert!(strings(&rejects, "reason")[0].contains("it is a text"));
    assert_eq!(made.warnings.len(), 1);
    std::fs::write(folder.path().join(super::PUBLIC), "[{").unwrap();
    let error = ingest(folder.path(), json!({})).err().unwrap().to_string();
    assert!(error.contains("it is no JSON"), "{error}");
    std::fs::remove_file(folder.path().join(super::PUBLIC)).unwrap();
    let error = ingest(folder.path(), json!({})).err().unwrap().to_string();
    assert!(error.contains("it has neither"), "{error}");
}

#[test]
fn every_question_that_lacks_its_image_is_counted() {
    let folder = small(|records| {
        records[0]["image_name"] = json!("synpic2.jpg");
        records[2]["image_name"] = json!("synpic2.jpg");
    });
    let params = |most: i64| json!({ "allow_partial": true, "max_rejects": most });
    for reason in ["its image `synpic2.jpg` cannot be decoded", "there is no image `synpic2.jpg`"] {
        if reason.contains("decoded") {
            std::fs::write(folder.path().join("synpic2.jpg"), b"none").unwrap();
        } else {
            std::fs::remove_file(folder.path().join("synpic2.jpg")).unwrap();
        }
        let error = ingest(folder.path(), params(1)).err().unwrap();
        assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
        let made = ingest(folder.path(), params(2)).unwrap();
        let rejects = read(&made["rejects"]).unwrap();
        assert_eq!(rejects.int64("row").unwrap(), [Some(1), Some(3)]);
        assert_eq!(strings(&rejects, "reason")[1], reason);
        assert!(strings(&rejects, "reason")[0].contains("synpic2.jpg"));
        assert_eq!(read(&made["questions"]).unwrap().int64("qid").unwrap(), [Some(1)]);
    }
    // No question at all is no data set.
    std::fs::remove_file(folder.path().join("synpic1.jpg")).unwrap();
    let error = ingest(folder.path(), params(9)).err().unwrap().to_string();
    assert!(error.contains("no question with an image is left"), "{error}");
    let keep = json!({ "allow_partial": true, "missing_images": "keep" });
    assert_eq!(read(&ingest(folder.path(), keep).unwrap()["questions"]).unwrap().rows(), 3);
}

/// The files of the MEVF code with other numbers do not tell whose wording a templated one is.
#[test]
fn wordings_that_are_not_numbered_behind_their_questions_are_told_by_nobody() {
    let folder = TempDir::new().unwrap();
    let record = |qid: i64, phrase: &str, answer: &str| {
        json!({
            "qid": qid, "image_name": "synpic1.jpg", "question": format!("is it {qid}?"), "answer": answer,
            "answer_type": "CLOSED", "question_type": "PRES", "phrase_type": phrase,
        })
    };
    let write = |train: &[Value], test: &[Value]| {
        std::fs::write(folder.path().join("trainset.json"), json!(train).to_string()).unwrap();
        std::fs::write(folder.path().join("testset.json"), json!(test).to_string()).unwrap();
    };
    image::RgbImage::from_pixel(9, 7, image::Rgb([10, 20, 30]))
        .save(folder.path().join("synpic1.jpg"))
        .unwrap();
    let read = |protocol: &str| {
        ingest(folder.path(), json!({ "protocol": protocol, "allow_partial": true })).map(|made| {
            let table = read(&made["questions"]).unwrap();
            let twins = table
                .column("training_twin")
                .is_some()
                .then(|| table.bools("training_twin").unwrap()[..].to_vec());
            (table.int64("qid").unwrap().to_vec(), twins)
        })
    };
    write(
        &[record(1, "freeform", "yes"), record(2, "frame", "yes"), record(4, "frame", "no")],
        &[record(3, "freeform", "no"), record(5, "freeform", "no")],
    );
    let (qids, twins) = read("clean-2773").unwrap();
    assert_eq!(qids, [Some(1), Some(2), Some(3), Some(5)]);
    assert_eq!(twins.unwrap(), [None, None, Some(true), Some(false)]);
    // The same with a wording whose answer is not that of the question before.
    write(
        &[record(1, "freeform", "yes"), record(2, "frame", "yes"), record(4, "frame", "yes")],
        &[record(3, "freeform", "no")],
    );
    let error = read("clean-2773").err().unwrap().to_string();
    assert!(error.contains("numbered") && error.contains(super::PUBLIC), "{error}");
    assert_eq!(read("mevf-3064").unwrap(), (vec![Some(1), Some(2), Some(4), Some(3)], None));
}
