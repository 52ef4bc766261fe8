//! The tables of a block of rows.

use pipe_engine::StageError;
use rayon::prelude::*;

use super::acquisition::{Acquisition, Picture, marker_mask};
use super::captions::Fact;
use super::factors::Factors;
use super::general::{COLOURS, SHAPES};
use super::labels;
use super::params::{Params, QuestionSchema};
use super::questions::Question;
use super::rows::{Drawn, Row, acquisition};
use super::sites::{FINDINGS, MODALITIES, REGIONS};
use crate::png;
use crate::table::{Column, Table};

pub(super) const LICENCE: &str = "CC0-1.0";

pub(super) fn dataset(params: &Params) -> String {
    format!("phantom-{}", params.domain.name())
}

/// A picture with what an images table says of it.
pub(super) struct ImageRow<'a> {
    pub(super) id: String,
    pub(super) split: &'a str,
    pub(super) group: &'a str,
    pub(super) drawn: &'a Drawn,
    pub(super) factors: Option<&'a Factors>,
}

/// The columns that images and twins share.
pub(super) fn image_columns(params: &Params, rows: &[ImageRow<'_>]) -> Result<Table, StageError> {
    let of = |value: &dyn Fn(&Factors) -> Option<String>| {
        Column::Utf8(rows.iter().map(|row| row.factors.and_then(value)).collect())
    };
    let number = |value: &dyn Fn(&Factors) -> Option<f64>| {
        Column::Float64(rows.iter().map(|row| row.factors.and_then(value)).collect())
    };
    let pixels = |value: &dyn Fn(&Picture) -> usize| {
        Column::Int32(rows.iter().map(|row| Some(value(&row.drawn.picture) as i32)).collect())
    };
    let file = |row: &ImageRow<'_>| Some((row.drawn.png.clone(), format!("{}.png", file_name(&row.id))));
    let modality =
        |row: &ImageRow<'_>| Some(row.factors.map_or("picture", |one| one.site().modality).to_owned());
    let acquisition = acquisition(params);
    let inside = |row: &ImageRow<'_>| row.drawn.picture.mask().iter().filter(|inside| **inside).count();
    let inside: Vec<usize> = rows.iter().map(inside).collect();
    let share = |(row, inside): (&ImageRow<'_>, &usize)| {
        Some(*inside as f64 / (row.drawn.picture.size * row.drawn.picture.size) as f64)
    };
    let findings = |row: &ImageRow<'_>| {
        let named = |one: &Factors| one.subject.findings.iter().map(|one| one.name().to_owned()).collect();
        row.factors.map(named)
    };
    Ok(Table::new()
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.split)))
        .with("image", Column::Image(rows.iter().map(file).collect()))
        .with("width", pixels(&|picture| picture.size))
        .with("height", pixels(&|picture| picture.size))
        .with("channels", pixels(&|picture| picture.channels))
        .with("sha", Column::texts(rows.iter().map(|row| row.drawn.sha.to_hex())))
        .with("modality", Column::Utf8(rows.iter().map(modality).collect()))
        .with("region", of(&|factors| Some(factors.site().region.to_owned())))
        .with("licence", Column::texts(rows.iter().map(|_| LICENCE)))
        .with("group_id", Column::texts(rows.iter().map(|row| row.group)))
        .with("truth_finding", of(&|factors| Some(FINDINGS[factors.subject.finding()].to_owned())))
        .with("truth_findings", Column::ListUtf8(rows.iter().map(findings).collect()))
        .with("truth_class_weight", number(&|factors| class_weight(factors, params)))
        .with("truth_plane", of(&|factors| factors.site().plane.map(str::to_owned)))
        .with("truth_side", of(&|factors| word(factors.subject.left, "left", "right")))
        .with("truth_size", of(&|factors| word(factors.subject.large, "large", "small")))
        .with("truth_count", Column::Int64(rows.iter().map(|row| row.factors.map(count)).collect()))
        .with("truth_device", of(&|factors| word(Some(factors.device_b), "B", "A")))
        .with(
            "truth_marker",
            Column::Bool(rows.iter().map(|row| row.factors.map(|factors| factors.marker)).collect()),
        )
        .with("truth_marker_corner", of(&|factors| word(Some(factors.marker_right), "right", "left")))
        .with("truth_marker_mask", marker_masks(params, rows)?)
        .with("truth_contrast", number(&|factors| contrast(factors, acquisition)))
        .with("truth_dprime", Column::Float64(rows.iter().map(|row| row.drawn.picture.dprime).collect()))
        .with("truth_mask_pixels", Column::Int64(inside.iter().map(|inside| Some(*inside as i64)).collect()))
        .with("truth_area", Column::Float64(rows.iter().zip(&inside).map(share).collect()))
        .with(
            "truth_boxes",
            Column::ListInt64(rows.iter().map(|row| Some(row.drawn.picture.boxes.concat())).collect()),
        )
        .with_metadata("dataset", dataset(params))
        .with_metadata("licence", LICENCE))
}

