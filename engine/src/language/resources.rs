//! What an action may ask for, and what there is.

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::quantity::{bytes, seconds};
use super::suggestion;
use crate::pipeline::Resources;

/// What the executor has in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Cores.
    pub cpu: usize,
    /// Devices of the kind GPU.
    pub gpu: usize,
    /// Bytes of memory; `None`: unknown, so anything goes.
    pub memory: Option<u64>,
}

impl Limits {
    /// What this machine has. This version computes on the CPU only, so it has no GPU.
    pub fn of_this_machine() -> Self {
        Self {
            cpu: std::thread::available_parallelism().map_or(1, usize::from),
            gpu: 0,
            memory: std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)),
        }
    }
}

/// `MemTotal:  131072 kB` of `/proc/meminfo`, in bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Reads the `resources` of a stage.
pub(crate) fn read(table: &Table, limits: &Limits, diagnostics: &mut Vec<Diagnostic>) -> Resources {
    let mut resources = Resources { cpu: None, gpu: 0, memory: None, time: None };
    for entry in table.iter().filter(|entry| !entry.item.is_invalid()) {
        let understood = match entry.key.as_str() {
            "cpu" => count(&entry.item).filter(|cpu| *cpu > 0).map(|cpu| resources.cpu = Some(cpu)),
            "gpu" => count(&entry.item).map(|gpu| resources.gpu = gpu),
            "mem" => quantity(&entry.item, bytes).map(|bytes| resources.memory = Some(bytes)),
            "time" => quantity(&entry.item, seconds).map(|time| resources.time = Some(time)),
            _ => {
                let message = format!("unknown resource `{}`", entry.key);
                let help = suggestion(&entry.key, ["cpu", "gpu", "mem", "time"]);
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                continue;
            }
        };
        if understood.is_none() {
            let message = format!("resource `{}` cannot be {}", entry.key, entry.item.display());
            let help = "write `cpu = 4`, `gpu = 1`, `mem = \"16GiB\"`, `time = \"4h\"`".to_owned();
            diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message).help(help));
        } else {
            diagnostics.extend(excess(entry, &resources, limits));
        }
    }
    resources
}

/// What is asked for beyond the limits: more cores only means to run alone, the rest can never run.
fn excess(entry: &Entry, resources: &Resources, limits: &Limits) -> Option<Diagnostic> {
    let asked = entry.item.display();
    let (code, message) = match entry.key.as_str() {
        "cpu" if resources.cpu.is_some_and(|cpu| cpu > limits.cpu) => {
            ("W105", format!("{asked} cores are asked for, there are {}; it will run alone", limits.cpu))
        }
        "gpu" if resources.gpu > limits.gpu => {
            ("E013", format!("{asked} GPUs are asked for, there are {}", limits.gpu))
        }
        "mem" if limits.memory.is_some_and(|most| resources.memory.is_some_and(|asked| asked > most)) => {
            ("E013", format!("{asked} of memory is asked for, which is more than there is"))
        }
        _ => return None,
    };
    let memory = limits.memory.map_or_else(String::new, |bytes| format!(", mem = {bytes}"));
    let help = format!("the limits are cpu = {}, gpu = {}{memory}", limits.cpu, limits.gpu);
    Some(Diagnostic::new(code, &entry.item.origin, message).help(help))
}

fn count(item: &Item) -> Option<usize> {
    match item.value {
        ItemValue::Integer(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

fn quantity(item: &Item, parse: fn(&str) -> Option<u64>) -> Option<u64> {
    match &item.value {
        ItemValue::Integer(value) => u64::try_from(*value).ok(),
        ItemValue::String(text) => parse(text),
        _ => None,
    }
    .filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::total_memory;

    #[test]
    fn memory_is_read_from_the_kernel() {
        assert_eq!(total_memory("MemTotal:       2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
    }
}
