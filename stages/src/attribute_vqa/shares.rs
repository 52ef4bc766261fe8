//! How much an answer owes to the question and how much to the image: MM-SHAP (Parcalabescu and Frank 2023).

use candle_core::Tensor;
use pipe_attribution::{Evaluator, Inputs};
use pipe_engine::StageError;
use pipe_models::random::Key;

use super::ModalityShare;
use super::score::Layout;
use crate::attribute::attribution_error;
use crate::model::{DEVICE, tensor_error};
use crate::statistics::{shapley, text_share};

/// The Shapley values of one sample's answer.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Shares {
    /// Of the tokens of the question, then of the patches of the image, row by row.
    pub(super) values: Vec<f64>,
    /// How many of them are tokens.
    pub(super) tokens: usize,
    /// Rows and columns of patches.
    pub(super) patches: [usize; 2],
    /// Whether all subsets were evaluated.
    pub(super) exact: bool,
    /// The score with all, and with nothing.
    pub(super) scores: [f64; 2],
}

impl Shares {
    /// The share of the question; none where nothing changes the score.
    pub(super) fn text(&self) -> Option<f64> {
        text_share(&self.values, self.tokens)
    }
}

impl ModalityShare {
    /// Rows and columns of patches beside so many tokens: by default at least as many patches as tokens.
    pub(super) fn grid(&self, tokens: usize) -> [usize; 2] {
        let side = (tokens as f64).sqrt().ceil().max(1.0) as usize;
        self.patches.map_or([side; 2], |patches| patches.map(|count| count.max(1) as usize))
    }
}

/// A game over the players of a layout: who takes part in each evaluation, and how values become Shapley values.
struct Game {
    players: usize,
    /// Orders in which the players come; empty if all subsets are evaluated.
    orders: Vec<Vec<usize>>,
}

impl Game {
    /// All subsets, where those are no more than what the permutations would ask for.
    fn new(players: usize, samples: usize, key: Key) -> Self {
        let asked = 2 + samples * 2 * players.saturating_sub(1);
        let exact = players < usize::BITS as usize && 1usize << players <= asked;
        let order = |sample: usize| key.sub(sample as u64).permutation(players);
        Self { players, orders: if exact { Vec::new() } else { (0..samples).map(order).collect() } }
    }

    /// Who takes part: for all subsets in the order of binary counting (player 0 is the most significant bit); else
    /// nobody, all, and along each order how they come and how they leave.
    fn coalitions(&self) -> Vec<Vec<bool>> {
        let players = self.players;
        if self.orders.is_empty() {
            let subset = |subset: usize| {
                (0..players).map(|player| subset >> (players - 1 - player) & 1 == 1).collect()
            };
            return (0..1 << players).map(subset).collect();
        }
        let mut all = vec![vec![false; players], vec![true; players]];
        for order in &self.orders {
            for start in [false, true] {
                let mut present = vec![start; players];
                for player in &order[..players - 1] {
                    present[*player] = !start;
                    all.push(present.clone());
                }
            }
        }
        all
    }

    /// The Shapley values from the scores of [`Self::coalitions`]. Each order gives a player what it adds when it
    /// comes and what it takes when it leaves, so that they add up to the difference of all and nobody.
    fn values(&self, scores: &[f64]) -> Vec<f64> {
        if self.orders.is_empty() {
            // A power of two by construction.
            return shapley(scores).unwrap_or_default();
        }
        let (nobody, all) = (scores[0], scores[1]);
        let mut values = vec![0.0; self.players];
        let mut walks = scores[2..].chunks(self.players.max(2) - 1);
        for order in &self.orders {
            for (start, end, sign) in [(nobody, all, 1.0), (all, nobody, -1.0)] {
                let walk = walks.next().unwrap_or_default();
                let mut before = start;
                for (player, after) in order.iter().zip(walk.iter().chain([&end])) {
                    values[*player] += sign * (after - before);
                    before = *after;
                }
            }
        }
        let walks = 2.0 * self.orders.len() as f64;
        values.into_iter().map(|value| value / walks).collect()
    }
}

