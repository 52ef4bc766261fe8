//! Queries over tables of stages.

use std::collections::BTreeMap;

use pipe_engine::{AnyKind, InputArtifact};
use serde_json::json;

use super::RunQuery;
use crate::phantom::IngestPhantom;
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
