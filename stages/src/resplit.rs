//! The stage kind `resplit`: questions dealt anew to training and test, so that the answers which are frequent in the
//! one are rare in the other (after VQA-CP, Agrawal et al. 2018, section 3). A model that has learned which answers
//! are usual, and not to look, loses there what it had gained.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::cache::Digest;
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact;
use crate::ingest::exact;
use crate::metrics::{Metric, write_metrics};
use crate::statistics::Estimate;
use crate::table::{Column, Table, TableSchema, WriteOptions, read, write};
use crate::vqa::{TRAINING_TWIN, question_types};

/// Parameters of `resplit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Columns whose equal values stay in one split: of an image, and of a question with its rephrasings. With none,
    /// all questions of one type with one answer move together, as in VQA-CP, and images are in both splits.
    pub together: Vec<String>,
    /// The share of training and test questions that are for testing afterwards, at least.
    #[schemars(range(min = 0.01, max = 0.5))]
    pub test: f64,
    /// The share that must not be passed.
    #[schemars(range(min = 0.01, max = 0.9))]
    pub most: f64,
    /// Decides between what would change the answers equally.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            together: vec!["image_id".to_owned(), "link_id".to_owned()],
            test: 0.2,
            most: 1.0 / 3.0,
            seed: 0,
        }
    }
}

/// Deals questions anew.
pub struct Resplit;

impl StageKind for Resplit {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "resplit",
            summary: "deals questions anew to training and test, so that usual answers differ between them",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![InputPort::required(
                "questions",
                &[artifact::QUESTIONS],
                "questions of splits `train` and `test`; those of other splits stay where they are",
            )],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("questions", artifact::QUESTIONS, "the same questions, of other splits"),
            OutputPort::new(
                "metrics",
                artifact::METRICS,
                "how far the answers of test questions differ from those of training, before and after",
            ),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        match params.test <= params.most {
            true => Vec::new(),
            false => vec![ParameterProblem {
                path: "most".to_owned(),
                message: format!(
                    "the greatest share, {}, is below the wanted one, {}",
                    params.most, params.test
                ),
                help: Some("give `most` at least the value of `test`".to_owned()),
            }],
        }
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let table = read(context.input("questions")?)?;
        let mut splits: Vec<String> = table.strings("split")?.into_iter().map(str::to_owned).collect();
        let rows: Vec<usize> =
            (0..table.rows()).filter(|row| ["train", "test"].contains(&splits[*row].as_str())).collect();
        let before = rows.iter().map(|row| splits[*row] == "test").collect::<Vec<_>>();
        if !before.contains(&true) || !before.contains(&false) {
            let reason =
                "questions of both splits, `train` and `test`, are dealt anew, and one of them has none";
            return Err(StageError::input("questions", reason));
        }
        let cells = Cells::of(&table, &rows)?;
        let units = match params.together.is_empty() {
            true => cells.units(),
            false => together(&table, &rows, &params.together)?,
        };
        let after = deal(&cells, &units, params, context)?;
        for (row, is_test) in rows.iter().zip(&after) {
            splits[*row] = if *is_test { "test" } else { "train" }.to_owned();
        }
        let old = table.metadata.get("protocol").cloned();
        let new = match &old {
            Some(old) => format!("{old}+{CHANGED}"),
            None => CHANGED.to_owned(),
        };
        let mut metrics = cells.shifts(&before, old.as_deref().unwrap_or("published"));
        metrics.extend(cells.shifts(&after, &new));
        let changed = table.replacing("split", Column::texts(splits)).with_metadata("protocol", new);
        // It tells of test questions as they were.
        let changed = changed.without(TRAINING_TWIN);
        let provenance = context.provenance().to_owned();
        write(
            context.output("questions")?,
            &TableSchema::questions(),
            &changed,
            WriteOptions::text(&provenance),
        )?;
        write_metrics(context.output("metrics")?, &metrics, &provenance)
    }
}

/// What the protocol of such questions is called.
const CHANGED: &str = "changing-prior";

