//! `pipe doctor`: what of this machine a study depends on, each line with what to do.

use std::path::{Path, PathBuf};

use pipe_cache::{Durability, Store};
use serde_json::json;

use super::arguments::{Arguments, OptionalFileArguments};
use super::status::size;
use super::study::Study;
use super::{CliError, print};
use crate::action::MissingSource;
use crate::exit;
use crate::kind::Registry;
use crate::pipeline::Limits;
use crate::plan::Wanted;

struct Finding {
    subject: &'static str,
    level: &'static str,
    text: String,
}

pub(crate) fn doctor(
    arguments: &Arguments,
    file: &OptionalFileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let mut findings = Vec::new();
    let mut add = |subject, level, text: String| findings.push(Finding { subject, level, text });
    add(
        "version",
        "ok",
        format!("pipe {}, {} stage kinds", env!("CARGO_PKG_VERSION"), registry.iter().count()),
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    add("processor", "ok", format!("{cores} cores, {}", std::env::consts::ARCH));
    if let Some(bytes) = Limits::of_this_machine().memory {
        add("memory", "ok", format!("{} for actions, unless `[executor.local]` says otherwise", size(bytes)));
    }
    add("numerics", "ok", registry.numerics().to_owned());
    add("device", "ok", registry.devices());
    let store_path = match &file.pipeline {
        Some(path) => {
            let study = Study::load(arguments, path, registry)?;
            let (sources, missing) = study.try_sources(None, &Wanted::default())?;
            for MissingSource { source, node, reason, .. } in &missing {
                add("sources", "error", format!("node `{node}` reads `{source}`: {reason}"));
            }
            if missing.is_empty() {
                let text = match sources.unpinned().len() {
                    0 => "all are there".to_owned(),
                    unpinned => format!("all are there, but {unpinned} that the next run fetches"),
                };
                add("sources", "ok", text);
            }
            study.store_path
        }
        None => arguments.global.store().unwrap_or_else(|| PathBuf::from(".pipe")),
    };
    match Store::open_existing(&store_path, Durability::Full) {
        Ok(Some(store)) => add("store", "ok", format!("{} (uuid {})", store_path.display(), store.uuid())),
        Ok(None) => {
            add("store", "ok", format!("{} does not exist yet; `pipe run` makes it", store_path.display()))
        }
        Err(error) => add("store", "error", crate::attempt::chain(&error)),
    }
    let folder = existing_ancestor(&store_path);
    match rustix::fs::statvfs(&folder) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let level = if free < 1 << 30 { "warning" } else { "ok" };
            add(
                "disk",
                level,
                format!("{:.1} GiB free at {}", free as f64 / (1u64 << 30) as f64, folder.display()),
            );
        }
        Err(error) => add("disk", "error", format!("{}: {error}", folder.display())),
    }
    let probe = folder.join(format!(".pipe-doctor-{}", std::process::id()));
    let renamed = folder.join(format!(".pipe-doctor-{}-renamed", std::process::id()));
    let written = std::fs::File::create(&probe)
        .and_then(|_| std::fs::rename(&probe, &renamed))
        .and_then(|()| std::fs::remove_file(&renamed));
    match written {
        Ok(()) => add("permission", "ok", format!("{} can be written, and files renamed", folder.display())),
        Err(error) => add(
            "permission",
            "error",
            format!("{}: {error}; name another store with `--store`", folder.display()),
        ),
    }
    let bad = findings.iter().any(|finding| finding.level == "error");
    if arguments.global.json {
        let lines: Vec<_> = findings
            .iter()
            .map(
                |finding| json!({ "subject": finding.subject, "level": finding.level, "text": finding.text }),
            )
            .collect();
        print(&format!("{:#}\n", json!({ "version": 1, "findings": lines })))?;
    } else {
        for finding in &findings {
            print(&format!("{:>8}  {:<11} {}\n", finding.level, finding.subject, finding.text))?;
        }
    }
    Ok(if bad { exit::ENVIRONMENT } else { exit::DONE })
}

fn existing_ancestor(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).map_or_else(|| PathBuf::from("/"), Path::to_owned)
}
