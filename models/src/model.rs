//! What every foundation model offers, whatever its architecture.

use std::collections::BTreeMap;

use candle_core::{D, Result, Tensor, Var};

use crate::ops::linear;
use crate::{MaybeProbe, ModelConfig, Parameters};

/// The input of an image tower, and how its tokens, or the cells of its last feature map, lie on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatchGeometry {
    /// Channels of the input.
    pub channels: usize,
    /// Slices of the input and of one patch, if the tower takes volumes.
    pub depth: Option<Depth>,
    /// Height and width of the input, in pixels.
    pub image: [usize; 2],
    /// Height and width of one patch, in pixels; of a convolutional tower the total stride.
    pub patch: [usize; 2],
    /// Tokens before the first patch (the class token).
    pub prefix_tokens: usize,
}

/// The third dimension of volumes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Depth {
    /// Slices of the input.
    pub slices: usize,
    /// Slices of one patch.
    pub patch: usize,
}

impl PatchGeometry {
    /// Rows and columns of the patch grid.
    pub fn grid(&self) -> [usize; 2] {
        [self.image[0] / self.patch[0], self.image[1] / self.patch[1]]
    }

    /// Patches along the depth of a volume; 1 for flat images.
    pub fn steps(&self) -> usize {
        self.depth.map_or(1, |depth| depth.slices / depth.patch)
    }

    /// Number of patches: those of all steps.
    pub fn cells(&self) -> usize {
        let [rows, columns] = self.grid();
        self.steps() * rows * columns
    }

    /// The shape of a batch: `[batch, channels, height, width]`, or `[batch, channels, slices, height,
    /// width]` for volumes.
    pub fn input(&self, batch: usize) -> Vec<usize> {
        let [height, width] = self.image;
        match self.depth {
            None => vec![batch, self.channels, height, width],
            Some(depth) => vec![batch, self.channels, depth.slices, height, width],
        }
    }
}

/// How the values of a named activation lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ActivationLayout {
    /// `[batch, prefix tokens + cells, width]`.
    Tokens,
    /// `[batch, channels, rows, columns]`.
    Map,
    /// `[batch * cells of one step, steps, width]`: the sequences of a temporal transformer.
    Sequences,
    /// `[batch * steps, prefix tokens + cells of one step, width]`: tokens of each slice.
    SliceTokens,
    /// `[batch * steps, channels, rows, columns]`: a map of each slice.
    SliceMap,
}

/// Which tokens an attention map relates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttentionScope {
    /// All tokens of a sample with each other: `[batch, heads, tokens, tokens]`.
    Tokens,
    /// The cells of one step of a volume: `[batch * steps, heads, cells, cells]`.
    Step,
    /// The steps at one cell of a volume: `[batch * cells, heads, steps, steps]`.
    Cell,
    /// A pooling query with the mean token and all cells: `[batch, heads, 1, 1 + cells]`.
    Pool,
}

/// One attention map that a probe can see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttentionHook {
    /// The name that the probe is called with.
    pub name: String,
    /// Which tokens it relates.
    pub scope: AttentionScope,
}

/// The activation that the Grad-CAM family explains by default.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CamHook {
    /// The name that the probe is called with: `layer4` of a ResNet, the first norm of the last block of
    /// a transformer.
    pub name: String,
    /// How its values lie.
    pub layout: ActivationLayout,
}

/// A tower from pixels to embeddings. It takes and gives f32 on the CPU, wherever and in whatever precision
/// it computes; gradients flow through.
pub trait ImageTower: Send + Sync {
    /// The input, and how tokens lie on it.
    fn geometry(&self) -> PatchGeometry;

    /// The width of the embedding.
    fn embedding_width(&self) -> usize;

    /// The projected embedding, not L2-normalised: pixels of the shape [`PatchGeometry::input`] (already
    /// preprocessed, f32) to `[batch, embedding width]`.
    ///
    /// # Errors
    /// If the shape does not fit the geometry, or the probe fails.
    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;

    /// The width of [`Self::features`].
    fn feature_width(&self) -> usize;

    /// What the tower knows of each place before it pools: `[batch, cells, feature width]`, cells in the
    /// order step, row, column; without the class token.
    ///
    /// # Errors
    /// As [`Self::embed_images`].
    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;

