//! The command line: arguments, commands, and what people read.

mod answer;
mod arguments;
mod cancel;
mod clean;
mod diff;
mod doctor;
mod export;
mod fetching;
mod figures;
mod gc;
mod graph;
mod init;
mod log;
mod manual;
mod mirror;
mod plan;
mod query;
mod report;
mod run;
mod show;
mod signals;
mod sources;
mod status;
mod study;
mod summary;
#[cfg(test)]
mod tests;
mod verify;
mod worker;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::exit;
use crate::kind::Registry;
use arguments::{Arguments, Command, SchemaArguments, SchemaFormat};
pub(crate) use status::size;

/// Runs the program with the kinds of `registry` and returns its exit code.
pub fn main(registry: &Registry) -> ExitCode {
    pipe_cache::ask_slurm_by(crate::slurm::queue::lists);
    ExitCode::from(answer(std::env::args_os(), registry))
}

/// Does what the arguments, the first of which is the program's name, ask for.
fn answer(arguments: impl IntoIterator<Item = OsString>, registry: &Registry) -> u8 {
    // `-V` is one line, `--version` all that is known of the build.
    let command = Arguments::command().long_version(registry.version());
    let parsed = command.try_get_matches_from(arguments);
    let arguments = match parsed.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::DONE };
        }
    };
    let result = match &arguments.command {
        Command::Init(init) => init::init(&arguments, init, registry),
        Command::Run(run) => run::run(&arguments, run, registry),
        Command::Plan(plan) => plan::plan(&arguments, plan, registry),
        Command::Why(why) => plan::why(&arguments, why, registry),
        Command::Status(file) => status::status(&arguments, file, registry),
        Command::Cancel(cancel) => cancel::cancel(&arguments, cancel),
        Command::Show(show) => show::show(&arguments, show, registry),
        Command::Log(log) => log::log(&arguments, log, registry),
        Command::Diff(diff) => diff::diff(&arguments, diff, registry),
        Command::Query(query) => query::query(&arguments, query, registry),
        Command::Report(report) => report::report(&arguments, report, registry),
        Command::Export(export) => export::export(&arguments, export, registry),
        Command::Verify(verify) => verify::verify(&arguments, verify, registry),
        Command::Gc(gc) => gc::gc(&arguments, gc, registry),
        Command::Push(push) => mirror::push(&arguments, push, registry),
        Command::Pull(pull) => mirror::pull(&arguments, pull, registry),
        Command::Pin(pin) => gc::pin(&arguments, pin, registry),
        Command::Unpin(unpin) => gc::unpin(&arguments, unpin),
        Command::Graph(graph) => graph::graph(&arguments, graph, registry),
        Command::Check(file) => study::check(&arguments, file, registry),
        Command::Schema(schema) => schema_text(schema, registry),
        Command::Clean(file) => clean::clean(&arguments, file, registry),
        Command::Doctor(file) => doctor::doctor(&arguments, file, registry),
        Command::Isolated { folder } => crate::isolate::serve(folder, registry)
            .map(|()| exit::DONE)
            .map_err(|reason| CliError::new(exit::STAGE_FAILED, format!("error: {reason}"))),
        Command::Worker(worker) => worker::worker(&arguments, worker, registry),
        Command::Man { folder } => manual::man(folder.as_deref()),
        Command::Completions { shell } => arguments::completions(*shell),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprint!("{failure}");
            failure.code
        }
    }
}

/// A failed command: what is printed, and the exit code.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: u8,
    pub(crate) text: String,
    pub(crate) hint: Option<String>,
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)?;
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            f.write_str("\n")?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl CliError {
    pub(crate) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), hint: None }
    }

    pub(crate) fn environment(doing: &str, error: &dyn std::error::Error) -> Self {
        let text = format!("error: {doing}\n  cause: {}", crate::attempt::chain(error));
        Self { code: exit::ENVIRONMENT, text, hint: None }
    }
}

impl From<pipe_cache::StoreError> for CliError {
    fn from(error: pipe_cache::StoreError) -> Self {
        let mut failure = Self::environment("the store cannot be used", &error);
        failure.hint = Some(if error.is_no_space() {
            "free some space, or name another store with `--store` or PIPE_STORE".to_owned()
        } else {
            "name a folder that you may write to with `--store` or PIPE_STORE".to_owned()
        });
        failure
    }
}

/// `pipe schema`.
fn schema_text(asked: &SchemaArguments, registry: &Registry) -> Result<u8, CliError> {
    if asked.tables {
        let tables = registry.tables();
        return print(&tables.map(|tables| (tables.dictionary)()).unwrap_or_default());
    }
    match asked.format {
        SchemaFormat::Json => print(&format!("{:#}\n", crate::language::schema(registry))),
        SchemaFormat::Md => print(&crate::language::reference(registry)),
    }
}

/// Prints a result for machines.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<u8, CliError> {
    print(&format!("{value:#}\n"))
}

/// Prints a result. A reader that went away is no error.
pub(crate) fn print(text: &str) -> Result<u8, CliError> {
    use std::io::Write;
    #[cfg(test)]
    if tests::capture(text) {
        return Ok(exit::DONE);
    }
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(exit::DONE)
}
