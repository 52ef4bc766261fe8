//! Jobs of a Slurm cluster as far as a store knows them: in which of them a process is, and whom to ask whether it still may be.

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A job of Slurm, or one task of an array of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlurmTask {
    /// The id of the job.
    pub job: String,
    /// The id of its array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<String>,
    /// Its place in the array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<usize>,
    /// How often it was requeued.
    #[serde(default)]
    pub restart: u32,
    /// The account that it belongs to, by number.
    #[serde(default)]
    pub user: u32,
}

impl SlurmTask {
    /// That of this process; none outside of jobs.
    pub fn current() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.parse::<u32>().ok();
        Some(Self {
            job: variable("SLURM_JOB_ID").filter(|id| !id.is_empty())?,
            array: variable("SLURM_ARRAY_JOB_ID").filter(|id| !id.is_empty()),
            task: number("SLURM_ARRAY_TASK_ID").and_then(|task| task.try_into().ok()),
            restart: number("SLURM_RESTART_COUNT").unwrap_or(0),
            user: rustix::process::geteuid().as_raw(),
        })
    }
}

/// As the commands of Slurm name it: `17`, or `17_3` of an array; and which start it is, if not the first.
impl fmt::Display for SlurmTask {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.array, self.task) {
            (Some(array), Some(task)) => write!(formatter, "job {array}_{task}")?,
            _ => write!(formatter, "job {}", self.job)?,
        }
        match self.restart {
            0 => Ok(()),
            restart => write!(formatter, ", restart {restart}"),
        }
    }
}

/// Whether a cluster lists a job as one that may still work; none if it gives no answer, or does not tell of others' jobs.
pub type Listed = fn(&SlurmTask) -> Option<bool>;

/// There is one cluster for a process, if any.
static LISTED: OnceLock<Listed> = OnceLock::new();

/// Says who asks the cluster for jobs from which nothing was heard. Without it they are waited for longer. Who says so
/// first counts.
pub fn ask_slurm_by(listed: Listed) {
    let _ = LISTED.set(listed);
}

pub(crate) fn is_listed(task: &SlurmTask) -> Option<bool> {
    LISTED.get().and_then(|listed| listed(task))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<SlurmTask> {
        SlurmTask::of(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_of_a_job_says_which_it_is() {
        assert_eq!(of(&[("SLURM_ARRAY_TASK_ID", "3")]), None);
        let plain = of(&[("SLURM_JOB_ID", "17")]).unwrap();
        assert_eq!((plain.to_string().as_str(), plain.array, plain.task), ("job 17", None, None));
        let task = [("SLURM_JOB_ID", "19"), ("SLURM_ARRAY_JOB_ID", "17"), ("SLURM_ARRAY_TASK_ID", "3")];
        assert_eq!(of(&task).unwrap().to_string(), "job 17_3");
        let again = of(&[&task[..], &[("SLURM_RESTART_COUNT", "2")]].concat()).unwrap();
        assert_eq!((again.to_string().as_str(), again.job.as_str()), ("job 17_3, restart 2", "19"));
        let text = serde_json::to_string(&again).unwrap();
        assert_eq!(serde_json::from_str::<SlurmTask>(&text).unwrap(), again);
    }
}
