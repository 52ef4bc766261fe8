//! What the results of a study answer when they are asked as tables.
//!
//! The engine knows no tables: a program registers how they are read ([`ResultTables`]), and the command
//! line hands on the results and draws what comes back.

use std::collections::BTreeMap;

use crate::artifact::Artifact;
use crate::error::StageError;

/// A result of a study: one output of one node.
#[derive(Clone, Debug)]
pub struct StudyResult {
    /// The stage of the node.
    pub stage: String,
    /// The name of the output.
    pub port: String,
    /// The axis assignment of the node.
    pub axes: BTreeMap<String, String>,
    /// How many rows it has, if it is a table.
    pub rows: Option<u64>,
    /// What was made.
    pub artifact: Artifact,
}

/// What can be asked of a study.
#[derive(Clone, Debug, Default)]
pub struct StudyTables {
    /// Its results.
    pub results: Vec<StudyResult>,
    /// What the engine knows of each node with a result: what it cost, where and when it was made.
    pub stages: Answer,
}

/// One value of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Real(f64),
    /// A text, as it is in the data: it may hold anything.
    Text(String),
}

/// A table: what a question was answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows, each with a cell for every column.
    pub rows: Vec<Vec<Cell>>,
}

/// A table that may be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct TableSummary {
    /// Its name in a query.
    pub name: String,
    /// The outputs whose rows it has, as `stage.port`.
    pub of: Vec<String>,
    /// Its number of rows, if it was recorded.
    pub rows: Option<u64>,
    /// Its columns with their types.
    pub columns: Vec<(String, String)>,
    /// Why it cannot be read, if it cannot.
    pub problem: Option<String>,
}

/// Runs that differ in their seed alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Runs {
    /// Their number.
    pub count: usize,
    /// The standard deviation of their values.
    pub deviation: f64,
}

/// A figure with its interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The value; none where it is undefined.
    pub value: Option<f64>,
    /// The lower bound of its interval.
    pub low: Option<f64>,
    /// The upper bound of its interval.
    pub high: Option<f64>,
    /// Where the value is the mean of several runs, what these are; the interval is then that of the mean over other
    /// seeds.
    pub runs: Option<Runs>,
}

/// Which figures a table for a paper shows.
#[derive(Clone, Debug, Default)]
pub struct GridRequest {
    /// The columns of the figures whose values name the rows.
    pub rows: Vec<String>,
    /// Those whose values name the columns; there may be none.
    pub columns: Vec<String>,
    /// The metrics.
    pub metrics: Vec<String>,
    /// What further columns have to be; an empty text asks for no value.
    pub filters: Vec<(String, String)>,
}

/// Figures laid out by what their rows and columns are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grid {
    /// What names the rows.
    pub headers: Vec<String>,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// Each row: a label for each header, and a figure for each column where there is one.
    pub rows: Vec<(Vec<String>, Vec<Option<Figure>>)>,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The question itself is wrong.
    #[error("{message}")]
    Question {
        /// What is wrong.
        message: String,
        /// Where in the text, in bytes from its beginning.
        offset: Option<usize>,
        /// A name that nothing has, and the names there are.
        unknown: Option<(String, Vec<String>)>,
        /// What would be right.
        hint: Option<String>,
    },
    /// The results cannot be read.
    #[error(transparent)]
    Results(#[from] StageError),
}

impl QueryError {
    /// A mistake without a place.
    pub fn question(message: impl Into<String>) -> Self {
        Self::Question { message: message.into(), offset: None, unknown: None, hint: None }
    }

    /// A name that nothing has.
    pub fn unknown(message: impl Into<String>, name: impl Into<String>, known: Vec<String>) -> Self {
        let unknown = Some((name.into(), known));
        Self::Question { message: message.into(), offset: None, unknown, hint: None }
    }
}

/// How a program reads results as tables.
#[derive(Clone, Copy, Debug)]
pub struct ResultTables {
    /// Lists the tables, without reading their rows.
    pub list: fn(&StudyTables) -> Vec<TableSummary>,
    /// Answers one query.
    pub query: fn(&StudyTables, &str) -> Result<Answer, QueryError>,
    /// Lays figures out.
    pub grid: fn(&[StudyResult], &GridRequest) -> Result<Grid, QueryError>,
    /// Writes a table as a file of the program's format.
    pub write: fn(&Answer, &std::path::Path) -> Result<(), StageError>,
    /// The dictionary of all columns, in Markdown.
    pub dictionary: fn() -> String,
}
