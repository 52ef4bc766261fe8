//! What is drawn: maps where the model looked, scores with their directions, curves, and differences that decide.

use arrow_array::builder::{Float32Builder as Floats, Int32Builder};

use super::*;

/// A map per row.
fn maps(
    study: &Study,
    metadata: &[(&str, &str)],
    rows: &[(&str, &str)],
    shape: &[usize],
    values: &dyn Fn(usize) -> f32,
) {
    let length: usize = shape.iter().product();
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let mut lists = FixedSizeListBuilder::new(Float32Builder::new(), length as i32).with_field(item);
    for _ in rows {
        (0..length).for_each(|place| lists.values().append_value(values(place)));
        lists.append(true);
    }
    let lists = lists.finish();
    let tensor = Field::new("saliency", lists.data_type().clone(), true).with_metadata([
        ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
        ("ARROW:extension:metadata".to_owned(), serde_json::json!({ "shape": shape }).to_string()),
    ]);
    let mut all: std::collections::HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    all.insert("method".to_owned(), "occlusion".to_owned());
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let schema = Schema::new(vec![text("id"), text("target"), tensor]).with_metadata(all);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| Some(row.1)).collect::<StringArray>()),
        Arc::new(lists),
    ];
    let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    study.add("maps", &[], artifact::SALIENCY, "saliency.arrow", |path| {
        let mut writer = FileWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    });
}

/// The picture with this alternative text.
fn picture(page: &str, files: &BTreeMap<String, Vec<u8>>, alt: &str) -> RgbImage {
    let end = page.find(&format!("alt=\"{alt}\"")).unwrap_or_else(|| panic!("no {alt}"));
    let start = page[..end].rfind("src=\"").unwrap() + 5;
    let path = page[start..end].split('"').next().unwrap();
    image::load_from_memory(&files[path]).unwrap().to_rgb8()
}

const BESIDE: ReportParams = ReportParams {
    title: String::new(),
    description: String::new(),
    max_gallery: 8,
    max_samples: 8,
    sheets: false,
    embed_limit_bytes: 0,
};

#[test]
fn a_map_of_the_middle_is_not_stretched_over_a_photograph() {
    let grey = Rgb([90u8; 3]);
    let page = |metadata: &[(&str, &str)]| {
        let study = Study::new();
        let photograph = |_| png(&RgbImage::from_pixel(40, 20, grey).into());
        study.pictures("images", artifact::IMAGES, "image", &["a"], photograph);
        maps(&study, metadata, &[("a", "nodule")], &[4, 4], &|_| 1.0);
        study.report(&BESIDE)
    };
    let touched = |(page, files): &(String, BTreeMap<String, Vec<u8>>)| -> Vec<u32> {
        let overlay = picture(page, files, "overlay of occlusion on a");
        assert_eq!(overlay.dimensions(), (40, 20));
        (0..40).filter(|x| *overlay.get_pixel(*x, 10) != grey).collect()
    };
    let centre = page(&[("fit", "shortest"), ("fit_shorter", "4"), ("fit_side", "4")]);
    assert_eq!(touched(&centre), (10..30).collect::<Vec<u32>>());
    let whole = page(&[("fit", "stretch")]);
    assert_eq!(touched(&whole), (0..40).collect::<Vec<u32>>());
    let (unknown, _) = page(&[]);
    assert!(unknown.contains("no overlay: the file does not say where"));
    assert!(unknown.contains("alt=\"map of occlusion for a,") && !unknown.contains("alt=\"overlay"));
}

#[test]
fn every_target_of_a_sample_is_shown() {
    let study = Study::new();
    study.images(&["a"]);
    maps(&study, &[], &[("a", "nodule"), ("a", "effusion")], &[12, 12], &|place| place as f32);
    let page = study.page();
    for target in ["nodule", "effusion"] {
        assert!(page.contains(&format!("overlay of occlusion of {target} on a")), "{target}");
        assert!(page.contains(&format!("target {target}")), "{target}");
    }
    assert!(page.contains("Shown are 1 of 1 explained samples"));
}

/// Rows of scores: method, metric, direction, value, whether the model is right, step.
type Scored<'a> = (&'a str, &'a str, &'a str, f64, Option<bool>, Option<i64>);

