//! Bilinear attention networks (Kim, Jun and Zhang 2018).

use candle_core::{D, Result, Tensor};

use super::Mode;
use super::layers::{HALF, hidden_rows};
use super::weight_norm::{FullyConnected, take_factor};
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::ops::composed::softmax;
use crate::ops::{frobenius_norm, scaled};
use crate::sizes::check_layers;
use crate::weights::Weights;

/// The rank of the attention over that of the residual network.
const ATTENTION_RANK: usize = 3;

/// The sizes of a bilinear attention network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BilinearSizes {
    /// Values of a visual token.
    pub visual: usize,
    /// Values of a question state.
    pub hidden: usize,
    /// Attention maps.
    pub glimpses: usize,
}

/// Attention maps over pairs of visual tokens and words, and a residual network that reads through them.
#[derive(Clone, Debug)]
pub struct Bilinear {
    name: String,
    visual: FullyConnected,
    question: FullyConnected,
    /// `[1, glimpses, 1, rank]`.
    map_direction: Tensor,
    map_factor: Tensor,
    /// `[1, glimpses, 1, 1]`.
    map_bias: Tensor,
    glimpses: Vec<Glimpse>,
}

#[derive(Clone, Debug)]
struct Glimpse {
    visual: FullyConnected,
    question: FullyConnected,
    back: FullyConnected,
}

/// What bilinear attention makes of an image and a question.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Before the softmax, `[batch, glimpses, visual tokens, words]`; minus infinity where nothing is looked at.
    pub logits: Tensor,
    /// The attention maps, `[batch, glimpses, visual tokens, words]`; each sums to 1.
    pub maps: Tensor,
    /// What each glimpse read, `[batch, hidden]` each.
    pub read: Vec<Tensor>,
    /// The joint vector, `[batch, hidden]`.
    pub joint: Tensor,
}

