//! Figures read out of metrics tables, and out of predictions.

use crate::table::Table;

impl Table {
    /// The figure `metric` over all test samples: no class, no subgroup, no floor.
    pub(crate) fn figure(&self, metric: &str) -> f64 {
        let (metrics, classes) = (self.texts("metric"), self.texts("class"));
        let (methods, subgroups) = (self.texts("method"), self.texts("subgroup"));
        let values = self.numbers("value");
        let row = (0..metrics.len())
            .find(|row| {
                metrics[*row].as_deref() == Some(metric)
                    && classes[*row].is_none()
                    && methods[*row].is_none()
                    && subgroups[*row].is_none()
            })
            .unwrap_or_else(|| panic!("no figure `{metric}`"));
        values[row].expect("the figure is defined")
    }

    /// Share of samples that are predicted right.
    pub(crate) fn share_correct(&self) -> f64 {
        let correct = self.truths("correct");
        correct.iter().filter(|correct| **correct == Some(true)).count() as f64 / correct.len() as f64
    }
}

/// Mean and standard error of paired differences.
pub(crate) fn paired(differences: &[f64]) -> (f64, f64) {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}
