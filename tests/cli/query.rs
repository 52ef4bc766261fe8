//! `pipe query` and `pipe report`: what results answer, in every format, and what mistakes look like.

use crate::study::{Study, text};

#[test]
fn results_answer_in_every_format() {
    let study = Study::finished();
    let before = study.files(".pipe");
    let sql = "select model, metric, value, n from metrics where metric = 'recall@1' and method = 'image_to_text' order by model";
    let query = |arguments: &[&str]| {
        study.pipe(&[&["query", "study.toml", sql], arguments].concat()).expect(0).stdout
    };
    let table = query(&[]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("model    metric    value   n"), "{table}");
    assert_eq!(lines.len(), 4, "{table}");
    let csv = query(&["--format", "csv"]);
    assert!(csv.starts_with("model,metric,value,n\ninitial,recall@1,"), "{csv}");
    let json: serde_json::Value = serde_json::from_str(&query(&["--json"])).expect("it is JSON");
    assert_eq!(json["version"], 1);
    assert_eq!(json["rows"][1][0], "trained");
    // The same figure, to the last digit.
    let value = json["rows"][0][2].as_f64().expect("a number");
    assert_eq!(csv.lines().nth(1).and_then(|line| line.split(',').nth(2)?.parse().ok()), Some(value));
    assert!(query(&["--format", "md"]).contains("| ---: | ---: |"));
    assert!(query(&["--format", "latex", "--digits", "1"]).contains("\\begin{tabular}{llrr}"));

    // Whole or not at all, and nothing on standard output.
    let answer =
        study.pipe(&["query", "study.toml", sql, "--format", "csv", "--output", "figures.csv"]).expect(0);
    assert_eq!(answer.stdout, "");
    assert_eq!(std::fs::read_to_string(study.path("figures.csv")).expect("it is there"), csv);
    let answer = study.pipe(&["query", "study.toml", sql, "--output", "missing/figures.csv"]).expect(3);
    assert!(answer.stderr.contains("missing/figures.csv"), "{}", answer.stderr);
    // What only looks changes nothing.
    assert_eq!(study.files(".pipe"), before);
}

#[test]
fn tables_are_listed() {
    let study = Study::finished();
    let answer = study.pipe(&["query", "--tables", "study.toml"]).expect(0);
    for table in ["metrics", "retrieved_metrics", "retrieved_ranks", "pairs_images", "embedded_texts"] {
        assert!(
            answer.stdout.lines().any(|line| line.split_whitespace().next() == Some(table)),
            "{}",
            answer.stdout
        );
    }
    // What it cost is a table too.
    let sql = "select s.seconds > 0 as took, s.bytes > 0 as has, s.device, m.value from metrics m \
               join stages s using (stage, model) where m.metric = 'recall@1' limit 1";
    let answer = study.pipe(&["query", "study.toml", sql, "--format", "csv"]).expect(0).stdout;
    assert!(answer.lines().nth(1).is_some_and(|line| line.starts_with("1,1,")), "{answer}");
    let sql = "select kind, min(forward_passes) as passes, min(trainable_parameters) > 1000 as learned from stages \
               group by kind having passes > 0 order by kind";
    let answer = study.pipe(&["query", "study.toml", sql, "--format", "csv"]).expect(0).stdout;
    assert!(answer.contains("finetune.contrastive,") && answer.contains("embed,"), "{answer}");
    assert!(
        answer.lines().any(|line| line.starts_with("finetune.contrastive,") && line.ends_with(",1")),
        "{answer}"
    );
    let tables = study.json("query", &["--tables"]);
    let ranks =
        tables["tables"].as_array().expect("a list").iter().find(|one| one["name"] == "retrieved_ranks");
    assert_eq!(
        ranks.expect("it is listed")["columns"][0],
        serde_json::json!({ "name": "model", "type": "text" })
    );
}

#[test]
fn mistakes_are_marked_and_suggest_what_was_meant() {
    let study = Study::finished();
    let fails = |sql: &str, words: &[&str]| {
        let answer = study.pipe(&["query", "study.toml", sql]).expect(2);
        for words in words {
            assert!(answer.stderr.contains(words), "{sql}:\n{}", answer.stderr);
        }
        assert_eq!(answer.stdout, "");
    };
    fails(
        "select valeu from metrics",
        &["no such column: valeu", "query:1:8", "       ^", "did you mean `value`?"],
    );
    fails("select 1 as x\nfrom metrcs", &["no such table: metrcs", "query:2:6", "did you mean `metrics`?"]);
    fails("select 1 as x from retrieved.metrics", &["did you mean `retrieved_metrics`?"]);
    fails("delete from metrics", &["cannot modify metrics"]);
    fails("create table x (y)", &["the statement is no query"]);
    fails("select", &["incomplete input"]);
    study.pipe(&["query", "study.toml"]).expect(2);
}

#[test]
fn what_is_not_up_to_date_is_left_out_and_said() {
    let study = Study::finished();
    study.edit("epochs = 2", "epochs = 3");
    let answer =
        study.pipe(&["query", "study.toml", "select model from retrieved_metrics group by 1"]).expect(0);
    assert_eq!(answer.stdout, "model\n-------\ninitial\n");
    assert!(answer.stderr.contains("3 of 9 nodes have no result"), "{}", answer.stderr);
    let empty = Study::new(crate::study::SMALL);
    let answer = empty.pipe(&["query", "study.toml", "select 1 as x from metrics"]).expect(2);
    assert!(answer.stderr.contains("no such table"), "{}", answer.stderr);
    assert!(!empty.path(".pipe").exists());
}

#[test]
fn figures_are_laid_out_for_a_paper() {
    let study = Study::finished();
    let report = |arguments: &[&str]| study.pipe(&[&["report", "study.toml", "--table"], arguments].concat());
    let table = report(&["model:method:recall@1", "--format", "md"]).expect(0).stdout;
    assert!(table.starts_with("| model | image\\_to\\_text | text\\_to\\_image |\n"), "{table}");
    assert!(table.contains("| initial | 0."), "{table}");
    assert!(table.contains("\\[0."), "no interval: {table}");
    let csv = report(&["model:method:recall@1", "--format", "csv"]).expect(0).stdout;
    assert!(csv.starts_with("model,image_to_text,image_to_text ci_low,image_to_text ci_high,"), "{csv}");
    let out = study.path("table.tex");
    report(&[
        "model::recall@1,recall@5",
        "--where",
        "method=text_to_image",
        "--format",
        "latex",
        "-o",
        text(&out),
    ])
    .expect(0);
    assert!(
        std::fs::read_to_string(out).expect("it is there").contains("  model & recall@1 & recall@5 \\\\\n")
    );
    // Nothing is averaged.
    let answer = report(&["model::recall@1"]).expect(2);
    assert!(answer.stderr.contains("they differ in `method`"), "{}", answer.stderr);
    assert!(answer.stderr.contains("--where method=image_to_text"), "{}", answer.stderr);
    let answer = report(&["modle:method:recall@1"]).expect(2);
    assert!(answer.stderr.contains("did you mean `model`?"), "{}", answer.stderr);
    report(&["model"]).expect(2);
}
