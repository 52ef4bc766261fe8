//! The stage kind `evaluate.classify`: predictions and figures, with a head or zero-shot.

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, ArtifactType, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort,
    ParameterProblem, StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::classification::{Classified, SPECIFICITY, Setting};
use crate::classifier::{Classifier, Prompts, check_prompts};
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::features::{EMBEDDINGS, Features};
use crate::finite::check_finite;
use crate::images::column_of;
use crate::labels::Labels;
use crate::medmnist_scores::{check_run, write_scores};
use crate::metrics::write_metrics;
use crate::model::{HeadDescription, Model};
use crate::neighbours::{Neighbours, Voters};
use crate::statistics::{Task, threshold_at_specificity};
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};

/// Parameters of `evaluate.classify`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits that are evaluated.
    pub splits: Vec<String>,
    /// Zero-shot: the texts of each class, by its name. Their embeddings are normalised, averaged and
    /// normalised again. Without this the checkpoint's head is used.
    pub prompts: Prompts,
    /// Zero-shot of independent labels, which need it: the texts that say that a class is not there. A class has the
    /// probability of its texts against these (CT-CLIP: `"Atelectasis is not present."`).
    pub absent: Prompts,
    /// The nearest images of the training split decide, instead of a head: what embeddings are worth without
    /// any training on them.
    pub neighbours: Option<Neighbours>,
    /// A column of the images table; every figure is also given for each of its values.
    pub subgroup: Option<String>,
    /// Sets of MedMNIST: the scores of each split are also written as the package's own evaluator reads them, as the output
    /// `medmnist`. This is what it calls the run, such as `1`.
    pub medmnist_run: Option<String>,
    /// Images per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
    /// Draws the resamples of intervals within classes: for test sets so small that a resample may lack a class. The
    /// intervals then take the shares of the classes for given, and each says so. Not of several labels at once.
    pub stratified: bool,
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
            neighbours: None,
            subgroup: None,
            medmnist_run: None,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
            stratified: false,
            seed: 0,
        }
    }
}

/// The split whose images vote, and whose commonest class is the floor.
const TRAIN: &str = "train";
/// The split that thresholds are chosen on.
const VAL: &str = "val";

/// The output with files of scores.
const SCORES: &str = "medmnist";

/// Evaluates a classifier.
pub struct EvaluateClassify;

impl StageKind for EvaluateClassify {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "evaluate.classify",
            summary: "predictions and figures of a classifier, with its head or zero-shot by prompts",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                )
                .class(InputClass::Reduce),
                InputPort::required("labels", &[artifact::LABELS], "their classes").class(InputClass::Lookup),
                InputPort::required(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model, with a head unless there are prompts",
                ),
                InputPort::optional(
                    EMBEDDINGS,
                    &[artifact::EMBEDDINGS],
                    "the images as `embed` has embedded them by the same model, so that it does not see them again",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let scores =
            || OutputPort::new(SCORES, ArtifactType::TREE, "files of scores, for MedMNIST's own evaluator");
        let always = [
            OutputPort::new("predictions", artifact::PREDICTIONS, "one row per image"),
            OutputPort::new("metrics", artifact::METRICS, "one row per figure, with intervals"),
        ];
        always.into_iter().chain(params.medmnist_run.iter().map(|_| scores())).collect()
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems = check_prompts(&params.prompts, &params.absent);
        if params.neighbours.is_some() && !params.prompts.is_empty() {
            problems.push(ParameterProblem {
                path: "neighbours".to_owned(),
                message: "`prompts` classify already".to_owned(),
                help: Some("leave out one of them".to_owned()),
            });
        }
        problems.extend(compute::check(&params.device));
        problems.extend(params.medmnist_run.iter().filter_map(|run| check_run("medmnist_run", run)));
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["absent", "neighbours", "medmnist_run", "stratified"]
    }

    /// Not by neighbours, which are images of the whole table; nor from embeddings, which leave little to be done; nor
    /// with files of scores, which parts have none of.
    fn is_row_wise(&self, params: &Params, has: &dyn Fn(&str) -> bool) -> bool {
        params.neighbours.is_none() && params.medmnist_run.is_none() && !has(EMBEDDINGS)
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn take_devices(&self, params: &mut Params, gpus: &[usize]) {
        compute::take_gpu(&mut params.device, gpus);
    }

    /// A model's logits do not depend on labels, but for which classes there are.
    fn lookup(
        &self,
        _params: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, labels): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        let classes = format!("{:?}", Labels::read(labels)?.description);
        Ok(Some(vec![Digest::of(classes.as_bytes()); parts.len()]))
    }

    fn merge(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut logits: Option<Logits> = None;
        for partial in context.partials("predictions") {
            let partial = Logits::read(partial)?;
            match &mut logits {
                Some(all) => all.append(partial),
                None => logits = Some(partial),
            }
        }
        let logits = logits.ok_or_else(|| StageError::failed("the table of images has no parts"))?;
        conclude(params, logits, context)
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let logits = logits(params, context)?;
        match context.is_part() {
            true => logits.write(context),
            false => conclude(params, logits, context),
        }
    }
}

