//! Tables of scores of explanations, by explanation and metric.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Artifact, StageError};

use crate::score::is_control;
use crate::table::{Column, Table, read};

/// The name of a map within its method: the id, what is explained, and its number among equal ones.
pub(crate) type Item = (String, String, usize);

/// The score of one map by one metric.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) value: Option<f64>,
    pub(crate) group: Option<String>,
    pub(crate) is_right: Option<bool>,
    /// Definition, baseline and score: what has to be the same.
    pub(crate) terms: String,
    /// Parameters of the metric. Those that follow the size of the image differ between models.
    pub(crate) parameters: String,
}

/// The scores of one metric.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scores {
    /// Whether greater is better, where the metric ranks anything.
    pub(crate) is_higher: Option<bool>,
    pub(crate) cells: BTreeMap<Item, Cell>,
}

/// The scores of one explanation of one model.
#[derive(Clone, Debug)]
pub(crate) struct Explained {
    /// What tells the tables apart, such as the model.
    pub(crate) source: String,
    /// The method, with what tells its maps apart.
    pub(crate) explanation: String,
    /// Whether it knows nothing of the model.
    pub(crate) is_control: bool,
    pub(crate) by_metric: BTreeMap<String, Scores>,
}

/// A table of scores, with what its node is called.
pub(crate) struct Source {
    name: String,
    table: Table,
}

impl Source {
    /// Reads the table of the node `name`.
    ///
    /// # Errors
    /// If it is damaged.
    pub(crate) fn read(name: String, artifact: &Artifact) -> Result<Self, StageError> {
        Ok(Self { name, table: read(artifact)? })
    }

    /// The axes that tell maps of one method apart.
    fn axes(&self) -> Vec<String> {
        let axes = self.table.metadata.get("axes");
        axes.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// Of each row the method and the values of `axes`; a table without a column has it in its metadata, or not at all.
    fn explanations(&self, axes: &[String]) -> Result<Vec<(String, Vec<Option<String>>)>, StageError> {
        let column = |name: &str| match self.table.column(name) {
            Some(_) => self.table.as_text(name),
            None => Ok(vec![None; self.table.rows()]),
        };
        let methods = self.table.strings("method")?;
        let columns = axes.iter().map(|axis| column(axis)).collect::<Result<Vec<_>, _>>()?;
        let row = |row: usize| {
            let values = columns.iter().map(|column| column[row].clone()).collect();
            (methods[row].to_owned(), values)
        };
        Ok((0..self.table.rows()).map(row).collect())
    }
}

/// The explanations of all tables. An axis is part of the name of a method only where it has several values.
///
/// # Errors
/// If a table is damaged, or two explanations have one name.
pub(crate) fn explanations(sources: &[Source]) -> Result<Vec<Explained>, StageError> {
    let axes: BTreeSet<String> = sources.iter().flat_map(Source::axes).collect();
    let axes: Vec<String> = axes.into_iter().collect();
    let rows = sources.iter().map(|source| source.explanations(&axes)).collect::<Result<Vec<_>, _>>()?;
    let mut known: BTreeMap<(&str, usize), BTreeSet<&str>> = BTreeMap::new();
    for (method, values) in rows.iter().flatten() {
        for (axis, value) in values.iter().enumerate() {
            known.entry((method, axis)).or_default().extend(value.as_deref());
        }
    }
    let name = |method: &str, values: &[Option<String>]| {
        let telling = |(axis, value): (usize, &Option<String>)| {
            value.clone().filter(|_| known.get(&(method, axis)).is_some_and(|values| values.len() > 1))
        };
        let parts = values.iter().enumerate().filter_map(telling);
        std::iter::once(method.to_owned()).chain(parts).collect::<Vec<_>>().join("/")
    };
    let mut all: Vec<Explained> = Vec::new();
    for (source, rows) in sources.iter().zip(&rows) {
        if all.iter().any(|one| one.source == source.name) {
            let reason =
                format!("two tables of scores are called `{}`; let an axis tell them apart", source.name);
            return Err(StageError::failed(reason));
        }
        let names: Vec<(String, bool)> =
            rows.iter().map(|(method, values)| (name(method, values), is_control(method))).collect();
        all.extend(of_source(source, &names)?);
    }
    Ok(all)
}

/// The explanations of one table; `names` has the name of that of each row, and whether it is a control.
fn of_source(source: &Source, names: &[(String, bool)]) -> Result<Vec<Explained>, StageError> {
    let table = &source.table;
    let texts = |name: &str| match table.column(name) {
        Some(_) => table.as_text(name),
        None => Ok(vec![None; table.rows()]),
    };
    let plain = |value: &Option<String>| value.clone().unwrap_or_default();
    let (ids, metrics, modes) = (table.strings("id")?, table.strings("metric")?, table.strings("mode")?);
    let values = table.float64("value")?;
    let [targets, groups, directions] = [texts("target")?, texts("group_id")?, texts("better")?];
    let terms = [texts("baseline")?, texts("score")?, texts("parameters")?];
    let right: Vec<Option<bool>> = match table.column("correct") {
        Some(Column::Bool(right)) => right.clone(),
        _ => vec![None; table.rows()],
    };
    // A step of parameter randomisation is no figure of its own.
    let steps = texts("step")?;
    let mut all: BTreeMap<&str, Explained> = BTreeMap::new();
    let mut numbers: BTreeMap<(&str, &str, &str, &Option<String>), usize> = BTreeMap::new();
    for row in (0..table.rows()).filter(|row| steps[*row].is_none()) {
        let (name, is_control) = &names[row];
        let number = numbers.entry((name, metrics[row], ids[row], &targets[row])).or_default();
        let item = (ids[row].to_owned(), plain(&targets[row]), *number);
        *number += 1;
        let explained = all.entry(name).or_insert_with(|| Explained {
            source: source.name.clone(),
            explanation: name.clone(),
            is_control: *is_control,
            by_metric: BTreeMap::new(),
        });
        let scores = explained.by_metric.entry(metrics[row].to_owned()).or_default();
        scores.is_higher = match directions[row].as_deref() {
            Some("higher") => Some(true),
            Some("lower") => Some(false),
            _ => None,
        };
        let [baseline, score, parameters] = [&terms[0], &terms[1], &terms[2]].map(|column| &column[row]);
        let parameters = comparable(parameters.as_deref().unwrap_or_default());
        let terms =
            [modes[row], baseline.as_deref().unwrap_or_default(), score.as_deref().unwrap_or_default()];
        let terms: Vec<&str> = terms.into_iter().filter(|term| !term.is_empty()).collect();
        let cell = Cell {
            value: values[row].filter(|value| value.is_finite()),
            group: groups[row].clone(),
            is_right: right[row],
            terms: terms.join(" "),
            parameters,
        };
        scores.cells.insert(item, cell);
    }
    Ok(all.into_values().collect())
}

/// The parameters of a metric without those that may differ: the seed, and how maps of a kind predict a change.
fn comparable(parameters: &str) -> String {
    match serde_json::from_str(parameters) {
        Ok(serde_json::Value::Object(mut all)) => {
            all.remove("seed");
            all.remove("prediction");
            serde_json::Value::Object(all).to_string()
        }
        _ => parameters.to_owned(),
    }
}
