//! Which metrics and which images are scored.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;

use super::Params;
use super::maps::{Maps, Subject, subjects};
use super::metric::{Metric, Needs};
use crate::framing::Framing;
use crate::table::read_columns;

/// Channels of flat images.
pub(super) const CHANNELS: usize = 3;

/// The metrics to compute, in their order.
pub(super) fn chosen(params: &Params, has_masks: bool, has_model: bool) -> Result<Vec<Metric>, StageError> {
    let allowed = |metric: &Metric| match metric.needs() {
        Needs::Nothing => true,
        Needs::Mask => has_masks,
        Needs::Model | Needs::Predictions | Needs::Method => has_model,
    };
    let wanted = params.wanted();
    match wanted.iter().find(|metric| !allowed(metric)) {
        Some(metric) if !params.metrics.is_empty() => {
            let needed = if metric.needs() == Needs::Mask { "masks" } else { "checkpoint" };
            Err(StageError::failed(format!("`{}` needs the input `{needed}`", metric.name())))
        }
        _ => Ok(wanted.into_iter().filter(allowed).collect()),
    }
}

/// The first images of the subjects that the model is asked about; all if there is no limit.
pub(super) fn first_images(subjects: &[Subject], limit: Option<i64>) -> Option<BTreeSet<String>> {
    let limit = limit?.max(1) as usize;
    let mut first = BTreeSet::new();
    for subject in subjects {
        if first.len() < limit {
            first.insert(subject.image.clone());
        }
    }
    Some(first)
}

/// A random subset of the images: those whose keys are least. All if there is no limit.
pub(super) fn random_images(
    subjects: &[Subject],
    limit: Option<usize>,
    seed: u64,
) -> Option<BTreeSet<String>> {
    let limit = limit?;
    let ids: BTreeSet<&str> = subjects.iter().map(|subject| subject.image.as_str()).collect();
    let draw = |id: &str| Key::derive("pipe explained again/1", seed, &[id.into()]).bits(1);
    let mut drawn: Vec<(u64, &str)> = ids.into_iter().map(|id| (draw(id), id)).collect();
    drawn.sort_unstable();
    Some(drawn.into_iter().take(limit).map(|(_, id)| id.to_owned()).collect())
}

/// What is known of all maps before they are read again, one method at a time.
pub(super) struct Scanned {
    /// What they explain.
    pub(super) subjects: Vec<Subject>,
    /// Slices, height and width; flat images are one slice.
    pub(super) sides: [usize; 3],
    /// What a model of flat images saw of volumes slice by slice, if a file says so.
    pub(super) slices: Option<String>,
    /// The axes that tell maps of a method apart.
    pub(super) axes: Vec<String>,
    /// Whether they explain answers to questions: models of these see images stretched to the square.
    pub(super) of_answers: bool,
    /// Whether they explain the similarity of images and texts.
    pub(super) of_texts: bool,
    /// Where maps lie on their images, if a file says so.
    pub(super) framing: Option<Framing>,
    /// Of each input the class whose logit is subtracted, if one is.
    pub(super) against: Vec<Option<String>>,
    /// Whether the model is right about what is explained, by subject, where a file says so.
    pub(super) correct: BTreeMap<Subject, bool>,
}

/// The subjects of all maps, and what the maps have in common.
pub(super) fn scan(params: &Params, context: &StageContext<'_>) -> Result<Scanned, StageError> {
    let mut sides: Option<[usize; 3]> = None;
    let mut slices = None;
    let mut known = BTreeSet::new();
    let mut inputs = Vec::new();
    let mut framing: Option<Framing> = None;
    let mut correct = BTreeMap::new();
    for input in context.inputs("saliency") {
        context.check_cancelled()?;
        let mut maps = Maps::read(input)?;
        maps.rows.iter_mut().for_each(|(_, map)| *map = Ok(Vec::new()));
        let first @ [depth, height, width] = *sides.get_or_insert(maps.shape);
        if maps.shape != first || (depth == 1 && height != width) {
            let in_words = |[depth, height, width]: [usize; 3]| match depth {
                1 => format!("{height} x {width}"),
                depth => format!("{depth} x {height} x {width}"),
            };
            let reason = format!(
                "maps of {} are {}; squares, or volumes, of one size are expected ({} came first)",
                maps.method,
                in_words(maps.shape),
                in_words(first)
            );
            return Err(StageError::input("saliency", reason));
        }
        slices = slices.or(maps.slices.clone());
        if !known.insert((maps.method.clone(), maps.baseline.clone(), maps.axes.clone())) {
            let reason = format!(
                "two inputs hold maps of {} and no axis tells them apart; name them `stage[axis=*].saliency`",
                maps.method
            );
            return Err(StageError::input("saliency", reason));
        }
        match (framing, maps.framing) {
            (Some(first), Some(other)) if first != other => {
                let reason = format!(
                    "maps of {} lie elsewhere on their images than those before: {other:?}, not {first:?}",
                    maps.method
                );
                return Err(StageError::input("saliency", reason));
            }
            (first, other) => framing = first.or(other),
        }
        for ((subject, _), is_right) in maps.rows.iter().zip(&maps.correct) {
            if let Some(is_right) = is_right {
                correct.entry(subject.clone()).or_insert(*is_right);
            }
        }
        inputs.push(maps);
    }
    let sides = sides.ok_or_else(|| StageError::input("saliency", "there are no maps"))?;
    let of_no_classes = inputs.iter().any(|maps| maps.of_answers);
    if of_no_classes && inputs.iter().any(|maps| !maps.of_answers) {
        let reason = "some maps explain answers or similarities with texts and some classes of images: score them apart";
        return Err(StageError::input("saliency", reason));
    }
    let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
    let table = read_columns(context.input("images")?, &["image_id", "split"])?;
    let all: BTreeSet<&str> = table.strings("image_id")?.into_iter().collect();
    let chosen = table.select(&table.rows_of_splits(&splits));
    let chosen: BTreeSet<&str> = chosen.strings("image_id")?.into_iter().collect();
    let limit = params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
    let mut ids = BTreeSet::new();
    let mut kept = Vec::new();
    for subject in subjects(&inputs) {
        let id = subject.image.as_str();
        if !all.contains(id) {
            return Err(StageError::input("images", format!("it has no image `{id}`, which was explained")));
        }
        if chosen.contains(id) && (ids.contains(id) || ids.len() < limit) {
            ids.insert(subject.image.clone());
            kept.push(subject);
        }
    }
    if kept.is_empty() && !context.is_part() {
        context.warn("no map is of an image of the chosen splits: there are no scores");
    }
    let of_answers = of_no_classes && kept.iter().any(|subject| subject.question.is_some());
    let of_texts = of_no_classes && !of_answers;
    let axes = varying_axes(&inputs);
    let against = inputs.into_iter().map(|maps| maps.against).collect();
    Ok(Scanned { subjects: kept, sides, slices, axes, of_answers, of_texts, framing, against, correct })
}

/// The axes that differ among the inputs. Those that do not are the axes of this stage's own folder, and
/// stored files hold no such values.
fn varying_axes(inputs: &[Maps]) -> Vec<String> {
    let names: BTreeSet<&String> = inputs.iter().flat_map(|maps| maps.axes.keys()).collect();
    let values = |name: &String| -> BTreeSet<Option<&String>> {
        inputs.iter().map(|maps| maps.axes.get(name)).collect()
    };
    names.into_iter().filter(|name| values(name).len() > 1).cloned().collect()
}
