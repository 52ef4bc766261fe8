//! The stage kind `evaluate.classify`: predictions and figures, with a head or zero-shot.

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::classification::{Classified, SPECIFICITY, Setting};
use crate::classifier::{Classifier, Prompts, check_prompts};
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::images::{column_of, read_pixels};
use crate::labels::Labels;
use crate::metrics::write_metrics;
use crate::model::{HeadDescription, Model};
use crate::statistics::{Task, threshold_at_specificity};
use crate::table::{TableSchema, WriteOptions, write};

/// Parameters of `evaluate.classify`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits that are evaluated.
    pub splits: Vec<String>,
    /// Zero-shot: the texts of each class, by its name. Their embeddings are normalised, averaged and
    /// normalised again. Without this the checkpoint's head is used.
    pub prompts: Prompts,
    /// Zero-shot of independent labels: the texts that say that a class is not there. A class has then the
    /// probability of its texts against these (CT-CLIP: `"Atelectasis is not present."`).
    pub absent: Prompts,
    /// A column of the images table; every figure is also given for each of its values.
    pub subgroup: Option<String>,
    /// Images per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory, not time.
    pub precision: Precision,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Params {
    /// Where and how precisely the model computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            splits: vec!["test".to_owned()],
            prompts: Prompts::new(),
            absent: Prompts::new(),
            subgroup: None,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
            seed: 0,
        }
    }
}

/// The split that thresholds are chosen on.
const VAL: &str = "val";

/// Evaluates a classifier.
pub struct EvaluateClassify;

impl StageKind for EvaluateClassify {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "evaluate.classify",
            summary: "predictions and figures of a classifier, with its head or zero-shot by prompts",
            implementation: 3,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                ),
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
        let mut problems = check_prompts(&params.prompts);
        problems.extend(check_prompts(&params.absent).into_iter().map(|problem| ParameterProblem {
            path: problem.path.replacen("prompts", "absent", 1),
            ..problem
        }));
        if params.prompts.is_empty() && !params.absent.is_empty() {
            problems.push(ParameterProblem {
                path: "absent".to_owned(),
                message: "it is set against `prompts`, of which there are none".to_owned(),
                help: None,
            });
        }
        problems.extend(compute::check(&params.device));
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["absent"]
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let labels = Labels::read(context.input("labels")?)?;
        let classifier = Classifier::new(&model, &labels, &params.prompts)?.against(&params.absent)?;
        let description = &classifier.description;
        let is_binary = Task::parse(&description.task) == Task::Binary;
        let mut splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        if is_binary && !splits.is_empty() && !splits.contains(&VAL) {
            // For the threshold; its rows are no results.
            splits.push(VAL);
        }
        let images = read_pixels(context.input("images")?, &splits, &model, context)?;
        let targets = labels.of(images.ids())?;
        let logits = classifier.classify(images.as_ref(), params.batch, context)?;
        let classified = Classified {
            ids: images.ids().to_vec(),
            splits: images.splits().to_vec(),
            groups: images.groups().to_vec(),
            targets,
            logits,
        };
        let threshold = is_binary.then(|| threshold(&classified, description)).flatten();
        let wanted = |split: &String| params.splits.is_empty() || params.splits.contains(split);
        let mut metrics = Vec::new();
        for split in classified.distinct_splits().iter().filter(|split| wanted(split)) {
            let rows = classified.rows(split);
            let setting = Setting { split, seed: params.seed, threshold };
            metrics.extend(classified.metrics(description, &rows, setting));
            if let Some(column) = &params.subgroup {
                let subgroup = column_of(images.ids(), context.input("images")?, column)?;
                metrics.extend(classified.subgroup_metrics(description, &rows, setting, column, &subgroup));
            }
        }
        for metric in &mut metrics {
            metric.protocol = Some(classifier.protocol().to_owned());
            metric.modality = Some("image".to_owned());
        }
        let provenance = context.provenance().to_owned();
        let table = classified.table(description);
        let rows = table.rows_of_splits(&params.splits.iter().map(String::as_str).collect::<Vec<_>>());
        write(
            context.output("predictions")?,
            &TableSchema::predictions(),
            &table.select(&rows),
            WriteOptions::text(&provenance),
        )?;
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// The score that leaves the wanted share of the validation split's negatives below it.
fn threshold(classified: &Classified, description: &HeadDescription) -> Option<f64> {
    let scores = classified.scores(description, &classified.rows(VAL));
    let (scores, positive) = scores.column(scores.scored().next()?);
    threshold_at_specificity(&scores, &positive, SPECIFICITY)
}
