//! Relevance along attention: rollout (Abnar and Zuidema 2020) and the gradient-weighted rule of Chefer,
//! Gur and Wolf (2021, "Generic Attention-model Explainability").

use std::cell::RefCell;

use candle_core::{Result as TensorResult, Tensor, Var};
use pipe_models::Probe;

use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::{AttributionError, Result};

/// How one layer's attention becomes a matrix between tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttentionRule {
    /// The mean over heads plus the identity, rows divided by their sum. Knows nothing of the score: every
    /// class has the same map.
    Rollout,
    /// The mean over heads of the positive part of attention times its gradient, plus the identity.
    Gradient,
}

/// Relevance of tokens for the pooled token, through the layers of one transformer whose tokens all see
/// each other. One forward pass per row, and one backward pass for [`AttentionRule::Gradient`].
#[derive(Clone, Debug)]
pub struct AttentionRelevance {
    /// The rule.
    pub rule: AttentionRule,
    /// The names of the attention maps in the order of the forward pass. Leaving out early layers starts
    /// later: CLIP's own notebook takes the last layer only.
    pub layers: Vec<String>,
    /// The token that is pooled: 0 for the class token.
    pub pooled: usize,
    /// Tokens before the first cell.
    pub prefix: usize,
    /// The grid of cells.
    pub grid: Vec<usize>,
}

impl AttentionRelevance {
    /// The product of all layers, `[rows, tokens, tokens]` flat, the number of tokens, and the scores.
    ///
    /// # Errors
    /// If an attention map is missing, or maps of different sizes follow each other.
    pub fn matrices(
        &self,
        evaluator: &Evaluator<'_>,
        inputs: &Inputs,
    ) -> Result<(Vec<f32>, usize, Vec<f32>)> {
        let (mut all, mut tokens, mut scores) = (Vec::new(), 0, Vec::with_capacity(inputs.rows()));
        for part in evaluator.parts(inputs)? {
            let (seen, of_part) = attention_maps(evaluator, &part, &self.layers, self.rule)?;
            let mut maps = Vec::with_capacity(seen.len());
            for (name, map) in self.layers.iter().zip(seen) {
                let (rows, _, queries, keys) = map.probabilities.dims4()?;
                if queries != keys || rows != part.rows() {
                    return Err(AttributionError::NotApplicable(format!(
                        "`{name}` is {:?}: its tokens do not all see each other",
                        map.probabilities.dims()
                    )));
                }
                tokens = queries;
                maps.push(map.weighted(self.rule)?);
            }
            for row in 0..part.rows() {
                let size = tokens * tokens;
                let layers = maps.iter().map(|map| &map[row * size..(row + 1) * size]);
                all.extend(layer_product(layers, tokens, self.rule));
            }
            scores.extend(crate::evaluator::host(&of_part)?);
        }
        Ok((all, tokens, scores))
    }
}

/// The attention of one layer as a forward pass shows it.
#[derive(Clone, Debug)]
pub struct AttentionMap {
    /// `[sequences, heads, queries, keys]`: a sequence per row, or several of volumes.
    pub probabilities: Tensor,
    /// The gradient of the scores with respect to them, where the rule needs one.
    pub gradients: Option<Tensor>,
}

impl AttentionMap {
    /// The mean over heads of what the rule takes, `[sequences, queries, keys]` flat.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn weighted(&self, rule: AttentionRule) -> Result<Vec<f32>> {
        let weighted = match (rule, &self.gradients) {
            (AttentionRule::Gradient, Some(gradients)) => (gradients * &self.probabilities)?.relu()?,
            _ => self.probabilities.clone(),
        };
        Ok(weighted.mean(1)?.flatten_all()?.to_vec1()?)
    }
}

/// The attention of some layers, by name and in their order, and the scores `[rows]`. All rows go through
/// the model together.
///
/// # Errors
/// If the model has no such attention map.
pub fn attention_maps(
    evaluator: &Evaluator<'_>,
    inputs: &Inputs,
    layers: &[String],
    rule: AttentionRule,
) -> Result<(Vec<AttentionMap>, Tensor)> {
    let wants_gradient = rule == AttentionRule::Gradient;
    let watch = Watch { names: layers, wants_gradient, seen: RefCell::new(vec![None; layers.len()]) };
    let scores = evaluator.probed(inputs, inputs.values(), &watch)?;
    let gradients = if wants_gradient { Some(evaluator.backward(&scores)?) } else { None };
    let mut maps = Vec::with_capacity(layers.len());
    for (name, seen) in layers.iter().zip(watch.seen.take()) {
        let Some((probabilities, variable)) = seen else {
            return Err(AttributionError::NotApplicable(format!("the model has no attention map `{name}`")));
        };
        let gradients = match (&gradients, variable) {
            (Some(gradients), Some(variable)) => Some(match gradients.get(&variable) {
                Some(gradient) => gradient.detach(),
                None => probabilities.zeros_like()?,
            }),
            _ => None,
        };
        maps.push(AttentionMap { probabilities, gradients });
    }
    Ok((maps, scores.detach()))
}

