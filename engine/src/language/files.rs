//! The pipeline file and what it includes, merged into one document.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::diagnostic::Diagnostic;
use super::item::{self, Entry, Item, ItemValue, Table};
use super::overrides::Override;
use super::{NAME_HELP, executor, is_name, remote, suggestion};
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
    /// The values of `[executor.local]` by their paths.
    pub(crate) executor: Table,
    /// The values of `[remote]`.
    pub(crate) remote: Table,
    /// Profile name to its tables; profiles of one name merge.
    pub(crate) profiles: BTreeMap<String, Profile>,
    /// What `set` and `--set` change, by stage, in rising precedence.
    pub(crate) overrides: BTreeMap<String, Vec<Override>>,
}

#[derive(Default)]
pub(crate) struct Profile {
    pub(crate) vars: Table,
    pub(crate) set: Table,
    /// As in [`Document::executor`].
    pub(crate) executor: Table,
    /// As in [`Document::remote`].
    pub(crate) remote: Table,
}

pub(crate) struct Files {
    pub(crate) document: Document,
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Whether a file that is named could not be read.
    pub(crate) lacks_some: bool,
}

/// Reads the file at `path` and its includes.
pub(crate) fn read(path: &Path) -> Files {
    let mut files = Files {
        document: Document::default(),
        sources: Vec::new(),
        diagnostics: Vec::new(),
        lacks_some: false,
    };
    let Some(root) = files.open(path, &Origin::Default) else { return files };
    files.pipeline_section(&root);
    let section = root.get("pipeline").and_then(Item::as_table);
    let include = section.and_then(|section| section.get("include")).cloned();
    files.merge(root, true);
    if let Some(include) = include {
        files.includes(&include, path);
    }
    files
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Whether `name` may name a pipeline or a profile, and so a folder of results.
fn is_folder_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 64 && name.starts_with(letter) && name.chars().all(|c| letter(c) || c == '_' || c == '-')
}

fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(format!("a pipeline file has at most {FILE_LIMIT} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

impl Files {
    fn open(&mut self, path: &Path, from: &Origin) -> Option<Table> {
        match read_text(path) {
            Ok(text) => {
                let file = self.sources.len();
                let table = item::parse(file, &text, &mut self.diagnostics);
                self.sources.push(SourceFile { path: path.to_owned(), text });
                Some(table)
            }
            Err(reason) => {
                let message = format!("cannot read `{}`: {reason}", path.display());
                self.diagnostics.push(Diagnostic::new("E011", from, message));
                self.lacks_some = true;
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
                let legal = item.as_str().filter(|name| is_folder_name(name));
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
    fn merge(&mut self, table: Table, is_root: bool) {
        const SECTIONS: [&str; 6] = ["pipeline", "vars", "stage", "profile", "executor", "remote"];
        for entry in table {
            match entry.key.as_str() {
                "pipeline" if is_root => {}
                "pipeline" => self.diagnostics.push(Diagnostic::new(
                    "E002",
                    &entry.key_origin,
                    "an included file has no `[pipeline]` section of its own",
                )),
                "vars" | "stage" | "profile" => self.merge_section(entry),
                "executor" => {
                    for value in executor::flatten(&entry.item, &mut self.diagnostics) {
                        insert_once(&mut self.document.executor, value, &mut self.diagnostics);
                    }
                }
                "remote" => {
                    for value in remote::flatten(&entry.item, &mut self.diagnostics) {
                        insert_once(&mut self.document.remote, value, &mut self.diagnostics);
                    }
                }
                _ => self.unknown_key(&entry, SECTIONS),
            }
        }
    }

    fn merge_section(&mut self, section: Entry) {
        let found = section.item.type_name();
        let ItemValue::Table(table) = section.item.value else {
            let message = format!("`{}` has to be a table, this is {found}", section.key);
            self.diagnostics.push(Diagnostic::new("E003", &section.item.origin, message));
            return;
        };
        for entry in table {
            if section.key != "profile" && !is_name(&entry.key) {
                let message = format!("`{}` is not a legal name", entry.key);
                self.diagnostics
                    .push(Diagnostic::new("E015", &entry.key_origin, message).help(NAME_HELP.to_owned()));
            }
            if section.key == "profile" {
                self.merge_profile(&entry);
                continue;
            }
            let target = match section.key.as_str() {
                "vars" => &mut self.document.vars,
                _ => &mut self.document.stages,
            };
            insert_once(target, entry, &mut self.diagnostics);
        }
    }

    fn merge_profile(&mut self, entry: &Entry) {
        // The name becomes part of the results folder's.
        if !is_folder_name(&entry.key) {
            let message = format!("`{}` cannot name a profile", entry.key);
            let help = "a profile's name is [a-z0-9][a-z0-9_-]{0,63}".to_owned();
            self.diagnostics.push(Diagnostic::new("E015", &entry.key_origin, message).help(help));
            return;
        }
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
                "executor" => {
                    for mut value in executor::flatten(&section.item, &mut self.diagnostics) {
                        mark_profile(&mut value.item, &entry.key);
                        insert_once(&mut profile.executor, value, &mut self.diagnostics);
                    }
                    continue;
                }
                "remote" => {
                    for mut value in remote::flatten(&section.item, &mut self.diagnostics) {
                        mark_profile(&mut value.item, &entry.key);
                        insert_once(&mut profile.remote, value, &mut self.diagnostics);
                    }
                    continue;
                }
                _ => {
                    let message = format!("unknown key `{}`", section.key);
                    self.diagnostics.push(
                        Diagnostic::new("E002", &section.key_origin, message)
                            .help(suggestion(&section.key, ["vars", "set", "executor", "remote"])),
                    );
                    continue;
                }
            };
            let Some(values) = section.item.as_table() else {
                let message = format!("`{}` has to be a table", section.key);
                self.diagnostics.push(Diagnostic::new("E003", &section.item.origin, message));
                continue;
            };
            let values: Vec<Entry> = match section.key.as_str() {
                "set" => values.iter().flat_map(flat_path).collect(),
                _ => values.iter().cloned().collect(),
            };
            for mut value in values {
                mark_profile(&mut value.item, &entry.key);
                insert_once(target, value, &mut self.diagnostics);
            }
        }
    }

    fn includes(&mut self, include: &Item, path: &Path) {
        let Some(patterns) = include.as_list() else {
            let message = "`include` has to be a list of paths";
            self.diagnostics.push(Diagnostic::new("E003", &include.origin, message));
            return;
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let start = Origin::File { file: 0, span: 0..0, profile: None };
        let mut read: Vec<(PathBuf, Origin)> = vec![(canonical(path), start)];
        for pattern in patterns {
            let Some(text) = pattern.as_str() else {
                self.diagnostics.push(Diagnostic::new("E003", &pattern.origin, "a path is a string"));
                continue;
            };
            let paths = matching(folder, text);
            if paths.is_empty() {
                let message = format!("no file matches `{}`", folder.join(text).display());
                self.diagnostics.push(Diagnostic::new("E011", &pattern.origin, message));
                self.lacks_some = true;
            }
            for path in paths {
                let canonical = canonical(&path);
                if let Some(place) = read.iter().position(|(other, _)| *other == canonical) {
                    let diagnostic = if place == 0 {
                        let message = format!("`{}` includes itself", path.display());
                        Diagnostic::new("E011", &pattern.origin, message)
                    } else {
                        let message = format!("`{}` is included twice", path.display());
                        Diagnostic::new("E011", &pattern.origin, message).also(&read[place].1, "here first")
                    };
                    self.diagnostics.push(diagnostic);
                    continue;
                }
                read.push((canonical, pattern.origin.clone()));
                if let Some(table) = self.open(&path, &pattern.origin) {
                    self.merge(table, false);
                }
            }
        }
    }
}

/// Adds an entry; a key that is there already is a mistake.
fn insert_once(table: &mut Table, entry: Entry, diagnostics: &mut Vec<Diagnostic>) {
    match table.entry(&entry.key) {
        Some(previous) => {
            let message = format!("`{}` is set twice", entry.key);
            let diagnostic = Diagnostic::new("E007", &entry.key_origin, message);
            diagnostics.push(diagnostic.also(&previous.key_origin, "set here first"));
        }
        None => _ = table.insert(entry),
    }
}

/// `stage.NAME.section.key = value` written without quotes is a table of tables: the same paths.
fn flat_path(entry: &Entry) -> Vec<Entry> {
    let mut level = vec![entry.clone()];
    if entry.key != "stage" {
        return level;
    }
    for _ in ["NAME", "section", "key"] {
        level = level
            .into_iter()
            .flat_map(|outer| match outer.item.as_table() {
                Some(table) => table
                    .iter()
                    .map(|inner| Entry { key: format!("{}.{}", outer.key, inner.key), ..inner.clone() })
                    .collect(),
                None => vec![outer],
            })
            .collect();
    }
    level
}

/// Remembers in every part of a value that a profile set it.
fn mark_profile(item: &mut Item, name: &str) {
    if let Origin::File { profile, .. } = &mut item.origin {
        *profile = Some(name.to_owned());
    }
    match &mut item.value {
        ItemValue::List(items) => items.iter_mut().for_each(|item| mark_profile(item, name)),
        ItemValue::Table(table) => table.items_mut().for_each(|item| mark_profile(item, name)),
        _ => {}
    }
}

/// The files that a relative path names, in whose components `*` stands for any characters; sorted
/// bytewise.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![folder.to_owned()];
    for component in Path::new(pattern).components() {
        let name = component.as_os_str();
        let Some(glob) = name.to_str().filter(|name| name.contains('*')) else {
            paths.iter_mut().for_each(|path| path.push(name));
            continue;
        };
        paths = paths
            .iter()
            .flat_map(|path| {
                let folder = if path.as_os_str().is_empty() { Path::new(".") } else { path };
                std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| {
                    let name = entry.ok()?.file_name();
                    let matches = name.to_str().is_some_and(|name| super::select::glob(glob, name));
                    matches.then(|| path.join(&name))
                })
            })
            .collect();
    }
    if pattern.contains('*') {
        paths.retain(|path| path.is_file());
    }
    paths.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    paths
}
