//! Input times gradient (the baseline of Shrikumar, Greenside and Kundaje 2017).

use crate::Result;
use crate::baseline::Baseline;
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};

/// (x - x') ds/dx: what the linear part of the score says of the way from the baseline to x. With a
/// zero baseline it is the plain x ds/dx, which depends on where the input space has its zero. One
/// forward and one backward pass per row.
#[derive(Clone, Debug, Default)]
pub struct InputXGradient {
    /// The reference x'.
    pub baseline: Baseline,
}

impl Method for InputXGradient {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let baselines = self.baseline.of(inputs)?;
        let (scores, gradients) = evaluator.gradients(inputs)?;
        let length = inputs.row_length();
        let values = inputs.host()?;
        let mut products = Vec::with_capacity(values.len());
        for (row, (x, gradient)) in
            values.chunks_exact(length).zip(gradients.chunks_exact(length)).enumerate()
        {
            let terms = x.iter().zip(baselines.row(row)).zip(gradient);
            products.extend(terms.map(|((x, baseline), gradient)| (x - baseline) * gradient));
        }
        Ok(Attribution {
            values: inputs.tensor(products, inputs.row_shape())?,
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
    use super::*;
    use crate::testing::{Linear, host, normal};

    #[test]
    fn a_linear_score_gives_weight_times_distance() {
        let score = Linear::new(1, &[2, 3]);
        let x = normal(2, &[4, 2, 3]);
        let inputs = Inputs::new(&x).unwrap();
        let evaluator = Evaluator::new(&score, 3);
        let plain = host(&InputXGradient::default().attribute(&evaluator, &inputs).unwrap().values);
        let method = InputXGradient { baseline: Baseline::Constant(0.25) };
        let moved = host(&method.attribute(&evaluator, &inputs).unwrap().values);
        for (index, x) in host(&x).iter().enumerate() {
            let weight = score.weight[index % 6];
            assert_eq!(plain[index], x * weight);
            assert_eq!(moved[index], (x - 0.25) * weight);
        }
        assert_eq!(evaluator.passes().forward, 8);
        assert_eq!(evaluator.passes().backward, 8);
    }
}
