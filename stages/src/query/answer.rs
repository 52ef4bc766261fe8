//! From a statement to the table that it gives.

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use pipe_engine::StageError;
use rusqlite::types::Value;
use rusqlite::{Connection, Error};

use crate::table::{Column, Table};

/// How often a long query is asked to stop.
const BEAT: Duration = Duration::from_millis(50);

/// Where in a statement an error is, in bytes, if that is known.
pub(super) fn offset(error: &Error) -> Option<usize> {
    match error {
        Error::SqlInputError { offset, .. } => usize::try_from(*offset).ok(),
        _ => None,
    }
}

/// What an error of a statement says, without a place.
pub(super) fn reason(error: &Error) -> String {
    let text = match error {
        Error::SqlInputError { msg, .. } => msg.clone(),
        other => other.to_string(),
    };
    if text.contains("not authorized") {
        return format!(
            "{text}: a query reads its inputs and nothing else, and neither chance nor the time decides what it gives"
        );
    }
    text
}

/// The same with the place, where there is one.
pub(super) fn message(error: &Error, sql: &str) -> String {
    match offset(error) {
        Some(offset) => placed(&reason(error), sql, offset),
        None => reason(error),
    }
}

/// A text with a place in a statement before it.
pub(super) fn placed(text: &str, sql: &str, offset: usize) -> String {
    let before = sql.get(..offset).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |text| text.chars().count()) + 1;
    format!("line {line}, column {column} of the query: {text}")
}

/// Executes a query on a thread of its own, so that one that sorts for long can be stopped.
pub(super) fn answer(
    connection: Connection,
    sql: &str,
    check: &dyn Fn() -> Result<(), StageError>,
) -> Result<Table, StageError> {
    let interrupt = connection.get_interrupt_handle();
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Nobody waits any more if the stage was stopped.
            let _ = sender.send(execute(&connection, sql));
        });
        loop {
            match receiver.recv_timeout(BEAT) {
                Ok(answer) => return answer.map_err(StageError::failed),
                Err(RecvTimeoutError::Timeout) => check().inspect_err(|_| interrupt.interrupt())?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StageError::failed("the query ended early"));
                }
            }
        }
    })
}

fn execute(connection: &Connection, sql: &str) -> Result<Table, String> {
    let wrong = |error: Error| message(&error, sql);
    let mut statement = connection.prepare(sql).map_err(wrong)?;
    let columns: Vec<(String, Option<String>)> = statement
        .columns()
        .iter()
        .map(|column| (column.name().to_owned(), column.decl_type().map(str::to_lowercase)))
        .collect();
    let mut names = BTreeSet::new();
    if let Some((name, _)) = columns.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(format!("two columns of the answer are called `{name}`: name one of them with `as`"));
    }
    let mut values: Vec<Vec<Value>> = vec![Vec::new(); columns.len()];
    let mut rows = statement.query([]).map_err(wrong)?;
    while let Some(row) = rows.next().map_err(wrong)? {
        for (place, column) in values.iter_mut().enumerate() {
            column.push(row.get(place).map_err(wrong)?);
        }
    }
    let mut table = Table::new();
    for ((name, declared), values) in columns.iter().zip(values) {
        table = table.with(name, column(name, declared.as_deref(), values)?);
    }
    Ok(table)
}

/// A column of one type: SQLite's values have types of their own.
fn column(name: &str, declared: Option<&str>, values: Vec<Value>) -> Result<Column, String> {
    let has = |wanted: fn(&Value) -> bool| values.iter().any(wanted);
    let (integers, reals) =
        (has(|value| matches!(value, Value::Integer(_))), has(|value| matches!(value, Value::Real(_))));
    let (texts, blobs) =
        (has(|value| matches!(value, Value::Text(_))), has(|value| matches!(value, Value::Blob(_))));
    if blobs {
        return Err(format!("column `{name}` holds bytes, which no table of figures has"));
    }
    if texts && (integers || reals) {
        return Err(format!(
            "column `{name}` holds texts and numbers: `cast(... as text)` makes it one type"
        ));
    }
    let number = |value: &Value| match value {
        Value::Integer(value) => Some(*value as f64),
        Value::Real(value) => Some(*value),
        _ => None,
    };
    let integer = |value: &Value| match value {
        Value::Integer(value) => Some(*value),
        _ => None,
    };
    // Of a column without a value the table that it comes from says the type.
    let declared = declared.unwrap_or_default();
    // Where that says nothing either, it was most likely to be computed.
    Ok(if reals || (!integers && !texts && ["real", ""].contains(&declared)) {
        Column::Float64(values.iter().map(number).collect())
    } else if declared == "boolean" && !texts {
        Column::Bool(values.iter().map(|value| integer(value).map(|value| value != 0)).collect())
    } else if integers || (!texts && declared == "integer") {
        Column::Int64(values.iter().map(integer).collect())
    } else {
        let text = |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        };
        Column::Utf8(values.into_iter().map(text).collect())
    })
}
