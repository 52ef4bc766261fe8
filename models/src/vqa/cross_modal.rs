//! A transformer over the tokens of text and image: the fusion module of PMC-CLIP (Lin et al. 2023) under the
//! answer head of CLIP-ViL (Shen et al. 2021).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::answer_model::AnswerModel;
use super::batch::pick;
use super::image::{ImageBranch, PartNames, Seen};
use super::layers::{linear_layer, norm_layer};
use super::loss::{AnswerLoss, RECONSTRUCTION, soft_cross_entropy_sum};
use super::mevf::default_reconstruction;
use super::{Batch, ImageConfig, Mode, TextStates};
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::layers::{Block, BlockLayout, BlockShape, LayerNorm, Linear};
use crate::ops::{activate, scaled_unit};
use crate::sizes::{check_heads, check_layers, check_sizes};
use crate::weights::{Parameters, Weights};
use crate::{Activation, Trainable};

/// A cross-modal transformer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossModalConfig {
    /// Answers in the list.
    pub answers: usize,
    /// The image side.
    pub image: ImageConfig,
    /// Values of a hidden state of the text tower.
    pub text: usize,
    /// Values of a token in the blocks. What has another width is projected first.
    #[serde(default = "default_width")]
    pub width: usize,
    /// Blocks.
    #[serde(default = "default_layers")]
    pub layers: usize,
    /// Heads of each block.
    #[serde(default = "default_heads")]
    pub heads: usize,
    /// Whether image tokens are brought to length 1 first, as PMC-CLIP does.
    #[serde(default = "default_normalised")]
    pub normalised: bool,
    /// Share of values that are dropped while training.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
}

fn default_width() -> usize {
    768
}

fn default_layers() -> usize {
    4
}

fn default_heads() -> usize {
    8
}

fn default_normalised() -> bool {
    true
}

fn default_dropout() -> f64 {
    0.1
}

impl CrossModalConfig {
    /// A transformer as wide as the text tower over an image encoder's tokens.
    pub fn new(answers: usize, text: usize, image: usize) -> Self {
        Self {
            answers,
            image: ImageConfig { features: Some(image), meta: None, autoencoder: None, constant: None },
            text,
            width: text,
            layers: default_layers(),
            heads: default_heads(),
            normalised: default_normalised(),
            dropout: default_dropout(),
        }
    }
}

const NAMES: PartNames = PartNames { meta: "maml", autoencoder: "ae" };
/// Of the norms of blocks, and of the head's.
const EPSILON: f64 = 1e-5;
const HEAD_EPSILON: f64 = 1e-12;

/// The model: blocks over hidden states of a text, a learned token and the tokens of an image, and a head over the
/// position that stands for the text.
#[derive(Debug)]
pub struct CrossModal {
    config: CrossModalConfig,
    image: ImageBranch,
    text_projection: Option<Linear>,
    image_projection: Option<Linear>,
    /// `[1, 1, width]`.
    special: Tensor,
    blocks: Vec<Block>,
    hidden: Linear,
    norm: LayerNorm,
    answers: Linear,
    parameters: Parameters,
}