/// The type and the answer of each question, as numbers.
struct Cells {
    types: Vec<String>,
    /// Of each question: its type and its answer.
    of: Vec<(usize, usize)>,
    answers: usize,
}

impl Cells {
    /// Of some rows of a table of questions.
    fn of(table: &Table, rows: &[usize]) -> Result<Self, StageError> {
        let several = question_types(table)?;
        let kind = match table.column("answer_type") {
            Some(_) => table.as_text("answer_type")?,
            None => vec![None; table.rows()],
        };
        let answers = table.strings("answer")?;
        // Of several types the first.
        let name = |row: usize| {
            let known = several[row].first().or(kind[row].as_ref());
            known.cloned().unwrap_or_else(|| "any".to_owned())
        };
        let mut types: BTreeMap<String, usize> = rows.iter().map(|row| (name(*row), 0)).collect();
        let mut given: BTreeMap<String, usize> = rows.iter().map(|row| (exact(answers[*row]), 0)).collect();
        for numbers in [&mut types, &mut given] {
            numbers.values_mut().enumerate().for_each(|(number, value)| *value = number);
        }
        let of = rows.iter().map(|row| (types[&name(*row)], given[&exact(answers[*row])])).collect();
        Ok(Self { of, answers: given.len(), types: types.into_keys().collect() })
    }

    /// The questions of one type with one answer, as places.
    fn units(&self) -> Vec<Vec<usize>> {
        let mut units: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (place, cell) in self.of.iter().enumerate() {
            units.entry(*cell).or_default().push(place);
        }
        units.into_values().collect()
    }

    /// How far answers differ between the splits: the total variation distance (from 0 to 1) of each type, and its mean
    /// over test questions.
    fn shifts(&self, is_test: &[bool], protocol: &str) -> Vec<Metric> {
        let mut dealt = Dealt::new(self);
        let tested = (0..self.of.len()).filter(|place| is_test[*place]).collect::<Vec<_>>();
        dealt.give(self, &tested);
        let metric = |subgroup: Option<String>, value: Option<f64>, n: usize| {
            let mut metric = Metric::new("vqa", "test", "answer_shift", value.map(Estimate::exact), n);
            metric.subgroup = subgroup;
            metric.protocol = Some(protocol.to_owned());
            metric
        };
        let distances: Vec<Option<f64>> = (0..self.types.len()).map(|of| dealt.distance(of)).collect();
        let weighted = distances.iter().zip(&dealt.types).filter_map(|(distance, of)| {
            let tested = of.test.values().sum::<usize>();
            Some((tested, (*distance)? * tested as f64))
        });
        let (count, sum) =
            weighted.fold((0, 0.0), |(count, sum), (tested, distance)| (count + tested, sum + distance));
        let mean = (count > 0).then(|| sum / count as f64);
        let mut metrics = vec![metric(None, mean, tested.len())];
        for (of, name) in self.types.iter().enumerate() {
            let n = dealt.types[of].test.values().sum();
            metrics.push(metric(Some(format!("question_type={name}")), distances[of], n));
        }
        metrics
    }
}

/// Answers of one type, counted.
#[derive(Clone, Debug, Default)]
struct Answers {
    train: BTreeMap<usize, usize>,
    test: BTreeMap<usize, usize>,
}

/// How the questions are dealt so far.
struct Dealt {
    types: Vec<Answers>,
    /// How often each answer is given in training, whatever the type.
    train: Vec<usize>,
    tested: usize,
}

impl Dealt {
    /// All in training.
    fn new(cells: &Cells) -> Self {
        let mut types = vec![Answers::default(); cells.types.len()];
        let mut train = vec![0; cells.answers];
        for (of, answer) in &cells.of {
            *types[*of].train.entry(*answer).or_default() += 1;
            train[*answer] += 1;
        }
        Self { types, train, tested: 0 }
    }

