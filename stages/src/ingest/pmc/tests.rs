use std::collections::BTreeSet;
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::IngestPmc;
use crate::ingest::testing::{checks, copy, lines, reasons, strings, zip_folder};
use crate::png;
use crate::table::read;
use crate::testing::{Made, data, run, tree};

fn ingest(folder: &Path, params: Value) -> Result<Made, StageError> {
    run(&IngestPmc, &params, &[("source", &tree(folder, "file"))])
}

/// Invented pairs in the layout of PMC-OA.
#[test]
fn pmc_oa_reads_from_json_lines_and_csv() {
    let Some(folder) = data("fixture-pmc-oa/train.jsonl") else { return };
    let published = folder.parent().unwrap();
    let made = ingest(published, json!({ "dataset": "pmc-oa", "allow_partial": true })).unwrap();
    let captions = checks(&made, "captions");
    let records = ["train", "valid", "test"].map(|name| -> Vec<Value> {
        let lines = lines(&published.join(format!("{name}.jsonl")));
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    });
    let counts = records.each_ref().map(|records| records.len() as i64);
    assert_eq!([captions["train"], captions["val"], captions["test"]], counts);
    let table = read(&made["captions"]).unwrap();
    let scores = table.float64("alignment_score").unwrap();
    for (row, record) in records.iter().flatten().enumerate() {
        let image = record["image"].as_str().unwrap();
        assert_eq!(strings(&table, "image_id")[row], image);
        assert_eq!(strings(&table, "article")[row], image.split('_').next().unwrap());
        assert_eq!(strings(&table, "alignment_type")[row], record["alignment_type"].as_str().unwrap());
        assert_eq!(scores[row], record["alignment_score"].as_f64());
    }
    let images = read(&made["images"]).unwrap();
    let named: BTreeSet<&str> =
        records.iter().flatten().map(|record| record["image"].as_str().unwrap()).collect();
    assert_eq!(images.rows(), named.len());
    assert_eq!(strings(&images, "group_id")[0], strings(&table, "article")[0]);
    assert!(checks(&made, "same group")["train train"] > 0);

    // CSV files and an archive of images: the same pairs, without what CSV does not say.
    let folder = TempDir::new().unwrap();
    for name in ["train.csv", "valid.csv", "test.csv"] {
        std::fs::copy(published.join(name), folder.path().join(name)).unwrap();
    }
    zip_folder(published, &folder.path().join("images.zip"), |path| path.ends_with(".jpg"));
    let again = ingest(folder.path(), json!({ "dataset": "pmc-oa", "allow_partial": true })).unwrap();
    assert_eq!(made["images"].digest, again["images"].digest);
    let csv = read(&again["captions"]).unwrap();
    assert_eq!(strings(&csv, "caption"), strings(&table, "caption"));
    let error = ingest(folder.path(), json!({ "dataset": "pmc-oa" })).err().unwrap().to_string();
    let found = format!("it has {} pairs, 1.65 million are published", counts.iter().sum::<i64>());
    assert!(error.contains(&found), "{error}");
    let wrong = json!({ "columns": { "caption": "text" } });
    let error = ingest(folder.path(), wrong).err().unwrap().to_string();
    assert!(error.contains("it has no column `text`; its columns are image, caption"), "{error}");
}

/// Invented articles as the pipeline of PMC-15M writes them, some figures without a caption or a graphic.
#[test]
fn articles_are_flattened_and_incomplete_figures_dropped() {
    let Some(folder) = data("fixture-pmc-15m/pubmed_parsed_data.jsonl") else { return };
    let published = folder.parent().unwrap();
    let made = ingest(published, json!({})).unwrap();
    let text = std::fs::read_to_string(&folder).unwrap();
    let articles: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let figures: Vec<&Value> =
        articles.iter().flat_map(|article| article["figures"].as_array().unwrap()).collect();
    let whole: Vec<&str> = figures
        .iter()
        .filter(|figure| figure["fig_caption"] != "" && figure["graphic_ref"] != "")
        .map(|figure| figure["pair_id"].as_str().unwrap())
        .collect();
    let table = read(&made["captions"]).unwrap();
    assert_eq!(strings(&table, "image_id"), whole);
    let without =
        |made: &Made, what: &str| checks(made, &format!("figure without a {what}")).values().sum::<i64>();
    let captionless = figures.iter().filter(|figure| figure["fig_caption"] == "").count() as i64;
    assert_eq!(without(&made, "caption"), captionless);
    assert_eq!(without(&made, "graphic"), (figures.len() - whole.len()) as i64 - captionless);
    let article = format!("PMC{}", articles[0]["pmc"].as_str().unwrap().trim_start_matches("PMC"));
    assert_eq!(strings(&table, "article")[0], article);
    assert_eq!(read(&made["rejects"]).unwrap().rows(), 0);

    // The list of open-access files tells the licence of an article.
    let listed = TempDir::new().unwrap();
    copy(published, listed.path());
    let list = format!(
        "2026-01-01 00:00:00\noa_package/x.tar.gz\tA Journal. 2020\t{article}\tPMID:1\tCC BY\n\
         oa_package/y.tar.gz\tA Journal. 2021\tPMC1\tPMID:2\tNO-CC CODE\n"
    );
    std::fs::write(listed.path().join("oa_file_list.txt"), list).unwrap();
    let images = read(&ingest(listed.path(), json!({})).unwrap()["images"]).unwrap();
    for (of, licence) in strings(&images, "group_id").iter().zip(strings(&images, "licence")) {
        assert_eq!(licence, if *of == article { "CC BY" } else { "" });
    }

    // The paths of another machine, and splits that are drawn: articles stay together.
    let moved = TempDir::new().unwrap();
    copy(published, moved.path());
    let foreign = text.replace("pubmed_open_access_files/PMC", "/mnt/disk 1/pubmed_open_access_files/PMC");
    std::fs::write(moved.path().join("pubmed_parsed_data.jsonl"), foreign).unwrap();
    let drawn = ingest(moved.path(), json!({ "val": 0.3, "test": 0.3, "seed": 5 })).unwrap();
    let table = read(&drawn["captions"]).unwrap();
    let (articles, splits) = (strings(&table, "article"), strings(&table, "split"));
    assert_eq!(table.rows(), whole.len());
    let pairs: BTreeSet<(&String, &String)> = articles.iter().zip(&splits).collect();
    assert_eq!(pairs.len(), articles.iter().collect::<BTreeSet<_>>().len());
    assert!(splits.iter().collect::<BTreeSet<_>>().len() > 1, "{splits:?}");
    assert_eq!(without(&drawn, "caption"), captionless);
}

