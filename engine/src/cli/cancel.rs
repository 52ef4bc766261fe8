//! `pipe cancel`: the end of a run's jobs in a cluster.

use std::time::{Duration, Instant};

use pipe_cache::{ArrayFolder, Store};
use serde_json::json;

use super::arguments::{Arguments, CancelArguments};
use super::log::find_run;
use super::study::open_store;
use super::{CliError, print, print_json};
use crate::error::StageError;
use crate::exit;
use crate::slurm::{self, jobs};

/// How long jobs have to end.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_secs(1);

pub(crate) fn cancel(arguments: &Arguments, asked: &CancelArguments) -> Result<u8, CliError> {
    let store = open_store(arguments, Some(&asked.pipeline), true)?;
    let run = store.as_ref().map(|store| find_run(store, &asked.run)).transpose()?.flatten();
    let Some((store, run)) = store.zip(run) else {
        let mut error = CliError::new(exit::USAGE, format!("error: `{}` is no run", asked.run));
        error.hint =
            Some("`pipe log` lists the runs; the beginning of an id is enough, or `last`".to_owned());
        return Err(error);
    };
    let arrays = jobs::arrays(&store, Some(run.id()));
    if arrays.is_empty() {
        return Err(CliError::new(exit::USAGE, format!("error: run {} has submitted no jobs", run.id())));
    }
    // Who drives the run sees this before the jobs are gone, and does not take them for lost.
    for (folder, _) in &arrays {
        store.write_in_array(folder, "cancelled", b"")?;
    }
    let environment = |error: StageError| CliError::environment("jobs cannot be cancelled", &error);
    let mut cancelled = 0;
    for array in jobs::live(&arrays).map_err(environment)?.into_iter().flatten() {
        cancelled += array.states.values().sum::<usize>();
        if !slurm::cancel(&array.intent.name).map_err(environment)? {
            return Err(CliError::new(exit::ENVIRONMENT, "error: the cluster gives no answer; try again"));
        }
    }
    let began = Instant::now();
    while !jobs::live(&arrays).map_err(environment)?.is_some_and(|live| live.is_empty()) {
        if began.elapsed() > PATIENCE {
            return Err(CliError::new(
                exit::ENVIRONMENT,
                "error: some jobs have not ended; `pipe status` lists them",
            ));
        }
        std::thread::sleep(POLL);
    }
    let (done, all) = results(&store, arrays.iter().map(|(folder, _)| folder));
    if arguments.global.json {
        return print_json(
            &json!({ "version": 1, "run": run.id(), "cancelled": cancelled, "actions": all, "done": done }),
        );
    }
    print(&format!(
        "{cancelled} tasks cancelled; {done} of {all} actions have results, which the next run takes\n"
    ))
}

fn results<'a>(store: &Store, folders: impl Iterator<Item = &'a ArrayFolder>) -> (usize, usize) {
    let counts = folders.filter_map(|folder| jobs::results(store, folder));
    counts.fold((0, 0), |(done, all), (more, of)| (done + more, all + of))
}
