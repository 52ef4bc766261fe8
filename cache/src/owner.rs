//! Who owns a lease or a staging folder, and whether that process still lives.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::fs::nonce;
use crate::slurm::{self, SlurmTask};

/// A process, named so that a reused process id is not mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The host's name.
    pub host: String,
    /// The boot of that host.
    pub boot: String,
    /// The namespace in which the process id counts: containers on one host have several.
    pub namespace: String,
    /// The process id.
    pub pid: u32,
    /// When the process started, in clock ticks after the boot.
    pub started: u64,
    /// The job of a cluster that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slurm: Option<SlurmTask>,
}

/// After this long without a heartbeat an owner that cannot be observed is taken for dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);

/// After this long one in a job of a cluster is, unless the cluster says before that there is no such job any more: writing
/// a large file can stall a node for minutes.
const SILENCE_IN_A_JOB: Duration = Duration::from_secs(900);

/// How often owners give a sign of life.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(20);

impl Owner {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot: boot_id(),
            namespace: std::fs::read_link("/proc/self/ns/pid")
                .map(|link| link.to_string_lossy().into_owned())
                .unwrap_or_default(),
            pid,
            started: start_time(pid).unwrap_or(0),
            slurm: SlurmTask::current(),
        }
    }

    /// A name for a folder of this process that nothing else has, and that tells whose it is before anything can be
    /// written into it.
    pub fn folder_name(&self) -> String {
        let host: String =
            self.host.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(64).collect();
        format!("{host}-{}-{}-{}-{}", self.pid, self.started, self.world(), nonce())
    }

    /// Whether the owner of a folder of this name has died; none if the name does not tell, as of another host.
    pub fn is_dead_by_name(&self, name: &str) -> Option<bool> {
        let mut parts = name.rsplit('-').skip(1);
        let (world, started, pid) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let owner = Self { pid, started, ..self.clone() };
        (world == self.world()).then(|| owner.is_dead(self, Duration::ZERO))
    }

    /// What process ids count in: a host, a boot of it, and a namespace.
    fn world(&self) -> String {
        let world = format!("{} {} {}", self.host, self.boot, self.namespace);
        Digest::of(world.as_bytes()).to_short()
    }

    /// Whether the owner is dead, as far as `observer` can see; `silence` is the time since its last
    /// sign of life on the clock of the file server.
    pub fn is_dead(&self, observer: &Self, silence: Duration) -> bool {
        if self.host != observer.host {
            return self.is_silent(silence, slurm::is_listed);
        }
        if self.boot != observer.boot {
            return true;
        }
        if self.namespace != observer.namespace {
            return self.is_silent(silence, slurm::is_listed);
        }
        match start_time(self.pid) {
            Some(started) => started != self.started,
            None => has_ended(self.pid),
        }
    }

    /// Whether an owner that cannot be observed has been silent for too long. `is_listed` tells of a job that may be over
    /// whether its cluster still has it, if that answers.
    fn is_silent(&self, silence: Duration, is_listed: impl FnOnce(&SlurmTask) -> Option<bool>) -> bool {
        match &self.slurm {
            _ if silence <= SILENCE => false,
            Some(task) if silence <= SILENCE_IN_A_JOB => is_listed(task) == Some(false),
            _ => true,
        }
    }
}

/// Where it is, for people: `n1:4711`, or `n1:4711, job 17_3`.
impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.pid)?;
        self.slurm.iter().try_for_each(|task| write!(formatter, ", {task}"))
    }
}

/// The id of this boot of the machine; empty where the system does not tell.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// When a living process began, field 22 of `/proc/<pid>/stat`. The second field is the program's name in
/// parentheses and may hold anything, so counting begins after its last one. A process that has ended is listed until
/// its parent asks for it, which in a container may be never: it has no start.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether a process that has no start is no more: it is not there, or only listed.
fn has_ended(pid: u32) -> bool {
    let listed = Path::new("/proc").join(pid.to_string()).join("stat").exists();
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return true };
    // Anything but "no such process" means that it is there, if only for another user.
    listed
        || matches!(rustix::process::test_kill_process(pid), Err(error) if error == rustix::io::Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_a_reused_pid_does_not_count() {
        let me = Owner::current();
        assert!(!me.is_dead(&me, Duration::MAX));
        let reused = Owner { started: me.started + 1, ..me.clone() };
        assert!(reused.is_dead(&me, Duration::ZERO));
    }

    #[test]
    fn a_process_that_has_ended_is_dead_though_nobody_asked_for_it() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let me = Owner::current();
        let owner = Owner { pid: child.id(), started: start_time(child.id()).unwrap(), ..me.clone() };
        assert!(!owner.is_dead(&me, Duration::ZERO));
        child.kill().unwrap();
        let ended = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            owner.is_dead(&me, Duration::ZERO)
        });
        assert!(ended);
        child.wait().unwrap();
        assert!(owner.is_dead(&me, Duration::ZERO));
    }

    #[test]
    fn a_folder_tells_by_its_name_whose_it_is() {
        let me = Owner::current();
        assert_eq!(me.is_dead_by_name(&me.folder_name()), Some(false));
        let dead = Owner { started: me.started + 1, ..me.clone() };
        assert_eq!(me.is_dead_by_name(&dead.folder_name()), Some(true));
        let elsewhere = Owner { host: "else-where".to_owned(), ..me.clone() };
        assert_eq!(me.is_dead_by_name(&elsewhere.folder_name()), None);
        for name in ["", "downloads", "vm-12-abc", "a-b-c-d-e"] {
            assert_eq!(me.is_dead_by_name(name), None, "{name}");
        }
    }

    #[test]
    fn another_boot_is_dead_and_another_host_only_after_silence() {
        let me = Owner::current();
        assert!(Owner { boot: "earlier".to_owned(), ..me.clone() }.is_dead(&me, Duration::ZERO));
        let elsewhere = Owner { host: "elsewhere".to_owned(), slurm: None, ..me.clone() };
        assert!(!elsewhere.is_dead(&me, Duration::from_secs(299)));
        assert!(elsewhere.is_dead(&me, Duration::from_secs(301)));
    }

    #[test]
    fn a_silent_job_is_dead_when_its_cluster_says_so_or_after_a_long_time() {
        let owner = Owner { slurm: Some(SlurmTask::default()), ..Owner::current() };
        let is_silent = |seconds, listed| owner.is_silent(Duration::from_secs(seconds), |_| listed);
        assert!(!is_silent(299, Some(false)));
        assert_eq!(
            [Some(false), Some(true), None].map(|listed| is_silent(301, listed)),
            [true, false, false]
        );
        assert_eq!([Some(false), Some(true), None].map(|listed| is_silent(901, listed)), [true; 3]);
    }

    #[test]
    fn an_owner_of_an_earlier_program_is_read() {
        let text = r#"{"host":"n1","boot":"b","namespace":"pid:[1]","pid":7,"started":9}"#;
        let owner: Owner = serde_json::from_str(text).unwrap();
        assert_eq!((owner.to_string().as_str(), &owner.slurm), ("n1:7", &None));
        let task = SlurmTask { job: "5".to_owned(), ..SlurmTask::default() };
        let in_a_job = Owner { slurm: Some(task), ..owner.clone() };
        assert_eq!(in_a_job.to_string(), "n1:7, job 5");
        let again = serde_json::to_string(&in_a_job).unwrap();
        assert_eq!(serde_json::from_str::<Owner>(&again).unwrap(), in_a_job);
        assert_eq!(serde_json::to_string(&owner).unwrap(), text);
    }
}
