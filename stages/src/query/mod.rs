//! `query`: SQL over the tables of other stages.
//!
//! Each input is a table of its name. What a fan-in (`model=*`) or a list of references gives is one table,
//! with the axes as columns. The statement is one query of SQLite; it reads its inputs and nothing else, so
//! that equal inputs give equal bytes.

mod answer;
mod database;
mod functions;
#[cfg(test)]
mod tests;

use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, StageContext, StageError,
    StageKind,
};
use rusqlite::Connection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::database::Database;
use crate::artifact;
use crate::table::{TableSchema, WriteOptions, write};

/// Parameters of `query`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryParams {
    /// One query, such as `select model, avg(value) as mean from metrics group by model`.
    pub(crate) sql: String,
}

/// The stage kind `query`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunQuery;

const EXAMPLE: &str = "write one query: `select model, avg(value) as mean from metrics group by model`";

impl StageKind for RunQuery {
    type Params = QueryParams;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "query",
            summary: "answers one SQL query over the tables of other stages with a table",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort::fan_in(
                "",
                &[],
                "A table; its name is the table's name in the query",
            )),
        }
    }

    fn outputs(&self, _params: &QueryParams) -> Vec<OutputPort> {
        vec![OutputPort::new("table", artifact::QUERY, "the answer")]
    }

    fn check(&self, params: &QueryParams) -> Vec<ParameterProblem> {
        let problem = |message: String| ParameterProblem {
            path: "sql".to_owned(),
            message,
            help: Some(EXAMPLE.to_owned()),
        };
        syntax(&params.sql).map(problem).into_iter().collect()
    }

    fn run(&self, params: &QueryParams, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut database = Database::create(&context.scratch().join("tables.sqlite"))?;
        for (name, artifacts) in context.all_inputs() {
            context.check_cancelled()?;
            database.add(name, artifacts)?;
        }
        let rows = database.answer(&params.sql, &|| context.check_cancelled())?;
        let provenance = context.provenance().to_owned();
        write(context.output("table")?, &TableSchema::query(), &rows, WriteOptions::text(&provenance))
    }
}

/// What is wrong with a text as far as can be said without the tables.
fn syntax(sql: &str) -> Option<String> {
    if sql.trim().is_empty() {
        return Some("there is no query".to_owned());
    }
    let empty = Connection::open_in_memory().ok()?;
    functions::register(&empty).ok()?;
    match empty.prepare(sql) {
        Ok(statement) => (!statement.readonly() || statement.column_count() == 0)
            .then(|| "the statement is no query".to_owned()),
        Err(rusqlite::Error::MultipleStatement) => Some("there is more than one statement".to_owned()),
        // Which tables and columns there are is known when it runs.
        Err(error) => {
            let text = answer::message(&error, sql);
            let is_syntax = ["syntax error", "incomplete input", "unrecognized token"];
            is_syntax.iter().any(|words| text.contains(words)).then_some(text)
        }
    }
}
