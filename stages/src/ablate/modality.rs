//! What the words of a text suggest of its stratum: naive Bayes over words.

use std::collections::{BTreeMap, BTreeSet};

/// Counts of words by stratum.
#[derive(Clone, Debug)]
pub(super) struct Words {
    /// The logarithm of each stratum's share of the texts.
    prior: Vec<f64>,
    /// By word: the logarithm of the share of each stratum's texts that have it, and of those without.
    of_word: BTreeMap<String, Vec<(f64, f64)>>,
}

/// The different words of a text in lower case; a hyphen belongs to its word.
fn words(text: &str) -> BTreeSet<String> {
    text.to_lowercase()
        .split(|letter: char| !letter.is_alphanumeric() && letter != '-')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

impl Words {
    /// Learns from texts, each of one of `strata` strata. Shares are those of one more text with and
    /// one without each word, so that none is 0.
    pub(super) fn learn<'a>(strata: usize, texts: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let mut texts_of = vec![0.0; strata];
        let mut counts: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (text, stratum) in texts {
            texts_of[stratum] += 1.0;
            for word in words(text) {
                counts.entry(word).or_insert_with(|| vec![0.0; strata])[stratum] += 1.0;
            }
        }
        let all: f64 = texts_of.iter().sum();
        let shares = |count: Vec<f64>| -> Vec<(f64, f64)> {
            let share = |(count, texts): (f64, &f64)| {
                let share = (count + 1.0) / (texts + 2.0);
                (libm::log(share), libm::log(1.0 - share))
            };
            count.into_iter().zip(&texts_of).map(share).collect()
        };
        let prior = texts_of.iter().map(|count| libm::log((count + 1.0) / (all + strata as f64))).collect();
        Self { prior, of_word: counts.into_iter().map(|(word, count)| (word, shares(count))).collect() }
    }

    /// The probability of each stratum given a text.
    pub(super) fn probabilities(&self, text: &str) -> Vec<f64> {
        let present = words(text);
        let mut logarithms = self.prior.clone();
        for (word, shares) in &self.of_word {
            let is_present = present.contains(word);
            for (logarithm, (with, without)) in logarithms.iter_mut().zip(shares) {
                *logarithm += if is_present { with } else { without };
            }
        }
        let greatest = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = logarithms.iter().map(|value| libm::exp(value - greatest)).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / sum).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_the_stratum_away() {
        let texts =
            [("X-ray of the chest", 0), ("x-ray, frontal", 0), ("CT of the chest", 1), ("axial CT slice", 1)];
        let words = Words::learn(2, texts);
        assert!(words.probabilities("an X-ray")[0] > 0.8);
        assert!(words.probabilities("ct")[1] > 0.8);
        let neither = words.probabilities("");
        assert!((neither[0] + neither[1] - 1.0).abs() < 1e-12);
    }
}
