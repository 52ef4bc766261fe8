//! The confusion matrix and what it says: balanced accuracy, F1, kappa, Matthews' correlation.

/// Counts by true (rows) and predicted class (columns).
#[derive(Clone, PartialEq, Debug)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`, row by row.
    counts: Vec<f64>,
}

/// How much a disagreement of classes i and j counts in kappa.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disagreement {
    /// All alike.
    Equal,
    /// |i - j|.
    Linear,
    /// (i - j)^2.
    Quadratic,
}

impl Disagreement {
    fn weight(self, i: usize, j: usize) -> f64 {
        let distance = i.abs_diff(j) as f64;
        match self {
            Self::Equal => f64::from(u8::from(i != j)),
            Self::Linear => distance,
            Self::Quadratic => distance * distance,
        }
    }
}

impl Confusion {
    /// Counts (true, predicted, weight) triples; both have to be below `classes`.
    pub fn new(classes: usize, samples: impl IntoIterator<Item = (usize, usize, f64)>) -> Self {
        let mut counts = vec![0.0; classes * classes];
        for (truth, predicted, weight) in samples {
            counts[truth * classes + predicted] += weight;
        }
        Self { classes, counts }
    }

    /// The count of a true and a predicted class.
    pub fn count(&self, truth: usize, predicted: usize) -> f64 {
        self.counts[truth * self.classes + predicted]
    }

    fn of_truth(&self, class: usize) -> f64 {
        (0..self.classes).map(|other| self.count(class, other)).sum()
    }

    fn of_prediction(&self, class: usize) -> f64 {
        (0..self.classes).map(|other| self.count(other, class)).sum()
    }

    fn total(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// The mean recall of the classes that occur.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        let recalls = (0..self.classes).filter_map(|class| {
            let total = self.of_truth(class);
            (total > 0.0).then(|| self.count(class, class) / total)
        });
        let (sum, count) = recalls.fold((0.0, 0.0), |(sum, count), recall| (sum + recall, count + 1.0));
        (count > 0.0).then(|| sum / count)
    }

    /// The mean of 2 tp / (2 tp + fp + fn) over the classes that occur or were predicted.
    pub fn macro_f1(&self) -> Option<f64> {
        let scores = (0..self.classes).filter_map(|class| {
            let both = self.of_truth(class) + self.of_prediction(class);
            (both > 0.0).then(|| 2.0 * self.count(class, class) / both)
        });
        let (sum, count) = scores.fold((0.0, 0.0), |(sum, count), score| (sum + score, count + 1.0));
        (count > 0.0).then(|| sum / count)
    }

    /// Cohen's kappa: 1 - sum w O / sum w E over all classes, E the counts that the margins imply.
    /// Undefined where truth and prediction are the same single class.
    pub fn kappa(&self, disagreement: Disagreement) -> Option<f64> {
        let (mut observed, mut expected) = (0.0, 0.0);
        for truth in 0..self.classes {
            for predicted in 0..self.classes {
                let weight = disagreement.weight(truth, predicted);
                observed += weight * self.count(truth, predicted);
                expected += weight * self.of_truth(truth) * self.of_prediction(predicted);
            }
        }
        (expected > 0.0).then(|| 1.0 - observed * self.total() / expected)
    }

    /// Matthews' correlation of several classes (Gorodkin 2004); undefined where all samples have one
    /// class or one prediction.
    pub fn matthews(&self) -> Option<f64> {
        let total = self.total();
        let trace: f64 = (0..self.classes).map(|class| self.count(class, class)).sum();
        let (mut both, mut truths, mut predictions) = (0.0, 0.0, 0.0);
        for class in 0..self.classes {
            let (truth, predicted) = (self.of_truth(class), self.of_prediction(class));
            both += truth * predicted;
            truths += truth * truth;
            predictions += predicted * predicted;
        }
        let spread = (total * total - truths) * (total * total - predictions);
        (spread > 0.0).then(|| (trace * total - both) / spread.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_beyond_chance() {
        // Two raters, 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: kappa is (0.7 - 0.5) / 0.5.
        let confusion = Confusion::new(2, [(1, 1, 20.0), (1, 0, 5.0), (0, 1, 10.0), (0, 0, 15.0)]);
        assert!((confusion.kappa(Disagreement::Equal).unwrap() - 0.4).abs() < 1e-12);
        assert_eq!(confusion.kappa(Disagreement::Quadratic), confusion.kappa(Disagreement::Equal));
        assert_eq!(confusion.balanced_accuracy(), Some(0.5 * (20.0 / 25.0 + 15.0 / 25.0)));
    }

    #[test]
    fn a_class_that_never_occurs_is_left_out() {
        let confusion = Confusion::new(3, [(0, 0, 2.0), (1, 1, 1.0), (1, 0, 1.0)]);
        assert_eq!(confusion.balanced_accuracy(), Some(0.75));
        assert_eq!(confusion.macro_f1(), Some((4.0 / 5.0 + 2.0 / 3.0) / 2.0));
    }

    #[test]
    fn one_class_leaves_agreement_undefined() {
        let confusion = Confusion::new(2, [(0, 0, 3.0)]);
        assert_eq!(confusion.kappa(Disagreement::Linear), None);
        assert_eq!(confusion.matthews(), None);
        assert_eq!(Confusion::new(2, []).macro_f1(), None);
    }
}
