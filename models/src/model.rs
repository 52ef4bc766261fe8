//! What every foundation model offers.

use candle_core::{Result, Tensor};

use crate::MaybeProbe;

/// How the tokens of an image tower lie on the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PatchGeometry {
    /// Channels of the input.
    pub channels: usize,
    /// Height and width of the input, in pixels.
    pub image: [usize; 2],
    /// Height and width of one patch, in pixels.
    pub patch: [usize; 2],
    /// Tokens before the first patch (the class token).
    pub prefix_tokens: usize,
}

impl PatchGeometry {
    /// Rows and columns of the patch grid.
    pub fn grid(&self) -> [usize; 2] {
        [self.image[0] / self.patch[0], self.image[1] / self.patch[1]]
    }
}

/// A tower from pixels to embeddings.
pub trait ImageTower: Send + Sync {
    /// How tokens lie on the image.
    fn geometry(&self) -> PatchGeometry;

    /// The width of the embedding.
    fn embedding_width(&self) -> usize;

    /// The projected embedding, not L2-normalised: `[batch, channels, height, width]` (already
    /// preprocessed, f32) to `[batch, embedding width]`.
    ///
    /// # Errors
    /// If the shape does not fit the geometry, or the probe fails.
    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;
}

/// A tower from token ids to embeddings.
pub trait TextTower: Send + Sync {
    /// The number of positions; every row of ids has this length.
    fn context_length(&self) -> usize;

    /// The width of the embedding.
    fn embedding_width(&self) -> usize;

    /// The projected embedding, not L2-normalised: ids `[batch, context length]` (u32) to
    /// `[batch, embedding width]`.
    ///
    /// # Errors
    /// If the shape is wrong, an id is outside the vocabulary, or the probe fails.
    fn embed_texts(&self, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;

    /// Token embeddings before positions are added, `[batch, context length, width]`: where text
    /// attribution begins.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    fn token_embeddings(&self, ids: &Tensor) -> Result<Tensor>;

    /// As [`Self::embed_texts`], from token embeddings; `ids` still decide the pooled position.
    ///
    /// # Errors
    /// As [`Self::embed_texts`].
    fn embed_token_embeddings(
        &self,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor>;
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
}