/// What the model says of images, before it is held against their labels.
fn logits(params: &Params, context: &StageContext<'_>) -> Result<Logits, StageError> {
    let model = Model::load(context.input("checkpoint")?, params.compute())?;
    let labels = Labels::read(context.input("labels")?)?;
    let classifier = match params.neighbours {
        Some(_) => None,
        None => Some(Classifier::new(&model, &labels, &params.prompts)?.against(&params.absent)?),
    };
    let description = classifier.as_ref().map_or(&labels.description, |classifier| &classifier.description);
    let mut splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
    if is_binary(description) && !splits.is_empty() && !splits.contains(&VAL) {
        // For the threshold; its rows are no results.
        splits.push(VAL);
    }
    let images = Features::read(context, &splits, &model)?;
    let logits = match (&classifier, &params.neighbours) {
        (Some(classifier), _) => classifier.classify(&images, params.batch, context)?,
        (None, neighbours) => {
            let train = Features::read(context, &[TRAIN], &model)?;
            let voters = Voters { images: &train, targets: &labels.of(train.ids())? };
            let neighbours = neighbours.clone().unwrap_or_default();
            neighbours.classify(&model, &voters, &images, description, params.batch, context)?
        }
    };
    for (id, logits) in images.ids().iter().zip(&logits) {
        check_finite("logits", id, logits)?;
    }
    let protocol = classifier.as_ref().map_or("nearest neighbours", Classifier::protocol);
    let subgroups = match &params.subgroup {
        Some(column) => column_of(images.ids(), context.input("images")?, column)?,
        None => vec![None; images.ids().len()],
    };
    Ok(Logits {
        ids: images.ids().to_vec(),
        splits: images.splits().to_vec(),
        groups: images.groups().to_vec(),
        subgroups,
        logits,
        description: description.clone(),
        protocol: protocol.to_owned(),
    })
}

fn is_binary(description: &HeadDescription) -> bool {
    Task::parse(&description.task) == Task::Binary
}