impl Bilinear {
    /// Takes the tensors of `{attention}.logits`, `{residual}b_net` and `{residual}q_prj`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        attention: &str,
        residual: &str,
        sizes: BilinearSizes,
    ) -> std::result::Result<Self, CheckpointError> {
        let BilinearSizes { visual, hidden, glimpses } = sizes;
        check_layers(&[("glimpses", glimpses)])?;
        let rank = ATTENTION_RANK * hidden;
        let name = format!("{attention}.logits");
        let map_direction =
            weights.begin(&format!("{name}.h_mat_v"), &[1, glimpses, 1, rank], Start::Normal(1.0))?;
        Ok(Self {
            visual: FullyConnected::load(weights, &format!("{name}.v_net"), rank, visual, true)?,
            question: FullyConnected::load(weights, &format!("{name}.q_net"), rank, hidden, true)?,
            map_factor: take_factor(weights, &format!("{name}.h_mat_g"), &map_direction)?,
            map_direction,
            map_bias: weights.begin(&format!("{name}.h_bias"), &[1, glimpses, 1, 1], Start::Normal(1.0))?,
            glimpses: (0..glimpses)
                .map(|glimpse| {
                    let net = format!("{residual}b_net.{glimpse}");
                    let back = format!("{residual}q_prj.{glimpse}");
                    Ok(Glimpse {
                        visual: FullyConnected::load(weights, &format!("{net}.v_net"), hidden, visual, true)?,
                        question: FullyConnected::load(
                            weights,
                            &format!("{net}.q_net"),
                            hidden,
                            hidden,
                            true,
                        )?,
                        back: FullyConnected::load(weights, &back, hidden, hidden, false)?,
                    })
                })
                .collect::<std::result::Result<_, CheckpointError>>()?,
            name,
        })
    }

    /// The name of the attention maps, as probes see them.
    pub fn map_name(&self) -> &str {
        &self.name
    }

    /// The matrix that makes maps of products, `[1, glimpses, 1, rank]`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn map_weight(&self) -> Result<Tensor> {
        scaled(&self.map_direction, &(&self.map_factor / frobenius_norm(&self.map_direction)?)?)
    }

    /// Attention logits over `visual` `[batch, visual tokens, width]` and `states` `[batch, words, hidden]`.
    fn logits(
        &self,
        visual: &Tensor,
        states: &Tensor,
        seen: Option<&Tensor>,
        mode: Mode<'_>,
    ) -> Result<Tensor> {
        let (batch, tokens, _) = visual.dims3()?;
        let words = states.dim(1)?;
        let v =
            mode.dropout(&format!("{}.v_net.out", self.name), HALF, self.visual.forward(visual, mode)?)?;
        let q = self.question.forward(states, mode)?;
        let rank = q.dim(2)?;
        let glimpses = self.glimpses.len();
        let weight = self.map_weight()?;
        let weighted = |x: &Tensor, rows: usize| {
            x.unsqueeze(1)?.broadcast_mul(&weight)?.reshape((batch, glimpses * rows, rank))
        };
        // The weight goes to the side of fewer rows.
        let products = if tokens <= words {
            let products = weighted(&v, tokens)?.matmul(&q.t()?.contiguous()?)?;
            products.reshape((batch, glimpses, tokens, words))?
        } else {
            let products = v.matmul(&weighted(&q, words)?.t()?.contiguous()?)?;
            products.reshape((batch, tokens, glimpses, words))?.transpose(1, 2)?.contiguous()?
        };
        let logits = products.broadcast_add(&self.map_bias)?;
        match hidden_pairs(visual, seen, words)? {
            Some(hidden) => logits.broadcast_add(&hidden.to_dtype(logits.dtype())?),
            None => Ok(logits),
        }
    }

    /// Joins `visual` `[batch, visual tokens, width]` and `states` `[batch, words, hidden]`. Visual tokens that
    /// are all zero are not looked at; nor, if `seen` `[batch, words]` (1 or 0) is given, words that it hides,
    /// which then are no part of the joint vector either.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        visual: &Tensor,
        states: &Tensor,
        seen: Option<&Tensor>,
        mode: Mode<'_>,
    ) -> Result<Fused> {
        let logits = self.logits(visual, states, seen, mode)?;
        let (batch, glimpses, tokens, words) = logits.dims4()?;
        let maps = softmax(&logits.reshape((batch, glimpses, tokens * words))?)?.reshape(logits.shape())?;
        let maps = mode.attention(self.map_name(), maps)?;
        let mut q = states.clone();
        let mut read = Vec::with_capacity(glimpses);
        for (place, glimpse) in self.glimpses.iter().enumerate() {
            let map = maps.narrow(1, place, 1)?.squeeze(1)?.contiguous()?;
            let attended = map.matmul(&glimpse.question.forward(&q, mode)?)?;
            let product = (attended * glimpse.visual.forward(visual, mode)?)?.sum(1)?;
            q = q.broadcast_add(&glimpse.back.forward(&product, mode)?.unsqueeze(1)?)?;
            read.push(product);
        }
        if let Some(seen) = seen {
            q = q.broadcast_mul(&seen.to_dtype(q.dtype())?.unsqueeze(D::Minus1)?)?;
        }
        Ok(Fused { logits, maps, read, joint: q.sum(1)? })
    }
}

/// Minus infinity where nothing is looked at, 0 elsewhere, `[batch, 1, visual tokens, words]`; `None` if
/// everything is.
fn hidden_pairs(visual: &Tensor, seen: Option<&Tensor>, words: usize) -> Result<Option<Tensor>> {
    let (batch, tokens, _) = visual.dims3()?;
    let rows = hidden_rows(visual)?;
    let unseen: Option<Vec<Vec<bool>>> = match seen {
        Some(seen) => Some(
            seen.to_dtype(candle_core::DType::F32)?
                .to_vec2::<f32>()?
                .into_iter()
                .map(|words| {
                    let nothing = words.iter().all(|word| *word == 0.0);
                    words.into_iter().map(|word| word == 0.0 && !nothing).collect()
                })
                .collect(),
        ),
        None => None,
    };
    let hidden = |sample: usize, token: usize, word: usize| {
        rows[sample][token] || unseen.as_ref().is_some_and(|unseen| unseen[sample][word])
    };
    let mut any = false;
    let mut values = Vec::with_capacity(batch * tokens * words);
    for sample in 0..batch {
        for token in 0..tokens {
            for word in 0..words {
                let hidden = hidden(sample, token, word);
                any |= hidden;
                values.push(if hidden { f32::NEG_INFINITY } else { 0.0 });
            }
        }
    }
    match any {
        true => Tensor::from_vec(values, (batch, 1, tokens, words), visual.device()).map(Some),
        false => Ok(None),
    }
}
