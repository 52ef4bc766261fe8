//! From what each condition answered to the table: figures, what they lose against the full model, and
//! whether the loss is more than chance. All within the same resamples.

use super::condition::{Condition, Refused, Role};
use crate::metrics::Metric;
use crate::statistics::{
    Change, Changes, Estimate, Groups, Resampled, Scale, bootstrap_all, equivalence, holm, mcnemar, mean,
    perceptual_score, relative_share, synergy,
};

/// A figure of one draw, given how often each sample counts.
pub(super) type Figure<'a> = Box<dyn Fn(&[f64]) -> Option<f64> + Sync + 'a>;

/// What one sample was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    pub(super) prediction: Vec<i32>,
    pub(super) right: bool,
}

/// One pass over the samples; several where chance decides.
pub(super) struct Draw<'a> {
    /// As many as the figures have names.
    pub(super) figures: Vec<Figure<'a>>,
    /// One per sample; none where answers are not compared.
    pub(super) answers: Vec<Answer>,
}

/// What one condition gave.
pub(super) struct Measured<'a> {
    /// `None`: the full model.
    pub(super) condition: Option<Condition>,
    /// `image`, `text`, `both` or `none`: what of the sample it was given to see.
    pub(super) modality: &'static str,
    /// More about it, behind its name.
    pub(super) variant: Option<&'static str>,
    /// Or why there are none.
    pub(super) draws: Result<Vec<Draw<'a>>, Refused>,
}

/// The name of the full model among the conditions.
pub(super) const FULL: &str = "full";

/// The name of a condition in tables.
pub(super) fn method(condition: Option<Condition>, variant: Option<&str>) -> String {
    let name = condition.map_or(FULL, Condition::name);
    variant.map_or_else(|| name.to_owned(), |variant| format!("{name}_{variant}"))
}

impl Measured<'_> {
    fn role(&self) -> Role {
        self.condition.map_or(Role::Full, Condition::role)
    }

    fn method(&self) -> String {
        method(self.condition, self.variant)
    }

    fn draws(&self) -> &[Draw<'_>] {
        self.draws.as_deref().unwrap_or_default()
    }

    /// The mean of a figure over the draws; undefined if one of them is.
    fn mean(&self, figure: usize, weights: &[f64]) -> Option<f64> {
        let draws = self.draws();
        let values = draws.iter().map(|draw| draw.figures[figure](weights));
        let sum = values.sum::<Option<f64>>()?;
        (!draws.is_empty()).then(|| sum / draws.len() as f64)
    }
}

/// What the figures have in common.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) task: &'static str,
    pub(super) split: &'a str,
    /// Of the figures that every condition has.
    pub(super) names: &'a [String],
    /// Before the names of all others.
    pub(super) prefix: &'a str,
    pub(super) groups: &'a Groups,
    pub(super) samples: usize,
    /// Samples that are tested by themselves too, by the name of what they have in common.
    pub(super) parts: &'a [(&'static str, Vec<usize>)],
    /// A loss that is less than this is none.
    pub(super) margin: f64,
    pub(super) seed: i64,
}

/// How a row of the table follows from the figures of the conditions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Formula {
    /// A_c.
    Plain,
    /// A - A_c.
    Gap,
    /// (A_c - A_0) / (A - A_0).
    RelativeShare,
    /// (A - A_c) / A.
    PerceptualScore,
    /// (A - A_c) / (1 - A_0).
    PerceptualScoreOfTask,
    /// A - the better modality.
    Synergy,
}

