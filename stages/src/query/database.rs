//! The inputs as tables of a database in a file, so that memory does not bound them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pipe_engine::{Cell, InputArtifact, StageError};
use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::{answer, functions};
use crate::ipc;
use crate::table::{Column, Table, Wanted, header, read_each};

/// What a statement may call that gives something else each time, or reaches out of the database.
const REFUSED: [&str; 14] = [
    "random",
    "randomblob",
    "date",
    "time",
    "datetime",
    "julianday",
    "strftime",
    "timediff",
    "unixepoch",
    "current_date",
    "current_time",
    "current_timestamp",
    "load_extension",
    "fts3_tokenizer",
];

/// The tables of a query.
pub(super) struct Database {
    connection: Connection,
}

/// The columns of one table with their declared types: its axes come first.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    axes: BTreeSet<String>,
    pub(super) declared: Vec<(String, &'static str)>,
}

impl Columns {
    /// Whether it is an axis.
    pub(super) fn is_axis(&self, name: &str) -> bool {
        self.axes.iter().any(|axis| axis.eq_ignore_ascii_case(name))
    }

    /// Columns none of which is an axis.
    pub(super) fn plain(declared: &[(String, &'static str)]) -> Self {
        Self { axes: BTreeSet::new(), declared: declared.to_vec() }
    }
}

impl Database {
    /// A database in a file. Without a name it is in one that nobody else sees and that goes by itself.
    pub(super) fn create(path: &Path) -> Result<Self, StageError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            // A misspelt name in double quotes is a mistake, not a text.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
            // It is a scratch file: nothing of it outlives the query.
            connection.execute_batch(
                "pragma journal_mode = off; pragma synchronous = off; pragma temp_store = file",
            )?;
            functions::register(&connection)?;
            Ok(connection)
        };
        open()
            .map(|connection| Self { connection })
            .map_err(|error| StageError::because("opening a database", error))
    }

    /// Adds the rows of all artifacts of an input as one table.
    pub(super) fn add(&mut self, name: &str, artifacts: &[InputArtifact]) -> Result<(), StageError> {
        let columns = columns(name, artifacts)?;
        self.declare(name, &columns)?;
        self.fill(name, &columns, artifacts, &|_| true)
    }

    /// Makes a table without rows.
    pub(super) fn declare(&self, name: &str, columns: &Columns) -> Result<(), StageError> {
        let declared: Vec<String> =
            columns.declared.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
        let create = format!("create table {} ({})", quoted(name), declared.join(", "));
        self.connection
            .execute_batch(&create)
            .map_err(|error| StageError::because(format!("making the table `{name}`"), error))
    }

    /// Makes a view of other tables, one after the other.
    pub(super) fn declare_union(
        &self,
        name: &str,
        columns: &[String],
        tables: &[(&str, Vec<UnionColumn>)],
    ) -> Result<(), StageError> {
        let select = |(table, values): &(&str, Vec<UnionColumn>)| {
            let values = values.iter().map(|value| match value {
                UnionColumn::Own(column) => quoted(column),
                UnionColumn::AsText(column) => format!("cast({} as text)", quoted(column)),
                UnionColumn::Text(text) => format!("'{}'", text.replace('\'', "''")),
                UnionColumn::Missing => "null".to_owned(),
            });
            format!("select {} from {}", values.collect::<Vec<_>>().join(", "), quoted(table))
        };
        let names: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
        let selects: Vec<String> = tables.iter().map(select).collect();
        let create =
            format!("create view {} ({}) as {}", quoted(name), names.join(", "), selects.join(" union all "));
        self.connection
            .execute_batch(&create)
            .map_err(|error| StageError::because(format!("making the table `{name}`"), error))
    }

