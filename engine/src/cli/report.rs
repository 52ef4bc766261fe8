//! `pipe report --table`: figures laid out with their intervals, for a paper.

use super::answer::{format, write};
use super::arguments::{AnswerFormat, Arguments, ReportArguments};
use super::query::{failure, results};
use super::{CliError, exit};
use crate::answers::{Answer, Cell, Figure, Grid, GridRequest, Runs};
use crate::kind::Registry;

pub(crate) fn report(
    arguments: &Arguments,
    report: &ReportArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let request = request(&report.table, &report.filters)?;
    let (tables, study) = results(arguments, &report.pipeline, registry)?;
    let grid = (tables.grid)(&study.results, &request).map_err(|error| failure(error, None))?;
    let format = format(arguments, &report.answer);
    let answer = match format {
        AnswerFormat::Csv | AnswerFormat::Json => for_machines(&grid),
        _ => for_people(&grid, usize::from(report.answer.digits)),
    };
    write(arguments, &report.answer, &answer)
}

/// What `--table` and `--where` ask for.
fn request(table: &str, filters: &[String]) -> Result<GridRequest, CliError> {
    let wrong = |message: String| {
        let mut error = CliError::new(exit::USAGE, format!("error: {message}"));
        error.hint = Some("write `--table ROWS:COLUMNS:METRIC`, such as `model:dataset:auroc`".to_owned());
        error
    };
    let names = |text: &str, by: char| -> Vec<String> {
        text.split(by).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let parts: Vec<&str> = table.splitn(3, ':').collect();
    let [rows, columns, metrics] = parts.as_slice() else {
        return Err(wrong(format!("`{table}` has not three parts")));
    };
    let filter = |text: &String| {
        let pair = text.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.to_owned()));
        pair.ok_or_else(|| {
            let mut error = CliError::new(exit::USAGE, format!("error: `--where {text}` has no `=`"));
            error.hint = Some("write `--where NAME=VALUE`, such as `split=test`".to_owned());
            error
        })
    };
    let request = GridRequest {
        rows: names(rows, '+'),
        columns: names(columns, '+'),
        metrics: names(metrics, ','),
        filters: filters.iter().map(filter).collect::<Result<_, _>>()?,
    };
    if request.rows.is_empty() {
        return Err(wrong(format!("`{table}` does not say what the rows are")));
    }
    if request.metrics.is_empty() {
        return Err(wrong(format!("`{table}` names no metric")));
    }
    Ok(request)
}

/// A figure and its interval in one cell.
fn for_people(grid: &Grid, digits: usize) -> Answer {
    let cell = |figure: &Option<Figure>| {
        let Some((figure, value)) = figure.as_ref().and_then(|figure| Some((figure, figure.value?))) else {
            return Cell::Null;
        };
        match (figure.low.zip(figure.high), figure.runs) {
            (_, Some(Runs { count, deviation })) => {
                Cell::Text(format!("{value:.digits$} \u{b1} {deviation:.digits$} ({count} seeds)"))
            }
            (Some((low, high)), None) => {
                Cell::Text(format!("{value:.digits$} [{low:.digits$}, {high:.digits$}]"))
            }
            (None, None) => Cell::Real(value),
        }
    };
    let row = |(labels, figures): &(Vec<String>, Vec<Option<Figure>>)| {
        labels.iter().cloned().map(Cell::Text).chain(figures.iter().map(cell)).collect()
    };
    Answer {
        columns: grid.headers.iter().chain(&grid.columns).cloned().collect(),
        rows: grid.rows.iter().map(row).collect(),
    }
}

