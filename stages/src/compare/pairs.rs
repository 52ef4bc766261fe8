//! Figures of pairs of models: differences with intervals, effect sizes, tests, and their correction.

use pipe_engine::StageError;

use super::Params;
use super::items::{Answers, Kind, Together};
use crate::metrics::Metric;
use crate::statistics::{
    ClassifierScores, Estimate, Groups, Method, Resampled, Task, Wilcoxon, Zeros, delong, equivalence, holm,
    mcnemar, mean, midranks, recall, wilcoxon,
};

/// Two models by their places; differences are the first minus the second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Pair {
    pub(super) first: usize,
    pub(super) second: usize,
}

impl Pair {
    fn label(self, models: &[Answers]) -> String {
        format!("{} - {}", models[self.first].label, models[self.second].label)
    }
}

/// Beyond this many pairs of values the signed-rank test is the normal approximation.
const EXACT_PAIRS: usize = 50;

/// What a row compares.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Compared {
    pub(super) pair: Pair,
    /// The subgroup that is compared by itself, as `answer_type=OPEN`.
    pub(super) subgroup: Option<String>,
    pub(super) protocol: Option<String>,
    /// What was left out, in words.
    pub(super) left_out: Option<String>,
}

/// A test whose probability is corrected for the number of pairs.
pub(super) struct Test {
    pub(super) of: Compared,
    /// Without the ending `_p`.
    pub(super) name: String,
    pub(super) p: Option<f64>,
    pub(super) n: usize,
}

/// Differences and tests of all pairs over one data set; each kind of test is corrected by itself.
///
/// # Errors
/// If two models answer other items, or under other terms.
pub(super) fn compare_pairs(
    params: &Params,
    models: &[Answers],
    pairs: &[Pair],
) -> Result<Vec<Metric>, StageError> {
    let mut metrics = Vec::new();
    let mut tests: Vec<Test> = Vec::new();
    let (split, task) = (split(models), task(models));
    let row = |of: &Compared, name: &str, estimate: Option<Estimate>, n: usize| {
        let mut metric = Metric::new(task, &split, name, estimate, n);
        metric.method = Some(of.pair.label(models));
        metric.seed = Some(params.seed);
        metric.subgroup.clone_from(&of.subgroup);
        metric.protocol.clone_from(&of.protocol);
        metric.matching.clone_from(&models[of.pair.first].matching);
        metric.reason.clone_from(&of.left_out);
        metric
    };
    for pair in pairs {
        let Together { first, second, protocol, left_out } =
            models[pair.first].together(&models[pair.second], &params.equal_protocols)?;
        let all = Compared { pair: *pair, subgroup: None, protocol, left_out };
        let margin = Some(Estimate::exact(params.margin));
        metrics.push(row(&all, "equivalence_margin", margin, first.items.len()));
        let mut parts = vec![(all.clone(), (0..first.items.len()).collect::<Vec<_>>())];
        for (column, values) in &first.subgroups {
            let mut names: Vec<&String> = values.iter().flatten().collect();
            names.sort();
            names.dedup();
            parts.extend(names.into_iter().map(|name| {
                let of = Compared { subgroup: Some(format!("{column}={name}")), ..all.clone() };
                (of, (0..values.len()).filter(|place| values[*place].as_ref() == Some(name)).collect())
            }));
        }
        for (of, places) in parts {
            let (rows, own) = match &of.subgroup {
                None => differences(params, &first, &second),
                Some(_) => differences(params, &first.select(&places), &second.select(&places)),
            };
            metrics.extend(rows.into_iter().map(|difference| {
                let mut metric = row(&of, &difference.name, difference.estimate, difference.n);
                if metric.estimate.is_none() {
                    metric.reason = difference.reason;
                }
                metric
            }));
            tests.extend(own.into_iter().map(|(name, p, n)| Test { of: of.clone(), name, p, n }));
        }
    }
    metrics.extend(corrected(&tests, &row));
    Ok(metrics)
}

