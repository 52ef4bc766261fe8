//! Classification by the nearest training images, which judges embeddings without training anything (Wu et al.
//! 2018, section 3.4; Caron et al. 2021).

use candle_core::Tensor;
use pipe_engine::{StageContext, StageError};
use pipe_models::normalise;
use pipe_models::ops::linear;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::classifier::to_rows;
use crate::features::Features;
use crate::finite::check_finite;
use crate::model::{DEVICE, HeadDescription, Model, tensor_error};

/// How neighbours vote.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Neighbours {
    /// The training images that vote: those of greatest cosine.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub k: i64,
    /// A vote weighs exp(cosine / temperature).
    #[schemars(range(min = 1e-3, max = 1e3))]
    pub temperature: f64,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { k: 20, temperature: 0.07 }
    }
}

/// Images and the labels that vote.
pub(crate) struct Voters<'a> {
    pub(crate) images: &'a Features,
    pub(crate) targets: &'a [Vec<i64>],
}

/// Rows of the matrix of cosines that are held at a time.
const AT_A_TIME: usize = 256;

impl Neighbours {
    /// Logits of images, of which softmax (or, of independent labels, the sigmoid) gives the shares of votes.
    ///
    /// # Errors
    /// If nobody votes, or the model does not take the images.
    pub(crate) fn classify(
        &self,
        model: &Model,
        voters: &Voters<'_>,
        images: &Features,
        description: &HeadDescription,
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<Vec<f32>>, StageError> {
        if voters.targets.is_empty() {
            return Err(StageError::failed("there are no images of split `train` whose labels could vote"));
        }
        let width = model.image_tower()?.embedding_width();
        let unit = |features: &Features| -> Result<Tensor, StageError> {
            let rows: Vec<usize> = (0..features.ids().len()).collect();
            let values = features.embed(model, &rows, batch, context)?;
            features.log(rows.len(), context);
            // The logits below are finite whatever these are.
            for (id, embedding) in features.ids().iter().zip(values.chunks_exact(width)) {
                check_finite("values of the embedding", id, embedding)?;
            }
            if rows.is_empty() {
                return Tensor::from_vec(values, (0, width), &DEVICE).map_err(tensor_error);
            }
            let embeddings = Tensor::from_vec(values, (rows.len(), width), &DEVICE);
            embeddings.and_then(|embeddings| normalise(&embeddings)).map_err(tensor_error)
        };
        let (train, asked) = (unit(voters.images)?, unit(images)?);
        let count = images.ids().len();
        let mut logits = Vec::with_capacity(count);
        for start in (0..count).step_by(AT_A_TIME) {
            context.check_cancelled()?;
            let part = asked.narrow(0, start, AT_A_TIME.min(count - start)).map_err(tensor_error)?;
            let cosines = to_rows(&linear(&part, &train, None).map_err(tensor_error)?)?;
            logits.extend(cosines.iter().map(|cosines| self.vote(cosines, voters.targets, description)));
        }
        Ok(logits)
    }

    /// The logits that voters of these cosines give.
    fn vote(&self, cosines: &[f32], targets: &[Vec<i64>], description: &HeadDescription) -> Vec<f32> {
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        let k = (self.k as usize).min(order.len());
        // Of equal cosines the earlier image votes.
        let nearer = |a: &usize, b: &usize| cosines[*b].total_cmp(&cosines[*a]).then(a.cmp(b));
        if k < order.len() {
            order.select_nth_unstable_by(k, nearer);
            order.truncate(k);
        }
        order.sort_unstable_by(nearer);
        let greatest = order.first().map_or(0.0, |nearest| f64::from(cosines[*nearest]));
        let mut shares = vec![0.0f64; description.classes.len()];
        let mut total = 0.0;
        for voter in order {
            let weight = libm::exp((f64::from(cosines[voter]) - greatest) / self.temperature);
            total += weight;
            match description.is_multi_label() {
                true => {
                    for (share, bit) in shares.iter_mut().zip(&targets[voter]) {
                        *share += weight * *bit as f64;
                    }
                }
                false => shares[targets[voter][0] as usize] += weight,
            }
        }
        // A class without a vote has a logit all the same.
        const LEAST: f64 = 1e-9;
        let logit = |share: f64| match description.is_multi_label() {
            true => libm::log(share.max(LEAST) / (1.0 - share).max(LEAST)),
            false => libm::log(share.max(LEAST)),
        };
        shares.into_iter().map(|share| logit(share / total) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classification::probabilities;

    fn description(task: &str) -> HeadDescription {
        HeadDescription { classes: ["a", "b"].map(str::to_owned).to_vec(), task: task.to_owned() }
    }

    #[test]
    fn the_nearest_vote_by_their_cosines() {
        let neighbours = Neighbours { k: 3, temperature: 0.5 };
        let cosines = [0.9f32, 0.1, 0.8, -0.5, 0.7];
        let targets = [0, 1, 1, 1, 0].map(|class| vec![class]);
        let logits = neighbours.vote(&cosines, &targets, &description("multi-class"));
        let weight = |cosine: f64| (cosine / 0.5).exp();
        let expected = (weight(0.9) + weight(0.7)) / (weight(0.9) + weight(0.8) + weight(0.7));
        let found = probabilities(&logits, &description("multi-class"));
        assert!((found[0] - expected).abs() < 1e-6, "{found:?}, {expected}");
        // With more voters than there are, all vote; equal cosines by their order.
        let all =
            Neighbours { k: 99, temperature: 0.5 }.vote(&cosines, &targets, &description("multi-class"));
        assert!(probabilities(&all, &description("multi-class"))[0] < expected);
        let one = Neighbours { k: 1, temperature: 0.5 };
        let tied = one.vote(&[0.5, 0.5], &[vec![1], vec![0]], &description("multi-class"));
        assert!(probabilities(&tied, &description("multi-class"))[1] > 0.999);
    }

    #[test]
    fn independent_labels_are_voted_on_one_by_one() {
        let neighbours = Neighbours { k: 2, temperature: 1.0 };
        let task = "multi-label, binary-class";
        let logits =
            neighbours.vote(&[0.5, 0.5, 0.1], &[vec![1, 1], vec![0, 1], vec![0, 0]], &description(task));
        let found = probabilities(&logits, &description(task));
        assert!((found[0] - 0.5).abs() < 1e-6 && found[1] > 0.999, "{found:?}");
    }
}
