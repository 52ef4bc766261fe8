//! The gradient itself (Simonyan, Vedaldi and Zisserman 2014, "Deep Inside Convolutional Networks").

use crate::Result;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};

/// ds/dx, signed. Simonyan's map is the greatest absolute value over channels. One forward and one
/// backward pass per row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gradient;

impl Method for Gradient {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let (scores, gradients) = evaluator.gradients(inputs)?;
        Ok(Attribution {
            values: inputs.tensor(gradients, inputs.row_shape())?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: 1 })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::testing::{Linear, Smooth, host, normal};
    use crate::{Absolute, Score};

    #[test]
    fn a_linear_score_has_its_weights_as_gradient() {
        let score = Linear::new(1, &[2, 3]);
        let inputs = Inputs::new(&normal(2, &[4, 2, 3])).unwrap();
        let attribution = Gradient.attribute(&Evaluator::new(&score, 3), &inputs).unwrap();
        for row in host(&attribution.values).chunks_exact(6) {
            assert_eq!(row, score.weight);
        }
        let absolute = Absolute(Gradient).attribute(&Evaluator::new(&score, 3), &inputs).unwrap();
        assert!(host(&absolute.values).iter().all(|value| *value >= 0.0));
    }

    #[test]
    fn finite_differences_agree() {
        let score = Smooth::new(5, &[2, 3]);
        let x = normal(6, &[2, 2, 3]);
        let inputs = Inputs::new(&x).unwrap();
        let evaluator = Evaluator::new(&score, 8);
        let gradient = host(&Gradient.attribute(&evaluator, &inputs).unwrap().values);
        let (values, h) = (host(&x), 1e-2f32);
        for index in 0..values.len() {
            let at = |delta: f32| {
                let mut moved = values.clone();
                moved[index] += delta;
                let moved = Inputs::new(&Tensor::from_vec(moved, x.shape(), x.device()).unwrap()).unwrap();
                evaluator.scores(&moved).unwrap()[index / 6]
            };
            let difference = (at(h) - at(-h)) / (2.0 * h);
            assert!((difference - gradient[index]).abs() < 2e-3, "{index}: {difference} {}", gradient[index]);
        }
    }

    #[test]
    fn a_constant_score_has_no_gradient() {
        struct Constant;
        impl Score for Constant {
            fn score(&self, input: &Tensor, _: &[usize], _: MaybeProbe<'_>) -> candle_core::Result<Tensor> {
                Tensor::ones(input.dims()[0], input.dtype(), input.device())
            }
        }
        let inputs = Inputs::new(&normal(2, &[3, 2, 3])).unwrap();
        let attribution = Gradient.attribute(&Evaluator::new(&Constant, 2), &inputs).unwrap();
        assert_eq!(host(&attribution.values), [0.0; 18]);
        assert_eq!(attribution.scores, [1.0; 3]);
    }
}
