//! The pipeline file and what it includes, merged into one document.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::diagnostic::Diagnostic;
use super::item::{self, Entry, Item, ItemValue, Table};
use super::{is_name, suggestion};
use crate::pipeline::{Origin, SourceFile};

/// A pipeline file is text that a person wrote; what is larger is something else.
const FILE_LIMIT: u64 = 16 << 20;
const VERSION: i64 = 1;

/// All sections of all files.
#[derive(Default)]
pub(crate) struct Document {
    /// `[pipeline] name`, if it is legal.
    pub(crate) name: Option<String>,
    pub(crate) vars: Table,
    pub(crate) stages: Table,
    /// Profile name to its tables; profiles of one name merge.
    pub(crate) profiles: BTreeMap<String, Profile>,
    pub(crate) executor: Table,
}

#[derive(Default)]
pub(crate) struct Profile {
    pub(crate) vars: Table,
    pub(crate) set: Table,
}

pub(crate) struct Files {
    pub(crate) document: Document,
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Reads the file at `path` and its includes.
pub(crate) fn read(path: &Path) -> Files {
    let mut files = Files { document: Document::default(), sources: Vec::new(), diagnostics: Vec::new() };
    let Some(root) = files.open(path, &Origin::Default) else { return files };
    files.pipeline_section(&root);
    files.merge(&root, true);
    let mut chain = vec![canonical(path)];
    files.includes(&root, path, &mut chain);
    files
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

impl Files {
    fn open(&mut self, path: &Path, from: &Origin) -> Option<Table> {
        let text = std::fs::metadata(path).map_err(|error| error.to_string()).and_then(|metadata| {
            if metadata.len() > FILE_LIMIT {
                return Err(format!(
                    "it has {} bytes; a pipeline file has at most {FILE_LIMIT}",
                    metadata.len()
                ));
            }
            let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
            String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
        });
        match text {
            Ok(text) => {
                let file = self.sources.len();
                let table = item::parse(file, &text, &mut self.diagnostics);
                self.sources.push(SourceFile { path: path.to_owned(), text });
                Some(table)
            }
            Err(reason) => {
                let message = format!("cannot read `{}`: {reason}", path.display());
                self.diagnostics.push(Diagnostic::new("E011", from, message));
                None
            }
        }
    }

    fn pipeline_section(&mut self, root: &Table) {
        let start = Origin::File { file: 0, span: 0..0, profile: None };
        let Some(entry) = root.entry("pipeline") else {
            self.diagnostics.push(
                Diagnostic::new("E010", &start, "the file has no `[pipeline]` section")
                    .help("begin with `[pipeline]`, `name = \"...\"` and `format = 1`".to_owned()),
            );
            return;
        };
        let Some(section) = entry.item.as_table() else {
            self.diagnostics.push(Diagnostic::new(
                "E003",
                &entry.item.origin,
                "`pipeline` has to be a table",
            ));
            return;
        };
        for entry in section.iter() {
            if !["name", "format", "include", "doc"].contains(&entry.key.as_str()) {
                self.unknown_key(entry, ["name", "format", "include", "doc"]);
            }
        }
        match section.get("format") {
            Some(Item { value: ItemValue::Integer(VERSION), .. }) => {}
            Some(item) => self.diagnostics.push(
                Diagnostic::new(
                    "E017",
                    &item.origin,
                    format!("format {} is not known to this program", item.display()),
                )
                .help(format!("write `format = {VERSION}`")),
            ),
            None => self.diagnostics.push(
                Diagnostic::new("E010", &entry.key_origin, "`format` is missing")
                    .help(format!("write `format = {VERSION}`")),
            ),
        }
        match section.get("name") {
            Some(item) => {
                let legal = item.as_str().filter(|name| {
                    name.len() <= 64
                        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                        && name
                            .chars()
                            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
                });
                self.document.name = legal.map(str::to_owned);
                if legal.is_none() {
                    let message = format!("{} cannot name a pipeline", item.display());
                    self.diagnostics.push(
                        Diagnostic::new("E015", &item.origin, message)
                            .help("a name is [a-z0-9][a-z0-9_-]{0,63}".to_owned()),
                    );
                }
            }
            None => self.diagnostics.push(Diagnostic::new("E010", &entry.key_origin, "`name` is missing")),
        }
    }

    fn unknown_key<'a>(&mut self, entry: &Entry, known: impl IntoIterator<Item = &'a str>) {
        let message = format!("unknown key `{}`", entry.key);
        self.diagnostics
            .push(Diagnostic::new("E002", &entry.key_origin, message).help(suggestion(&entry.key, known)));
    }

    /// Adds the sections of one file; the same key set by two files is a mistake.
    fn merge(&mut self, table: &Table, is_root: bool) {
        const SECTIONS: [&str; 5] = ["pipeline", "vars", "stage", "profile", "executor"];
        for entry in table.iter() {
            match entry.key.as_str() {
                "pipeline" if is_root => {}
                "pipeline" => self.diagnostics.push(Diagnostic::new(
                    "E002",
                    &entry.key_origin,
                    "an included file has no `[pipeline]` section of its own",
                )),
                "vars" | "stage" | "executor" | "profile" => self.merge_section(entry),
                _ => self.unknown_key(entry, SECTIONS),
            }
        }
    }

    fn merge_section(&mut self, section: &Entry) {
        let Some(table) = section.item.as_table() else {
            let message =
                format!("`{}` has to be a table, this is {}", section.key, section.item.type_name());
            self.diagnostics.push(Diagnostic::new("E003", &section.item.origin, message));
            return;
        };
        for entry in table.iter() {
            if section.key != "executor" && section.key != "profile" && !is_name(&entry.key) {
                let message = format!("`{}` is not a legal name", entry.key);
                self.diagnostics.push(
                    Diagnostic::new("E015", &entry.key_origin, message)
                        .help("a name is [a-z][a-z0-9_]*".to_owned()),
                );
            }
            if section.key == "profile" {
                self.merge_profile(entry);
                continue;
            }
            let target = match section.key.as_str() {
                "vars" => &mut self.document.vars,
                "stage" => &mut self.document.stages,
                _ => &mut self.document.executor,
            };
            if let Some(previous) = target.entry(&entry.key) {
                let diagnostic = set_twice(&entry.key, &entry.key_origin, &previous.key_origin);
                self.diagnostics.push(diagnostic);
            } else {
                target.insert(entry.clone());
            }
        }
    }

    fn merge_profile(&mut self, entry: &Entry) {
        let Some(table) = entry.item.as_table() else {
            let message = format!("a profile has to be a table, this is {}", entry.item.type_name());
            self.diagnostics.push(Diagnostic::new("E003", &entry.item.origin, message));
            return;
        };
        let profile = self.document.profiles.entry(entry.key.clone()).or_default();
        for section in table.iter() {
            let target = match section.key.as_str() {
                "vars" => &mut profile.vars,
                "set" => &mut profile.set,
                _ => {
                    let message = format!("unknown key `{}`", section.key);
                    self.diagnostics.push(
                        Diagnostic::new("E002", &section.key_origin, message)
                            .help(suggestion(&section.key, ["vars", "set"])),
                    );
                    continue;
                }
            };
            let Some(values) = section.item.as_table() else {
                let message = format!("`{}` has to be a table", section.key);
                self.diagnostics.push(Diagnostic::new("E003", &section.item.origin, message));
                continue;
            };
            for value in values.iter() {
                let mut value = value.clone();
                mark_profile(&mut value.item, &entry.key);
                if let Some(previous) = target.entry(&value.key) {
                    self.diagnostics.push(set_twice(&value.key, &value.key_origin, &previous.key_origin));
                } else {
                    target.insert(value);
                }
            }
        }
    }

    fn includes(&mut self, table: &Table, path: &Path, chain: &mut Vec<PathBuf>) {
        let include =
            table.get("pipeline").and_then(Item::as_table).and_then(|section| section.get("include"));
        let Some(include) = include else { return };
        let Some(patterns) = include.as_list() else {
            self.diagnostics.push(Diagnostic::new(
                "E003",
                &include.origin,
                "`include` has to be a list of paths",
            ));
            return;
        };
        let folder = path.parent().unwrap_or(Path::new("."));
        for pattern in patterns {
            let Some(text) = pattern.as_str() else {
                self.diagnostics.push(Diagnostic::new("E003", &pattern.origin, "a path is a string"));
                continue;
            };
            let paths = matching(folder, text);
            if paths.is_empty() {
                let message = format!("no file matches `{}`", folder.join(text).display());
                self.diagnostics.push(Diagnostic::new("E011", &pattern.origin, message));
            }
            for path in paths {
                let canonical = canonical(&path);
                if chain.contains(&canonical) {
                    let message = format!("`{}` is included twice", path.display());
                    self.diagnostics.push(Diagnostic::new("E011", &pattern.origin, message));
                    continue;
                }
                chain.push(canonical);
                if let Some(table) = self.open(&path, &pattern.origin) {
                    self.merge(&table, false);
                }
            }
        }
    }
}

fn set_twice(key: &str, origin: &Origin, previous: &Origin) -> Diagnostic {
    Diagnostic::new("E007", origin, format!("`{key}` is set twice")).also(previous, "set here first")
}

/// Remembers in every part of a value that a profile set it.
fn mark_profile(item: &mut Item, name: &str) {
    if let Origin::File { profile, .. } = &mut item.origin {
        *profile = Some(name.to_owned());
    }
    if let ItemValue::List(items) = &mut item.value {
        items.iter_mut().for_each(|item| mark_profile(item, name));
    }
}

/// The files of a relative path whose last component may hold `*`, sorted bytewise.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = folder.join(pattern);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name.contains('*') {
        return vec![path];
    }
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut names: Vec<String> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|candidate| super::select::glob(&name, candidate))
        .collect();
    names.sort_unstable();
    names.into_iter().map(|name| parent.join(name)).collect()
}
