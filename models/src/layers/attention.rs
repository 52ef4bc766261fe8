//! Self-attention with one packed product for queries, keys and values.

use std::sync::OnceLock;

use candle_core::{Result, Tensor};

use super::Linear;
use crate::MaybeProbe;
use crate::ops::{Scores, attention, composed, wide};
use crate::probe::{dropout, seen};

/// The product that makes queries, keys and values.
#[derive(Debug)]
pub(crate) enum Qkv {
    /// Stored packed: rows of queries, keys, values.
    Packed(Linear),
    /// Stored separately.
    Separate(Box<Separate>),
}

/// Three layers that are multiplied as one.
#[derive(Debug)]
pub(crate) struct Separate {
    parts: [Linear; 3],
    /// Their rows beneath each other; kept if no variable reaches them.
    packed: OnceLock<Linear>,
}

impl Qkv {
    /// Layers stored separately, in the order queries, keys, values.
    pub(crate) fn separate(parts: [Linear; 3]) -> Self {
        Self::Separate(Box::new(Separate { parts, packed: OnceLock::new() }))
    }

    /// `[batch, tokens, width]` to `[batch, tokens, 3 width]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.packed()?.forward(x)
    }

    /// Whether no variable reaches the parameters.
    pub(crate) fn is_frozen(&self) -> bool {
        let parts: &[Linear] = match self {
            Self::Packed(packed) => std::slice::from_ref(packed),
            Self::Separate(separate) => &separate.parts,
        };
        parts.iter().all(Linear::is_frozen)
    }

    /// The layer that makes all three.
    pub(crate) fn packed(&self) -> Result<Linear> {
        let separate = match self {
            Self::Packed(packed) => return Ok(packed.clone()),
            Self::Separate(separate) => separate,
        };
        if let Some(packed) = separate.packed.get() {
            return Ok(packed.clone());
        }
        let packed = separate.pack()?;
        if self.is_frozen() {
            // Another thread may have been faster, with the same values.
            separate.packed.get_or_init(|| packed.clone());
        }
        Ok(packed)
    }
}

impl Separate {
    fn pack(&self) -> Result<Linear> {
        let weights: Vec<&Tensor> = self.parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<&Tensor> = self.parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Ok(Linear { weight: Tensor::cat(&weights, 0)?, bias })
    }
}

/// Attention over `packed` `[batch, tokens, 3 width]`; unfused if the probe wants the map `name`, or
/// drops probabilities at `rate`.
pub(crate) fn observed_attention(
    packed: &Tensor,
    scores: &Scores<'_>,
    name: &str,
    rate: f64,
    probe: MaybeProbe<'_>,
) -> Result<Tensor> {
    match probe {
        Some(probe) if probe.wants_attention() || (rate > 0.0 && probe.drops_values()) => {
            let probabilities = composed::attention_probabilities(packed, scores)?;
            let probabilities = seen(&probabilities, |probabilities| probe.attention(name, probabilities))?;
            composed::attend(packed, &dropout(Some(probe), name, rate, probabilities)?)
        }
        _ => attention(packed, scores),
    }
}

/// Attention of one query per sample, unfused and in f32: queries `[batch, 1, width]`, keys and values
/// `[batch, tokens, width]`, giving `[batch, 1, width]`. The probe sees `[batch, heads, 1, tokens]`.
pub(crate) fn pooling_attention(
    query: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
    name: &str,
    probe: MaybeProbe<'_>,
) -> Result<Tensor> {
    let (batch, tokens, width) = keys.dims3()?;
    let head = width / heads;
    let split =
        |x: &Tensor, tokens: usize| x.reshape((batch, tokens, heads, head))?.transpose(1, 2)?.contiguous();
    let dtype = keys.dtype();
    let (query, keys, values) =
        (split(&wide(query)?, 1)?, split(&wide(keys)?, tokens)?, split(&wide(values)?, tokens)?);
    let scores = (query.matmul(&keys.t()?.contiguous()?)? * (head as f64).powf(-0.5))?;
    let mut probabilities = composed::softmax(&scores)?;
    if let Some(probe) = probe.filter(|probe| probe.wants_attention()) {
        probabilities = seen(&probabilities, |probabilities| probe.attention(name, probabilities))?;
    }
    let pooled = probabilities.matmul(&values)?.transpose(1, 2)?.contiguous()?;
    pooled.reshape((batch, 1, width))?.to_dtype(dtype)
}