    /// Moves questions to the test.
    fn give(&mut self, cells: &Cells, places: &[usize]) {
        for (of, answer) in places.iter().map(|place| cells.of[*place]) {
            let counts = &mut self.types[of];
            *counts.train.entry(answer).or_default() -= 1;
            *counts.test.entry(answer).or_default() += 1;
            self.train[answer] -= 1;
            self.tested += 1;
        }
    }

    /// The total variation distance between the answers of a type in training and in the test; none where one has none.
    fn distance(&self, of: usize) -> Option<f64> {
        distance(&self.types[of], &BTreeMap::new())
    }

    /// By how much moving a unit would add to the distances, each weighed by its test questions.
    fn gain(&self, moved: &Moved) -> f64 {
        let weighed = |of: usize, moved: &BTreeMap<usize, usize>| {
            let tested = self.types[of].test.values().chain(moved.values()).sum::<usize>();
            distance(&self.types[of], moved).unwrap_or(0.0) * tested as f64
        };
        moved.iter().map(|(of, moved)| weighed(*of, moved) - weighed(*of, &BTreeMap::new())).sum()
    }

    /// Whether training would be left without an answer that is tested, or without a type.
    fn would_empty(&self, moved: &Moved) -> bool {
        let mut answers: BTreeMap<usize, usize> = BTreeMap::new();
        for (answer, count) in moved.values().flatten() {
            *answers.entry(*answer).or_default() += count;
        }
        answers.iter().any(|(answer, count)| self.train[*answer] <= *count)
            || moved.iter().any(|(of, moved)| {
                self.types[*of].train.values().sum::<usize>() <= moved.values().sum::<usize>()
            })
    }
}

/// Of a unit, by type: how often each answer is given.
type Moved = BTreeMap<usize, BTreeMap<usize, usize>>;

/// As [`Dealt::distance`], with some more in the test.
fn distance(answers: &Answers, moved: &BTreeMap<usize, usize>) -> Option<f64> {
    let more = moved.values().sum::<usize>();
    let train = answers.train.values().sum::<usize>() - more;
    let test = answers.test.values().sum::<usize>() + more;
    if train == 0 || test == 0 {
        return None;
    }
    // Whatever is in the test was in training once, so that its entry there is left.
    let differences = answers.train.iter().map(|(answer, in_train)| {
        let moved = moved.get(answer).copied().unwrap_or(0);
        let in_test = answers.test.get(answer).copied().unwrap_or(0) + moved;
        ((in_train - moved) as f64 / train as f64 - in_test as f64 / test as f64).abs()
    });
    Some(differences.sum::<f64>() / 2.0)
}

/// Which questions are for testing: from all in training, the unit goes over that changes the answers most for each of
/// its questions, until there are enough.
fn deal(
    cells: &Cells,
    units: &[Vec<usize>],
    params: &Params,
    context: &StageContext<'_>,
) -> Result<Vec<bool>, StageError> {
    let count = cells.of.len();
    let (wanted, most) = (params.test * count as f64, params.most * count as f64);
    let moved: Vec<Moved> = units
        .iter()
        .map(|unit| {
            let mut moved = Moved::new();
            for (of, answer) in unit.iter().map(|place| cells.of[*place]) {
                *moved.entry(of).or_default().entry(answer).or_default() += 1;
            }
            moved
        })
        .collect();
    let lot = |unit: usize| Digest::of(format!("{} {unit}", params.seed).as_bytes());
    let mut dealt = Dealt::new(cells);
    let mut is_test = vec![false; count];
    let mut gains: BTreeMap<usize, f64> = (0..units.len()).map(|unit| (unit, f64::NAN)).collect();
    // The types whose answers were moved since the gains of their units were computed.
    let mut changed: BTreeSet<usize> = (0..cells.types.len()).collect();
    while (dealt.tested as f64) < wanted {
        context.check_cancelled()?;
        context.progress(dealt.tested as u64, wanted as u64, "questions", &[]);
        // What training cannot spare now it can spare less later.
        gains.retain(|unit, _| {
            !dealt.would_empty(&moved[*unit]) && (dealt.tested + units[*unit].len()) as f64 <= most
        });
        for (unit, gain) in &mut gains {
            if moved[*unit].keys().any(|of| changed.contains(of)) {
                *gain = dealt.gain(&moved[*unit]) / units[*unit].len() as f64;
            }
        }
        let best = gains.iter().max_by(|a, b| a.1.total_cmp(b.1).then_with(|| lot(*b.0).cmp(&lot(*a.0))));
        let Some(best) = best.map(|(unit, _)| *unit) else {
            return Err(StageError::failed(format!(
                "only {} of {count} questions can be for testing without an answer or a type that training lacks; \
                 `test` = {} asks for {}",
                dealt.tested,
                params.test,
                wanted.ceil()
            )));
        };
        gains.remove(&best);
        dealt.give(cells, &units[best]);
        units[best].iter().for_each(|place| is_test[*place] = true);
        changed = moved[best].keys().copied().collect();
    }
    Ok(is_test)
}

