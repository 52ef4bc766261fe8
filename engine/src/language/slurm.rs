//! `[executor.slurm]`: how jobs of a cluster are submitted.

use std::time::Duration;

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::quantity::seconds;
use super::resources::{count, quantity, word};
use super::suggestion;
use crate::pipeline::JobSettings;

/// What of `sbatch` is decided here: an argument that says it once more would break how jobs are found again.
const OURS: [&str; 14] = [
    "--parsable",
    "--job-name",
    "-J",
    "--comment",
    "--array",
    "-a",
    "--signal",
    "--wrap",
    "--export",
    "--output",
    "-o",
    "--error",
    "-e",
    "--open-mode",
];

/// The values of the section, each as `slurm.KEY`.
pub(crate) fn flatten(keys: &Table, diagnostics: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut values = Vec::new();
    for entry in keys.iter() {
        if JobSettings::KEYS.contains(&entry.key.as_str()) {
            values.push(Entry { key: format!("slurm.{}", entry.key), ..entry.clone() });
        } else {
            let message = format!("unknown key `{}` of `executor.slurm`", entry.key);
            let help = suggestion(&entry.key, JobSettings::KEYS);
            diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
        }
    }
    values
}

/// Reads one value of [`JobSettings::KEYS`], which stands in `place` and whose templates are resolved.
pub(crate) fn read(
    place: &str,
    key: &str,
    item: &Item,
    jobs: &mut JobSettings,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let duration = || quantity(item, seconds);
    let (understood, example) = match key {
        "extra_args" => {
            let arguments = words(item);
            if let Some(ours) = arguments.iter().flatten().find(|argument| is_ours(argument)) {
                let message = format!("`{ours}` in `extra_args` is decided by the program itself");
                diagnostics.push(Diagnostic::new("E003", &item.origin, message));
                return;
            }
            (arguments.map(|all| jobs.extra_args = all), "[\"--exclusive\"]")
        }
        "export" => {
            let names = words(item).filter(|names| names.iter().all(|name| is_variable(name)));
            (names.map(|all| jobs.export = all), "[\"HF_HOME\"]")
        }
        "setup" => {
            let line = item.as_str().filter(|line| !line.contains('\0'));
            (line.map(|line| jobs.setup = line.to_owned()), "\"module load cuda\"")
        }
        "max_tasks" => (at_least_one(item).map(|count| jobs.max_tasks = count), "64"),
        "task_target" => (duration().map(|time| jobs.task_target = time), "\"40min\""),
        "time_margin" => (duration().map(|time| jobs.time_margin = time), "\"180s\""),
        "max_submitted" => (at_least_one(item).map(|count| jobs.max_submitted = count), "500"),
        "submit_rate" => (interval(item).map(|every| jobs.submit_every = every), "\"1/s\""),
        "poll" => (duration().map(|time| jobs.poll = time), "\"20s\""),
        name => (word(item).map(|value| _ = jobs.names.insert(name.to_owned(), value)), "\"...\""),
    };
    if understood.is_none() {
        let message = format!("`{key}` of {place} cannot be {}", item.display());
        let help = format!("write `{key} = {example}`");
        diagnostics.push(Diagnostic::new("E003", &item.origin, message).help(help));
    }
}

fn at_least_one(item: &Item) -> Option<usize> {
    count(item).filter(|count| *count > 0)
}

fn words(item: &Item) -> Option<Vec<String>> {
    let plain = |text: &&str| !text.is_empty() && !text.chars().any(char::is_control);
    item.as_list()?.iter().map(|one| one.as_str().filter(plain).map(str::to_owned)).collect()
}

fn is_ours(argument: &str) -> bool {
    OURS.contains(&argument.split('=').next().unwrap_or_default())
}

fn is_variable(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// `1/s`, `30/min`: the time that one takes.
fn interval(item: &Item) -> Option<Duration> {
    let per_second = match &item.value {
        ItemValue::Integer(number) => *number as f64,
        ItemValue::Float(number) => *number,
        ItemValue::String(text) => {
            let (number, unit) = text.split_once('/')?;
            let unit = seconds(&format!("1{}", unit.trim()))?;
            number.trim().parse::<f64>().ok()? / unit as f64
        }
        _ => return None,
    };
    let positive = (per_second.is_finite() && per_second > 0.0).then_some(per_second)?;
    Duration::try_from_secs_f64(positive.recip()).ok().filter(|every| !every.is_zero())
}
