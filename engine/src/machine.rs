//! What this machine has: cores, memory, devices. Whatever limits the process counts, so that a study in a
//! container or a batch job takes what it was given.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::pipeline::Limits;

/// The share of the machine's memory that actions may ask for, in percent: the rest is the system's.
const MEMORY_PERCENT: u64 = 80;

impl Limits {
    /// What this machine has.
    pub fn of_this_machine() -> Self {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        Self {
            cpu: std::thread::available_parallelism().map_or(1, usize::from),
            gpu: gpus(visible.as_deref(), Path::new("/dev")),
            memory: memory(Path::new("/")),
            tokens: BTreeMap::new(),
        }
    }
}

/// The number of GPUs: what the environment makes visible, else what the driver has made.
fn gpus(visible: Option<&str>, devices: &Path) -> usize {
    if let Some(visible) = visible {
        return visible.split(',').filter(|one| !one.trim().is_empty()).count();
    }
    let is_gpu = |name: &str| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(devices).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(is_gpu)).count()
}

/// The bytes that actions may ask for: most of what the machine has, or the limit of the control group,
/// whichever is less. `root` is where the files of the kernel are looked for.
pub(crate) fn memory(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = text.and_then(|text| total_memory(&text)).map(|bytes| bytes / 100 * MEMORY_PERCENT);
    machine.into_iter().chain(group_limit(root)).min()
}

/// `MemTotal:  131072 kB` of `/proc/meminfo`, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The least memory limit of the control group of this process and of those around it, of either version.
fn group_limit(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        // `0::/a/b` of version 2, `4:memory:/a/b` of version 1.
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (mount, file) = if controllers.is_empty() {
            ("sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|one| one == "memory") {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            return None;
        };
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        let limits = groups.filter_map(|group| {
            let text = std::fs::read_to_string(root.join(mount).join(group).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        });
        limits.min()
    });
    limits.min()
}

/// How many processes the kernel has ended because memory ran out: in the control group of this process
/// where that is counted, else on the machine.
pub(crate) fn memory_kills(root: &Path) -> u64 {
    let count = |text: String| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        line.trim().parse().ok()
    };
    let read = |path: PathBuf| std::fs::read_to_string(path).ok().and_then(count);
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let of_group = group.and_then(|group| read(root.join("sys/fs/cgroup").join(group).join("memory.events")));
    of_group.or_else(|| read(root.join("proc/vmstat"))).unwrap_or(0)
}

/// The memory of all processes of a process group that is not pages of files, in bytes.
pub(crate) fn group_memory(root: &Path, group: i32) -> u64 {
    let processes = std::fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let processes = processes.map(|entry| entry.path()).filter(|path| {
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
        number.is_some() && group_of(&path.join("stat")) == Some(group)
    });
    let memory = processes.filter_map(|path| {
        let text = std::fs::read_to_string(path.join("status")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        Some((field("RssAnon:") + field("RssShmem:")) * 1024)
    });
    memory.sum()
}

/// Ticks of the kernel's process times in a second, whatever its own clock does.
const TICKS: u64 = 100;

/// The processor time of a process that lives, or has ended and was not waited for, with that of the children that it
/// has waited for: fields 14 to 17 of its `stat`.
pub(crate) fn process_time(root: &Path, process: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(root.join(format!("proc/{process}/stat"))).ok()?;
    // The second field, its name, may hold anything.
    let fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11).take(4);
    let ticks: Option<u64> = fields.map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_millis(ticks? * 1000 / TICKS))
}

/// The process group of a process: the third field after its name, which may hold anything.
fn group_of(stat: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(stat).ok()?;
    text.rsplit_once(')')?.1.split_ascii_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn process_times_are_those_of_its_children_too() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 1 2 3 4 150 25 300 50 20 0 1 0 1 1 1";
        let root = kernel(&[("proc/7/stat", stat), ("proc/8/stat", "8 (x) S 1 8")]);
        assert_eq!(process_time(root.path(), 7), Some(Duration::from_millis(5250)));
        assert_eq!(process_time(root.path(), 9), None);
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 1 kB\n");

    #[test]
    fn most_of_the_machine_or_the_limit_of_the_group() {
        let of = |files: &[(&str, &str)]| memory(kernel(files).path());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[MACHINE]), Some(819_200));
        let group = ("proc/self/cgroup", "0::/job/step\n");
        assert_eq!(of(&[MACHINE, group, ("sys/fs/cgroup/job/step/memory.max", "max\n")]), Some(819_200));
        let inner = ("sys/fs/cgroup/job/step/memory.max", "4096\n");
        assert_eq!(of(&[MACHINE, group, inner]), Some(4096));
        // The group around it counts too, and one that allows more than there is does not.
        let outer = ("sys/fs/cgroup/job/memory.max", "2048\n");
        assert_eq!(of(&[MACHINE, group, inner, outer]), Some(2048));
        assert_eq!(of(&[MACHINE, group, ("sys/fs/cgroup/memory.max", "9000000\n")]), Some(819_200));
        let first = ("proc/self/cgroup", "5:cpu,memory:/a\n2:pids:/b\n");
        let limit = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "8192\n");
        assert_eq!(of(&[MACHINE, first, limit]), Some(8192));
    }

    #[test]
    fn gpus_are_those_that_are_visible() {
        let devices = kernel(&[("nvidia0", ""), ("nvidia1", ""), ("nvidiactl", ""), ("nvidia-uvm", "")]);
        assert_eq!(gpus(None, devices.path()), 2);
        assert_eq!(gpus(Some("3,GPU-8932f937"), devices.path()), 2);
        assert_eq!(gpus(Some("1"), devices.path()), 1);
        assert_eq!(gpus(Some(""), devices.path()), 0);
        assert_eq!(gpus(None, Path::new("/nowhere")), 0);
    }

    #[test]
    fn the_memory_of_a_group_is_summed_up() {
        let root = kernel(&[
            ("proc/7/stat", "7 (a) b) S 1 40 40 0"),
            ("proc/7/status", "VmRSS: 900 kB\nRssAnon:\t     100 kB\nRssFile: 700 kB\nRssShmem:\t 20 kB\n"),
            ("proc/8/stat", "8 (c) S 7 40 40 0"),
            ("proc/8/status", "RssAnon: 1 kB\n"),
            ("proc/9/stat", "9 (d) S 1 9 9 0"),
            ("proc/9/status", "RssAnon: 5000 kB\n"),
            ("proc/self/stat", "9 (d) S 1 40 9 0"),
        ]);
        assert_eq!(group_memory(root.path(), 40), 121 * 1024);
        assert_eq!(group_memory(root.path(), 41), 0);
        let own = rustix::process::getpgrp().as_raw_nonzero().get();
        assert!(group_memory(Path::new("/"), own) > 1 << 20);
    }

    #[test]
    fn kills_are_counted_in_the_group_or_on_the_machine() {
        assert_eq!(memory_kills(kernel(&[]).path()), 0);
        let machine = ("proc/vmstat", "nr_free 5\noom_kill 3\n");
        assert_eq!(memory_kills(kernel(&[machine]).path()), 3);
        let group = ("proc/self/cgroup", "0::/job\n");
        let events = ("sys/fs/cgroup/job/memory.events", "oom 9\noom_kill 1\n");
        assert_eq!(memory_kills(kernel(&[machine, group, events]).path()), 1);
    }
}
