//! Figures of a classifier: its scores against the labels, with MedMNIST's rules for what is right.

use super::calibration::Calibration;
use super::confusion::{Confusion, Disagreement};
use super::ranking::Ranking;
use super::resampling::mean;

/// What the labels are, in MedMNIST's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// One of several classes.
    MultiClass,
    /// One of two; only the score of class 1, the last column, counts.
    Binary,
    /// A bit per class.
    MultiLabel,
    /// One of several grades: scored as plain classes, with kappa and the mean error beside.
    Ordinal,
}

impl Task {
    /// The task of a label table's metadata; what is unknown has plain classes.
    pub fn parse(text: &str) -> Self {
        match text {
            "binary-class" => Self::Binary,
            "ordinal-regression" => Self::Ordinal,
            text if text.starts_with("multi-label") => Self::MultiLabel,
            _ => Self::MultiClass,
        }
    }
}

/// Scores of samples, `[samples, classes]` (of a binary task also `[samples, 1]`), with their labels.
/// Thresholds and calibration need probabilities; the rest takes any scores.
#[derive(Clone, Debug)]
pub struct ClassifierScores {
    task: Task,
    /// Columns of the scores.
    columns: usize,
    scores: Vec<Vec<f64>>,
    /// One class, or a bit per class.
    targets: Vec<Vec<i64>>,
    /// Of the columns in [`Self::scored`], in their order.
    rankings: Vec<Ranking>,
    predictions: Vec<Vec<i32>>,
    /// The share of a sample's predictions that are right.
    rightness: Vec<f64>,
}

impl ClassifierScores {
    /// Scores of at least one sample, all rows of one length, and a target for each.
    pub fn new(task: Task, scores: Vec<Vec<f64>>, targets: Vec<Vec<i64>>) -> Self {
        let columns = scores.first().map_or(0, Vec::len);
        let predictions: Vec<Vec<i32>> = scores.iter().map(|scores| predict(task, scores)).collect();
        let share = |(prediction, target): (&Vec<i32>, &Vec<i64>)| {
            let right = prediction.iter().zip(target).filter(|(ours, label)| i64::from(**ours) == **label);
            right.count() as f64 / prediction.len() as f64
        };
        let rightness = predictions.iter().zip(&targets).map(share).collect();
        let mut this = Self { task, columns, scores, targets, rankings: Vec::new(), predictions, rightness };
        let ranking = |column| {
            let (scores, positive) = this.column(column);
            Ranking::new(&scores, &positive)
        };
        this.rankings = this.scored().map(ranking).collect();
        this
    }

