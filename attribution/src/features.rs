//! Features: groups of input values that are present or absent together (blocks, segments, words).

use candle_core::{DType, Tensor};

use crate::baseline::{Baseline, BaselineRows};
use crate::evaluator::{Evaluator, Passes};
use crate::method::{Attribution, Inputs, Method};
use crate::words::Word;
use crate::{AttributionError, Result};

/// The feature that each value of a row belongs to; values of none are always present, and nothing is
/// attributed to them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    shape: Vec<usize>,
    of_value: Vec<Option<usize>>,
    count: usize,
}

impl Features {
    /// From a mask of integers, `[channels, ...]` or `[1, ...]`, where all channels of a place belong to
    /// the same feature. Features are numbered from 0 in ascending order of the mask's values.
    ///
    /// # Errors
    /// If the mask is empty or no f32, f64 or integer tensor.
    pub fn of_mask(mask: &Tensor) -> Result<Self> {
        let values: Vec<i64> = mask.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?;
        let mut known = values.clone();
        known.sort_unstable();
        known.dedup();
        if known.is_empty() {
            return Err(AttributionError::Settings("a mask without values has no features".to_owned()));
        }
        let of_value = values.iter().map(|value| Some(known.partition_point(|one| one < value))).collect();
        Ok(Self { shape: mask.dims().to_vec(), of_value, count: known.len() })
    }

    /// `rows` by `columns` blocks of an image of this height and width.
    ///
    /// # Errors
    /// If there are more blocks than pixels along a side, or none.
    pub fn blocks(image: [usize; 2], blocks: [usize; 2]) -> Result<Self> {
        Self::grid(&image, &blocks)
    }

    /// So many blocks along each axis of an image or a volume, numbered with the last axis fastest.
    ///
    /// # Errors
    /// If there are more blocks than places along an axis, none, or another number of axes.
    pub fn grid(places: &[usize], blocks: &[usize]) -> Result<Self> {
        let fits = |(length, blocks): (&usize, &usize)| (1..=*length).contains(blocks);
        if places.len() != blocks.len() || !places.iter().zip(blocks).all(fits) {
            return Err(AttributionError::Settings(format!(
                "{blocks:?} blocks along the axes do not fit {places:?} places"
            )));
        }
        let feature = |place: usize| {
            let (mut rest, mut feature, mut stride) = (place, 0, 1);
            for (length, blocks) in places.iter().zip(blocks).rev() {
                feature += stride * (rest % length * blocks / length);
                rest /= length;
                stride *= blocks;
            }
            Some(feature)
        };
        let of_value = (0..places.iter().product()).map(feature).collect();
        let shape = std::iter::once(1).chain(places.iter().copied()).collect();
        Ok(Self { shape, of_value, count: blocks.iter().product() })
    }

