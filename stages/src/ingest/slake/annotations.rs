//! What SLAKE says of its images beside questions: organs as masks, things as boxes, and facts.

use std::collections::BTreeMap;

use pipe_engine::StageError;

use super::Language;
use crate::ingest::json::parse;
use crate::ingest::pictures::grey_pixels;
use crate::ingest::rejects::Rejects;
use crate::ingest::source::{SourceFile, SourceFiles};
use crate::png;
use crate::table::{Column, Table};

/// Images with their split, in the order of ids.
type Splits<'a> = BTreeMap<&'a str, &'static str>;

/// A longer text file is no list of organs or facts.
const TEXT_LIMIT: u64 = 64 << 20;

fn text(file: &SourceFile) -> Result<String, StageError> {
    let bytes = file.read(TEXT_LIMIT).map_err(|reason| file.error(reason))?;
    String::from_utf8(bytes).map_err(|_| file.error("it is no UTF-8 text"))
}

/// What each grey value of a mask stands for: lines of `value:organ`.
fn organs(files: &SourceFiles) -> Result<BTreeMap<u8, String>, StageError> {
    let Some(file) = files.ending("mask.txt")? else { return Ok(BTreeMap::new()) };
    let mut organs = BTreeMap::new();
    for (index, line) in text(&file)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let entry =
            line.split_once(':').and_then(|(value, organ)| Some((value.trim().parse().ok()?, organ.trim())));
        let Some((value, organ)) = entry else {
            let reason = format!("row {}: `{line}` is no `grey value:organ`", index + 1);
            return Err(file.error(reason));
        };
        organs.insert(value, organ.to_owned());
    }
    Ok(organs)
}

/// One mask per image and grey value, organs in the order of their values.
pub(super) fn masks(
    files: &SourceFiles,
    images: &Splits<'_>,
    rejects: &mut Rejects,
) -> Result<Table, StageError> {
    let organs = organs(files)?;
    let (mut ids, mut splits, mut regions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut masks, mut pixels) = (Vec::new(), Vec::new());
    for (id, split) in images {
        let path = format!("imgs/{id}/mask.png");
        let Some(file) = files.ending(&path)? else { continue };
        let grey = match grey_pixels(&file) {
            Ok(grey) => grey,
            Err(reason) => {
                rejects.add(&file, None, Some(id), reason);
                continue;
            }
        };
        let mut counts = [0i64; 256];
        grey.pixels.iter().for_each(|value| counts[usize::from(*value)] += 1);
        for value in (1..=255u8).filter(|value| counts[usize::from(*value)] > 0) {
            let inside: Vec<u8> =
                grey.pixels.iter().map(|pixel| if *pixel == value { 255 } else { 0 }).collect();
            let region = organs.get(&value).cloned().unwrap_or_else(|| format!("class {value}"));
            ids.push((*id).to_owned());
            splits.push(*split);
            masks
                .push(Some((png::encode(&inside, grey.width, grey.height, 1)?, format!("{id}-{value}.png"))));
            regions.push(region);
            pixels.push(Some(counts[usize::from(value)]));
        }
    }
    Ok(Table::new()
        .with("image_id", Column::texts(ids))
        .with("split", Column::texts(splits))
        .with("region", Column::texts(regions))
        .with("mask", Column::Image(masks))
        .with("pixels", Column::Int64(pixels)))
}

/// One row per box: a list of `{"Liver": [x, y, width, height]}` per image, in pixels from the top left.
pub(super) fn boxes(
    files: &SourceFiles,
    images: &Splits<'_>,
    rejects: &mut Rejects,
) -> Result<Table, StageError> {
    let (mut ids, mut splits, mut regions) = (Vec::new(), Vec::new(), Vec::new());
    let mut sides: [Vec<Option<f64>>; 4] = Default::default();
    for (id, split) in images {
        let path = format!("imgs/{id}/detection.json");
        let Some(file) = files.ending(&path)? else { continue };
        let json = match parse(&file) {
            Ok(json) => json,
            Err(reason) => {
                rejects.add(&file, None, Some(id), reason);
                continue;
            }
        };
        let Some(detections) = json.as_array() else {
            rejects.add(&file, None, Some(id), "it is no list of boxes");
            continue;
        };
        for (index, detection) in detections.iter().enumerate() {
            for (region, numbers) in detection.as_object().into_iter().flatten() {
                let numbers: Option<Vec<f64>> = numbers
                    .as_array()
                    .and_then(|numbers| numbers.iter().map(serde_json::Value::as_f64).collect());
                match numbers.as_deref() {
                    Some(numbers @ [_, _, _, _]) => {
                        ids.push((*id).to_owned());
                        splits.push(*split);
                        regions.push(region.clone());
                        for (side, number) in sides.iter_mut().zip(numbers) {
                            side.push(Some(*number));
                        }
                    }
                    _ => rejects.add(
                        &file,
                        Some(index + 1),
                        Some(id),
                        format!("`{region}` has no four numbers"),
                    ),
                }
            }
        }
    }
    let [x, y, width, height] = sides.map(Column::Float64);
    Ok(Table::new()
        .with("image_id", Column::texts(ids))
        .with("split", Column::texts(splits))
        .with("region", Column::texts(regions))
        .with("x", x)
        .with("y", y)
        .with("width", width)
        .with("height", height))
}

/// The facts of a language: `#` between head, relation and tail, which may hold anything else.
pub(super) fn knowledge(
    files: &SourceFiles,
    language: Language,
    rejects: &mut Rejects,
) -> Result<Table, StageError> {
    let mut columns: [Vec<String>; 5] = Default::default();
    for file in files.within("KG") {
        let file = file?;
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let Some((lang, graph)) = name.strip_suffix(".csv").and_then(|name| name.split_once('_')) else {
            continue;
        };
        if language != Language::Both && lang != language.name() {
            continue;
        }
        // The first line names the columns.
        for (index, line) in text(&file)?.trim_start_matches('\u{feff}').lines().enumerate().skip(1) {
            if line.trim().is_empty() {
                continue;
            }
            let fields: Vec<&str> = line.splitn(3, '#').map(str::trim).collect();
            let [head, relation, tail] = fields[..] else {
                rejects.add(&file, Some(index + 1), None, "it is no `head#relation#tail`");
                continue;
            };
            for (column, value) in columns.iter_mut().zip([head, relation, tail, lang, graph]) {
                column.push(value.to_owned());
            }
        }
    }
    let names = ["head", "relation", "tail", "lang", "graph"];
    Ok(names
        .into_iter()
        .zip(columns)
        .fold(Table::new(), |table, (name, column)| table.with(name, Column::texts(column))))
}
