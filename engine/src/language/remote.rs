//! `[remote]`: where results are kept for other machines too, and `remote` of a stage: what of them.

use super::diagnostic::Diagnostic;
use super::item::{Entry, Item, ItemValue, Table};
use super::suggestion;
use super::template::Scope;
use crate::pipeline::{RemoteCache, RemoteMode, RemotePolicy};

const KEYS: [&str; 3] = ["url", "endpoint", "mode"];

/// The values of a `remote` section; what has no meaning is reported.
pub(crate) fn flatten(section: &Item, diagnostics: &mut Vec<Diagnostic>) -> Vec<Entry> {
    let Some(table) = section.as_table() else {
        if !section.is_invalid() {
            let message = format!("`remote` has to be a table, this is {}", section.type_name());
            diagnostics.push(Diagnostic::new("E003", &section.origin, message));
        }
        return Vec::new();
    };
    let (known, unknown): (Vec<&Entry>, Vec<&Entry>) =
        table.iter().partition(|entry| KEYS.contains(&entry.key.as_str()));
    for entry in unknown {
        let message = format!("unknown key `{}` of `remote`", entry.key);
        let help = suggestion(&entry.key, KEYS);
        diagnostics.push(Diagnostic::new("E002", &entry.key_origin, message).help(help));
    }
    known.into_iter().cloned().collect()
}

/// What the study says of its remote cache.
pub(crate) fn read(values: &Table, scope: &Scope<'_>, diagnostics: &mut Vec<Diagnostic>) -> RemoteCache {
    let mut remote = RemoteCache::default();
    for entry in values.iter() {
        let item = scope.resolve(&entry.item, diagnostics);
        if item.is_invalid() {
            continue;
        }
        let text = item.as_str();
        let help = match (entry.key.as_str(), text) {
            ("url", Some(url)) => match pipe_mirror::Place::parse(url, None) {
                Ok(_) => {
                    remote.url = Some(url.to_owned());
                    continue;
                }
                Err(error) => error.to_string(),
            },
            ("endpoint", Some(endpoint))
                if ["http://", "https://"].iter().any(|one| endpoint.starts_with(one)) =>
            {
                remote.endpoint = Some(endpoint.to_owned());
                continue;
            }
            ("mode", Some(mode)) => match RemoteMode::parse(mode) {
                Some(mode) => {
                    remote.mode = Some(mode);
                    continue;
                }
                None => suggestion(mode, RemoteMode::ALL.map(RemoteMode::name)).unwrap_or_default(),
            },
            _ => "write `url = \"s3://BUCKET/PREFIX\"`, `endpoint = \"https://SERVER\"`, `mode = \"read\"`"
                .to_owned(),
        };
        let message = format!("`{}` of a remote cache cannot be {}", entry.key, item.display());
        diagnostics.push(Diagnostic::new("E003", &item.origin, message).help(help));
    }
    if let (None, Some(other)) = (&remote.url, values.iter().find(|entry| entry.key != "url")) {
        // A profile may say where it is.
        if remote.mode != Some(RemoteMode::Off) && values.get("url").is_none() {
            let message = format!("`{}` of a remote cache that has no `url`", other.key);
            diagnostics.push(
                Diagnostic::new("E010", &other.key_origin, message)
                    .help("write `url = \"s3://BUCKET/PREFIX\"`".to_owned()),
            );
        }
    }
    remote
}

/// Reads the `remote` of a stage.
pub(crate) fn policy(item: &Item, diagnostics: &mut Vec<Diagnostic>) -> Option<RemotePolicy> {
    let policy = item.as_str().and_then(RemotePolicy::parse);
    if policy.is_none() && !matches!(item.value, ItemValue::Invalid) {
        let message = format!("`remote` cannot be {}", item.display());
        let help = "write `remote = \"always\"`, `\"results\"` or `\"never\"`".to_owned();
        diagnostics.push(Diagnostic::new("E003", &item.origin, message).help(help));
    }
    policy
}