    /// The words of a text, on token embeddings `[tokens, width]`. Tokens of no word, as marks and padding
    /// are, stay.
    ///
    /// # Errors
    /// If there is no word, or a word's token is outside.
    pub fn of_words(tokens: usize, width: usize, words: &[Word]) -> Result<Self> {
        let mut of_value = vec![None; tokens * width];
        for (word, token) in words
            .iter()
            .enumerate()
            .flat_map(|(index, word)| word.tokens.iter().map(move |token| (index, *token)))
        {
            let Some(values) = of_value.get_mut(token * width..(token + 1) * width) else {
                return Err(AttributionError::Settings(format!(
                    "token {token} of a word is not one of {tokens}"
                )));
            };
            values.fill(Some(word));
        }
        if words.is_empty() {
            return Err(AttributionError::NotApplicable("the text has no words".to_owned()));
        }
        Ok(Self { shape: vec![tokens, width], of_value, count: words.len() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The feature of value `index` of a row.
    fn at(&self, index: usize) -> Option<usize> {
        self.of_value[index % self.of_value.len()]
    }

    fn check(&self, row_shape: &[usize]) -> Result<()> {
        let places = self.shape.get(1..).unwrap_or_default();
        let fits =
            row_shape.get(1..) == Some(places) && (self.shape[0] == 1 || self.shape[0] == row_shape[0]);
        if fits {
            return Ok(());
        }
        Err(AttributionError::Settings(format!(
            "features of {:?} do not fit inputs of {row_shape:?}; one channel or as many as theirs do",
            self.shape
        )))
    }
}

/// The inputs, ready to lose features.
struct Removal<'a> {
    features: &'a Features,
    inputs: &'a Inputs,
    values: Vec<f32>,
    baselines: BaselineRows,
}

impl<'a> Removal<'a> {
    fn new(features: &'a Features, inputs: &'a Inputs, baseline: &Baseline) -> Result<Self> {
        features.check(inputs.row_shape())?;
        Ok(Self { features, inputs, values: inputs.host()?, baselines: baseline.of(inputs)? })
    }

    /// The scores of rows of which only some features are `present(pair, feature)`; pair p belongs to row
    /// `p / per_row`.
    fn scores(
        &self,
        evaluator: &Evaluator<'_>,
        per_row: usize,
        present: impl Fn(usize, usize) -> bool,
    ) -> Result<Vec<f32>> {
        let length = self.inputs.row_length();
        let mut scores = Vec::with_capacity(self.inputs.rows() * per_row);
        evaluator.score_each(
            self.inputs.rows() * per_row,
            |pairs| {
                let mut values = Vec::with_capacity(pairs.len() * length);
                let mut samples = Vec::with_capacity(pairs.len());
                for pair in pairs {
                    let row = pair / per_row;
                    let (x, baseline) =
                        (&self.values[row * length..(row + 1) * length], self.baselines.row(row));
                    let kept = x.iter().zip(baseline).enumerate();
                    values.extend(kept.map(|(index, (x, baseline))| match self.features.at(index) {
                        Some(feature) if !present(pair, feature) => *baseline,
                        _ => *x,
                    }));
                    samples.push(self.inputs.samples()[row]);
                }
                self.inputs.rows_like(values, samples)
            },
            |_, score| scores.push(score),
        )?;
        Ok(scores)
    }

    /// A number per row and feature as a map: every value has that of its feature.
    fn attribution(
        &self,
        of_features: &[f64],
        scores: Vec<f32>,
        gaps: Option<Vec<f32>>,
    ) -> Result<Attribution> {
        let length = self.inputs.row_length();
        let values = of_features
            .chunks_exact(self.features.count)
            .flat_map(|row| {
                (0..length).map(|index| self.features.at(index).map_or(0.0, |feature| row[feature] as f32))
            })
            .collect();
        Ok(Attribution {
            values: self.inputs.tensor(values, self.inputs.row_shape())?,
            scores,
            baseline_scores: None,
            completeness_gaps: gaps,
        })
    }
}

/// How much the score falls when one feature is replaced by the baseline: positive where removing lowers
/// the score. One forward pass per feature, and one for s(x).
#[derive(Clone, Debug)]
pub struct FeatureAblation {
    /// The features.
    pub features: Features,
    /// What stands for an absent feature.
    pub baseline: Baseline,
}

impl Method for FeatureAblation {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let removal = Removal::new(&self.features, inputs, &self.baseline)?;
        let count = self.features.count;
        let scores = evaluator.scores(inputs)?;
        let without = removal.scores(evaluator, count, |pair, feature| pair % count != feature)?;
        let falls: Vec<f64> = without
            .iter()
            .enumerate()
            .map(|(pair, score)| f64::from(scores[pair / count]) - f64::from(*score))
            .collect();
        removal.attribution(&falls, scores, None)
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.features.check(row_shape)?;
        Ok(Passes { forward: 1 + self.features.count as u64, backward: 0 })
    }
}

/// The greatest number of features whose subsets are all evaluated.
const SUBSETS: usize = 16;

/// The Shapley value of each feature (Shapley 1953): its contribution averaged over all orders in which
/// features could come, from every subset. 2^features forward passes; for few features.
#[derive(Clone, Debug)]
pub struct ShapleyValues {
    /// The features, at most 16.
    pub features: Features,
    /// What stands for an absent feature.
    pub baseline: Baseline,
}

impl ShapleyValues {
    fn subsets(&self) -> Result<usize> {
        if self.features.count > SUBSETS {
            return Err(AttributionError::Settings(format!(
                "{} features have too many subsets; at most {SUBSETS} are exact, more take Kernel SHAP",
                self.features.count
            )));
        }
        Ok(1 << self.features.count)
    }
}

impl Method for ShapleyValues {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let removal = Removal::new(&self.features, inputs, &self.baseline)?;
        let (count, subsets) = (self.features.count, self.subsets()?);
        let scores =
            removal.scores(evaluator, subsets, |pair, feature| (pair % subsets) >> feature & 1 == 1)?;
        // The share of orders in which exactly the features of a subset of this size come before.
        let mut shares = vec![1.0 / count as f64];
        for size in 1..count {
            shares.push(shares[size - 1] * size as f64 / (count - size) as f64);
        }
        let mut values = vec![0.0f64; inputs.rows() * count];
        for (scores, values) in scores.chunks_exact(subsets).zip(values.chunks_exact_mut(count)) {
            for (feature, value) in values.iter_mut().enumerate() {
                for subset in (0..subsets).filter(|subset| subset >> feature & 1 == 0) {
                    let gain = f64::from(scores[subset | 1 << feature]) - f64::from(scores[subset]);
                    *value += shares[subset.count_ones() as usize] * gain;
                }
            }
        }
        let whole: Vec<f32> = scores.chunks_exact(subsets).map(|row| row[subsets - 1]).collect();
        let gaps = scores
            .chunks_exact(subsets)
            .zip(values.chunks_exact(count))
            .map(|(row, values)| {
                (values.iter().sum::<f64>() - (f64::from(row[subsets - 1]) - f64::from(row[0]))) as f32
            })
            .collect();
        let baselines = scores.chunks_exact(subsets).map(|row| row[0]).collect();
        let attribution = removal.attribution(&values, whole, Some(gaps))?;
        Ok(Attribution { baseline_scores: Some(baselines), ..attribution })
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.features.check(row_shape)?;
        Ok(Passes { forward: self.subsets()? as u64, backward: 0 })
    }
}

