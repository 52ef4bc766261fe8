mod browsed;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, Int64Builder, ListBuilder};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch,
    StringArray, StructArray,
};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{DataType, Field, Schema};
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, ArtifactFile, ArtifactType, InputArtifact, OutputWriter, StageContext, StageHost, StageKind,
};
use sha2::Digest as _;
use tempfile::TempDir;

use super::{Report, ReportParams};
use crate::artifact;

const SIDE: u32 = 12;

struct Quiet;

impl StageHost for Quiet {
    fn progress(&self, _: u64, _: u64, _: &str, _: &[(&str, f64)]) {}
    fn log(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Inputs of a report, written into a folder.
struct Study {
    folder: TempDir,
    inputs: Mutex<BTreeMap<String, Vec<InputArtifact>>>,
}

impl Study {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap(), inputs: Mutex::default() }
    }

    fn add(
        &self,
        input: &str,
        axes: &[(&str, &str)],
        kind: ArtifactType,
        file: &str,
        write: impl FnOnce(&Path),
    ) {
        let mut inputs = self.inputs.lock().unwrap();
        let known = inputs.values().map(Vec::len).sum::<usize>();
        let location = self.folder.path().join(format!("{known}-{file}"));
        let artifacts = inputs.entry(input.to_owned()).or_default();
        write(&location);
        let bytes = std::fs::read(&location).unwrap();
        let file = ArtifactFile { path: file.to_owned(), bytes: bytes.len() as u64, location };
        artifacts.push(InputArtifact {
            axes: axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect(),
            stage: format!("stage {}", self.folder.path().display()),
            artifact: Artifact {
                artifact_type: kind.0.to_owned(),
                digest: Digest::of(&bytes),
                files: file.into(),
                origin: None,
            },
        });
    }

    fn table(&self, input: &str, axes: &[(&str, &str)], kind: ArtifactType, batch: &RecordBatch) {
        self.add(input, axes, kind, "part-00000.parquet", |path| {
            let file = File::create(path).unwrap();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
            writer.write(batch).unwrap();
            writer.close().unwrap();
        });
    }

    /// Metrics of one model: (metric, value, modality).
    fn metrics(&self, input: &str, axes: &[(&str, &str)], rows: &[(&str, f64, Option<&str>)]) {
        let value = |row: &(&str, f64, Option<&str>)| row.1.is_finite().then_some(row.1);
        let column = |offset: f64| -> ArrayRef {
            Arc::new(rows.iter().map(|row| value(row).map(|value| value + offset)).collect::<Float64Array>())
        };
        let text = |text: Vec<Option<&str>>| -> ArrayRef { Arc::new(StringArray::from(text)) };
        let batch = batch(vec![
            ("task", text(vec![Some("classify"); rows.len()])),
            ("dataset", text(vec![None; rows.len()])),
            ("model", text(vec![None; rows.len()])),
            ("modality", text(rows.iter().map(|row| row.2).collect())),
            ("metric", text(rows.iter().map(|row| Some(row.0)).collect())),
            ("value", column(0.0)),
            ("ci_low", column(-0.02)),
            ("ci_high", column(0.02)),
            ("n", Arc::new(Int64Array::from(vec![500; rows.len()]))),
            (
                "reason",
                text(rows.iter().map(|row| value(row).is_none().then_some("one class only")).collect()),
            ),
        ]);
        self.table(input, axes, artifact::METRICS, &batch);
    }

    /// Figures of one model under several conditions: (condition, modality, metric, value).
    fn ablations(&self, input: &str, axes: &[(&str, &str)], rows: &[(&str, &str, &str, f64)]) {
        let text = |of: &dyn Fn(&(&str, &str, &str, f64)) -> String| -> ArrayRef {
            Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
        };
        let batch = batch(vec![
            ("task", text(&|_| "classification".to_owned())),
            ("method", text(&|row| row.0.to_owned())),
            ("modality", text(&|row| row.1.to_owned())),
            ("metric", text(&|row| row.2.to_owned())),
            ("value", Arc::new(rows.iter().map(|row| Some(row.3)).collect::<Float64Array>())),
            ("n", Arc::new(Int64Array::from(vec![100; rows.len()]))),
        ]);
        self.table(input, axes, artifact::METRICS, &batch);
    }

