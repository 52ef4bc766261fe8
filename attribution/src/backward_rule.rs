//! Tensors with a backward pass of one's own: how rules are put in the place of a layer's gradient.

use candle_core::{CpuStorage, CustomOp1, Layout, Result as TensorResult, Shape, Tensor, Var};

/// Gives `(input, output, gradient of the output)` a gradient of the input.
type Rule = dyn Fn(&Tensor, &Tensor, &Tensor) -> TensorResult<Tensor> + Send + Sync;

/// `output`, computed from `input` in whatever way, whose gradient goes to `input` by `rule`.
///
/// # Errors
/// If the output is no f32 tensor.
pub(crate) fn with_rule(
    input: &Tensor,
    output: &Tensor,
    rule: impl Fn(&Tensor, &Tensor, &Tensor) -> TensorResult<Tensor> + Send + Sync + 'static,
) -> TensorResult<Tensor> {
    let op = Ruled {
        output: output.flatten_all()?.to_vec1()?,
        shape: output.shape().clone(),
        rule: Box::new(rule),
    };
    input.contiguous()?.apply_op1(op)
}

/// The gradient that ordinary backpropagation gives `input` where `forward(input)` has `gradient`.
pub(crate) fn ordinary(
    input: &Tensor,
    gradient: &Tensor,
    forward: impl FnOnce(&Tensor) -> TensorResult<Tensor>,
) -> TensorResult<Tensor> {
    let variable = Var::from_tensor(&input.detach())?;
    let product = (forward(&variable)? * gradient.detach())?;
    match product.sum_all()?.backward()?.remove(&variable) {
        Some(gradient) => Ok(gradient.detach()),
        None => input.zeros_like(),
    }
}

struct Ruled {
    output: Vec<f32>,
    shape: Shape,
    rule: Box<Rule>,
}

impl CustomOp1 for Ruled {
    fn name(&self) -> &'static str {
        "layer with a backward rule"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> TensorResult<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.output.clone()), self.shape.clone()))
    }

    fn bwd(&self, input: &Tensor, output: &Tensor, gradient: &Tensor) -> TensorResult<Option<Tensor>> {
        (self.rule)(&input.detach(), &output.detach(), &gradient.detach()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, normal};

    #[test]
    fn the_rule_takes_the_place_of_the_gradient() {
        let x = Var::from_tensor(&normal(1, &[2, 3])).unwrap();
        let y = x.detach().sqr().unwrap();
        let ruled = with_rule(&x, &y, |x, y, gradient| (x + y)? * gradient).unwrap();
        assert_eq!(host(&ruled), host(&y));
        let gradients = (ruled * 2.0).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = ((x.as_tensor() + &y).unwrap() * 2.0).unwrap();
        assert_eq!(host(gradients.get(&x).unwrap()), host(&expected));
    }

    #[test]
    fn ordinary_gradients_are_those_of_the_function() {
        let (x, gradient) = (normal(1, &[4]), normal(2, &[4]));
        let ours = ordinary(&x, &gradient, |x| x.sqr()).unwrap();
        let expected = ((&x * 2.0).unwrap() * &gradient).unwrap();
        assert_eq!(host(&ours), host(&expected));
        let constant = ordinary(&x, &gradient, |x| x.zeros_like()).unwrap();
        assert_eq!(host(&constant), [0.0; 4]);
    }
}