    /// Adds the rows of artifacts to a table, with nothing in columns that are not wanted.
    pub(super) fn fill(
        &mut self,
        name: &str,
        columns: &Columns,
        artifacts: &[InputArtifact],
        wanted: Wanted<'_>,
    ) -> Result<(), StageError> {
        let fail = |error| StageError::because(format!("filling the table `{name}`"), error);
        let places = vec!["?"; columns.declared.len()].join(", ");
        let insert = format!("insert into {} values ({places})", quoted(name));
        let transaction = self.connection.transaction().map_err(fail)?;
        let mut statement = transaction.prepare(&insert).map_err(fail)?;
        for given in artifacts {
            each_piece(name, given, wanted, &mut |table| {
                for row in 0..table.rows() {
                    let values = columns.declared.iter().map(|(column, _)| {
                        if columns.axes.contains(column) {
                            return given
                                .axes
                                .get(column)
                                .map_or(Value::Null, |value| Value::Text(value.clone()));
                        }
                        table.column(column).map_or(Value::Null, |column| value(column, row))
                    });
                    statement.execute(params_from_iter(values)).map_err(fail)?;
                }
                Ok(())
            })?;
        }
        drop(statement);
        transaction.commit().map_err(fail)
    }

    /// Adds rows of as many cells as the table has columns.
    pub(super) fn fill_cells(&mut self, name: &str, rows: &[Vec<Cell>]) -> Result<(), StageError> {
        let fail = |error| StageError::because(format!("filling the table `{name}`"), error);
        let places = vec!["?"; rows.first().map_or(0, Vec::len)].join(", ");
        let insert = format!("insert into {} values ({places})", quoted(name));
        let transaction = self.connection.transaction().map_err(fail)?;
        let mut statement = transaction.prepare(&insert).map_err(fail)?;
        for row in rows {
            let values = row.iter().map(|cell| match cell {
                Cell::Null => Value::Null,
                Cell::Bool(value) => Value::Integer((*value).into()),
                Cell::Integer(value) => Value::Integer(*value),
                Cell::Real(value) => Value::Real(*value),
                Cell::Text(text) => Value::Text(text.clone()),
            });
            statement.execute(params_from_iter(values)).map_err(fail)?;
        }
        drop(statement);
        transaction.commit().map_err(fail)
    }

