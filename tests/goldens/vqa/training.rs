//! Training: Adamax, five steps of whole models, and meta-learning.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use pipe_models::Trainable;
use pipe_models::train::{Adamax, AdamaxOptions, EpochSchedule, clip_gradient_norm};
use pipe_models::vqa::{
    AnswerModel, AutoencoderInput, Batch, Images, InnerSteps, MetaHead, MetaNetwork, MetaTask, Mevf, Mode,
    Order, Qcr, QuestionType, Questions,
};
use serde_json::Value as Json;

use super::QUESTION_TYPES;
use super::models;
use super::support::{self, TOLERANCE, number, size, under};
use crate::harness::{self, Golden};

fn list(json: &Json) -> Vec<f64> {
    harness::numbers(json)
}

fn scalar(value: f64) -> Tensor {
    Tensor::new(value, &Device::Cpu).unwrap()
}

#[test]
fn adamax() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["adamax"];
    let golden = Golden::open(&folder, "adamax.safetensors");
    let betas = list(&config["betas"]);
    let options = AdamaxOptions { beta1: betas[0], beta2: betas[1], epsilon: number(config, "eps") };
    let schedule = EpochSchedule {
        base: number(config, "base_lr"),
        warm_up: list(&config["warmup_factors"]),
        decay: number(config, "decay"),
        decay_epochs: list(&config["decay_steps"]).into_iter().map(|step| step as usize).collect(),
    };
    let names: Vec<String> = (0..size(config, "tensors")).map(|tensor| tensor.to_string()).collect();
    let variables: BTreeMap<String, Var> = names
        .iter()
        .map(|name| (name.clone(), Var::from_tensor(&golden.input(&format!("param{name}.0"))).unwrap()))
        .collect();
    let mut optimiser = Adamax::new(&variables, options, Adamax::alike);
    for step in 0..size(config, "steps") {
        // A loss with these gradients.
        let mut loss = Tensor::new(0.0f32, &Device::Cpu).unwrap();
        for (name, variable) in &variables {
            let gradient = golden.input(&format!("grad{name}.{step}"));
            loss = (loss + (variable.as_tensor() * gradient).unwrap().sum_all().unwrap()).unwrap();
        }
        let gradients = loss.backward().unwrap();
        let (norm, factor) = clip_gradient_norm(&variables, &gradients, number(config, "clip_norm")).unwrap();
        golden.compare(&format!("norm.{step}"), &scalar(norm), 1e-6);
        golden.compare(&format!("lr.{step}"), &scalar(schedule.at(step)), 1e-6);
        optimiser.step(&gradients, schedule.at(step), factor).unwrap();
        for (name, variable) in &variables {
            golden.compare(&format!("param{name}.{}", step + 1), variable, 1e-6);
        }
    }
    for (name, moments) in optimiser.state().unwrap() {
        let shape = variables[&name].shape().clone();
        for (key, values) in [("avg", moments.first), ("inf", moments.second)] {
            let ours = Tensor::from_vec(values, shape.clone(), &Device::Cpu).unwrap();
            golden.compare(&format!("state_exp_{key}.{name}"), &ours, 1e-6);
        }
    }
    golden.finish();
}

/// What is known of a five-step run.
struct Run {
    golden: Golden,
    config: Json,
    tiny: Vec<String>,
    uncertain: BTreeMap<String, f64>,
}

impl Run {
    fn open(folder: &std::path::Path, all: &Json, file: &str) -> Self {
        let name = format!("{file}.safetensors");
        let golden = Golden::open(folder, &name);
        let header = golden.metadata(folder, &name);
        Self {
            golden,
            config: all["train5"][file].clone(),
            tiny: header["tiny_gradient_parameters"].split(',').map(str::to_owned).collect(),
            uncertain: serde_json::from_str(&header["max_f32_f64_difference_of_weights"]).unwrap(),
        }
    }

    fn tensors(&self) -> BTreeMap<String, Tensor> {
        under(&support::weights(&self.golden), "model.")
    }

