//! `pipe query`: one SQL query over all results of a study.

use std::io::Read;
use std::path::Path;

use pipe_cache::{Reading, Verify};
use serde_json::json;

use super::answer::{format, write};
use super::arguments::{AnswerFormat, Arguments, QueryArguments};
use super::study::Study;
use super::{CliError, print_json};
use crate::answers::{Answer, Cell, QueryError, ResultTables, StudyResult, StudyTables, TableSummary};
use crate::error::StageError;
use crate::exit;
use crate::kind::Registry;
use crate::language::suggestion;
use crate::plan::Wanted;
use crate::{shards, stage_table};

/// The longest query that is read.
const LONGEST: u64 = 1 << 20;

pub(crate) fn query(
    arguments: &Arguments,
    query: &QueryArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let (tables, study) = results(arguments, &query.pipeline, registry)?;
    let Some(sql) = &query.sql else {
        let list = (tables.list)(&study);
        if format(arguments, &query.answer) == AnswerFormat::Json && query.answer.output.is_none() {
            return print_json(&as_json(&list));
        }
        return write(arguments, &query.answer, &listed(&list));
    };
    let mut text = sql.clone();
    if sql == "-" {
        text.clear();
        let read = std::io::stdin().take(LONGEST).read_to_string(&mut text);
        read.map_err(|error| CliError::environment("reading the query", &error))?;
    }
    let answer = (tables.query)(&study, &text).map_err(|error| failure(error, Some(&text)))?;
    write(arguments, &query.answer, &answer)
}

/// What this program asks results with, and those results of a study that are up to date and in the store.
/// How many are missing is said.
pub(crate) fn results(
    arguments: &Arguments,
    pipeline: &Path,
    registry: &Registry,
) -> Result<(ResultTables, StudyTables), CliError> {
    let tables = registry
        .tables()
        .ok_or_else(|| CliError::new(exit::USAGE, "error: this program reads no results as tables"))?;
    let study = Study::load(arguments, pipeline, registry)?;
    let store = study.open_existing()?;
    let (plan, _, _) = study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?;
    let mut results = Vec::new();
    let mut made = Vec::new();
    let mut missing = 0;
    for id in &plan.order {
        let node = &study.pipeline.nodes[id.0];
        let (Some(store), Some(record)) = (&store, &plan.records[id.0]) else {
            missing += 1;
            continue;
        };
        let mut is_whole = true;
        for (port, output) in &record.outputs {
            // A command that only looks changes nothing: what is damaged is `verify`'s to find.
            let is_there = output.files.iter().all(|file| store.blob_path(&file.blob).is_file());
            let reading = if is_there { Some(store.read(output, Verify::Never)?) } else { None };
            let Some(Reading::Files(files)) = reading else {
                is_whole = false;
                continue;
            };
            results.push(StudyResult {
                stage: node.stage.clone(),
                port: port.clone(),
                axes: node.axes.iter().cloned().collect(),
                rows: output.rows,
                artifact: shards::result(output, files),
            });
        }
        missing += usize::from(!is_whole);
        made.push((node, Some(record)));
    }
    if missing > 0 && !arguments.global.quiet {
        let count = plan.order.len();
        eprintln!("note: {missing} of {count} nodes have no result that is up to date, and are left out");
        eprintln!("  hint: `pipe run {}` makes them", pipeline.display());
    }
    let stages = stage_table::rows(&made);
    Ok((tables, StudyTables { results, stages }))
}

/// A question without an answer, with its place.
pub(crate) fn failure(error: QueryError, text: Option<&str>) -> CliError {
    match error {
        QueryError::Question { message, offset, unknown, hint } => {
            let mut shown = format!("error: {message}");
            if let Some((text, offset)) = text.zip(offset) {
                shown.push_str(&place(text, offset));
            }
            let nearest =
                unknown.and_then(|(name, known)| suggestion(&name, known.iter().map(String::as_str)));
            let mut failure = CliError::new(exit::USAGE, shown);
            failure.hint = nearest.or(hint);
            failure
        }
        QueryError::Results(error) => {
            let code = match error {
                StageError::InputData { .. } => exit::INPUT_DATA,
                StageError::Environment { .. } => exit::ENVIRONMENT,
                _ => exit::STAGE_FAILED,
            };
            CliError::new(code, format!("error: {}", crate::attempt::chain(&error)))
        }
    }
}

/// The line of a text that a place is in, with a mark below it.
fn place(text: &str, offset: usize) -> String {
    let Some(before) = text.get(..offset) else { return String::new() };
    let number = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let whole = text[start..].lines().next().unwrap_or_default();
    let column = before[start..].chars().count();
    let plain =
        |text: &str| text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect::<String>();
    let margin = " ".repeat(number.to_string().len());
    format!(
        "\n {margin}--> query:{number}:{}\n {number} | {}\n {margin} | {}^\n",
        column + 1,
        plain(whole),
        " ".repeat(column)
    )
}

/// The tables, one row each.
fn listed(tables: &[TableSummary]) -> Answer {
    let row = |table: &TableSummary| {
        let columns = match &table.problem {
            Some(problem) => format!("cannot be read: {problem}"),
            None => table.columns.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        };
        vec![
            Cell::Text(table.name.clone()),
            table.rows.map_or(Cell::Null, |rows| Cell::Integer(i64::try_from(rows).unwrap_or(i64::MAX))),
            Cell::Text(columns),
        ]
    };
    Answer {
        columns: ["table", "rows", "columns"].map(str::to_owned).to_vec(),
        rows: tables.iter().map(row).collect(),
    }
}

fn as_json(tables: &[TableSummary]) -> serde_json::Value {
    let table = |table: &TableSummary| {
        let columns: Vec<_> =
            table.columns.iter().map(|(name, kind)| json!({ "name": name, "type": kind })).collect();
        json!({ "name": table.name, "of": table.of, "rows": table.rows, "columns": columns, "problem": table.problem })
    };
    json!({ "version": 1, "tables": tables.iter().map(table).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn places_are_marked() {
        assert_eq!(
            place("select a\nfrom b wher c", 16),
            "\n  --> query:2:8\n 2 | from b wher c\n   |        ^\n"
        );
        assert_eq!(place("x", 9), "");
        assert!(place("sélect \u{1b}x", 9).contains("--> query:1:9\n 1 | sélect  x\n"));
    }
}
