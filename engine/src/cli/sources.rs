//! `pipe verify --sources`: whether local sources are what is known of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pipe_cache::{Digest, Sources, Store};
use serde_json::{Value as Json, json};

use super::arguments::{Arguments, VerifyArguments};
use super::status::size;
use super::study::Study;
use super::{CliError, print, print_json};
use crate::exit;
use crate::kind::Registry;
use crate::pipeline::InputSource;

/// What was found of one source.
struct Found {
    pattern: String,
    is_frozen: bool,
    bytes: u64,
    /// Files that differ from what was recorded, with how they do.
    changes: Vec<(String, &'static str)>,
    /// Why it cannot be read.
    missing: Option<String>,
}

impl Found {
    fn is_sound(&self) -> bool {
        self.changes.is_empty() && self.missing.is_none()
    }

    fn json(&self) -> Json {
        let changes: Vec<Json> =
            self.changes.iter().map(|(path, how)| json!({ "path": path, "change": how })).collect();
        json!({
            "source": format!("file:{}", self.pattern), "frozen": self.is_frozen, "bytes": self.bytes,
            "changes": changes, "missing": self.missing,
        })
    }

    fn text(&self, is_repaired: bool) -> String {
        let pattern = &self.pattern;
        if let Some(reason) = &self.missing {
            return format!("missing  file:{pattern}: {reason}\n");
        }
        let mut text = String::new();
        for (path, how) in &self.changes {
            text.push_str(&format!("changed  file:{pattern}: `{path}` {how}\n"));
        }
        if !self.changes.is_empty() {
            text.push_str(if is_repaired {
                "         it is recorded as it is now; what reads it runs again\n"
            } else {
                "         `--repair` records it as it is now, and what reads it runs again\n"
            });
        }
        text
    }
}

pub(crate) fn verify(
    arguments: &Arguments,
    verify: &VerifyArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let path =
        verify.pipeline.as_ref().ok_or_else(|| CliError::new(exit::USAGE, "error: name a pipeline file"))?;
    let study = Study::load(arguments, path, registry)?;
    let mut wanted: Vec<usize> = (0..study.pipeline.nodes.len()).collect();
    if !verify.targets.is_empty() {
        wanted.clear();
        for target in &verify.targets {
            wanted.extend(study.select(target)?.into_iter().map(|id| id.0));
        }
    }
    // By path: the pattern, and whether nobody looks at it otherwise.
    let mut patterns: BTreeMap<PathBuf, (String, bool)> = BTreeMap::new();
    for source in
        wanted.iter().flat_map(|index| &study.pipeline.nodes[*index].inputs).flat_map(|one| &one.sources)
    {
        if let InputSource::File { pattern, path, is_frozen } = source {
            patterns.entry(path.clone()).or_insert_with(|| (pattern.clone(), true)).1 &= is_frozen;
        }
    }
    let store = study.open_existing()?;
    let sources = store.as_ref().map_or_else(Sources::without_memory, Store::sources);
    let found: Vec<Found> = patterns
        .into_iter()
        .map(|(path, (pattern, is_frozen))| look(&sources, &path, pattern, is_frozen, verify.repair))
        .collect();
    let is_sound = found.iter().all(Found::is_sound);
    let is_mended = verify.repair && found.iter().all(|one| one.missing.is_none());
    if arguments.global.json {
        let all: Vec<Json> = found.iter().map(Found::json).collect();
        print_json(&json!({ "version": 1, "sources": all, "repaired": verify.repair }))?;
    } else {
        let mut text: String = found.iter().map(|one| one.text(verify.repair)).collect();
        let bytes = found.iter().map(|one| one.bytes).sum();
        text.push_str(&format!("{} sources ({}) read", found.len(), size(bytes)));
        text.push_str(if is_sound { ": all are as recorded\n" } else { "\n" });
        print(&text)?;
    }
    Ok(if is_sound || is_mended { exit::DONE } else { exit::INPUT_DATA })
}

/// Reads a source and compares it with what was recorded, if it is frozen.
fn look(sources: &Sources, path: &std::path::Path, pattern: String, is_frozen: bool, repair: bool) -> Found {
    let mut found = Found { pattern, is_frozen, bytes: 0, changes: Vec::new(), missing: None };
    let (base, text) = (path.parent().unwrap_or(path), path.to_string_lossy());
    let (mut before, mut now) = (Digests::new(), Digests::new());
    let keep = |digests: &mut Digests, path: &str, digest| _ = digests.insert(path.to_owned(), digest);
    let recorded =
        if is_frozen { sources.recorded(path, |path, digest| keep(&mut before, path, digest)) } else { None };
    if recorded.is_none() {
        // What was read of a damaged record is nothing to compare with.
        before.clear();
    }
    let hashed = sources.hash_again(base, &text, |path, digest| {
        if recorded.is_some() {
            keep(&mut now, path, digest);
        }
    });
    let hashed = match hashed {
        Ok(_) if is_frozen && repair => sources.refreeze(base, &text),
        hashed => hashed,
    };
    match hashed {
        Ok(source) => {
            found.bytes = source.files.iter().map(|file| file.bytes).sum();
            found.changes = changes(&before, &now);
        }
        Err(error) => found.missing = Some(error.reason),
    }
    found
}

/// Of the files of a source, by path.
type Digests = BTreeMap<String, Digest>;

/// What is different, by path.
fn changes(recorded: &Digests, now: &Digests) -> Vec<(String, &'static str)> {
    let mut changes: Vec<(String, &'static str)> = Vec::new();
    for (path, digest) in recorded {
        match now.get(path) {
            None => changes.push((path.clone(), "is gone")),
            Some(other) if other != digest => changes.push((path.clone(), "has another content")),
            Some(_) => {}
        }
    }
    let new = now.keys().filter(|path| !recorded.contains_key(*path));
    changes.extend(new.map(|path| (path.clone(), "is new")));
    changes.sort();
    changes
}
