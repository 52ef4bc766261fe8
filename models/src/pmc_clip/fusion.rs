//! The transformer over both towers, and the loss of masked words.

use candle_core::{DType, Result, Tensor, bail};

use super::config::FusionConfig;
use crate::bert::BertConfig;
use crate::checkpoint::CheckpointError;
use crate::device::{enter, leave};
use crate::layers::{Block, BlockLayout, BlockShape, Projection};
use crate::model::{WordPredictor, normalise};
use crate::ops::composed::log_softmax;
use crate::probe::observe;
use crate::weights::Weights;
use crate::{Activation, MaybeProbe};

/// Tokens behind the text: a learned one and the image.
const ADDED: usize = 2;
/// Labels of tokens whose prediction does not count.
const IGNORED_LABEL: u32 = 0;

/// Blocks over the hidden states of a text, a learned token, and the image.
#[derive(Debug)]
pub(super) struct Fusion {
    /// `[1, 1, width]`.
    image_token: Tensor,
    blocks: Vec<Block>,
    /// `[width, vocabulary]`.
    vocabulary: Projection,
}

impl Fusion {
    pub(super) fn load(
        weights: &mut Weights,
        config: &FusionConfig,
        text: &BertConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let width = text.hidden_size;
        let shape = BlockShape {
            width,
            hidden: config.hidden,
            heads: config.heads,
            activation: Activation::Gelu,
            epsilon: 1e-5,
            causal: false,
        };
        Ok(Self {
            image_token: weights.take("img_special_token", &[1, 1, width])?,
            blocks: (0..config.layers)
                .map(|layer| {
                    let prefix = format!("fusion_module.resblocks.{layer}");
                    Block::load(weights, &prefix, BlockLayout::OpenAi, shape)
                })
                .collect::<std::result::Result<_, _>>()?,
            vocabulary: Projection::Columns(weights.take("mlm_projection", &[width, text.vocab_size])?),
        })
    }

    /// The logarithms of the probabilities of words, without the last two tokens.
    pub(super) fn word_log_probabilities(&self, fused: &Tensor) -> Result<Tensor> {
        let tokens = fused.dim(1)?.saturating_sub(ADDED);
        let fused = enter(&fused.narrow(1, 0, tokens)?.contiguous()?, &self.image_token)?;
        log_softmax(&leave(&self.vocabulary.forward(&fused)?)?)
    }

    pub(super) fn forward(&self, hidden: &Tensor, images: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let (batch, _, width) = hidden.dims3()?;
        let token = self.image_token.broadcast_as((batch, 1, width))?;
        let hidden = enter(hidden, &self.image_token)?;
        let images = enter(&normalise(images)?.unsqueeze(1)?, &self.image_token)?;
        let mut x = observe(probe, "fusion.embeddings", Tensor::cat(&[&hidden, &token, &images], 1)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &format!("fusion.layers.{layer}"), probe)?;
        }
        leave(&x)
    }
}

impl WordPredictor for Fusion {
    fn word_log_probabilities(
        &self,
        hidden: &Tensor,
        images: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        self.word_log_probabilities(&self.forward(hidden, images, probe)?)
    }
}

/// The mean negative log-probability of the labels that are not 0, over `[batch, tokens, vocabulary]`.
///
/// # Errors
/// If no label counts, or one is outside the vocabulary.
pub fn masked_word_loss(log_probabilities: &Tensor, labels: &Tensor) -> Result<Tensor> {
    asked(log_probabilities, labels)?.mean_all()?.neg()
}

/// As [`masked_word_loss`], the sum divided by `total`: with the number of labels that count in a whole batch, its parts
/// add up to the mean.
///
/// # Errors
/// As [`masked_word_loss`].
pub fn masked_word_share(log_probabilities: &Tensor, labels: &Tensor, total: usize) -> Result<Tensor> {
    asked(log_probabilities, labels)?.sum_all()?.affine(-1.0 / total as f64, 0.0)
}

/// Whether a token is asked for: the label of all others is 0.
pub fn is_asked(label: u32) -> bool {
    label != IGNORED_LABEL
}

/// The log-probability of each label that counts, `[labels, 1]`.
fn asked(log_probabilities: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let vocabulary = log_probabilities.dim(2)?;
    let labels = labels.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    let places: Vec<u32> =
        (0..labels.len() as u32).filter(|place| is_asked(labels[*place as usize])).collect();
    if places.is_empty() {
        bail!("no label of the batch counts");
    }
    let asked: Vec<u32> = places.iter().map(|place| labels[*place as usize]).collect();
    let device = log_probabilities.device();
    let rows = log_probabilities
        .reshape(((), vocabulary))?
        .index_select(&Tensor::from_vec(places, asked.len(), device)?, 0)?;
    let asked = Tensor::from_vec(asked, (rows.dim(0)?, 1), device)?;
    rows.gather(&asked, 1)
}
