//! Scores of explanations by pieces, such as words, as rows of tables have them.

use pipe_attribution::metrics::{Removed, Value, complexity, sparseness};

/// One score of an explanation by pieces.
pub(crate) struct PieceScore {
    /// Without what the pieces are, which stands before it: `word_deletion`.
    pub(crate) metric: &'static str,
    /// Which way it is better, as tables have it.
    pub(crate) better: &'static str,
    /// Whether the model is asked about changed inputs.
    pub(crate) asks: bool,
    pub(crate) value: Result<f64, String>,
}

/// The names of all scores, with which way each is better and whether the model is asked for it.
pub(crate) const PIECE_METRICS: [(&str, &str, bool); 8] = [
    ("deletion", "lower", true),
    ("insertion", "higher", true),
    ("deletion_gap", "higher", true),
    ("comprehensiveness", "higher", true),
    ("sufficiency", "lower", true),
    ("faithfulness_estimate", "higher", true),
    ("sparseness", "none", false),
    ("relative_complexity", "none", false),
];

/// The scores of an explanation of these values; `scores` are the answers to [`pipe_attribution::metrics::removals`].
pub(crate) fn piece_scores(values: &[f64], scores: &[f64]) -> Vec<PieceScore> {
    let removed = Removed::new(scores).filter(|_| scores.len() == 3 * values.len());
    let read = |of: &dyn Fn(&Removed) -> f64| {
        removed.as_ref().map(of).ok_or_else(|| "the model gave no score for each piece".to_owned())
    };
    let told = |value: Value| value.map_err(|reason| reason.to_string());
    let value = |metric: &str| match metric {
        "deletion" => read(&Removed::deletion),
        "insertion" => read(&Removed::insertion),
        "deletion_gap" => read(&|removed| removed.insertion() - removed.deletion()),
        "comprehensiveness" => read(&Removed::comprehensiveness),
        "sufficiency" => read(&Removed::sufficiency),
        "faithfulness_estimate" => match &removed {
            Some(removed) => told(removed.estimate(values)),
            None => read(&|_| 0.0),
        },
        "sparseness" => told(sparseness(values)),
        _ if values.len() < 2 => Err("there is one piece alone".to_owned()),
        _ => told(complexity(values)).map(|entropy| entropy / libm::log(values.len() as f64)),
    };
    PIECE_METRICS
        .map(|(metric, better, asks)| PieceScore { metric, better, asks, value: value(metric) })
        .into()
}

/// The same reason for every score.
pub(crate) fn no_piece_scores(reason: &str) -> Vec<PieceScore> {
    PIECE_METRICS
        .map(|(metric, better, asks)| PieceScore { metric, better, asks, value: Err(reason.to_owned()) })
        .into()
}

#[cfg(test)]
mod tests {
    use pipe_attribution::metrics::removals;

    use super::*;

    #[test]
    fn what_was_not_asked_has_a_reason() {
        let values = [3.0, 1.0];
        let sum = |present: &Vec<bool>| -> f64 {
            values.iter().zip(present).filter(|(_, present)| **present).map(|(value, _)| value).sum()
        };
        let scores: Vec<f64> = removals(&values).iter().map(sum).collect();
        let of = |scores: &[f64]| -> Vec<(&'static str, Result<f64, String>)> {
            piece_scores(&values, scores).into_iter().map(|score| (score.metric, score.value)).collect()
        };
        let all = of(&scores);
        assert!(all.iter().all(|(_, value)| value.is_ok()), "{all:?}");
        // 4, 1, 0 and 4, 3, 0.
        assert_eq!(all[..3], [("deletion", Ok(1.5)), ("insertion", Ok(2.5)), ("deletion_gap", Ok(1.0))]);
        let none = of(&scores[1..]);
        assert!(none[..6].iter().all(|(_, value)| value.is_err()) && none[6].1.is_ok(), "{none:?}");
    }
}
