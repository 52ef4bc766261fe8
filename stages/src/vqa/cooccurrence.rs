//! Which words stand together in questions: the mixture of word vectors that BAN, MEVF and QCR put beside a
//! word's own.

use super::QuestionVocabulary;
use super::words_of;

/// How co-occurrences are weighted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weighting {
    /// Each by one over the number of times that the other word occurs.
    Intended,
    /// As the authors' code does: it divides, for each co-occurrence, the weight that stands in the list of
    /// co-occurrences at the place of the other word's *id*. All but the first of the list keep the weight 1.
    Reference,
}

/// The mixture of each word: `[words][words]`, row-major, rows that sum to 1 or, for a word that never stands with
/// another, are zero. Questions are the training questions; every pair of places of one counts, whatever its
/// length.
pub fn co_occurrences<'a>(
    questions: impl IntoIterator<Item = &'a str>,
    vocabulary: &QuestionVocabulary,
    weighting: Weighting,
) -> Vec<f32> {
    let count = vocabulary.words().len();
    let mut occurrences = vec![0u32; count];
    // Word and other word, twice for each pair: the order is what the reference's mistake depends on.
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for question in questions {
        let ids: Vec<usize> =
            words_of(question).iter().filter_map(|word| vocabulary.id(word)).map(|id| id as usize).collect();
        for (place, first) in ids.iter().enumerate() {
            occurrences[*first] += 1;
            for second in &ids[place + 1..] {
                pairs.push((*first, *second));
                pairs.push((*second, *first));
            }
        }
    }
    let mut weights = vec![1.0f64; pairs.len()];
    for (entry, (_, other)) in pairs.iter().enumerate() {
        let place = match weighting {
            Weighting::Intended => entry,
            Weighting::Reference => *other,
        };
        if let Some(weight) = weights.get_mut(place) {
            *weight /= f64::from(occurrences[*other]);
        }
    }
    let mut sums = vec![0.0f64; count];
    for ((word, _), weight) in pairs.iter().zip(&weights) {
        sums[*word] += weight;
    }
    let mut mixture = vec![0.0f64; count * count];
    for ((word, other), weight) in pairs.iter().zip(&weights) {
        mixture[word * count + other] += weight / sums[*word];
    }
    mixture.into_iter().map(|weight| weight as f32).collect()
}

/// The mixed vectors, `[words, width]` row-major: `mixture` `[words, words]` times `vectors` `[words, width]`, in
/// double precision.
pub fn mixed_vectors(mixture: &[f32], vectors: &[f32], width: usize) -> Vec<f32> {
    let words = vectors.len().checked_div(width).unwrap_or(0);
    let mut mixed = Vec::with_capacity(words * width);
    for row in mixture.chunks_exact(words.max(1)) {
        let mut sum = vec![0.0f64; width];
        for (weight, vector) in row.iter().zip(vectors.chunks_exact(width)) {
            if *weight != 0.0 {
                sum.iter_mut()
                    .zip(vector)
                    .for_each(|(sum, value)| *sum += f64::from(*weight) * f64::from(*value));
            }
        }
        mixed.extend(sum.into_iter().map(|sum| sum as f32));
    }
    mixed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vqa::UnknownWord;

    #[test]
    fn weights_by_hand() {
        let questions = ["is it left", "it is", "alone"];
        let vocabulary = QuestionVocabulary::new(questions, UnknownWord::Own);
        let mixture = co_occurrences(questions, &vocabulary, Weighting::Intended);
        // `is` stands with `it` (twice there) in two questions and with `left` (once there) in one.
        let row = |word: usize| &mixture[word * 4..(word + 1) * 4];
        for (weight, expected) in row(0).iter().zip([0.0, 0.5, 0.5, 0.0]) {
            assert!((weight - expected).abs() < 1e-6, "{mixture:?}");
        }
        assert_eq!(row(3), [0.0; 4]);
        let vectors = [1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 9.0, 9.0];
        assert_eq!(mixed_vectors(&mixture, &vectors, 2)[..2], [2.0, 1.0]);
        assert_eq!(mixed_vectors(&mixture, &vectors, 2)[6..], [0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn rows_are_shares(questions in proptest::collection::vec("[a-e ]{0,20}", 0..12), reference in any::<bool>()) {
            let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
            let vocabulary = QuestionVocabulary::new(questions.iter().copied(), UnknownWord::LastWord);
            let weighting = if reference { Weighting::Reference } else { Weighting::Intended };
            let mixture = co_occurrences(questions, &vocabulary, weighting);
            let words = vocabulary.words().len();
            prop_assert_eq!(mixture.len(), words * words);
            for row in mixture.chunks_exact(words.max(1)) {
                let sum: f32 = row.iter().sum();
                prop_assert!(row.iter().all(|weight| *weight >= 0.0));
                prop_assert!(sum == 0.0 || (sum - 1.0).abs() < 1e-5, "{}", sum);
            }
        }
    }
}