    /// The activation that class activation maps explain by default.
    fn cam_hook(&self) -> CamHook;

    /// Whether the embedding is the mean over all places of the activation of [`Self::cam_hook`], and nothing else:
    /// the one case in which a linear classifier's weights are those of a class activation map (Zhou et al. 2016).
    fn pools_by_mean(&self) -> bool {
        false
    }

    /// The attention maps, in the order of the forward pass.
    fn attention_hooks(&self) -> Vec<AttentionHook>;
}

/// A tower from token ids to embeddings; what it takes and gives is on the CPU, as with images. The ids also decide the attention mask and the pooled
/// position, by the rule of the original.
pub trait TextTower: Send + Sync {
    /// The number of positions; rows of ids are padded to this length.
    fn context_length(&self) -> usize;

    /// Rows of the embedding table.
    fn vocabulary(&self) -> usize;

    /// The id that rows are padded with.
    fn pad_id(&self) -> u32;

    /// The width of the embedding.
    fn embedding_width(&self) -> usize;

    /// The width of [`Self::hidden_states`] and of [`Self::token_embeddings`].
    fn hidden_width(&self) -> usize;

    /// The projected embedding, not L2-normalised: ids `[batch, context length]` (integers) to
    /// `[batch, embedding width]`.
    ///
    /// # Errors
    /// If the shape is wrong, an id is outside the vocabulary, or the probe fails.
    fn embed_texts(&self, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        // A probe is shown the rows as they are; rows that are too long are refused, whatever they end with.
        let ids = match probe {
            None if ids.dims2()?.1 <= self.context_length() => ids.narrow(1, 0, self.seen_columns(ids)?)?,
            _ => ids.clone(),
        };
        self.embed_token_embeddings(&self.token_embeddings(&ids)?, &ids, probe)
    }

    /// Leading columns of `ids` `[batch, tokens]` that the embeddings depend on: what stands behind them is
    /// padding that no row's pooled position sees.
    ///
    /// # Errors
    /// If the ids are no matrix of integers.
    fn seen_columns(&self, ids: &Tensor) -> Result<usize> {
        ids.dims2().map(|(_, tokens)| tokens)
    }

    /// Token embeddings before positions are added, `[batch, context length, hidden width]`: where text
    /// attribution begins.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    fn token_embeddings(&self, ids: &Tensor) -> Result<Tensor>;

    /// As [`Self::embed_texts`], from token embeddings; `ids` still decide mask and pooled position.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    fn embed_token_embeddings(
        &self,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let hidden = self.hidden_states(embeddings, ids, probe)?;
        self.embed_hidden_states(&hidden, ids, probe)
    }

    /// The last hidden states, `[batch, tokens, hidden width]`, from token embeddings.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    fn hidden_states(&self, embeddings: &Tensor, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;

    /// The projected embedding of hidden states: pooling and projection.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    fn embed_hidden_states(&self, hidden: &Tensor, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;

    /// 1 where a token is seen and 0 on padding, `[batch, tokens]` (f32), if the original masks padding;
    /// `None` if it does not.
    ///
    /// # Errors
    /// If the ids are no matrix of integers.
    fn attention_mask(&self, ids: &Tensor) -> Result<Option<Tensor>>;

    /// The position of each row of ids (integers) whose hidden state stands for the text: the mark of its end, or
    /// `[CLS]`.
    ///
    /// # Errors
    /// If the ids are no matrix of integers.
    fn pooled_positions(&self, ids: &Tensor) -> Result<Vec<usize>>;

    /// The attention maps, in the order of the forward pass.
    fn attention_hooks(&self) -> Vec<AttentionHook>;
}

/// An image tower and a text tower with one embedding space.
pub trait DualEncoder: Send + Sync {
    /// The image tower.
    fn image_tower(&self) -> &dyn ImageTower;

    /// The text tower.
    fn text_tower(&self) -> &dyn TextTower;

    /// The natural logarithm of the factor on cosine similarities, a scalar tensor (a variable
    /// while training).
    fn logit_scale(&self) -> &Tensor;

    /// `exp(logit scale) * cosine` of every image embedding with every text embedding:
    /// `[images, texts]`.
    ///
    /// # Errors
    /// If the widths differ.
    fn logits(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let logits = linear(&normalise(images)?, &normalise(texts)?, None)?;
        logits.broadcast_mul(&self.logit_scale().to_device(logits.device())?.exp()?)
    }
}

