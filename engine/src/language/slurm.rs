//! `[executor.slurm]`: how jobs of a cluster are submitted.

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::quantity::seconds;
use super::resources::{count, quantity, word};
use super::suggestion;
use crate::pipeline::{JobSettings, SlurmSettings};

/// What is said of the driver and its jobs together, and so of no stage.
pub(crate) const OF_THE_DRIVER: [&str; 3] = ["max_submitted", "submit_rate", "poll"];

/// All keys.
pub(crate) fn keys_of_a_cluster() -> impl Iterator<Item = &'static str> {
    JobSettings::KEYS.into_iter().chain(OF_THE_DRIVER)
}

/// What of `sbatch` is decided here: an argument that says it once more would break how jobs are found again.
const OURS: [&str; 9] =
    ["--parsable", "--job-name", "-J", "--comment", "--array", "-a", "--signal", "--wrap", "--export"];

/// The values of the section, each as `slurm.KEY`.
pub(crate) fn flatten(keys: &Table, diagnostics: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut values = Vec::new();
    for entry in keys.iter() {
        if keys_of_a_cluster().any(|key| key == entry.key) {
            values.push(Entry { key: format!("slurm.{}", entry.key), ..entry.clone() });
        } else {
            let message = format!("unknown key `{}` of `executor.slurm`", entry.key);
            let help = suggestion(&entry.key, keys_of_a_cluster());
            diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
        }
    }
    values
}

/// Reads one value of the section, whose templates are resolved.
pub(crate) fn read(key: &str, item: &Item, settings: &mut SlurmSettings, diagnostics: &mut Vec<Diagnostic>) {
    let (understood, example) = match key {
        "max_submitted" => (at_least_one(item).map(|count| settings.max_submitted = count), "500"),
        "submit_rate" => (rate(item).map(|rate| settings.submit_rate = rate), "\"1/s\""),
        "poll" => (quantity(item, seconds).map(|time| settings.poll = time), "\"20s\""),
        key => return read_job("`executor.slurm`", key, item, &mut settings.jobs, diagnostics),
    };
    if understood.is_none() {
        diagnostics.push(misread("`executor.slurm`", key, item, example));
    }
}

/// Reads one value of [`JobSettings::KEYS`], which stands in `place`.
pub(crate) fn read_job(
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
        name => (word(item).map(|value| _ = jobs.names.insert(name.to_owned(), value)), "\"...\""),
    };
    if understood.is_none() {
        diagnostics.push(misread(place, key, item, example));
    }
}

fn misread(place: &str, key: &str, item: &Item, example: &str) -> Diagnostic {
    let message = format!("`{key}` of {place} cannot be {}", item.display());
    Diagnostic::new("E003", &item.origin, message).help(format!("write `{key} = {example}`"))
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

/// `1/s`, `30/min`: per second.
fn rate(item: &Item) -> Option<f64> {
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
    (per_second.is_finite() && per_second > 0.0).then_some(per_second)
}