/// The product of layers, the later ones on the left, in f64.
pub(crate) fn layer_product<'a>(
    layers: impl Iterator<Item = &'a [f32]>,
    tokens: usize,
    rule: AttentionRule,
) -> Vec<f32> {
    let mut relevance: Vec<f64> =
        (0..tokens * tokens).map(|at| f64::from(u8::from(at % (tokens + 1) == 0))).collect();
    for layer in layers {
        let mut step: Vec<f64> = layer.iter().map(|value| f64::from(*value)).collect();
        (0..tokens).for_each(|token| step[token * (tokens + 1)] += 1.0);
        if rule == AttentionRule::Rollout {
            for row in step.chunks_exact_mut(tokens) {
                let sum: f64 = row.iter().sum();
                row.iter_mut().for_each(|value| *value /= sum);
            }
        }
        let mut next = vec![0.0; relevance.len()];
        for (row, next) in step.chunks_exact(tokens).zip(next.chunks_exact_mut(tokens)) {
            for (weight, before) in row.iter().zip(relevance.chunks_exact(tokens)) {
                next.iter_mut().zip(before).for_each(|(next, before)| *next += weight * before);
            }
        }
        relevance = next;
    }
    relevance.into_iter().map(|value| value as f32).collect()
}

impl Method for AttentionRelevance {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let (matrices, tokens, scores) = self.matrices(evaluator, inputs)?;
        let cells: usize = self.grid.iter().product();
        if tokens != self.prefix + cells || self.pooled >= tokens {
            return Err(AttributionError::Settings(format!(
                "{tokens} tokens are no {} and a grid of {:?}",
                self.prefix, self.grid
            )));
        }
        let maps = matrices
            .chunks_exact(tokens * tokens)
            .flat_map(|matrix| &matrix[self.pooled * tokens + self.prefix..][..cells])
            .copied()
            .collect();
        let shape: Vec<usize> = std::iter::once(1).chain(self.grid.iter().copied()).collect();
        Ok(Attribution {
            values: inputs.tensor(maps, &shape)?,
            scores,
            baseline_scores: None,
            completeness_gaps: None,
        })
    }

    fn cost(&self, _row_shape: &[usize]) -> Result<Passes> {
        Ok(Passes { forward: 1, backward: u64::from(self.rule == AttentionRule::Gradient) })
    }
}

/// Relevance of the tokens of a text for its end mark: its row of a matrix over `tokens`, without begin and
/// end mark, divided by its sum; zeros if that is zero.
pub fn text_relevance(matrix: &[f32], tokens: usize, end: usize) -> Vec<f32> {
    let row = &matrix[end * tokens + 1..end * tokens + end.max(1)];
    let sum: f32 = row.iter().sum();
    row.iter().map(|value| if sum == 0.0 { 0.0 } else { value / sum }).collect()
}

/// A matrix of relevance, row by row.
#[derive(Clone, PartialEq, Debug)]
pub struct Relevance {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// The values.
    pub values: Vec<f32>,
}

impl Relevance {
    /// The product of two matrices, in f64.
    fn times(&self, other: &Self) -> Self {
        let mut values = Vec::with_capacity(self.rows * other.columns);
        for row in self.values.chunks_exact(self.columns.max(1)) {
            values.extend((0..other.columns).map(|column| {
                let terms = row.iter().enumerate();
                terms
                    .map(|(inner, a)| f64::from(*a) * f64::from(other.values[inner * other.columns + column]))
                    .sum::<f64>() as f32
            }));
        }
        Self { rows: self.rows, columns: other.columns, values }
    }

    fn transposed(&self) -> Self {
        let values = (0..self.columns)
            .flat_map(|column| (0..self.rows).map(move |row| self.values[row * self.columns + column]))
            .collect();
        Self { rows: self.columns, columns: self.rows, values }
    }
}

