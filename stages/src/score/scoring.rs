//! From inputs to the table of scores, method by method.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use pipe_attribution::metrics::{Mask, Shape};
use pipe_engine::{StageContext, StageError};
use pipe_models::Preprocessor;
use rayon::prelude::*;

use super::controls::Control;
use super::faithfulness::{Asked, Faithfulness};
use super::map_metrics::Settings;
use super::maps::{Maps, Subject, subjects};
use super::masks;
use super::metric::{Metric, Needs};
use super::references::References;
use super::{Baseline, Mode, Params};
use crate::images::ImageSet;
use crate::mean_image::MeanImages;
use crate::model::{Model, tensor_error};
use crate::table::{Column, Table, read_columns};
use crate::target::{ClassScore, ClassTarget};

/// The original's tolerance of the pointing game, for maps of 224 pixels.
const TOLERANCE_AT_224: f64 = 15.0;

/// Channels of every image here.
const CHANNELS: usize = 3;

/// Everything that is read before the first map is scored.
pub(super) struct Scoring<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    metrics: Vec<Metric>,
    model: Option<Model>,
    /// The digest of the checkpoint.
    checkpoint: Option<String>,
    subjects: Vec<Subject>,
    /// The images that the model is asked about; all if there is no limit.
    asked: Option<BTreeSet<String>>,
    images: ImageSet,
    masks: Option<BTreeMap<String, Mask>>,
    removed: References,
    /// Mean training images, for the control that compares with them.
    means: Option<MeanImages>,
    shape: Shape,
    /// Axes that tell maps of one method apart.
    axes: Vec<String>,
}

/// A row of the table.
struct Row {
    subject: usize,
    metric: Metric,
    value: Result<f64, String>,
}

/// The rows of one method.
struct Scored {
    method: String,
    map_baseline: Option<String>,
    axes: BTreeMap<String, String>,
    rows: Vec<Row>,
}

/// One map of a method, or why there is none.
type MapOf = Result<Vec<f64>, String>;

impl<'a, 'c> Scoring<'a, 'c> {
    /// Reads all inputs but the maps themselves.
    ///
    /// # Errors
    /// If an input is damaged, or does not fit the others.
    pub(super) fn read(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let model = match context.optional_input("checkpoint") {
            Some(artifact) => Some(Model::load(artifact, params.compute())?),
            None => None,
        };
        let has_masks = context.optional_input("masks").is_some();
        let metrics = chosen(params, has_masks, model.is_some())?;
        let (subjects, shape, axes) = scan(params, context)?;
        let preprocessor = match &model {
            Some(model) if model.preprocessor()?.side != shape.height => {
                let reason = format!(
                    "its maps are {0} x {0}, the images of the checkpoint's model {1} x {1}",
                    shape.height,
                    model.preprocessor()?.side
                );
                return Err(StageError::input("saliency", reason));
            }
            Some(model) => model.preprocessor()?.clone(),
            None => Preprocessor::clip(shape.height),
        };
        let wanted: BTreeSet<&str> = subjects.iter().map(|subject| subject.id.as_str()).collect();
        let asked = params.model_limit.map(|limit| {
            let mut first = BTreeSet::new();
            for subject in &subjects {
                if first.len() < limit.max(1) as usize {
                    first.insert(subject.id.clone());
                }
            }
            first
        });
        let own = context.input("images")?;
        let images = ImageSet::read_only(own, &wanted, &preprocessor, context)?;
        let masks = match context.optional_input("masks") {
            Some(artifact) => {
                Some(masks::read(artifact, &params.regions, &preprocessor, &|id| wanted.contains(id))?)
            }
            None => None,
        };
        let read_means = |artifact| MeanImages::read(artifact, own, &images.ids, &preprocessor, context);
        // Without images nothing is compared with a mean.
        let means = match context.optional_input("reference").filter(|_| images.len() > 0) {
            Some(artifact) => Some(read_means(artifact)?),
            None => None,
        };
        let pixels = shape.pixels();
        let removed = match params.baseline {
            Baseline::Zero => References::Plain { channels: [0.0; CHANNELS], pixels },
            Baseline::Black => References::Plain { channels: preprocessor.black(), pixels },
            Baseline::Mean if images.len() == 0 => References::Plain { channels: [0.0; CHANNELS], pixels },
            Baseline::Mean => References::Mean(match &means {
                Some(means) => means.clone(),
                None => read_means(own)?,
            }),
        };
        let checkpoint = context.optional_input("checkpoint").map(|artifact| artifact.digest.to_hex());
        Ok(Self {
            params,
            context,
            metrics,
            model,
            checkpoint,
            subjects,
            asked,
            images,
            masks,
            removed,
            means,
            shape,
            axes,
        })
    }

