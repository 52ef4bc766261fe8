//! The stage kind `finetune.contrastive`: both towers on pairs of images or volumes and captions, by CLIP's symmetric
//! InfoNCE or a hinge loss.

use candle_core::Tensor;
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use pipe_models::Trainable;
use pipe_models::train::{AdamW, Schedule, WarmUp, clip_gradient_norm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::masked_words::{Hidden, MaskedWords};
use super::pairs::{Batch, Pairs};
use super::training::{Step, Training};
use super::{Optimiser, epoch_order};
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::images::{FORWARD_PASSES, read_pixels};
use crate::model::{Model, tensor_error};

/// Which tower stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// Both learn.
    None,
    /// Only the text tower learns.
    Image,
    /// Only the image tower learns.
    Text,
}

/// What is minimised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// CLIP's: cross entropy of scaled cosines in both directions.
    InfoNce,
    /// Hinge on the hardest negative of each query (VSE++), a sum over the batch.
    MaxHinge,
    /// Hinge on all negatives (VSE0), a sum over the batch.
    SumHinge,
    /// The same divided by the batch size.
    MeanHinge,
}

/// Parameters of `finetune.contrastive`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Passes over the pairs.
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: i64,
    /// Pairs per step; all others of a batch are negatives.
    #[schemars(range(min = 2, max = 65_536))]
    pub batch: i64,
    /// Highest learning rate.
    #[schemars(range(min = 1e-9, max = 1.0))]
    pub lr: f64,
    /// Decides the order of training, which words are masked and what is dropped.
    pub seed: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The split that is trained on.
    pub split: String,
    /// Which tower stays as it is.
    pub freeze: Freeze,
    /// What is minimised. Hinges are of cosines; the logit scale does not enter them.
    pub objective: Objective,
    /// Hinges: how much nearer the own partner has to be than others.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub margin: f64,
    /// Each step is computed in so many pieces, which bounds memory: towers hold the activations of one piece at a
    /// time and run twice. All pairs of the batch remain negatives, and the gradient is that of the whole.
    #[schemars(range(min = 1, max = 65_536))]
    pub pieces: i64,
    /// PMC-CLIP with its fusion transformer: the weight of the loss of masked words, beside 1 minus it of the
    /// objective; the published training has 0.5. Of 0.15 of the words 80 % are masked, 10 % replaced and 10 % left,
    /// by `seed`, caption and epoch, and the objective sees the same captions. Without it words are not predicted.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mlm: f64,
    /// Whether values are dropped where the original drops them while it is trained: a tenth of those inside BERT, of
    /// its attention too. Which ones is a function of `seed`, step and piece. The other towers drop none.
    pub dropout: bool,
    /// The data type in which the towers compute while they learn, `f32` or `bf16` (mixed precision: weights, their
    /// gradients, norms, sums and losses are of f32). Of CPUs those with AVX512-BF16 gain by `bf16`.
    pub precision: Precision,
    /// AdamW and its schedule.
    pub optimiser: Optimiser,
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
            epochs: 5,
            batch: 32,
            lr: 1e-3,
            seed: 0,
            device: auto(),
            split: "train".to_owned(),
            freeze: Freeze::None,
            objective: Objective::InfoNce,
            margin: 0.2,
            pieces: 1,
            mlm: 0.0,
            dropout: false,
            precision: Precision::F32,
            optimiser: Optimiser::default(),
        }
    }
}

/// ln 100: the logit scale is clamped to it after every step, as CLIP's is.
const GREATEST_SCALE: f32 = 4.605_170_2;

/// Trains a CLIP on pairs.
pub struct FinetuneContrastive;