/// A transformer over both towers that predicts words behind masks.
pub trait WordPredictor: Send + Sync {
    /// The logarithms of the probabilities of words, `[batch, tokens, vocabulary]`, from the text tower's hidden states
    /// `[batch, tokens, hidden width]` and image embeddings `[batch, embedding width]`, not normalised.
    ///
    /// # Errors
    /// If the widths differ, or the probe fails.
    fn word_log_probabilities(
        &self,
        hidden: &Tensor,
        images: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor>;
}

/// A model of any architecture, as a stage holds it.
pub trait FoundationModel: Send + Sync {
    /// What the weights do not say; [`ModelConfig::build`] makes the model again of it and
    /// [`Self::tensors`].
    fn model_config(&self) -> ModelConfig;

    /// Both towers with one embedding space, if the model has them.
    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        None
    }

    /// The image tower, if the model has one.
    fn as_image_tower(&self) -> Option<&dyn ImageTower> {
        self.as_dual_encoder().map(DualEncoder::image_tower)
    }

    /// The text tower, if the model has one.
    fn as_text_tower(&self) -> Option<&dyn TextTower> {
        self.as_dual_encoder().map(DualEncoder::text_tower)
    }

    /// What predicts words behind masks, if the model has it.
    fn as_word_predictor(&self) -> Option<&dyn WordPredictor> {
        None
    }

    /// Whether the image tower is one of flat images that sees the slices of a volume one by one.
    fn is_slice_wise(&self) -> bool {
        false
    }

    /// The parameters.
    fn parameters(&self) -> &Parameters;

    /// The variables by their names in the checkpoint; empty if the model is frozen.
    fn variables(&self) -> &BTreeMap<String, Var> {
        self.parameters().variables()
    }

    /// The current values of all tensors by their names in the checkpoint.
    fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.parameters().tensors()
    }
}

/// The square of the norm that a shorter row is divided by: 1e-12, as open_clip has it.
const LEAST_SQUARE: f64 = 1e-24;

/// Rows divided by their L2 norm, but by 1e-12 at least, so that a row of zeros stays one:
/// `[batch, width]`.
///
/// # Errors
/// Whatever the device reports.
pub fn normalise(embeddings: &Tensor) -> Result<Tensor> {
    // Bounded before the root, whose gradient at 0 is infinite.
    let square = embeddings.sqr()?.sum_keepdim(D::Minus1)?;
    embeddings.broadcast_div(&square.maximum(LEAST_SQUARE)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_row_of_zeros_stays_one_and_has_a_gradient() {
        let rows = Var::new(&[[3f32, 4.0], [0.0, 0.0], [3e-13, 4e-13]], &Device::Cpu).unwrap();
        let unit = normalise(&rows).unwrap();
        let values = unit.to_vec2::<f32>().unwrap();
        assert_eq!(values[..2], [[0.6, 0.8], [0.0, 0.0]]);
        assert!((values[2][0] - 0.3).abs() < 1e-6, "{values:?}");
        let gradients = unit.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&rows).unwrap().to_vec2::<f32>().unwrap();
        assert!(gradient.iter().flatten().all(|value| value.is_finite()), "{gradient:?}");
        assert!((gradient[0][0] - (1.0 - 0.6 * 1.4) / 5.0).abs() < 1e-6, "{gradient:?}");
    }

    #[test]
    fn geometry_counts_cells_of_images_and_volumes() {
        let flat =
            PatchGeometry { channels: 3, depth: None, image: [224, 250], patch: [32, 32], prefix_tokens: 1 };
        assert_eq!((flat.grid(), flat.steps(), flat.cells()), ([7, 7], 1, 49));
        assert_eq!(flat.input(2), [2, 3, 224, 250]);
        let depth = Some(Depth { slices: 240, patch: 10 });
        let volume =
            PatchGeometry { channels: 1, depth, image: [480, 480], patch: [20, 20], prefix_tokens: 0 };
        assert_eq!((volume.grid(), volume.steps(), volume.cells()), ([24, 24], 24, 13_824));
        assert_eq!(volume.input(1), [1, 1, 240, 480, 480]);
    }
}
