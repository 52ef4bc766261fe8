//! `[executor]`: where actions run, how much there is for all of them that run at one time, and how jobs of a cluster are
//! submitted.

use std::collections::BTreeMap;

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, Table};
use super::quantity::bytes;
use super::resources::{IO, count, meanings, quantity};
use super::slurm;
use super::template::Scope;
use super::{NAME_HELP, is_name, suggestion};
use crate::pipeline::{Executor, JobSettings, Limits, Place};

const KEYS: [&str; 4] = ["cpu", "mem", "gpu", "tokens"];

/// Where actions run, in an `executor` section.
const PLACE: &str = "use";

/// The values of an `executor` section, each under its path in `[executor.local]` (`cpu`,
/// `tokens.licence`), or as `use` and `slurm.partition`; what has no meaning is reported.
pub(crate) fn flatten(section: &Item, diagnostics: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut values = Vec::new();
    let Some(executors) = table("executor", section, diagnostics) else { return values };
    for executor in executors.iter() {
        match executor.key.as_str() {
            "local" => {}
            "slurm" => {
                if let Some(keys) = table("executor.slurm", &executor.item, diagnostics) {
                    values.extend(slurm::flatten(keys, diagnostics));
                }
                continue;
            }
            PLACE => {
                values.push(executor.clone());
                continue;
            }
            other => {
                let message = format!("unknown executor `{other}`");
                let help = "write `[executor.local]`, `[executor.slurm]`, or `use = \"slurm\"`".to_owned();
                diagnostics.push(Diagnostic::new("E002", &executor.key_origin, message).help(help));
                continue;
            }
        }
        let Some(keys) = table("executor.local", &executor.item, diagnostics) else { continue };
        for entry in keys.iter() {
            match entry.key.as_str() {
                "tokens" => {
                    let Some(tokens) = table("tokens", &entry.item, diagnostics) else { continue };
                    let legal = tokens.iter().filter(|token| is_legal(token, diagnostics));
                    values.extend(
                        legal.map(|token| Entry { key: format!("tokens.{}", token.key), ..token.clone() }),
                    );
                }
                key if KEYS.contains(&key) => values.push(entry.clone()),
                key => {
                    let message = format!("unknown key `{key}` of an executor");
                    let help = suggestion(key, KEYS);
                    diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
                }
            }
        }
    }
    values
}

fn table<'a>(name: &str, item: &'a Item, diagnostics: &mut Vec<Diagnostic>) -> Option<&'a Table> {
    let table = item.as_table();
    if table.is_none() && !item.is_invalid() {
        let message = format!("`{name}` has to be a table, this is {}", item.type_name());
        diagnostics.push(Diagnostic::new("E003", &item.origin, message));
    }
    table
}

/// Whether a token may have its name.
fn is_legal(token: &Entry, diagnostics: &mut Vec<Diagnostic>) -> bool {
    let help = if meanings().any(|name| name == token.key) {
        format!("`{}` has a meaning of its own", token.key)
    } else if is_name(&token.key) {
        return true;
    } else {
        NAME_HELP.to_owned()
    };
    let message = format!("`{}` cannot name a token", token.key);
    diagnostics.push(Diagnostic::new("E015", &token.key_origin, message).help(help));
    false
}

/// Where actions run, and what there is: what the study says, and otherwise what the machine has. `asked` is what the
/// command line says of the place.
pub(crate) fn read(
    values: &Table,
    machine: Limits,
    asked: Option<&str>,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Executor {
    let (place, slurm) = (Place::default(), JobSettings::default());
    let mut executor = Executor { place, limits: machine, slurm, origins: BTreeMap::new() };
    executor.limits.tokens.entry(IO.to_owned()).or_insert(executor.limits.cpu);
    for entry in values.iter() {
        let item = scope.resolve(&entry.item, diagnostics);
        if item.is_invalid() {
            continue;
        }
        if let Some(key) = entry.key.strip_prefix("slurm.") {
            slurm::read("`executor.slurm`", key, &item, &mut executor.slurm, diagnostics);
            executor.origins.insert(entry.key.clone(), item.origin);
            continue;
        }
        if entry.key == PLACE {
            executor.place = place_of(&item, diagnostics);
            continue;
        }
        let limits = &mut executor.limits;
        let understood = match entry.key.as_str() {
            "cpu" => count(&item).filter(|cpu| *cpu > 0).map(|cpu| limits.cpu = cpu),
            "gpu" => count(&item).map(|gpu| limits.gpu = gpu),
            "mem" => quantity(&item, bytes).map(|bytes| limits.memory = Some(bytes)),
            token => {
                let name = token.trim_start_matches("tokens.").to_owned();
                count(&item).map(|tokens| _ = limits.tokens.insert(name, tokens))
            }
        };
        if understood.is_none() {
            let message = format!("`{}` of an executor cannot be {}", entry.key, item.display());
            let help = "write `cpu = 8`, `mem = \"64GiB\"`, `gpu = 2`, `tokens = { licence = 1 }`".to_owned();
            diagnostics.push(Diagnostic::new("E003", &item.origin, message).help(help));
            continue;
        }
        executor.origins.insert(entry.key.clone(), item.origin);
    }
    if let Some(place) = asked.and_then(Place::of_name) {
        executor.place = place;
    }
    executor
}

fn place_of(item: &Item, diagnostics: &mut Vec<Diagnostic>) -> Place {
    item.as_str().and_then(Place::of_name).unwrap_or_else(|| {
        let message = format!("`{PLACE}` of `executor` cannot be {}", item.display());
        let help = item.as_str().and_then(|text| suggestion(text, Place::NAMES));
        let help = help.or_else(|| Some("write `use = \"local\"` or `use = \"slurm\"`".to_owned()));
        diagnostics.push(Diagnostic::new("E003", &item.origin, message).help(help));
        Place::default()
    })
}
