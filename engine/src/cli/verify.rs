//! `pipe verify`: whether stored results are what they were.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use pipe_cache::{Digest, Verification};
use serde_json::json;

use super::arguments::{Arguments, VerifyArguments};
use super::status::size;
use super::study::{Study, open_store};
use super::{CliError, print, print_json};
use crate::exit;
use crate::kind::Registry;
use crate::plan::Wanted;

/// On a terminal, how often what was done so far is shown.
const PERIOD: Duration = Duration::from_millis(200);

pub(crate) fn verify(
    arguments: &Arguments,
    verify: &VerifyArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    if verify.sources {
        return super::sources::verify(arguments, verify, registry);
    }
    let Some(store) = open_store(arguments, verify.pipeline.as_deref(), verify.repair)? else {
        return print("there is no store, so there is nothing to verify\n");
    };
    let keys = match (&verify.pipeline, verify.targets.as_slice()) {
        (Some(pipeline), [_, ..]) => Some(keys(arguments, pipeline, &verify.targets, registry)?),
        _ => None,
    };
    let mut shown = Instant::now();
    let terminal = std::io::stderr().is_terminal() && !arguments.global.quiet && !arguments.global.json;
    let found = store.verify(keys.as_deref(), verify.repair, |blobs, bytes| {
        if terminal && shown.elapsed() >= PERIOD {
            shown = Instant::now();
            eprint!("\r{:>10}  {blobs} blobs, {}\u{1b}[K", "Verify", size(bytes));
            let _ = std::io::stderr().flush();
        }
    })?;
    if terminal {
        eprint!("\r\u{1b}[K");
    }
    if arguments.global.json {
        print_json(&json!({
            "version": 1, "records": found.records, "blobs": found.blobs, "bytes": found.bytes,
            "damaged_records": found.damaged_records, "damaged_blobs": found.damaged_blobs.iter().map(|(blob, reason)| json!({ "blob": blob, "reason": reason })).collect::<Vec<_>>(),
            "affected": found.affected, "repaired": verify.repair,
        }))?;
    } else {
        print(&text(&found, verify.repair))?;
    }
    Ok(if found.is_sound() || verify.repair { exit::DONE } else { exit::ENVIRONMENT })
}

fn keys(
    arguments: &Arguments,
    pipeline: &std::path::Path,
    targets: &[String],
    registry: &Registry,
) -> Result<Vec<Digest>, CliError> {
    let study = Study::load(arguments, pipeline, registry)?;
    let store = study.open_existing()?;
    let (plan, ..) = study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?;
    let mut keys = Vec::new();
    for target in targets {
        let nodes = study.select(target)?;
        keys.extend(nodes.iter().filter_map(|id| Some(plan.keys[id.0].as_ref()?.0)));
    }
    Ok(keys)
}

fn text(found: &Verification, repaired: bool) -> String {
    let mut text = String::new();
    for key in &found.damaged_records {
        text.push_str(&format!("damaged  result {key}: its record cannot be read\n"));
    }
    for (blob, reason) in &found.damaged_blobs {
        text.push_str(&format!("damaged  blob {blob}: {reason}\n"));
    }
    text.push_str(&format!(
        "{} results and {} blobs ({}) verified",
        found.records,
        found.blobs,
        size(found.bytes)
    ));
    let lost = found.damaged_records.len() + found.affected.len();
    text.push_str(&match (found.is_sound(), repaired) {
        (true, _) => ": all are sound\n".to_owned(),
        (false, false) => {
            format!("; {lost} results are lost; `--repair` lets the next run make them again\n")
        }
        (false, true) => format!("; {lost} results were lost, the next run makes them again\n"),
    });
    text
}