fn file_name(id: &str) -> String {
    id.replace('/', "-")
}

fn word(value: Option<bool>, yes: &str, no: &str) -> Option<String> {
    value.map(|value| if value { yes } else { no }.to_owned())
}

fn count(factors: &Factors) -> i64 {
    factors.subject.findings.first().map_or(0, |one| one.count as i64)
}

/// The weight with which the generator chose the finding among those of its site.
fn class_weight(factors: &Factors, params: &Params) -> Option<f64> {
    let place = factors.site().findings.iter().position(|finding| *finding == factors.subject.finding())?;
    Some(factors.site().finding_weights(params.imbalance)[place])
}

fn contrast(factors: &Factors, acquisition: Acquisition) -> Option<f64> {
    Some(acquisition.contrast_on(factors.device_b))
}

/// The marker's pixels as a PNG file, where there is a marker.
fn marker_masks(params: &Params, rows: &[ImageRow<'_>]) -> Result<Column, StageError> {
    let size = params.size as usize;
    let file = |right| {
        let pixels: Vec<u8> =
            marker_mask(size, right).into_iter().map(|inside| u8::from(inside) * 255).collect();
        png::encode(&pixels, size, size, 1)
    };
    let corners = [file(false)?, file(true)?];
    let mask = |row: &ImageRow<'_>| {
        let factors = row.factors.filter(|factors| factors.marker)?;
        let bytes = corners[usize::from(factors.marker_right)].clone();
        Some((bytes, format!("{}-marker.png", file_name(&row.id))))
    };
    Ok(Column::Image(rows.iter().map(mask).collect()))
}

/// Facts as a JSON object.
fn json<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> String {
    let facts: serde_json::Map<String, serde_json::Value> =
        facts.into_iter().map(|fact| (fact.name.to_owned(), fact.value.clone().into())).collect();
    serde_json::Value::Object(facts).to_string()
}

/// The images of a block.
pub(super) fn images(params: &Params, rows: &[(Row, Drawn)]) -> Result<Table, StageError> {
    let image_rows: Vec<ImageRow<'_>> = rows
        .iter()
        .map(|(row, drawn)| ImageRow {
            id: row.id.clone(),
            split: row.place.split,
            group: &row.group,
            drawn,
            factors: row.source.factors(),
        })
        .collect();
    let place = |value: &dyn Fn(&Row) -> Option<String>| {
        Column::Utf8(rows.iter().map(|(row, _)| value(row)).collect())
    };
    Ok(image_columns(params, &image_rows)?
        .with("truth_facts", place(&|row| Some(json(&row.facts))))
        .with("truth_leak_of", place(&|row| row.place.leak_of.clone()))
        .with("truth_duplicate_of", place(&|row| row.place.duplicate_of.clone())))
}

