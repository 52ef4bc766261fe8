//! What is asked of results, and how it is answered.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Args, Debug)]
pub(crate) struct DiffArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run: its id, the beginning of it, or `last`
    #[arg(value_name = "OLD_RUN")]
    pub(crate) old: String,
    /// Another run
    #[arg(value_name = "NEW_RUN")]
    pub(crate) new: String,
    /// Exit with 6 if anything differs
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// How the language of pipeline files is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaFormat {
    /// JSON Schema
    Json,
    /// Markdown
    Md,
}

#[derive(Args, Debug)]
pub(crate) struct SchemaArguments {
    /// How it is written
    #[arg(long, value_enum, default_value_t = SchemaFormat::Json, value_name = "FORMAT")]
    pub(crate) format: SchemaFormat,
    /// Describe the tables of results instead: a dictionary of their columns, in Markdown
    #[arg(long, conflicts_with = "format")]
    pub(crate) tables: bool,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AnswerFormat {
    /// Aligned columns, for people
    Table,
    /// Comma-separated values; texts that a spreadsheet would compute begin with an apostrophe
    Csv,
    /// One JSON object
    Json,
    /// A table of Markdown
    Md,
    /// A tabular of LaTeX, with the rules of `booktabs`
    Latex,
}

#[derive(Args, Debug)]
pub(crate) struct AnswerArguments {
    /// How it is written
    #[arg(long, value_enum, default_value_t = AnswerFormat::Table, value_name = "FORMAT", help_heading = "Output")]
    pub(crate) format: AnswerFormat,
    /// The file it is written to, whole or not at all; by default standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Digits after the point, for people; `csv` and `json` always have all
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=15), help_heading = "Output")]
    pub(crate) digits: u8,
}

#[derive(Args, Debug)]
pub(crate) struct QueryArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// One query in SQL, as SQLite has it; `-` reads it from standard input
    #[arg(value_name = "SQL", required_unless_present = "tables")]
    pub(crate) sql: Option<String>,
    /// List the tables with their columns instead
    #[arg(long, conflicts_with = "sql")]
    pub(crate) tables: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// What the rows are, what the columns are, and which figures: `model:dataset:auroc`. Several names of
    /// rows or columns are joined by `+`, several metrics by `,`; columns may be left out
    #[arg(long, value_name = "ROWS:COLUMNS:METRIC")]
    pub(crate) table: String,
    /// Of all figures, only those where a column has this value; `NAME=` asks for those without one
    #[arg(long = "where", value_name = "NAME=VALUE")]
    pub(crate) filters: Vec<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run: its id, the beginning of it, or `last`
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// A folder that does not exist, or an archive if it ends in `.zip`
    #[arg(value_name = "FOLDER|FILE.zip")]
    pub(crate) to: PathBuf,
    /// Stages, nodes or globs whose results are written; all by default. Provenance is written of every node
    #[arg(value_name = "NODE")]
    pub(crate) targets: Vec<String>,
    /// Only results of which no row is about a single image, patient or question, and nothing of what stages said
    #[arg(long)]
    pub(crate) aggregate_only: bool,
    /// Instead of results the pictures of saliency maps, as PNG sheets for print
    #[arg(long, conflicts_with = "aggregate_only")]
    pub(crate) sheets: bool,
    /// Samples of which pictures are drawn, at most
    #[arg(long, value_name = "N", default_value_t = 8, requires = "sheets", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) samples: u32,
}
