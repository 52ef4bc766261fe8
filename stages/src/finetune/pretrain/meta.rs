//! The stage kind `pretrain.meta`: MEVF's small convolutional network by model-agnostic meta-learning (Finn, Abbeel and
//! Levine 2017; Nguyen et al. 2019), on images of any table in classes.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::random::Key;
use pipe_models::vqa::{
    Adapted, InnerSteps, MetaCnnConfig, MetaHead, MetaNetwork, MetaTask, Order, draw_task,
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::training::{Step, Training};
use super::classes::Classes;
use super::grey::GreySquares;
use super::{adam, save};
use crate::artifact;
use crate::model::{DEVICE, tensor_error};
use crate::vqa::META_WEIGHTS;

/// Whether the gradient goes through the steps within a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Derivative {
    /// No: the gradient at the adapted weights is taken for that at the first ones.
    First,
    /// Yes, in double precision: five times the work, and more.
    Second,
}

impl Derivative {
    fn order(self) -> Order {
        match self {
            Self::First => Order::First,
            Self::Second => Order::Second,
        }
    }

    /// What it is computed in.
    fn dtype(self) -> DType {
        match self {
            Self::First => DType::F32,
            Self::Second => DType::F64,
        }
    }
}

/// Parameters of `pretrain.meta`. The sizes of the network are the published ones: images of 84 x 84 grey values, four
/// blocks of 64 channels.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The splits whose images it learns from.
    pub splits: Vec<String>,
    /// Columns of the table of images whose values side by side are the class of an image; what `labels` and
    /// `questions` say stands beside them. By default `region` with `questions`, nothing with `labels`, else `region`
    /// and `modality`.
    pub classes: Option<Vec<String>>,
    /// Classes of a task.
    #[schemars(range(min = 2, max = 1000))]
    pub ways: i64,
    /// Images of each class that a task is learned from, and as many others by which it is judged.
    #[schemars(range(min = 1, max = 1000))]
    pub shots: i64,
    /// Tasks per step.
    #[schemars(range(min = 1, max = 1000))]
    pub tasks: i64,
    /// Steps.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub steps: i64,
    /// The learning rate of Adam.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: f64,
    /// The learning rate within a task.
    #[schemars(range(min = 1e-9, max = 10.0))]
    pub inner_lr: f64,
    /// Steps within a task.
    #[schemars(range(min = 1, max = 1000))]
    pub inner_steps: i64,
    /// Whether the gradient goes through these.
    pub derivative: Derivative,
    /// Decides the first weights and the tasks.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            splits: vec!["train".to_owned()],
            classes: None,
            ways: 3,
            shots: 3,
            tasks: 5,
            steps: 10_000,
            lr: 1e-3,
            inner_lr: 0.05,
            inner_steps: 5,
            derivative: Derivative::First,
            seed: 0,
        }
    }
}

/// Meta-learns a network.
pub struct PretrainMeta;

impl StageKind for PretrainMeta {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "pretrain.meta",
            summary: "meta-learns the small image network of MEVF from images in classes",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::optional(
                    "labels",
                    &[artifact::LABELS],
                    "labels that tell classes of images apart",
                ),
                InputPort::optional(
                    "questions",
                    &[artifact::QUESTIONS],
                    "questions whose answers say which images show something abnormal (VQA-RAD)",
                ),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("weights", artifact::IMAGE_WEIGHTS, "the network, for `finetune.vqa`"),
            OutputPort::new("log", artifact::TRAINING_LOG, "learning curves, a row for every hundred steps"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let twice =
            params.classes.iter().flatten().enumerate().find(|(place, name)| {
                params.classes.iter().flatten().take(*place).any(|before| before == *name)
            });
        let problem = |(_, name): (usize, &String)| ParameterProblem {
            path: "classes".to_owned(),
            message: format!("`{name}` stands twice"),
            help: None,
        };
        twice.map(problem).into_iter().collect()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let sizes = MetaCnnConfig::default();
        let network = MetaNetwork {
            filters: sizes.filters,
            blocks: sizes.blocks,
            image: sizes.image,
            ways: params.ways as usize,
            head: MetaHead::Mean,
        };
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let images = GreySquares::read([context.input("images")?], &splits, sizes.image, context)?;
        let tasks = Tasks { params, network, classes: classes(params, &splits, &images, context)?, images };
        let log = tasks.learn(context)?;
        log.write(context)
    }
}

/// The images of each class; at least as many classes as a task has hold enough of them.
fn classes(
    params: &Params,
    splits: &[&str],
    images: &GreySquares,
    context: &StageContext<'_>,
) -> Result<Vec<Vec<usize>>, StageError> {
    let (labels, questions) = (context.optional_input("labels"), context.optional_input("questions"));
    let columns = params.classes.clone().unwrap_or_else(|| {
        let names: &[&str] = match (questions, labels) {
            (Some(_), _) => &["region"],
            (None, Some(_)) => &[],
            (None, None) => &["region", "modality"],
        };
        names.iter().map(|name| (*name).to_owned()).collect()
    });
    let mut known = Classes::default();
    for column in &columns {
        known.by_column(context.input("images")?, column)?;
    }
    if let Some(labels) = labels {
        known.by_label(labels)?;
    }
    if let Some(questions) = questions {
        known.by_answers(questions, splits)?;
    }
    let (classes, names) = known.of(&images.ids);
    let needed = 2 * params.shots as usize;
    let large = classes.iter().filter(|images| images.len() >= needed).count();
    if large < params.ways as usize {
        let counts: Vec<String> =
            names.iter().zip(&classes).map(|(name, images)| format!("`{name}` {}", images.len())).collect();
        let found = if counts.is_empty() { "there are no classes".to_owned() } else { counts.join(", ") };
        let reason = format!(
            "a task has {} classes of {needed} images, and {large} are large enough: {found}",
            params.ways
        );
        return Err(StageError::failed(reason));
    }
    Ok(classes)
}