/// Differences and tests of two models over the same items.
fn differences(params: &Params, first: &Answers, second: &Answers) -> Tested {
    match (&first.kind, &second.kind) {
        (Kind::Predictions { right: a, scores: of_a }, Kind::Predictions { right: b, scores: of_b }) => {
            let groups = Groups::new(&first.groups);
            let groups = match of_a.as_ref().and_then(ClassifierScores::classes) {
                Some(classes) if params.stratified => groups.within(&classes),
                _ => groups,
            };
            predictions(params, &groups, [a, b], [of_a.as_ref(), of_b.as_ref()])
        }
        (Kind::Ranks { ranks: a }, Kind::Ranks { ranks: b }) => ranks(params, first, a, b),
        _ => (vec![Difference::undefined("difference", "one has predictions, the other ranks")], Vec::new()),
    }
}

/// Each test with Holm's correction over the pairs, subgroup by subgroup.
pub(super) fn corrected(
    tests: &[Test],
    row: &dyn Fn(&Compared, &str, Option<Estimate>, usize) -> Metric,
) -> Vec<Metric> {
    let mut families: Vec<(&str, &Option<String>)> = Vec::new();
    for test in tests {
        let family = (test.name.as_str(), &test.of.subgroup);
        if !families.contains(&family) {
            families.push(family);
        }
    }
    let mut metrics = Vec::new();
    for (name, subgroup) in families {
        let own: Vec<&Test> =
            tests.iter().filter(|test| test.name == name && test.of.subgroup == *subgroup).collect();
        let adjusted = holm(&own.iter().map(|test| test.p).collect::<Vec<_>>());
        for (test, adjusted) in own.iter().zip(adjusted) {
            for (ending, p) in [("p", test.p), ("p_holm", adjusted)] {
                let mut metric = row(&test.of, &format!("{name}_{ending}"), p.map(Estimate::exact), test.n);
                if p.is_none() {
                    let reason = match name.ends_with("_equivalence") {
                        true => "not testable: the difference has no interval",
                        false => "not testable: there is no variance",
                    };
                    metric.reason = Some(reason.to_owned());
                }
                metrics.push(metric);
            }
        }
    }
    metrics
}

/// The test that the difference at `place` is less than the margin.
fn equality(params: &Params, resampled: &Resampled, place: usize) -> Option<f64> {
    equivalence(&resampled.replicates(place)?, params.margin)
}

/// A row to be.
struct Difference {
    name: String,
    estimate: Option<Estimate>,
    n: usize,
    reason: Option<String>,
}

impl Difference {
    fn new(name: impl Into<String>, estimate: Option<Estimate>, n: usize) -> Self {
        let reason = Some("undefined for these samples".to_owned());
        Self { name: name.into(), estimate, n, reason }
    }

    fn undefined(name: &str, reason: &str) -> Self {
        Self { name: name.to_owned(), estimate: None, n: 0, reason: Some(reason.to_owned()) }
    }
}

type Tested = (Vec<Difference>, Vec<(String, Option<f64>, usize)>);

