//! The stage kind `score.grid`: do explanations point at the cell of a grid of images that a class is seen in (Rao,
//! Boehle and Schiele 2022, "Towards better understanding attribution methods")?

mod aggregate;
mod grids;
mod method;
mod network;
mod scoring;
#[cfg(test)]
mod tests;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::aggregate::Aggregates;
pub use self::method::Explanation;
pub use self::network::Place;
use self::scoring::Scoring;
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::table::{TableSchema, WriteOptions, write};

/// What the classifier's head sees of a grid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Everything; the class of each cell is explained in turn (GridPG).
    GridPg,
    /// One cell, cut out of the image: whatever is attributed elsewhere is wrong (DiFull).
    DiFull,
    /// One cell of the last map, which sees little of its neighbours (DiPart).
    DiPart,
}

impl Setting {
    /// Its name as a metric.
    fn name(self) -> &'static str {
        match self {
            Self::GridPg => "grid_pg",
            Self::DiFull => "di_full",
            Self::DiPart => "di_part",
        }
    }
}

/// Parameters of `score.grid`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The methods.
    pub methods: Vec<Explanation>,
    /// What the head sees of a grid.
    pub settings: Vec<Setting>,
    /// The layers whose values are explained: every method at each of them, so that methods can be compared.
    pub layers: Vec<Place>,
    /// Cells a side: as many classes as there are cells are needed. The paper has 3.
    #[schemars(range(min = 2, max = 16))]
    pub side: i64,
    /// At most so many grids; each image stands in one of them.
    #[schemars(range(min = 1, max = 100_000))]
    pub count: i64,
    /// The split whose images are taken.
    pub split: String,
    /// Only images that are classified correctly with at least this probability: by all models of `predictions` where
    /// they are given, else by the checkpoint. Without predictions 0 takes all images, however they are classified.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub confidence: f64,
    /// Integrated Gradients: points between zero and the values.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: i64,
    /// The smoothed methods: the standard deviation in pixels; by default 16 for a cell of 224.
    #[schemars(range(min = 0.01, max = 1000.0))]
    pub smoothing: Option<f64>,
    /// RISE: masks of each grid; by default 1000.
    #[schemars(range(min = 1, max = 1_000_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masks: Option<i64>,
    /// Whether maps are averaged by how well they are localised (AggAtt) and drawn.
    pub aggregates: bool,
    /// Decides which images stand together, and where.
    pub seed: i64,
    /// Grids per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            methods: Explanation::USUAL.to_vec(),
            settings: vec![Setting::GridPg, Setting::DiFull, Setting::DiPart],
            layers: vec![Place::Input, Place::Middle, Place::Final],
            side: 2,
            count: 100,
            split: "test".to_owned(),
            confidence: 0.99,
            steps: 50,
            smoothing: None,
            masks: None,
            aggregates: true,
            seed: 0,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

impl Params {
    fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

/// Scores explanations of grids.
pub struct ScoreGrid;

impl StageKind for ScoreGrid {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "score.grid",
            summary: "whether explanations of a classifier point at the cell of a grid of images that shows the class",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::required("labels", &[artifact::LABELS], "their classes"),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the classifier, with a head"),
                InputPort {
                    required: false,
                    ..InputPort::fan_in(
                        "predictions",
                        &[artifact::PREDICTIONS],
                        "predictions of all models that are compared: grids are then the same for each",
                    )
                },
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let mut ports = vec![OutputPort::new(
            "scores",
            artifact::ATTRIBUTION_SCORES,
            "the localisation of each cell's class, one row per grid, cell, method, layer and setting",
        )];
        if params.aggregates {
            ports.push(OutputPort::new(
                "aggregates",
                artifact::SHEETS,
                "maps of the first cell, averaged from the best localised to the worst (AggAtt)",
            ));
        }
        ports
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let empty = [
            ("methods", params.methods.is_empty()),
            ("settings", params.settings.is_empty()),
            ("layers", params.layers.is_empty()),
        ];
        let empty = empty.into_iter().filter(|(_, is_empty)| *is_empty).map(|(path, _)| ParameterProblem {
            path: path.to_owned(),
            message: "it names nothing to score".to_owned(),
            help: Some("leave it out for all".to_owned()),
        });
        let twice = repeated("methods", &params.methods)
            .chain(repeated("settings", &params.settings))
            .chain(repeated("layers", &params.layers));
        empty.chain(twice).chain(compute::check(&params.device)).collect()
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

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut aggregates = params.aggregates.then(|| Aggregates::new(params.side as usize));
        let table = Scoring::read(params, context)?.table(aggregates.as_mut())?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::text(&provenance);
        write(context.output("scores")?, &TableSchema::attribution_scores(), &table, options)?;
        match aggregates {
            Some(aggregates) => aggregates.write(context.output("aggregates")?),
            None => Ok(()),
        }
    }
}

/// What stands twice in a list.
fn repeated<T: PartialEq>(path: &str, values: &[T]) -> impl Iterator<Item = ParameterProblem> {
    let twice = (0..values.len()).filter(|place| values[..*place].contains(&values[*place]));
    let problems: Vec<ParameterProblem> = twice
        .map(|place| ParameterProblem {
            path: format!("{path}[{place}]"),
            message: "it stands twice".to_owned(),
            help: None,
        })
        .collect();
    problems.into_iter()
}