impl CrossModal {
    /// The model of a state dict: `img_special_token`, `fusion.resblocks.*` by the names of PMC-CLIP's code,
    /// `head.0`, `head.2` and `head.3`, and where widths differ `text_projection` and `image_projection`.
    ///
    /// # Errors
    /// If tensors are missing, left over or of another shape.
    pub fn from_tensors(
        config: CrossModalConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::new(tensors, trainable))
    }

    /// A model that begins at random, but for what is given by name.
    ///
    /// # Errors
    /// If a tensor that is given is none of the model's or of another shape.
    pub fn random(
        config: CrossModalConfig,
        seed: u64,
        given: BTreeMap<String, Tensor>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(config, Weights::seeded(seed, given, Trainable::All))
    }

    pub(super) fn load(
        config: CrossModalConfig,
        mut weights: Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        let width = config.width;
        check_sizes(&[("answers", config.answers), ("text", config.text), ("width", width)])?;
        check_layers(&[("layers", config.layers)])?;
        check_heads("width", width, config.heads)?;
        let image = ImageBranch::load(&mut weights, NAMES, &config.image)?;
        let mut projection = |name: &str, from: usize| match from == width {
            true => Ok(None),
            false => linear_layer(&mut weights, name, width, from).map(Some),
        };
        let text_projection = projection("text_projection", config.text)?;
        let image_projection = projection("image_projection", config.image.width())?;
        let shape = BlockShape {
            width,
            hidden: 4 * width,
            heads: config.heads,
            activation: Activation::Gelu,
            epsilon: EPSILON,
            causal: false,
        };
        let special = weights.begin("img_special_token", &[1, 1, width], Start::Constant(0.0))?;
        let blocks = (0..config.layers)
            .map(|layer| {
                Block::load(&mut weights, &format!("fusion.resblocks.{layer}"), BlockLayout::OpenAi, shape)
            })
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            image,
            text_projection,
            image_projection,
            special,
            blocks,
            hidden: linear_layer(&mut weights, "head.0", 2 * width, width)?,
            norm: norm_layer(&mut weights, "head.2", 2 * width, HEAD_EPSILON)?,
            answers: linear_layer(&mut weights, "head.3", config.answers, 2 * width)?,
            parameters: weights.finish()?,
            config,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &CrossModalConfig {
        &self.config
    }

    /// The tokens of text, learned token and image after the last block, `[batch, all tokens, width]`.
    ///
    /// # Errors
    /// As [`AnswerModel::logits`].
    pub fn sequence(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        Ok(self.see(batch, false, mode)?.0)
    }

    fn see(&self, batch: &Batch, reconstruct: bool, mode: Mode<'_>) -> Result<(Tensor, Option<Tensor>)> {
        let TextStates { hidden, mask, .. } = batch.questions.states()?;
        let (count, length, _) = hidden.dims3()?;
        let Seen { tokens, reconstruction } = self.image.forward(&batch.images, count, reconstruct, mode)?;
        let image = if self.config.normalised { unit_length(&tokens)? } else { tokens };
        let project = |layer: &Option<Linear>, x: &Tensor| match layer {
            Some(layer) => layer.forward(x),
            None => Ok(x.clone()),
        };
        let text = project(&self.text_projection, hidden)?;
        let image = project(&self.image_projection, &image)?;
        let special = self.special.broadcast_as((count, 1, self.config.width))?;
        let mut x = Tensor::cat(&[&text, &special, &image], 1)?;
        let seen = self.mask(mask, image.dim(1)?, length)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let name = format!("fusion.layers.{layer}");
            x = block.forward_masked(&x, seen.as_ref(), self.config.dropout, &name, mode.probe())?;
        }
        Ok((x, reconstruction))
    }

    /// The mask over all tokens: padding of the text is not seen. `None` if there is none.
    fn mask(&self, text: &Tensor, image: usize, length: usize) -> Result<Option<Tensor>> {
        let rows = text.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
        if rows.iter().any(|row| row.len() != length) {
            bail!("a mask of {:?} does not fit texts of {length} tokens", text.dims());
        }
        if rows.iter().flatten().all(|seen| *seen != 0.0) {
            return Ok(None);
        }
        let count = rows.len();
        let all: Vec<f32> = rows
            .into_iter()
            .flat_map(|row| row.into_iter().chain(std::iter::repeat_n(1.0, 1 + image)))
            .collect();
        Tensor::from_vec(all, (count, length + 1 + image), text.device()).map(Some)
    }

    fn answer(&self, sequence: &Tensor, places: &Tensor) -> Result<Tensor> {
        let pooled = pick(sequence, places)?;
        let hidden = activate(&self.hidden.forward(&pooled)?, Activation::Gelu)?;
        self.answers.forward(&self.norm.forward(&hidden)?)
    }
}

/// Tokens brought to length 1; those of zeros stay.
fn unit_length(tokens: &Tensor) -> Result<Tensor> {
    scaled_unit(tokens, &Tensor::ones(tokens.dim(2)?, tokens.dtype(), tokens.device())?)
}

impl AnswerModel for CrossModal {
    fn answers(&self) -> usize {
        self.config.answers
    }

    fn logits(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        self.answer(&self.sequence(batch, mode)?, &batch.questions.states()?.pooled)
    }

    /// (sum of the cross entropies + 0.001 * reconstruction, if an auto-encoder has one) / batch; parts `answers`
    /// (the sum) and `reconstruction`.
    fn loss(&self, batch: &Batch, targets: &Tensor, mode: Mode<'_>) -> Result<AnswerLoss> {
        let (sequence, reconstruction) = self.see(batch, true, mode)?;
        let logits = self.answer(&sequence, &batch.questions.states()?.pooled)?;
        let answers = soft_cross_entropy_sum(&logits, targets)?;
        let mut total = answers.clone();
        let mut parts = vec![("answers", answers)];
        if let Some(reconstruction) = reconstruction {
            total = (total + (&reconstruction * default_reconstruction())?)?;
            parts.push((RECONSTRUCTION, reconstruction));
        }
        Ok(AnswerLoss { total: (total / logits.dim(0)? as f64)?, parts })
    }

    fn embed_words(&self, _tokens: &Tensor) -> Result<Tensor> {
        bail!("the model reads the states of a text tower, not words")
    }

    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
