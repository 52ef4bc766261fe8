//! The stage kind `evaluate.vqa`: answers to questions about images, and how many are right.

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::finite::check_finite;
use crate::images::batches;
use crate::lookup::images_asked_about;
use crate::metrics::write_metrics;
use crate::statistics::{Groups, bootstrap, mean};
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::vqa::{Answered, Answerer, Description, Examples, Scoring, asked};

/// Parameters of `evaluate.vqa`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits that are evaluated.
    pub splits: Vec<String>,
    /// The name of the protocol that the questions follow, if their table does not say it.
    pub protocol: Option<String>,
    /// A column of the table of questions; the accuracy is also given for each of its values.
    pub subgroup: Option<String>,
    /// Questions per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the models compute: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the encoder's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
    /// Decides the bootstrap.
    pub seed: i64,
}

impl Params {
    /// Where and how precisely the encoder computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            splits: vec!["test".to_owned()],
            protocol: None,
            subgroup: None,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
            seed: 0,
        }
    }
}

/// Asks a model.
pub struct EvaluateVqa;

impl StageKind for EvaluateVqa {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "evaluate.vqa",
            summary: "answers of a model to questions about images, and accuracies by type of question",
            implementation: 5,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images").class(InputClass::Lookup),
                InputPort::required(
                    "questions",
                    &[artifact::QUESTIONS],
                    "questions about them, with answers",
                )
                .class(InputClass::Reduce),
                InputPort::required("model", &[artifact::ANSWER_MODEL], "the model that answers"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("predictions", artifact::PREDICTIONS, "one row per question"),
            OutputPort::new("metrics", artifact::METRICS, "one row per figure, with intervals"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        compute::check(&params.device).into_iter().collect()
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

    fn lookup(
        &self,
        params: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, images): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        images_asked_about(parts, images, &params.splits).map(Some)
    }

    fn merge(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut all: Option<Table> = None;
        for partial in context.partials("predictions") {
            let partial = read(partial)?;
            all = Some(match all {
                Some(all) => all.append(partial)?,
                None => partial,
            });
        }
        let all = all.ok_or_else(|| StageError::failed("the table of questions has no parts"))?;
        conclude(params, &all, context)
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let answered = ask(params, context)?;
        if !context.is_part() {
            return conclude(params, &answered, context);
        }
        // What only `merge` reads, and no figures.
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::row_wise(context, &provenance);
        let schema = TableSchema { name: "answered", version: 1, fields: &[], ..TableSchema::predictions() };
        write(context.output("predictions")?, &schema, &answered, options)?;
        write_metrics(context.output("metrics")?, &[], &provenance)
    }
}

/// Columns beside those of the questions: the logits of the model's answers, and whether a question was taken for a
/// closed one.
const LOGITS: &str = "answer logits";
const ROUTED: &str = "routed closed";

/// The questions of the wanted splits, all columns, with what the model says.
fn ask(params: &Params, context: &StageContext<'_>) -> Result<Table, StageError> {
    let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
    let table = asked(context.input("questions")?, &splits)?;
    let (mut logits, mut routed) = (Vec::with_capacity(table.rows()), Vec::with_capacity(table.rows()));
    if table.rows() > 0 {
        let answerer = Answerer::load(context.input("model")?, params.compute())?;
        let examples = Examples::of(&table, context.input("images")?)?;
        let (sights, readings) = answerer.prepare(&examples, false, context)?;
        let rows: Vec<usize> = (0..examples.asked.len()).collect();
        for part in batches(&rows, params.batch) {
            context.check_cancelled()?;
            context.progress(logits.len() as u64, rows.len() as u64, "questions", &[]);
            let (own, types) = answerer.logits(&sights, &readings, &examples, part)?;
            for (place, (row, logits)) in part.iter().zip(&own).enumerate() {
                let closed = types.as_ref().map(|types| types[place]);
                let taken = answerer.description.branch(closed);
                check_finite("logits of question", &examples.asked[*row].id, &logits[taken])?;
            }
            logits.extend(own.into_iter().map(Some));
            routed.extend(types.into_iter().flatten().map(Some));
        }
    }
    // A model without branches routes nothing.
    routed.resize(table.rows(), None);
    Ok(table.with(LOGITS, Column::ListFloat32(logits)).with(ROUTED, Column::Bool(routed)))
}

/// Writes predictions and figures of questions that the model has answered.
fn conclude(params: &Params, table: &Table, context: &mut StageContext<'_>) -> Result<(), StageError> {
    if table.rows() == 0 {
        let splits = params.splits.join("`, `");
        return Err(StageError::failed(format!("there are no questions of split `{splits}`")));
    }
    let description = Description::read(context.input("model")?)?;
    let examples = Examples::of(table, context.input("images")?)?;
    let logits = table.list_float32(LOGITS)?;
    let logits: Vec<Vec<f32>> = logits.iter().map(|row| row.clone().unwrap_or_default()).collect();
    // Either all questions took a branch, or none.
    let routed: Option<Vec<bool>> = table.bools(ROUTED)?.iter().copied().collect();
    let protocol = description.protocol(params.protocol.as_deref().or(examples.protocol.as_deref()));
    let protocol = protocol.as_deref();
    let subgroup = match &params.subgroup {
        Some(column) => Some((column, table.as_text(column)?)),
        None => None,
    };
    let distinct: Vec<&str> = {
        let mut names: Vec<&str> = examples.asked.iter().map(|one| one.split.as_str()).collect();
        names.dedup();
        names.sort_unstable();
        names.dedup();
        names
    };
    let mut metrics = Vec::new();
    for split in distinct {
        let rows = examples.rows(split);
        let answered = Answered {
            examples: &examples,
            description: &description,
            logits: rows.iter().map(|row| logits[*row].clone()).collect(),
            routed: routed.as_ref().map(|routed| rows.iter().map(|row| routed[*row]).collect()),
            rows,
        };
        let scoring = Scoring { split, seed: params.seed, protocol };
        let mut own = answered.metrics(scoring);
        if let (Some((column, values)), Some(overall)) = (&subgroup, own.first().cloned()) {
            own.extend(by_value(&answered, &overall, column, values, params.seed));
        }
        metrics.extend(own);
    }
    let rows = (0..examples.asked.len()).collect();
    let all = Answered { examples: &examples, description: &description, rows, logits, routed };
    let provenance = context.provenance().to_owned();
    let mut predictions = all.table(protocol);
    if let Some((column, values)) = subgroup
        && predictions.column(column).is_none()
    {
        // So that later figures may be given by subgroup too.
        predictions = predictions.with(column, Column::Utf8(values));
    }
    write(
        context.output("predictions")?,
        &TableSchema::predictions(),
        &predictions,
        WriteOptions::text(&provenance),
    )?;
    write_metrics(context.output("metrics")?, &metrics, &provenance)
}

/// The accuracy of the questions of each value of a column.
fn by_value(
    answered: &Answered<'_>,
    overall: &crate::metrics::Metric,
    column: &str,
    values: &[Option<String>],
    seed: i64,
) -> Vec<crate::metrics::Metric> {
    let own: Vec<Option<&String>> = answered.rows.iter().map(|row| values[*row].as_ref()).collect();
    let mut names: Vec<&String> = own.iter().copied().flatten().collect();
    names.sort();
    names.dedup();
    let correct = answered.correct();
    let images = &answered.examples.images;
    let figure = |name: &&String| {
        let places: Vec<usize> = (0..own.len()).filter(|place| own[*place] == Some(*name)).collect();
        let right: Vec<f64> = places.iter().map(|place| f64::from(u8::from(correct[*place]))).collect();
        let image = |place: &usize| &images[answered.examples.asked[answered.rows[*place]].image];
        let groups: Vec<Option<String>> = places.iter().map(|place| Some(image(place).id.clone())).collect();
        let estimate = bootstrap(&Groups::new(&groups), seed as u64, |weights| mean(&right, weights));
        let mut metric = overall.clone();
        metric.subgroup = Some(format!("{column}={name}"));
        (metric.estimate, metric.n) = (estimate, places.len());
        metric
    };
    names.iter().map(figure).collect()
}