    /// Scores every method and every control.
    ///
    /// # Errors
    /// If a map cannot be read, the model fails, or the run is stopped.
    pub(super) fn table(&self) -> Result<Table, StageError> {
        let targets: Vec<ClassTarget> = self
            .subjects
            .iter()
            .map(|subject| ClassTarget { class: subject.class.unwrap_or(0), against: None })
            .collect();
        let score = match &self.model {
            Some(model) if self.metrics.iter().any(|metric| metric.needs() == Needs::Model) => {
                Some(ClassScore::new(model, &targets)?.probability())
            }
            _ => None,
        };
        let controls = self.controls();
        let inputs = self.context.inputs("saliency");
        let asked = self.metrics.iter().filter(|metric| metric.needs() == Needs::Model).count();
        let subjects = (0..self.subjects.len()).filter(|subject| self.is_asked_about(*subject)).count();
        let curves = (asked * subjects * (inputs.len() + controls.len())) as u64;
        let steps = self.params.steps.max(1) as usize;
        let total = curves * Faithfulness::images_per_curve(self.shape.pixels(), steps);
        let done = Cell::new(0);
        let faithfulness = score.as_ref().map(|score| Faithfulness {
            score,
            images: &self.images,
            removed: &self.removed,
            shape: self.shape,
            steps,
            batch: self.params.batch.max(1) as usize,
            context: self.context,
            done: &done,
            total,
        });
        let mut all = Vec::new();
        for input in inputs {
            self.context.check_cancelled()?;
            let maps = Maps::read(input)?;
            let other = match (&maps.checkpoint, &self.checkpoint) {
                (Some(explained), Some(ours)) if explained != ours => {
                    Some("the map explains another model than `checkpoint`".to_owned())
                }
                _ => None,
            };
            let mut by_subject: BTreeMap<Subject, MapOf> = maps.rows.into_iter().collect();
            let own: Vec<(usize, MapOf)> = self
                .subjects
                .iter()
                .enumerate()
                .filter_map(|(index, subject)| Some((index, by_subject.remove(subject)?)))
                .collect();
            let rows = self.score(
                &own,
                faithfulness.as_ref().map_or(Err(None), |faithfulness| {
                    other.map_or(Ok(faithfulness), |reason| Err(Some(reason)))
                }),
            )?;
            all.push(Scored { method: maps.method, map_baseline: maps.baseline, axes: maps.axes, rows });
        }
        for control in controls {
            let own = self.control_maps(control)?;
            let rows = self.score(&own, faithfulness.as_ref().ok_or(None))?;
            all.push(Scored {
                method: control.name().to_owned(),
                map_baseline: None,
                axes: BTreeMap::new(),
                rows,
            });
        }
        Ok(self.tabulate(&all))
    }

