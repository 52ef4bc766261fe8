//! How much of a score can be had without one of the modalities.

/// The share of the gain over the floor that one modality alone reaches: (A_m - A_0) / (A - A_0).
/// Undefined if the full model is not above the floor; never clipped.
pub fn relative_share(full: f64, alone: f64, floor: f64) -> Option<f64> {
    (full > floor).then(|| (alone - floor) / (full - floor))
}

/// What a perceptual score is a share of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scale {
    /// The model's own figure A.
    Model,
    /// What the task leaves above its floor, 1 - A_0.
    Task {
        /// A_0: what the most frequent answer reaches.
        floor: f64,
    },
}

/// The perceptual score of a modality (Gat et al. 2021): what is lost when it is permuted between
/// samples, as a share. Undefined if there is nothing to lose.
pub fn perceptual_score(full: f64, permuted: f64, scale: Scale) -> Option<f64> {
    let whole = match scale {
        Scale::Model => full,
        Scale::Task { floor } => 1.0 - floor,
    };
    (whole > 0.0).then(|| (full - permuted) / whole)
}

/// What both modalities reach beyond the better one of them alone.
pub fn synergy(full: f64, alone: &[f64]) -> Option<f64> {
    Some(full - alone.iter().copied().reduce(f64::max)?)
}

/// What became of one prediction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The prediction is the same.
    None,
    /// It was right.
    RightToWrong,
    /// It is right now.
    WrongToRight,
    /// It is wrong in another way.
    WrongToOther,
}

impl Change {
    /// From (same prediction, right before, right after).
    pub fn of(same: bool, before: bool, after: bool) -> Self {
        match (same, before, after) {
            (true, _, _) => Self::None,
            (false, true, _) => Self::RightToWrong,
            (false, false, true) => Self::WrongToRight,
            (false, false, false) => Self::WrongToOther,
        }
    }
}

/// What became of each sample's prediction, as the share of draws in which it did: large means with equal accuracy
/// are possible.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Changes {
    /// Another prediction than before.
    pub changed: Vec<f64>,
    /// It was right.
    pub right_to_wrong: Vec<f64>,
    /// It became right.
    pub wrong_to_right: Vec<f64>,
    /// It is wrong in another way.
    pub wrong_to_other: Vec<f64>,
}

impl Changes {
    /// Counts the changes of every sample, draw by draw; of all samples in each draw.
    pub fn new(draws: &[Vec<Change>]) -> Self {
        let share = |wanted: &dyn Fn(Change) -> bool| -> Vec<f64> {
            let of = |sample: usize| draws.iter().filter(|draw| wanted(draw[sample])).count();
            (0..draws.first().map_or(0, Vec::len))
                .map(|sample| of(sample) as f64 / draws.len() as f64)
                .collect()
        };
        Self {
            changed: share(&|change| change != Change::None),
            right_to_wrong: share(&|change| change == Change::RightToWrong),
            wrong_to_right: share(&|change| change == Change::WrongToRight),
            wrong_to_other: share(&|change| change == Change::WrongToOther),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_at_the_floor_has_no_share() {
        assert_eq!(relative_share(0.5, 0.6, 0.5), None);
        assert_eq!(relative_share(0.75, 0.25, 0.5), Some(-1.0));
        assert_eq!(perceptual_score(0.0, 0.0, Scale::Model), None);
        assert_eq!(perceptual_score(0.8, 0.4, Scale::Task { floor: 0.2 }), Some(0.5));
        assert_eq!(synergy(0.9, &[0.5, 0.75]), Some(0.9 - 0.75));
        assert_eq!(synergy(0.9, &[]), None);
    }

    #[test]
    fn changes_are_told_apart() {
        let first = [(true, true, true), (false, true, false), (false, false, true), (false, false, false)];
        let first = first.map(|(same, before, after)| Change::of(same, before, after)).to_vec();
        let second = vec![Change::None, Change::RightToWrong, Change::None, Change::None];
        let shares = Changes::new(&[first, second]);
        assert_eq!(shares.changed, [0.0, 1.0, 0.5, 0.5]);
        assert_eq!(shares.right_to_wrong, [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(shares.wrong_to_right, [0.0, 0.0, 0.5, 0.0]);
        assert_eq!(shares.wrong_to_other, [0.0, 0.0, 0.0, 0.5]);
        assert_eq!(Changes::new(&[]), Changes::default());
    }
}