fn scores(study: &Study, rows: &[Scored<'_>]) {
    let text = |of: &dyn Fn(&Scored<'_>) -> String| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    };
    let batch = batch(vec![
        ("method", text(&|row| row.0.to_owned())),
        ("metric", text(&|row| row.1.to_owned())),
        ("better", text(&|row| row.2.to_owned())),
        ("parameters", text(&|_| r#"{"layer_order":"bottom_up"}"#.to_owned())),
        ("value", Arc::new(rows.iter().map(|row| Some(row.3)).collect::<Float64Array>())),
        ("correct", Arc::new(rows.iter().map(|row| row.4).collect::<BooleanArray>())),
        ("step", Arc::new(rows.iter().map(|row| row.5).collect::<Int64Array>())),
    ]);
    study.table("scores", &[], artifact::ATTRIBUTION_SCORES, &batch);
}

#[test]
fn scores_are_better_as_their_table_says() {
    let study = Study::new();
    scores(
        &study,
        &[
            ("ig", "infidelity", "lower", 0.5, None, None),
            ("ig", "road_gap", "higher", 0.25, None, None),
            ("ig", "completeness", "lower", 0.125, None, None),
        ],
    );
    let page = study.page();
    let header = |metric: &str| {
        let start = page.find(&format!("scope=\"col\">{metric}")).unwrap_or_else(|| panic!("no {metric}"));
        page[start..].split("</th>").next().unwrap().contains("lower is better")
    };
    assert!(header("infidelity") && header("completeness") && !header("road gap"));
}

#[test]
fn scores_are_told_of_all_samples_and_of_those_the_model_is_right_about() {
    let study = Study::new();
    let rows: Vec<Scored<'_>> = [("ig", [0.0, 0.0, 1.0, 1.0]), ("random", [1.0, 1.0, 0.0, 0.0])]
        .into_iter()
        .flat_map(|(method, values)| {
            let correct = [Some(false), Some(false), Some(true), Some(true)];
            values
                .into_iter()
                .zip(correct)
                .map(move |(value, correct)| (method, "pointing_game", "higher", value, correct, None))
        })
        .collect();
    scores(&study, &rows);
    let page = study.page();
    let table = &page[page.find("id=\"transparency\"").unwrap()..];
    for (samples, figure) in [("all", "0.500 [0.150, 0.850]"), ("classified right", "1.000 [0.342, 1.000]")] {
        let row = table.split("<tr>").find(|row| row.contains(">ig<") && row.contains(samples)).unwrap();
        assert!(row.contains(figure), "{samples}: {row}");
    }
    // The headline is of those that the model is right about.
    let answer = &page[page.find("id=\"answer\"").unwrap()..page.find("id=\"transparency\"").unwrap()];
    assert!(answer.contains("ig \u{b7} classified right</b>, 1.000"), "{answer}");
}

#[test]
fn layers_drawn_anew_make_a_curve_and_no_figure() {
    let study = Study::new();
    let mut rows = vec![("ig", "parameter_randomisation", "lower", 0.375, None, None)];
    for (step, value) in [(1, 0.75), (2, 0.25), (1, 0.25), (2, 0.25)] {
        rows.push(("ig", "parameter_randomisation_step", "lower", value, None, Some(step)));
    }
    scores(&study, &rows);
    let page = study.page();
    assert!(page.contains("while layers are drawn anew, from the input on"));
    assert!(!page.contains("parameter randomisation step"), "steps are no column");
    // The model as it is, half, a quarter: from the top left to the bottom right.
    let chart = &page[page.find("while layers are drawn anew").unwrap()..];
    let points = chart.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
    let y: Vec<f64> =
        points.split(' ').map(|point| point.split(',').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(y.len(), 3);
    assert!((y[0] - 8.0).abs() < 0.1 && (y[2] - 208.0).abs() < 0.1, "{y:?}");
    assert!(((y[1] - y[0]) / (y[2] - y[0]) - 2.0 / 3.0).abs() < 0.01, "{y:?}");
    assert!(chart.contains("ig: 0.250 at the end"));
}

/// What `compare` writes of two models.
fn difference(study: &Study, method: &str, metric: &str, value: f64, interval: [f64; 2]) {
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let number = |value: f64| -> ArrayRef { Arc::new(Float64Array::from(vec![value])) };
    let batch = batch(vec![
        ("task", text("classify")),
        ("method", text(method)),
        ("metric", text(metric)),
        ("value", number(value)),
        ("ci_low", number(interval[0])),
        ("ci_high", number(interval[1])),
        ("n", Arc::new(Int64Array::from(vec![500]))),
    ]);
    study.table("compared", &[], artifact::METRICS, &batch);
}

#[test]
fn paired_differences_decide_the_answer() {
    let two = |study: &Study| {
        for (model, auroc) in [("general", 0.91), ("medical", 0.93)] {
            study.metrics("classification", &[("model", model)], &[("auroc", auroc, None)]);
        }
    };
    let answer = |study: &Study| {
        let page = study.page();
        page[page.find("id=\"answer\"").unwrap()..page.find("id=\"performance\"").unwrap()].to_owned()
    };
    let study = Study::new();
    two(&study);
    // The intervals of 0.02 to both sides overlap, and the pairs tell the models apart all the same.
    assert!(answer(&study).contains("the intervals overlap"));
    difference(&study, "general - medical", "auroc_difference", -0.02, [-0.03, -0.01]);
    let clear = answer(&study);
    assert!(clear.contains("the difference is 0.020 [0.010, 0.030], whose interval leaves out 0"), "{clear}");
    assert!(!clear.contains("overlap"));
    // What was compared is told for itself too.
    assert!(
        clear.contains("<b>general - medical</b> -0.020 [-0.030, -0.010], which leaves out 0."),
        "{clear}"
    );
    let study = Study::new();
    two(&study);
    difference(&study, "classified/medical - classified/general", "auroc_difference", 0.02, [-0.01, 0.05]);
    assert!(
        answer(&study).contains("0.020 [-0.010, 0.050], whose interval holds 0: the two are not told apart")
    );
    // Other models, other metrics and other samples say nothing about these.
    let study = Study::new();
    two(&study);
    difference(&study, "medical - random", "auroc_difference", 0.4, [0.3, 0.5]);
    difference(&study, "medical - general", "accuracy_difference", 0.4, [0.3, 0.5]);
    assert!(answer(&study).contains("the intervals overlap"));
}

fn predictions(study: &Study, model: &str, task: &str, names: &[&str], rows: &[(i32, &[f32])]) {
    let mut targets = ListBuilder::new(Int32Builder::new());
    let mut scores = ListBuilder::new(Floats::new());
    for (target, row) in rows {
        targets.values().append_value(*target);
        targets.append(true);
        row.iter().for_each(|score| scores.values().append_value(*score));
        scores.append(true);
    }
    let splits: ArrayRef = Arc::new(StringArray::from(vec!["test"; rows.len()]));
    let plain = batch(vec![
        ("split", splits),
        ("target", Arc::new(targets.finish())),
        ("scores", Arc::new(scores.finish())),
    ]);
    let names = serde_json::to_string(names).unwrap();
    let metadata = [("label_names".to_owned(), names), ("task".to_owned(), task.to_owned())];
    let schema = plain.schema().as_ref().clone().with_metadata(metadata);
    let table = plain.with_schema(Arc::new(schema)).unwrap();
    study.table("predicted", &[("model", model)], artifact::PREDICTIONS, &table);
}

/// The points of a curve in the file behind the page.
fn points(files: &BTreeMap<String, Vec<u8>>, chart: &str, curve: &str) -> Vec<(f64, f64)> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("curves.parquet");
    std::fs::write(&path, &files["data/curves.parquet"]).unwrap();
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let mut all = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let [charts, curves] = ["chart", "curve"].map(|name| super::super::columns::texts(&batch, name));
        let [x, y] = ["x", "y"].map(|name| super::super::columns::numbers(&batch, name));
        let own = (0..batch.num_rows()).filter(|row| {
            charts[*row].as_deref() == Some(chart) && curves[*row].as_ref().unwrap().starts_with(curve)
        });
        all.extend(own.map(|row| (x[row].unwrap(), y[row].unwrap())));
    }
    all
}

#[test]
fn predictions_have_their_curves() {
    let study = Study::new();
    let rows: [(i32, &[f32]); 4] = [(1, &[0.1, 0.9]), (0, &[0.4, 0.6]), (1, &[0.45, 0.55]), (0, &[0.8, 0.2])];
    predictions(&study, "good", "binary-class", &["none", "nodule"], &rows);
    let flat: [(i32, &[f32]); 2] = [(1, &[0.5, 0.5]), (0, &[0.5, 0.5])];
    predictions(&study, "flat", "binary-class", &["none", "nodule"], &flat);
    let (page, files) = study.report(&ReportParams::default());
    for words in
        ["ROC", "precision by recall", "calibration", "good: confusion", "good, 0.750", "flat, 0.500"]
    {
        assert!(page.contains(words), "{words}");
    }
    assert_eq!(points(&files, "roc", "good"), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]);
    assert_eq!(points(&files, "roc", "flat"), [(0.0, 0.0), (1.0, 1.0)]);
    assert_eq!(points(&files, "precision_recall", "good").last(), Some(&(1.0, 0.5)));
    assert_eq!(points(&files, "calibration", "as sure"), [(0.0, 0.0), (1.0, 1.0)]);
    assert!(page.contains("nodule taken for nodule: 2") && page.contains("none taken for nodule: 1"));
    assert!(page.contains("href=\"data/curves.parquet\""));
}

#[test]
fn classes_are_averaged_and_answers_to_questions_have_no_curves() {
    let study = Study::new();
    let rows: [(i32, &[f32]); 3] = [(0, &[0.8, 0.1, 0.1]), (1, &[0.2, 0.7, 0.1]), (2, &[0.1, 0.2, 0.7])];
    predictions(&study, "m", "multi-class", &["a", "b", "c"], &rows);
    let (page, files) = study.report(&ReportParams::default());
    assert!(page.contains("mean over classes, each against the rest"));
    let roc = points(&files, "roc", "");
    assert_eq!((roc.len(), roc[0], roc[100]), (101, (0.0, 1.0), (1.0, 1.0)));
    let questions = Study::new();
    predictions(&questions, "m", "vqa", &[], &rows);
    let (page, files) = questions.report(&ReportParams::default());
    assert!(!page.contains("<polyline") && !files.contains_key("data/curves.parquet"));
}

#[test]
fn ranks_have_a_curve_of_recall() {
    let study = Study::new();
    let ranks: ArrayRef = Arc::new(Int64Array::from(vec![0, 2, 2, 4]));
    let direction: ArrayRef = Arc::new(StringArray::from(vec!["image_to_text"; 4]));
    let pool: ArrayRef = Arc::new(Int64Array::from(vec![5; 4]));
    study.table(
        "found",
        &[],
        artifact::RANKS,
        &batch(vec![("direction", direction), ("rank", ranks), ("pool_size", pool)]),
    );
    let (page, files) = study.report(&ReportParams::default());
    assert!(page.contains("recall at k"));
    let expected = [(1.0, 0.25), (2.0, 0.25), (3.0, 0.75), (4.0, 0.75), (5.0, 1.0)];
    assert_eq!(points(&files, "recall", "image to text"), expected);
}

#[test]
fn seeds_are_averaged_beside_their_rows() {
    let study = Study::new();
    let runs = [("general", "0", 0.5), ("general", "1", 0.75), ("medical", "0", 0.875)];
    for (model, seed, auroc) in runs {
        let rows = [("auroc", auroc, None), ("f1", if seed == "0" { f64::NAN } else { 0.5 }, None)];
        study.metrics("classification", &[("model", model), ("seed", seed)], &rows);
    }
    let page = study.page();
    let (_, table) = page.split_once("standard deviation over seeds").unwrap();
    let table = table.split_once("</table>").unwrap().0;
    assert!(table.contains("0.625 \u{b1} 0.177"), "{table}");
    // Of `f1` one run is undefined, and of `medical` there is one.
    assert!(
        table.contains("general") && !table.contains("medical") && !table.contains("0.5 \u{b1}"),
        "{table}"
    );
    // The rows of each seed stay, with their intervals.
    assert!(page.contains("0.750 [0.730, 0.770]"), "{page}");
    // Without several seeds there is nothing to average.
    let one = Study::new();
    one.metrics("classification", &[("model", "general"), ("seed", "0")], &[("auroc", 0.5, None)]);
    one.metrics("classification", &[("model", "medical"), ("seed", "0")], &[("auroc", 0.75, None)]);
    assert!(!one.page().contains("over seeds"));
}