fn predictions(
    params: &Params,
    groups: &Groups,
    right: [&Vec<bool>; 2],
    scores: [Option<&ClassifierScores>; 2],
) -> Tested {
    let n = right[0].len();
    let [a, b] =
        right.map(|right| right.iter().map(|right| f64::from(u8::from(*right))).collect::<Vec<f64>>());
    let both: Option<[&ClassifierScores; 2]> = scores[0].zip(scores[1]).map(|(a, b)| [a, b]);
    let resampled = Resampled::new(groups, params.seed as u64, |weights| {
        let difference = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
        let auroc = both.and_then(|[a, b]| difference(a.auroc(weights), b.auroc(weights)));
        // Of several labels an answer is right label by label.
        let accuracy = match both {
            Some([a, b]) if a.task() == Task::MultiLabel => {
                difference(a.accuracy(weights), b.accuracy(weights))
            }
            _ => difference(mean(&a, weights), mean(&b, weights)),
        };
        vec![accuracy, auroc]
    });
    let estimates = resampled.estimates();
    let only = |first: &[bool], second: &[bool]| {
        first.iter().zip(second).filter(|(first, second)| **first && !**second).count() as u64
    };
    let test = mcnemar(only(right[0], right[1]), only(right[1], right[0]));
    let odds = (test.second_only > 0).then(|| test.first_only as f64 / test.second_only as f64);
    let ones = vec![1.0; n];
    // Cohen's h, the difference of two shares on the scale of their variance.
    let angle = |share: f64| 2.0 * libm::asin(share.sqrt());
    let h = mean(&a, &ones).zip(mean(&b, &ones)).map(|(a, b)| angle(a) - angle(b));
    let mut rows = vec![Difference::new("accuracy_difference", estimates[0], n)];
    if both.is_some() {
        rows.push(Difference::new("auroc_difference", estimates[1], n));
    }
    rows.push(Difference {
        reason: Some("no sample is right in the second alone".to_owned()),
        ..Difference::new("odds_ratio", odds.map(Estimate::exact), n)
    });
    rows.push(Difference::new("cohens_h", h.map(Estimate::exact), n));
    let mut tests = vec![
        ("mcnemar".to_owned(), Some(test.exact), n),
        ("accuracy_equivalence".to_owned(), equality(params, &resampled, 0), n),
    ];
    if both.is_some() {
        tests.push(("auroc_equivalence".to_owned(), equality(params, &resampled, 1), n));
    }
    if let Some([a, b]) = both.filter(|[a, _]| a.task() == Task::Binary)
        && let Some(column) = a.scored().next()
    {
        let ((scores_a, positive), (scores_b, _)) = (a.column(column), b.column(column));
        tests.push((
            "delong".to_owned(),
            delong([&scores_a, &scores_b], &positive).and_then(|test| test.p),
            n,
        ));
    }
    (rows, tests)
}

fn ranks(params: &Params, items: &Answers, a: &[usize], b: &[usize]) -> Tested {
    let (mut rows, mut tests) = (Vec::new(), Vec::new());
    let mut directions: Vec<&str> = items.items.iter().map(|item| item.2.as_str()).collect();
    directions.dedup();
    directions.sort_unstable();
    directions.dedup();
    for direction in directions {
        let places: Vec<usize> = (0..a.len()).filter(|place| items.items[*place].2 == direction).collect();
        let [a, b] = [a, b].map(|ranks| places.iter().map(|place| ranks[*place]).collect::<Vec<usize>>());
        let groups =
            Groups::new(&places.iter().map(|place| items.groups[*place].clone()).collect::<Vec<_>>());
        let resampled = Resampled::new(&groups, params.seed as u64, |weights| {
            let difference =
                |k: &i64| Some(recall(&a, *k as usize, weights)? - recall(&b, *k as usize, weights)?);
            params.k.iter().map(difference).collect()
        });
        for (place, (k, estimate)) in params.k.iter().zip(resampled.estimates()).enumerate() {
            rows.push(Difference::new(format!("{direction}_recall@{k}_difference"), estimate, places.len()));
            let p = equality(params, &resampled, place);
            tests.push((format!("{direction}_recall@{k}_equivalence"), p, places.len()));
        }
        let [a, b] = [a, b].map(|ranks| ranks.into_iter().map(|rank| rank as f64).collect::<Vec<f64>>());
        let test = wilcoxon(&a, &b, Zeros::Dropped, Method::Normal { continuity: false });
        let effect = test.rank_biserial.map(Estimate::exact);
        rows.push(Difference {
            reason: Some("all ranks are equal".to_owned()),
            ..Difference::new(format!("{direction}_rank_biserial"), effect, places.len())
        });
        tests.push((format!("{direction}_wilcoxon"), test.p, places.len()));
    }
    (rows, tests)
}

/// The figure that stands for a model on a data set: macro AUROC, accuracy, or recall at the greatest k.
fn headline(params: &Params, model: &Answers) -> (String, Option<f64>) {
    let ones = vec![1.0; model.items.len()];
    match &model.kind {
        Kind::Predictions { scores: Some(scores), .. } => ("auroc".to_owned(), scores.auroc(&ones)),
        Kind::Predictions { right, .. } => {
            let right: Vec<f64> = right.iter().map(|right| f64::from(u8::from(*right))).collect();
            ("accuracy".to_owned(), mean(&right, &ones))
        }
        Kind::Ranks { ranks } => {
            let k = params.k.iter().max().copied().unwrap_or(1);
            (format!("recall@{k}"), recall(ranks, k as usize, &ones))
        }
    }
}