impl Formula {
    /// The formulas of a role.
    fn of(role: Role) -> &'static [Self] {
        match role {
            Role::Full => &[Self::Plain, Self::Synergy],
            Role::Floor => &[Self::Plain, Self::Gap],
            Role::Monomodal | Role::Simpler | Role::Replaced => {
                &[Self::Plain, Self::Gap, Self::RelativeShare]
            }
            Role::Permuted => &[Self::Plain, Self::Gap, Self::PerceptualScore, Self::PerceptualScoreOfTask],
            Role::Restricted => &[Self::Plain],
        }
    }

    fn name(self, figure: &str) -> String {
        match self {
            Self::Plain => figure.to_owned(),
            Self::Gap => format!("{figure}_gap"),
            Self::RelativeShare => format!("{figure}_relative_share"),
            Self::PerceptualScore => format!("{figure}_perceptual_score"),
            Self::PerceptualScoreOfTask => format!("{figure}_perceptual_score_of_task"),
            Self::Synergy => format!("{figure}_synergy"),
        }
    }

    /// Why it is undefined although the condition's own figure is not.
    fn reason(self) -> &'static str {
        match self {
            Self::Plain => "undefined for these samples",
            Self::Gap => "the full model's figure is undefined",
            Self::RelativeShare => "the full model is not above the floor",
            Self::PerceptualScore => "the full model has nothing to lose",
            Self::PerceptualScoreOfTask => "the floor leaves nothing to gain",
            Self::Synergy => "needs both a model of the image alone and one of the text alone",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
struct Row {
    condition: usize,
    figure: usize,
    formula: Formula,
}

/// The rows of all conditions, the first of which is the full model. Figures come first, then the
/// spread over draws, changed answers and tests.
pub(super) fn compare(table: Table<'_>, conditions: &[Measured<'_>]) -> Vec<Metric> {
    let rows: Vec<Row> = conditions
        .iter()
        .enumerate()
        .filter(|(_, measured)| measured.draws.is_ok())
        .flat_map(|(condition, measured)| {
            Formula::of(measured.role()).iter().flat_map(move |formula| {
                (0..table.names.len()).map(move |figure| Row { condition, figure, formula: *formula })
            })
        })
        .collect();
    let resampled = Resampled::new(table.groups, table.seed as u64, |weights| {
        let values: Vec<Vec<Option<f64>>> = conditions
            .iter()
            .map(|measured| (0..table.names.len()).map(|figure| measured.mean(figure, weights)).collect())
            .collect();
        rows.iter().map(|row| evaluate(*row, conditions, &values)).collect()
    });
    let mut metrics: Vec<Metric> = Vec::new();
    let mut tested: Vec<Tested> = Vec::new();
    for (place, (row, estimate)) in rows.iter().zip(resampled.estimates()).enumerate() {
        if row.formula == Formula::Gap {
            let replicates = resampled.replicates(place).filter(|_| estimate.is_some());
            tested.push(Tested {
                condition: row.condition,
                name: format!("{}_equivalence", table.names[row.figure]),
                p: replicates.and_then(|replicates| equivalence(&replicates, table.margin)),
                samples: table.samples,
            });
        }
        let name = row.formula.name(&table.names[row.figure]);
        let mut metric = Metric::new(table.task, table.split, &name, estimate, table.samples);
        if metric.estimate.is_none() {
            metric.reason = Some(row.formula.reason().to_owned());
        }
        metrics.push(labelled(metric, table, &conditions[row.condition]));
    }
    for measured in conditions {
        metrics.extend(spread(table, measured));
        metrics.extend(changes(table, &conditions[0], measured));
        if let Err(reason) = &measured.draws {
            let mut metric = Metric::new(table.task, table.split, &table.names[0], None, table.samples);
            metric.reason = Some(reason.clone());
            metrics.push(labelled(metric, table, measured));
        }
    }
    tested.splice(0..0, mcnemar_tests(table, conditions));
    if tested.iter().any(|test| test.name.ends_with("_equivalence")) {
        let name = format!("{}equivalence_margin", table.prefix);
        let margin = Some(Estimate::exact(table.margin));
        metrics.push(labelled(
            Metric::new(table.task, table.split, &name, margin, table.samples),
            table,
            &conditions[0],
        ));
    }
    metrics.extend(corrected(table, conditions, &tested));
    metrics
}

fn labelled(mut metric: Metric, table: Table<'_>, measured: &Measured<'_>) -> Metric {
    metric.method = Some(measured.method());
    metric.modality = Some(measured.modality.to_owned());
    metric.seed = Some(table.seed);
    metric
}

