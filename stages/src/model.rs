//! Checkpoint artifacts as models: loading, the classification head, writing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use pipe_engine::{Artifact, OutputWriter, StageContext, StageError};
use pipe_models::checkpoint::{read_tensors, write_tensors};
use pipe_models::ct_clip::{CtClipConfig, PATHOLOGIES};
use pipe_models::export::{Companions, export};
use pipe_models::import::{ImportOptions, Imported, import};
use pipe_models::ops::linear;
use pipe_models::preprocess::Slices;
use pipe_models::random::Key;
use pipe_models::{
    CheckpointError, CheckpointFiles, DualEncoder, FoundationModel, ImageTower, MaybeProbe, ModelConfig,
    Preprocessor, TextTower, Tokenizer, Trainable, normalise, slice_wise,
};
use serde::{Deserialize, Serialize};

use crate::compute::Compute;
use crate::images::FORWARD_PASSES;

/// Where stages keep their tensors. A model computes on a device of its own, behind the doors of its towers.
pub(crate) const DEVICE: Device = Device::Cpu;

/// Tensor errors have no place that the user knows: they are failures of the stage. One for want of a device's memory may
/// not come again once others leave it.
pub(crate) fn tensor_error(error: candle_core::Error) -> StageError {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().to_owned();
    // CUDA's and cuBLAS's names, and Metal's words.
    let lacks_memory = ["OUT_OF_MEMORY", "ALLOC_FAILED", "out of memory", "Insufficient Memory"];
    if lacks_memory.iter().any(|words| text.contains(words)) {
        let hint = "ask for less at once with a smaller `batch` or more `pieces`";
        return StageError::OutOfMemory(format!("the device is out of memory: {first}; {hint}"));
    }
    StageError::failed(first)
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

/// What a head sees of the projected embedding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadInput {
    /// The embedding as it is.
    #[default]
    Embedding,
    /// The embedding of unit length.
    Unit,
    /// The positive part of the embedding of unit length: CT-LiPro's.
    PositiveUnit,
}

/// What `head.json` holds.
#[derive(Serialize, Deserialize)]
struct HeadFile {
    #[serde(flatten)]
    description: HeadDescription,
    #[serde(default, skip_serializing_if = "is_embedding")]
    input: HeadInput,
}

fn is_embedding(input: &HeadInput) -> bool {
    *input == HeadInput::Embedding
}

/// A linear classifier on the projected embedding.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) description: HeadDescription,
    pub(crate) input: HeadInput,
    /// `[classes, width]`.
    pub(crate) weight: Tensor,
    /// `[classes]`.
    pub(crate) bias: Tensor,
}

impl Head {
    /// What the classifier sees of embeddings `[batch, width]`.
    pub(crate) fn seen(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        match self.input {
            HeadInput::Embedding => Ok(embeddings.clone()),
            HeadInput::Unit => normalise(embeddings),
            HeadInput::PositiveUnit => normalise(embeddings)?.relu(),
        }
    }

    /// Class logits `[batch, classes]` of embeddings `[batch, width]`.
    pub(crate) fn logits(&self, embeddings: &Tensor) -> candle_core::Result<Tensor> {
        linear(&self.seen(embeddings)?, &self.weight, Some(&self.bias))
    }
}

/// A foundation model with its tokeniser and preprocessing, perhaps with a head.
pub(crate) struct Model {
    pub(crate) network: Box<dyn FoundationModel>,
    /// What happens to an image first; `None` for a model that reads no images.
    pub(crate) preprocessor: Option<Preprocessor>,
    /// `None` for a model that reads no text, or whose files lack a tokeniser.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// open_clip's description, if the model came with one.
    pub(crate) open_clip: Option<serde_json::Value>,
    pub(crate) head: Option<Head>,
    compute: Compute,
}

impl Model {
    /// Loads a checkpoint artifact, frozen.
    pub(crate) fn load(artifact: &Artifact, compute: Compute) -> Result<Self, StageError> {
        Self::import(artifact, &ImportOptions::default(), Trainable::Frozen, compute)
    }

    /// Loads a checkpoint artifact to train it, in f32.
    pub(crate) fn trainable(
        artifact: &Artifact,
        trainable: Trainable,
        compute: Compute,
    ) -> Result<Self, StageError> {
        Self::import(artifact, &ImportOptions::default(), trainable, compute)
    }

    /// A model as it was made, with what belongs to it.
    pub(crate) fn new(
        network: Box<dyn FoundationModel>,
        preprocessor: Option<Preprocessor>,
        tokenizer: Option<Tokenizer>,
    ) -> Self {
        Self { network, preprocessor, tokenizer, open_clip: None, head: None, compute: Compute::exact() }
    }

