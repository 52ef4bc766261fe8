//! One-layer recurrent networks over questions, by PyTorch's conventions of gates.

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::ops::{gru, linear, lstm};
use crate::weights::Weights;

/// The cell of a recurrent network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cell {
    /// Long short-term memory (Hochreiter and Schmidhuber 1997).
    #[default]
    Lstm,
    /// The gated recurrent unit (Cho et al. 2014).
    Gru,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

/// A recurrent network that begins with a state of zeros.
#[derive(Clone, Debug)]
pub struct Recurrent {
    cell: Cell,
    /// `[gates * hidden, in]`.
    input_weight: Tensor,
    input_bias: Tensor,
    /// `[gates * hidden, hidden]`.
    hidden_weight: Tensor,
    hidden_bias: Tensor,
}

impl Recurrent {
    /// Takes `{name}.rnn.weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0` and `bias_hh_l0`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        cell: Cell,
        width: usize,
        hidden: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let rows = cell.gates() * hidden;
        let mut take = |part: &str, shape: &[usize]| {
            weights.begin(&format!("{name}.rnn.{part}_l0"), shape, Start::of_inputs(hidden))
        };
        Ok(Self {
            cell,
            input_weight: take("weight_ih", &[rows, width])?,
            input_bias: take("bias_ih", &[rows])?,
            hidden_weight: take("weight_hh", &[rows, hidden])?,
            hidden_bias: take("bias_hh", &[rows])?,
        })
    }

    /// `[batch, length, in]` to the states after each position, `[batch, length, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // What the inputs add to the gates of all positions, in one product.
        let inputs = linear(x, &self.input_weight, Some(&self.input_bias))?;
        match self.cell {
            Cell::Lstm => lstm(&inputs, &self.hidden_weight, &self.hidden_bias),
            Cell::Gru => gru(&inputs, &self.hidden_weight, &self.hidden_bias),
        }
    }
}
