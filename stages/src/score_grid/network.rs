//! A classifier that is cut at a layer, whatever its architecture: probes put values in and take values out.

use std::cell::{Cell, RefCell};

use candle_core::{DType, Result as TensorResult, Tensor, bail};
use pipe_attribution::CutClassifier;
use pipe_engine::StageError;
use pipe_models::model::ActivationLayout;
use pipe_models::{Activation, ImageTower, Layer, MaybeProbe, Probe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{DEVICE, Head, Model, tensor_error};

/// A layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The pixels.
    Input,
    /// The second of a residual network's four layers.
    Middle,
    /// The last map.
    Final,
}

impl Place {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Middle => "middle",
            Self::Final => "final",
        }
    }
}

/// A model with the networks of the same weights for the sizes of image that grids need.
pub(super) struct Networks {
    model: Model,
    /// Of images as large as a grid of whole cells; nothing where the model takes one size alone.
    of_grids: Option<Model>,
}

impl Networks {
    /// For grids of `scale` by `scale` cells.
    ///
    /// # Errors
    /// If the model has no head or takes no flat images, or if it takes one size alone and its cells are no whole pixels.
    pub(super) fn new(model: Model, scale: usize) -> Result<Self, StageError> {
        model.head()?;
        model.preprocessor()?;
        let side = model.image_tower()?.geometry().image[0];
        let of_grids =
            if model.image_tower()?.pools_by_mean() { model.of_image_side(side * scale)? } else { None };
        if of_grids.is_none() && !side.is_multiple_of(scale) {
            let message = format!(
                "the model takes images of {side} x {side} alone, which are no grid of {scale} x {scale} equal cells: \
                 `side` has to divide {side}"
            );
            return Err(StageError::failed(message));
        }
        Ok(Self { model, of_grids })
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Whether a grid that is seen as a whole has cells as large as the model's images. Else they are made smaller.
    pub(super) fn takes_whole_cells(&self) -> bool {
        self.of_grids.is_some()
    }

    /// The classifier cut at a layer, or why it has no such layer.
    pub(super) fn cut(&self, place: Place) -> Result<Result<Cut<'_>, String>, StageError> {
        let tower = self.model.image_tower()?;
        let hook = tower.cam_hook();
        let layer = match place {
            Place::Input => None,
            _ if hook.layout != ActivationLayout::Map => {
                return Ok(Err("the model has no convolutional layers to be cut at".to_owned()));
            }
            Place::Middle => Some("vision.layer2".to_owned()),
            Place::Final => Some(hook.name.clone()),
        };
        let of_grids = self.of_grids.as_ref().map(Model::image_tower).transpose()?;
        let towers = std::iter::once(tower).chain(of_grids).map(|network| {
            let pixels = network.geometry().image[0];
            let side = match &layer {
                None => Ok(pixels),
                Some(layer) => layer_of_zeros(network, layer).and_then(|values| Ok(values.dims4()?.2)),
            };
            Ok(Tower { network, pixels, side: side.map_err(tensor_error)? })
        });
        let towers = towers.collect::<Result<Vec<_>, StageError>>()?;
        let pools_by_mean = tower.pools_by_mean();
        Ok(Ok(Cut { towers, head: self.model.head()?, layer, last: hook.name, pools_by_mean }))
    }
}

/// What a layer has of an image of zeros.
fn layer_of_zeros(network: &dyn ImageTower, layer: &str) -> TensorResult<Tensor> {
    let looking = Relay::new(None, layer, None);
    let pixels = Tensor::zeros(network.geometry().input(1), DType::F32, &DEVICE)?;
    network.embed_images(&pixels, Some(&looking))?;
    looking.seen()
}

/// A network for one size of image.
struct Tower<'a> {
    network: &'a dyn ImageTower,
    /// Pixels of an image, and places of the layer, along a side.
    pixels: usize,
    side: usize,
}

/// A classifier that is cut at a layer. Where its embedding is no mean over the last map, the embedding itself stands for
/// that map: a map of one place.
pub(super) struct Cut<'a> {
    towers: Vec<Tower<'a>>,
    head: &'a Head,
    /// Nothing: the input.
    layer: Option<String>,
    last: String,
    pools_by_mean: bool,
}

impl<'a> Cut<'a> {
    /// Whether a part of the last map can be classified.
    pub(super) fn pools_by_mean(&self) -> bool {
        self.pools_by_mean
    }

