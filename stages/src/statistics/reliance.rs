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

/// Shares of samples by what became of their prediction: large shares with equal accuracy are possible.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Changes {
    /// Another prediction than before.
    pub changed: f64,
    /// Of these, the ones that were right.
    pub right_to_wrong: f64,
    /// The ones that became right.
    pub wrong_to_right: f64,
    /// The others.
    pub wrong_to_other: f64,
}

impl Changes {
    /// Counts changes; undefined without samples.
    pub fn new(changes: impl IntoIterator<Item = Change>) -> Option<Self> {
        let (mut shares, mut count) = (Self::default(), 0.0);
        for change in changes {
            count += 1.0;
            match change {
                Change::None => continue,
                Change::RightToWrong => shares.right_to_wrong += 1.0,
                Change::WrongToRight => shares.wrong_to_right += 1.0,
                Change::WrongToOther => shares.wrong_to_other += 1.0,
            }
            shares.changed += 1.0;
        }
        (count > 0.0).then(|| Self {
            changed: shares.changed / count,
            right_to_wrong: shares.right_to_wrong / count,
            wrong_to_right: shares.wrong_to_right / count,
            wrong_to_other: shares.wrong_to_other / count,
        })
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
        let changes = [(true, true, true), (false, true, false), (false, false, true), (false, false, false)];
        let shares =
            Changes::new(changes.map(|(same, before, after)| Change::of(same, before, after))).unwrap();
        assert_eq!((shares.changed, shares.right_to_wrong), (0.75, 0.25));
        assert_eq!((shares.wrong_to_right, shares.wrong_to_other), (0.25, 0.25));
        assert_eq!(Changes::new([]), None);
    }
}
