//! How well a text fits an image, seen from the text.

use candle_core::{Result, Tensor};
use pipe_models::{DualEncoder, MaybeProbe};

use crate::Score;

/// `exp(logit scale) * cosine` of each sample's text with its image, as a function of the text's token
/// embeddings `[rows, tokens, width]`. Ids, and with them positions, attention mask and pooled position, are
/// the text's own, whatever its embeddings become.
pub struct TextSimilarity<'a> {
    encoder: &'a dyn DualEncoder,
    ids: Tensor,
    images: Tensor,
}

impl<'a> TextSimilarity<'a> {
    /// Of texts `ids` `[samples, tokens]` (integers) with image embeddings `[samples, width]`.
    ///
    /// # Errors
    /// If there is not one image per text.
    pub fn new(encoder: &'a dyn DualEncoder, ids: &Tensor, images: &Tensor) -> Result<Self> {
        let (texts, pictures) = (ids.dims2()?.0, images.dims2()?.0);
        if texts != pictures {
            candle_core::bail!("{texts} texts need as many images, not {pictures}");
        }
        Ok(Self { encoder, ids: ids.clone(), images: images.detach() })
    }

    /// What is attributed: the token embeddings of the texts.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embeddings(&self) -> Result<Tensor> {
        self.embeddings_of(&self.ids)
    }

    /// The token embeddings of other ids `[texts, tokens]`: a baseline.
    ///
    /// # Errors
    /// As [`Self::embeddings`].
    pub fn embeddings_of(&self, ids: &Tensor) -> Result<Tensor> {
        self.encoder.text_tower().token_embeddings(ids)
    }
}

impl Score for TextSimilarity<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let rows: Vec<u32> = samples.iter().map(|sample| *sample as u32).collect();
        let rows = Tensor::new(rows, input.device())?;
        let ids = self.ids.index_select(&rows, 0)?;
        let texts = self.encoder.text_tower().embed_token_embeddings(input, &ids, probe)?;
        let images = self.images.index_select(&rows, 0)?;
        let own: Vec<u32> = (0..samples.len() as u32).collect();
        let own = Tensor::from_vec(own, (samples.len(), 1), input.device())?;
        self.encoder.logits(&images, &texts)?.gather(&own, 1)?.squeeze(1)
    }
}
