//! Relevance along attention that is factorised over the axes of a volume, as CT-ViT's.

use crate::attention::{AttentionRule, attention_maps, layer_product};
use crate::evaluator::{Evaluator, Passes, host};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// Relevance of a volume's patches where spatial layers, in which the patches of one step see each other,
/// are followed by temporal ones, in which the steps at one place do: each layer is a matrix of blocks on
/// the tokens, and the product of all is taken block by block, never as one dense matrix.
///
/// The map is the mean over all tokens that ask, as there is no class token. A heuristic: what else mixes
/// positions (CT-ViT's convolutions for position encoding, the quantiser) has no part in it. One forward
/// pass per row, and one backward pass for [`AttentionRule::Gradient`].
#[derive(Clone, Debug)]
pub struct FactorisedRelevance {
    /// The rule.
    pub rule: AttentionRule,
    /// Names of spatial attention maps, in the order of the forward pass.
    pub spatial: Vec<String>,
    /// Names of temporal ones, which come behind them.
    pub temporal: Vec<String>,
    /// Steps, rows and columns of the patches.
    pub grid: [usize; 3],
}

/// The blocks of both products.
#[derive(Clone, Debug)]
pub struct FactorisedBlocks {
    /// One block per step, `[rows, steps, places, places]`, places in the order row, column.
    pub spatial: Vec<f32>,
    /// One block per place, `[rows, places, steps, steps]`.
    pub temporal: Vec<f32>,
    /// The score of each row.
    pub scores: Vec<f32>,
}

impl FactorisedRelevance {
    fn places(&self) -> usize {
        self.grid[1] * self.grid[2]
    }

    /// The products of the spatial and of the temporal layers. The relevance of all tokens (step t, place
    /// l) for each other is `temporal[l][t, t'] spatial[t'][l, l']`.
    ///
    /// # Errors
    /// If an attention map is missing or of another size.
    pub fn blocks(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<FactorisedBlocks> {
        let (steps, places) = (self.grid[0], self.places());
        let names: Vec<String> = self.spatial.iter().chain(&self.temporal).cloned().collect();
        let mut blocks = FactorisedBlocks { spatial: Vec::new(), temporal: Vec::new(), scores: Vec::new() };
        for part in evaluator.parts(inputs)? {
            let (maps, scores) = attention_maps(evaluator, &part, &names, self.rule)?;
            let mut layers = Vec::with_capacity(maps.len());
            for (index, map) in maps.iter().enumerate() {
                let [count, tokens] =
                    if index < self.spatial.len() { [steps, places] } else { [places, steps] };
                let expected = [part.rows() * count, tokens, tokens];
                let (rows, _, queries, keys) = map.probabilities.dims4()?;
                if [rows, queries, keys] != expected {
                    return Err(AttributionError::NotApplicable(format!(
                        "`{}` is {:?}: no attention of a volume of {:?} patches",
                        names[index],
                        map.probabilities.dims(),
                        self.grid
                    )));
                }
                layers.push(map.weighted(self.rule)?);
            }
            let (spatial, temporal) = layers.split_at(self.spatial.len());
            for (layers, count, tokens, all) in [
                (spatial, steps, places, &mut blocks.spatial),
                (temporal, places, steps, &mut blocks.temporal),
            ] {
                let size = tokens * tokens;
                for block in 0..part.rows() * count {
                    let layers = layers.iter().map(|layer| &layer[block * size..(block + 1) * size]);
                    all.extend(layer_product(layers, tokens, self.rule));
                }
            }
            blocks.scores.extend(host(&scores)?);
        }
        Ok(blocks)
    }

    /// The mean over all tokens that ask of their relevance row, `[steps, places]`, of one row's blocks.
    fn map(&self, spatial: &[f32], temporal: &[f32]) -> Vec<f32> {
        let (steps, places) = (self.grid[0], self.places());
        let mut map = vec![0.0f64; steps * places];
        let share = 1.0 / (steps * places) as f64;
        for step in 0..steps {
            for place in 0..places {
                let block = &temporal[place * steps * steps..(place + 1) * steps * steps];
                let asked = block.iter().skip(step).step_by(steps).map(|value| f64::from(*value));
                let weight = share * asked.sum::<f64>();
                let row = &spatial[(step * places + place) * places..][..places];
                let map = &mut map[step * places..(step + 1) * places];
                map.iter_mut().zip(row).for_each(|(map, value)| *map += weight * f64::from(*value));
            }
        }
        map.into_iter().map(|value| value as f32).collect()
    }
}

impl Method for FactorisedRelevance {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let blocks = self.blocks(evaluator, inputs)?;
        let [steps, rows, columns] = self.grid;
        let places = self.places();
        let of_row = blocks
            .spatial
            .chunks_exact(steps * places * places)
            .zip(blocks.temporal.chunks_exact(places * steps * steps));
        let maps = of_row.flat_map(|(spatial, temporal)| self.map(spatial, temporal)).collect();
        Ok(Attribution {
            values: inputs.tensor(maps, &[1, steps, rows, columns])?,
            scores: blocks.scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: u64::from(self.rule == AttentionRule::Gradient) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the dense product: 2 steps of 1 x 3 places.
    #[test]
    fn blocks_multiply_as_dense_matrices() {
        let method = FactorisedRelevance {
            rule: AttentionRule::Rollout,
            spatial: vec![],
            temporal: vec![],
            grid: [2, 1, 3],
        };
        let value = |index: usize| ((index * 7 + 3) % 11) as f32 / 11.0;
        let spatial: Vec<f32> = (0..2 * 9).map(value).collect();
        let temporal: Vec<f32> = (0..3 * 4).map(|index| value(index + 5)).collect();
        let mut expected = [0.0f32; 6];
        for (t, l) in (0..2).flat_map(|t| (0..3).map(move |l| (t, l))) {
            for (u, m) in (0..2).flat_map(|u| (0..3).map(move |m| (u, m))) {
                expected[u * 3 + m] += temporal[l * 4 + t * 2 + u] * spatial[u * 9 + l * 3 + m] / 6.0;
            }
        }
        for (ours, expected) in method.map(&spatial, &temporal).iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-6, "{ours} {expected}");
        }
    }
}