/// The signed-rank test of paired values: exact for few of them without ties.
pub(super) fn signed_rank(a: &[f64], b: &[f64]) -> Wilcoxon {
    let test = |method| wilcoxon(a, b, Zeros::Dropped, method);
    if a.len() <= EXACT_PAIRS {
        let exact = test(Method::Exact);
        if exact.p.is_some() {
            return exact;
        }
    }
    test(Method::Normal { continuity: false })
}

/// Models over several data sets: the mean rank of each, and the signed-rank test of each pair.
///
/// # Errors
/// If a data set lacks a model.
pub(super) fn over_datasets(
    params: &Params,
    datasets: &[(String, Vec<Answers>)],
) -> Result<Vec<Metric>, StageError> {
    let models = &datasets[0].1;
    let labels: Vec<&str> = models.iter().map(|model| model.label.as_str()).collect();
    let name = headline(params, &models[0]).0;
    let mut values: Vec<Vec<Option<f64>>> = Vec::new();
    for (dataset, answers) in datasets {
        let of_model = |label: &&str| {
            let own = answers.iter().find(|answers| answers.label == *label).ok_or_else(|| {
                StageError::failed(format!("`{label}` has no predictions on `{dataset}`, other models have"))
            })?;
            Ok(headline(params, own).1)
        };
        if answers.len() != labels.len() {
            let more = answers.iter().find(|answers| !labels.contains(&answers.label.as_str()));
            let more = more.map_or_else(String::new, |answers| answers.label.clone());
            let message = format!("`{more}` has predictions on `{dataset}`, but none on `{}`", datasets[0].0);
            return Err(StageError::failed(message));
        }
        values.push(labels.iter().map(of_model).collect::<Result<_, StageError>>()?);
    }
    // Only where all models have a figure are they ranked.
    let complete: Vec<Vec<f64>> =
        values.into_iter().filter_map(|row| row.into_iter().collect::<Option<Vec<f64>>>()).collect();
    let (split, task) = (split(models), task(models));
    let mut metrics = Vec::new();
    let ranks: Vec<Vec<f64>> = complete
        .iter()
        // The greatest figure has rank 1.
        .map(|row| midranks(&row.iter().map(|value| -value).collect::<Vec<_>>()))
        .collect();
    for (place, label) in labels.iter().enumerate() {
        let sum: f64 = ranks.iter().map(|row| row[place]).sum();
        let rank = (!ranks.is_empty()).then(|| sum / ranks.len() as f64);
        let mut metric =
            Metric::new(task, &split, &format!("{name}_mean_rank"), rank.map(Estimate::exact), ranks.len());
        metric.method = Some((*label).to_owned());
        metrics.push(metric);
    }
    let row = |of: &Compared, name: &str, estimate: Option<Estimate>, n: usize| {
        let mut metric = Metric::new(task, &split, name, estimate, n);
        metric.method = Some(of.pair.label(models));
        metric
    };
    let mut tests = Vec::new();
    for pair in super::pairs(params, models, &datasets[0].0)? {
        let column = |place: usize| complete.iter().map(|row| row[place]).collect::<Vec<f64>>();
        let (a, b) = (column(pair.first), column(pair.second));
        let used = signed_rank(&a, &b);
        let effect = used.rank_biserial.map(Estimate::exact);
        let of = Compared { pair, subgroup: None, protocol: None, left_out: None };
        metrics.push(row(&of, &format!("{name}_rank_biserial"), effect, a.len()));
        tests.push(Test { of, name: format!("{name}_wilcoxon"), p: used.p, n: a.len() });
    }
    metrics.extend(corrected(&tests, &row));
    Ok(metrics)
}

/// The task of the models, which is the same of all that are compared.
fn task(models: &[Answers]) -> &'static str {
    models.first().map_or(crate::classification::TASK, |model| model.task)
}

/// The split of the items, those of several splits joined.
fn split(models: &[Answers]) -> String {
    let mut splits: Vec<&str> =
        models.iter().flat_map(|model| &model.items).map(|item| item.0.as_str()).collect();
    splits.sort_unstable();
    splits.dedup();
    splits.join("+")
}
