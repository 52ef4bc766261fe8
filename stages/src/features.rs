//! What a classifier sees of images: embeddings, made here of pixels, or by a stage `embed` before.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use pipe_engine::cache::{Digest, Value};
use pipe_engine::{Artifact, StageContext, StageError};
use rayon::prelude::*;

use crate::images::{Pixels, embed_pixels, read_pixels};
use crate::ipc::{read_file, tensors, texts};
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::read_columns;

/// The input with embeddings that were computed before.
pub(crate) const EMBEDDINGS: &str = "embeddings";

/// Images or volumes of some splits, as embeddings.
pub(crate) enum Features {
    /// Not yet embedded.
    Pixels(Box<dyn Pixels>),
    /// Embedded before.
    Embedded(Embedded),
}

impl Features {
    /// The rows of the input `images` whose split is one of `splits` (all if empty), with their embeddings if the
    /// input `embeddings` is given.
    ///
    /// # Errors
    /// If a table is damaged; if the embeddings are of other images, of another model, or lack a row.
    pub(crate) fn read(
        context: &StageContext<'_>,
        splits: &[&str],
        model: &Model,
    ) -> Result<Self, StageError> {
        let images = context.input("images")?;
        match context.optional_input(EMBEDDINGS) {
            Some(artifact) => Embedded::read(artifact, images, splits, &name(model)?).map(Self::Embedded),
            None => read_pixels(images, splits, model, context).map(Self::Pixels),
        }
    }

    pub(crate) fn ids(&self) -> &[String] {
        match self {
            Self::Pixels(pixels) => pixels.ids(),
            Self::Embedded(embedded) => &embedded.ids,
        }
    }

    pub(crate) fn splits(&self) -> &[String] {
        match self {
            Self::Pixels(pixels) => pixels.splits(),
            Self::Embedded(embedded) => &embedded.splits,
        }
    }

    pub(crate) fn groups(&self) -> &[Option<String>] {
        match self {
            Self::Pixels(pixels) => pixels.groups(),
            Self::Embedded(embedded) => &embedded.groups,
        }
    }

    /// The rows of a split.
    pub(crate) fn rows(&self, split: &str) -> Vec<usize> {
        let splits = self.splits();
        (0..splits.len()).filter(|row| splits[*row] == split).collect()
    }

    /// What only pixels are enough for.
    ///
    /// # Errors
    /// If there are embeddings alone.
    pub(crate) fn pixels(&self) -> Result<&dyn Pixels, StageError> {
        match self {
            Self::Pixels(pixels) => Ok(pixels.as_ref()),
            Self::Embedded(_) => Err(StageError::failed(
                "the input `embeddings` is for a frozen tower: what trains the tower has to see pixels",
            )),
        }
    }