/// A row of a table of labels.
pub(super) struct LabelRow<'a> {
    pub(super) id: String,
    pub(super) split: &'a str,
    /// The label before and after noise.
    pub(super) truth: Vec<i64>,
    pub(super) label: Vec<i64>,
}

/// The columns that labels of images and of twins share.
pub(super) fn label_columns(params: &Params, rows: &[LabelRow<'_>]) -> Table {
    let lists = |value: &dyn Fn(&LabelRow<'_>) -> Vec<i64>| {
        Column::ListInt64(rows.iter().map(|row| Some(value(row))).collect())
    };
    // With several bits there is no one class.
    let class = |row: &LabelRow<'_>| match row.truth.as_slice() {
        [class] if !labels::is_multi_label(params) => Some(*class),
        _ => None,
    };
    Table::new()
        .with("image_id", Column::texts(rows.iter().map(|row| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|row| row.split)))
        .with("label", lists(&|row| row.label.clone()))
        .with("truth_label", Column::Int64(rows.iter().map(class).collect()))
        .with("truth_labels", lists(&|row| row.truth.clone()))
        .with("truth_flipped", Column::Bool(rows.iter().map(|row| Some(row.label != row.truth)).collect()))
        .with_metadata("dataset", dataset(params))
        .with_metadata("task", labels::task_name(params))
        .with_metadata("label_names", serde_json::json!(labels::names(params)).to_string())
}

/// The labels of a block.
pub(super) fn labels(params: &Params, rows: &[(Row, Drawn)]) -> Table {
    let rows = rows.iter().map(|(row, _)| LabelRow {
        id: row.id.clone(),
        split: row.place.split,
        truth: row.truth.clone(),
        label: row.label.clone(),
    });
    label_columns(params, &rows.collect::<Vec<_>>())
}

/// The captions of a block.
pub(super) fn captions(params: &Params, rows: &[(Row, Drawn)], ids: &dyn Fn(usize) -> String) -> Table {
    let keywords: Vec<Vec<&str>> = rows
        .iter()
        .map(|(row, _)| {
            let wanted =
                |fact: &&Fact| ["finding", "modality", "region", "shape", "colour"].contains(&fact.name);
            row.facts.iter().filter(wanted).map(|fact| fact.value.as_str()).collect()
        })
        .collect();
    let of = |value: &dyn Fn(&Row) -> Option<String>| {
        Column::Utf8(rows.iter().map(|(row, _)| value(row)).collect())
    };
    let words = |word: &dyn Fn(&str) -> String| {
        let words = |keywords: &Vec<&str>| Some(keywords.iter().map(|keyword| word(keyword)).collect());
        Column::ListUtf8(keywords.iter().map(words).collect())
    };
    Table::new()
        .with("caption_id", Column::Int64(rows.iter().map(|(row, _)| Some(row.place.number(0))).collect()))
        .with("image_id", Column::texts(rows.iter().map(|(row, _)| row.id.clone())))
        .with("split", Column::texts(rows.iter().map(|(row, _)| row.place.split)))
        .with("caption", of(&|row| Some(row.caption.text.clone())))
        .with("cuis", words(&concept))
        .with("keywords", words(&str::to_owned))
        .with("truth_facts", of(&|row| Some(json(&row.stated))))
        .with(
            "truth_consistent",
            Column::Bool(rows.iter().map(|(row, _)| Some(row.is_consistent())).collect()),
        )
        .with("truth_caption_of", of(&|row| row.place.caption_of.map(ids)))
        .with_metadata("dataset", dataset(params))
        .with_metadata("task", "retrieval")
}

/// An invented concept id for a keyword: its place in the vocabulary.
fn concept(keyword: &str) -> String {
    let vocabulary = MODALITIES.iter().chain(&REGIONS).chain(&FINDINGS).chain(&SHAPES).chain(&COLOURS);
    let place = vocabulary.into_iter().position(|word| *word == keyword).unwrap_or_default();
    format!("P{:06}", place + 1)
}

