//! What every evaluation of a classifier writes: predictions, and figures with intervals.

use crate::metrics::Metric;
use crate::model::HeadDescription;
use crate::statistics::{
    ClassifierScores, Disparity, Estimate, GroupRates, Groups, Task, bootstrap_all, delong_interval, softmax,
};
use crate::table::{Column, Table};

/// Classified samples.
pub(crate) struct Classified {
    pub(crate) ids: Vec<String>,
    pub(crate) splits: Vec<String>,
    pub(crate) groups: Vec<Option<String>>,
    pub(crate) targets: Vec<Vec<i64>>,
    pub(crate) logits: Vec<Vec<f32>>,
}

/// The specificity at which sensitivity is given.
pub(crate) const SPECIFICITY: f64 = 0.9;

/// Samples that a subgroup needs to be compared.
const LEAST_SUBGROUP: usize = 20;

/// What the figures of some samples depend on beside them.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) split: &'a str,
    /// Decides the bootstrap.
    pub(crate) seed: i64,
    /// The score from which a sample of a binary task is called positive at [`SPECIFICITY`] on the
    /// validation split.
    pub(crate) threshold: Option<f64>,
    /// The commonest class of the training split, which always answering gives the floor.
    pub(crate) majority: Option<i64>,
    /// Whether the bootstrap draws within classes.
    pub(crate) stratified: bool,
}

/// What is said of an interval that was drawn within classes.
pub(crate) const STRATIFIED: &str = "the interval is of resamples within classes";

