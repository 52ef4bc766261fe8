//! From inputs to the table of scores, method by method.

mod one_method;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use pipe_attribution::Passes;
use pipe_attribution::metrics::{Mask, Prediction, Shape};
use pipe_engine::{StageContext, StageError};
use rayon::prelude::*;

use super::Params;
use super::choice::{Scanned, chosen, first_images, random_images, scan};
use super::controls::Control;
use super::explaining::Explaining;
use super::faithfulness::Faithfulness;
use super::layers::RandomLayers;
use super::maps::{Maps, Subject};
use super::metric::{Metric, Needs};
use super::references::References;
use super::rows::{Rows, Scored};
use super::seen::{Seen, Shown};
use super::similarities::{OTHERS, class_of, with_texts};
use crate::attribute::{Again, Method};
use crate::images::{Pixels, count_passes};
use crate::mean_image::MeanImages;
use crate::model::{Model, tensor_error};
use crate::table::Table;
use crate::target::{ClassScore, ClassTarget, class_index};

/// Everything that is read before the first map is scored.
pub(super) struct Scoring<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    metrics: Vec<Metric>,
    model: Option<Model>,
    /// The digest of the checkpoint.
    checkpoint: Option<String>,
    subjects: Vec<Subject>,
    /// The class of each subject in the model's head.
    classes: Vec<Option<usize>>,
    /// Whether the maps explain the similarity of images and texts, which are classes here.
    of_texts: bool,
    /// Of each subject whether the model is right about it, if a file says so.
    is_right: Vec<Option<bool>>,
    /// Of each input the class whose logit is subtracted, if one is.
    against: Vec<Option<usize>>,
    /// The images that the model is asked about; all if there is no limit.
    asked: Option<BTreeSet<String>>,
    /// The images whose maps are explained again; all if there is no limit.
    explained: Option<BTreeSet<String>>,
    images: Box<dyn Pixels>,
    masks: Option<BTreeMap<String, Mask>>,
    removed: References,
    /// Mean training images, for the control that compares with them.
    means: Option<MeanImages>,
    shape: Shape,
    /// Axes that tell maps of one method apart.
    axes: Vec<String>,
}

/// What the maps of one method are scored with, or why not.
struct Asking<'a, 'c> {
    faithfulness: Result<&'a Faithfulness<'a, 'c>, String>,
    explaining: Result<&'a Explaining<'a, 'c>, String>,
    /// The predicted class of each subject's image.
    predicted: Option<&'a [usize]>,
}

/// One map of a method, or why there is none.
type MapOf = Result<Vec<f64>, String>;