fn evaluate(row: Row, conditions: &[Measured<'_>], values: &[Vec<Option<f64>>]) -> Option<f64> {
    let full = values[0][row.figure];
    let own = values[row.condition][row.figure];
    let of_role =
        |role: Role| conditions.iter().zip(values).filter(move |(measured, _)| measured.role() == role);
    let floor = || of_role(Role::Floor).find_map(|(_, values)| values[row.figure]);
    match row.formula {
        Formula::Plain => own,
        Formula::Gap => Some(full? - own?),
        Formula::RelativeShare => relative_share(full?, own?, floor()?),
        Formula::PerceptualScore => perceptual_score(full?, own?, Scale::Model),
        Formula::PerceptualScoreOfTask => perceptual_score(full?, own?, Scale::Task { floor: floor()? }),
        Formula::Synergy => {
            let alone = |modality: &str| {
                of_role(Role::Monomodal)
                    .find(|(measured, _)| measured.modality == modality)
                    .and_then(|(_, values)| values[row.figure])
            };
            synergy(full?, &[alone("image")?, alone("text")?])
        }
    }
}

/// The standard deviation of each figure over the draws.
fn spread(table: Table<'_>, measured: &Measured<'_>) -> Vec<Metric> {
    let draws = measured.draws();
    if draws.len() < 2 {
        return Vec::new();
    }
    let weights = vec![1.0; table.samples];
    let row = |(figure, name): (usize, &String)| {
        let values: Option<Vec<f64>> = draws.iter().map(|draw| draw.figures[figure](&weights)).collect();
        let deviation = values.map(|values| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let squares = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>();
            (squares / (values.len() - 1) as f64).sqrt()
        });
        let estimate = deviation.map(Estimate::exact);
        let metric = Metric::new(table.task, table.split, &format!("{name}_draw_std"), estimate, draws.len());
        labelled(metric, table, measured)
    };
    table.names.iter().enumerate().map(row).collect()
}

/// What became of the full model's answers, over all draws.
fn changes(table: Table<'_>, full: &Measured<'_>, measured: &Measured<'_>) -> Vec<Metric> {
    if !matches!(measured.role(), Role::Permuted | Role::Replaced) {
        return Vec::new();
    }
    let Some(before) = full.draws().first().map(|draw| &draw.answers) else { return Vec::new() };
    let of_draw = |draw: &Draw<'_>| -> Vec<Change> {
        let answers = before.iter().zip(&draw.answers);
        answers
            .map(|(before, after)| {
                Change::of(before.prediction == after.prediction, before.right, after.right)
            })
            .collect()
    };
    let changes = Changes::new(&measured.draws().iter().map(of_draw).collect::<Vec<_>>());
    if changes.changed.len() != table.samples {
        return Vec::new();
    }
    let named = [
        ("changed_share", &changes.changed),
        ("right_to_wrong_share", &changes.right_to_wrong),
        ("wrong_to_right_share", &changes.wrong_to_right),
        ("wrong_to_other_share", &changes.wrong_to_other),
    ];
    let estimates = bootstrap_all(table.groups, table.seed as u64, |weights| {
        named.iter().map(|(_, shares)| mean(shares, weights)).collect()
    });
    let row = |((name, _), estimate): (&(&str, _), Option<Estimate>)| {
        let name = format!("{}{name}", table.prefix);
        labelled(Metric::new(table.task, table.split, &name, estimate, before.len()), table, measured)
    };
    named.iter().zip(estimates).map(row).collect()
}

/// A test of a condition against the full model.
struct Tested {
    condition: usize,
    /// Without the ending `_p`.
    name: String,
    p: Option<f64>,
    samples: usize,
}