    /// Whether the image of a subject is among those that the model is asked about.
    fn is_asked_about(&self, subject: usize) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.contains(&self.subjects[subject].id))
    }

    fn controls(&self) -> Vec<Control> {
        let mut controls = vec![Control::Random, Control::Center, Control::Edge];
        if self.means.is_some() {
            controls.push(Control::AbsDifferenceToReference);
        }
        controls
    }

    /// The row of a subject's image.
    fn places(&self) -> Vec<usize> {
        let places = self.images.places();
        self.subjects.iter().map(|subject| places[subject.id.as_str()]).collect()
    }

    fn control_maps(&self, control: Control) -> Result<Vec<(usize, MapOf)>, StageError> {
        let places = self.places();
        let seed = self.params.seed as u64;
        let map = |(index, subject): (usize, &Subject)| -> Result<(usize, MapOf), StageError> {
            let row = places[index];
            let reference = match (control, &self.means) {
                (Control::AbsDifferenceToReference, Some(means)) => match means.of(row) {
                    Ok(mean) => mean,
                    Err(reason) => return Ok((index, Err(reason))),
                },
                _ => &[],
            };
            let pixels = self.images.batch(&[row])?.flatten_all().and_then(|pixels| pixels.to_vec1());
            let pixels: Vec<f32> = pixels.map_err(tensor_error)?;
            Ok((index, Ok(control.map(&subject.id, seed, &pixels, reference, self.shape))))
        };
        self.subjects.par_iter().enumerate().map(map).collect()
    }

    /// All metrics of the maps of one method; without `faithfulness` those that need a model have its
    /// reason, or are left out if there is none.
    fn score(
        &self,
        maps: &[(usize, MapOf)],
        faithfulness: Result<&Faithfulness<'_, '_>, Option<String>>,
    ) -> Result<Vec<Row>, StageError> {
        let settings = self.settings(maps);
        let mut rows = Vec::new();
        for metric in &self.metrics {
            let values = match (metric.needs(), &faithfulness) {
                (Needs::Model, Ok(faithfulness)) => self.faithful(*metric, maps, faithfulness)?,
                (Needs::Model, Err(reason)) => {
                    let reason = reason.clone().unwrap_or_else(|| "there is no checkpoint".to_owned());
                    vec![Err(reason); maps.len()]
                }
                _ => maps
                    .par_iter()
                    .map(|(subject, map)| self.of_map(*metric, *subject, map.as_deref(), &settings))
                    .collect(),
            };
            let row = |((subject, _), value): (&(usize, MapOf), _)| Row {
                subject: *subject,
                metric: *metric,
                value,
            };
            rows.extend(maps.iter().zip(values).map(row));
        }
        Ok(rows)
    }

    fn settings(&self, maps: &[(usize, MapOf)]) -> Settings {
        let tolerance = TOLERANCE_AT_224 * self.shape.height as f64 / 224.0;
        let valid = || maps.iter().filter_map(|(_, map)| map.as_ref().ok());
        let together = (self.params.mode == Mode::Quantus).then(|| {
            let greatest = valid().flatten().fold(0.0f64, |greatest, value| greatest.max(value.abs()));
            (greatest, valid().count())
        });
        Settings {
            mode: self.params.mode.into(),
            tolerance: self.params.tolerance.unwrap_or(tolerance),
            together,
        }
    }

    fn of_map(
        &self,
        metric: Metric,
        subject: usize,
        map: Result<&[f64], &String>,
        settings: &Settings,
    ) -> Result<f64, String> {
        let map = map.map_err(String::clone)?;
        let value = match metric.needs() {
            Needs::Nothing => settings.alone(metric, map),
            _ => {
                let mask = self.mask(subject).ok_or("the image has no mask")?;
                settings.localised(metric, map, mask)
            }
        };
        value.map_err(|reason| reason.to_string())
    }

    fn mask(&self, subject: usize) -> Option<&Mask> {
        self.masks.as_ref()?.get(&self.subjects[subject].id)
    }

    /// A metric that asks the model, of those maps that can be asked about.
    fn faithful(
        &self,
        metric: Metric,
        maps: &[(usize, MapOf)],
        faithfulness: &Faithfulness<'_, '_>,
    ) -> Result<Vec<Result<f64, String>>, StageError> {
        let places = self.places();
        let mut outcomes: Vec<Result<(), String>> = Vec::with_capacity(maps.len());
        let mut asked = Vec::new();
        for (subject, map) in maps {
            let outcome = match map {
                Err(reason) => Err(reason.clone()),
                Ok(_) if self.subjects[*subject].class.is_none() => {
                    Err("the map explains no class, so there is no probability to follow".to_owned())
                }
                Ok(_) if !self.is_asked_about(*subject) => Err(format!(
                    "the model is asked about the first {} images only",
                    self.params.model_limit.unwrap_or_default()
                )),
                Ok(map) => {
                    let image = places[*subject];
                    let needed = if metric == Metric::Deletion { self.removed.check(image) } else { Ok(()) };
                    if needed.is_ok() {
                        asked.push(Asked { subject: *subject, image, map });
                    }
                    needed
                }
            };
            outcomes.push(outcome);
        }
        let mut values = faithfulness.values(metric, &asked)?.into_iter();
        let missing = || "the model gave no value".to_owned();
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.and_then(|()| values.next().ok_or_else(missing)))
            .collect())
    }

    fn tabulate(&self, all: &[Scored]) -> Table {
        let rows = || all.iter().flat_map(|scored| scored.rows.iter().map(move |row| (scored, row)));
        let text = |value: &dyn Fn(&Scored, &Row) -> Option<String>| {
            Column::Utf8(rows().map(|(scored, row)| value(scored, row)).collect())
        };
        let number = |value: &dyn Fn(&Row) -> Option<f64>| {
            Column::Float64(rows().map(|(_, row)| value(row)).collect())
        };
        let baseline = |metric: Metric| match metric {
            Metric::Deletion => Some(self.params.baseline.name().to_owned()),
            Metric::Insertion => Some("blur".to_owned()),
            _ => None,
        };
        let finite = |row: &Row| row.value.as_ref().ok().copied().filter(|value| value.is_finite());
        let reason = |row: &Row| match &row.value {
            Err(reason) => Some(reason.clone()),
            Ok(value) if !value.is_finite() => Some("the value is not finite".to_owned()),
            Ok(_) => None,
        };
        let mut table = Table::new()
            .with("id", text(&|_, row| Some(self.subjects[row.subject].id.clone())))
            .with("method", text(&|scored, _| Some(scored.method.clone())))
            .with("metric", text(&|_, row| Some(row.metric.name().to_owned())))
            .with("baseline", text(&|_, row| baseline(row.metric)))
            .with("value", number(&finite))
            .with("mask_share", number(&|row| self.mask(row.subject).map(Mask::share)))
            .with("mode", text(&|_, _| Some(self.params.mode.name().to_owned())))
            .with("reason", text(&|_, row| reason(row)))
            .with("target", text(&|_, row| self.subjects[row.subject].target.clone()))
            .with("map_baseline", text(&|scored, _| scored.map_baseline.clone()));
        for axis in &self.axes {
            table = table.with(axis, text(&|scored, _| scored.axes.get(axis).cloned()));
        }
        let facts = |metric: &Metric| {
            let score = (metric.needs() == Needs::Model).then_some("probability");
            let facts = serde_json::json!({ "direction": metric.direction(), "score": score });
            (metric.name().to_owned(), facts)
        };
        let axes: Vec<&str> =
            std::iter::once("map_baseline").chain(self.axes.iter().map(String::as_str)).collect();
        let facts: serde_json::Map<String, serde_json::Value> = self.metrics.iter().map(facts).collect();
        table
            .with_metadata("metrics", serde_json::Value::Object(facts).to_string())
            .with_metadata("axes", serde_json::json!(axes).to_string())
    }
}