    /// The same model with a head.
    #[cfg(test)]
    pub(crate) fn with_head(self, head: Head) -> Self {
        Self { head: Some(head), ..self }
    }

    /// Loads a checkpoint in any published layout.
    pub(crate) fn import(
        artifact: &Artifact,
        options: &ImportOptions,
        trainable: Trainable,
        compute: Compute,
    ) -> Result<Self, StageError> {
        let files = files(artifact);
        let mut imported = import(&files, options, &compute.open()?).map_err(checkpoint_error)?;
        let network = match trainable {
            Trainable::Frozen => imported.build_frozen(compute.precision),
            _ => imported.build(trainable),
        };
        let network = network.map_err(checkpoint_error)?;
        let network = on_volumes(network, imported.preprocessor.as_ref());
        let head = match files.get("head.safetensors") {
            Some(_) => Some(load_head(&files)?),
            None => published_head(network.as_ref())?,
        };
        let Imported { preprocessor, tokenizer, open_clip, .. } = imported;
        Ok(Self { network, preprocessor, tokenizer, open_clip, head, compute })
    }

    /// The same architecture with random weights in the towers and the head, a pure function of `seed`:
    /// the control that no explanation may resemble (Adebayo et al. 2018).
    pub(crate) fn randomised(&self, seed: i64) -> Result<Self, StageError> {
        let config = self.network.model_config();
        let device = self.compute.open()?;
        let drawn = config.random(seed as u64, &device, Trainable::Frozen).map_err(checkpoint_error)?;
        let network =
            config.build_frozen(drawn.tensors(), self.compute.precision).map_err(checkpoint_error)?;
        let network = on_volumes(network, self.preprocessor.as_ref());
        let head = match &self.head {
            Some(head) => {
                let (classes, width) = head.weight.dims2().map_err(tensor_error)?;
                let key = Key::derive("pipe random head/1", seed as u64, &[]);
                let scale = (width as f64).sqrt();
                let values: Vec<f32> =
                    (1..=(classes * width) as u64).map(|draw| (key.normal(draw) / scale) as f32).collect();
                let weight = Tensor::from_vec(values, (classes, width), &DEVICE).map_err(tensor_error)?;
                let bias = head.bias.zeros_like().map_err(tensor_error)?;
                Some(Head { weight, bias, ..head.clone() })
            }
            None => None,
        };
        let (preprocessor, tokenizer) = (self.preprocessor.clone(), self.tokenizer.clone());
        let open_clip = self.open_clip.clone();
        Ok(Self { network, preprocessor, tokenizer, open_clip, head, compute: self.compute })
    }

    /// The same architecture with these tensors, which are shared where they fit as they are, and this head.
    pub(crate) fn with_tensors(
        &self,
        tensors: BTreeMap<String, Tensor>,
        head: Option<Head>,
    ) -> Result<Self, CheckpointError> {
        let network = self.network.model_config().build_frozen(tensors, self.compute.precision)?;
        let network = on_volumes(network, self.preprocessor.as_ref());
        let (preprocessor, tokenizer) = (self.preprocessor.clone(), self.tokenizer.clone());
        let open_clip = self.open_clip.clone();
        Ok(Self { network, preprocessor, tokenizer, open_clip, head, compute: self.compute })
    }

    /// The same residual network with its head for images of another side: its weights know no size. Nothing of a model
    /// whose weights do.
    pub(crate) fn of_image_side(&self, side: usize) -> Result<Option<Self>, StageError> {
        let ModelConfig::ResNet(mut config) = self.network.model_config() else { return Ok(None) };
        config.image = side;
        let network = ModelConfig::ResNet(config)
            .build_frozen(self.network.tensors(), self.compute.precision)
            .map_err(checkpoint_error)?;
        let (preprocessor, tokenizer) = (self.preprocessor.clone(), self.tokenizer.clone());
        let (open_clip, head) = (self.open_clip.clone(), self.head.clone());
        Ok(Some(Self { network, preprocessor, tokenizer, open_clip, head, compute: self.compute }))
    }

    /// Puts a network of the same architecture in the place of the present one.
    pub(crate) fn replace_network(&mut self, network: Box<dyn FoundationModel>) {
        self.network = on_volumes(network, self.preprocessor.as_ref());
    }

    /// Whether it is a model of flat images that sees the slices of volumes one by one.
    pub(crate) fn is_slice_wise(&self) -> bool {
        self.network.is_slice_wise()
    }

