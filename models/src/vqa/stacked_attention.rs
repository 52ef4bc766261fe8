//! Stacked attention networks (Yang et al. 2016), as MEVF has them.

use candle_core::{D, Result, Tensor};

use super::Mode;
use super::layers::{HALF, hidden_rows, linear_layer, linear_without_bias};
use crate::checkpoint::CheckpointError;
use crate::layers::Linear;
use crate::ops::composed::softmax;
use crate::sizes::check_layers;
use crate::weights::Weights;

/// The sizes of a stacked attention network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StackedSizes {
    /// Values of a visual token.
    pub visual: usize,
    /// Values of the question vector.
    pub hidden: usize,
    /// Times that the image is looked at.
    pub stacks: usize,
}

/// Attention over visual tokens, asked again with what it found.
#[derive(Clone, Debug)]
pub struct StackedAttention {
    name: String,
    stacks: Vec<Stack>,
}

#[derive(Clone, Debug)]
struct Stack {
    question: Linear,
    visual: Linear,
    score: Linear,
}

impl StackedAttention {
    /// Takes `{name}.fc11` (question), `fc12` (visual tokens), `fc13` (scores), and for each later stack s three
    /// of `{name}.layers` from 3 (s - 1) on.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        sizes: StackedSizes,
    ) -> std::result::Result<Self, CheckpointError> {
        let StackedSizes { visual, hidden, stacks } = sizes;
        check_layers(&[("stacks", stacks)])?;
        let stacks = (0..stacks)
            .map(|stack| {
                let layer = |place: usize| match stack {
                    0 => format!("{name}.fc1{}", place + 1),
                    _ => format!("{name}.layers.{}", 3 * (stack - 1) + place),
                };
                Ok(Stack {
                    question: linear_layer(weights, &layer(0), hidden, hidden)?,
                    visual: linear_without_bias(weights, &layer(1), hidden, visual)?,
                    score: linear_layer(weights, &layer(2), 1, hidden)?,
                })
            })
            .collect::<std::result::Result<_, CheckpointError>>()?;
        Ok(Self { name: name.to_owned(), stacks })
    }

    /// The names of the attention maps of all stacks, as probes see them.
    pub fn map_names(&self) -> Vec<String> {
        (0..self.stacks.len()).map(|stack| self.map_name(stack)).collect()
    }

    fn map_name(&self, stack: usize) -> String {
        format!("{}.{stack}", self.name)
    }

    /// Joins `visual` `[batch, visual tokens, width]` and `question` `[batch, hidden]` to `[batch, hidden]`, with
    /// the attention of each stack, `[batch, visual tokens]`. Tokens that are all zero are not looked at.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        visual: &Tensor,
        question: &Tensor,
        mode: Mode<'_>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut joint = question.clone();
        let mut maps = Vec::with_capacity(self.stacks.len());
        for (place, stack) in self.stacks.iter().enumerate() {
            let asked = stack.question.forward(&joint)?;
            let seen = stack.visual.forward(visual)?;
            let mixed = seen.broadcast_add(&asked.unsqueeze(1)?)?.tanh()?;
            let mixed = mode.dropout(&format!("{}.{place}", self.name), HALF, mixed)?;
            let mut scores = stack.score.forward(&mixed)?.squeeze(D::Minus1)?;
            let hidden = hidden_rows(&seen)?;
            if hidden.iter().flatten().any(|hidden| *hidden) {
                let mask: Vec<f32> = hidden
                    .into_iter()
                    .flatten()
                    .map(|hidden| if hidden { f32::NEG_INFINITY } else { 0.0 })
                    .collect();
                let mask = Tensor::from_vec(mask, scores.shape(), scores.device())?;
                scores = (scores + mask.to_dtype(seen.dtype())?)?;
            }
            let map = softmax(&scores)?.unsqueeze(1)?.unsqueeze(1)?;
            let map = mode.attention(&self.map_name(place), map)?.squeeze(1)?.squeeze(1)?;
            let found = map.unsqueeze(1)?.contiguous()?.matmul(&seen)?.squeeze(1)?;
            joint = (if place == 0 { asked } else { joint } + found)?;
            maps.push(map);
        }
        Ok((joint, maps))
    }
}
