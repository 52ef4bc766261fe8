//! The stage kind `embed`: images, volumes or captions as vectors.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, StringArray};
use arrow_schema::{DataType, Field};
use candle_core::Tensor;
use pipe_engine::{
    DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext,
    StageError, StageKind,
};
use pipe_models::normalise;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::features;
use crate::finite::check_finite;
use crate::images::{embed_pixels, read_pixels, slices_seen};
use crate::ipc::{tensor_column, write_table};
use crate::model::{DEVICE, Model, tensor_error};
use crate::texts::{TextSet, Wording};
use crate::truth;

/// What is embedded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Images and captions.
    Both,
    /// Images alone: the output `texts` is not there, nor is the input `captions`.
    Image,
    /// Captions alone.
    Text,
}

/// Parameters of `embed`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// What is embedded; of a model with one tower, what that reads.
    pub modality: Modality,
    /// The splits that are embedded; all if empty.
    pub splits: Vec<String>,
    /// So many words from the beginning of each caption: what a caption says in a few words.
    #[schemars(range(min = 1, max = 10_000))]
    pub words: Option<i64>,
    /// Another column of the captions than `caption`, of texts or of lists of words such as `keywords`; a row without one
    /// is left out.
    pub column: Option<String>,
    /// Whether vectors are divided by their length.
    pub normalise: bool,
    /// Rows per forward pass.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
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
            modality: Modality::Both,
            splits: Vec::new(),
            words: None,
            column: None,
            normalise: false,
            batch: 64,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

/// Embeds images and captions.
pub struct Embed;

impl StageKind for Embed {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "embed",
            summary: "the embeddings of images and captions, as Arrow files",
            implementation: 4,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::optional(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                )
                .class(InputClass::Map),
                InputPort::optional(
                    "captions",
                    &[artifact::CAPTIONS, artifact::TOKENS],
                    "the captions, or the tokens of these",
                )
                .class(InputClass::Map),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the model"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let images =
            OutputPort::new("images", artifact::EMBEDDINGS, "one vector per image").following("images");
        let texts =
            OutputPort::new("texts", artifact::EMBEDDINGS, "one vector per caption").following("captions");
        match params.modality {
            Modality::Both => vec![images, texts],
            Modality::Image => vec![images],
            Modality::Text => vec![texts],
        }
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["modality", "words", "column"]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let column = params.column.iter().filter_map(|column| truth::refused("column", column));
        compute::check(&params.device).into_iter().chain(column).collect()
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
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let finish = |values: Vec<f32>, width: usize| -> Result<Vec<f32>, StageError> {
            let rows = values.len() / width;
            if !params.normalise || rows == 0 {
                return Ok(values);
            }
            Tensor::from_vec(values, (rows, width), &DEVICE)
                .and_then(|embeddings| normalise(&embeddings)?.flatten_all()?.to_vec1())
                .map_err(tensor_error)
        };
        let metadata = |modality: &str, provenance: &str| {
            HashMap::from([
                ("pipe".to_owned(), provenance.to_owned()),
                ("modality".to_owned(), modality.to_owned()),
                ("normalised".to_owned(), params.normalise.to_string()),
            ])
        };
        let provenance = context.provenance().to_owned();
        // A part is one of images or one of captions; the whole is all that is wanted.
        let wanted = |port: &str, only: Modality, other: Modality| -> Result<bool, StageError> {
            let name = |modality: Modality| if modality == Modality::Image { "image" } else { "text" };
            match (context.optional_input(port).is_some(), params.modality) {
                (true, modality) if modality == other => Err(StageError::failed(format!(
                    "the input `{port}` is given, which `modality = \"{}\"` leaves out",
                    name(other)
                ))),
                (false, modality) if modality == only => {
                    Err(StageError::failed(format!("the input `{port}` is missing")))
                }
                (false, Modality::Both) if !context.is_part() => Err(StageError::failed(format!(
                    "the input `{port}` is missing; `modality = \"{}\"` does without",
                    name(other)
                ))),
                (given, _) => Ok(given),
            }
        };
        let with_images = wanted("images", Modality::Image, Modality::Text)?;
        let with_texts = wanted("captions", Modality::Text, Modality::Image)?;
        if with_images && let Some(artifact) = context.optional_input("images") {
            let width = model.image_tower()?.embedding_width();
            let seen = slices_seen(artifact, &model);
            let images = read_pixels(artifact, &splits, &model, context)?;
            let all: Vec<usize> = (0..images.ids().len()).collect();
            let values = finish(embed_pixels(images.as_ref(), &model, &all, params.batch, context)?, width)?;
            let columns = columns(images.ids(), images.splits(), width, values)?;
            let mut metadata = metadata("image", &provenance);
            metadata.extend(features::marks(artifact, images.ids(), &model)?);
            if let Some(slices) = seen {
                metadata.insert("volumes".to_owned(), slices);
            }
            write_table(context.output("images")?, SCHEMA, columns, metadata)?;
        }
        if with_texts && let Some(artifact) = context.optional_input("captions") {
            let width = model.text_tower()?.embedding_width();
            let wording =
                Wording { column: params.column.as_deref(), words: params.words.map(|words| words as usize) };
            let texts = TextSet::worded(artifact, &splits, &model, wording)?;
            let values = finish(model.embed_ids(&texts.ids, params.batch, context)?, width)?;
            let columns = columns(&texts.image_ids, &texts.splits, width, values)?;
            write_table(context.output("texts")?, SCHEMA, columns, metadata("text", &provenance))?;
        }
        Ok(())
    }
}

/// The name of the schema, for digests.
const SCHEMA: &str = "embeddings";

/// # Errors
/// If an embedding is not finite.
fn columns(
    ids: &[String],
    splits: &[String],
    width: usize,
    values: Vec<f32>,
) -> Result<Vec<(Field, ArrayRef)>, StageError> {
    for (id, embedding) in ids.iter().zip(values.chunks_exact(width)) {
        check_finite("values of the embedding", id, embedding)?;
    }
    let text = |name: &str, values: &[String]| -> (Field, ArrayRef) {
        (Field::new(name, DataType::Utf8, true), Arc::new(StringArray::from_iter_values(values)))
    };
    Ok(vec![
        text("image_id", ids),
        text("split", splits),
        tensor_column("embedding", &[width], &["width"], values)?,
    ])
}