/// Which features are present in each evaluation of Kernel SHAP.
#[derive(Clone, Debug)]
pub enum Coalitions {
    /// These, for each sample: rows of as many values as there are features. The first two are all and
    /// none.
    Given(Vec<Vec<Vec<bool>>>),
    /// All, none, and draws by the Shapley kernel (sizes in proportion to (M - 1) / (k (M - k)), then
    /// a uniform subset), from a key per sample.
    Drawn {
        /// Evaluations of each sample, all and none included.
        samples: usize,
        /// One key per sample.
        keys: Vec<pipe_models::random::Key>,
    },
}

/// The weight of the coalitions of all and of no features, which stands for infinity (Captum).
const CERTAIN: f64 = 1e6;

/// Kernel SHAP (Lundberg and Lee 2017): Shapley values as the coefficients of a weighted linear model of
/// the score over coalitions of features, unregularised, with an intercept. One forward pass per
/// coalition.
#[derive(Clone, Debug)]
pub struct KernelShap {
    /// The features.
    pub features: Features,
    /// What stands for an absent feature.
    pub baseline: Baseline,
    /// The coalitions that are evaluated.
    pub coalitions: Coalitions,
}

impl KernelShap {
    fn count(&self) -> usize {
        match &self.coalitions {
            Coalitions::Given(samples) => samples.first().map_or(0, Vec::len),
            Coalitions::Drawn { samples, .. } => *samples,
        }
    }

    /// The coalitions of a sample.
    fn of(&self, sample: usize) -> Result<Vec<Vec<bool>>> {
        let (features, count) = (self.features.count, self.count());
        let wrong = |reason: String| Err(AttributionError::Settings(reason));
        match &self.coalitions {
            Coalitions::Given(samples) => match samples.get(sample) {
                Some(rows) if rows.len() == count && rows.iter().all(|row| row.len() == features) => {
                    Ok(rows.clone())
                }
                _ => wrong(format!("sample {sample} needs {count} coalitions of {features} features")),
            },
            Coalitions::Drawn { keys, .. } => {
                let Some(key) = keys.get(sample) else { return wrong(format!("sample {sample} has no key")) };
                let mut rows = vec![vec![true; features], vec![false; features]];
                let weights: Vec<f64> =
                    (1..features).map(|size| 1.0 / (size * (features - size)) as f64).collect();
                let total: f64 = weights.iter().sum();
                for draw in 2..count as u64 {
                    let key = key.sub(draw);
                    let mut place = key.uniform(1) * total;
                    let size = weights.iter().position(|weight| {
                        place -= weight;
                        place < 0.0
                    });
                    let size = size.map_or(features - 1, |index| index + 1);
                    let mut row = vec![false; features];
                    key.sub(1).permutation(features)[..size].iter().for_each(|feature| row[*feature] = true);
                    rows.push(row);
                }
                Ok(rows)
            }
        }
    }
}