/// Steps between two rows of the log.
const LOGGED: i64 = 100;
/// Tasks by which a row of the log tells how well new tasks are learned.
const JUDGED: u64 = 20;

/// Everything that tasks are made of.
struct Tasks<'a> {
    params: &'a Params,
    network: MetaNetwork,
    classes: Vec<Vec<usize>>,
    images: GreySquares,
}

impl Tasks<'_> {
    /// Trains; writes the weights and gives the learning curves.
    fn learn(&self, context: &mut StageContext<'_>) -> Result<super::super::TrainingLog, StageError> {
        let params = self.params;
        let names: Vec<String> = self.network.shapes().into_iter().map(|(name, _)| name).collect();
        let first = self.network.random(params.seed as u64).map_err(tensor_error)?;
        let variables: BTreeMap<String, Var> = names
            .iter()
            .zip(&first)
            .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)))
            .collect::<candle_core::Result<_>>()
            .map_err(tensor_error)?;
        let now =
            || -> Vec<Tensor> { names.iter().map(|name| variables[name].as_detached_tensor()).collect() };
        let mut training = Training::begin(&variables, adam(&variables), context)?;
        while (training.position.step as i64) < params.steps {
            training.safe_point(context)?;
            let step = training.position.step;
            let adapted = self.adapt(&now(), "train", step, params.tasks as u64, params.derivative)?;
            let loss = adapted.iter().map(|one| one.query_loss).sum::<f64>() / adapted.len() as f64;
            let gradients = mean_gradient(&names, &variables, &adapted)
                .and_then(|along| along.backward())
                .map_err(tensor_error)?;
            training.follow(&gradients, Step { loss, weight: 1.0, rate: params.lr, factor: 1.0 })?;
            context.progress(step + 1, params.steps as u64, "steps", &[("loss", loss)]);
            let done = training.position.step as i64;
            if done % LOGGED == 0 || done == params.steps {
                let judged = self.adapt(&now(), "judge", 0, JUDGED, Derivative::First)?;
                let accuracy = self.accuracy(&judged)?;
                let (epoch, step) = training.end_epoch();
                training.log.add(epoch, step, "train", "accuracy", accuracy);
            }
        }
        let log = training.finish(context)?;
        save(META_WEIGHTS, &self.network.state_dict(&now(), ""), context)?;
        Ok(log)
    }

    /// What tasks say of weights, in order: which tasks is a function of seed, purpose and step.
    fn adapt(
        &self,
        weights: &[Tensor],
        purpose: &str,
        step: u64,
        count: u64,
        derivative: Derivative,
    ) -> Result<Vec<Adapted>, StageError> {
        let params = self.params;
        let cast = |tensor: &Tensor| tensor.to_dtype(derivative.dtype()).map_err(tensor_error);
        let weights = weights.iter().map(cast).collect::<Result<Vec<_>, _>>()?;
        let inner = InnerSteps { rate: params.inner_lr, steps: params.inner_steps as usize };
        let task = |number: u64| -> Result<Adapted, StageError> {
            let parts = [purpose.into(), step.into(), number.into()];
            let key = Key::derive("pipe tasks/1", params.seed as u64, &parts);
            let drawn = draw_task(&self.classes, params.ways as usize, params.shots as usize, key)
                .ok_or_else(|| StageError::failed("the classes are too small for a task"))?;
            let images = |of: &[(usize, u32)]| -> Result<(Tensor, Tensor), StageError> {
                let (rows, classes): (Vec<usize>, Vec<u32>) = of.iter().copied().unzip();
                let count = classes.len();
                let classes = Tensor::from_vec(classes, count, &DEVICE).map_err(tensor_error)?;
                Ok((cast(&self.images.pick(&rows)?)?, classes))
            };
            let ((support, support_classes), (query, query_classes)) =
                (images(&drawn.support)?, images(&drawn.query)?);
            let task = MetaTask { support, support_classes, query, query_classes };
            self.network.adapt(&weights, &task, inner, derivative.order()).map_err(tensor_error)
        };
        (0..count).into_par_iter().map(task).collect()
    }

    /// The share of query images that adapted weights put into their class. Tasks have as many of each class, class by
    /// class.
    fn accuracy(&self, adapted: &[Adapted]) -> Result<f64, StageError> {
        let shots = self.params.shots as usize;
        let (mut right, mut all) = (0, 0);
        for one in adapted {
            let logits = one.query_logits.to_vec2::<f32>().map_err(tensor_error)?;
            all += logits.len();
            right += logits
                .iter()
                .enumerate()
                .filter(|(row, logits)| crate::vqa::given(logits) == row / shots)
                .count();
        }
        Ok(right as f64 / all.max(1) as f64)
    }
}

/// A sum whose gradient of each variable is the mean of the gradients that tasks gave.
fn mean_gradient(
    names: &[String],
    variables: &BTreeMap<String, Var>,
    adapted: &[Adapted],
) -> candle_core::Result<Tensor> {
    let mut along = Tensor::zeros((), DType::F32, &DEVICE)?;
    for (place, name) in names.iter().enumerate() {
        let variable = variables[name].as_tensor();
        let mut sum = variable.zeros_like()?.detach();
        for one in adapted {
            sum = (sum + one.gradient[place].to_dtype(DType::F32)?)?;
        }
        let mean = (sum / adapted.len() as f64)?;
        along = (along + (variable * mean)?.sum_all()?)?;
    }
    Ok(along)
}