    /// The samples at `rows`, at least one, in that order.
    #[must_use]
    pub fn select(&self, rows: &[usize]) -> Self {
        let scores = rows.iter().map(|row| self.scores[*row].clone()).collect();
        Self::new(self.task, scores, rows.iter().map(|row| self.targets[*row].clone()).collect())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.scores.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// The columns that are scored: of a binary task the last alone.
    pub fn scored(&self) -> impl Iterator<Item = usize> + use<> {
        let first = if self.task == Task::Binary { self.columns.saturating_sub(1) } else { 0 };
        first..self.columns
    }

    /// Whether a sample is positive in a column.
    pub fn is_positive(&self, row: usize, column: usize) -> bool {
        match self.task {
            Task::MultiLabel => self.targets[row][column] == 1,
            Task::Binary => self.targets[row][0] == 1,
            Task::MultiClass | Task::Ordinal => self.targets[row][0] == column as i64,
        }
    }

    /// The predicted class: the first greatest score, of a binary task class 1 above 0.5; of several
    /// labels the bits above 0.5.
    pub fn prediction(&self, row: usize) -> &[i32] {
        &self.predictions[row]
    }

    /// Whether the prediction is the label; of several labels, whether all bits are.
    pub fn is_right(&self, row: usize) -> bool {
        self.rightness[row] == 1.0
    }

    /// 1 for a right sample and 0 for a wrong one; of several labels the share of right bits.
    pub fn rightness(&self) -> &[f64] {
        &self.rightness
    }

    /// Accuracy as the MedMNIST evaluator's; of several labels the mean over samples and labels.
    pub fn accuracy(&self, weights: &[f64]) -> Option<f64> {
        mean(&self.rightness, weights)
    }

    /// The area under the ROC curve of one column against the rest.
    pub fn class_auroc(&self, column: usize, weights: &[f64]) -> Option<f64> {
        let place = self.scored().position(|scored| scored == column)?;
        self.rankings[place].auroc(weights)
    }

    /// The plain mean of [`Self::class_auroc`] over the scored columns; undefined if one of them is.
    pub fn auroc(&self, weights: &[f64]) -> Option<f64> {
        macro_mean(self.scored().map(|column| self.class_auroc(column, weights)))
    }

    /// Average precision of one column against the rest.
    pub fn class_average_precision(&self, column: usize, weights: &[f64]) -> Option<f64> {
        let place = self.scored().position(|scored| scored == column)?;
        self.rankings[place].average_precision(weights)
    }

    /// The plain mean of [`Self::class_average_precision`] over the scored columns; undefined if one of
    /// them is.
    pub fn average_precision(&self, weights: &[f64]) -> Option<f64> {
        macro_mean(self.scored().map(|column| self.class_average_precision(column, weights)))
    }

    /// Brier's score: of several classes the squared errors summed over classes, of a binary task that
    /// of class 1 alone, of several labels the mean over labels.
    pub fn brier(&self, weights: &[f64]) -> Option<f64> {
        let error = |row: usize| -> f64 {
            let squares = self.scored().map(|column| {
                let target = f64::from(u8::from(self.is_positive(row, column)));
                (self.scores[row][column] - target) * (self.scores[row][column] - target)
            });
            let sum: f64 = squares.sum();
            if self.task == Task::MultiLabel { sum / self.columns as f64 } else { sum }
        };
        mean(&(0..self.len()).map(error).collect::<Vec<_>>(), weights)
    }

    /// Calibration of the top probability; undefined for several labels.
    pub fn calibration(&self, weights: &[f64]) -> Option<Calibration> {
        let sample = |row: usize| {
            let scores = &self.scores[row];
            let last = scores[self.columns - 1];
            // Here a binary task is one of two columns, the first of equals being the prediction.
            let top = match self.task {
                Task::Binary => last.max(1.0 - last),
                _ => scores[argmax(scores)],
            };
            (top, self.is_right(row), weights[row])
        };
        (self.task != Task::MultiLabel).then(|| Calibration::new((0..self.len()).map(sample)))
    }

    /// True against predicted classes; undefined for several labels.
    pub fn confusion(&self, weights: &[f64]) -> Option<Confusion> {
        let classes = if self.task == Task::Binary { 2 } else { self.columns };
        let sample =
            |row: usize| (self.targets[row][0] as usize, self.prediction(row)[0] as usize, weights[row]);
        (self.task != Task::MultiLabel).then(|| Confusion::new(classes, (0..self.len()).map(sample)))
    }

    /// Macro F1 over classes; of several labels over labels, 0 for one that neither occurs nor is
    /// predicted.
    pub fn macro_f1(&self, weights: &[f64]) -> Option<f64> {
        if self.task != Task::MultiLabel {
            return self.confusion(weights)?.macro_f1();
        }
        let label = |column: usize| {
            let (mut both, mut hits) = (0.0, 0.0);
            for (row, weight) in weights.iter().enumerate() {
                let (target, predicted) = (self.is_positive(row, column), self.scores[row][column] > 0.5);
                both += weight * f64::from(u8::from(target) + u8::from(predicted));
                hits += weight * f64::from(u8::from(target && predicted));
            }
            Some(if both > 0.0 { 2.0 * hits / both } else { 0.0 })
        };
        macro_mean((0..self.columns).map(label))
    }

    /// Quadratic kappa of ordinal grades.
    pub fn quadratic_kappa(&self, weights: &[f64]) -> Option<f64> {
        self.confusion(weights)?.kappa(Disagreement::Quadratic)
    }

    /// The mean distance of predicted and true grade.
    pub fn mean_grade_error(&self, weights: &[f64]) -> Option<f64> {
        let distance = |row: usize| (i64::from(self.prediction(row)[0]) - self.targets[row][0]).abs() as f64;
        (self.task != Task::MultiLabel)
            .then(|| mean(&(0..self.len()).map(distance).collect::<Vec<_>>(), weights))?
    }

    /// Of a binary task: the share of positives (sensitivity) and of negatives (1 - specificity) whose
    /// score is at least `threshold`.
    pub fn rates_at(&self, threshold: f64, weights: &[f64]) -> (Option<f64>, Option<f64>) {
        self.rates(|score| score >= threshold, weights)
    }

    /// Of a binary task: the shares of positives and of negatives whose score `is_positive`.
    pub(super) fn rates(
        &self,
        is_positive: impl Fn(f64) -> bool,
        weights: &[f64],
    ) -> (Option<f64>, Option<f64>) {
        let mut counts = [[0.0; 2]; 2];
        for (row, weight) in weights.iter().enumerate() {
            let truth = usize::from(self.is_positive(row, self.columns - 1));
            counts[truth][usize::from(is_positive(self.scores[row][self.columns - 1]))] += weight;
        }
        let share = |[below, above]: [f64; 2]| (below + above > 0.0).then(|| above / (below + above));
        (share(counts[1]), share(counts[0]))
    }

    /// The scores of a sample.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.scores[row]
    }

