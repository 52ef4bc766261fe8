//! Figures laid out for a paper: what `pipe report --table` shows.
//!
//! Nothing is averaged but what differs in nothing but an axis `seed`, which is shown as mean and standard deviation: a
//! cell in which other figures would stand together is a mistake, and the message says what tells them apart.

use std::collections::{BTreeMap, BTreeSet};

use pipe_engine::{Figure, Grid, GridRequest, QueryError, Runs, StudyResult};

use super::results::Tables;
use crate::statistics::Spread;
use crate::table::Column;

/// The table of all figures.
const METRICS: &str = "metrics";
/// What a figure says, not which one it is.
const VALUES: [&str; 5] = ["value", "ci_low", "ci_high", "n", "reason"];
/// What figures of everything have no value of: parts of it are shown if one asks for them.
const PARTS: [&str; 2] = ["class", "subgroup"];
/// The axis of runs that differ in chance alone.
const SEED: &str = "seed";
/// So many values of a column are named in a message.
const NAMED: usize = 6;

/// A row of the table of figures: what it is, by column, and what it says.
struct Row {
    keys: Vec<Option<String>>,
    figure: Figure,
}

/// Lays out the figures of a study.
pub(super) fn grid(results: &[StudyResult], request: &GridRequest) -> Result<Grid, QueryError> {
    let tables = Tables::of(results);
    let columns = tables.columns_of(METRICS).ok_or_else(|| {
        QueryError::question(
            "no result of this study that is up to date has figures: there is no table `metrics`",
        )
    })?;
    let keys: Vec<&str> = columns.iter().map(String::as_str).filter(|name| !VALUES.contains(name)).collect();
    let place = |name: &str| {
        keys.iter().position(|key| key.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = keys.iter().map(|key| (*key).to_owned()).collect();
            let mut error = QueryError::unknown(format!("no figure has a column `{name}`"), name, known);
            if let QueryError::Question { hint, .. } = &mut error {
                *hint = Some(format!("columns are {}", keys.join(", ")));
            }
            error
        })
    };
    let places = |names: &[String]| names.iter().map(|name| place(name)).collect::<Result<Vec<usize>, _>>();
    let (down, across) = (places(&request.rows)?, places(&request.columns)?);
    let filters: Vec<(usize, &str)> = request
        .filters
        .iter()
        .map(|(name, value)| Ok((place(name)?, value.as_str())))
        .collect::<Result<_, QueryError>>()?;
    let rows = read(&tables, &keys)?;
    let metric = place("metric")?;
    let known = values(&rows, metric);
    for wanted in &request.metrics {
        if !known.contains(wanted) {
            let known: Vec<String> = known.into_iter().collect();
            let mut error =
                QueryError::unknown(format!("no figure is called `{wanted}`"), wanted, known.clone());
            if let QueryError::Question { hint, .. } = &mut error {
                *hint = Some(format!("metrics are {}", known.join(", ")));
            }
            return Err(error);
        }
    }
    let mut rows: Vec<&Row> = rows
        .iter()
        .filter(|row| row.keys[metric].as_ref().is_some_and(|name| request.metrics.contains(name)))
        .collect();
    for (place, wanted) in &filters {
        let before = std::mem::take(&mut rows);
        rows.extend(before.iter().filter(|row| row.keys[*place].as_deref().unwrap_or("") == *wanted));
        if rows.is_empty() {
            let known: Vec<String> = values(before.iter().copied(), *place).into_iter().collect();
            let message = format!("no such figure has `{}` in column `{}`", wanted, keys[*place]);
            let named = listed(&known);
            let mut error = QueryError::unknown(message, *wanted, known);
            if let QueryError::Question { hint, .. } = &mut error {
                *hint = (!named.is_empty()).then(|| format!("there are {named}"));
            }
            return Err(error);
        }
    }
    let asked: BTreeSet<usize> =
        down.iter().chain(&across).copied().chain(filters.iter().map(|(place, _)| *place)).collect();
    let parts = PARTS.iter().filter_map(|name| keys.iter().position(|key| key == name));
    for part in parts.filter(|part| !asked.contains(part)) {
        rows.retain(|row| row.keys[part].is_none());
    }
    // What is asked of a model is how it does on the test set.
    let split = keys.iter().position(|key| *key == "split").filter(|split| !asked.contains(split));
    if let Some(split) = split
        && values(rows.iter().copied(), split).contains("test")
    {
        rows.retain(|row| row.keys[split].as_deref() == Some("test"));
    }
    // Figures that lack what the table is laid out by belong to another question.
    rows.retain(|row| down.iter().chain(&across).all(|place| row.keys[*place].is_some()));
    // Without such an axis the column is the seed of intervals.
    let seed = keys.iter().position(|key| *key == SEED);
    let seed = seed.filter(|_| results.iter().any(|result| result.axes.contains_key(SEED)));
    lay_out(&rows, &Layout { keys: &keys, down: &down, across: &across, metric, seed }, request)
}

