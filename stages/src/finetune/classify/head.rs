//! How a head begins.

use candle_core::{DType, Tensor, Var};
use pipe_engine::StageError;
use pipe_models::random::Key;

use crate::model::{DEVICE, Head, HeadDescription, HeadInput, tensor_error};

/// A head whose parameters are variables, starting from zero.
pub(super) fn zero_head(
    description: HeadDescription,
    width: usize,
) -> Result<(Head, [(String, Var); 2]), StageError> {
    let classes = description.classes.len();
    let zeros = |shape: &[usize]| Var::zeros(shape, DType::F32, &DEVICE).map_err(tensor_error);
    let (weight, bias) = (zeros(&[classes, width])?, zeros(&[classes])?);
    let (of_weight, of_bias) = (weight.as_tensor().clone(), bias.as_tensor().clone());
    let head = Head { description, input: HeadInput::Embedding, weight: of_weight, bias: of_bias };
    Ok((head, [("head.weight".to_owned(), weight), ("head.bias".to_owned(), bias)]))
}

/// A head whose parameters are variables, starting as PyTorch's linear layers do: uniform up to one over the root of the
/// width, a function of the seed.
pub(super) fn uniform_head(
    description: HeadDescription,
    width: usize,
    seed: i64,
) -> Result<(Head, [(String, Var); 2]), StageError> {
    let (head, variables) = zero_head(description, width)?;
    let bound = (width.max(1) as f64).sqrt().recip();
    for (name, variable) in &variables {
        let key = Key::derive("pipe uniform head/1", seed as u64, &[name.as_str().into()]);
        let draw = |counter| ((key.uniform(counter) * 2.0 - 1.0) * bound) as f32;
        let values: Vec<f32> = (1..=variable.elem_count() as u64).map(draw).collect();
        Tensor::from_vec(values, variable.shape(), &DEVICE)
            .and_then(|values| variable.set(&values))
            .map_err(tensor_error)?;
    }
    Ok((head, variables))
}