#[test]
fn what_cannot_be_used_is_listed_with_its_line() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("images")).unwrap();
    let image =
        |name: &str, bytes: &[u8]| std::fs::write(folder.path().join("images").join(name), bytes).unwrap();
    let whole = png::encode(&[9; 12], 4, 3, 1).unwrap();
    image("a.jpg", &whole);
    image("cut.jpg", &whole[..30]);
    image("gif.gif", b"GIF89a");
    let lines = [
        r#"{"image": "a.jpg", "caption": "one"}"#,
        "not json",
        "[1, 2]",
        r#"{"caption": "no image"}"#,
        r#"{"image": "a.jpg", "caption": "the same image again"}"#,
        r#"{"image": "../../etc/passwd", "caption": "away"}"#,
        r#"{"image": "cut.jpg", "caption": "damaged"}"#,
        r#"{"image": "gif.gif", "caption": "not read"}"#,
        r#"{"image": "a.jpg", "caption": 7}"#,
        r#"{"image": "cut.jpg", "caption": "of the damaged one too"}"#,
        r#"{"image": "a.jpg", "caption": null}"#,
        r#"{"image": "a.jpg", "caption": "  "}"#,
    ];
    // The last line is in another encoding than the rest.
    let mut bytes = lines.join("\n").into_bytes();
    bytes.extend(b"\n{\"image\": \"a.jpg\", \"caption\": \"d\xe9j\xe0 vu\"}\n");
    std::fs::write(folder.path().join("train.jsonl"), bytes).unwrap();
    let error = ingest(folder.path(), json!({})).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    let made = ingest(folder.path(), json!({ "max_rejects": 10 })).unwrap();
    let captions = read(&made["captions"]).unwrap();
    assert_eq!(strings(&captions, "caption"), ["one", "the same image again", "7"]);
    assert_eq!(read(&made["images"]).unwrap().rows(), 1);
    let rejects = read(&made["rejects"]).unwrap();
    let mut rows: Vec<i64> = rejects.int64("row").unwrap().iter().flatten().copied().collect();
    rows.sort_unstable();
    assert_eq!(rows, [2, 3, 4, 6, 7, 8, 10, 11, 12, 13]);
    assert!(checks(&made, "figure without a caption").is_empty());
    // Each reason is counted, whichever image it is about.
    let counted = checks(&made, "left out");
    assert_eq!(counted["its image `...` cannot be decoded"], 1);
    assert_eq!(counted["the image `...` has no caption"], 2);
    assert_eq!(counted.values().sum::<i64>(), 10);
    let reasons = reasons(&made).join("; ");
    for part in [
        "no JSON",
        "it is a list",
        "names no image",
        "there is no image `../../etc/passwd`",
        "cannot be decoded",
        "its image `cut.jpg` cannot be decoded",
        "the image `a.jpg` has no caption",
    ] {
        assert!(reasons.contains(part), "{reasons}");
    }
    // A field of a CSV file that is empty is no caption either.
    std::fs::remove_file(folder.path().join("train.jsonl")).unwrap();
    std::fs::write(folder.path().join("train.csv"), "image,caption\na.jpg,one\na.jpg,\n").unwrap();
    let error = ingest(folder.path(), json!({})).err().unwrap().to_string();
    assert!(error.contains("row 3: the image `a.jpg` has no caption"), "{error}");
}