/// Which columns make what of a table.
struct Layout<'a> {
    keys: &'a [&'a str],
    down: &'a [usize],
    across: &'a [usize],
    metric: usize,
    /// The axis that is averaged over.
    seed: Option<usize>,
}

fn lay_out(rows: &[&Row], layout: &Layout<'_>, request: &GridRequest) -> Result<Grid, QueryError> {
    let Layout { keys, down, across, metric, seed } = *layout;
    if rows.is_empty() {
        let message = "no figure has a value in each of these columns; figures of classes and of subgroups are shown if `--where class=...` or the layout names them";
        return Err(QueryError::question(message));
    }
    let labels = |row: &Row, places: &[usize]| -> Vec<String> {
        places.iter().map(|place| row.keys[*place].clone().unwrap_or_default()).collect()
    };
    let mut row_labels: Vec<Vec<String>> = Vec::new();
    let mut column_labels: Vec<Vec<String>> = Vec::new();
    let mut cells: BTreeMap<(Vec<String>, Vec<String>, String), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let (label, column) = (labels(row, down), labels(row, across));
        if !row_labels.contains(&label) {
            row_labels.push(label.clone());
        }
        if !column_labels.contains(&column) {
            column_labels.push(column.clone());
        }
        cells.entry((label, column, row.keys[metric].clone().unwrap_or_default())).or_default().push(row);
    }
    let mut shown: BTreeMap<&(Vec<String>, Vec<String>, String), Figure> = BTreeMap::new();
    for (place, rows) in &cells {
        let figure = match rows.as_slice() {
            [one] => Some(one.figure.clone()),
            several => seed.and_then(|seed| over_seeds(several, seed)),
        };
        let (label, column, _) = place;
        let figure = figure
            .ok_or_else(|| crowded(&[label.as_slice(), column.as_slice()].concat(), rows, keys, seed))?;
        shown.insert(place, figure);
    }
    let pairs =
        column_labels.iter().flat_map(|label| request.metrics.iter().map(move |metric| (label, metric)));
    let pairs: Vec<(&Vec<String>, &String)> = pairs.collect();
    let name = |(label, metric): &(&Vec<String>, &String)| match (label.is_empty(), request.metrics.len()) {
        (true, _) => (*metric).clone(),
        (false, 1) => label.join(", "),
        (false, _) => format!("{}, {metric}", label.join(", ")),
    };
    let figures = |label: &Vec<String>| {
        let cell = |(column, metric): &(&Vec<String>, &String)| {
            shown.get(&(label.clone(), (*column).clone(), (*metric).clone())).cloned()
        };
        pairs.iter().map(cell).collect::<Vec<Option<Figure>>>()
    };
    Ok(Grid {
        headers: down.iter().map(|place| keys[*place].to_owned()).collect(),
        columns: pairs.iter().map(name).collect(),
        rows: row_labels.iter().map(|label| (label.clone(), figures(label))).collect(),
    })
}