/// The metrics to compute, in their order.
fn chosen(params: &Params, has_masks: bool, has_model: bool) -> Result<Vec<Metric>, StageError> {
    let allowed = |metric: &Metric| match metric.needs() {
        Needs::Nothing => true,
        Needs::Mask => has_masks,
        Needs::Model => has_model,
    };
    if params.metrics.is_empty() {
        let defined = |metric: &Metric| params.mode == Mode::Reference || metric.is_in_quantus();
        return Ok(Metric::ALL.into_iter().filter(|metric| allowed(metric) && defined(metric)).collect());
    }
    match params.metrics.iter().find(|metric| !allowed(metric)) {
        None => Ok(params.metrics.clone()),
        Some(metric) => {
            let needed = if metric.needs() == Needs::Mask { "masks" } else { "checkpoint" };
            Err(StageError::failed(format!("`{}` needs the input `{needed}`", metric.name())))
        }
    }
}

/// The subjects of all maps, their shape, and the axes that tell maps of a method apart. The maps
/// themselves are read again later, one method at a time.
fn scan(
    params: &Params,
    context: &StageContext<'_>,
) -> Result<(Vec<Subject>, Shape, Vec<String>), StageError> {
    let mut shape: Option<[usize; 2]> = None;
    let mut known = BTreeSet::new();
    let mut inputs = Vec::new();
    for input in context.inputs("saliency") {
        context.check_cancelled()?;
        let mut maps = Maps::read(input)?;
        maps.rows.iter_mut().for_each(|(_, map)| *map = Ok(Vec::new()));
        let [height, width] = *shape.get_or_insert(maps.shape);
        if maps.shape != [height, width] || height != width {
            let reason = format!(
                "maps of {} are {:?}; squares of one size are expected ({height} x {width} came first)",
                maps.method, maps.shape
            );
            return Err(StageError::input("saliency", reason));
        }
        if !known.insert((maps.method.clone(), maps.baseline.clone(), maps.axes.clone())) {
            let reason = format!(
                "two inputs hold maps of {} and no axis tells them apart; name them `stage[axis=*].saliency`",
                maps.method
            );
            return Err(StageError::input("saliency", reason));
        }
        inputs.push(maps);
    }
    let side = shape.ok_or_else(|| StageError::input("saliency", "there are no maps"))?[0];
    let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
    let table = read_columns(context.input("images")?, &["image_id", "split"])?;
    let all: BTreeSet<&str> = table.strings("image_id")?.into_iter().collect();
    let chosen = table.select(&table.rows_of_splits(&splits));
    let chosen: BTreeSet<&str> = chosen.strings("image_id")?.into_iter().collect();
    let limit = params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
    let mut ids = BTreeSet::new();
    let mut kept = Vec::new();
    for subject in subjects(&inputs) {
        let id = subject.id.as_str();
        if !all.contains(id) {
            return Err(StageError::input("images", format!("it has no image `{id}`, which was explained")));
        }
        if chosen.contains(id) && (ids.contains(id) || ids.len() < limit) {
            ids.insert(subject.id.clone());
            kept.push(subject);
        }
    }
    if kept.is_empty() && !context.is_part() {
        context.warn("no map is of an image of the chosen splits: there are no scores");
    }
    Ok((kept, Shape { channels: CHANNELS, height: side, width: side }, varying_axes(&inputs)))
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
