//! `pipe worker`: one task of an array of jobs.

use super::CliError;
use super::arguments::{Arguments, WorkerArguments};
use crate::attempt::chain;
use crate::exit;
use crate::kind::Registry;
use crate::slurm::worker::{Place, work};

pub(crate) fn worker(
    arguments: &Arguments,
    asked: &WorkerArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let Some(store) = arguments.global.store() else {
        let mut error =
            CliError::new(exit::USAGE, "error: a worker has no pipeline file that says where the store is");
        error.hint = Some("name it with `--store` or PIPE_STORE".to_owned());
        return Err(error);
    };
    work(&Place::new(&store, &asked.batch, asked.task), registry)
        .map_err(|error| CliError::new(exit::ENVIRONMENT, format!("error: {}", chain(&error))))
}
