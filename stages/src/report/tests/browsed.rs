//! The sample browser.

use arrow_array::BooleanArray;
use arrow_array::builder::Int32Builder;

use super::*;

/// (id, target, prediction) of one model; classes `none` and `nodule`.
fn predictions(study: &Study, model: &str, rows: &[(&str, i32, i32)]) {
    let list = |value: &dyn Fn(&(&str, i32, i32)) -> i32| -> ArrayRef {
        let mut lists = ListBuilder::new(Int32Builder::new());
        for row in rows {
            lists.values().append_value(value(row));
            lists.append(true);
        }
        Arc::new(lists.finish())
    };
    let plain = batch(vec![
        ("id", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>())),
        ("split", Arc::new(StringArray::from(vec!["test"; rows.len()]))),
        ("image", Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>())),
        ("target", list(&|row| row.1)),
        ("prediction", list(&|row| row.2)),
        // What it says, in words.
        (
            "answer",
            Arc::new(
                rows.iter().map(|row| Some(["none", "nodule"][row.2 as usize])).collect::<StringArray>(),
            ),
        ),
        ("correct", Arc::new(rows.iter().map(|row| Some(row.1 == row.2)).collect::<BooleanArray>())),
    ]);
    let metadata = [("label_names".to_owned(), r#"["none","nodule"]"#.to_owned())];
    let schema = plain.schema().as_ref().clone().with_metadata(metadata);
    let table = plain.with_schema(Arc::new(schema)).unwrap();
    study.table("predicted", &[("model", model)], artifact::PREDICTIONS, &table);
}

/// The rows of the browser: state and text of the cells.
fn rows(page: &str) -> Vec<(String, Vec<String>)> {
    let table = page.split("<table id=\"samples-of-predicted\">").nth(1).unwrap();
    let body = &table[table.find("<tbody>").unwrap()..table.find("</tbody>").unwrap()];
    let texts = |row: &str| {
        let cells = row.split("<t").skip(1).filter(|cell| cell.starts_with(['d', 'h']));
        cells.map(|cell| cell.split('>').nth(1).unwrap().split('<').next().unwrap().to_owned()).collect()
    };
    let state = |row: &str| row.split("data-state=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    body.split("<tr").skip(1).map(|row| (state(row), texts(row))).collect()
}

#[test]
fn samples_that_models_disagree_about_come_first() {
    let study = Study::new();
    predictions(&study, "general", &[("a", 0, 0), ("b", 1, 0), ("c", 1, 0), ("d", 0, 0)]);
    predictions(&study, "medical", &[("a", 0, 0), ("b", 1, 0), ("c", 1, 1)]);
    let (page, _) = study.report(&ReportParams::default());
    let found = rows(&page);
    let row = |state: &str, cells: [&str; 4]| (state.to_owned(), cells.map(str::to_owned).to_vec());
    assert_eq!(
        found,
        [
            row("mixed disagree", ["c", "nodule", "none \u{2717}", "nodule \u{2713}"]),
            row("wrong", ["b", "nodule", "none \u{2717}", "none \u{2717}"]),
            row("right", ["a", "none", "none \u{2713}", "none \u{2713}"]),
            row("right", ["d", "none", "none \u{2713}", "\u{2013}"]),
        ]
    );
    assert!(page.contains("All 4 samples") && page.contains("<option value=\"nodule\">nodule</option>"));
    let (page, _) = study.report(&ReportParams { max_samples: 2, ..ReportParams::default() });
    assert_eq!(rows(&page).len(), 2);
    assert!(page.contains("The first 2 of 4 samples"));
    let (page, _) = study.report(&ReportParams { max_samples: 0, ..ReportParams::default() });
    assert!(!page.contains("id=\"samples\""));
}

#[test]
fn samples_have_their_pictures() {
    let study = Study::new();
    predictions(&study, "general", &[("a", 0, 0), ("b", 1, 0)]);
    study.images(&["a", "b"]);
    let (page, _) = study.report(&ReportParams::default());
    assert_eq!(page.matches("class=\"thumbnail\"").count(), 2);
    assert!(page.contains("alt=\"sample b\""));
}