/// Writes predictions and figures of images that the model has seen.
fn conclude(params: &Params, logits: Logits, context: &mut StageContext<'_>) -> Result<(), StageError> {
    let Logits { ids, splits, groups, subgroups, logits, description, protocol } = logits;
    let labels = Labels::read(context.input("labels")?)?;
    let targets = labels.of(&ids)?;
    let majority = labels.majority(TRAIN);
    if params.stratified && description.is_multi_label() {
        return Err(StageError::failed(
            "`stratified` draws samples within their classes, and those of several labels have no single one; leave \
             it out",
        ));
    }
    let classified = Classified { ids, splits, groups, targets, logits };
    let threshold = is_binary(&description).then(|| threshold(&classified, &description)).flatten();
    let wanted = |split: &String| params.splits.is_empty() || params.splits.contains(split);
    let mut metrics = Vec::new();
    for split in classified.distinct_splits().iter().filter(|split| wanted(split)) {
        let rows = classified.rows(split);
        let setting =
            Setting { split, seed: params.seed, threshold, majority, stratified: params.stratified };
        metrics.extend(classified.metrics(&description, &rows, setting));
        if let Some(column) = &params.subgroup {
            metrics.extend(classified.subgroup_metrics(&description, &rows, setting, column, &subgroups));
        }
    }
    for metric in &mut metrics {
        metric.protocol = Some(protocol.clone());
        metric.modality = Some("image".to_owned());
    }
    if let Some(run) = &params.medmnist_run {
        let splits: Vec<String> = classified.distinct_splits().into_iter().filter(wanted).collect();
        let labels = context.input("labels")?.clone();
        write_scores(context.output(SCORES)?, &labels, &classified, &description, &splits, run)?;
    }
    let provenance = context.provenance().to_owned();
    let mut table = classified.table(&description);
    if let Some(column) = params.subgroup.as_deref().filter(|column| table.column(column).is_none()) {
        // So that later figures may be given by subgroup too.
        table = table.with(column, Column::Utf8(subgroups));
    }
    let rows = table.rows_of_splits(&params.splits.iter().map(String::as_str).collect::<Vec<_>>());
    write(
        context.output("predictions")?,
        &TableSchema::predictions(),
        &table.select(&rows),
        WriteOptions::text(&provenance),
    )?;
    write_metrics(context.output("metrics")?, &metrics, &provenance)
}

/// The score that leaves the wanted share of the validation split's negatives below it.
fn threshold(classified: &Classified, description: &HeadDescription) -> Option<f64> {
    let scores = classified.scores(description, &classified.rows(VAL));
    let (scores, positive) = scores.column(scores.scored().next()?);
    threshold_at_specificity(&scores, &positive, SPECIFICITY)
}

/// Class logits of images, with what figures need of these beside their labels.
struct Logits {
    ids: Vec<String>,
    splits: Vec<String>,
    groups: Vec<Option<String>>,
    subgroups: Vec<Option<String>>,
    logits: Vec<Vec<f32>>,
    description: HeadDescription,
    protocol: String,
}

impl Logits {
    /// What a part gives: a table that only [`StageKind::merge`] reads, and no figures.
    fn write(self, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let rows = self.logits.into_iter().map(Some).collect();
        let table = Table::new()
            .with("id", Column::texts(self.ids))
            .with("split", Column::texts(self.splits))
            .with("patient", Column::Utf8(self.groups))
            .with("subgroup", Column::Utf8(self.subgroups))
            .with("logits", Column::ListFloat32(rows))
            .with_metadata("task", self.description.task)
            .with_metadata("label_names", serde_json::json!(self.description.classes).to_string())
            .with_metadata("protocol", self.protocol);
        let provenance = context.provenance().to_owned();
        let schema = TableSchema { name: "logits", version: 1, fields: &[], ..TableSchema::predictions() };
        let options = WriteOptions::row_wise(context, &provenance);
        write(context.output("predictions")?, &schema, &table, options)?;
        write_metrics(context.output("metrics")?, &[], &provenance)
    }

    fn read(partial: &Artifact) -> Result<Self, StageError> {
        let table = read(partial)?;
        let metadata = |key: &str| {
            let value = table.metadata.get(key).cloned();
            value.ok_or_else(|| StageError::failed(format!("a partial result does not say its `{key}`")))
        };
        let classes = serde_json::from_str(&metadata("label_names")?)
            .map_err(|error| StageError::because("reading the classes of a partial result", error))?;
        let texts = |name: &str| -> Result<Vec<String>, StageError> {
            Ok(table.strings(name)?.into_iter().map(str::to_owned).collect())
        };
        Ok(Self {
            ids: texts("id")?,
            splits: texts("split")?,
            groups: table.utf8("patient")?.to_vec(),
            subgroups: table.utf8("subgroup")?.to_vec(),
            logits: table.list_float32("logits")?.iter().map(|row| row.clone().unwrap_or_default()).collect(),
            description: HeadDescription { classes, task: metadata("task")? },
            protocol: metadata("protocol")?,
        })
    }

    fn append(&mut self, next: Self) {
        self.ids.extend(next.ids);
        self.splits.extend(next.splits);
        self.groups.extend(next.groups);
        self.subgroups.extend(next.subgroups);
        self.logits.extend(next.logits);
    }
}