    /// The batch of these rows, and its targets.
    fn batch(&self, rows: &Tensor) -> (Batch, Tensor) {
        let golden = &self.golden;
        let of = |key: &str| golden.input(key).index_select(rows, 0).unwrap();
        let image_rows = of("in.image_row");
        let pixels = |key: &str| {
            let pixels = golden.input(key).to_dtype(DType::F32).unwrap();
            (pixels.index_select(&image_rows, 0).unwrap() / number(&self.config, "image_scale")).unwrap()
        };
        let types: Option<Vec<QuestionType>> = golden.has("in.answer_type").then(|| {
            let types = of("in.answer_type").to_vec1::<i64>().unwrap();
            types.into_iter().map(|class| QUESTION_TYPES[class as usize]).collect()
        });
        let batch = Batch {
            images: Images {
                meta: Some(pixels("in.images84_u8")),
                autoencoder: Some(AutoencoderInput::Pixels(pixels("in.images128_u8"))),
                features: None,
            },
            questions: Questions::tokens(of("in.tokens").to_dtype(DType::U32).unwrap()),
            types,
        };
        (batch, of("in.target"))
    }

    /// Trains for the steps of the file and compares each, then the weights.
    fn train(&self, model: &dyn AnswerModel, parts: &[&str]) {
        let golden = &self.golden;
        let betas = list(&self.config["adamax_betas"]);
        let options =
            AdamaxOptions { beta1: betas[0], beta2: betas[1], epsilon: number(&self.config, "adamax_eps") };
        let mut optimiser = Adamax::new(model.variables(), options, Adamax::alike);
        let (mut losses, mut norms, mut all_parts) = (Vec::new(), Vec::new(), Vec::new());
        let mut last_rate = 0.0;
        for step in 0..size(&self.config, "steps") {
            let rows = golden.input(&format!("in.batch.{step}"));
            let (batch, targets) = self.batch(&rows);
            let loss = model.loss(&batch, &targets, Mode::Training(None)).unwrap();
            let gradients = loss.total.backward().unwrap();
            let limit = number(&self.config, "clip_norm");
            let (norm, factor) = clip_gradient_norm(model.variables(), &gradients, limit).unwrap();
            last_rate = golden.input(&format!("in.lr.{step}")).to_scalar::<f64>().unwrap();
            optimiser.step(&gradients, last_rate, factor).unwrap();
            losses.push(f64::from(loss.total.to_scalar::<f32>().unwrap()));
            norms.push(norm);
            for part in parts {
                let value = loss.parts.iter().find(|(name, _)| name == part);
                all_parts.push(value.map_or(0.0, |(_, value)| f64::from(value.to_scalar::<f32>().unwrap())));
            }
        }
        let steps = losses.len();
        let vector = |values: &[f64]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        golden.compare("out.loss", &vector(&losses), 1e-5);
        golden.compare("out.loss_f64", &vector(&losses), 1e-5);
        golden.compare("out.grad_norm", &vector(&norms), TOLERANCE);
        golden.compare("out.grad_norm_f64", &vector(&norms), TOLERANCE);
        let all_parts = Tensor::from_slice(&all_parts, (steps, parts.len()), &Device::Cpu).unwrap();
        golden.compare("out.loss_parts_f64", &all_parts, 1e-5);

        let keys: Vec<String> =
            golden.keys().filter_map(|key| key.strip_prefix("after.")).map(str::to_owned).collect();
        let now = model.parameters().tensors();
        for name in keys {
            let key = format!("after.{name}");
            if self.tiny.contains(&name) {
                // Adamax divides rounding by its own size there.
                golden.compare_within(&key, &now[&name], 1.0, 5.0 * last_rate);
            } else {
                // Absolute, as the authors of the files say.
                let uncertain = self.uncertain.get(&name).copied().unwrap_or(0.0);
                golden.compare_within(&key, &now[&name], 1.0, TOLERANCE + uncertain);
            }
        }
    }
}

/// Tolerance of evaluation logits after training.
const TRAINED_LOGITS: f64 = 5e-4;

#[test]
fn five_steps_of_mevf() {
    let Some(folder) = harness::topic("vqa") else { return };
    let all = harness::json(&folder.join("config.json"));
    for file in ["mevf_ban_train5", "mevf_san_train5"] {
        let run = Run::open(&folder, &all, file);
        let config = models::mevf(&all, file, size(&run.config, "answers"));
        let model = Mevf::from_tensors(config, run.tensors(), Trainable::All).unwrap();
        run.train(&model, &["answers", "reconstruction"]);
        let rows = Tensor::arange(0u32, size(&run.config, "questions") as u32, &Device::Cpu).unwrap();
        let logits = model.logits(&run.batch(&rows).0, Mode::Evaluation).unwrap();
        run.golden.compare("out.eval_logits", &logits, TRAINED_LOGITS);
        run.golden.finish();
    }
}