/// The questions of a block.
pub(super) fn questions(params: &Params, rows: &[(Row, Drawn)]) -> Table {
    /// A row of the table.
    struct Asked<'a> {
        row: &'a Row,
        question: &'a Question,
        text: &'a str,
        id: i64,
        link: i64,
        paraphrase: bool,
    }
    let mut asked: Vec<Asked<'_>> = Vec::new();
    for (row, _) in rows {
        for (k, question) in row.questions.iter().enumerate() {
            let link = row.place.number(2 * k as u64);
            let texts = [Some(question.text.as_str()), question.paraphrase.as_deref()];
            for (paraphrase, text) in [false, true].into_iter().zip(texts) {
                let Some(text) = text else { continue };
                let id = link + i64::from(paraphrase);
                asked.push(Asked { row, question, text, id, link, paraphrase });
            }
        }
    }
    let text = |value: &dyn Fn(&Asked<'_>) -> Option<String>| Column::Utf8(asked.iter().map(value).collect());
    let texts = |value: &dyn Fn(&Asked<'_>) -> Option<Vec<String>>| {
        Column::ListUtf8(asked.iter().map(value).collect())
    };
    let vqa_rad = params.schema == QuestionSchema::VqaRad;
    let of_vqa_rad = |value: &str| vqa_rad.then(|| value.to_owned());
    let of_slake = |value: &str| (!vqa_rad).then(|| value.to_owned());
    let phrase = |one: &Asked<'_>| match (one.row.place.split == "test", one.paraphrase) {
        (false, false) => "freeform",
        (false, true) => "para",
        (true, false) => "test_freeform",
        (true, true) => "test_para",
    };
    let answer = |one: &Asked<'_>| Some(one.question.answer().to_owned());
    Table::new()
        .with("qid", Column::Int64(asked.iter().map(|one| Some(one.id)).collect()))
        .with("image_id", Column::texts(asked.iter().map(|one| one.row.id.clone())))
        .with("split", Column::texts(asked.iter().map(|one| one.row.place.split)))
        .with("question", Column::texts(asked.iter().map(|one| one.text)))
        .with("answer", text(&answer))
        .with("answer_norm", text(&answer))
        .with(
            "answer_type",
            text(&|one| Some(if one.question.topic.grammar().closed { "CLOSED" } else { "OPEN" }.to_owned())),
        )
        .with("question_type", text(&|one| of_vqa_rad(one.question.topic.grammar().vqa_rad)))
        .with(
            "question_types",
            texts(&|one| of_vqa_rad(one.question.topic.grammar().vqa_rad).map(|name| vec![name])),
        )
        .with("phrase_type", text(&|one| (vqa_rad || params.paraphrase).then(|| phrase(one).to_owned())))
        .with("lang", Column::texts(asked.iter().map(|_| "en")))
        .with("content_type", text(&|one| of_slake(one.question.topic.grammar().slake)))
        .with("base_type", text(&|_| of_slake("vqa")))
        .with("triple", texts(&|_| of_slake("vhead").map(|head| vec![head, "_".to_owned(), "_".to_owned()])))
        .with("link_id", text(&|one| Some(one.link.to_string())))
        .with("organ", text(&|one| organ(one.row, vqa_rad)))
        .with("truth_type", Column::texts(asked.iter().map(|one| one.question.topic.grammar().name)))
        .with(
            "truth_asked",
            text(&|one| one.question.case.finding.map(|finding| FINDINGS[finding].to_owned())),
        )
        .with("truth_leaky", Column::Bool(asked.iter().map(|one| Some(one.question.leaky)).collect()))
        .with("truth_needs", Column::texts(asked.iter().map(|one| one.question.needs())))
        .with_metadata("dataset", dataset(params))
        .with_metadata("task", "vqa")
}

