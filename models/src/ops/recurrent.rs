//! Recurrent networks of one layer.

use candle_core::{Result, Tensor, bail};

use super::{composed, is_half, wide};

/// The states `[batch, length, hidden]` of a long short-term memory (Hochreiter and Schmidhuber 1997) that
/// begins with zeros. `inputs` `[batch, length, 4 hidden]` is what the inputs add to the gates; `weight`
/// `[4 hidden, hidden]` and `bias` `[4 hidden]` are those of the state. Gates stand in PyTorch's order: input,
/// forget, cell, output.
///
/// # Errors
/// If the shapes do not fit.
pub fn lstm(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    checked(inputs, weight, bias, 4)?;
    if is_half(inputs) {
        return lstm(&wide(inputs)?, &wide(weight)?, &wide(bias)?)?.to_dtype(inputs.dtype());
    }
    composed::lstm(inputs, weight, bias)
}

/// As [`lstm`], of gated recurrent units (Cho et al. 2014), gates in the order reset, update, new:
/// `inputs` `[batch, length, 3 hidden]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn gru(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    checked(inputs, weight, bias, 3)?;
    if is_half(inputs) {
        return gru(&wide(inputs)?, &wide(weight)?, &wide(bias)?)?.to_dtype(inputs.dtype());
    }
    composed::gru(inputs, weight, bias)
}

fn checked(inputs: &Tensor, weight: &Tensor, bias: &Tensor, gates: usize) -> Result<()> {
    let (_, length, width) = inputs.dims3()?;
    let (rows, hidden) = weight.dims2()?;
    if rows != gates * hidden || width != rows || bias.dims() != [rows] || hidden == 0 || length == 0 {
        bail!(
            "a recurrent layer of {:?} with bias {:?} cannot take {:?}",
            weight.dims(),
            bias.dims(),
            inputs.dims()
        );
    }
    Ok(())
}