    /// The label of a sample: one class, or a bit per class.
    pub fn target(&self, row: usize) -> &[i64] {
        &self.targets[row]
    }

    /// What the labels are.
    pub fn task(&self) -> Task {
        self.task
    }

    /// The class of each sample; none where samples have several labels.
    pub fn classes(&self) -> Option<Vec<i64>> {
        (self.task != Task::MultiLabel).then(|| self.targets.iter().map(|target| target[0]).collect())
    }

    /// The scores of a column and whether each sample is positive there.
    pub fn column(&self, column: usize) -> (Vec<f64>, Vec<bool>) {
        (0..self.len()).map(|row| (self.scores[row][column], self.is_positive(row, column))).unzip()
    }
}

fn predict(task: Task, scores: &[f64]) -> Vec<i32> {
    match task {
        Task::MultiLabel => scores.iter().map(|score| i32::from(*score > 0.5)).collect(),
        Task::Binary => vec![i32::from(scores.last().is_some_and(|score| *score > 0.5))],
        Task::MultiClass | Task::Ordinal => vec![argmax(scores) as i32],
    }
}

/// The mean of values that are all defined.
fn macro_mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value?;
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}

/// Softmax of logits, in f64.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f64> = logits.iter().map(|logit| libm::exp(f64::from(logit - max))).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

/// The index of the greatest value, the first of equals.
pub fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_score_of_one_half_is_negative() {
        let scores =
            ClassifierScores::new(Task::Binary, vec![vec![0.5, 0.5], vec![0.4, 0.6]], vec![vec![1], vec![1]]);
        assert_eq!(scores.rightness(), [0.0, 1.0]);
        assert_eq!(scores.auroc(&[1.0; 2]), None, "there are no negatives");
        assert_eq!(scores.rates_at(0.5, &[1.0; 2]), (Some(1.0), None));
    }

    #[test]
    fn several_labels_are_right_bit_by_bit() {
        let rows = vec![vec![0.9, 0.2, 0.7], vec![0.1, 0.8, 0.5]];
        let scores = ClassifierScores::new(Task::MultiLabel, rows, vec![vec![1, 1, 1], vec![0, 1, 0]]);
        assert_eq!(scores.rightness(), [2.0 / 3.0, 1.0]);
        assert!(!scores.is_right(0) && scores.is_right(1));
        assert_eq!(scores.macro_f1(&[1.0; 2]), Some((1.0 + 2.0 / 3.0 + 1.0) / 3.0));
        assert!(scores.calibration(&[1.0; 2]).is_none());
    }

    #[test]
    fn grades_have_a_distance() {
        let rows = vec![vec![0.1, 0.2, 0.7], vec![0.8, 0.1, 0.1]];
        let scores = ClassifierScores::new(Task::Ordinal, rows, vec![vec![0], vec![0]]);
        assert_eq!(scores.mean_grade_error(&[1.0; 2]), Some(1.0));
        assert_eq!(Task::parse("multi-label, binary-class"), Task::MultiLabel);
    }
}