#[test]
fn five_steps_of_qcr() {
    let Some(folder) = harness::topic("vqa") else { return };
    let all = harness::json(&folder.join("config.json"));
    let run = Run::open(&folder, &all, "qcr_train5");
    let config = models::qcr(&all, support::image(&all["mevf_e2e"], &all["maml_cnn"]));
    assert_eq!(
        (config.closed, config.open),
        (size(&run.config, "closed_answers"), size(&run.config, "open_answers"))
    );
    let model = Qcr::from_tensors(config, run.tensors(), Trainable::All).unwrap();
    run.train(&model, &["closed", "open", "reconstruction"]);
    let rows = Tensor::arange(0u32, size(&run.config, "questions") as u32, &Device::Cpu).unwrap();
    for answers in model.branches(&run.batch(&rows).0, Mode::Evaluation).unwrap() {
        let name = if answers.kind == QuestionType::Closed { "closed" } else { "open" };
        run.golden.compare(&format!("out.eval_logits.{name}"), &answers.logits, TRAINED_LOGITS);
    }
    run.golden.finish();
}

#[test]
fn meta_learning() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["maml_inner"];
    let golden = Golden::open(&folder, "maml_inner.safetensors");
    let layers = config["layers"].as_array().unwrap();
    let convolutions: Vec<&Json> = layers.iter().filter(|layer| layer[0] == "conv2d").collect();
    let network = MetaNetwork {
        filters: convolutions[0][1][0].as_u64().unwrap() as usize,
        blocks: convolutions.len(),
        image: size(config, "image"),
        ways: size(config, "ways"),
        head: if layers.iter().any(|layer| layer[0] == "flatten") {
            MetaHead::Flattened
        } else {
            MetaHead::Mean
        },
    };
    let count = network.shapes().len();
    let weights: Vec<Tensor> = (0..count).map(|place| golden.input(&format!("theta.{place}"))).collect();
    for (weight, (name, shape)) in weights.iter().zip(network.shapes()) {
        assert_eq!(weight.dims(), shape, "{name}");
    }
    let rate = harness::values(&golden.input("in.inner_lr"))[0];
    let inner = InnerSteps { rate, steps: golden.input("in.steps").to_scalar::<i64>().unwrap() as usize };
    assert_eq!(inner.steps, size(config, "steps"));
    let tolerance = number(&harness::json(&folder.join("config.json"))["tolerance"], "maml_inner");
    for dtype in [DType::F32, DType::F64] {
        let cast = |tensor: &Tensor| tensor.to_dtype(dtype).unwrap();
        let weights: Vec<Tensor> = weights.iter().map(cast).collect();
        let classes = |key: &str| golden.input(key).to_dtype(DType::U32).unwrap();
        let task = MetaTask {
            support: cast(&golden.input("in.x_spt")),
            support_classes: classes("in.y_spt"),
            query: cast(&golden.input("in.x_qry")),
            query_classes: classes("in.y_qry"),
        };
        let before = InnerSteps { steps: 0, ..inner };
        let before = network.adapt(&weights, &task, before, Order::First).unwrap();
        golden.compare("out.query_loss_before", &scalar(before.query_loss), tolerance);
        let first = network.adapt(&weights, &task, inner, Order::First).unwrap();
        for (step, loss) in first.support_losses.iter().enumerate() {
            golden.compare(&format!("out.support_loss.{step}"), &scalar(*loss), tolerance);
        }
        for (place, weight) in first.path[inner.steps].iter().enumerate() {
            golden.compare(&format!("out.fast.{place}"), weight, tolerance);
        }
        golden.compare("out.query_logits", &first.query_logits, tolerance);
        golden.compare("out.query_loss", &scalar(first.query_loss), tolerance);
        for (place, gradient) in first.gradient.iter().enumerate() {
            golden.compare(&format!("meta_grad_fo.{place}"), gradient, tolerance);
        }
        let second = network.adapt(&weights, &task, inner, Order::Second);
        match dtype {
            DType::F64 => {
                for (place, gradient) in second.unwrap().gradient.iter().enumerate() {
                    golden.compare(&format!("meta_grad_so.{place}"), gradient, tolerance);
                }
            }
            _ => assert!(second.is_err(), "single precision does not suffice"),
        }
    }
    golden.finish();
}