impl<'a, 'c> Scoring<'a, 'c> {
    /// Reads all inputs but the maps themselves.
    ///
    /// # Errors
    /// If an input is damaged, or does not fit the others.
    pub(super) fn read(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let mut model = match context.optional_input("checkpoint") {
            Some(artifact) => Some(Model::load(artifact, params.compute())?),
            None => None,
        };
        let has_masks = context.optional_input("masks").is_some();
        let metrics = chosen(params, has_masks, model.is_some())?;
        let Scanned { subjects, sides, slices, axes, of_answers, of_texts, framing, against, correct } =
            scan(params, context)?;
        if of_answers && model.is_some() {
            let reason =
                "the maps explain answers to questions, which no classifier gives: leave `checkpoint` out";
            return Err(StageError::input("saliency", reason));
        }
        if let Some(model) = model.as_mut().filter(|_| of_texts) {
            with_texts(model, &subjects, &against, params.batch, context)?;
        }
        let class = |subject: &Subject| match (&model, &subject.target) {
            (Some(model), Some(text)) if of_texts => class_of(model, text),
            _ => subject.class,
        };
        let classes = subjects.iter().map(class).collect();
        let against = against.iter().map(|name| subtracted(model.as_ref(), name.as_deref()));
        let against = against.collect::<Result<_, _>>()?;
        let is_right = subjects.iter().map(|subject| correct.get(subject).copied()).collect();
        let wanted: BTreeSet<&str> = subjects.iter().map(|subject| subject.image.as_str()).collect();
        let asked = first_images(&subjects, params.model_limit);
        let explained = random_images(&subjects, params.explained(), params.seed as u64);
        let shown =
            Shown { params, sides, slices, of_answers, framing, model: model.as_ref(), wanted, context };
        let Seen { images, masks, removed, means, shape } =
            if sides[0] > 1 { shown.volumes()? } else { shown.flat()? };
        let checkpoint = context.optional_input("checkpoint").map(|artifact| artifact.digest.to_hex());
        Ok(Self {
            params,
            context,
            metrics,
            model,
            checkpoint,
            subjects,
            classes,
            of_texts,
            asked,
            explained,
            is_right,
            against,
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
        let targets_of = |against: Option<usize>| -> Vec<ClassTarget> {
            let of = |class: &Option<usize>| ClassTarget { class: class.unwrap_or(0), against };
            self.classes.iter().map(of).collect()
        };
        let targets = targets_of(None);
        let asks = |needs: Needs| self.metrics.iter().any(|metric| metric.needs() == needs);
        // Controls follow what all maps explain, or where these differ the logit.
        let of_controls = self.against.first().copied().flatten();
        let of_controls = of_controls.filter(|class| self.against.iter().all(|other| *other == Some(*class)));
        let wanted: BTreeSet<Option<usize>> = self.against.iter().copied().chain([of_controls]).collect();
        let margins: BTreeMap<Option<usize>, Vec<ClassTarget>> =
            wanted.into_iter().map(|against| (against, targets_of(against))).collect();
        let scores = match &self.model {
            Some(model) if asks(Needs::Model) => {
                let score = || ClassScore::new(model, &targets);
                let logits = followed(model, &margins)?;
                Some((logits, score()?.probability(), score()?.agreement()))
            }
            _ => None,
        };
        let layers = match &self.model {
            Some(model) if asks(Needs::Method) => {
                Some(RandomLayers::new(model, self.params.seed as u64, self.of_texts))
            }
            _ => None,
        };
        let controls = self.controls();
        let inputs = self.context.inputs("saliency");
        let layer_count = layers.as_ref().map_or(0, RandomLayers::len);
        let total = self.images_in_all(inputs.len(), inputs.len() + controls.len(), layer_count);
        let done = Cell::new(0);
        let faithfulness: BTreeMap<Option<usize>, Faithfulness<'_, '_>> = match &scores {
            Some((logits, probability, agreement)) => {
                let of = |against: Option<usize>, logit| Faithfulness {
                    logit,
                    against,
                    // A text alone has no probability.
                    probability: if self.of_texts { logit } else { probability },
                    agreement,
                    images: self.images.as_ref(),
                    removed: &self.removed,
                    shape: self.shape,
                    params: self.params,
                    context: self.context,
                    done: &done,
                    total,
                };
                logits.iter().map(|(against, logit)| (*against, of(*against, logit))).collect()
            }
            None => BTreeMap::new(),
        };
        let predicted = match &self.model {
            Some(model) if asks(Needs::Predictions) && !self.of_texts => Some(self.predictions(model)?),
            _ => None,
        };
        let mut all = Vec::new();
        for (input, against) in inputs.iter().zip(&self.against) {
            self.context.check_cancelled()?;
            let maps = Maps::read(input)?;
            let right_of: BTreeMap<&Subject, bool> = maps
                .rows
                .iter()
                .zip(&maps.correct)
                .filter_map(|((subject, _), is_right)| Some((subject, (*is_right)?)))
                .collect();
            let is_right = self.subjects.iter().map(|subject| right_of.get(subject).copied()).collect();
            let prediction = prediction_of(&maps.method);
            let mut by_subject: BTreeMap<Subject, MapOf> = maps.rows.into_iter().collect();
            let own: Vec<(usize, MapOf)> = self
                .subjects
                .iter()
                .enumerate()
                .filter_map(|(index, subject)| Some((index, by_subject.remove(subject)?)))
                .collect();
            let other = match (&maps.checkpoint, &self.checkpoint) {
                (Some(explained), Some(ours)) if explained != ours => {
                    Some("the map explains another model than `checkpoint`".to_owned())
                }
                _ if self.of_texts && maps.against.as_deref() == Some(OTHERS) => Some(
                    "the map explains a lead over the captions of other images, which are no input here"
                        .to_owned(),
                ),
                _ => None,
            };
            let again = match (&self.model, &other) {
                (Some(model), None) if layers.is_some() => Again::new(
                    maps.params.as_deref(),
                    self.params.batch,
                    model,
                    self.images.as_ref(),
                    self.context,
                )?,
                (_, Some(reason)) => Err(reason.clone()),
                _ => Err("there is no checkpoint".to_owned()),
            };
            let explaining = match (&again, &self.model, &layers) {
                (Ok(again), Some(model), Some(layers)) => Ok(Explaining {
                    again,
                    model,
                    of_texts: self.of_texts,
                    layers,
                    images: self.images.as_ref(),
                    shape: self.shape,
                    params: self.params,
                    context: self.context,
                    done: &done,
                    total,
                }),
                (Err(reason), ..) => Err(reason.clone()),
                _ => Err("there is no checkpoint".to_owned()),
            };
            let asking = Asking {
                faithfulness: match other {
                    Some(reason) => Err(reason),
                    None => faithfulness.get(against).ok_or_else(|| "there is no checkpoint".to_owned()),
                },
                explaining: explaining.as_ref().map_err(String::clone),
                predicted: predicted.as_deref(),
            };
            let rows = self.score(&own, &asking, prediction)?;
            all.push(Scored {
                method: maps.method,
                map_baseline: maps.baseline,
                axes: maps.axes,
                prediction,
                of_margins: against.is_some(),
                is_right,
                rows,
            });
        }
        for control in controls {
            let own = self.control_maps(control)?;
            let asking = Asking {
                faithfulness: faithfulness
                    .get(&of_controls)
                    .ok_or_else(|| "there is no checkpoint".to_owned()),
                explaining: Err("a control explains nothing, and so nothing again".to_owned()),
                predicted: predicted.as_deref(),
            };
            let rows = self.score(&own, &asking, Prediction::Global)?;
            all.push(Scored {
                method: control.name().to_owned(),
                map_baseline: None,
                axes: BTreeMap::new(),
                prediction: Prediction::Global,
                of_margins: of_controls.is_some(),
                is_right: self.is_right.clone(),
                rows,
            });
        }
        let rows = Rows {
            params: self.params,
            metrics: &self.metrics,
            subjects: &self.subjects,
            groups: self.places().into_iter().map(|place| self.images.groups()[place].clone()).collect(),
            masks: self.masks.as_ref(),
            shape: self.shape,
            of_texts: self.of_texts,
            axes: &self.axes,
        };
        Ok(rows.tabulate(&all))
    }

    /// Images that will have been asked about or explained when all is done.
    fn images_in_all(&self, methods: usize, maps: usize, layers: usize) -> u64 {
        let count = |of: &dyn Fn(usize) -> bool| {
            (0..self.subjects.len()).filter(|subject| of(*subject)).count() as u64
        };
        let asked = count(&|subject| self.is_asked_about(subject)) * maps as u64;
        let explained = count(&|subject| self.is_explained(subject)) * methods as u64;
        self.metrics
            .iter()
            .map(|metric| match metric.needs() {
                Needs::Model => asked * Faithfulness::images_of(*metric, self.params, self.shape),
                Needs::Method => explained * Explaining::images_of(*metric, self.params, layers),
                _ => 0,
            })
            .sum()
    }

    /// The predicted class of each subject's image.
    fn predictions(&self, model: &Model) -> Result<Vec<usize>, StageError> {
        let places = self.places();
        let mut predicted = Vec::with_capacity(places.len());
        for rows in places.chunks(self.images.at_a_time(self.params.batch).max(1) as usize) {
            self.context.check_cancelled()?;
            let logits = model.logits(&self.images.batch(rows)?, None)?;
            let classes: Vec<u32> = logits
                .argmax(candle_core::D::Minus1)
                .and_then(|classes| classes.to_vec1())
                .map_err(tensor_error)?;
            predicted.extend(classes.into_iter().map(|class| class as usize));
        }
        count_passes(self.context, Passes { forward: places.len() as u64, backward: 0 });
        Ok(predicted)
    }

    /// Whether the map of a subject is explained again.
    fn is_explained(&self, subject: usize) -> bool {
        self.explained.as_ref().is_none_or(|chosen| chosen.contains(&self.subjects[subject].image))
    }

    /// Whether the image of a subject is among those that the model is asked about.
    fn is_asked_about(&self, subject: usize) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.contains(&self.subjects[subject].image))
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
        self.subjects.iter().map(|subject| places[subject.image.as_str()]).collect()
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
}

/// The score of each list of targets.
fn followed<'t>(
    model: &'t Model,
    targets: &'t BTreeMap<Option<usize>, Vec<ClassTarget>>,
) -> Result<BTreeMap<Option<usize>, ClassScore<'t>>, StageError> {
    targets.iter().map(|(against, targets)| Ok((*against, ClassScore::new(model, targets)?))).collect()
}

/// The class whose logit maps subtract. Without a model nothing is followed.
fn subtracted(model: Option<&Model>, name: Option<&str>) -> Result<Option<usize>, StageError> {
    match (model, name) {
        (Some(model), Some(OTHERS)) if class_of(model, OTHERS).is_none() => Ok(None),
        (Some(model), Some(name)) => class_index(&model.head()?.description, name).map(Some),
        _ => Ok(None),
    }
}

/// How the maps of a method predict what a change of the image costs.
fn prediction_of(method: &str) -> Prediction {
    let method: Option<Method> = serde_json::from_value(method.into()).ok();
    match method.is_some_and(Method::is_local) {
        true => Prediction::Local,
        false => Prediction::Global,
    }
}