    /// The tables that a query reads.
    ///
    /// # Errors
    /// If it is no query of these tables.
    pub(super) fn tables_of(&self, sql: &str) -> rusqlite::Result<BTreeSet<String>> {
        let read = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&read);
        self.connection.authorizer(Some(move |context: AuthContext<'_>| {
            if let AuthAction::Read { table_name, .. } = context.action {
                noted.lock().unwrap_or_else(PoisonError::into_inner).insert(table_name.to_owned());
            }
            allowed(&context)
        }))?;
        let prepared = self.connection.prepare(sql).map(drop);
        self.connection.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)?;
        prepared?;
        let read = std::mem::take(&mut *read.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(read)
    }

    /// The functions that a query may call.
    pub(super) fn functions(&self) -> Vec<String> {
        let names = || -> rusqlite::Result<Vec<String>> {
            let mut statement =
                self.connection.prepare("select distinct name from pragma_function_list order by name")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let mut names = names().unwrap_or_default();
        names.retain(|name| !REFUSED.contains(&name.as_str()));
        names
    }

    /// What a query answers. `check` is asked again and again whether it may go on.
    pub(super) fn answer(
        self,
        sql: &str,
        check: &dyn Fn() -> Result<(), StageError>,
    ) -> Result<Table, StageError> {
        self.connection
            .authorizer(Some(|context: AuthContext<'_>| allowed(&context)))
            .map_err(|error| StageError::because("guarding the database", error))?;
        answer::answer(self.connection, sql, check)
    }
}

/// A column of a union, as one of its tables gives it.
#[derive(Clone, Debug)]
pub(super) enum UnionColumn {
    /// A column of the table.
    Own(String),
    /// A column of the table that is an axis of another one.
    AsText(String),
    /// The same text in all rows.
    Text(String),
    /// Nothing.
    Missing,
}

/// Whether a statement may do this: read tables, and compute what depends on nothing else.
fn allowed(context: &AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Recursive | AuthAction::Read { .. } => Authorization::Allow,
        AuthAction::Function { function_name }
            if !REFUSED.iter().any(|refused| function_name.eq_ignore_ascii_case(refused)) =>
        {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

/// A name as SQL writes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The columns of an input: its axes, then those of its tables. An axis replaces the column of its name.
pub(super) fn columns(name: &str, artifacts: &[InputArtifact]) -> Result<Columns, StageError> {
    let axes: BTreeSet<String> = artifacts.iter().flat_map(|given| given.axes.keys().cloned()).collect();
    let mut declared: Vec<(String, &'static str)> = axes.iter().map(|axis| (axis.clone(), "text")).collect();
    // SQLite takes names for equal that differ in capitals only.
    let mut known: BTreeMap<String, (String, &'static str)> =
        declared.iter().map(|(name, kind)| (name.to_lowercase(), (name.clone(), *kind))).collect();
    for given in artifacts {
        each_header(name, given, &mut |table| {
            for (column, values) in table.columns() {
                let Some(kind) = kind(values) else { continue };
                match known.get(&column.to_lowercase()) {
                    None => {
                        known.insert(column.to_lowercase(), (column.clone(), kind));
                        declared.push((column.clone(), kind));
                    }
                    Some((other, _)) if axes.contains(other) => {}
                    Some((other, before)) if other != column || *before != kind => {
                        let reason = format!(
                            "column `{column}` is {kind}, and another table of it has `{other}` as {before}"
                        );
                        return Err(StageError::input(name, reason));
                    }
                    Some(_) => {}
                }
            }
            Ok(())
        })?;
    }
    if declared.is_empty() {
        return Err(StageError::input(name, "it has no column that a query could read"));
    }
    Ok(Columns { axes, declared })
}

/// What takes a piece of a table.
type Take<'a> = &'a mut dyn FnMut(&Table) -> Result<(), StageError>;

/// Hands on the rows of a table piece by piece. Tensors of an Arrow table are left out.
fn each_piece(
    name: &str,
    given: &InputArtifact,
    wanted: Wanted<'_>,
    take: Take<'_>,
) -> Result<(), StageError> {
    each_file(name, given, &mut |path, format| match format {
        Format::Parquet => read_each(path, wanted, &mut *take),
        Format::Arrow => ipc::each_without_tensors(path, wanted, &mut *take),
    })
}

/// Hands on, for each file of a table, its columns without rows.
fn each_header(name: &str, given: &InputArtifact, take: Take<'_>) -> Result<(), StageError> {
    each_file(name, given, &mut |path, format| match format {
        Format::Parquet => take(&header(path)?),
        Format::Arrow => take(&ipc::header_without_tensors(path)?),
    })
}

#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Arrow,
}

fn each_file(
    name: &str,
    given: &InputArtifact,
    read: &mut dyn FnMut(&Path, Format) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let mut found = false;
    for (extension, format) in [(".parquet", Format::Parquet), (".arrow", Format::Arrow)] {
        for file in given.artifact.files_ending(extension) {
            found = true;
            read(&file.location, format)?;
        }
    }
    if found {
        return Ok(());
    }
    let reason = format!("a query reads tables, and this is `{}`", given.artifact.artifact_type);
    Err(StageError::input(name, reason))
}

/// The declared type of a column; files have none, and are left out.
fn kind(column: &Column) -> Option<&'static str> {
    match column {
        Column::Utf8(_) => Some("text"),
        Column::Bool(_) => Some("boolean"),
        Column::Int32(_) | Column::Int64(_) => Some("integer"),
        Column::Float64(_) => Some("real"),
        Column::ListInt64(_) | Column::ListInt32(_) | Column::ListFloat32(_) | Column::ListUtf8(_) => {
            Some("json")
        }
        Column::Image(_) | Column::Binary(_) => None,
    }
}

fn value(column: &Column, row: usize) -> Value {
    fn json<T: serde::Serialize>(list: &Option<Vec<T>>) -> Value {
        list.as_ref().map_or(Value::Null, |list| Value::Text(serde_json::json!(list).to_string()))
    }
    match column {
        Column::Utf8(values) => values[row].clone().map_or(Value::Null, Value::Text),
        Column::Bool(values) => values[row].map_or(Value::Null, |value| Value::Integer(value.into())),
        Column::Int32(values) => values[row].map_or(Value::Null, |value| Value::Integer(value.into())),
        Column::Int64(values) => values[row].map_or(Value::Null, Value::Integer),
        Column::Float64(values) => values[row].map_or(Value::Null, Value::Real),
        Column::ListInt64(values) => json(&values[row]),
        Column::ListInt32(values) => json(&values[row]),
        Column::ListFloat32(values) => json(&values[row]),
        Column::ListUtf8(values) => json(&values[row]),
        Column::Image(_) | Column::Binary(_) => Value::Null,
    }
}