    /// The architecture and the size of its images, for people.
    pub(crate) fn describe(&self) -> String {
        let name = self.network.model_config().name();
        match self.network.as_image_tower().map(|tower| tower.geometry()) {
            Some(geometry) => {
                let ([height, width], [row, column]) = (geometry.image, geometry.patch);
                let flat = format!("{name}, {height} x {width} pixels, patches of {row} x {column}");
                match geometry.depth {
                    Some(depth) => {
                        format!("{flat}, {} slices, {} in a patch", depth.slices, depth.patch)
                    }
                    None => flat,
                }
            }
            None => name.to_owned(),
        }
    }

    fn lacks(&self, what: &str) -> StageError {
        let name = self.network.model_config().name();
        StageError::input(
            "config.json",
            format!("the checkpoint (`{name}`) has no {what}, which the stage needs"),
        )
    }

    /// Both towers with their common space.
    pub(crate) fn dual_encoder(&self) -> Result<&dyn DualEncoder, StageError> {
        self.network.as_dual_encoder().ok_or_else(|| self.lacks("pair of towers for images and text"))
    }

    /// The tower that reads images.
    pub(crate) fn image_tower(&self) -> Result<&dyn ImageTower, StageError> {
        self.network.as_image_tower().ok_or_else(|| self.lacks("image tower"))
    }

    /// The tower that reads text.
    pub(crate) fn text_tower(&self) -> Result<&dyn TextTower, StageError> {
        self.network.as_text_tower().ok_or_else(|| self.lacks("text tower"))
    }

    /// What happens to flat images first.
    pub(crate) fn preprocessor(&self) -> Result<&Preprocessor, StageError> {
        if self.is_slice_wise() {
            let reason = "the checkpoint sees several slices of a volume (`volumes` of its stage `checkpoint`), where \
                          the stage shows it flat images or one slice";
            return Err(StageError::input("config.json", reason));
        }
        self.preprocessor_of_slices()
    }

    /// What happens to the slices of volumes first, if they are shown to a model of flat images.
    pub(crate) fn preprocessor_of_slices(&self) -> Result<&Preprocessor, StageError> {
        if self.image_tower()?.geometry().depth.is_some() && !self.is_slice_wise() {
            let help = match self.network.model_config() {
                ModelConfig::CtClip(_) => {
                    "; for flat images give its stage `checkpoint` the parameter `config = { adaptation = \"ct-2d\" }`"
                }
                _ => "",
            };
            let reason = format!("the checkpoint takes volumes, not flat images{help}");
            return Err(StageError::input("config.json", reason));
        }
        self.preprocessor.as_ref().ok_or_else(|| self.lacks("preprocessing of images"))
    }

    /// What a tower that learns is given, in the type in which it computes ([`Compute::mixed`]).
    ///
    /// # Errors
    /// Whatever the device reports.
    pub(crate) fn mixed(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.compute.mixed(x)
    }

    /// The tokeniser.
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer, StageError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            StageError::input("tokenizer.json", "the checkpoint has no tokeniser, and the stage reads text")
        })
    }

    /// A text as ids of the model's length; what is longer is cut.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, StageError> {
        let tower = self.text_tower()?;
        let encoded = self.tokenizer()?.encode(text, tower.context_length(), tower.pad_id());
        Ok(encoded.map_err(checkpoint_error)?.ids)
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
        let embeddings = self.image_tower()?.embed_images(pixels, probe).map_err(tensor_error)?;
        head.logits(&embeddings).map_err(tensor_error)
    }

    /// Embeddings of texts, `[texts, width]` flat; what is longer than the context is cut.
    pub(crate) fn embed_texts(
        &self,
        texts: &[&str],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        let ids = texts.iter().map(|text| self.encode(text));
        self.embed_ids(&ids.collect::<Result<Vec<_>, StageError>>()?, batch, context)
    }

    /// As [`Self::embed_texts`], of token ids: as many per text as the model has positions.
    pub(crate) fn embed_ids(
        &self,
        ids: &[Vec<u32>],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        let tower = self.text_tower()?;
        let positions = tower.context_length();
        let mut values = Vec::new();
        let mut done = 0;
        for part in ids.chunks(batch.max(1) as usize) {
            context.check_cancelled()?;
            let embed = || {
                let ids = Tensor::from_vec(part.concat(), (part.len(), positions), &DEVICE)?;
                tower.embed_texts(&ids, None)?.flatten_all()?.to_vec1::<f32>()
            };
            values.extend(embed().map_err(tensor_error)?);
            done += part.len() as u64;
            context.progress(done, ids.len() as u64, "texts", &[]);
        }
        context.host().count(FORWARD_PASSES, done);
        Ok(values)
    }

    /// Writes the checkpoint into an output port, as the library that knows its layout reads it.
    pub(crate) fn save(&self, output: &mut OutputWriter) -> Result<(), StageError> {
        let folder = output.folder().to_owned();
        let companions = Companions {
            preprocessor: self.preprocessor.as_ref(),
            tokenizer: self.tokenizer.as_ref(),
            open_clip: self.open_clip.as_ref(),
        };
        export(&folder, self.network.as_ref(), &companions).map_err(|error| write_error(&error))?;
        if let Some(head) = &self.head {
            let tensors =
                [("weight".to_owned(), head.weight.detach()), ("bias".to_owned(), head.bias.detach())];
            write_tensors(&folder.join("head.safetensors"), &tensors.into())
                .map_err(|error| write_error(&error))?;
            let file = HeadFile { description: head.description.clone(), input: head.input };
            let json = serde_json::to_string_pretty(&file)
                .map_err(|error| StageError::because("writing head.json", error))?;
            write_text(&folder.join("head.json"), &format!("{json}\n"))?;
        }
        Ok(())
    }
}

