//! `pipe clean`: removes published results, never the store.

use serde_json::json;

use super::arguments::{Arguments, FileArguments};
use super::study::Study;
use super::{CliError, print, print_json};
use crate::kind::Registry;
use crate::publish;

pub(crate) fn clean(
    arguments: &Arguments,
    file: &FileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &file.pipeline, registry)?;
    let summary = publish::clean(&study.results, &study.pipeline)
        .map_err(|error| CliError::environment("removing published results", &error))?;
    if arguments.global.json {
        return print_json(&json!({
            "version": 1, "folder": summary.folder, "removed": summary.removed, "kept": summary.kept,
        }));
    }
    for path in &summary.kept {
        eprintln!("{:>10}  {} was changed by someone", "Kept", path.display());
    }
    print(&format!(
        "{} files removed from {}; the store is as it was\n",
        summary.removed,
        summary.folder.display()
    ))
}
