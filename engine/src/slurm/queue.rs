//! What `squeue` says, and what it means.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_cache::SlurmTask;

use super::command;
use crate::error::StageError;

/// The columns that are asked for.
const FORMAT: &str = "%i|%F|%K|%j|%T|%r|%S|%N";
/// With more names than this the whole queue of the user is asked for.
const MOST_NAMES: usize = 100;
/// So long an answer about all jobs of the account is good for who asks about one.
const FRESH: Duration = Duration::from_secs(60);

/// A task in the queue, or one that ended a short time ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The id of its array, or of its job.
    pub(crate) job: String,
    /// Its place in the array.
    pub(crate) task: usize,
    /// The name of the job.
    pub(crate) name: String,
    /// `RUNNING` and so on.
    pub(crate) state: String,
    /// Why it waits.
    pub(crate) reason: String,
    /// Where it runs.
    pub(crate) nodes: String,
}

/// What a reason to wait means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiting {
    /// It ends by itself.
    Passing,
    /// It never ends unless somebody changes what was asked for, and this is what: the name of a value, most likely the
    /// first.
    Permanent(&'static [&'static str]),
    Unknown,
}

impl Listed {
    /// Whether it may still give results.
    pub(crate) fn is_live(&self) -> bool {
        // A state that is not known is taken for a live one: nothing is lost but time.
        const ENDED: [&str; 11] = [
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "LAUNCH_FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "TIMEOUT",
        ];
        !ENDED.contains(&self.state.as_str())
    }

    /// Whether it is this task.
    fn is(&self, task: &SlurmTask) -> bool {
        let job = task.array.as_ref().unwrap_or(&task.job);
        (&self.job, self.task) == (job, task.task.unwrap_or(0))
    }

    /// What its reason to wait means; passing if it does not wait.
    pub(crate) fn waiting(&self) -> Waiting {
        if self.state == "PENDING" { meaning(&self.reason) } else { Waiting::Passing }
    }
}

/// What a reason means.
pub(crate) fn meaning(reason: &str) -> Waiting {
    const PASSING: [&str; 13] = [
        "None",
        "Resources",
        "Priority",
        "BeginTime",
        "Dependency",
        "Reservation",
        "ReqNodeNotAvail",
        "Nodes required",
        "JobArrayTaskLimit",
        "AssocGrp",
        "QOSGrp",
        "Cleaning",
        "Licenses",
    ];
    const PERMANENT: [(&str, &[&str]); 18] = [
        ("PartitionTimeLimit", &["time", "partition"]),
        ("PartitionNodeLimit", &["partition", "cpu"]),
        ("PartitionConfig", &["cpu", "mem", "gpu", "time", "partition"]),
        ("PartitionDown", &["partition"]),
        ("PartitionInactive", &["partition"]),
        ("BadConstraints", &["constraint", "cpu", "mem", "gpu"]),
        ("InvalidAccount", &["account"]),
        ("InvalidQOS", &["qos"]),
        ("AccountNotAllowed", &["account", "partition"]),
        ("AccountingPolicy", &["account", "qos"]),
        ("QOSNotAllowed", &["qos", "partition"]),
        ("QOSMaxWallDurationPerJobLimit", &["time", "qos"]),
        ("DependencyNeverSatisfied", &[]),
        ("JobHeldUser", &[]),
        ("JobHeldAdmin", &[]),
        ("launch failed requeued held", &[]),
        ("launch_failed_requeued_held", &[]),
        ("JobLaunchFailure", &[]),
    ];
    let reason = reason.trim_matches(|c| c == '(' || c == ')');
    if (reason.starts_with("QOSMax") || reason.starts_with("AssocMax")) && !reason.contains("PerUser") {
        return match reason {
            reason if reason.contains("Wall") => Waiting::Permanent(&["time", "qos", "account"]),
            reason if reason.contains("PerJob") => {
                Waiting::Permanent(&["cpu", "mem", "gpu", "qos", "account"])
            }
            _ => Waiting::Passing,
        };
    }
    let passes = reason.starts_with("QOSMax") || reason.starts_with("AssocMax");
    if passes || PASSING.iter().any(|known| reason.starts_with(known)) {
        return Waiting::Passing;
    }
    let known = PERMANENT.iter().find(|(known, _)| reason.starts_with(known));
    known.map_or(Waiting::Unknown, |(_, about)| Waiting::Permanent(about))
}

/// One look at the queue for jobs of these names; for all of the user's without any.
///
/// # Errors
/// If `squeue` cannot be started; none if the controller gives no answer.
pub(crate) fn look(names: &[&str]) -> Result<Option<Vec<Listed>>, StageError> {
    let mut arguments: Vec<String> =
        ["--me", "-h", "-r", "-t", "all", "-o", FORMAT].map(str::to_owned).to_vec();
    if (1..=MOST_NAMES).contains(&names.len()) {
        arguments.push(format!("--name={}", names.join(",")));
    }
    let said = command::run("squeue", &arguments, "")?;
    Ok(said.succeeded.then(|| parse(&said.out)))
}