    /// Embeddings of some rows, `[rows, width]` flat, by as many forward passes as [`Self::passes`] says.
    ///
    /// # Errors
    /// If the model does not take the images.
    pub(crate) fn embed(
        &self,
        model: &Model,
        rows: &[usize],
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<f32>, StageError> {
        match self {
            Self::Pixels(pixels) => embed_pixels(pixels.as_ref(), model, rows, batch, context),
            Self::Embedded(embedded) => Ok(embedded.of(rows)),
        }
    }

    /// The forward passes that embedding so many rows takes.
    pub(crate) fn passes(&self, rows: usize) -> usize {
        match self {
            Self::Pixels(_) => rows,
            Self::Embedded(_) => 0,
        }
    }

    /// Tells what embedding so many rows took.
    pub(crate) fn log(&self, rows: usize, context: &StageContext<'_>) {
        log(rows, self.passes(rows), context);
    }

    /// How many rows make a batch where `batch` are asked for.
    pub(crate) fn at_a_time(&self, batch: i64) -> i64 {
        match self {
            Self::Pixels(pixels) => pixels.at_a_time(batch),
            Self::Embedded(_) => batch,
        }
    }
}

/// Tells what embedding images took.
pub(crate) fn log(images: usize, passes: usize, context: &StageContext<'_>) {
    context.host().log(&format!("{images} images, {passes} forward passes of the image tower"));
}

/// Embeddings of images, held to the images and the model that they have to be of.
pub(crate) struct Embedded {
    /// What [`name`] says of their model.
    pub(crate) model: String,
    pub(crate) ids: Vec<String>,
    splits: Vec<String>,
    groups: Vec<Option<String>>,
    width: usize,
    values: Vec<f32>,
}

impl Embedded {
    /// The embeddings of the rows of `images` whose split is one of `splits` (all if empty); `model` is what [`name`]
    /// says.
    pub(crate) fn read(
        artifact: &Artifact,
        images: &Artifact,
        splits: &[&str],
        model: &str,
    ) -> Result<Self, StageError> {
        let table = read_columns(images, &["image_id", "split", "sha", "group_id"])?;
        let contents: BTreeMap<&str, &str> =
            table.strings("image_id")?.into_iter().zip(table.strings("sha")?).collect();
        let known = read_embeddings(artifact, &contents, model)?;
        let table = table.select(&table.rows_of_splits(splits));
        let owned = |column: &str| -> Result<Vec<String>, StageError> {
            Ok(table.strings(column)?.into_iter().map(str::to_owned).collect())
        };
        let (ids, splits) = (owned("image_id")?, owned("split")?);
        let groups = match table.column("group_id") {
            Some(_) => table.utf8("group_id")?.to_vec(),
            None => vec![None; ids.len()],
        };
        let width = known.values().next().map_or(0, Vec::len);
        let mut values = Vec::with_capacity(ids.len() * width);
        for (id, split) in ids.iter().zip(&splits) {
            let embedding = known.get(id).ok_or_else(|| {
                let help = "leave out `splits` of the stage `embed`, or name the split there";
                wrong(format!("the image `{id}` of split `{split}` has no embedding: {help}"))
            })?;
            values.extend_from_slice(embedding);
        }
        Ok(Self { model: model.to_owned(), ids, splits, groups, width, values })
    }

    /// Those of some rows, `[rows, width]` flat.
    pub(crate) fn of(&self, rows: &[usize]) -> Vec<f32> {
        let row = |row: &usize| &self.values[row * self.width..(row + 1) * self.width];
        rows.iter().flat_map(row).copied().collect()
    }
}

/// What [`name`] says of the model that embeddings are of; nothing where they do not say it.
///
/// # Errors
/// If they are damaged.
pub(crate) fn model_of(artifact: &Artifact) -> Result<Option<String>, StageError> {
    let Some(file) = artifact.files_ending(".arrow").next() else { return Ok(None) };
    Ok(read_file(&file.location)?.schema().metadata().get(MODEL).cloned())
}

fn wrong(reason: String) -> StageError {
    StageError::input(EMBEDDINGS, reason)
}

/// Embeddings by the ids of their images, once each file has been held to the images and the model.
fn read_embeddings(
    artifact: &Artifact,
    contents: &BTreeMap<&str, &str>,
    model: &str,
) -> Result<BTreeMap<String, Vec<f32>>, StageError> {
    let mut known: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for file in artifact.files_ending(".arrow") {
        let batch = read_file(&file.location)?;
        let missing = |name: &str| StageError::input(&file.path, format!("it has no column `{name}`"));
        let ids: Vec<String> =
            texts(&batch, "image_id").ok_or_else(|| missing("image_id"))?.into_iter().flatten().collect();
        let (values, shape) = tensors(&batch, "embedding").ok_or_else(|| missing("embedding"))?;
        let schema = batch.schema();
        let says = |key: &str| schema.metadata().get(key).map_or("", String::as_str);
        if says("modality") != "image" {
            return Err(wrong("they are of captions: take the output `images` of `embed`".to_owned()));
        }
        if says("normalised") != "false" {
            return Err(wrong(
                "they have been divided by their length: `embed` has to leave that with `normalise = false`"
                    .to_owned(),
            ));
        }
        if says(MODEL) != model {
            let reason = "they are of another checkpoint than the input `checkpoint` (a head makes no difference), or of \
                          another `precision`";
            return Err(wrong(reason.to_owned()));
        }
        let unknown = ids.iter().find(|id| !contents.contains_key(id.as_str()));
        if let Some(id) = unknown {
            return Err(wrong(format!("they are of other images: the input `images` has none of id `{id}`")));
        }
        if says(IMAGES) != contents_name(ids.iter().map(|id| (id.as_str(), contents[id.as_str()]))) {
            return Err(wrong(format!(
                "they are of other images than the input `images`: the ids in {} are the same, the pictures are not",
                file.path
            )));
        }
        let width: usize = shape.iter().product();
        known.extend(ids.into_iter().zip(values.chunks_exact(width).map(<[f32]>::to_vec)));
    }
    Ok(known)
}

/// In the metadata of embeddings of images: what [`name`] says of the model.
const MODEL: &str = "model";
/// There too: the ids and contents of the images of the file.
const IMAGES: &str = "images";

/// What embeddings of these images (a column of ids, in the order of the file) by this model say of both.
///
/// # Errors
/// If the table of images is damaged, or a tensor cannot be read.
pub(crate) fn marks(
    images: &Artifact,
    ids: &[String],
    model: &Model,
) -> Result<HashMap<String, String>, StageError> {
    let table = read_columns(images, &["image_id", "sha"])?;
    let contents: BTreeMap<&str, &str> =
        table.strings("image_id")?.into_iter().zip(table.strings("sha")?).collect();
    let rows = ids.iter().map(|id| (id.as_str(), contents.get(id.as_str()).copied().unwrap_or_default()));
    Ok(HashMap::from([(MODEL.to_owned(), name(model)?), (IMAGES.to_owned(), contents_name(rows))]))
}

/// The name of images: ids and contents, in their order.
fn contents_name<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let row = |(id, content): (&str, &str)| Value::List(vec![Value::string(id), Value::string(content)]);
    Value::List(rows.map(row).collect()).digest("pipe images v1").to_hex()
}