impl Method for KernelShap {
    fn attribute(&self, evaluator: &Evaluator<'_>, inputs: &Inputs) -> Result<Attribution> {
        let removal = Removal::new(&self.features, inputs, &self.baseline)?;
        let (features, count) = (self.features.count, self.count());
        if count < features + 2 {
            return Err(AttributionError::Settings(format!(
                "{features} features need at least {} coalitions, not {count}",
                features + 2
            )));
        }
        let coalitions: Vec<Vec<Vec<bool>>> =
            inputs.samples().iter().map(|sample| self.of(*sample)).collect::<Result<_>>()?;
        let scores = removal
            .scores(evaluator, count, |pair, feature| coalitions[pair / count][pair % count][feature])?;
        let mut values = Vec::with_capacity(inputs.rows() * features);
        for (rows, scores) in coalitions.iter().zip(scores.chunks_exact(count)) {
            let design: Vec<Vec<f64>> = rows
                .iter()
                .map(|row| {
                    let present = row.iter().map(|present| f64::from(u8::from(*present)));
                    std::iter::once(1.0).chain(present).collect()
                })
                .collect();
            let weight = |row: &Vec<bool>| {
                let certain = row.iter().all(|present| *present) || row.iter().all(|present| !present);
                if certain { CERTAIN } else { 1.0 }
            };
            let weights: Vec<f64> = rows.iter().map(weight).collect();
            let scores: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
            let Some(solution) = least_squares(design, scores, &weights) else {
                return Err(AttributionError::Settings(
                    "the coalitions do not tell all features apart; more are needed".to_owned(),
                ));
            };
            values.extend_from_slice(&solution[1..]);
        }
        let whole = scores.chunks_exact(count).map(|row| row[0]).collect();
        removal.attribution(&values, whole, None)
    }

    fn cost(&self, row_shape: &[usize]) -> Result<Passes> {
        self.features.check(row_shape)?;
        Ok(Passes { forward: self.count() as u64, backward: 0 })
    }
}