/// Whether the queue has a task in a state in which it may still work; none if nobody answers, or if it is another
/// account's, whose jobs are not looked at. For owners of leases from which nothing is heard: that is rare, and answers
/// are good for a while.
pub(crate) fn lists(task: &SlurmTask) -> Option<bool> {
    type Answer = Option<Vec<Listed>>;
    static LAST: Mutex<Option<(Instant, Answer)>> = Mutex::new(None);
    if task.user != rustix::process::geteuid().as_raw() {
        return None;
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.as_ref().is_none_or(|(asked, _)| asked.elapsed() > FRESH) {
        *last = Some((Instant::now(), look(&[]).ok().flatten()));
    }
    let (_, listed) = last.as_ref()?;
    listed.as_ref().map(|listed| listed.iter().any(|one| one.is_live() && one.is(task)))
}

/// The lines of `squeue -r` in the format above; a line of another form is left out.
pub(crate) fn parse(text: &str) -> Vec<Listed> {
    let line = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (_, job, task) = (fields.next()?, fields.next()?, fields.next()?);
        let (name, state, reason) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, nodes) = (fields.next()?, fields.next()?);
        // A job that is no array.
        let task = if task == "N/A" { 0 } else { task.parse().ok()? };
        Some(Listed {
            job: job.to_owned(),
            task,
            name: name.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            nodes: nodes.to_owned(),
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = "8_3|8|3|pipe-a|RUNNING|None|2026-01-01T10:00:00|n1\n\
                    11|8|9|pipe-a|PENDING|(PartitionConfig)|N/A|\n\
                    12|12|N/A|pipe-b|CANCELLED by 0|None|N/A|n2\n\
                    torn|line\n5_[0-5%2]|5|0-5|x|PENDING|None|N/A|\n";
        let listed = parse(text);
        let short: Vec<_> =
            listed.iter().map(|one| (one.job.as_str(), one.task, one.nodes.as_str())).collect();
        assert_eq!(short, [("8", 3, "n1"), ("8", 9, ""), ("12", 0, "n2")]);
        assert!(listed[0].is_live() && listed[1].is_live());
        assert_eq!(listed[1].waiting(), Waiting::Permanent(&["cpu", "mem", "gpu", "time", "partition"]));
        assert_eq!(listed[0].waiting(), Waiting::Passing);
    }

    #[test]
    fn a_task_is_found_by_its_array_and_its_place() {
        let listed = parse("8_3|8|3|a|RUNNING|None||n1\n12|12|N/A|b|RUNNING|None||n2\n");
        let task = |job: &str, array: Option<(&str, usize)>| SlurmTask {
            job: job.to_owned(),
            array: array.map(|(id, _)| id.to_owned()),
            task: array.map(|(_, task)| task),
            ..SlurmTask::default()
        };
        assert!(listed[0].is(&task("10", Some(("8", 3)))) && !listed[0].is(&task("10", Some(("8", 4)))));
        assert!(listed[1].is(&task("12", None)) && !listed[1].is(&task("8", None)));
        // Of another account nothing is known.
        let user = rustix::process::geteuid().as_raw() + 1;
        assert_eq!(lists(&SlurmTask { user, ..SlurmTask::default() }), None);
    }

    #[test]
    fn states_end_or_live() {
        let listed =
            |state: &str| Listed { state: state.to_owned(), ..parse("1|1|0|a|X|None||n\n").remove(0) };
        for state in [
            "RUNNING",
            "PENDING",
            "CONFIGURING",
            "COMPLETING",
            "SUSPENDED",
            "REQUEUED",
            "REQUEUE_HOLD",
            "NEW",
        ] {
            assert!(listed(state).is_live(), "{state}");
        }
        for state in
            ["COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED", "PREEMPTED"]
        {
            assert!(!listed(state).is_live(), "{state}");
        }
    }

    #[test]
    fn reasons_pass_or_do_not() {
        for reason in [
            "Resources",
            "Priority",
            "BeginTime",
            "ReqNodeNotAvail, UnavailableNodes:n2",
            "JobArrayTaskLimit",
            "QOSMaxJobsPerUserLimit",
            "AssocGrpCpuLimit",
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
        ] {
            assert_eq!(meaning(reason), Waiting::Passing, "{reason}");
        }
        for (reason, about) in [
            ("PartitionTimeLimit", "time"),
            ("BadConstraints", "constraint"),
            ("InvalidAccount", "account"),
            ("QOSMaxCpuPerJobLimit", "cpu"),
            ("AssocMaxWallDurationPerJobLimit", "time"),
            ("QOSMaxWallDurationPerJobLimit", "time"),
        ] {
            let Waiting::Permanent(found) = meaning(reason) else { panic!("{reason}") };
            assert_eq!(found.first(), Some(&about), "{reason}");
        }
        assert_eq!(meaning("JobHeldUser"), Waiting::Permanent(&[]));
        assert_eq!(meaning("SomethingNew"), Waiting::Unknown);
    }
}