/// Figures that differ in nothing but the seed, as one; it is undefined where one of them is.
fn over_seeds(rows: &[&Row], seed: usize) -> Option<Figure> {
    let others = |row: &Row| -> Vec<Option<String>> {
        row.keys.iter().enumerate().filter(|(place, _)| *place != seed).map(|(_, key)| key.clone()).collect()
    };
    let seeds: BTreeSet<&str> = rows.iter().filter_map(|row| row.keys[seed].as_deref()).collect();
    let is_one = rows.windows(2).all(|pair| others(pair[0]) == others(pair[1]));
    if !is_one || seeds.len() < rows.len() {
        return None;
    }
    let values: Option<Vec<f64>> = rows.iter().map(|row| row.figure.value).collect();
    let spread = values.and_then(|values| Spread::of(&values));
    let runs = spread.map(|spread| Runs { count: spread.runs, deviation: spread.deviation });
    let (low, high) = spread.map(|spread| spread.interval()).unzip();
    Some(Figure { value: spread.map(|spread| spread.mean), low, high, runs })
}

/// Several figures in one cell: what they differ in beside the seed that is averaged over, and how to choose.
fn crowded(cell: &[String], rows: &[&Row], keys: &[&str], seed: Option<usize>) -> QueryError {
    let mut differ = Vec::new();
    let mut choice = None;
    for (place, key) in keys.iter().enumerate().filter(|(place, _)| Some(*place) != seed) {
        let mut known: Vec<String> = values(rows.iter().copied(), place).into_iter().collect();
        if rows.iter().any(|row| row.keys[place].is_none()) {
            known.push(String::new());
        }
        if known.len() > 1 {
            choice.get_or_insert_with(|| format!("`--where {key}={}`, or `{key}` among the rows", known[0]));
            differ.push(format!("`{key}` ({})", listed(&known)));
        }
    }
    let of = cell.join(", ");
    if differ.is_empty() {
        return QueryError::question(format!(
            "{} figures stand for `{of}`, and nothing tells them apart",
            rows.len()
        ));
    }
    let message = format!("{} figures stand for `{of}`: they differ in {}", rows.len(), differ.join(", "));
    QueryError::Question {
        message,
        offset: None,
        unknown: None,
        hint: choice.map(|choice| format!("choose one, such as {choice}")),
    }
}

/// Values for a message, the first of many.
fn listed(known: &[String]) -> String {
    let shown = |value: &String| if value.is_empty() { "none".to_owned() } else { format!("`{value}`") };
    let mut text = known.iter().take(NAMED).map(shown).collect::<Vec<_>>().join(", ");
    if known.len() > NAMED {
        text.push_str(&format!(" and {} more", known.len() - NAMED));
    }
    text
}

/// The different values of a column, sorted.
fn values<'a>(rows: impl IntoIterator<Item = &'a Row>, place: usize) -> BTreeSet<String> {
    rows.into_iter().filter_map(|row| row.keys[place].clone()).collect()
}

/// All figures, in the order of the study.
fn read(tables: &Tables, keys: &[&str]) -> Result<Vec<Row>, QueryError> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let selected = keys.iter().map(|key| format!("cast({0} as text) as {0}", quoted(key)));
    let sql =
        format!("select {}, value, ci_low, ci_high from {METRICS}", selected.collect::<Vec<_>>().join(", "));
    let table = tables.ask(&sql)?;
    let texts = |key: &&str| match table.column(key) {
        // A column without any value has no type.
        Some(Column::Float64(values)) => Ok(vec![None; values.len()]),
        _ => table.as_text(key),
    };
    let columns = keys.iter().map(texts).collect::<Result<Vec<_>, _>>()?;
    let number = |name: &str| table.float64(name).map(<[Option<f64>]>::to_vec);
    let (value, low, high) = (number("value")?, number("ci_low")?, number("ci_high")?);
    let row = |row: usize| Row {
        keys: columns.iter().map(|column| column[row].clone()).collect(),
        figure: Figure { value: value[row], low: low[row], high: high[row], runs: None },
    };
    Ok((0..table.rows()).map(row).collect())
}
