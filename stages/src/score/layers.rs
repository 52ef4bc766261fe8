//! A model with some of its layers drawn anew.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use candle_core::Tensor;
use pipe_engine::StageError;
use pipe_models::random_parameter;

use crate::model::{DEVICE, Head, Model, checkpoint_error, tensor_error};

/// The layers of the image side of a model: what comes before the first block, each block, and what comes
/// after the last one together with the head. Parameters that are not drawn are shared with the model as it is,
/// those that are stay the same while more layers follow.
pub(super) struct RandomLayers<'a> {
    model: &'a Model,
    seed: u64,
    /// Names of tensors, layer by layer from the input on.
    layers: Vec<Vec<String>>,
    /// Whether the head stays: it is no layer of the image side where its classes are texts.
    keeps_head: bool,
    /// The model asked for last, and the layers that are random in it.
    last: RefCell<Option<(Vec<usize>, Rc<Model>)>>,
}

impl<'a> RandomLayers<'a> {
    pub(super) fn new(model: &'a Model, seed: u64, keeps_head: bool) -> Self {
        let names = model.network.tensors().into_keys();
        Self { model, seed, layers: layers_of(names), keeps_head, last: RefCell::new(None) }
    }

    /// The number of layers.
    pub(super) fn len(&self) -> usize {
        self.layers.len()
    }

    /// The model with these layers random.
    ///
    /// # Errors
    /// If the parts do not fit each other, which is a defect.
    pub(super) fn model(&self, layers: &[usize]) -> Result<Rc<Model>, StageError> {
        let mut last = self.last.borrow_mut();
        let (mut tensors, mut head, known) = match last.as_ref() {
            Some((known, model)) if known == layers => return Ok(model.clone()),
            // One more layer than last time: the others need not be drawn again.
            Some((known, model)) if layers.starts_with(known) => {
                (model.network.tensors(), model.head.clone(), known.len())
            }
            _ => (self.model.network.tensors(), self.model.head.clone(), 0),
        };
        *last = None;
        for layer in &layers[known..] {
            for name in &self.layers[*layer] {
                self.draw(name, &mut tensors)?;
            }
            if layer + 1 == self.layers.len() && !self.keeps_head {
                head = head.map(|head| self.head(&head)).transpose()?;
            }
        }
        let model = Rc::new(self.model.with_tensors(tensors, head).map_err(checkpoint_error)?);
        *last = Some((layers.to_vec(), model.clone()));
        Ok(model)
    }

    fn draw(&self, name: &str, tensors: &mut BTreeMap<String, Tensor>) -> Result<(), StageError> {
        if let Some(tensor) = tensors.get_mut(name) {
            let drawn = random_parameter(name, tensor.dims(), self.seed, tensor.device());
            *tensor = drawn.and_then(|drawn| drawn.to_dtype(tensor.dtype())).map_err(tensor_error)?;
        }
        Ok(())
    }

    fn head(&self, head: &Head) -> Result<Head, StageError> {
        let weight = random_parameter("head.weight", head.weight.dims(), self.seed, &DEVICE);
        let bias = head.bias.zeros_like().map_err(tensor_error)?;
        Ok(Head { weight: weight.map_err(tensor_error)?, bias, ..head.clone() })
    }
}

/// What the names of tensors of the image side begin with, in models that have another.
const IMAGE_SIDE: [&str; 5] =
    ["visual.", "vision_model.", "visual_projection.", "visual_transformer.", "to_visual_latent."];

/// Parts of names of what comes after the last block.
const LAST: [&str; 9] = [
    "post_layernorm",
    "ln_post",
    "visual_projection",
    "visual.proj",
    "attnpool",
    "trunk.norm.",
    "head.",
    "to_visual_latent",
    "norm_out",
];

/// Parts of names of what has no part in an embedding, or is no number to be drawn.
const IGNORED: [&str; 4] = ["to_pixels", "num_batches_tracked", "initted", "cluster_size"];

/// The number of a block and what its name begins with, if `name` belongs to one: `encoder.layers.3.`,
/// `blocks.3.`, `resblocks.3.`, `layer2.3.`.
fn block(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    let mut previous = "";
    for part in name.split('.') {
        let is_list = matches!(previous, "layers" | "blocks" | "resblocks")
            || (previous.starts_with("layer") && previous[5..].parse::<usize>().is_ok());
        if let (true, Ok(number)) = (is_list, part.parse::<usize>()) {
            return Some((&name[..start], number));
        }
        start += part.len() + 1;
        previous = part;
    }
    None
}

/// Names of tensors, layer by layer.
fn layers_of(names: impl IntoIterator<Item = String>) -> Vec<Vec<String>> {
    let is_image = |name: &String| IMAGE_SIDE.iter().any(|prefix| name.starts_with(prefix));
    let names: Vec<String> = names.into_iter().collect();
    let has_sides = names.iter().any(is_image);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut blocks: BTreeMap<(String, usize), Vec<String>> = BTreeMap::new();
    for name in names {
        if (has_sides && !is_image(&name)) || IGNORED.iter().any(|part| name.contains(part)) {
            continue;
        }
        match block(&name) {
            Some((prefix, number)) => blocks.entry((prefix.to_owned(), number)).or_default().push(name),
            None if name.starts_with("norm.") || LAST.iter().any(|part| name.contains(part)) => {
                last.push(name);
            }
            None => first.push(name),
        }
    }
    std::iter::once(first).chain(blocks.into_values()).chain([last]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(names: &[&str]) -> Vec<Vec<String>> {
        layers_of(names.iter().map(|name| (*name).to_owned()))
    }

    #[test]
    fn layers_of_published_layouts() {
        let names = [
            "logit_scale",
            "text_model.encoder.layers.0.mlp.fc1.weight",
            "vision_model.embeddings.class_embedding",
            "vision_model.pre_layrnorm.weight",
            "vision_model.encoder.layers.10.mlp.fc1.weight",
            "vision_model.encoder.layers.2.mlp.fc1.weight",
            "vision_model.post_layernorm.weight",
            "visual_projection.weight",
        ];
        assert_eq!(
            layers(&names),
            [vec![names[2], names[3]], vec![names[5]], vec![names[4]], vec![names[6], names[7]]]
        );
        let names = [
            "visual.bn1.running_mean",
            "visual.bn1.num_batches_tracked",
            "visual.conv1.weight",
            "visual.layer1.0.conv1.weight",
            "visual.layer1.1.conv1.weight",
            "visual.layer2.0.conv1.weight",
            "visual.attnpool.c_proj.weight",
        ];
        assert_eq!(
            layers(&names),
            [vec![names[0], names[2]], vec![names[3]], vec![names[4]], vec![names[5]], vec![names[6]]]
        );
        let names = [
            "visual.class_embedding",
            "visual.ln_pre.weight",
            "visual.transformer.resblocks.0.attn.in_proj_weight",
            "transformer.resblocks.0.attn.in_proj_weight",
            "visual.ln_post.weight",
            "visual.proj",
        ];
        assert_eq!(layers(&names), [vec![names[0], names[1]], vec![names[2]], vec![names[4], names[5]]]);
        let names = [
            "visual.trunk.patch_embed.proj.weight",
            "visual.trunk.blocks.0.norm1.weight",
            "visual.trunk.norm.weight",
            "visual.head.proj.weight",
        ];
        assert_eq!(layers(&names), [vec![names[0]], vec![names[1]], vec![names[2], names[3]]]);
        // Models of images alone.
        let names =
            ["patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight"];
        assert_eq!(layers(&names), [vec![names[0]], vec![names[1]], vec![names[2]], vec![names[3]]]);
    }
}
