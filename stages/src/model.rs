//! Checkpoint artifacts as models: loading, the classification head, writing.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use pipe_engine::{Artifact, OutputWriter, StageContext, StageError};
use pipe_models::checkpoint::{read_tensors, write_tensors};
use pipe_models::ops::linear;
use pipe_models::random::Key;
use pipe_models::{
    CheckpointError, CheckpointFiles, ClipModel, DualEncoder, MaybeProbe, Preprocessor, Tokenizer, Trainable,
};
use serde::{Deserialize, Serialize};

/// The device that this build computes on.
pub(crate) const DEVICE: Device = Device::Cpu;

/// Tensor errors have no place that the user knows: they are failures of the stage.
pub(crate) fn tensor_error(error: candle_core::Error) -> StageError {
    StageError::failed(error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// A checkpoint that does not fit is damaged input.
pub(crate) fn checkpoint_error(error: CheckpointError) -> StageError {
    StageError::input(error.file, error.reason)
}

/// The files of an artifact by name.
pub(crate) fn files(artifact: &Artifact) -> CheckpointFiles {
    CheckpointFiles::new(artifact.files.iter().map(|file| (file.path.clone(), file.location.clone())))
}

/// What `head.json` says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct HeadDescription {
    /// Class names, in index order.
    pub(crate) classes: Vec<String>,
    /// The task of the labels (`multi-class`, `binary-class`, `multi-label, binary-class`, ...).
    pub(crate) task: String,
}

impl HeadDescription {
    /// Whether classes are independent bits.
    pub(crate) fn is_multi_label(&self) -> bool {
        self.task.starts_with("multi-label")
    }
}

/// A linear classifier on the projected embedding.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) description: HeadDescription,
    /// `[classes, width]`.
    pub(crate) weight: Tensor,
    /// `[classes]`.
    pub(crate) bias: Tensor,
}

/// A CLIP with its tokeniser and preprocessing, perhaps with a head.
pub(crate) struct Model {
    pub(crate) clip: ClipModel,
    pub(crate) preprocessor: Preprocessor,
    /// `tokenizer.json` as it was, if there is one.
    pub(crate) tokenizer_json: Option<String>,
    pub(crate) head: Option<Head>,
}

impl Model {
    /// Loads a checkpoint artifact.
    pub(crate) fn load(artifact: &Artifact, trainable: Trainable) -> Result<Self, StageError> {
        let files = files(artifact);
        let clip = ClipModel::load(&files, &DEVICE, trainable).map_err(checkpoint_error)?;
        let side = clip.config().vision.image;
        let preprocessor = match files.get("preprocessor_config.json") {
            Some(_) => {
                let text = files.text("preprocessor_config.json").map_err(checkpoint_error)?;
                Preprocessor::from_json(&text, side).map_err(checkpoint_error)?
            }
            None => Preprocessor::clip(side),
        };
        let tokenizer_json = match files.get("tokenizer.json") {
            Some(_) => Some(files.text("tokenizer.json").map_err(checkpoint_error)?),
            None => None,
        };
        let head = match files.get("head.safetensors") {
            Some(_) => Some(load_head(&files)?),
            None => None,
        };
        Ok(Self { clip, preprocessor, tokenizer_json, head })
    }

    /// The same architecture with random weights in the towers and the head, a pure function of `seed`:
    /// the control that no explanation may resemble (Adebayo et al. 2018).
    pub(crate) fn randomised(&self, seed: i64) -> Result<Self, StageError> {
        let clip = ClipModel::random(self.clip.config(), seed as u64, &DEVICE, Trainable::Frozen)
            .map_err(checkpoint_error)?;
        let head = match &self.head {
            Some(head) => {
                let (classes, width) = head.weight.dims2().map_err(tensor_error)?;
                let key = Key::derive("pipe random head/1", seed as u64, &[]);
                let scale = (width as f64).sqrt();
                let values: Vec<f32> =
                    (1..=(classes * width) as u64).map(|draw| (key.normal(draw) / scale) as f32).collect();
                let weight = Tensor::from_vec(values, (classes, width), &DEVICE).map_err(tensor_error)?;
                let bias = head.bias.zeros_like().map_err(tensor_error)?;
                Some(Head { description: head.description.clone(), weight, bias })
            }
            None => None,
        };
        Ok(Self {
            clip,
            preprocessor: self.preprocessor.clone(),
            tokenizer_json: self.tokenizer_json.clone(),
            head,
        })
    }