/// The Shapley values of samples `0..layouts.len()`, drawn by a key of each.
///
/// # Errors
/// If the model fails or the run is stopped.
pub(super) fn shares(
    settings: &ModalityShare,
    evaluator: &Evaluator<'_>,
    layouts: &[Layout],
    keys: &[Key],
) -> Result<Vec<Shares>, StageError> {
    let games: Vec<Game> = layouts
        .iter()
        .zip(keys)
        .map(|(layout, key)| Game::new(layout.len(), settings.samples.max(1) as usize, *key))
        .collect();
    let mut rows = Vec::new();
    for (sample, (game, layout)) in games.iter().zip(layouts).enumerate() {
        // Players are tokens first; a layout has the cells of the image first.
        let tokens = layout.pieces.len();
        rows.extend(game.coalitions().into_iter().map(|mut present| {
            present.rotate_left(tokens);
            (sample, present)
        }));
    }
    let scores = presences(evaluator, &rows)?;
    let mut start = 0;
    Ok(games
        .iter()
        .zip(layouts)
        .map(|(game, layout)| {
            let count = game.coalitions().len();
            let own: Vec<f64> = scores[start..start + count].iter().map(|score| f64::from(*score)).collect();
            start += count;
            let exact = game.orders.is_empty();
            let (all, nobody) = if exact { (own[count - 1], own[0]) } else { (own[1], own[0]) };
            Shares {
                values: game.values(&own),
                tokens: layout.pieces.len(),
                patches: layout.grid,
                exact,
                scores: [all, nobody],
            }
        })
        .collect())
}

/// The score of each of these samples where only some of its layout is present.
///
/// # Errors
/// If the model fails or the run is stopped.
pub(super) fn presences(
    evaluator: &Evaluator<'_>,
    rows: &[(usize, Vec<bool>)],
) -> Result<Vec<f32>, StageError> {
    let mut scores = Vec::with_capacity(rows.len());
    let made = evaluator.score_each(
        rows.len(),
        |range| {
            let rows = &rows[range];
            // What a sample does not have is present.
            let length = rows.iter().map(|(_, present)| present.len()).max().unwrap_or(0).max(1);
            let mut values = vec![1f32; rows.len() * length];
            for ((_, present), values) in rows.iter().zip(values.chunks_exact_mut(length)) {
                present
                    .iter()
                    .zip(values)
                    .for_each(|(present, value)| *value = f32::from(u8::from(*present)));
            }
            let values = Tensor::from_vec(values, (rows.len(), 1, length), &DEVICE)?;
            Inputs::of_samples(&values, rows.iter().map(|(sample, _)| *sample).collect())
        },
        |_, score| scores.push(score),
    );
    made.map_err(attribution_error)?;
    Ok(scores)
}

/// A grid of ones over each of so many samples, `[samples, 1, side, side]`: an image that is there.
///
/// # Errors
/// If the device fails.
pub(super) fn whole(samples: usize, side: usize) -> Result<Inputs, StageError> {
    let ones =
        Tensor::ones((samples, 1, side, side), candle_core::DType::F32, &DEVICE).map_err(tensor_error)?;
    Inputs::new(&ones).map_err(attribution_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A game whose players do not add up.
    fn value(present: &[bool]) -> f64 {
        let on = |player: usize| f64::from(u8::from(present[player]));
        0.3 + 2.0 * on(0) - on(1) + 3.0 * on(0) * on(2) + 0.7 * on(1) * on(2) * on(3) - 0.2 * on(4)
    }

    #[test]
    fn permutations_come_close_to_all_subsets_and_are_complete() {
        let exact = Game::new(5, 4, Key(3));
        assert!(exact.orders.is_empty(), "32 subsets are fewer than 34 evaluations");
        let all: Vec<f64> = exact.coalitions().iter().map(|present| value(present)).collect();
        let truth = exact.values(&all);
        let drawn = Game::new(5, 3, Key(3));
        assert_eq!(drawn.coalitions().len(), 2 + 3 * 2 * 4);
        for game in [drawn, Game { players: 5, orders: (0..4000).map(|n| Key(n).permutation(5)).collect() }] {
            let scores: Vec<f64> = game.coalitions().iter().map(|present| value(present)).collect();
            let values = game.values(&scores);
            assert!((values.iter().sum::<f64>() - (value(&[true; 5]) - value(&[false; 5]))).abs() < 1e-12);
            // Who adds up with the others is exact in every order.
            assert!((values[4] + 0.2).abs() < 1e-12);
            if game.orders.len() > 100 {
                for (ours, exact) in values.iter().zip(&truth) {
                    assert!((ours - exact).abs() < 0.03, "{values:?} {truth:?}");
                }
            }
        }
    }

    #[test]
    fn one_player_alone_has_all() {
        let game = Game::new(1, 1, Key(1));
        assert_eq!(game.values(&[1.0, 3.5]), [2.5]);
        let walked = Game { players: 1, orders: vec![vec![0]] };
        assert_eq!(walked.coalitions().len(), 2);
        assert_eq!(walked.values(&[1.0, 3.5]), [2.5]);
    }

    #[test]
    fn there_are_as_many_patches_as_tokens_at_least() {
        let by_default = ModalityShare { samples: 1, patches: None };
        assert_eq!([0, 1, 4, 5, 12].map(|tokens| by_default.grid(tokens)[0]), [1, 1, 2, 3, 4]);
        assert_eq!(ModalityShare { samples: 1, patches: Some([2, 7]) }.grid(12), [2, 7]);
    }
}