/// The name of what decides a model's embeddings: architecture, preprocessing, weights and their precision. The head,
/// the tokeniser, and the layout of its files are none of these.
///
/// # Errors
/// If a tensor cannot be read.
pub(crate) fn name(model: &Model) -> Result<String, StageError> {
    let digest = |(name, tensor): (&String, &Tensor)| -> Result<Value, StageError> {
        let values = tensor
            .to_device(&DEVICE)
            .and_then(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>())
            .map_err(tensor_error)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = format!("{:?} {:?}", tensor.dims(), tensor.dtype());
        Ok(Value::List(vec![Value::string(name), Value::string(shape), Value::Digest(Digest::of(&bytes))]))
    };
    let tensors = model.network.tensors();
    let tensors: Vec<(&String, &Tensor)> = tensors.iter().collect();
    let tensors = tensors.into_par_iter().map(digest).collect::<Result<Vec<Value>, StageError>>()?;
    let preprocessor = model.preprocessor.as_ref().map(|preprocessor| preprocessor.to_json());
    let facts = vec![
        Value::string(model.network.model_config().to_json()),
        Value::string(preprocessor.unwrap_or_default()),
        Value::List(tensors),
    ];
    Ok(Value::List(facts).digest("pipe model v1").to_hex())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::ablate::Ablate;
    use crate::checkpoint::Checkpoint;
    use crate::embed::Embed;
    use crate::evaluate_classify::EvaluateClassify;
    use crate::finetune::FinetuneClassify;
    use crate::phantom::IngestPhantom;
    use crate::testing::{Made, run};
    use crate::tokenizer::TrainTokenizer;

    /// Chests with a finding or none, models with random weights, and embeddings of the images by the first.
    struct Study {
        phantoms: Made,
        models: Vec<Made>,
        embedded: Made,
    }

    /// So many that no batch of theirs has only a few rows: small products add up in another order, and differ in the
    /// last bit.
    fn phantoms(seed: i64) -> Made {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "abnormal", "size": 32, "seed": seed, "train": 80,
            "val": 20, "test": 40, "p_normal": 0.5,
        });
        run(&IngestPhantom, &params, &[]).unwrap()
    }

    fn study() -> Study {
        let phantoms = phantoms(5);
        let tokenizer =
            run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &phantoms["captions"])]).unwrap();
        let size = json!({ "width": 32, "layers": 1, "heads": 2 });
        let model = |seed: i64| {
            let params = json!({
                "init": "random", "image_size": 32, "patch": 8, "projection": 32, "vision": size, "text": size,
                "seed": seed,
            });
            run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap()
        };
        let models = vec![model(0), model(1)];
        let inputs = [("images", &phantoms["images"]), ("checkpoint", &models[0]["checkpoint"])];
        let embedded = run(&Embed, &json!({ "modality": "image" }), &inputs).unwrap();
        Study { phantoms, models, embedded }
    }

    impl Study {
        fn inputs<'a>(&'a self, checkpoint: &'a Artifact) -> Vec<(&'a str, &'a Artifact)> {
            let images = ("images", &self.phantoms["images"]);
            vec![images, ("labels", &self.phantoms["labels"]), ("checkpoint", checkpoint)]
        }

        /// Runs a kind without and with embeddings, holds one to the other, and returns the latter.
        fn equal(
            &self,
            kind: &dyn pipe_engine::AnyKind,
            params: &Json,
            port: &str,
            checkpoint: &Artifact,
        ) -> Made {
            let mut inputs = self.inputs(checkpoint);
            let without = run(kind, params, &inputs).unwrap();
            inputs.push((port, &self.embedded["images"]));
            let with = run(kind, params, &inputs).unwrap();
            for (port, artifact) in &without.artifacts {
                assert_eq!(artifact.digest, with[port].digest, "{params}: {port}");
            }
            let passes = |made: &Made| -> Vec<usize> {
                let counts = made.lines.iter().filter_map(|line| line.split(" images, ").nth(1));
                counts.map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect()
            };
            assert!(passes(&without).iter().all(|count| *count > 0), "{:?}", without.lines);
            assert!(
                !passes(&with).is_empty() && passes(&with).iter().all(|count| *count == 0),
                "{:?}",
                with.lines
            );
            let counted = |made: &Made| made.counts.get("forward_passes").copied().unwrap_or_default();
            let spared: usize = passes(&without).iter().sum();
            assert_eq!(counted(&without) - counted(&with), spared as u64);
            with
        }
    }

    #[test]
    fn what_was_embedded_before_gives_the_same_without_a_pass() {
        let study = study();
        let model = &study.models[0]["checkpoint"];
        let probe = json!({ "mode": "linear_probe", "c": 1.0 });
        let probed = study.equal(&FinetuneClassify, &probe, EMBEDDINGS, model);
        // The head's checkpoint is another one, with the same tower.
        study.equal(&EvaluateClassify, &json!({ "splits": [] }), EMBEDDINGS, &probed["checkpoint"]);
        let prompts = json!({
            "normal": ["frontal x-ray of the chest with no abnormality"],
            "abnormal": ["frontal x-ray of the chest showing a large effusion"],
        });
        study.equal(&EvaluateClassify, &json!({ "prompts": prompts }), EMBEDDINGS, model);
        study.equal(&EvaluateClassify, &json!({ "neighbours": { "k": 5 } }), EMBEDDINGS, model);
        let ablated = json!({ "c": 1.0, "permutations": 2, "conditions": ["majority", "image_only", "shuffled_image"] });
        study.equal(&Ablate, &ablated, "image_embeddings", &probed["checkpoint"]);
    }

    #[test]
    fn embeddings_of_something_else_are_refused() {
        let study = study();
        let params = json!({ "mode": "linear_probe", "c": 1.0 });
        let refused = |checkpoint: &Artifact, images: &Artifact, embeddings: &Artifact, params: &Json| {
            let labels = &study.phantoms["labels"];
            let inputs = [
                ("images", images),
                ("labels", labels),
                ("checkpoint", checkpoint),
                (EMBEDDINGS, embeddings),
            ];
            run(&FinetuneClassify, params, &inputs).err().expect("it is refused").to_string()
        };
        let (model, other) = (&study.models[0]["checkpoint"], &study.models[1]["checkpoint"]);
        let (images, embeddings) = (&study.phantoms["images"], &study.embedded["images"]);
        let error = refused(other, images, embeddings, &params);
        assert!(error.contains("of another checkpoint"), "{error}");
        let error = refused(model, &phantoms(6)["images"], embeddings, &params);
        assert!(error.contains("of other images"), "{error}");
        let error = refused(model, images, embeddings, &json!({ "mode": "full" }));
        assert!(error.contains("frozen tower"), "{error}");

        let embed = |params: Json| {
            let inputs =
                [("images", images), ("captions", &study.phantoms["captions"]), ("checkpoint", model)];
            run(&Embed, &params, &inputs).unwrap()
        };
        let error = refused(model, images, &embed(json!({ "splits": ["test"] }))["images"], &params);
        assert!(error.contains("of split `train` has no embedding"), "{error}");
        let normalised = embed(json!({ "normalise": true }));
        let error = refused(model, images, &normalised["images"], &params);
        assert!(error.contains("divided by their length"), "{error}");
        let error = refused(model, images, &normalised["texts"], &params);
        assert!(error.contains("of captions"), "{error}");
    }
}
