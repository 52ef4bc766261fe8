//! What an action may ask for.

use std::collections::BTreeMap;

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::quantity::{bytes, seconds};
use super::{slurm, suggestion};
use crate::pipeline::{Executor, JobSettings, Place, Resources};

/// What an action asks for wherever it runs.
const OWN: [&str; 4] = ["cpu", "gpu", "mem", "time"];

/// All names that have a meaning of their own, with those that tell of jobs on a cluster; all others are tokens.
pub(crate) fn meanings() -> impl Iterator<Item = &'static str> {
    OWN.into_iter().chain(JobSettings::KEYS)
}

/// The token that every executor has, as many as cores unless the study says otherwise: for actions that would
/// hinder each other at a disk or a network.
pub(crate) const IO: &str = "io";

/// Reads the `resources` of a stage.
pub(crate) fn read(table: &Table, executor: &Executor, diagnostics: &mut Vec<Diagnostic>) -> Resources {
    let mut resources = Resources {
        cpu: None,
        gpu: 0,
        memory: None,
        time: None,
        tokens: BTreeMap::new(),
        jobs: executor.slurm.clone(),
        said: BTreeMap::new(),
    };
    for entry in table.iter().filter(|entry| !entry.item.is_invalid()) {
        let understood = match entry.key.as_str() {
            "cpu" => count(&entry.item).filter(|cpu| *cpu > 0).map(|cpu| resources.cpu = Some(cpu)),
            "gpu" => count(&entry.item).map(|gpu| resources.gpu = gpu),
            "mem" => quantity(&entry.item, bytes).map(|bytes| resources.memory = Some(bytes)),
            "time" => quantity(&entry.item, seconds).map(|time| resources.time = Some(time)),
            key if JobSettings::KEYS.contains(&key) => {
                slurm::read("`resources`", key, &entry.item, &mut resources.jobs, diagnostics);
                resources.said.insert(key.to_owned(), entry.item.json());
                continue;
            }
            token if executor.limits.tokens.contains_key(token) => {
                count(&entry.item).map(|count| _ = resources.tokens.insert(token.to_owned(), count))
            }
            unknown => {
                let message = format!("unknown resource `{unknown}`");
                let tokens = executor.limits.tokens.keys().map(String::as_str);
                let help = suggestion(unknown, meanings().map(|name| name as &str).chain(tokens));
                let token =
                    format!("a token has to be defined: `[executor.local]`, `tokens = {{ {unknown} = 1 }}`");
                diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help).help(token));
                continue;
            }
        };
        if understood.is_none() {
            let message = format!("resource `{}` cannot be {}", entry.key, entry.item.display());
            let help = match entry.key.as_str() {
                token if executor.limits.tokens.contains_key(token) => format!("write `{token} = 1`"),
                _ => "write `cpu = 4`, `gpu = 1`, `mem = \"16GiB\"`, `time = \"4h\"`".to_owned(),
            };
            diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message).help(help));
        } else {
            diagnostics.extend(excess(entry, &resources, executor));
        }
    }
    resources
}

/// What is asked for beyond the limits: more cores only means to run alone, the rest can never run.
fn excess(entry: &Entry, resources: &Resources, executor: &Executor) -> Option<Diagnostic> {
    // What a cluster has, it says itself.
    if executor.place == Place::Slurm {
        return None;
    }
    let limits = &executor.limits;
    let asked = entry.item.display();
    let mut limit = entry.key.clone();
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
        token => {
            let (asked, most) = resources.tokens.get(token).zip(limits.tokens.get(token))?;
            if asked <= most {
                return None;
            }
            limit = format!("tokens.{token}");
            ("E013", format!("{asked} of `{token}` are asked for, there are {most}"))
        }
    };
    let memory = limits.memory.map_or_else(String::new, |bytes| format!(", mem = {bytes}"));
    let tokens: String = limits.tokens.iter().map(|(name, count)| format!(", {name} = {count}")).collect();
    let help = format!("the limits are cpu = {}, gpu = {}{memory}{tokens}", limits.cpu, limits.gpu);
    let diagnostic = Diagnostic::new(code, &entry.item.origin, message).help(help);
    Some(match executor.origins.get(&limit) {
        Some(origin) => diagnostic.also(origin, "the limit"),
        None => diagnostic,
    })
}

/// A whole number from 0.
pub(crate) fn count(item: &Item) -> Option<usize> {
    match item.value {
        ItemValue::Integer(value) => usize::try_from(value).ok(),
        _ => None,
    }
}

/// An amount above 0, as a number or with a unit.
pub(crate) fn quantity(item: &Item, parse: fn(&str) -> Option<u64>) -> Option<u64> {
    match &item.value {
        ItemValue::Integer(value) => u64::try_from(*value).ok(),
        ItemValue::String(text) => parse(text),
        _ => None,
    }
    .filter(|value| *value > 0)
}

/// A text that is one argument of a program, and no option of it.
pub(crate) fn word(item: &Item) -> Option<String> {
    let text = item.as_str()?;
    let is_plain = !text.is_empty() && !text.starts_with('-') && !text.chars().any(char::is_control);
    is_plain.then(|| text.to_owned())
}