/// The vector b that makes `sum w (y - X b)^2` least, by Householder reflections; `None` if the columns
/// depend on each other.
fn least_squares(mut x: Vec<Vec<f64>>, mut y: Vec<f64>, weights: &[f64]) -> Option<Vec<f64>> {
    for ((row, y), weight) in x.iter_mut().zip(&mut y).zip(weights) {
        let root = weight.sqrt();
        row.iter_mut().for_each(|value| *value *= root);
        *y *= root;
    }
    let (rows, columns) = (x.len(), x.first()?.len());
    let scale = x.iter().flatten().fold(0.0f64, |scale, value| scale.max(value.abs()));
    for column in 0..columns {
        let norm = x[column..].iter().map(|row| row[column] * row[column]).sum::<f64>().sqrt();
        if norm <= 1e-12 * scale {
            return None;
        }
        let head = x[column][column];
        let pivot = if head > 0.0 { -norm } else { norm };
        let mut reflector: Vec<f64> = x[column..].iter().map(|row| row[column]).collect();
        reflector[0] -= pivot;
        let length: f64 = reflector.iter().map(|value| value * value).sum();
        for other in column..columns {
            let product: f64 = reflector.iter().zip(&x[column..]).map(|(v, row)| v * row[other]).sum();
            let factor = 2.0 * product / length;
            reflector.iter().zip(&mut x[column..]).for_each(|(v, row)| row[other] -= factor * v);
        }
        let product: f64 = reflector.iter().zip(&y[column..]).map(|(v, y)| v * y).sum();
        let factor = 2.0 * product / length;
        reflector.iter().zip(&mut y[column..rows]).for_each(|(v, y)| *y -= factor * v);
    }
    let mut solution = vec![0.0; columns];
    for column in (0..columns).rev() {
        let known: f64 = (column + 1..columns).map(|other| x[column][other] * solution[other]).sum();
        solution[column] = (y[column] - known) / x[column][column];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use pipe_models::random::Key;

    use super::*;
    use crate::testing::{Linear, Smooth, assert_close, host, normal};

    fn six() -> Features {
        Features::blocks([4, 6], [2, 3]).unwrap()
    }

    /// Of a linear score every way of taking features away finds the same.
    #[test]
    fn a_linear_score_gives_each_feature_its_own_sum() {
        let score = Linear::new(1, &[2, 4, 6]);
        let x = normal(2, &[3, 2, 4, 6]);
        let inputs = Inputs::new(&x).unwrap();
        let evaluator = Evaluator::new(&score, 7);
        let mut expected = vec![0.0f64; 3 * 6];
        for (index, x) in host(&x).iter().enumerate() {
            expected[index / 48 * 6 + six().at(index % 48).unwrap()] +=
                f64::from(x * score.weight[index % 48]);
        }
        let removal = Removal::new(&Features { ..six() }, &inputs, &Baseline::Zero)
            .unwrap()
            .attribution(&expected, vec![], None)
            .unwrap()
            .values;
        let (features, baseline) = (six(), Baseline::Zero);
        let ablation = FeatureAblation { features: features.clone(), baseline: baseline.clone() };
        let shapley = ShapleyValues { features: features.clone(), baseline: baseline.clone() };
        let keys = (0..3).map(Key).collect();
        let coalitions = Coalitions::Drawn { samples: 40, keys };
        let kernel = KernelShap { features, baseline, coalitions };
        let methods: [&dyn Method; 3] = [&ablation, &shapley, &kernel];
        for method in methods {
            let before = evaluator.passes().forward;
            let attribution = method.attribute(&evaluator, &inputs).unwrap();
            assert_close(&attribution.values, &removal, 1e-4);
            let cost = method.cost(&[2, 4, 6]).unwrap();
            assert_eq!(evaluator.passes().forward - before, 3 * cost.forward);
        }
    }

    #[test]
    fn shapley_values_are_complete_and_kernel_shap_comes_close() {
        let score = Smooth::new(5, &[1, 4, 6]);
        let inputs = Inputs::new(&normal(6, &[2, 1, 4, 6])).unwrap();
        let evaluator = Evaluator::new(&score, 64);
        let shapley = ShapleyValues { features: six(), baseline: Baseline::Zero };
        let exact = shapley.attribute(&evaluator, &inputs).unwrap();
        assert!(exact.completeness_gaps.unwrap().iter().all(|gap| gap.abs() < 1e-5));
        let coalitions = Coalitions::Drawn { samples: 2000, keys: vec![Key(1), Key(2)] };
        let kernel = KernelShap { features: six(), baseline: Baseline::Zero, coalitions };
        let drawn = kernel.attribute(&evaluator, &inputs).unwrap();
        assert_close(&drawn.values, &exact.values, 0.1);
    }

    #[test]
    fn what_cannot_be_solved_is_refused() {
        let score = Linear::new(1, &[1, 4, 6]);
        let inputs = Inputs::new(&normal(2, &[1, 1, 4, 6])).unwrap();
        let evaluator = Evaluator::new(&score, 7);
        let (features, baseline) = (six(), Baseline::Zero);
        let few = Coalitions::Drawn { samples: 7, keys: vec![Key(1)] };
        let same = Coalitions::Given(vec![vec![vec![true; 6]; 12]]);
        for coalitions in [few, same] {
            let method = KernelShap { features: features.clone(), baseline: baseline.clone(), coalitions };
            assert!(method.attribute(&evaluator, &inputs).is_err());
        }
        let wide = Features::blocks([4, 6], [4, 6]).unwrap();
        assert!(ShapleyValues { features: wide, baseline: baseline.clone() }.cost(&[1, 4, 6]).is_err());
        assert!(FeatureAblation { features, baseline }.cost(&[1, 6, 4]).is_err());
        assert!(Features::blocks([4, 6], [5, 1]).is_err());
    }

    #[test]
    fn masks_are_numbered_in_order() {
        let mask = Tensor::new(&[[[7i64, 3], [3, 9]]], &candle_core::Device::Cpu).unwrap();
        let features = Features::of_mask(&mask).unwrap();
        assert_eq!((features.count(), features.of_value), (3, vec![Some(1), Some(0), Some(0), Some(2)]));
    }

    /// Tokens outside words are never taken away, and have no part in what is attributed.
    #[test]
    fn words_of_a_linear_score_have_their_own_sum() {
        let score = Linear::new(1, &[5, 3]);
        let x = normal(2, &[1, 5, 3]);
        let words = [Word { place: 0..2, tokens: vec![1] }, Word { place: 3..9, tokens: vec![2, 3] }];
        let features = Features::of_words(5, 3, &words).unwrap();
        let (inputs, evaluator) = (Inputs::new(&x).unwrap(), Evaluator::new(&score, 3));
        let products: Vec<f32> = host(&x).iter().zip(&score.weight).map(|(x, weight)| x * weight).collect();
        let sums = crate::words::token_values(&products, 3);
        let expected = [0.0, sums[1], sums[2] + sums[3], sums[2] + sums[3], 0.0];
        let baseline = || Baseline::Zero;
        let methods: [&dyn Method; 2] = [
            &FeatureAblation { features: features.clone(), baseline: baseline() },
            &ShapleyValues { features, baseline: baseline() },
        ];
        for method in methods {
            let ours = host(&method.attribute(&evaluator, &inputs).unwrap().values);
            for (index, value) in ours.iter().enumerate() {
                assert!((value - expected[index / 3]).abs() < 1e-5, "{index}: {value}");
            }
        }
        assert!(Features::of_words(3, 3, &words).is_err() && Features::of_words(5, 3, &[]).is_err());
    }
}