/// McNemar's test of each condition with one draw against the full model, over all samples and over each part.
fn mcnemar_tests(table: Table<'_>, conditions: &[Measured<'_>]) -> Vec<Tested> {
    let Some(full) = conditions[0].draws().first() else { return Vec::new() };
    let all: Vec<usize> = (0..full.answers.len()).collect();
    let parts = table.parts.iter().map(|(name, samples)| (format!("mcnemar_{name}"), samples));
    let mut tested = Vec::new();
    for (name, samples) in std::iter::once(("mcnemar".to_owned(), &all)).chain(parts) {
        for (condition, measured) in conditions.iter().enumerate().skip(1) {
            let [draw] = measured.draws() else { continue };
            if draw.answers.is_empty() || draw.answers.len() != full.answers.len() {
                continue;
            }
            let only = |first: &[Answer], second: &[Answer]| {
                samples.iter().filter(|sample| first[**sample].right && !second[**sample].right).count()
                    as u64
            };
            let test = mcnemar(only(&full.answers, &draw.answers), only(&draw.answers, &full.answers));
            let name = format!("{}{name}", table.prefix);
            tested.push(Tested { condition, name, p: Some(test.exact), samples: samples.len() });
        }
    }
    tested
}

/// Each test with Holm's correction over the conditions of the table; each kind of test is corrected by itself.
fn corrected(table: Table<'_>, conditions: &[Measured<'_>], tested: &[Tested]) -> Vec<Metric> {
    let mut names: Vec<&str> = Vec::new();
    for test in tested {
        if !names.contains(&test.name.as_str()) {
            names.push(&test.name);
        }
    }
    let mut metrics = Vec::new();
    for name in names {
        let own: Vec<&Tested> = tested.iter().filter(|test| test.name == name).collect();
        let adjusted = holm(&own.iter().map(|test| test.p).collect::<Vec<_>>());
        for (test, adjusted) in own.iter().zip(adjusted) {
            for (ending, p) in [("p", test.p), ("p_holm", adjusted)] {
                let name = format!("{name}_{ending}");
                let estimate = p.map(Estimate::exact);
                let metric = Metric::new(table.task, table.split, &name, estimate, test.samples);
                metrics.push(labelled(metric, table, &conditions[test.condition]));
            }
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::mean;

    /// A condition whose samples are right where `right` has a 1.
    fn measured(condition: Option<Condition>, modality: &'static str, draws: &[&str]) -> Measured<'static> {
        let draw = |right: &&str| {
            let right: Vec<bool> = right.chars().map(|bit| bit == '1').collect();
            let values: Vec<f64> = right.iter().map(|right| f64::from(u8::from(*right))).collect();
            let answer = |right: &bool| Answer { prediction: vec![i32::from(*right)], right: *right };
            let answers = right.iter().map(answer).collect();
            Draw { figures: vec![Box::new(move |weights: &[f64]| mean(&values, weights))], answers }
        };
        Measured { condition, modality, variant: None, draws: Ok(draws.iter().map(draw).collect()) }
    }

    fn table(conditions: &[Measured<'_>]) -> Vec<Metric> {
        let names = ["accuracy".to_owned()];
        let groups = Groups::singles(8);
        let table = Table {
            task: "classification",
            split: "test",
            names: &names,
            prefix: "",
            groups: &groups,
            samples: 8,
            parts: &[("even", vec![0, 2, 4, 6])],
            margin: 0.3,
            seed: 1,
        };
        compare(table, conditions)
    }

    fn value(metrics: &[Metric], method: &str, name: &str) -> Option<f64> {
        let found: Vec<&Metric> = metrics
            .iter()
            .filter(|metric| metric.method.as_deref() == Some(method) && metric.metric == name)
            .collect();
        assert_eq!(found.len(), 1, "{method} {name}");
        found[0].estimate.map(|estimate| estimate.value)
    }

    #[test]
    fn what_is_lost_is_set_against_the_full_model_and_the_floor() {
        let metrics = table(&[
            measured(None, "both", &["11111100"]),
            measured(Some(Condition::Majority), "none", &["11000000"]),
            measured(Some(Condition::ImageOnly), "image", &["11110000"]),
            measured(Some(Condition::TextPrior), "text", &["11100000"]),
            measured(Some(Condition::ShuffledImage), "none", &["11000001", "11100000"]),
        ]);
        let value = |method, name| value(&metrics, method, name).map(|value| (value * 1e9).round() / 1e9);
        assert_eq!(value("full", "accuracy"), Some(0.75));
        assert_eq!(value("image_only", "accuracy_gap"), Some(0.25));
        assert_eq!(value("image_only", "accuracy_relative_share"), Some(0.5));
        assert_eq!(value("full", "accuracy_synergy"), Some(0.25));
        assert_eq!(value("shuffled_image", "accuracy"), Some(0.375));
        assert_eq!(value("shuffled_image", "accuracy_perceptual_score"), Some(0.5));
        assert_eq!(value("shuffled_image", "accuracy_perceptual_score_of_task"), Some(0.5));
        assert_eq!(value("shuffled_image", "accuracy_draw_std"), Some(0.0));
        // Answers 2 to 5 and 7 change in the first draw, 3 to 5 in the second.
        assert_eq!(value("shuffled_image", "changed_share"), Some(0.5));
        assert_eq!(value("shuffled_image", "wrong_to_right_share"), Some(0.0625));
        // Four samples are lost with the image alone: 2 * (1/2)^2.
        assert_eq!(value("image_only", "mcnemar_p"), Some(0.5));
        assert_eq!(value("image_only", "mcnemar_p_holm"), Some(0.5));
        let full = metrics.iter().find(|metric| metric.method.as_deref() == Some("full")).unwrap();
        assert!(full.estimate.unwrap().low.unwrap() < 0.75);
    }

    #[test]
    fn parts_are_tested_by_themselves_and_shares_have_intervals() {
        let metrics = table(&[
            measured(None, "both", &["11111100"]),
            measured(Some(Condition::Majority), "none", &["11000000"]),
            measured(Some(Condition::ImageOnly), "image", &["11110000"]),
            measured(Some(Condition::ShuffledImage), "none", &["11000001", "11100000"]),
        ]);
        // Of samples 0, 2, 4 and 6 the majority loses two, the image alone one.
        assert_eq!(value(&metrics, "majority", "mcnemar_even_p"), Some(0.5));
        assert_eq!(value(&metrics, "image_only", "mcnemar_even_p"), Some(1.0));
        assert_eq!(value(&metrics, "majority", "mcnemar_even_p_holm"), Some(1.0));
        for name in ["changed_share", "right_to_wrong_share"] {
            let row = metrics.iter().find(|row| row.metric == name).unwrap().estimate.unwrap();
            assert!(row.low.unwrap() < row.value && row.value < row.high.unwrap(), "{name} {row:?}");
        }
    }

    #[test]
    fn what_is_equal_but_for_the_margin_is_said_to_be() {
        let metrics = table(&[
            measured(None, "both", &["11111100"]),
            measured(Some(Condition::ImageMean), "none", &["11111100"]),
            measured(Some(Condition::ImageOnly), "image", &["11110000"]),
        ]);
        let p = |method| value(&metrics, method, "accuracy_equivalence_p").unwrap();
        assert!(p("image_mean") < 0.001, "{}", p("image_mean"));
        // A quarter is lost, which is just below the margin of 0.3: many resamples lose more.
        assert!(p("image_only") > 0.2, "{}", p("image_only"));
        let corrected = value(&metrics, "image_mean", "accuracy_equivalence_p_holm").unwrap();
        assert!((corrected - 2.0 * p("image_mean")).abs() < 1e-12);
        assert_eq!(value(&metrics, "full", "equivalence_margin"), Some(0.3));
    }

    #[test]
    fn what_is_not_defined_says_why() {
        let metrics = table(&[
            measured(None, "image", &["11000000"]),
            measured(Some(Condition::Majority), "none", &["11000000"]),
            measured(Some(Condition::BlankImage), "none", &["10000000"]),
            Measured {
                condition: Some(Condition::NonsensePrompts),
                modality: "image",
                variant: None,
                draws: Err("there are no prompts".to_owned()),
            },
        ]);
        let reason = |method: &str, name: &str| {
            let row = metrics.iter().find(|row| row.method.as_deref() == Some(method) && row.metric == name);
            let row = row.unwrap();
            assert!(row.estimate.is_none());
            row.reason.clone().unwrap()
        };
        assert_eq!(reason("blank_image", "accuracy_relative_share"), "the full model is not above the floor");
        assert_eq!(reason("nonsense_prompts", "accuracy"), "there are no prompts");
        assert!(reason("full", "accuracy_synergy").contains("text alone"));
    }
}