    /// The tokeniser.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, StageError> {
        let json = self.tokenizer_json.as_deref().ok_or_else(|| {
            StageError::input("tokenizer.json", "the checkpoint has no tokeniser, and the stage reads text")
        })?;
        Tokenizer::from_json(json).map_err(checkpoint_error)
    }

    /// The head.
    pub(crate) fn head(&self) -> Result<&Head, StageError> {
        self.head.as_ref().ok_or_else(|| {
            StageError::input(
                "head.safetensors",
                "the checkpoint has no head; train one with `finetune.classify`",
            )
        })
    }

    /// Class logits `[batch, classes]` of preprocessed pixels.
    pub(crate) fn logits(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor, StageError> {
        let head = self.head()?;
        let embeddings = self.clip.image_tower().embed_images(pixels, probe).map_err(tensor_error)?;
        linear(&embeddings, &head.weight, Some(&head.bias)).map_err(tensor_error)
    }

    /// Embeddings of texts, `[texts, width]` flat; what is longer than the context is cut.
    pub(crate) fn embed_texts(
        &self,
        texts: &[&str],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        let tokenizer = self.tokenizer()?;
        let config = &self.clip.config().text;
        let ids = texts.iter().map(|text| {
            Ok(tokenizer.encode(text, config.positions, config.pad).map_err(checkpoint_error)?.ids)
        });
        self.embed_ids(&ids.collect::<Result<Vec<_>, StageError>>()?, batch, context)
    }

    /// As [`Self::embed_texts`], of token ids: as many per text as the model has positions.
    pub(crate) fn embed_ids(
        &self,
        ids: &[Vec<u32>],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        let positions = self.clip.config().text.positions;
        let mut values = Vec::new();
        let mut done = 0;
        for part in ids.chunks(batch.max(1) as usize) {
            context.check_cancelled()?;
            let embed = || {
                let ids = Tensor::from_vec(part.concat(), (part.len(), positions), &DEVICE)?;
                self.clip.text_tower().embed_texts(&ids, None)?.flatten_all()?.to_vec1::<f32>()
            };
            values.extend(embed().map_err(tensor_error)?);
            done += part.len() as u64;
            context.progress(done, ids.len() as u64, "texts", &[]);
        }
        Ok(values)
    }

    /// Writes the checkpoint into an output port.
    pub(crate) fn save(&self, output: &mut OutputWriter) -> Result<(), StageError> {
        let folder = output.folder().to_owned();
        self.clip.save(&folder).map_err(|error| write_error(&error))?;
        write_text(&folder.join("preprocessor_config.json"), &self.preprocessor.to_json())?;
        if let Some(json) = &self.tokenizer_json {
            write_text(&folder.join("tokenizer.json"), json)?;
        }
        if let Some(head) = &self.head {
            let tensors =
                [("weight".to_owned(), head.weight.detach()), ("bias".to_owned(), head.bias.detach())];
            write_tensors(&folder.join("head.safetensors"), &tensors.into())
                .map_err(|error| write_error(&error))?;
            let json = serde_json::to_string_pretty(&head.description)
                .map_err(|error| StageError::because("writing head.json", error))?;
            write_text(&folder.join("head.json"), &format!("{json}\n"))?;
        }
        Ok(())
    }
}

fn load_head(files: &CheckpointFiles) -> Result<Head, StageError> {
    let json = files.text("head.json").map_err(checkpoint_error)?;
    let description: HeadDescription =
        serde_json::from_str(&json).map_err(|error| StageError::input("head.json", error.to_string()))?;
    let mut tensors = read_tensors(files, "head.safetensors", &DEVICE).map_err(checkpoint_error)?;
    let mut take = |name: &str| {
        tensors
            .remove(name)
            .ok_or_else(|| StageError::input("head.safetensors", format!("it has no tensor `{name}`")))
    };
    let head = Head { weight: take("weight")?, bias: take("bias")?, description };
    let classes = head.description.classes.len();
    if head.bias.dims() != [classes] || head.weight.dims().first() != Some(&classes) {
        return Err(StageError::input(
            "head.safetensors",
            format!("its shapes do not fit {classes} classes"),
        ));
    }
    Ok(head)
}

/// A head whose parameters are variables, starting from zero.
pub(crate) fn zero_head(
    description: HeadDescription,
    width: usize,
) -> Result<(Head, [(String, Var); 2]), StageError> {
    let classes = description.classes.len();
    let zeros = |shape: &[usize]| Var::zeros(shape, candle_core::DType::F32, &DEVICE).map_err(tensor_error);
    let (weight, bias) = (zeros(&[classes, width])?, zeros(&[classes])?);
    let head = Head { description, weight: weight.as_tensor().clone(), bias: bias.as_tensor().clone() };
    Ok((head, [("head.weight".to_owned(), weight), ("head.bias".to_owned(), bias)]))
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), StageError> {
    let temporary: PathBuf = path.with_extension("partial");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|error| StageError::environment(format!("writing `{}`", path.display()), error))
}

fn write_error(error: &CheckpointError) -> StageError {
    StageError::environment(format!("writing `{}`", error.file), std::io::Error::other(error.reason.clone()))
}
