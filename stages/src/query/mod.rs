//! `query`: SQL over the tables of other stages.
//!
//! Each input is a table of its name. What a fan-in (`model=*`) or a list of references gives is one table,
//! with the axes as columns. The statement is one query of SQLite; it reads its inputs and nothing else, so
//! that equal inputs give equal bytes.

mod answer;
mod database;
mod functions;
mod grid;
mod results;
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
pub(crate) use self::results::TABLES;
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
            implementation: 2,
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
        syntax(&params.sql).map(|mistake| problem(mistake.message(&params.sql))).into_iter().collect()
    }

    fn run(&self, params: &QueryParams, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut database = Database::create(&context.scratch()?.join("tables.sqlite"))?;
        for (name, artifacts) in context.all_inputs() {
            context.check_cancelled()?;
            database.add(name, artifacts)?;
        }
        let rows = database.answer(&params.sql, &|| context.check_cancelled())?;
        let provenance = context.provenance().to_owned();
        write(context.output("table")?, &TableSchema::query(), &rows, WriteOptions::text(&provenance))
    }
}

/// What is wrong with a query.
struct Mistake {
    reason: String,
    /// Where, in bytes.
    offset: Option<usize>,
}

impl Mistake {
    /// The reason with its place in words.
    fn message(&self, sql: &str) -> String {
        match self.offset {
            Some(offset) => answer::placed(&self.reason, sql, offset),
            None => self.reason.clone(),
        }
    }
}

/// What is wrong with a text as far as can be said without the tables.
fn syntax(sql: &str) -> Option<Mistake> {
    let mistake = |reason: &str| Some(Mistake { reason: reason.to_owned(), offset: None });
    if sql.trim().is_empty() {
        return mistake("there is no query");
    }
    let empty = Connection::open_in_memory().ok()?;
    functions::register(&empty).ok()?;
    match empty.prepare(sql) {
        Ok(statement) if !statement.readonly() || statement.column_count() == 0 => {
            mistake("the statement is no query")
        }
        Ok(_) => None,
        Err(rusqlite::Error::MultipleStatement) => mistake("there is more than one statement"),
        // Which tables and columns there are is known when it runs.
        Err(error) => {
            let reason = answer::reason(&error);
            let is_syntax = ["syntax error", "incomplete input", "unrecognized token"];
            let offset = answer::offset(&error);
            is_syntax.iter().any(|words| reason.contains(words)).then_some(Mistake { reason, offset })
        }
    }
}
