//! Shapley values, and the share of text in them: MM-SHAP (Parcalabescu and Frank 2023).

/// Beyond this number of players the coalitions are too many to list.
const MOST_PLAYERS: usize = 24;

/// Exact Shapley values of a game given by the values of all 2^n coalitions, in the order of binary
/// counting with player 0 as the most significant bit (index 0: nobody). `None` if the number of
/// values is no power of two, or of more than 24 players.
pub fn shapley(values: &[f64]) -> Option<Vec<f64>> {
    let players = values.len().checked_ilog2()? as usize;
    if values.len() != 1 << players || players > MOST_PLAYERS {
        return None;
    }
    // |S|! (n - |S| - 1)! / n!, by the size of S.
    let mut weights = vec![1.0 / players.max(1) as f64; players];
    for size in 1..players {
        weights[size] = weights[size - 1] * size as f64 / (players - size) as f64;
    }
    let gain = |player: usize| {
        let bit = 1 << (players - 1 - player);
        let without = (0..values.len()).filter(|coalition| coalition & bit == 0);
        without
            .map(|coalition| {
                weights[coalition.count_ones() as usize] * (values[coalition | bit] - values[coalition])
            })
            .sum()
    };
    Some((0..players).map(gain).collect())
}

/// T-SHAP: the share of the first `text` players in the sum of absolute values. Undefined if all are 0.
pub fn text_share(values: &[f64], text: usize) -> Option<f64> {
    let sum = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
    let all = sum(values);
    (all > 0.0).then(|| sum(&values[..text.min(values.len())]) / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_players_share_what_only_both_reach() {
        // Nobody 0, the second alone 1, the first alone 2, both 5.
        assert_eq!(shapley(&[0.0, 1.0, 2.0, 5.0]), Some(vec![3.0, 2.0]));
        assert_eq!(text_share(&[3.0, -2.0], 1), Some(0.6));
        assert_eq!(text_share(&[0.0, 0.0], 1), None);
        assert_eq!(shapley(&[0.0, 1.0, 2.0]), None);
        assert_eq!(shapley(&[]), None);
    }
}
