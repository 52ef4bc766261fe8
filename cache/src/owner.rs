//! Who owns a lease or a staging folder, and whether that process still lives.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
}

/// After this long without a heartbeat an owner that cannot be observed is taken for dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(300);

/// How often owners give a sign of life.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(30);

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
        }
    }

    /// Whether the owner is dead, as far as `observer` can see; `silence` is the time since its last
    /// sign of life on the clock of the file server.
    pub fn is_dead(&self, observer: &Self, silence: Duration) -> bool {
        if self.host != observer.host {
            return silence > SILENCE;
        }
        if self.boot != observer.boot {
            return true;
        }
        if self.namespace != observer.namespace {
            return silence > SILENCE;
        }
        match start_time(self.pid) {
            Some(started) => started != self.started,
            None => has_ended(self.pid),
        }
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
    fn another_boot_is_dead_and_another_host_only_after_silence() {
        let me = Owner::current();
        assert!(Owner { boot: "earlier".to_owned(), ..me.clone() }.is_dead(&me, Duration::ZERO));
        let elsewhere = Owner { host: "elsewhere".to_owned(), ..me.clone() };
        assert!(!elsewhere.is_dead(&me, Duration::from_secs(299)));
        assert!(elsewhere.is_dead(&me, Duration::from_secs(301)));
    }
}
