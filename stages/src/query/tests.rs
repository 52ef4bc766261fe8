//! Queries over tables of stages.

use std::collections::BTreeMap;

use pipe_engine::cache::Digest;
use pipe_engine::{
    Answer, AnyKind, Artifact, ArtifactFile, Cell, Figure, Grid, GridRequest, InputArtifact, OutputWriter,
    QueryError, StudyResult, StudyTables,
};
use serde_json::json;

use super::{RunQuery, TABLES};
use crate::metrics::{Metric, write_metrics};
use crate::phantom::IngestPhantom;
use crate::statistics::Estimate;
use crate::table::{Column, Table, read};
use crate::testing::{Made, run, run_with};

fn given(made: &Made, port: &str, axes: &[(&str, &str)]) -> InputArtifact {
    let axes = axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
    InputArtifact { axes, stage: String::new(), artifact: made[port].clone() }
}

fn answer(sql: &str, inputs: &[(&str, Vec<InputArtifact>)]) -> Result<Table, String> {
    let inputs: BTreeMap<String, Vec<InputArtifact>> =
        inputs.iter().map(|(name, given)| ((*name).to_owned(), given.clone())).collect();
    let made = run_with(1, &RunQuery, &json!({ "sql": sql }), inputs);
    made.map(|made| read(&made["table"]).unwrap()).map_err(|error| error.to_string())
}

fn phantoms(seed: u64) -> Made {
    let params = json!({ "weights": "chest", "seed": seed, "size": 28, "train": 30, "test": 10 });
    run(&IngestPhantom, &params, &[]).unwrap()
}

#[test]
fn tables_are_joined_and_grouped() {
    let made = phantoms(1);
    let inputs =
        [("images", vec![given(&made, "images", &[])]), ("labels", vec![given(&made, "labels", &[])])];
    let sql =
        "select split, label ->> 0 as class, count(*) as n, avg(truth_area) as area, max(width) as width
               from images join labels using (image_id, split) group by 1, 2 order by split, class";
    let table = answer(sql, &inputs).unwrap();
    let counts: i64 = table.int64("n").unwrap().iter().flatten().sum();
    assert_eq!(counts, 40);
    assert!(table.float64("area").unwrap().iter().any(|area| area.is_some_and(|area| area > 0.0)));
    assert!(table.int64("width").unwrap().iter().all(|width| *width == Some(28)));
    // The same by hand.
    let labels = read(&made["labels"]).unwrap();
    let classes = labels.list_int64("label").unwrap();
    let of_test = labels.strings("split").unwrap();
    let normal =
        (0..40).filter(|row| of_test[*row] == "test" && classes[*row].as_ref().unwrap()[0] == 0).count();
    let found =
        answer(&format!("select n from ({sql}) where split = 'test' and class = 0"), &inputs).unwrap();
    assert_eq!(found.int64("n").unwrap().first().copied().flatten().unwrap_or(0), normal as i64);
}

#[test]
fn axes_are_columns_and_missing_columns_null() {
    let (one, two) = (phantoms(1), phantoms(2));
    let inputs = [(
        "rows",
        vec![given(&one, "labels", &[("set", "first")]), given(&two, "expected", &[("set", "second")])],
    )];
    let table = answer(
        "select \"set\", count(*) as n, count(image_id) as labelled from rows group by 1 order by 1 desc",
        &inputs,
    )
    .unwrap();
    assert_eq!(table.strings("set").unwrap(), ["second", "first"]);
    assert_eq!(table.int64("labelled").unwrap(), [Some(0), Some(40)]);
}

#[test]
fn types_survive() {
    let made = phantoms(3);
    let inputs = [("images", vec![given(&made, "images", &[])])];
    let table =
        answer("select image_id, truth_marker, truth_dprime, width, truth_boxes from images", &inputs)
            .unwrap();
    assert!(matches!(table.column("truth_marker"), Some(Column::Bool(_))));
    assert!(matches!(table.column("truth_dprime"), Some(Column::Float64(_))));
    assert!(matches!(table.column("width"), Some(Column::Int64(_))));
    // Without rows the columns keep their types.
    let empty =
        answer("select truth_marker, truth_dprime, width, image_id from images where 0", &inputs).unwrap();
    assert_eq!(empty.rows(), 0);
    assert!(matches!(empty.column("truth_dprime"), Some(Column::Float64(_))));
    assert!(matches!(empty.column("width"), Some(Column::Int64(_))));
}

