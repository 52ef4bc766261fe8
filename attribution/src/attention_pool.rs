//! Relevance within a layer that pools a map by attention, as CLIP's residual networks do.

use crate::attention::{AttentionRule, attention_maps};
use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// The rule of Chefer et al. (2021) where it reaches in a convolutional network with attention pooling: the mean over
/// heads of the positive part of attention times its gradient, from the one query to the cells. What the convolutions
/// below do has no part in it. One pass and gradient per row.
#[derive(Clone, Debug)]
pub struct PoolRelevance {
    /// The name of the attention map, `[rows, heads, 1, 1 + cells]`: the mean of the map stands before its cells.
    pub layer: String,
    /// The grid of cells.
    pub grid: Vec<usize>,
}

impl Method for PoolRelevance {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let keys = 1 + self.grid.iter().product::<usize>();
        let (mut maps, mut scores) = (Vec::new(), Vec::with_capacity(inputs.rows()));
        for part in evaluator.parts(inputs)? {
            let rule = AttentionRule::Gradient;
            let (seen, of_part) = attention_maps(evaluator, &part, std::slice::from_ref(&self.layer), rule)?;
            for map in seen {
                let (rows, _, queries, found) = map.probabilities.dims4()?;
                if [rows, queries, found] != [part.rows(), 1, keys] {
                    return Err(AttributionError::NotApplicable(format!(
                        "`{}` is {:?}: no pooling of a grid of {:?}",
                        self.layer,
                        map.probabilities.dims(),
                        self.grid
                    )));
                }
                maps.extend(map.weighted(rule)?.chunks_exact(keys).flat_map(|row| &row[1..]).copied());
            }
            scores.extend(host(&of_part)?);
        }
        let shape: Vec<usize> = std::iter::once(1).chain(self.grid.iter().copied()).collect();
        Ok(Attribution {
            values: inputs.tensor(maps, &shape)?,
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
    use candle_core::{Result as TensorResult, Tensor};
    use pipe_models::MaybeProbe;

    use super::*;
    use crate::Score;
    use crate::testing::host;

    /// Two heads over a mean and four cells; the score weights them by what it is given.
    struct Pool {
        probabilities: Tensor,
        weights: Tensor,
    }

    impl Score for Pool {
        fn score(&self, input: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> TensorResult<Tensor> {
            let rows = input.dims()[0];
            let mut seen = self.probabilities.broadcast_as((rows, 2, 1, 5))?.contiguous()?;
            if let Some(probe) = probe {
                seen = probe.attention("pool", seen)?;
            }
            seen.broadcast_mul(&self.weights)?.flatten_from(1)?.sum(1)
        }
    }

    #[test]
    fn positive_parts_are_averaged_over_heads() {
        let device = candle_core::Device::Cpu;
        let probabilities = [0.2f32, 0.1, 0.3, 0.4, 0.0, 0.6, 0.1, 0.1, 0.1, 0.1];
        let weights = [9.0f32, 1.0, -1.0, 2.0, 5.0, 9.0, -3.0, 4.0, 0.0, 1.0];
        let tensor = |values: &[f32]| Tensor::from_slice(values, (1, 2, 1, 5), &device).unwrap();
        let score = Pool { probabilities: tensor(&probabilities), weights: tensor(&weights) };
        let inputs =
            Inputs::new(&Tensor::zeros((3, 1, 4, 4), candle_core::DType::F32, &device).unwrap()).unwrap();
        let evaluator = Evaluator::new(&score, 2);
        let method = |grid: &[usize]| PoolRelevance { layer: "pool".to_owned(), grid: grid.to_vec() };
        let found = method(&[2, 2]).attribute(&evaluator, &inputs).unwrap();
        assert_eq!(found.values.dims(), [3, 1, 2, 2]);
        // Head by head max(0, p w): (0.1, 0, 0.8, 0) and (0, 0.4, 0, 0.1).
        for row in host(&found.values).chunks_exact(4) {
            for (ours, expected) in row.iter().zip([0.05, 0.2, 0.4, 0.05]) {
                assert!((ours - expected).abs() < 1e-6, "{row:?}");
            }
        }
        assert_eq!(evaluator.passes(), Passes { forward: 3, backward: 3 });
        let other = method(&[3, 3]).attribute(&evaluator, &inputs);
        assert!(matches!(other, Err(AttributionError::NotApplicable(_))));
    }
}