/// The part of the body in VQA-RAD's `image_organ`, or in SLAKE's `location`.
fn organ(row: &Row, vqa_rad: bool) -> Option<String> {
    let region = row.source.factors()?.site().region;
    let name = match (region, vqa_rad) {
        ("chest", true) => "CHEST",
        ("chest", false) => "Lung",
        ("abdomen", true) => "ABD",
        ("abdomen", false) => "Abdomen",
        ("limb", true) => "LIMB",
        ("limb", false) => "Limb",
        (_, true) => "TISSUE",
        (_, false) => "Tissue",
    };
    Some(name.to_owned())
}

/// The boxes of a block, one for each lesion, as SLAKE has them: from the top left, in pixels.
pub(super) fn boxes(rows: &[(Row, Drawn)]) -> Table {
    let mut found: Vec<(&Row, &'static str, [f64; 4])> = Vec::new();
    for (row, Drawn { picture, .. }) in rows {
        for (sides, finding) in picture.boxes.iter().zip(&picture.box_findings) {
            let region = row.source.subject().map_or("object", |subject| subject.findings[*finding].name());
            found.push((row, region, sides.map(|side| side as f64)));
        }
    }
    let side = |place: usize| Column::Float64(found.iter().map(|(.., sides)| Some(sides[place])).collect());
    Table::new()
        .with("image_id", Column::texts(found.iter().map(|(row, ..)| row.id.clone())))
        .with("split", Column::texts(found.iter().map(|(row, ..)| row.place.split)))
        .with("region", Column::texts(found.iter().map(|(_, region, _)| *region)))
        .with("x", side(0))
        .with("y", side(1))
        .with("width", side(2))
        .with("height", side(3))
}

/// The masks of a block: one for each finding, or one for all objects.
pub(super) fn masks(rows: &[(Row, Drawn)]) -> Result<Table, StageError> {
    /// A row of the table.
    struct Masked<'a> {
        row: &'a Row,
        picture: &'a Picture,
        region: &'static str,
        mask: &'a [bool],
    }
    let mut masked: Vec<Masked<'_>> = Vec::new();
    for (row, Drawn { picture, .. }) in rows {
        for (place, mask) in picture.masks.iter().enumerate() {
            let region = row.source.subject().map_or("object", |subject| subject.findings[place].name());
            if mask.contains(&true) {
                masked.push(Masked { row, picture, region, mask });
            }
        }
    }
    let files = |what: &str, pixels: &(dyn Fn(&Masked<'_>) -> Vec<u8> + Sync)| {
        let file = |one: &Masked<'_>| -> Result<Option<(Vec<u8>, String)>, StageError> {
            let pixels = pixels(one);
            if pixels.is_empty() {
                return Ok(None);
            }
            let png = png::encode(&pixels, one.picture.size, one.picture.size, 1)?;
            // A file is named by its finding where there are several.
            let name = file_name(&one.row.id);
            let name = match one.picture.masks.len() {
                1 => format!("{name}-{what}.png"),
                _ => format!("{name}-{}-{what}.png", one.region),
            };
            Ok(Some((png, name)))
        };
        masked.par_iter().map(file).collect::<Vec<_>>().into_iter().collect::<Result<Vec<_>, _>>()
    };
    let masks = files("mask", &|one| one.mask.iter().map(|inside| u8::from(*inside) * 255).collect())?;
    let effects = files("effect", &|one| one.picture.effect.clone())?;
    let pixels = |one: &Masked<'_>| Some(one.mask.iter().filter(|inside| **inside).count() as i64);
    Ok(Table::new()
        .with("image_id", Column::texts(masked.iter().map(|one| one.row.id.clone())))
        .with("split", Column::texts(masked.iter().map(|one| one.row.place.split)))
        .with("region", Column::texts(masked.iter().map(|one| one.region)))
        .with("mask", Column::Image(masks))
        .with("pixels", Column::Int64(masked.iter().map(pixels).collect()))
        .with("truth_effect", Column::Image(effects)))
}