#[test]
fn figures_have_their_functions() {
    let made = phantoms(1);
    let inputs = [("rows", vec![given(&made, "labels", &[])])];
    let number = |sql: &str| {
        let table = answer(
            &format!("with v(x) as (values (1.0), (2.0), (4.0), (null)) select {sql} as y from v"),
            &inputs,
        );
        table.unwrap().float64("y").unwrap()[0]
    };
    assert_eq!(number("median(x)"), Some(2.0));
    assert_eq!(number("quantile(x, 0.75)"), Some(3.0));
    assert!((number("stddev(x)").unwrap() - (7.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert!((number("sum(sqrt(x))").unwrap() - (3.0 + 2.0f64.sqrt())).abs() < 1e-12);
    assert_eq!(number("median(case when x > 9 then x end)"), None);
}

#[test]
fn nothing_but_inputs_is_read() {
    let made = phantoms(1);
    let inputs = [("labels", vec![given(&made, "labels", &[])])];
    let fails = |sql: &str, words: &str| {
        let error = answer(sql, &inputs).err().unwrap_or_else(|| panic!("`{sql}` was answered"));
        assert!(error.contains(words), "{sql}: {error}");
    };
    fails("select random() as x from labels", "chance");
    fails("select date('now') as x", "chance");
    fails("select current_timestamp as x", "chance");
    fails("select load_extension('x') as y", "not authorized");
    fails("select * from missing", "no such table: missing");
    fails("select lable from labels", "line 1, column 8 of the query: no such column: lable");
    fails("select 1 as x, 2 as x", "two columns of the answer are called `x`");
    fails("select 1 as x union all select 'a'", "texts and numbers");
    let folder =
        run(&crate::tokenizer::TrainTokenizer, &json!({ "vocab_size": 300 }), &[("text", &made["captions"])]);
    let folder = folder.unwrap();
    let error = answer("select 1 as x from words", &[("words", vec![given(&folder, "tokenizer", &[])])]);
    assert!(error.unwrap_err().contains("a query reads tables"));
}

#[test]
fn a_text_that_is_no_query_is_refused_before_it_runs() {
    let problem = |sql: &str| {
        let resolved = AnyKind::resolve(&RunQuery, &json!({ "sql": sql }));
        resolved.err().map(|problems| problems[0].message.clone()).unwrap_or_default()
    };
    assert_eq!(problem("select a from b"), "");
    assert_eq!(problem("with x as (select 1 as y) select y from x"), "");
    assert_eq!(problem(" "), "there is no query");
    assert_eq!(problem("select 1; select 2"), "there is more than one statement");
    assert_eq!(problem("create table x (y)"), "the statement is no query");
    assert_eq!(
        problem("select a\nfrom b wher c"),
        "line 2, column 13 of the query: near \"c\": syntax error"
    );
    assert!(problem("attach 'x.db' as y").contains("no query"));
}

/// The results of two stages of drawn data, one of them with an axis, and of one with figures.
fn results() -> (Vec<StudyResult>, Vec<Made>) {
    let mut results = Vec::new();
    let mut all = Vec::new();
    let mut add = |stage: &str, port: &str, made: &Made, axes: &[(&str, &str)]| {
        let artifact = made[port].clone();
        let axes = axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
        let rows = read(&artifact).ok().map(|table| table.rows() as u64);
        results.push(StudyResult { stage: stage.to_owned(), port: port.to_owned(), axes, rows, artifact });
    };
    for (set, seed) in [("first", 1), ("second", 2)] {
        let made = phantoms(seed);
        for port in ["images", "labels"] {
            add("drawn", port, &made, &[("set", set)]);
        }
        all.push(made);
    }
    let made = phantoms(3);
    add("other", "labels", &made, &[]);
    let params = json!({ "vocab_size": 300 });
    let folder = run(&crate::tokenizer::TrainTokenizer, &params, &[("text", &made["captions"])]).unwrap();
    add("words", "tokenizer", &folder, &[]);
    all.extend([made, folder]);
    (results, all)
}

/// What the engine knows of the nodes of [`results`].
fn stages() -> Answer {
    let row = |stage: &str, set: Option<&str>, seconds: f64, memory: Option<i64>| {
        let text = |text: &str| Cell::Text(text.to_owned());
        let memory = memory.map_or(Cell::Null, Cell::Integer);
        vec![text(stage), set.map_or(Cell::Null, text), Cell::Real(seconds), memory]
    };
    Answer {
        columns: ["stage", "set", "seconds", "peak_memory_bytes"].map(str::to_owned).to_vec(),
        rows: vec![
            row("other", None, 0.5, None),
            row("drawn", Some("first"), 2.0, Some(1 << 40)),
            row("drawn", Some("second"), 3.0, None),
        ],
    }
}

#[test]
fn what_results_cost_stands_beside_them() {
    let sql = "select stage, \"set\", count(*) as n, max(seconds) as seconds, max(peak_memory_bytes) as memory \
               from drawn_labels join stages using (\"set\") where stage = 'drawn' group by 1, 2 order by 2";
    let answer = ask(sql).unwrap();
    let text = |text: &str| Cell::Text(text.to_owned());
    let (first, second) = (Cell::Integer(1 << 40), Cell::Null);
    assert_eq!(
        answer.rows,
        [
            [text("drawn"), text("first"), Cell::Integer(40), Cell::Real(2.0), first],
            [text("drawn"), text("second"), Cell::Integer(40), Cell::Real(3.0), second],
        ]
    );
    let total = ask("select sum(seconds) as seconds, typeof(max(seconds)) as kind from stages").unwrap();
    assert_eq!(total.rows, [[Cell::Real(5.5), text("real")]]);
}

fn ask(sql: &str) -> Result<Answer, QueryError> {
    let (results, _folders) = results();
    (TABLES.query)(&StudyTables { results, stages: stages() }, sql)
}

#[test]
fn results_are_tables_by_stage_and_by_type() {
    let (results, _folders) = results();
    let tables = (TABLES.list)(&StudyTables { results, stages: Answer::default() });
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["images", "labels", "drawn_images", "drawn_labels", "other_labels"]);
    assert_eq!(tables[1].of, ["drawn.labels", "other.labels"]);
    assert_eq!(tables[1].rows, Some(120));
    assert!(tables.iter().all(|table| table.problem.is_none()));
    // Pictures are no figures.
    assert!(!tables[0].columns.iter().any(|(name, _)| name == "image"));

    let answer = ask("select stage, \"set\", count(*) as n from labels group by 1, 2 order by 1, 2").unwrap();
    assert_eq!(answer.columns, ["stage", "set", "n"]);
    let text = |text: &str| Cell::Text(text.to_owned());
    assert_eq!(
        answer.rows,
        [
            [text("drawn"), text("first"), Cell::Integer(40)],
            [text("drawn"), text("second"), Cell::Integer(40)],
            [text("other"), Cell::Null, Cell::Integer(40)],
        ]
    );
    let answer = ask(
        "select \"set\", max(width) as width, truth_marker as marker from drawn_images group by 1 order by 1 limit 1",
    );
    assert_eq!(answer.unwrap().rows[0][..2], [text("first"), Cell::Integer(28)]);
}

#[test]
fn columns_that_are_not_named_are_not_needed() {
    let number = |sql: &str| match ask(sql).unwrap().rows[0][0] {
        Cell::Integer(number) => number,
        ref other => panic!("{sql}: {other:?}"),
    };
    assert_eq!(number("select count(*) as n from images"), 80);
    assert_eq!(number("select count ( * ) as n from drawn_labels where \"set\" = 'first'"), 40);
    assert_eq!(number("select count(image_id) as n from (select * from drawn_images)"), 80);
    assert_eq!(number("select count(WIDTH) as n from drawn_images"), 80);
    assert_eq!(
        number("select count(width) as n from drawn_images join drawn_labels using (image_id, \"set\")"),
        80
    );
    assert_eq!(number("select count(\"Image_Id\") as n from labels"), 120);
}

#[test]
fn names_that_two_tables_have_are_told_apart() {
    let (mut all, _folders) = results();
    all.push(StudyResult { stage: "drawn_images".to_owned(), port: "labels".to_owned(), ..all[1].clone() });
    all.push(StudyResult { stage: "Drawn".to_owned(), port: "images_labels".to_owned(), ..all[1].clone() });
    let study = StudyTables { results: all, stages: stages() };
    let names: Vec<String> = (TABLES.list)(&study).into_iter().map(|table| table.name).collect();
    assert!(names.contains(&"stages".to_owned()), "{names:?}");
    assert!(names.contains(&"drawn_images_labels".to_owned()), "{names:?}");
    assert!(names.contains(&"Drawn_images_labels_2".to_owned()), "{names:?}");
}

#[test]
fn mistakes_have_a_place_and_a_suggestion() {
    let fails = |sql: &str| match ask(sql) {
        Err(QueryError::Question { message, offset, unknown, .. }) => (message, offset, unknown),
        other => panic!("{sql}: {other:?}"),
    };
    let (message, offset, unknown) = fails("select lable from labels");
    assert!(message.contains("no such column: lable"), "{message}");
    assert_eq!(offset, Some(7));
    let (name, known) = unknown.unwrap();
    assert_eq!(name, "lable");
    assert!(known.contains(&"label".to_owned()) && !known.contains(&"width".to_owned()), "{known:?}");

    let (message, offset, unknown) = fails("select 1 as x\nfrom drawn_label");
    assert!(message.contains("no such table"), "{message}");
    assert_eq!(offset, Some(19));
    assert!(unknown.unwrap().1.contains(&"drawn_labels".to_owned()));
    // As a study names an output.
    assert_eq!(fails("select 1 as x from other.labels").2.unwrap().0, "other_labels");

    let (_, _, unknown) = fails("select avgg(width) as x from images");
    assert!(unknown.unwrap().1.contains(&"avg".to_owned()));
    assert_eq!(fails("select 1 as a b c").1, Some(14));
    assert_eq!(fails("").0, "there is no query");
    assert_eq!(fails("select 1; select 2").0, "there is more than one statement");
    // Of what is in double quotes, a misspelt name is no text.
    assert!(fails("select \"lable\" from labels").0.contains("no such column"));
    for refused in
        ["drop table labels", "insert into labels values (1)", "attach 'x.db' as y", "pragma user_version"]
    {
        fails(refused);
    }
    assert!(fails("select random() as x").0.contains("not authorized"));
}

/// A table of figures: by model and split, of everything and of one class.
fn figures() -> (Vec<StudyResult>, Vec<tempfile::TempDir>) {
    let mut results = Vec::new();
    let mut folders = Vec::new();
    for (model, value) in [("clip", 0.5), ("medical", 0.75)] {
        let folder = tempfile::TempDir::new().unwrap();
        let mut output = OutputWriter::new(folder.path().to_owned());
        let estimate = |value: f64| Estimate { value, low: Some(value - 0.125), high: Some(value + 0.125) };
        let mut rows = vec![
            Metric::new("classification", "test", "auroc", Some(estimate(value)), 10),
            Metric::new("classification", "val", "auroc", Some(estimate(value + 0.1)), 10),
            Metric::new("classification", "test", "accuracy", None, 10),
            Metric::new("classification", "test", "auroc", Some(estimate(0.1)), 10),
        ];
        rows[3].class = Some("nodule".to_owned());
        write_metrics(&mut output, &rows, "{}").unwrap();
        let location = folder.path().join("part-00000.parquet");
        folders.push(folder);
        let bytes = std::fs::metadata(&location).unwrap().len();
        let file = ArtifactFile { path: "part-00000.parquet".to_owned(), bytes, location };
        let artifact = Artifact {
            artifact_type: crate::artifact::METRICS.0.to_owned(),
            digest: Digest::of(model.as_bytes()),
            files: file.into(),
            origin: None,
        };
        for stage in ["early", "late"] {
            let axes = BTreeMap::from([("model".to_owned(), model.to_owned())]);
            let (stage, port) = (stage.to_owned(), "metrics".to_owned());
            results.push(StudyResult { stage, port, axes, rows: Some(4), artifact: artifact.clone() });
        }
    }
    (results, folders)
}

fn grid(
    rows: &[&str],
    columns: &[&str],
    metrics: &[&str],
    filters: &[(&str, &str)],
) -> Result<Grid, QueryError> {
    let texts = |list: &[&str]| list.iter().map(|one| (*one).to_owned()).collect();
    let filters = filters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request =
        GridRequest { rows: texts(rows), columns: texts(columns), metrics: texts(metrics), filters };
    let (figures, _folders) = figures();
    (TABLES.grid)(&figures, &request)
}

#[test]
fn figures_are_laid_out_with_their_intervals() {
    let table = grid(&["model"], &["stage"], &["auroc"], &[]).unwrap();
    assert_eq!(table.headers, ["model"]);
    assert_eq!(table.columns, ["early", "late"]);
    assert_eq!(table.rows[0].0, ["clip"]);
    // Of the test set and of all classes, as nothing else was asked for.
    let half = Figure { value: Some(0.5), low: Some(0.375), high: Some(0.625), runs: None };
    assert_eq!(table.rows[0].1, [Some(half.clone()), Some(half)]);
    let table = grid(&["model", "stage"], &[], &["auroc", "accuracy"], &[("split", "test")]).unwrap();
    assert_eq!(table.columns, ["auroc", "accuracy"]);
    assert_eq!(table.rows.len(), 4);
    assert_eq!(table.rows[0].1[1], Some(Figure { value: None, low: None, high: None, runs: None }));
    let table = grid(&["model"], &["split"], &["auroc"], &[("stage", "late")]).unwrap();
    assert_eq!(table.columns, ["test", "val"]);
    let table = grid(&["model"], &["class"], &["auroc"], &[("stage", "late"), ("split", "test")]).unwrap();
    assert_eq!(table.columns, ["nodule"]);
}

#[test]
fn runs_that_differ_in_their_seed_alone_are_averaged() {
    let (mut results, _folders) = figures();
    results.retain(|result| result.stage == "early");
    let values = [0.5, 0.75];
    assert_eq!(results.len(), values.len());
    let lay_out = |results: &[StudyResult], metrics: &[&str]| {
        let metrics = metrics.iter().map(|metric| (*metric).to_owned()).collect();
        (TABLES.grid)(results, &GridRequest { rows: vec!["stage".into()], metrics, ..GridRequest::default() })
    };
    for (seed, result) in results.iter_mut().enumerate() {
        result.axes = BTreeMap::from([("seed".to_owned(), seed.to_string())]);
    }
    let table = lay_out(&results, &["auroc", "accuracy"]).unwrap();
    let [Some(auroc), Some(accuracy)] = table.rows[0].1.as_slice() else { panic!("{table:?}") };
    assert_eq!(auroc.value, Some(0.625));
    // Half of the distance times qt(0.975, 1).
    let bounds = auroc.low.zip(auroc.high).unwrap();
    assert!((bounds.1 - bounds.0 - 0.25 * 12.706_204_736_432_095).abs() < 1e-6, "{bounds:?}");
    let runs = auroc.runs.unwrap();
    assert!(runs.count == 2 && (runs.deviation - 0.03125f64.sqrt()).abs() < 1e-12, "{runs:?}");
    assert_eq!((accuracy.value, accuracy.runs), (None, None), "one of them is undefined");
    // Of one seed it is the figure itself, with its interval.
    let request = GridRequest {
        rows: vec!["stage".into()],
        metrics: vec!["auroc".into()],
        filters: vec![("seed".into(), "0".into())],
        ..GridRequest::default()
    };
    let one = (TABLES.grid)(&results, &request).unwrap().rows[0].1[0].clone().unwrap();
    assert_eq!((one.value, one.low, one.runs), (Some(0.5), Some(0.375), None));
    // A stage without such an axis has seeds of intervals in the column of the same name.
    let (other, _folder) = self::figures();
    let plain = StudyResult { stage: "plain".to_owned(), ..other[0].clone() };
    let beside = lay_out(&[results.clone(), vec![plain]].concat(), &["auroc"]).unwrap();
    assert_eq!(beside.rows[0].1[0].as_ref().unwrap(), auroc);
    assert_eq!(beside.rows[1].1[0].as_ref().unwrap().value, Some(0.5));
    // Whatever else differs is no chance.
    for (place, result) in results.iter_mut().enumerate() {
        result.axes.insert("epochs".to_owned(), place.to_string());
    }
    let error = lay_out(&results, &["auroc"]).unwrap_err();
    let QueryError::Question { message, .. } = &error else { panic!("{error:?}") };
    assert!(message.contains("they differ in `epochs` (`0`, `1`)"), "{message}");
}

#[test]
fn a_crowd_in_a_cell_is_a_mistake_that_says_what_to_choose() {
    let fails = |result: Result<Grid, QueryError>| match result {
        Err(QueryError::Question { message, hint, unknown, .. }) => {
            (message, hint.unwrap_or_default(), unknown)
        }
        other => panic!("{other:?}"),
    };
    let (message, hint, _) = fails(grid(&["model"], &[], &["auroc"], &[]));
    assert!(
        message.contains("2 figures stand for `clip`") && message.contains("`stage` (`early`, `late`)"),
        "{message}"
    );
    assert!(hint.contains("--where stage=early"), "{hint}");
    let (message, _, unknown) = fails(grid(&["modle"], &[], &["auroc"], &[]));
    assert!(message.contains("column `modle`") && unknown.unwrap().1.contains(&"model".to_owned()));
    let (message, hint, _) = fails(grid(&["model"], &[], &["aurok"], &[]));
    assert!(message.contains("`aurok`") && hint.contains("accuracy, auroc"), "{hint}");
    let (message, hint, _) = fails(grid(&["model"], &[], &["auroc"], &[("stage", "lat")]));
    assert!(message.contains("`lat` in column `stage`") && hint.contains("`late`"), "{message} {hint}");
    let request = GridRequest { rows: vec!["x".into()], metrics: vec!["y".into()], ..GridRequest::default() };
    let none = (TABLES.grid)(&results().0, &request);
    assert!(fails(none).0.contains("no table `metrics`"));
}