/// Places of rows that stay together because they share a value of one of these columns, directly or through others.
fn together(table: &Table, rows: &[usize], columns: &[String]) -> Result<Vec<Vec<usize>>, StageError> {
    let mut root: Vec<usize> = (0..rows.len()).collect();
    fn find(root: &mut [usize], mut place: usize) -> usize {
        while root[place] != place {
            root[place] = root[root[place]];
            place = root[place];
        }
        place
    }
    for column in columns {
        if table.column(column).is_none() {
            // A data set need not have all that questions may have.
            if TableSchema::questions().fields.iter().any(|field| field.name == column) {
                continue;
            }
            let reason = format!("there is no column `{column}`, whose equal values are to stay `together`");
            return Err(StageError::input("questions", reason));
        }
        let values = table.as_text(column)?;
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for (place, row) in rows.iter().enumerate() {
            let Some(value) = values[*row].as_deref() else { continue };
            let known = *first.entry(value).or_insert(place);
            let (one, other) = (find(&mut root, place), find(&mut root, known));
            root[one.max(other)] = one.min(other);
        }
    }
    let mut units: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for place in 0..rows.len() {
        units.entry(find(&mut root, place)).or_default().push(place);
    }
    Ok(units.into_values().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::phantom::IngestPhantom;
    use crate::testing::{Made, data, run, tree};

    /// Questions about drawn images, whose answers follow no type.
    fn phantom() -> Made {
        let params = json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "questions": 4, "seed": 3, "size": 32,
            "train": 40, "val": 4, "test": 16,
        });
        run(&IngestPhantom, &params, &[]).unwrap()
    }

    fn shift(made: &Made, protocol: &str) -> f64 {
        let table = read(&made["metrics"]).unwrap();
        let (protocols, groups) = (table.as_text("protocol").unwrap(), table.as_text("subgroup").unwrap());
        let all = |row: &usize| protocols[*row].as_deref() == Some(protocol) && groups[*row].is_none();
        let row = (0..table.rows()).find(all).unwrap();
        table.float64("value").unwrap()[row].unwrap()
    }

    #[test]
    fn usual_answers_differ_afterwards_and_nothing_else_is_changed() {
        let data = phantom();
        let made = run(&Resplit, &json!({}), &[("questions", &data["questions"])]).unwrap();
        let (old, new) = (read(&data["questions"]).unwrap(), read(&made["questions"]).unwrap());
        for (name, column) in
            old.columns().iter().filter(|(name, _)| !["split", "digest"].contains(&name.as_str()))
        {
            assert_eq!(new.column(name), Some(column), "{name}");
        }
        let (before, after) = (old.strings("split").unwrap(), new.strings("split").unwrap());
        let images = new.strings("image_id").unwrap();
        let of = |wanted: &str| -> BTreeSet<&str> {
            (0..new.rows()).filter(|row| after[*row] == wanted).map(|row| images[row]).collect()
        };
        assert!(of("train").is_disjoint(&of("test")));
        let vals = |splits: &[&str]| -> Vec<bool> { splits.iter().map(|split| *split == "val").collect() };
        assert_eq!(vals(&before), vals(&after));
        let (tested, dealt) = (
            after.iter().filter(|split| **split == "test").count(),
            after.iter().filter(|split| **split != "val").count(),
        );
        assert!((0.2..=1.0 / 3.0).contains(&(tested as f64 / dealt as f64)), "{tested} of {dealt}");
        let protocol = new.metadata["protocol"].clone();
        assert!(protocol.ends_with("changing-prior"), "{protocol}");
        let old_protocol = old.metadata.get("protocol").cloned().unwrap_or_else(|| "published".to_owned());
        let (before, after) = (shift(&made, &old_protocol), shift(&made, &protocol));
        assert!(after > before + 0.05, "{before} {after}");
        // Whole types with one answer go further, because images need not stay together.
        let params = json!({ "together": [], "test": 0.1 });
        let groups = run(&Resplit, &params, &[("questions", &data["questions"])]).unwrap();
        assert!(shift(&groups, &protocol) > after + 0.1, "{}", shift(&groups, &protocol));
    }

    #[test]
    fn every_tested_answer_and_type_is_still_learned() {
        let data = phantom();
        for together in [json!([]), json!(["image_id"])] {
            let made = run(
                &Resplit,
                &json!({ "together": together, "test": 0.1 }),
                &[("questions", &data["questions"])],
            )
            .unwrap();
            let table = read(&made["questions"]).unwrap();
            let (splits, answers) = (table.strings("split").unwrap(), table.strings("answer").unwrap());
            let of = |wanted: &str| -> BTreeSet<String> {
                (0..table.rows())
                    .filter(|row| splits[*row] == wanted)
                    .map(|row| exact(answers[row]))
                    .collect()
            };
            assert!(of("test").is_subset(&of("train")));
        }
    }

    #[test]
    fn distances_are_those_of_definition() {
        // Three of four against one of four.
        let answers =
            Answers { train: BTreeMap::from([(0, 3), (1, 1)]), test: BTreeMap::from([(0, 1), (1, 3)]) };
        assert_eq!(distance(&answers, &BTreeMap::new()), Some(0.5));
        // One of the first answer moves: 2/3 against 2/5.
        let moved = distance(&answers, &BTreeMap::from([(0, 1)])).unwrap();
        assert!((moved - (2.0 / 3.0 - 0.4)).abs() < 1e-12);
        assert_eq!(distance(&answers, &BTreeMap::from([(0, 3), (1, 1)])), None);
    }

    #[test]
    fn what_cannot_be_dealt_is_refused() {
        let data = phantom();
        let refused = |params: serde_json::Value| {
            run(&Resplit, &params, &[("questions", &data["questions"])]).err().unwrap().to_string()
        };
        let error = refused(json!({ "together": ["colour"] }));
        assert!(error.contains("`colour`"), "{error}");
        // All of one split.
        let error = refused(json!({ "together": ["lang"] }));
        assert!(error.contains("can be for testing"), "{error}");
    }

    #[test]
    fn the_published_questions_change_their_priors() {
        let Some(folder) = data("vqa-rad-mevf") else { return };
        let source = tree(&folder, "file");
        let ingested =
            run(&crate::ingest::IngestVqaRad, &json!({ "protocol": "mevf-3064" }), &[("source", &source)])
                .unwrap();
        let made = run(&Resplit, &json!({}), &[("questions", &ingested["questions"])]).unwrap();
        let (before, after) = (shift(&made, "mevf-3064"), shift(&made, "mevf-3064+changing-prior"));
        let groups =
            run(&Resplit, &json!({ "together": [] }), &[("questions", &ingested["questions"])]).unwrap();
        let by_groups = shift(&groups, "mevf-3064+changing-prior");
        println!("answer shift {before} {after} {by_groups}");
        assert!(before < after && after < by_groups, "{before} {after} {by_groups}");
    }
}