/// Three columns for each of the grid: the value and the bounds of its interval; two more where there are means over
/// seeds.
fn for_machines(grid: &Grid) -> Answer {
    let has_runs = grid
        .rows
        .iter()
        .flat_map(|(_, figures)| figures.iter().flatten())
        .any(|figure| figure.runs.is_some());
    let names: &[&str] =
        if has_runs { &["", " ci_low", " ci_high", " std", " seeds"] } else { &["", " ci_low", " ci_high"] };
    let bounds = |name: &String| names.iter().map(|more| format!("{name}{more}")).collect::<Vec<_>>();
    let cells = |figure: &Option<Figure>| {
        let number = |value: Option<f64>| value.map_or(Cell::Null, Cell::Real);
        let of = |value: fn(&Figure) -> Option<f64>| number(figure.as_ref().and_then(value));
        let runs = figure.as_ref().and_then(|figure| figure.runs);
        let mut cells = vec![of(|figure| figure.value), of(|figure| figure.low), of(|figure| figure.high)];
        if has_runs {
            cells.push(number(runs.map(|runs| runs.deviation)));
            cells.push(runs.map_or(Cell::Null, |runs| Cell::Integer(runs.count as i64)));
        }
        cells
    };
    let row = |(labels, figures): &(Vec<String>, Vec<Option<Figure>>)| {
        labels.iter().cloned().map(Cell::Text).chain(figures.iter().flat_map(cells)).collect()
    };
    Answer {
        columns: grid.headers.iter().cloned().chain(grid.columns.iter().flat_map(bounds)).collect(),
        rows: grid.rows.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_asked_for_in_three_parts() {
        let asked =
            request("model+mode:dataset: auroc,recall@1 ", &["split=test".to_owned(), "class=".to_owned()])
                .unwrap();
        assert_eq!(asked.rows, ["model", "mode"]);
        assert_eq!(asked.columns, ["dataset"]);
        assert_eq!(asked.metrics, ["auroc", "recall@1"]);
        assert_eq!(asked.filters, [("split".into(), "test".into()), ("class".into(), String::new())]);
        assert!(request("model::auroc", &[]).unwrap().columns.is_empty());
        for wrong in ["model", "model:auroc", ":x:auroc", "model:x:"] {
            assert_eq!(request(wrong, &[]).unwrap_err().code, exit::USAGE);
        }
        assert!(request("a::b", &["x".to_owned()]).unwrap_err().text.contains("has no `=`"));
    }

    #[test]
    fn intervals_stand_beside_values_or_apart() {
        let figure = |value, low, high| Some(Figure { value, low, high, runs: None });
        let grid = Grid {
            headers: vec!["model".into()],
            columns: vec!["a".into(), "b".into()],
            rows: vec![
                (
                    vec!["x".into()],
                    vec![figure(Some(0.5), Some(0.25), Some(0.75)), figure(Some(1.0), None, None)],
                ),
                (vec!["y".into()], vec![figure(None, None, None), None]),
            ],
        };
        let people = for_people(&grid, 2);
        assert_eq!(people.rows[0][1..], [Cell::Text("0.50 [0.25, 0.75]".into()), Cell::Real(1.0)]);
        assert_eq!(people.rows[1][1..], [Cell::Null, Cell::Null]);
        let machines = for_machines(&grid);
        assert_eq!(machines.columns, ["model", "a", "a ci_low", "a ci_high", "b", "b ci_low", "b ci_high"]);
        assert_eq!(machines.rows[0][1..4], [Cell::Real(0.5), Cell::Real(0.25), Cell::Real(0.75)]);
    }

    #[test]
    fn means_over_seeds_stand_beside_their_deviation() {
        let runs = Some(Runs { count: 3, deviation: 0.25 });
        let mean = Some(Figure { value: Some(0.5), low: None, high: None, runs });
        let one = Some(Figure { value: Some(1.0), low: Some(0.5), high: Some(1.5), runs: None });
        let grid = Grid {
            headers: vec!["model".into()],
            columns: vec!["a".into()],
            rows: vec![(vec!["x".into()], vec![mean]), (vec!["y".into()], vec![one])],
        };
        let people = for_people(&grid, 2);
        assert_eq!(people.rows[0][1], Cell::Text("0.50 \u{b1} 0.25 (3 seeds)".into()));
        let machines = for_machines(&grid);
        assert_eq!(machines.columns, ["model", "a", "a ci_low", "a ci_high", "a std", "a seeds"]);
        assert_eq!(machines.rows[0][4..], [Cell::Real(0.25), Cell::Integer(3)]);
        assert_eq!(machines.rows[1][4..], [Cell::Null, Cell::Null]);
    }
}
