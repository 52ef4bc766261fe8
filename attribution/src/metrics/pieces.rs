//! Pieces that are present or absent, such as the words of a text or patches of the image beside it: deletion,
//! insertion, and what is read off the same questions: comprehensiveness and sufficiency (DeYoung et al. 2020, ERASER)
//! and the faithfulness estimate.

use super::{Value, area, ascending, descending, pearson};

/// Comprehensiveness and sufficiency: shares of the pieces.
const SHARES: [f64; 5] = [0.01, 0.05, 0.1, 0.2, 0.5];

/// Which pieces are present in each question that is asked about an explanation of `values`, one for each piece: all;
/// without the most relevant one, two and so on until none is left; without the least relevant one, two and so on until
/// one is left; without each one alone. Three questions a piece; equal values keep their order.
pub fn removals(values: &[f64]) -> Vec<Vec<bool>> {
    let count = values.len();
    let without = |gone: &[u32]| {
        let mut present = vec![true; count];
        gone.iter().for_each(|piece| present[*piece as usize] = false);
        present
    };
    let (most, least) = (descending(values), ascending(values));
    let all = std::iter::once(vec![true; count]);
    let most = (1..=count).map(|gone| without(&most[..gone]));
    let least = (1..count).map(|gone| without(&least[..gone]));
    let alone = (0..count as u32).map(|piece| without(&[piece]));
    all.chain(most).chain(least).chain(alone).collect()
}

/// What the answers to [`removals`] say.
#[derive(Clone, PartialEq, Debug)]
pub struct Removed {
    /// The score without the most relevant pieces: none, one, until all are gone.
    most_first: Vec<f64>,
    /// The same without the least relevant.
    least_first: Vec<f64>,
    /// What is lost without each piece alone.
    falls: Vec<f64>,
}

impl Removed {
    /// The scores of the questions, in their order; nothing for other than three a piece, of one piece or more.
    pub fn new(scores: &[f64]) -> Option<Self> {
        let count = scores.len() / 3;
        if count == 0 || !scores.len().is_multiple_of(3) {
            return None;
        }
        let (whole, nothing) = (scores[0], scores[count]);
        let least = &scores[count + 1..2 * count];
        Some(Self {
            most_first: scores[..=count].to_vec(),
            least_first: [&[whole], least, &[nothing]].concat(),
            falls: scores[2 * count..].iter().map(|score| whole - score).collect(),
        })
    }

    /// The area under the curve of the score while the most relevant pieces go first. Lower is better.
    pub fn deletion(&self) -> f64 {
        area(&self.most_first)
    }

    /// The area under the curve while the most relevant pieces come first to nothing, which is that while the least
    /// relevant go first, walked backwards. Higher is better.
    pub fn insertion(&self) -> f64 {
        area(&self.least_first)
    }

    /// The mean fall without the most relevant 1, 5, 10, 20 and 50 % of the pieces. Higher is better.
    pub fn comprehensiveness(&self) -> f64 {
        self.mean_fall(|gone| self.most_first[gone])
    }

    /// The mean fall with those alone. Lower is better.
    pub fn sufficiency(&self) -> f64 {
        self.mean_fall(|kept| self.least_first[self.falls.len() - kept])
    }

    fn mean_fall(&self, score: impl Fn(usize) -> f64) -> f64 {
        let pieces = |share: &f64| (share * self.falls.len() as f64).ceil() as usize;
        SHARES.iter().map(|share| self.most_first[0] - score(pieces(share))).sum::<f64>()
            / SHARES.len() as f64
    }

    /// Pearson's correlation of the values with what is lost without each piece alone. Higher is better.
    ///
    /// # Errors
    /// If either does not vary.
    pub fn estimate(&self, values: &[f64]) -> Value {
        pearson(values, &self.falls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A score that adds up, and what it says of an explanation.
    fn asked(weights: &[f64], values: &[f64]) -> Removed {
        let score = |present: &Vec<bool>| -> f64 {
            weights.iter().zip(present).filter(|(_, present)| **present).map(|(weight, _)| weight).sum()
        };
        let scores: Vec<f64> = removals(values).iter().map(score).collect();
        Removed::new(&scores).unwrap()
    }

    #[test]
    fn questions_are_asked_in_both_orders_and_one_by_one() {
        let rows: Vec<String> = removals(&[0.5, 2.0, -1.0])
            .iter()
            .map(|row| row.iter().map(|present| if *present { '1' } else { '0' }).collect())
            .collect();
        assert_eq!(rows, ["111", "101", "001", "000", "110", "010", "011", "101", "110"]);
        assert_eq!(removals(&[1.0]), [[true], [false], [false]]);
        assert!(Removed::new(&[]).is_none() && Removed::new(&[1.0; 4]).is_none());
    }

    #[test]
    fn what_adds_up_is_explained_by_its_parts() {
        let weights = [4.0, 0.0, 1.0, -1.0];
        let right = asked(&weights, &weights);
        // 4, 0, -1, -1, 0 and 4, 5, 5, 4, 0.
        assert_eq!((right.deletion(), right.insertion()), (0.0, 16.0 / 4.0));
        // One piece four times, two once.
        assert_eq!(right.comprehensiveness(), (4.0 * 4.0 + 5.0) / 5.0);
        assert_eq!(right.sufficiency(), (4.0 * 0.0 - 1.0) / 5.0);
        assert!((right.estimate(&weights).unwrap() - 1.0).abs() < 1e-12);
        let wrong = asked(&weights, &weights.map(|weight| -weight));
        assert_eq!((wrong.deletion(), wrong.insertion()), (right.insertion(), right.deletion()));
        assert!(
            wrong.comprehensiveness() < right.comprehensiveness()
                && wrong.sufficiency() > right.sufficiency()
        );
        assert!(right.estimate(&[1.0; 4]).is_err());
    }
}
