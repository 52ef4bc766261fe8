//! Actions in jobs of a Slurm cluster: `pipe run --executor slurm` submits them, `pipe worker` executes them, and both
//! meet in the store alone.

mod accounts;
pub(crate) mod batching;
mod cluster;
mod command;
pub(crate) mod jobs;
pub(crate) mod manifest;
pub(crate) mod queue;
mod refusal;
pub(crate) mod relay;
mod submission;
mod verdict;
pub(crate) mod worker;

use std::path::{Path, PathBuf};

use pipe_cache::Digest;

pub(crate) use self::cluster::{Cluster, Surroundings};
use crate::error::StageError;

/// Asks Slurm to end all jobs of a name; whether it took it.
///
/// # Errors
/// If there is no `scancel`.
pub(crate) fn cancel(name: &str) -> Result<bool, StageError> {
    command::run("scancel", &[format!("--name={name}")], "").map(|said| said.succeeded)
}

/// The file of this program.
pub(crate) fn own_program() -> Result<PathBuf, StageError> {
    std::env::current_exe()
        .map_err(|error| StageError::environment("finding the program of this process", error))
}

/// The digest of a program.
pub(crate) fn program_digest(path: &Path) -> Result<Digest, StageError> {
    // The file of this process itself, though its name may be another program's by now.
    let own = Path::new("/proc/self/exe");
    let path = if own.exists() { own } else { path };
    let mut hasher = blake3::Hasher::new();
    hasher
        .update_mmap_rayon(path)
        .map_err(|error| StageError::environment(format!("reading `{}`", path.display()), error))?;
    Ok(hasher.finalize().into())
}