/// The mean over heads of the positive part of attention times its gradient, both `[heads, queries, keys]`.
pub fn gradient_weighted(
    attention: &[f32],
    gradient: &[f32],
    [heads, queries, keys]: [usize; 3],
) -> Relevance {
    let size = queries * keys;
    let values = (0..size).map(|at| {
        let positive = (0..heads)
            .map(|head| f64::from((attention[head * size + at] * gradient[head * size + at]).max(0.0)));
        (positive.sum::<f64>() / heads as f64) as f32
    });
    Relevance { rows: queries, columns: keys, values: values.collect() }
}

/// A self-relevance whose rows, without the identity, sum to 1. Rows that are the identity stay it.
///
/// # Panics
/// Never for a square matrix, which self-relevance is.
pub fn without_residual(own: &Relevance) -> Relevance {
    let mut values = own.values.clone();
    for (index, row) in values.chunks_exact_mut(own.columns.max(1)).enumerate() {
        row[index] -= 1.0;
        let sum: f32 = row.iter().sum();
        if sum != 0.0 {
            row.iter_mut().for_each(|value| *value /= sum);
        }
        row[index] += 1.0;
    }
    Relevance { values, ..*own }
}

/// What self-attention within a modality adds to its own relevance and to that for the other modality.
pub fn self_attention_update(attention: &Relevance, own: &Relevance, other: &Relevance) -> [Relevance; 2] {
    [attention.times(own), attention.times(other)]
}

/// What attention from modality s to modality q adds: to the relevance of q for s, and of s for s. `own` is
/// R_ss, `context` R_qq, `back` R_qs, all before the update.
pub fn cross_attention_update(
    attention: &Relevance,
    own: &Relevance,
    context: &Relevance,
    back: &Relevance,
) -> [Relevance; 2] {
    let (own, context) = (without_residual(own), without_residual(context));
    [own.transposed().times(&attention.times(&context)), attention.times(back)]
}

/// Keeps attention maps, and variables whose gradients are theirs.
struct Watch<'a> {
    names: &'a [String],
    wants_gradient: bool,
    seen: RefCell<Vec<Option<(Tensor, Option<Var>)>>>,
}

impl Probe for Watch<'_> {
    fn wants_attention(&self) -> bool {
        true
    }

    fn attention(&self, name: &str, probabilities: Tensor) -> TensorResult<Tensor> {
        let Some(place) = self.names.iter().position(|wanted| wanted == name) else {
            return Ok(probabilities);
        };
        if !self.wants_gradient {
            self.seen.borrow_mut()[place] = Some((probabilities.detach(), None));
            return Ok(probabilities);
        }
        let zero = Var::zeros(probabilities.shape(), probabilities.dtype(), probabilities.device())?;
        let watched = (&probabilities + zero.as_tensor())?;
        self.seen.borrow_mut()[place] = Some((probabilities.detach(), Some(zero)));
        Ok(watched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, normal};

    #[test]
    fn layers_are_multiplied_from_the_left() {
        let (first, second) = ([0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]);
        let ours = layer_product([first.as_slice(), &second].into_iter(), 2, AttentionRule::Gradient);
        // (I + B)(I + A) with A = [[0,1],[0,0]], B = [[0,0],[2,0]].
        assert_eq!(ours, [1.0, 1.0, 2.0, 3.0]);
        let rollout = layer_product([first.as_slice(), &second].into_iter(), 2, AttentionRule::Rollout);
        rollout.chunks_exact(2).for_each(|row| assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
    }

    #[test]
    fn rows_without_relevance_stay_the_identity() {
        let own = Relevance { rows: 2, columns: 2, values: vec![1.0, 0.0, 3.0, 2.0] };
        assert_eq!(without_residual(&own).values, [1.0, 0.0, 0.75, 1.25]);
        assert_eq!(text_relevance(&[0.0; 16], 4, 3), [0.0, 0.0]);
    }

    #[test]
    fn a_model_without_attention_is_refused() {
        let score = Linear::new(1, &[2, 3]);
        let inputs = Inputs::new(&normal(2, &[2, 2, 3])).unwrap();
        let method = AttentionRelevance {
            rule: AttentionRule::Rollout,
            layers: vec!["vision.layers.0.attention".to_owned()],
            pooled: 0,
            prefix: 1,
            grid: vec![2, 2],
        };
        let result = method.attribute(&Evaluator::new(&score, 2), &inputs);
        assert!(matches!(result, Err(AttributionError::NotApplicable(_))));
    }
}
