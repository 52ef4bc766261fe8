//! From TOML text to a validated [`Pipeline`].
//!
//! Nothing here stops at the first mistake: every step returns what it could understand and adds what
//! it could not to one list of diagnostics, each with its place. The order of the steps is
//!
//! 1. `files`: the pipeline file and what it includes, parsed into [`item::Item`]s that keep the origin
//!    of every value;
//! 2. `overrides`: profiles, then `--var`, then `--set`;
//! 3. `matrix`: the axis assignments of each stage;
//! 4. `expand`: templates, kind, parameters and resources of each node;
//! 5. `connect`: what each input refers to;
//! 6. `check`: cycles, artifact types, colliding results, names that nothing uses.

mod check;
mod checkpoint;
mod connect;
mod diagnostic;
mod executor;
mod expand;
mod files;
mod handbook;
mod item;
mod matrix;
mod order;
mod overrides;
mod params;
pub(crate) mod quantity;
mod reference;
mod remote;
mod render;
mod resources;
mod retry;
mod schema;
mod select;
mod slurm;
mod template;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use diagnostic::{Diagnostic, Label, Severity};
pub use handbook::reference;
pub use render::{render_json, render_text};
pub use schema::schema;
pub use select::select;
pub(crate) use select::{means, parts_of};

use crate::kind::Registry;
use crate::pipeline::{Limits, Pipeline, SourceFile};

/// What the command line adds to the file.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// `--profile`, in order.
    pub profiles: Vec<String>,
    /// `--var name=value`.
    pub vars: Vec<String>,
    /// `--set path=value`.
    pub sets: Vec<String>,
    /// What there is where the study does not say; `None`: what this machine has.
    pub limits: Option<Limits>,
    /// `--executor`.
    pub executor: Option<String>,
}

/// The outcome of [`load`].
pub struct Loaded {
    /// The study, if there was no error.
    pub pipeline: Option<Pipeline>,
    /// Everything that is wrong or doubtful, sorted by place.
    pub diagnostics: Vec<Diagnostic>,
    /// The files read, for rendering.
    pub sources: Vec<SourceFile>,
}

impl Loaded {
    /// Whether any diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }
}

/// Reads and validates the study at `path`. Reads no source data and runs nothing.
pub fn load(path: &Path, options: &LoadOptions, registry: &Registry) -> Loaded {
    let mut files = files::read(path);
    let mut diagnostics = std::mem::take(&mut files.diagnostics);
    let sources = std::mem::take(&mut files.sources);
    overrides::apply(&mut files.document, options, &mut diagnostics);
    let machine = options.limits.clone().unwrap_or_else(Limits::of_this_machine);
    let expanded = expand::expand(
        &files.document,
        registry,
        (machine, options.executor.as_deref()),
        &sources,
        &mut diagnostics,
    );
    check::check(&files.document, &expanded, &mut diagnostics);
    diagnostics.sort_by(|a, b| a.place().cmp(&b.place()));
    diagnostics.dedup();
    keep_first_of_broken_lines(&mut diagnostics, &sources);
    if files.lacks_some {
        // Names that nothing has may be those of a file that cannot be read.
        diagnostics.retain(|one| one.code != "E002");
    }
    let mut loaded = Loaded { pipeline: None, diagnostics, sources };
    if !loaded.has_errors() {
        let pipeline = Pipeline {
            name: files.document.name.unwrap_or_default(),
            path: path.to_owned(),
            project: project_root(path),
            profiles: options.profiles.clone(),
            executor: expanded.executor,
            remote: expanded.remote,
            sources: loaded.sources.clone(),
            stages: expanded.stages,
            nodes: expanded.nodes,
        };
        loaded.pipeline = Some(pipeline);
    }
    loaded
}

/// Adds, as warnings, what would be wrong if each profile that was not chosen were chosen alone: most of what such a
/// profile sets is looked at only when its nodes are made.
pub fn try_profiles(path: &Path, options: &LoadOptions, registry: &Registry, loaded: &mut Loaded) {
    if loaded.has_errors() {
        return;
    }
    let names = files::read(path).document.profiles.into_keys();
    for name in names.filter(|name| !options.profiles.contains(name)) {
        let tried = load(path, &LoadOptions { profiles: vec![name.clone()], ..options.clone() }, registry);
        let errors = tried.diagnostics.into_iter().filter(|one| one.severity == Severity::Error);
        for error in errors {
            // What addresses nothing at all was told already.
            let is_told = loaded.diagnostics.iter().any(|one| one.place().0 == error.place().0);
            if !is_told {
                loaded.diagnostics.push(error.downgrade("W101", format!("profile `{name}`")));
            }
        }
    }
    loaded.diagnostics.sort_by(|a, b| a.place().cmp(&b.place()));
}

/// In a line that is not TOML, whatever else is wrong follows from that.
fn keep_first_of_broken_lines(diagnostics: &mut Vec<Diagnostic>, sources: &[SourceFile]) {
    let line = |diagnostic: &Diagnostic| {
        let label = diagnostic.primary.as_ref()?;
        let before = sources.get(label.file)?.text.get(..label.span.start)?;
        Some((label.file, before.rfind('\n')))
    };
    let broken: BTreeSet<_> = diagnostics.iter().filter(|one| one.code == "E001").filter_map(line).collect();
    if broken.is_empty() {
        return;
    }
    let mut reported = BTreeSet::new();
    diagnostics.retain(|one| match line(one) {
        Some(line) if broken.contains(&line) => one.code == "E001" && reported.insert(line),
        _ => true,
    });
}

/// The nearest ancestor of the pipeline file that holds `.pipe/` or `.git`, else its folder.
pub(crate) fn project_root(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = absolute.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
    folder
        .ancestors()
        .find(|folder| folder.join(".pipe").is_dir() || folder.join(".git").exists())
        .map_or_else(|| folder.clone(), Path::to_owned)
}

/// The help for an illegal name.
const NAME_HELP: &str = "a name is [a-z][a-z0-9_]*";

/// Whether `name` may name a stage, axis, parameter or output.
fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_lowercase())
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The help for an unknown name: the nearest known one, or the whole list if it is short.
pub(crate) fn suggestion<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let known: Vec<&str> = known.into_iter().collect();
    let nearest = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(unknown, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.chars().count())
        .min();
    match nearest {
        Some((_, nearest)) => Some(format!("did you mean `{nearest}`?")),
        None if known.is_empty() => None,
        None if known.len() <= 8 => Some(format!(
            "known are {}",
            known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        )),
        None => None,
    }
}