    /// Figures of all samples and of two subgroups.
    fn subgroups(&self, input: &str) {
        let text = |values: [Option<&str>; 4]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
        let batch = batch(vec![
            ("metric", text([Some("auroc"), Some("auroc"), Some("auroc"), Some("auroc_gap")])),
            ("subgroup", text([None, Some("device=A"), Some("device=B"), Some("device")])),
            ("value", Arc::new(Float64Array::from(vec![0.8, 0.99, 0.7, 0.29]))),
            ("n", Arc::new(Int64Array::from(vec![100, 50, 50, 100]))),
        ]);
        self.table(input, &[("model", "medical")], artifact::METRICS, &batch);
    }

    fn saliency(&self, axes: &[(&str, &str)], method: &str, ids: &[&str], sign: f32) {
        let side = SIDE as usize;
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let mut maps =
            FixedSizeListBuilder::new(Float32Builder::new(), (side * side) as i32).with_field(item);
        for row in 0..ids.len() {
            for pixel in 0..side * side {
                let value = ((pixel * 7 + row * 3) % 11) as f32 / 10.0;
                maps.values().append_value(if pixel % 3 == 0 { sign * value } else { value });
            }
            maps.append(true);
        }
        let maps = maps.finish();
        let tensor = Field::new("saliency", maps.data_type().clone(), true).with_metadata([
            ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
            ("ARROW:extension:metadata".to_owned(), format!("{{\"shape\":[{side},{side}]}}")),
        ]);
        let status = |row: usize| if row == 1 { "not_applicable: no attention" } else { "ok" };
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, true),
            Field::new("target", DataType::Utf8, true),
            Field::new("score", DataType::Float32, true),
            Field::new("status", DataType::Utf8, true),
            Field::new("valid", DataType::Boolean, true),
            tensor,
        ])
        .with_metadata([("method".to_owned(), method.to_owned())]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(ids.to_vec())),
            Arc::new(StringArray::from(vec!["nodule"; ids.len()])),
            Arc::new(Float32Array::from(vec![1.5; ids.len()])),
            Arc::new((0..ids.len()).map(|row| Some(status(row))).collect::<StringArray>()),
            Arc::new(BooleanArray::from((0..ids.len()).map(|row| row != 1).collect::<Vec<_>>())),
            Arc::new(maps),
        ];
        let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
        self.add("maps", axes, artifact::SALIENCY, "saliency.arrow", |path| {
            let mut writer = FileWriter::try_new(File::create(path).unwrap(), &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.finish().unwrap();
        });
    }

    fn images(&self, ids: &[&str]) {
        let picture = |index: usize| {
            png(&RgbImage::from_fn(SIDE, SIDE, |x, y| {
                Rgb([(x * 20) as u8, (y * 20) as u8, index as u8 * 60])
            })
            .into())
        };
        self.pictures("images", artifact::IMAGES, "image", ids, picture);
    }

    fn masks(&self, ids: &[&str]) {
        let mask = |_| {
            png(&GrayImage::from_fn(SIDE, SIDE, |x, y| {
                Luma([u8::from((4..8).contains(&x) && (3..9).contains(&y))])
            })
            .into())
        };
        self.pictures("masks", artifact::MASKS, "mask", ids, mask);
    }

    fn pictures(
        &self,
        input: &str,
        kind: ArtifactType,
        column: &str,
        ids: &[&str],
        picture: impl Fn(usize) -> Vec<u8>,
    ) {
        let encoded: Vec<Vec<u8>> = (0..ids.len()).map(picture).collect();
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(&encoded));
        let field = Arc::new(Field::new("bytes", DataType::Binary, true));
        let content: ArrayRef = Arc::new(StructArray::from(vec![(field, bytes)]));
        let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
        self.table(input, &[], kind, &batch(vec![("image_id", ids), (column, content)]));
    }

    fn labels(&self, rows: &[(&str, i64)], names: &[&str]) {
        let mut lists = ListBuilder::new(Int64Builder::new());
        for (_, label) in rows {
            lists.values().append_value(*label);
            lists.append(true);
        }
        let ids: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.0)).collect::<StringArray>());
        let plain = batch(vec![("image_id", ids), ("label", Arc::new(lists.finish()))]);
        let names = serde_json::to_string(names).unwrap();
        let schema = plain.schema().as_ref().clone().with_metadata([("label_names".to_owned(), names)]);
        self.table("labels", &[], artifact::LABELS, &plain.with_schema(Arc::new(schema)).unwrap());
    }

    fn log(&self, axes: &[(&str, &str)], losses: &[f64]) {
        let epochs: ArrayRef = Arc::new((0..losses.len() as i64).map(Some).collect::<Int64Array>());
        let metric: ArrayRef = Arc::new(StringArray::from(vec!["loss"; losses.len()]));
        let values: ArrayRef = Arc::new(Float64Array::from(losses.to_vec()));
        let batch = batch(vec![("epoch", epochs), ("metric", metric), ("value", values)]);
        self.table("training", axes, artifact::TRAINING_LOG, &batch);
    }

    fn scores(&self, axes: &[(&str, &str)], method: &str, values: &[f64]) {
        let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; values.len()])) };
        let batch = batch(vec![
            ("method", text(method)),
            ("metric", text("pointing_game")),
            ("value", Arc::new(Float64Array::from(values.to_vec()))),
        ]);
        self.table("scores", axes, artifact::ATTRIBUTION_SCORES, &batch);
    }

    /// Writes the report; returns the page and the other files.
    fn report(&self, params: &ReportParams) -> (String, BTreeMap<String, Vec<u8>>) {
        let out = TempDir::new().unwrap();
        let outputs = [("page".to_owned(), OutputWriter::new(out.path().to_owned()))].into();
        let inputs = self.inputs.lock().unwrap().clone();
        let scratch = self.folder.path().to_owned();
        let mut context = StageContext::new(inputs, outputs, &Quiet, 1, scratch, "{}".to_owned());
        StageKind::run(&Report, params, &mut context).unwrap();
        let mut files = BTreeMap::new();
        let mut folders = vec![out.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(out.path()).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
        (String::from_utf8(files.remove("index.html").unwrap()).unwrap(), files)
    }

    fn page(&self) -> String {
        self.report(&ReportParams::default()).0
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
        .unwrap()
}

fn png(image: &image::DynamicImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A study with something of everything.
fn whole_study() -> Study {
    let study = Study::new();
    for (model, auroc) in [("general", 0.81), ("medical", 0.93), ("random", 0.52)] {
        for (mode, gain) in [("linear_probe", 0.0), ("full", 0.03)] {
            let axes = [("model", model), ("mode", mode)];
            let rows = [
                ("auroc", auroc + gain, None),
                ("accuracy", auroc - 0.1 + gain, None),
                ("ece", 0.2 - gain, None),
            ];
            study.metrics("classification", &axes, &rows);
            study.log(&axes, &[2.0, 1.2 - gain, 0.7 - auroc / 2.0]);
        }
    }
    let ablations = [
        ("accuracy", 0.88, Some("both")),
        ("accuracy", 0.41, Some("text")),
        ("accuracy", 0.3, Some("image")),
    ];
    study.metrics("ablation", &[], &ablations);
    let ids = ["chest/test/0", "chest/test/1", "chest/test/2", "chest/test/3"];
    for model in ["general", "medical"] {
        study.saliency(&[("model", model)], "integrated_gradients", &ids, -1.0);
        study.saliency(&[("model", model)], "occlusion", &ids, 1.0);
        study.scores(&[("model", model)], "integrated_gradients", &[1.0, 0.0, 1.0, 1.0]);
        study.scores(&[("model", model)], "random", &[0.0, 0.0, 0.0, 1.0]);
    }
    study.images(&ids);
    study.masks(&ids[..3]);
    study.labels(&[(ids[0], 1), (ids[1], 1), (ids[2], 0), (ids[3], 0)], &["none", "nodule"]);
    study
}

#[test]
fn the_answer_comes_first_with_its_interval_and_how_clear_it_is() {
    let page = whole_study().page();
    let answer =
        page.find("best is <b>medical \u{b7} full</b>, AUROC 0.960 [0.940, 0.980] (n = 500)").unwrap();
    assert!(answer < page.find("<table>").unwrap());
    assert!(
        page.contains("before medical \u{b7} linear_probe with 0.930 [0.910, 0.950]; the intervals overlap.")
    );
}

#[test]
fn the_best_of_each_column_is_bold_and_marked_and_lower_may_be_better() {
    let page = whole_study().page();
    assert!(page.contains("<b>0.960 [0.940, 0.980]</b> \u{2605}"));
    assert!(page.contains("<b>0.170 [0.150, 0.190]</b> \u{2605}"), "the least calibration error");
}

#[test]
fn a_test_and_a_margin_are_no_figures_to_win_with() {
    let study = Study::new();
    for (model, p) in [("a - b", 0.64), ("a - c", 0.001)] {
        let rows = [
            ("accuracy_equivalence_p", p, None),
            ("accuracy_equivalence_p_holm", p, None),
            ("equivalence_margin", 0.02, None),
            ("auroc_difference", 0.1, None),
        ];
        study.metrics("comparison", &[("pair", model)], &rows);
    }
    let page = study.page();
    assert!(page.contains("0.640") && page.contains("equivalence"), "{page}");
    assert!(!page.contains("best is") && !page.contains("</b> \u{2605}"), "{page}");
}

#[test]
fn what_a_modality_alone_reaches_stands_under_bias() {
    let page = whole_study().page();
    let bias = &page[page.find("id=\"bias\"").unwrap()..page.find("id=\"transparency\"").unwrap()];
    assert!(bias.contains("0.410") && bias.contains("text"));
}

#[test]
fn an_ablation_is_answered_by_what_comes_nearest_with_less() {
    let study = Study::new();
    for (model, full) in [("general", 0.7), ("medical", 0.9)] {
        let rows = [
            ("full", "image", "accuracy", full),
            ("majority", "none", "accuracy", 0.3),
            ("border_only", "image", "accuracy", 0.6),
            ("border_only", "image", "accuracy_gap", full - 0.6),
            ("border_only", "image", "mcnemar_p", 0.03),
        ];
        study.ablations("without", &[("model", model)], &rows);
    }
    let page = study.page();
    let answer = &page[page.find("id=\"answer\"").unwrap()..page.find("id=\"bias\"").unwrap()];
    assert!(
        answer.contains("medical \u{b7} full \u{b7} image</b> 0.900, of what is given less to see at most")
    );
    assert!(answer.contains("medical \u{b7} border_only \u{b7} image 0.600 (gap 0.300)"), "{answer}");
    assert!(answer.find("medical").unwrap() < answer.find("general").unwrap(), "the best first");
    let bias = &page[page.find("id=\"bias\"").unwrap()..page.find("id=\"data\"").unwrap()];
    assert!(bias.contains("border_only") && bias.contains("McNemar p"));
    // A sentence is no table.
    for (place, model) in ["a", "b", "c"].into_iter().enumerate() {
        study.ablations(
            "without",
            &[("model", model)],
            &[("full", "image", "accuracy", 0.5 + 0.01 * place as f64)],
        );
    }
    let page = study.page();
    let answer = &page[page.find("id=\"answer\"").unwrap()..page.find("id=\"bias\"").unwrap()];
    assert!(answer.contains("of <b>c \u{b7}") && !answer.contains("of <b>b \u{b7}"), "{answer}");
    assert!(answer.contains("; 2 more in the table."), "{answer}");
}

#[test]
fn what_answers_owe_to_question_and_image_is_a_table_for_each_model() {
    let study = Study::new();
    for (model, full) in [("general", 0.6), ("medical", 0.8)] {
        let mut rows = Vec::new();
        for metric in ["accuracy", "accuracy_open", "accuracy_closed"] {
            let gap: &str = match metric {
                "accuracy" => "accuracy_gap",
                "accuracy_open" => "accuracy_open_gap",
                _ => "accuracy_closed_gap",
            };
            rows.extend([
                ("full", "both", metric, full),
                ("question_only", "text", metric, 0.5),
                ("question_only", "text", gap, full - 0.5),
                ("majority", "none", metric, 0.25),
            ]);
        }
        rows.push(("question_only", "text", "mcnemar_p_holm", 0.04));
        study.ablations("asked_without", &[("model", model)], &rows);
    }
    let page = study.page();
    let bias = &page[page.find("id=\"bias\"").unwrap()..page.find("id=\"data\"").unwrap()];
    let tables: Vec<&str> = bias.split("what the answers owe to question and image</caption>").collect();
    assert_eq!(tables.len(), 3);
    let cells = |table: &str| -> Vec<String> {
        let body = &table[table.find("<tbody>").unwrap()..table.find("</tbody>").unwrap()];
        let cells =
            body.split("<td").skip(1).map(|cell| &cell[cell.find('>').unwrap() + 1..cell.find('<').unwrap()]);
        cells.map(str::to_owned).collect()
    };
    let row = |full: &str, gap: &str, p: &str| [full, "0.500", "0.250", gap, p].map(str::to_owned).to_vec();
    let expected = [
        row("0.800", "0.300", "0.040"),
        row("0.800", "0.300", "\u{2013}"),
        row("0.800", "0.300", "\u{2013}"),
    ];
    assert_eq!(cells(tables[2]), expected.concat());
    assert!(cells(tables[1])[0] == "0.600" && !tables[2].contains("image only"));
}

#[test]
fn subgroups_do_not_compete_with_models() {
    let study = Study::new();
    study.subgroups("classified");
    let page = study.page();
    let performance = &page[page.find("id=\"performance\"").unwrap()..page.find("id=\"bias\"").unwrap()];
    assert!(performance.contains("0.800") && !performance.contains("0.990"));
    let bias = &page[page.find("id=\"bias\"").unwrap()..page.find("id=\"data\"").unwrap()];
    assert!(bias.contains("device=A") && bias.contains("0.990") && bias.contains("0.290"));
}

#[test]
fn the_gallery_shows_every_method_and_says_why_a_map_is_missing() {
    let page = whole_study().page();
    for alt in [
        "alt=\"original of chest/test/0\"",
        "alt=\"original of chest/test/0 with its mask outlined\"",
        "alt=\"overlay of integrated_gradients \u{b7} medical on chest/test/0\"",
        "alt=\"overlay of occlusion \u{b7} general on chest/test/2\"",
    ] {
        assert!(page.contains(alt), "{alt}");
    }
    assert!(page.contains("not_applicable: no attention"));
    assert!(!page.contains("original of chest/test/3"), "samples with a mask come first");
    assert!(page.contains("Shown are 3 of 4 explained samples, among those with a mask"));
    assert!(page.contains("<h4>chest/test/0 \u{2013} nodule</h4>"));
}

#[test]
fn explanation_scores_are_means_with_their_controls() {
    let page = whole_study().page();
    let scores = &page[page.find("id=\"transparency\"").unwrap()..];
    assert!(scores.contains("0.750 [0.301, 0.954]"));
    assert!(scores.contains("0.250 [0.046, 0.699]"));
    assert!(page.contains("the greatest of the controls is general \u{b7} random with 0.250"));
}

#[test]
fn recall_stands_beside_its_ceiling() {
    let study = Study::new();
    for (model, recall) in [("general", 0.02), ("medical", 0.22)] {
        let axes = [("model", model), ("domain", "medical")];
        study.metrics(
            "retrieval",
            &axes,
            &[("text_to_image_recall@10", recall, None), ("median_rank", 40.0, None)],
        );
    }
    for (domain, ceiling) in [("general", 0.9), ("medical", 0.503)] {
        let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let value: ArrayRef = Arc::new(Float64Array::from(vec![ceiling]));
        let columns =
            vec![("quantity", text("retrieval_t2i_recall@10")), ("split", text("test")), ("value", value)];
        study.table("expected", &[("domain", domain)], artifact::EXPECTED, &batch(columns));
    }
    let page = study.page();
    assert!(
        page.contains(
            "0.220 [0.200, 0.240]</b> \u{2605}<br><span class=\"note\">at most 0.503 possible</span>"
        )
    );
    assert!(page.contains("id=\"expected\"") && page.contains("retrieval_t2i_recall@10"));
}

#[test]
fn an_undefined_figure_shows_its_reason() {
    let study = Study::new();
    study.metrics("classification", &[("model", "a")], &[("auroc", f64::NAN, None), ("accuracy", 0.5, None)]);
    assert!(study.page().contains("<span class=\"reason\">one class only</span>"));
}

#[test]
fn a_report_of_nothing_is_a_page_too() {
    let page = Study::new().page();
    assert!(page.contains("No figures were given"));
}

#[test]
fn texts_from_the_data_stay_texts() {
    let hostile = "\"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'\u{202e}";
    let study = Study::new();
    study.metrics(hostile, &[("model", hostile)], &[(hostile, 0.5, Some(hostile)), ("x", 0.1, None)]);
    study.log(&[("model", hostile)], &[1.0, 0.5]);
    study.saliency(&[("model", hostile)], hostile, &[hostile, "b"], -1.0);
    study.images(&[hostile]);
    study.labels(&[(hostile, 0)], &[hostile]);
    let params = ReportParams {
        title: hostile.to_owned(),
        description: hostile.to_owned(),
        ..ReportParams::default()
    };
    let (page, _) = study.report(&params);
    assert!(page.matches("<script").count() == 1 && !page.contains("<img src=x"), "not escaped");
    // Outside of quotes a tag can only be one of ours.
    for tag in page.split('<').skip(1) {
        let name: String =
            tag.chars().take_while(|c| c.is_ascii_alphanumeric() || "/!".contains(*c)).collect();
        let known = "!DOCTYPE html head meta title style body a header h1 h2 h3 h4 p nav ul li main section div table \
                     caption thead tbody tr th td b br span figure figcaption img svg line rect path polyline text \
                     details summary code form label select option input output script";
        assert!(known.split_whitespace().any(|known| known == name.trim_start_matches('/')), "<{name}>");
    }
}

#[test]
fn the_page_is_accessible_and_asks_no_network() {
    let page = whole_study().page();
    assert_eq!(page.matches("<h1>").count(), 1);
    assert!(page.starts_with("<!DOCTYPE html><html lang=\"en\">"));
    assert_eq!(page.matches("<img ").count(), page.matches(" alt=\"").count());
    assert!(page.split("<th ").skip(1).all(|cell| cell.split('>').next().unwrap().contains("scope=")));
    assert_eq!(page.matches("<table").count(), page.matches("<caption>").count());
    assert!(!page.contains("http://") && !page.contains("https://"));
    // One script, and the policy lets no other run.
    let script = page.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
    let digest = super::picture::base64(&sha2::Sha256::digest(script));
    assert!(page.matches("<script").count() == 1 && page.contains(&format!("script-src 'sha256-{digest}'")));
    for image in page.split(" src=\"").skip(1) {
        assert!(image.starts_with("data:image/png;base64,"));
    }
}

#[test]
fn equal_inputs_give_equal_bytes_and_no_place_is_named() {
    let (first, second) = (whole_study(), whole_study());
    let (page, files) = first.report(&ReportParams::default());
    assert_eq!((page.clone(), files.clone()), second.report(&ReportParams::default()));
    let place = first.folder.path().to_str().unwrap();
    assert!(!page.contains(place), "a path is in the page");
    assert!(files.values().all(|bytes| !bytes.windows(place.len()).any(|window| window == place.as_bytes())));
}

#[test]
fn the_tables_behind_the_page_have_the_axes_as_columns() {
    let (page, files) = whole_study().report(&ReportParams::default());
    assert_eq!(
        files.keys().map(String::as_str).collect::<Vec<_>>(),
        ["data/attribution_scores.parquet", "data/metrics.parquet", "data/training_log.parquet"]
    );
    assert!(files.keys().all(|path| page.contains(&format!("href=\"{path}\""))));
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("metrics.parquet");
    std::fs::write(&path, &files["data/metrics.parquet"]).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let columns: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(columns[..4], ["input", "mode", "model", "task"]);
    let rows: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 6 * 3 + 3);
}

#[test]
fn pictures_beyond_the_limit_lie_beside_the_page() {
    let study = whole_study();
    let params = ReportParams { embed_limit_bytes: 2_000, ..ReportParams::default() };
    let (page, files) = study.report(&params);
    let beside: Vec<&String> = files.keys().filter(|path| path.starts_with("pictures/")).collect();
    assert!(!beside.is_empty() && page.len() < 60_000);
    assert!(beside.iter().all(|path| page.contains(&format!("src=\"{path}\""))));
}

/// Sheets hold what the gallery shows, the page says where, and nothing else changes.
#[test]
fn sheets_for_print_lie_beside_the_page() {
    let study = whole_study();
    let (plain, without) = study.report(&ReportParams::default());
    let (page, files) = study.report(&ReportParams { sheets: true, ..ReportParams::default() });
    assert!(!without.keys().any(|path| path.starts_with("sheets/")) && !plain.contains("sheets/"));
    assert!(page.contains("href=\"sheets/maps.csv\""));
    let sheets: Vec<&String> = files.keys().filter(|path| path.starts_with("sheets/")).collect();
    assert_eq!(sheets, ["sheets/maps-1.png", "sheets/maps.csv"]);
    let table = std::str::from_utf8(&files["sheets/maps.csv"]).unwrap();
    for shows in [
        "\"original of chest/test/0 with its mask outlined\"",
        "\"overlay of integrated_gradients \u{b7} medical on chest/test/0\"",
    ] {
        assert!(table.contains(shows), "{table}");
    }
    // Original, outline, and a map with its overlay of each of three sets; three samples below each other.
    let sheet = image::load_from_memory(&files["sheets/maps-1.png"]).unwrap();
    let columns: BTreeSet<&str> = table.lines().skip(1).filter_map(|line| line.split(',').nth(2)).collect();
    assert_eq!((sheet.width(), sheet.height()), (columns.len() as u32 * 264 + 8, 3 * 264 + 8));
    assert!(columns.len() >= 4, "{columns:?}");
}

#[test]
fn nonsense_parameters_are_refused() {
    let check = |params| StageKind::check(&Report, &params).len();
    assert_eq!(check(ReportParams::default()), 0);
    assert_eq!(check(ReportParams { max_gallery: -1, embed_limit_bytes: -1, ..ReportParams::default() }), 2);
}