/// A figure's name, whether the task has it, and its definition.
type Figure = (&'static str, fn(&ClassifierScores, &[f64]) -> Option<f64>);

/// The figures of every classifier, most telling first.
const FIGURES: [Figure; 5] = [
    ("auroc", ClassifierScores::auroc),
    ("accuracy", ClassifierScores::accuracy),
    ("f1", ClassifierScores::macro_f1),
    ("auprc", ClassifierScores::average_precision),
    ("brier", ClassifierScores::brier),
];

/// Those of tasks in which a sample has one class.
const SINGLE_LABEL: [Figure; 2] = [
    ("balanced_accuracy", |scores, weights| scores.confusion(weights)?.balanced_accuracy()),
    ("ece", |scores, weights| scores.calibration(weights)?.expected_error()),
];

/// Those of grades.
const ORDINAL: [Figure; 2] =
    [("quadratic_kappa", ClassifierScores::quadratic_kappa), ("mae", ClassifierScores::mean_grade_error)];

fn figures(task: Task) -> Vec<Figure> {
    let mut figures = FIGURES.to_vec();
    if task != Task::MultiLabel {
        figures.extend(SINGLE_LABEL);
    }
    if task == Task::Ordinal {
        figures.extend(ORDINAL);
    }
    figures
}

/// The task of the figures here.
pub(crate) const TASK: &str = "classification";

/// Probabilities of a row of logits: softmax over classes, or a sigmoid per label.
pub(crate) fn probabilities(logits: &[f32], description: &HeadDescription) -> Vec<f64> {
    if description.is_multi_label() {
        logits.iter().map(|logit| 1.0 / (1.0 + libm::exp(-f64::from(*logit)))).collect()
    } else {
        softmax(logits)
    }
}

impl Classified {
    /// The rows of one split.
    pub(crate) fn rows(&self, split: &str) -> Vec<usize> {
        (0..self.ids.len()).filter(|row| self.splits[*row] == split).collect()
    }

    /// The splits in order of first appearance.
    pub(crate) fn distinct_splits(&self) -> Vec<String> {
        let mut splits: Vec<String> = Vec::new();
        for split in &self.splits {
            if !splits.contains(split) {
                splits.push(split.clone());
            }
        }
        splits
    }

    /// The probabilities of some rows beside their labels.
    pub(crate) fn scores(&self, description: &HeadDescription, rows: &[usize]) -> ClassifierScores {
        ClassifierScores::new(
            Task::parse(&description.task),
            rows.iter().map(|row| probabilities(&self.logits[*row], description)).collect(),
            rows.iter().map(|row| self.targets[*row].clone()).collect(),
        )
    }

    /// What is resampled as one: the groups of some rows, within their classes if they are `stratified`.
    fn groups(&self, rows: &[usize], stratified: bool) -> Groups {
        let groups = Groups::new(&rows.iter().map(|row| self.groups[*row].clone()).collect::<Vec<_>>());
        match stratified {
            true => groups.within(&rows.iter().map(|row| self.targets[*row][0]).collect::<Vec<_>>()),
            false => groups,
        }
    }

    /// The MedMNIST evaluator's figures (AUROC and accuracy), further ones, and those per class, over
    /// `rows`.
    pub(crate) fn metrics(
        &self,
        description: &HeadDescription,
        rows: &[usize],
        setting: Setting<'_>,
    ) -> Vec<Metric> {
        if rows.is_empty() {
            return Vec::new();
        }
        let scores = self.scores(description, rows);
        let figures = figures(scores.task());
        let classes: Vec<usize> = scores.scored().collect();
        let per_class = if classes.len() > 1 { classes.as_slice() } else { &[] };
        let estimates =
            bootstrap_all(&self.groups(rows, setting.stratified), setting.seed as u64, |weights| {
                let mut values: Vec<Option<f64>> =
                    figures.iter().map(|(_, figure)| figure(&scores, weights)).collect();
                values.extend(per_class.iter().map(|class| scores.class_auroc(*class, weights)));
                values.push(setting.threshold.and_then(|threshold| scores.rates_at(threshold, weights).0));
                values
            });
        let mut estimates = estimates.into_iter();
        let metric = |name: &str, estimate: Option<Estimate>| {
            let mut metric = Metric::new(TASK, setting.split, name, estimate, rows.len());
            metric.seed = Some(setting.seed);
            let is_drawn = metric.estimate.is_some_and(|one| one.low.is_some());
            metric.reason = (setting.stratified && is_drawn).then(|| STRATIFIED.to_owned());
            metric
        };
        let mut metrics: Vec<Metric> = Vec::new();
        for (name, _) in &figures {
            let mut row = metric(name, estimates.next().flatten());
            if row.estimate.is_none() {
                row.reason = Some("a class has no or only positive samples".to_owned());
            }
            metrics.push(row);
        }
        if let Some(majority) = setting.majority {
            let right = rows.iter().filter(|row| self.targets[**row][0] == majority).count();
            let mut floor = metric("accuracy", Some(Estimate::exact(right as f64 / rows.len() as f64)));
            floor.method = Some("majority".to_owned());
            metrics.push(floor);
        }
        for class in per_class {
            let mut row = metric("auroc", estimates.next().flatten());
            row.class = Some(description.classes[*class].clone());
            metrics.push(row);
        }
        if scores.task() == Task::Binary {
            let mut row = metric("sensitivity_at_90_specificity", estimates.next().flatten());
            if row.estimate.is_none() {
                let reason = match setting.threshold {
                    Some(_) => "there are no positive samples",
                    None => "no validation split with negatives to choose the threshold on",
                };
                row.reason = Some(reason.to_owned());
            }
            metrics.push(row);
            metrics.push(self.delong(&scores, rows, metric("auroc_delong", None)));
        }
        metrics
    }

    /// The area under the ROC curve with DeLong's interval instead of a bootstrap's, put into `row`.
    fn delong(&self, scores: &ClassifierScores, rows: &[usize], mut row: Metric) -> Metric {
        let is_independent = self.groups(rows, false).len() == rows.len();
        let column = scores.scored().last();
        let interval = column.filter(|_| is_independent).and_then(|column| {
            let (scores, positive) = scores.column(column);
            delong_interval(&scores, &positive)
        });
        if interval.is_none() {
            let reason = match is_independent {
                true => "the variance is 0, or a class has fewer than two samples",
                false => "samples of one group are not independent",
            };
            row.reason = Some(reason.to_owned());
        }
        row.estimate = interval;
        row
    }

    /// The figures of each subgroup, and how far they differ. `subgroup` names the group of each sample
    /// of the set; `column` is what it was read from.
    pub(crate) fn subgroup_metrics(
        &self,
        description: &HeadDescription,
        rows: &[usize],
        setting: Setting<'_>,
        column: &str,
        subgroup: &[Option<String>],
    ) -> Vec<Metric> {
        let mut names: Vec<&String> = rows.iter().filter_map(|row| subgroup[*row].as_ref()).collect();
        names.sort();
        names.dedup();
        let mut metrics = Vec::new();
        let mut members: Vec<Vec<bool>> = Vec::new();
        let mut left_out: Vec<&str> = Vec::new();
        let scores = self.scores(description, rows);
        for name in names {
            let belongs: Vec<bool> = rows.iter().map(|row| subgroup[*row].as_ref() == Some(name)).collect();
            let own: Vec<usize> =
                rows.iter().zip(&belongs).filter(|(_, belongs)| **belongs).map(|(row, _)| *row).collect();
            metrics.extend(self.metrics(description, &own, setting).into_iter().map(|mut metric| {
                metric.subgroup = Some(format!("{column}={name}"));
                metric
            }));
            let rates = GroupRates::of(&scores, &belongs, &vec![1.0; rows.len()]);
            if rates.n >= LEAST_SUBGROUP && rates.auroc.is_some() {
                members.push(belongs);
            } else {
                left_out.push(name);
            }
        }
        let differences: [(&str, fn(&Disparity) -> Option<f64>); 5] = [
            ("worst_group_auroc", |groups| groups.worst_auroc),
            ("auroc_gap", |groups| groups.auroc_gap),
            ("equalised_odds_difference", |groups| groups.equalised_odds),
            ("equal_opportunity_difference", |groups| groups.equal_opportunity),
            ("demographic_parity_difference", |groups| groups.demographic_parity),
        ];
        // Differences of rates need a threshold, which only binary tasks have.
        let count = if scores.task() == Task::Binary { differences.len() } else { 2 };
        let estimates =
            bootstrap_all(&self.groups(rows, setting.stratified), setting.seed as u64, |weights| {
                let rates: Vec<GroupRates> =
                    members.iter().map(|belongs| GroupRates::of(&scores, belongs, weights)).collect();
                // The worst and the gap of a resample that lost a group would be those of other groups.
                let comparable = rates.len() > 1 && rates.iter().all(|rates| rates.auroc.is_some());
                let disparity = comparable.then(|| Disparity::between(&rates));
                differences[..count].iter().map(|(_, of)| disparity.as_ref().and_then(of)).collect()
            });
        for ((name, _), estimate) in differences.iter().zip(estimates) {
            let mut metric = Metric::new(TASK, setting.split, name, estimate, rows.len());
            metric.seed = Some(setting.seed);
            metric.subgroup = Some(column.to_owned());
            if !left_out.is_empty() || estimate.is_none() {
                metric.reason = Some(format!(
                    "groups with fewer than {LEAST_SUBGROUP} samples or one class only are left out: {}",
                    if left_out.is_empty() { "none".to_owned() } else { left_out.join(", ") }
                ));
            }
            metrics.push(metric);
        }
        metrics
    }

    /// The predictions table: a row per sample.
    pub(crate) fn table(&self, description: &HeadDescription) -> Table {
        let scores = self.scores(description, &(0..self.ids.len()).collect::<Vec<_>>());
        let table = Table::new()
            .with("id", Column::texts(self.ids.clone()))
            .with("split", Column::texts(self.splits.clone()))
            .with("patient", Column::Utf8(self.groups.clone()))
            .with("image", Column::texts(self.ids.clone()));
        with_predictions(table, &scores, description)
    }
}

/// Adds what a classifier says of each row of a table: target, prediction, scores and answer.
pub(crate) fn with_predictions(
    table: Table,
    scores: &ClassifierScores,
    description: &HeadDescription,
) -> Table {
    let rows = || 0..scores.len();
    let target = |row: usize| Some(scores.target(row).iter().map(|value| *value as i32).collect());
    let answer = |row: usize| {
        let class = (!description.is_multi_label()).then(|| scores.prediction(row)[0] as usize)?;
        description.classes.get(class).cloned()
    };
    table
        .with("target", Column::ListInt32(rows().map(target).collect()))
        .with(
            "prediction",
            Column::ListInt32(rows().map(|row| Some(scores.prediction(row).to_vec())).collect()),
        )
        .with(
            "scores",
            Column::ListFloat32(
                rows().map(|row| Some(scores.row(row).iter().map(|p| *p as f32).collect())).collect(),
            ),
        )
        .with("correct", Column::Bool(rows().map(|row| Some(scores.is_right(row))).collect()))
        .with("answer", Column::Utf8(rows().map(answer).collect()))
        .with_metadata("task", description.task.clone())
        .with_metadata("label_names", serde_json::json!(description.classes).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forty samples of two classes; the first is recognised in device A and never in device B.
    fn classified() -> (Classified, HeadDescription, Vec<Option<String>>) {
        let class = |row: usize| (row / 2 % 2) as i64;
        let is_b = |row: usize| row % 2 == 1;
        let logits = |row: usize| {
            let right = if is_b(row) { row % 8 < 4 } else { true };
            let margin = 1.0 + 0.01 * row as f32;
            let sign = if (class(row) == 1) == right { 1.0 } else { -1.0 };
            vec![0.0, sign * margin]
        };
        let classified = Classified {
            ids: (0..80).map(|row| format!("image {row}")).collect(),
            splits: vec!["test".to_owned(); 80],
            groups: vec![None; 80],
            targets: (0..80).map(|row| vec![class(row)]).collect(),
            logits: (0..80).map(logits).collect(),
        };
        let description = HeadDescription {
            classes: vec!["normal".to_owned(), "abnormal".to_owned()],
            task: "binary-class".to_owned(),
        };
        let device = (0..80).map(|row| Some(if is_b(row) { "B" } else { "A" }.to_owned()));
        (classified, description, device.collect())
    }

    fn find<'a>(metrics: &'a [Metric], metric: &str, subgroup: Option<&str>) -> &'a Metric {
        let mut found = metrics.iter().filter(|row| {
            row.metric == metric && row.subgroup.as_deref() == subgroup && row.method.is_none()
        });
        let row = found.next().unwrap_or_else(|| panic!("{metric} {subgroup:?}"));
        assert!(found.next().is_none(), "{metric} {subgroup:?} stands twice");
        row
    }

    fn value(metric: &Metric) -> f64 {
        metric.estimate.unwrap().value
    }

    #[test]
    fn a_binary_task_has_a_sensitivity_at_the_threshold_of_its_validation_split() {
        let (classified, description, _) = classified();
        let rows = classified.rows("test");
        let setting =
            |threshold| Setting { split: "test", seed: 1, threshold, majority: None, stratified: false };
        let metrics = classified.metrics(&description, &rows, setting(Some(0.5)));
        assert_eq!(value(find(&metrics, "accuracy", None)), 0.75);
        assert_eq!(value(find(&metrics, "sensitivity_at_90_specificity", None)), 0.75);
        for name in ["auroc", "f1", "auprc", "brier", "balanced_accuracy", "ece"] {
            let estimate = find(&metrics, name, None).estimate.unwrap();
            assert!(
                estimate.low.unwrap() <= estimate.value && estimate.value <= estimate.high.unwrap(),
                "{name}"
            );
        }
        let metrics = classified.metrics(&description, &rows, setting(None));
        let row = find(&metrics, "sensitivity_at_90_specificity", None);
        assert!(row.estimate.is_none() && row.reason.as_deref().unwrap().contains("validation"));
    }

    #[test]
    fn an_area_has_delongs_interval_where_samples_are_independent() {
        let (mut classified, description, _) = classified();
        let rows = classified.rows("test");
        let setting = Setting { split: "test", seed: 1, threshold: None, majority: None, stratified: false };
        classified.groups = (0..80).map(|row| Some(row.to_string())).collect();
        let metrics = classified.metrics(&description, &rows, setting);
        let (bootstrap, delong) = (find(&metrics, "auroc", None), find(&metrics, "auroc_delong", None));
        assert!((value(bootstrap) - value(delong)).abs() < 1e-12);
        let ends =
            |metric: &Metric| metric.estimate.map(|one| (one.low.unwrap(), one.high.unwrap())).unwrap();
        assert!((ends(bootstrap).0 - ends(delong).0).abs() < 0.05, "{bootstrap:?} {delong:?}");
        classified.groups[1] = classified.groups[0].clone();
        let metrics = classified.metrics(&description, &rows, setting);
        let row = find(&metrics, "auroc_delong", None);
        assert!(row.estimate.is_none() && row.reason.as_deref().unwrap().contains("independent"));
    }

    #[test]
    fn intervals_within_classes_are_narrower_and_say_so() {
        let (classified, description, _) = classified();
        let rows = classified.rows("test");
        let metrics = |stratified| {
            let setting = Setting { split: "test", seed: 1, threshold: None, majority: None, stratified };
            classified.metrics(&description, &rows, setting)
        };
        let (plain, within) = (metrics(false), metrics(true));
        let width = |metrics: &[Metric]| {
            let estimate = find(metrics, "brier", None).estimate.unwrap();
            estimate.high.unwrap() - estimate.low.unwrap()
        };
        assert_eq!(value(find(&plain, "auroc", None)), value(find(&within, "auroc", None)));
        assert!(width(&within) <= width(&plain), "{} {}", width(&within), width(&plain));
        assert_eq!(find(&within, "auroc", None).reason.as_deref(), Some(STRATIFIED));
        assert_eq!(find(&plain, "auroc", None).reason, None);
    }

    #[test]
    fn the_majority_is_that_of_the_training_labels() {
        let (mut classified, description, _) = classified();
        // Three of four tested samples are normal, and training knew more abnormal ones.
        classified.targets = (0..80).map(|row| vec![i64::from(row % 4 == 0)]).collect();
        let label = |split: &str, class: i64| (format!("{split} {class}"), split.to_owned(), vec![class]);
        let mut labels = crate::labels::Labels {
            rows: vec![label("test", 0), label("test", 0), label("train", 1), label("test", 0)],
            description: description.clone(),
        };
        let floor = |majority| {
            let setting = Setting { split: "test", seed: 1, threshold: None, majority, stratified: false };
            let metrics = classified.metrics(&description, &classified.rows("test"), setting);
            metrics.into_iter().find(|row| row.method.as_deref() == Some("majority")).map(|row| value(&row))
        };
        assert_eq!(floor(labels.majority("train")), Some(0.25));
        // Without training labels there is no such floor; of equals the first class is taken.
        assert_eq!((labels.majority("val"), floor(None)), (None, None));
        labels.rows.push(label("train", 0));
        assert_eq!(labels.majority("train"), Some(0));
        labels.description.task = "multi-label, binary-class".to_owned();
        assert_eq!(labels.majority("train"), None);
    }

    #[test]
    fn subgroups_differ_where_one_is_served_worse() {
        let (classified, description, device) = classified();
        let rows = classified.rows("test");
        let setting = Setting { split: "test", seed: 1, threshold: None, majority: None, stratified: false };
        let metrics = classified.subgroup_metrics(&description, &rows, setting, "device", &device);
        assert_eq!(value(find(&metrics, "accuracy", Some("device=A"))), 1.0);
        assert_eq!(value(find(&metrics, "accuracy", Some("device=B"))), 0.5);
        let worst = value(find(&metrics, "auroc", Some("device=B")));
        assert_eq!(value(find(&metrics, "worst_group_auroc", Some("device"))), worst);
        assert_eq!(value(find(&metrics, "auroc_gap", Some("device"))), 1.0 - worst);
        assert_eq!(value(find(&metrics, "equalised_odds_difference", Some("device"))), 0.5);

        // A group that is too small is named and left out.
        let mut few = device;
        few.iter_mut().skip(20).filter(|name| name.as_deref() == Some("B")).for_each(|name| *name = None);
        let metrics = classified.subgroup_metrics(&description, &rows, setting, "device", &few);
        let row = find(&metrics, "auroc_gap", Some("device"));
        assert!(row.estimate.is_none() && row.reason.as_deref().unwrap().contains('B'), "{row:?}");
    }
}
