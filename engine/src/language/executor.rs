//! `[executor.local]`: how much there is for all actions that run at one time.

use std::collections::BTreeMap;

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, Table};
use super::quantity::bytes;
use super::resources::{IO, RESOURCES, count, quantity};
use super::template::Scope;
use super::{NAME_HELP, is_name, suggestion};
use crate::pipeline::{Executor, Limits};

const KEYS: [&str; 4] = ["cpu", "mem", "gpu", "tokens"];

/// The values of an `executor` section, each under its path in `[executor.local]` (`cpu`,
/// `tokens.licence`); what has no meaning is reported.
pub(crate) fn flatten(section: &Item, diagnostics: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let mut values = Vec::new();
    let Some(executors) = table("executor", section, diagnostics) else { return values };
    for executor in executors.iter() {
        if executor.key != "local" {
            let message = format!("unknown executor `{}`", executor.key);
            let help = "every action runs on this machine: write `[executor.local]`".to_owned();
            diagnostics.push(Diagnostic::new("E002", &executor.key_origin, message).help(help));
            continue;
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
    let help = if RESOURCES.contains(&token.key.as_str()) {
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

/// What there is: what the study says, and otherwise what the machine has.
pub(crate) fn read(
    values: &Table,
    machine: Limits,
    scope: &Scope<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Executor {
    let mut executor = Executor { limits: machine, origins: BTreeMap::new() };
    executor.limits.tokens.entry(IO.to_owned()).or_insert(executor.limits.cpu);
    let limits = &mut executor.limits;
    for entry in values.iter() {
        let item = scope.resolve(&entry.item, diagnostics);
        if item.is_invalid() {
            continue;
        }
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
    executor
}