/// A model of flat images that is to see several slices of a volume takes volumes.
fn on_volumes(
    network: Box<dyn FoundationModel>,
    preprocessor: Option<&Preprocessor>,
) -> Box<dyn FoundationModel> {
    match preprocessor.map(|preprocessor| preprocessor.slices) {
        Some(Slices::Mean(count)) => slice_wise(network, count),
        _ => network,
    }
}

/// The classifier that a published checkpoint holds: CT-LiPro's, of CT-RATE's abnormalities.
fn published_head(network: &dyn FoundationModel) -> Result<Option<Head>, StageError> {
    let ModelConfig::CtClip(CtClipConfig { classes: Some(count), .. }) = network.model_config() else {
        return Ok(None);
    };
    let tensors = network.tensors();
    let take = |name: &str| {
        let tensor = tensors
            .get(name)
            .ok_or_else(|| StageError::input("the weights", format!("`{name}` is missing")))?;
        tensor.to_device(&DEVICE).and_then(|tensor| tensor.to_dtype(DType::F32)).map_err(tensor_error)
    };
    let classes = match count == PATHOLOGIES.len() {
        true => PATHOLOGIES.map(str::to_owned).to_vec(),
        false => (0..count).map(|class| format!("class {class}")).collect(),
    };
    let description = HeadDescription { classes, task: "multi-label, binary-class".to_owned() };
    let (weight, bias) = (take("classifier.weight")?, take("classifier.bias")?);
    Ok(Some(Head { description, input: HeadInput::PositiveUnit, weight, bias }))
}

fn load_head(files: &CheckpointFiles) -> Result<Head, StageError> {
    let json = files.text("head.json").map_err(checkpoint_error)?;
    let HeadFile { description, input } =
        serde_json::from_str(&json).map_err(|error| StageError::input("head.json", error.to_string()))?;
    let mut tensors = read_tensors(files, "head.safetensors", &DEVICE).map_err(checkpoint_error)?;
    let mut take = |name: &str| {
        tensors
            .remove(name)
            .ok_or_else(|| StageError::input("head.safetensors", format!("it has no tensor `{name}`")))
    };
    let head = Head { weight: take("weight")?, bias: take("bias")?, description, input };
    let classes = head.description.classes.len();
    for (name, tensor) in [("weight", &head.weight), ("bias", &head.bias)] {
        if tensor.dtype() != DType::F32 {
            let reason = format!(
                "tensor `{name}` holds {:?}, and weights are floats of 32 or 16 bits",
                tensor.dtype()
            );
            return Err(StageError::input("head.safetensors", reason));
        }
    }
    if head.bias.dims() != [classes] || head.weight.dims().first() != Some(&classes) {
        return Err(StageError::input(
            "head.safetensors",
            format!("its shapes do not fit {classes} classes"),
        ));
    }
    Ok(head)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_memory_is_a_failure_of_its_own_class() {
        let full =
            candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")\nbacktrace");
        assert!(matches!(tensor_error(full), StageError::OutOfMemory(text) if !text.contains("backtrace")));
        let other = candle_core::Error::msg("shape mismatch in matmul");
        assert!(matches!(tensor_error(other), StageError::Failed { .. }));
    }
}