impl StageKind for FinetuneContrastive {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "finetune.contrastive",
            summary: "trains both towers of a CLIP on image-caption pairs",
            implementation: 4,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                ),
                InputPort::required(
                    "captions",
                    &[artifact::CAPTIONS, artifact::TOKENS, artifact::QUESTIONS],
                    "their captions, or the tokens of these; of questions, each with its answer is a caption",
                ),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the model to start from"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("checkpoint", artifact::CHECKPOINT, "the trained model"),
            OutputPort::new("log", artifact::TRAINING_LOG, "loss and learning rate"),
            OutputPort::new("tensorboard", artifact::TENSORBOARD, "the same for TensorBoard"),
        ]
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["objective", "margin", "pieces", "mlm", "dropout"]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        compute::check(&params.device).into_iter().chain(compute::check_mixed(params.precision)).collect()
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
        let trainable = match params.freeze {
            Freeze::None => Trainable::All,
            Freeze::Image => Trainable::Text,
            Freeze::Text => Trainable::Image,
        };
        let model = Model::trainable(context.input("checkpoint")?, trainable, params.compute())?;
        let splits = [params.split.as_str()];
        // A question's split is its own: its image may be asked about in others too.
        let asked = context.input("captions")?.artifact_type == artifact::QUESTIONS.0;
        let of_images: &[&str] = if asked { &[] } else { &splits };
        let images = read_pixels(context.input("images")?, of_images, &model, context)?;
        let images = images.as_ref();
        let pairs = Pairs::read(&model, images, context, &splits)?;
        let words = match params.mlm > 0.0 {
            true => Some(MaskedWords::read(context.input("captions")?, &splits, &model, params.seed)?),
            false => None,
        };
        let batch = params.batch as usize;
        if pairs.rows.len() < batch {
            let message = format!(
                "{} pairs of split `{}` do not fill one batch of {batch}",
                pairs.rows.len(),
                params.split
            );
            return Err(StageError::failed(message));
        }
        let steps_per_epoch = (pairs.rows.len() / batch) as i64;
        let total = (steps_per_epoch * params.epochs) as u64;
        let optimiser = &params.optimiser;
        let schedule = Schedule {
            rate: params.lr,
            warmup: (optimiser.warmup * total as f64).round() as u64,
            begin: WarmUp::FromOneStep,
            total,
            floor: optimiser.floor,
        };
        let variables = model.network.variables();
        let adamw = AdamW::new(variables, optimiser.options(), AdamW::matrices_decay);
        let mut training = Training::begin(variables, adamw, context)?;
        let all: Vec<usize> = (0..pairs.rows.len()).collect();
        while training.position.epoch < params.epochs {
            let order = epoch_order(params.seed, training.position.epoch, &all);
            // An incomplete last batch has fewer negatives: it is left out, another part each epoch.
            for rows in order.chunks_exact(batch).skip(training.position.batch) {
                training.safe_point(context)?;
                let hidden = |words: &MaskedWords<'_>| -> Result<Vec<Hidden>, StageError> {
                    rows.iter().map(|row| words.of(*row, training.position.epoch)).collect()
                };
                let hidden = words.as_ref().map(hidden).transpose()?;
                let batch = Batch { rows, hidden: hidden.as_deref(), step: training.position.step };
                let (value, gradients) = pairs.gradients(params, &model, images, batch)?;
                let (_, factor) = clip_gradient_norm(variables, &gradients, optimiser.gradient_norm)
                    .map_err(tensor_error)?;
                let step = training.position.step;
                let rate = schedule.at(step);
                training.follow(&gradients, Step { loss: value, weight: 1.0, rate, factor })?;
                clamp_scale(&model)?;
                context.progress(step + 1, total, "steps", &[("loss", value), ("lr", rate)]);
            }
            let (epoch, step) = training.end_epoch();
            training.log.add(epoch, step, "train", "lr", schedule.at(step as u64 - 1));
        }
        // With gradients in pieces every pair is embedded twice; an image and a caption each time.
        let passes = if params.pieces > 1 { 4 } else { 2 };
        context.host().count(FORWARD_PASSES, training.position.step * batch as u64 * passes);
        let log = training.finish(context)?;
        model.save(context.output("checkpoint")?)?;
        log.write(context)
    }
}

