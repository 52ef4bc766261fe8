//! The stage kind `evaluate.classify`: predictions and figures, with a head or zero-shot.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::ops::linear;
use pipe_models::{DualEncoder, Trainable, normalise};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::classification::{Classified, write_metrics};
use crate::images::{ImageSet, batches};
use crate::labels::Labels;
use crate::model::{DEVICE, Model, checkpoint_error, tensor_error};
use crate::table::{TableSchema, WriteOptions, read_columns, write};

/// Parameters of `evaluate.classify`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits that are evaluated.
    pub splits: Vec<String>,
    /// Zero-shot: the texts of each class, by its name. Their embeddings are normalised, averaged and
    /// normalised again. Without this the checkpoint's head is used.
    pub prompts: BTreeMap<String, Vec<String>>,
    /// A column of the images table; every figure is also given for each of its values.
    pub subgroup: Option<String>,
    /// Images per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { splits: vec!["test".to_owned()], prompts: BTreeMap::new(), subgroup: None, batch: 64, seed: 0 }
    }
}

/// Evaluates a classifier.
pub struct EvaluateClassify;

impl StageKind for EvaluateClassify {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "evaluate.classify",
            summary: "predictions, AUROC and accuracy of a classifier, with its head or zero-shot by prompts",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::required("labels", &[artifact::LABELS], "their classes"),
                InputPort::required(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model, with a head unless there are prompts",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("predictions", artifact::PREDICTIONS, "one row per image"),
            OutputPort::new("metrics", artifact::METRICS, "one row per figure, with intervals"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        params
            .prompts
            .iter()
            .filter(|(_, texts)| texts.is_empty())
            .map(|(class, _)| ParameterProblem {
                path: format!("prompts.{class}"),
                message: "a class needs at least one text".to_owned(),
                help: None,
            })
            .collect()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let model = Model::load(context.input("checkpoint")?, Trainable::Frozen)?;
        let labels = Labels::read(context.input("labels")?)?;
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let images = ImageSet::read(context.input("images")?, &splits, &model.preprocessor, context)?;
        let targets = labels.of(&images.ids)?;
        let prototypes = match params.prompts.is_empty() {
            true => None,
            false => Some(prototypes(&model, &labels, params)?),
        };
        let all: Vec<usize> = (0..images.len()).collect();
        let mut logits = Vec::with_capacity(all.len());
        for rows in batches(&all, params.batch) {
            context.check_cancelled()?;
            let pixels = images.batch(rows)?;
            let batch = match &prototypes {
                None => model.logits(&pixels, None)?,
                Some(prototypes) => zero_shot(&model, &pixels, prototypes).map_err(tensor_error)?,
            };
            logits.extend(batch.to_vec2::<f32>().map_err(tensor_error)?);
            context.progress(logits.len() as u64, all.len() as u64, "images", &[]);
        }
        let description = match &model.head {
            Some(head) if prototypes.is_none() => {
                if head.description.classes != labels.description.classes {
                    let reason = format!(
                        "its classes are {:?}, those of the labels {:?}",
                        head.description.classes, labels.description.classes
                    );
                    return Err(StageError::input("head.json", reason));
                }
                head.description.clone()
            }
            _ => labels.description.clone(),
        };
        let classified = Classified {
            ids: images.ids.clone(),
            splits: images.splits.clone(),
            groups: images.groups.clone(),
            targets,
            logits,
        };
        let protocol = if prototypes.is_some() { "zero-shot" } else { "head" };
        let mut metrics = Vec::new();
        for split in classified.splits() {
            let rows = classified.rows(&split);
            metrics.extend(classified.metrics(&description, &split, &rows, params.seed));
            if let Some(column) = &params.subgroup {
                let values = subgroup(context, column, &images)?;
                let mut names: Vec<&String> = rows.iter().filter_map(|row| values[*row].as_ref()).collect();
                names.sort();
                names.dedup();
                for name in names {
                    let rows: Vec<usize> =
                        rows.iter().copied().filter(|row| values[*row].as_ref() == Some(name)).collect();
                    let figures = classified.metrics(&description, &split, &rows, params.seed);
                    metrics.extend(figures.into_iter().map(|mut metric| {
                        metric.subgroup = Some(format!("{column}={name}"));
                        metric
                    }));
                }
            }
        }
        for metric in &mut metrics {
            metric.protocol = Some(protocol.to_owned());
            metric.modality = Some("image".to_owned());
        }
        let provenance = context.provenance().to_owned();
        let table = classified.table(&description);
        write(
            context.output("predictions")?,
            &TableSchema::predictions(),
            &table,
            WriteOptions::text(&provenance),
        )?;
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

fn subgroup(
    context: &StageContext<'_>,
    column: &str,
    images: &ImageSet,
) -> Result<Vec<Option<String>>, StageError> {
    let table = read_columns(context.input("images")?, &["image_id", column])?;
    let by_id: BTreeMap<&str, &Option<String>> =
        table.strings("image_id")?.into_iter().zip(table.utf8(column)?).collect();
    Ok(images.ids.iter().map(|id| by_id.get(id.as_str()).and_then(|value| (*value).clone())).collect())
}

/// One unit vector per class: `[classes, width]`.
fn prototypes(model: &Model, labels: &Labels, params: &Params) -> Result<Tensor, StageError> {
    let tokenizer = model.tokenizer()?;
    let text = &model.clip.config().text;
    let unknown: Vec<&String> =
        params.prompts.keys().filter(|class| !labels.description.classes.contains(class)).collect();
    if !unknown.is_empty() {
        let message = format!(
            "prompts are given for {unknown:?}, which are no classes; those are {:?}",
            labels.description.classes
        );
        return Err(StageError::failed(message));
    }
    let mut rows = Vec::new();
    for class in &labels.description.classes {
        let texts = params
            .prompts
            .get(class)
            .ok_or_else(|| StageError::failed(format!("class `{class}` has no prompts")))?;
        let mut ids = Vec::new();
        for prompt in texts {
            ids.extend(tokenizer.encode(prompt, text.positions, text.pad).map_err(checkpoint_error)?.ids);
        }
        let mean = || {
            let ids = Tensor::from_vec(ids, (texts.len(), text.positions), &DEVICE)?;
            let embeddings = normalise(&model.clip.text_tower().embed_texts(&ids, None)?)?;
            normalise(&embeddings.mean_keepdim(0)?)
        };
        rows.push(mean().map_err(tensor_error)?);
    }
    Tensor::cat(&rows, 0).map_err(tensor_error)
}

fn zero_shot(model: &Model, pixels: &Tensor, prototypes: &Tensor) -> candle_core::Result<Tensor> {
    let images = normalise(&model.clip.image_tower().embed_images(pixels, None)?)?;
    linear(&images, prototypes, None)?.broadcast_mul(&model.clip.logit_scale().exp()?)
}
