//! The programs of Slurm.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::error::StageError;

/// Prefixes of variables that would change what these programs do, as in a driver that is a job itself.
const FOREIGN: [&str; 5] = ["SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SALLOC_"];
/// Which cluster it is.
const KEPT: &str = "SLURM_CONF";

/// What a program said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) succeeded: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a program with a text as its standard input.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn run(program: &str, arguments: &[String], input: &str) -> Result<Said, StageError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| is_foreign(name)) {
        command.env_remove(name);
    }
    // An interrupt at the terminal is this process' affair: a submission is not torn.
    command.process_group(0);
    let failed = |error: std::io::Error| {
        let doing = match error.kind() {
            std::io::ErrorKind::NotFound => {
                format!("there is no program `{program}`: this is no machine from which jobs are submitted")
            }
            _ => format!("running `{program}`"),
        };
        StageError::environment(doing, error)
    };
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read it says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(Said { succeeded: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}

fn is_foreign(name: &str) -> bool {
    name != KEPT && FOREIGN.iter().any(|prefix| name.starts_with(prefix))
}

/// The greatest number of tasks of an array, from `scontrol show config`; what Slurm has by default where it does not
/// say.
pub(crate) fn max_array_size() -> usize {
    const DEFAULT: usize = 1001;
    let said = run("scontrol", &["show".to_owned(), "config".to_owned()], "");
    said.ok().and_then(|said| array_size(&said.out)).unwrap_or(DEFAULT)
}

fn array_size(config: &str) -> Option<usize> {
    let line = config.lines().find(|line| line.trim_start().starts_with("MaxArraySize"))?;
    line.split('=').nth(1)?.trim().parse().ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_an_outer_job_does_not_reach_inner_ones() {
        for (name, foreign) in [
            ("SLURM_JOB_ID", true),
            ("SBATCH_PARTITION", true),
            ("SQUEUE_FORMAT", true),
            ("SLURM_CONF", false),
            ("PATH", false),
        ] {
            assert_eq!(is_foreign(name), foreign, "{name}");
        }
    }

    #[test]
    fn what_programs_say_and_that_they_are_missing() {
        let said = run("sh", &["-c".to_owned(), "cat; echo oh >&2; exit 3".to_owned()], "in").unwrap();
        assert_eq!((said.succeeded, said.out.as_str(), said.err.as_str()), (false, "in", "oh"));
        let error = run("no-such-sbatch", &[], "").unwrap_err().to_string();
        assert!(error.contains("`no-such-sbatch`"), "{error}");
    }

    #[test]
    fn the_size_of_arrays_is_read() {
        assert_eq!(
            array_size("KillWait = 30 sec\nMaxArraySize            = 4001\nMaxJobCount = 7"),
            Some(4001)
        );
        assert_eq!(array_size("KillWait = 30 sec"), None);
    }
}