fn clamp_scale(model: &Model) -> Result<(), StageError> {
    let Some(scale) = model.network.variables().get("logit_scale") else { return Ok(()) };
    let value = scale.to_scalar::<f32>().map_err(tensor_error)?;
    let clamped = value.clamp(0.0, GREATEST_SCALE);
    if clamped != value {
        scale.set(&Tensor::new(clamped, scale.device()).map_err(tensor_error)?).map_err(tensor_error)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pipe_engine::Artifact;
    use serde_json::{Value, json};

    use super::FinetuneContrastive;
    use crate::checkpoint::Checkpoint;
    use crate::phantom::IngestPhantom;
    use crate::table::read;
    use crate::testing::{Made, run};
    use crate::tokenizer::TrainTokenizer;

    /// Eight pairs, and models with random weights: BiomedCLIP, whose BERT drops values, and CLIP, which has none to drop.
    fn small_models() -> (Made, Vec<(&'static str, Made, bool)>) {
        let pairs =
            run(&IngestPhantom, &json!({ "size": 28, "seed": 4, "train": 8, "test": 0 }), &[]).unwrap();
        let vocabulary = json!({ "vocab_size": 514 });
        let tokenizer = run(&TrainTokenizer, &vocabulary, &[("text", &pairs["captions"])]).unwrap();
        let image = json!({ "width": 16, "hidden": 16, "layers": 1, "heads": 1, "image": 28, "patch": 14 });
        let bert = json!({
            "vocab_size": 520, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 24,
        });
        let clip =
            json!({ "vocabulary": 520, "width": 16, "hidden": 16, "layers": 1, "heads": 1, "positions": 24 });
        let made = |architecture: &str, config: Value| {
            let params = json!({ "init": "random", "architecture": architecture, "config": config });
            run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap()
        };
        let models = [
            ("biomed-clip", json!({ "vision": image, "text": bert, "context": 24, "projection": 8 }), true),
            (
                "clip-vit-b-32",
                json!({ "image": { "transformer": image }, "text": clip, "projection": 8 }),
                false,
            ),
        ];
        let models =
            models.into_iter().map(|(name, config, drops)| (name, made(name, config), drops)).collect();
        (pairs, models)
    }

    /// In bf16 losses are near those of f32 and others, and the weights keep all their digits.
    #[test]
    fn towers_learn_in_half_types_with_whole_weights() {
        let (pairs, models) = small_models();
        for (architecture, initial, _) in models {
            let inputs = [
                ("images", &pairs["images"]),
                ("captions", &pairs["captions"]),
                ("checkpoint", &initial["checkpoint"]),
            ];
            let params = |precision: &str| json!({ "epochs": 4, "batch": 8, "lr": 3e-3, "pieces": 2, "precision": precision });
            let (whole, half) = (losses_of(&params("f32"), &inputs), losses_of(&params("bf16"), &inputs));
            assert_ne!(whole, half, "{architecture}");
            for (whole, half) in whole.iter().zip(&half) {
                assert!((whole - half).abs() < 0.03 * whole, "{architecture}: {whole} {half}");
            }
            assert!(half[3] < half[0], "{architecture}: {half:?}");
            let trained = run(&FinetuneContrastive, &params("bf16"), &inputs).unwrap();
            let file = trained["checkpoint"]
                .files
                .iter()
                .find(|file| file.path.ends_with("model.safetensors"))
                .unwrap();
            let tensors = candle_core::safetensors::load(&file.location, &candle_core::Device::Cpu).unwrap();
            let rounded = |tensor: &candle_core::Tensor| {
                let values = tensor.flatten_all()?.to_vec1::<f32>()?;
                candle_core::Result::Ok(values.iter().all(|value| value.to_bits() & 0xffff == 0))
            };
            let learned: Vec<&String> =
                tensors.keys().filter(|name| name.ends_with("weight") && name.contains("proj")).collect();
            assert!(!learned.is_empty(), "{architecture}");
            assert!(learned.iter().all(|name| !rounded(&tensors[*name]).unwrap()), "{architecture}");
        }
    }

    /// BERT drops values while it learns, if it is asked to, and the same in every run.
    #[test]
    fn dropout_is_where_the_original_has_it() {
        let (pairs, models) = small_models();
        for (architecture, initial, drops) in models {
            let inputs = [
                ("images", &pairs["images"]),
                ("captions", &pairs["captions"]),
                ("checkpoint", &initial["checkpoint"]),
            ];
            for pieces in [1, 2] {
                let losses = |dropout: bool| {
                    let params =
                        json!({ "epochs": 2, "batch": 4, "lr": 1e-3, "pieces": pieces, "dropout": dropout });
                    losses_of(&params, &inputs)
                };
                assert_eq!(losses(true), losses(true), "{architecture}");
                assert_eq!(losses(true) != losses(false), drops, "{architecture}");
            }
        }
    }

    /// The mean loss of each epoch.
    fn losses_of(params: &Value, inputs: &[(&str, &Artifact)]) -> Vec<f64> {
        let trained = run(&FinetuneContrastive, params, inputs).unwrap();
        let log = read(&trained["log"]).unwrap();
        let (metrics, values) = (log.strings("metric").unwrap(), log.float64("value").unwrap());
        (0..log.rows()).filter(|row| metrics[*row] == "loss").filter_map(|row| values[row]).collect()
    }

    #[test]
    fn every_objective_falls() {
        let params = json!({ "domain": "general", "size": 28, "seed": 4, "train": 64, "test": 0 });
        let pairs = run(&IngestPhantom, &params, &[]).unwrap();
        let tokenizer =
            run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &pairs["captions"])]).unwrap();
        let size = json!({ "width": 32, "layers": 1, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 7, "projection": 32, "vision": size, "text": size,
        });
        let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        let inputs = [
            ("images", &pairs["images"]),
            ("captions", &pairs["captions"]),
            ("checkpoint", &initial["checkpoint"]),
        ];
        for objective in ["info_nce", "max_hinge", "sum_hinge", "mean_hinge"] {
            let params = json!({ "objective": objective, "epochs": 8, "batch": 16, "lr": 2e-3 });
            let losses = losses_of(&params, &inputs);
            assert!(losses[7] < 0.9 * losses[0], "{objective}: {losses:?}");
            let params = json!({ "objective": objective, "epochs": 2, "batch": 16, "lr": 2e-3, "optimiser": { "floor": 1.0, "warmup": 0.0 } });
            let whole = losses_of(&params, &inputs);
            let mut in_pieces = params;
            in_pieces["pieces"] = json!(3);
            for (whole, in_pieces) in whole.iter().zip(losses_of(&in_pieces, &inputs)) {
                assert!((whole - in_pieces).abs() < 1e-3 * whole.abs(), "{objective}: {whole} {in_pieces}");
            }
        }
    }
}