    /// The network for images, or values of the layer, of this side.
    fn tower(&self, values: &Tensor, side: impl Fn(&Tower<'a>) -> usize) -> TensorResult<&'a dyn ImageTower> {
        let found = values.dims4()?.2;
        match self.towers.iter().find(|tower| side(tower) == found) {
            Some(tower) => Ok(tower.network),
            None => bail!("no network has images or a layer of {found} x {found}"),
        }
    }
}

impl CutClassifier for Cut<'_> {
    fn until_layer(&self, images: &Tensor) -> TensorResult<Tensor> {
        let Some(layer) = &self.layer else { return Ok(images.clone()) };
        let looking = Relay::new(None, layer, None);
        self.tower(images, |tower| tower.pixels)?.embed_images(images, Some(&looking))?;
        looking.seen()
    }

    fn to_last_map(&self, activations: &Tensor, probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
        let put_in = self.layer.as_deref().map(|layer| (layer, activations));
        let relay = Relay::new(put_in, &self.last, probe);
        let network = self.tower(activations, |tower| tower.side)?;
        let embedding = match &self.layer {
            None => network.embed_images(activations, Some(&relay))?,
            // What is in front of the layer does not matter, but for its shape.
            Some(_) => {
                let shape = network.geometry().input(activations.dims4()?.0);
                network.embed_images(&Tensor::zeros(shape, DType::F32, &DEVICE)?, Some(&relay))?
            }
        };
        match self.pools_by_mean {
            true => relay.seen(),
            false => embedding.unsqueeze(2)?.unsqueeze(3),
        }
    }

    fn classify(&self, map: &Tensor) -> TensorResult<Tensor> {
        self.head.logits(&map.mean((2, 3))?)
    }
}

/// Puts the values of a layer in the place of what the network computed, passes on what a probe does behind it, and
/// remembers another layer.
struct Relay<'a> {
    put_in: Option<(&'a str, &'a Tensor)>,
    is_behind: Cell<bool>,
    watched: &'a str,
    seen: RefCell<Option<Tensor>>,
    probe: MaybeProbe<'a>,
}

impl<'a> Relay<'a> {
    fn new(put_in: Option<(&'a str, &'a Tensor)>, watched: &'a str, probe: MaybeProbe<'a>) -> Self {
        Self { put_in, is_behind: Cell::new(put_in.is_none()), watched, seen: RefCell::new(None), probe }
    }

    /// The values of the watched layer.
    fn seen(&self) -> TensorResult<Tensor> {
        match self.seen.take() {
            Some(seen) => Ok(seen),
            None => bail!("the network did not show its layer `{}`", self.watched),
        }
    }

    /// The probe, behind the values that were put in.
    fn passed(&self) -> MaybeProbe<'a> {
        self.probe.filter(|_| self.is_behind.get())
    }
}

impl Probe for Relay<'_> {
    fn activation(&self, name: &str, value: Tensor) -> TensorResult<Tensor> {
        let value = match self.put_in {
            Some((layer, values)) if layer == name => {
                self.is_behind.set(true);
                values.clone()
            }
            _ => match self.passed() {
                Some(probe) => probe.activation(name, value)?,
                None => value,
            },
        };
        if name == self.watched {
            self.seen.replace(Some(value.clone()));
        }
        Ok(value)
    }

    fn wants_attention(&self) -> bool {
        self.probe.is_some_and(Probe::wants_attention)
    }

    fn attention(&self, name: &str, probabilities: Tensor) -> TensorResult<Tensor> {
        match self.passed() {
            Some(probe) => probe.attention(name, probabilities),
            None => Ok(probabilities),
        }
    }

    fn nonlinearity(&self, name: &str, kind: Activation, input: &Tensor) -> TensorResult<Option<Tensor>> {
        match self.passed() {
            Some(probe) => probe.nonlinearity(name, kind, input),
            None => Ok(None),
        }
    }

    fn wants_layers(&self) -> bool {
        self.probe.is_some_and(Probe::wants_layers)
    }

    fn layer(&self, name: &str, layer: &Layer, input: &Tensor) -> TensorResult<Option<Tensor>> {
        match self.passed() {
            Some(probe) => probe.layer(name, layer, input),
            None => Ok(None),
        }
    }

    fn sum(&self, name: &str, path: &Tensor, identity: &Tensor) -> TensorResult<Option<Tensor>> {
        match self.passed() {
            Some(probe) => probe.sum(name, path, identity),
            None => Ok(None),
        }
    }

    fn looks_into(&self, name: &str) -> bool {
        let is_replaced = self.put_in.is_some_and(|(layer, _)| layer == name);
        is_replaced || name == self.watched || self.passed().is_some_and(|probe| probe.looks_into(name))
    }
}
