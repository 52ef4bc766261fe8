//! A trained network that finds masks (Dabkowski and Gal 2017), as an artifact: what it reads and for which classifier
//! (`masker.json`), and its tensors (`masker.safetensors`).

use candle_core::{DType, Tensor};
use pipe_attribution::{Masker, MaskerLayer, MaskerSizes};
use pipe_engine::cache::Digest;
use pipe_engine::{Artifact, OutputWriter, StageError};
use pipe_models::checkpoint::{read_tensors, write_tensors};
use pipe_models::model::ActivationLayout;
use serde::{Deserialize, Serialize};

use crate::model::{DEVICE, Model, checkpoint_error, files, tensor_error, write_text};

const DESCRIPTION: &str = "masker.json";
const WEIGHTS: &str = "masker.safetensors";
/// The version of the description.
const FORMAT: u32 = 1;

/// What `masker.json` says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: u32,
    /// The digest of the classifier's head: a masker is of no use for another one.
    head: String,
    classes: usize,
    width: usize,
    image: [usize; 2],
    /// The finest first.
    layers: Vec<Layer>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    name: String,
    prefix: usize,
    grid: [usize; 2],
    channels: usize,
}

/// What a masker of `width` channels is made of that reads the layers of a classifier: the four of a residual network, or
/// what stands before the last block of a transformer.
///
/// # Errors
/// If the classifier has no head or fails. Inside: why there is no masker for it.
pub(crate) fn sizes(model: &Model, width: usize) -> Result<Result<MaskerSizes, String>, StageError> {
    let (tower, description) = (model.image_tower()?, &model.head()?.description);
    let (geometry, hook) = (tower.geometry(), tower.cam_hook());
    if geometry.depth.is_some() {
        return Ok(Err("the method is defined here for flat images".to_owned()));
    }
    if description.is_multi_label() || description.classes.len() < 2 {
        let reason = "the method asks by how much a class leads over the best other of several that exclude each other";
        return Ok(Err(reason.to_owned()));
    }
    let (names, prefix) = match hook.layout {
        ActivationLayout::Map => ((1..=4).map(|layer| format!("vision.layer{layer}")).collect(), 0),
        _ => (vec![hook.name], geometry.prefix_tokens),
    };
    let blank = |name: String| MaskerLayer { name, prefix, grid: geometry.grid(), channels: 0 };
    let mut layers: Vec<MaskerLayer> = names.into_iter().map(blank).collect();
    // How large they are is seen when an image goes through.
    let shapes = Shapes(std::cell::RefCell::new(vec![Vec::new(); layers.len()]), &layers);
    let pixels = Tensor::zeros(geometry.input(1), DType::F32, &DEVICE).map_err(tensor_error)?;
    tower.embed_images(&pixels, Some(&shapes)).map_err(tensor_error)?;
    let shapes = shapes.0.into_inner();
    for (layer, shape) in layers.iter_mut().zip(shapes) {
        match shape[..] {
            [_, channels, rows, columns] => (layer.channels, layer.grid) = (channels, [rows, columns]),
            [_, _, channels] => layer.channels = channels,
            _ => return Ok(Err(format!("the model has no layer `{}`", layer.name))),
        }
    }
    Ok(Ok(MaskerSizes { layers, classes: description.classes.len(), width, image: geometry.image }))
}

/// Remembers the shapes of layers.
struct Shapes<'a>(std::cell::RefCell<Vec<Vec<usize>>>, &'a [MaskerLayer]);

impl pipe_models::Probe for Shapes<'_> {
    fn activation(&self, name: &str, value: Tensor) -> candle_core::Result<Tensor> {
        if let Some(place) = self.1.iter().position(|layer| layer.name == name) {
            self.0.borrow_mut()[place] = value.dims().to_vec();
        }
        Ok(value)
    }
}

/// The digest of a classifier's head.
fn head_digest(model: &Model) -> Result<String, StageError> {
    let head = model.head()?;
    let mut bytes = Vec::new();
    for tensor in [&head.weight, &head.bias] {
        let values =
            tensor.detach().to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
        bytes.extend(values.map_err(tensor_error)?.into_iter().flat_map(f32::to_le_bytes));
    }
    Ok(Digest::of(&bytes).to_hex())
}

/// Writes a masker of a classifier.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn save(masker: &Masker, model: &Model, output: &OutputWriter) -> Result<(), StageError> {
    let path = output.path(WEIGHTS)?;
    write_tensors(&path, &masker.tensors()).map_err(|error| {
        StageError::environment(format!("writing `{WEIGHTS}`"), std::io::Error::other(error.reason))
    })?;
    let MaskerSizes { layers, classes, width, image } = masker.sizes().clone();
    let layer =
        |MaskerLayer { name, prefix, grid, channels }: MaskerLayer| Layer { name, prefix, grid, channels };
    let layers = layers.into_iter().map(layer).collect();
    let description =
        Description { format: FORMAT, head: head_digest(model)?, classes, width, image, layers };
    let json = serde_json::to_string_pretty(&description)
        .map_err(|error| StageError::because(format!("writing `{DESCRIPTION}`"), error))?;
    write_text(&output.path(DESCRIPTION)?, &format!("{json}\n"))
}

/// Reads the masker of a classifier.
///
/// # Errors
/// If a file is missing or damaged, or the masker is of another classifier.
pub(crate) fn load(artifact: &Artifact, model: &Model) -> Result<Masker, StageError> {
    let missing =
        || StageError::input(DESCRIPTION, "the input `masker` lacks it; a stage `masker` writes one");
    let location = &artifact.file(DESCRIPTION).ok_or_else(missing)?.location;
    let text = std::fs::read_to_string(location)
        .map_err(|error| StageError::environment(format!("reading `{DESCRIPTION}`"), error))?;
    let wrong = |reason: String| StageError::input(DESCRIPTION, reason);
    let description: Description = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if description.format != FORMAT {
        return Err(wrong(format!("it is of format {}; {FORMAT} is known", description.format)));
    }
    let layer = |Layer { name, prefix, grid, channels }: Layer| MaskerLayer { name, prefix, grid, channels };
    let layers = description.layers.into_iter().map(layer).collect();
    let Description { classes, width, image, head, .. } = Description { layers: Vec::new(), ..description };
    let found = MaskerSizes { layers, classes, width, image };
    let expected = sizes(model, width)?.map_err(|reason| StageError::input("masker", reason))?;
    if found != expected || head != head_digest(model)? {
        let reason = "the masker was trained for another classifier than the input `checkpoint`";
        return Err(wrong(reason.to_owned()));
    }
    let tensors = read_tensors(&files(artifact), WEIGHTS, &DEVICE).map_err(checkpoint_error)?;
    Masker::new(found, tensors).map_err(|error| StageError::input(WEIGHTS, error.to_string()))
}
