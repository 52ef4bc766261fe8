//! Opening a study: the file, its diagnostics, its places.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use pipe_cache::{Durability, Store};

use super::arguments::{Arguments, FileArguments, Selection};
use super::{CliError, print, print_json};
use crate::action::{self, MissingSource, SourceDigests};
use crate::exit;
use crate::history::History;
use crate::kind::Registry;
use crate::language::{self, Diagnostic, LoadOptions, Severity};
use crate::pipeline::{InputSource, NodeId, Pipeline};
use crate::plan::{Plan, Status, Wanted};
use crate::read_ahead::Reading;
use crate::remote::Fetcher;
use crate::remote::lock::{LockError, LockFile};

/// A loaded study with its places.
pub(crate) struct Study {
    pub(crate) pipeline: Pipeline,
    pub(crate) store_path: PathBuf,
    pub(crate) results: PathBuf,
    /// How diagnostics are printed: for machines, or for people with or without colour.
    json: bool,
    colour: bool,
    /// What the first plan will ask for.
    reading: RefCell<Option<Reading>>,
}

impl Study {
    /// Loads and validates; warnings are printed, errors end the command.
    pub(crate) fn load(arguments: &Arguments, path: &Path, registry: &Registry) -> Result<Self, CliError> {
        Self::load_for(arguments, path, None, registry)
    }

    /// The same for a run by this executor.
    pub(crate) fn load_for(
        arguments: &Arguments,
        path: &Path,
        executor: Option<&str>,
        registry: &Registry,
    ) -> Result<Self, CliError> {
        let global = &arguments.global;
        let project = language::project_root(path);
        let store_path = global.store().unwrap_or_else(|| project.join(".pipe"));
        let reading = Reading::begin(&store_path, path, &global.profile);
        let options = LoadOptions { executor: executor.map(str::to_owned), ..load_options(arguments) };
        let loaded = language::load(path, &options, registry);
        if !loaded.diagnostics.is_empty() {
            let has_errors = loaded.has_errors();
            if has_errors && global.json {
                print_json(&language::render_json(&loaded.diagnostics, &loaded.sources))?;
                return Err(CliError::new(exit::USAGE, ""));
            }
            if has_errors || !global.quiet {
                let text = language::render_text(&loaded.diagnostics, &loaded.sources, global.colour());
                if has_errors {
                    return Err(CliError::new(exit::USAGE, text));
                }
                eprint!("{text}");
            }
        }
        let pipeline = loaded.pipeline.ok_or_else(|| CliError::new(exit::USAGE, "the pipeline is empty"))?;
        let results = global.results().unwrap_or_else(|| project.join("results"));
        let reading = RefCell::new(Some(reading));
        Ok(Self { pipeline, store_path, results, json: global.json, colour: global.colour(), reading })
    }

    /// The store, made if it is not there.
    pub(crate) fn open(&self, durability: Durability) -> Result<Store, CliError> {
        Ok(Store::open(&self.store_path, durability)?)
    }

    /// The store if there is one: commands that only look make nothing.
    pub(crate) fn open_existing(&self) -> Result<Option<Store>, CliError> {
        Ok(Store::open_existing(&self.store_path, Durability::Full)?)
    }

    /// The nodes that a selection wants.
    pub(crate) fn wanted(&self, selection: &Selection) -> Result<Wanted, CliError> {
        let select = |targets: &[String]| -> Result<BTreeSet<NodeId>, CliError> {
            let mut nodes = BTreeSet::new();
            for target in targets {
                nodes.extend(self.select(target)?);
            }
            Ok(nodes)
        };
        let forced = select(&selection.force)?;
        let mut asked = None;
        let mut nodes = if selection.targets.is_empty() {
            None
        } else {
            let targets = select(&selection.targets)?;
            let targets = if selection.downstream {
                Wanted::with_descendants(&self.pipeline, targets)
            } else {
                targets
            };
            asked = Some(targets.clone());
            Some(if selection.only { targets } else { Wanted::with_ancestors(&self.pipeline, targets) })
        };
        let all = || (0..self.pipeline.nodes.len()).map(NodeId).collect::<BTreeSet<NodeId>>();
        if !selection.until.is_empty() {
            let until = Wanted::with_ancestors(&self.pipeline, select(&selection.until)?);
            nodes = Some(nodes.unwrap_or_else(all).intersection(&until).copied().collect());
        }
        if !selection.exclude.is_empty() {
            let out = Wanted::with_descendants(&self.pipeline, select(&selection.exclude)?);
            nodes = Some(nodes.unwrap_or_else(all).difference(&out).copied().collect());
        }
        Ok(Wanted {
            nodes,
            asked,
            forced,
            has_remote: false,
            accept_numerics: selection.accept_numerics.is_some(),
        })
    }

    /// The targets of a selection themselves; none: all nodes.
    pub(crate) fn targets(&self, selection: &Selection) -> Result<Option<BTreeSet<NodeId>>, CliError> {
        let mut nodes = BTreeSet::new();
        for target in &selection.targets {
            nodes.extend(self.select(target)?);
        }
        Ok(Some(nodes).filter(|_| !selection.targets.is_empty()))
    }

    /// The nodes of one target.
    pub(crate) fn select(&self, target: &str) -> Result<Vec<NodeId>, CliError> {
        language::select(&self.pipeline, target).map_err(|diagnostic| {
            let text = language::render_text(
                std::slice::from_ref(&*diagnostic),
                &self.pipeline.sources,
                self.colour,
            );
            CliError::new(exit::USAGE, text)
        })
    }

    /// The nodes of one target, which may end in an output: `NODE.PORT`.
    pub(crate) fn select_ports(&self, target: &str) -> Result<Vec<(NodeId, Option<String>)>, CliError> {
        // Axis values may hold dots, names of outputs do not.
        let end = target.rfind(']').map_or(0, |bracket| bracket + 1);
        let Some((name, port)) = target[end..].split_once('.').map(|(rest, port)| (end + rest.len(), port))
        else {
            return Ok(self.select(target)?.into_iter().map(|id| (id, None)).collect());
        };
        let nodes = self.select(&target[..name])?;
        for id in &nodes {
            let known = || self.pipeline.nodes[id.0].outputs.iter().map(|output| output.name.as_str());
            if !known().any(|name| name == port) {
                let text = format!("error: `{}` has no output `{port}`", self.pipeline.nodes[id.0].name);
                let mut error = CliError::new(exit::USAGE, text);
                error.hint = language::suggestion(port, known());
                return Err(error);
            }
        }
        Ok(nodes.into_iter().map(|id| (id, Some(port.to_owned()))).collect())
    }

    /// Whether any node reads a remote source.
    pub(crate) fn reads_remotes(&self) -> bool {
        self.pipeline.nodes.iter().any(|node| action::remotes(node).next().is_some())
    }

    /// Where the lock file lies.
    pub(crate) fn lock_path(&self) -> PathBuf {
        LockFile::beside(&self.pipeline.path)
    }

    /// Reads the external sources of what is wanted; all that are missing are named at once.
    fn read_sources(&self, store: Option<&Store>, wanted: &Wanted) -> Result<SourceDigests, CliError> {
        let (sources, missing) = self.try_sources(store, wanted)?;
        if missing.is_empty() { Ok(sources) } else { Err(self.missing_sources(&missing)) }
    }

    /// Hashes the local sources of what is wanted and looks the remote ones up in the lock file; beside
    /// them what is missing.
    pub(crate) fn try_sources(
        &self,
        store: Option<&Store>,
        wanted: &Wanted,
    ) -> Result<(SourceDigests, Vec<MissingSource>), CliError> {
        let needed = wanted.with_what_they_need(&self.pipeline);
        let is_needed = |index: usize| needed.as_ref().is_none_or(|needed| needed.contains(&NodeId(index)));
        let nodes = self.pipeline.nodes.iter().enumerate();
        let nodes = nodes.filter(|(index, _)| is_needed(*index)).map(|(_, node)| node);
        // Without a store there is no memory of what was hashed before.
        let sources = store.map_or_else(pipe_cache::Sources::without_memory, Store::sources);
        // A study without remote sources has no lock file, whatever lies there.
        let lock =
            if self.reads_remotes() { LockFile::read(&self.lock_path())? } else { LockFile::default() };
        Ok(SourceDigests::read(nodes, &sources, &lock, store))
    }

    /// The sources that actions of a plan read and that are not on this machine.
    pub(crate) fn absent_sources(
        &self,
        store: &Store,
        plan: &Plan,
        sources: &SourceDigests,
        fetcher: &Fetcher,
    ) -> Vec<MissingSource> {
        let runs = |index: &usize| matches!(plan.status[*index], Status::Run(_));
        let mut missing = Vec::new();
        for node in (0..self.pipeline.nodes.len()).filter(runs).map(|index| &self.pipeline.nodes[index]) {
            for input in &node.inputs {
                for remote in input.sources.iter().filter_map(|source| match source {
                    InputSource::Remote(remote) => Some(remote),
                    _ => None,
                }) {
                    let Some(pinned) = sources.pinned(remote) else { continue };
                    let revision = pinned.revision.as_deref();
                    let mut files = pinned.files.iter().map(|(_, file)| file);
                    if let Some(file) = files.find(|file| !fetcher.is_local(store, remote, revision, file)) {
                        missing.push(MissingSource {
                            source: remote.text().to_owned(),
                            origin: input.origin.clone(),
                            node: node.name.clone(),
                            reason: format!(
                                "`{}` is not in the store, and `--offline` forbids to fetch it",
                                file.path
                            ),
                            help: vec!["run once without `--offline`".to_owned()],
                        });
                    }
                }
            }
        }
        missing
    }

    pub(crate) fn missing_sources(&self, missing: &[MissingSource]) -> CliError {
        let diagnostics: Vec<Diagnostic> = missing
            .iter()
            .map(|source| {
                let MissingSource { source, origin, node, reason, help } = source;
                let message = format!("node `{node}` reads `{source}`: {reason}");
                let diagnostic = Diagnostic::new("E012", origin, message);
                help.iter().fold(diagnostic, |diagnostic, help| diagnostic.help(help.clone()))
            })
            .collect();
        let sources = &self.pipeline.sources;
        if self.json {
            return match print_json(&language::render_json(&diagnostics, sources)) {
                Ok(_) => CliError::new(exit::INPUT_DATA, ""),
                Err(error) => error,
            };
        }
        CliError::new(exit::INPUT_DATA, language::render_text(&diagnostics, sources, self.colour))
    }

    /// The plan, as `run` would make it.
    pub(crate) fn plan(
        &self,
        store: Option<&Store>,
        wanted: &Wanted,
        numerics: &str,
    ) -> Result<(Plan, SourceDigests, History), CliError> {
        let sources = self.read_sources(store, wanted)?;
        let history = match store {
            Some(store) => History::read(store, &self.pipeline)?,
            None => History::none(),
        };
        let reading = self.reading.borrow_mut().take();
        let ahead = reading.map(Reading::finish).unwrap_or_default();
        if let Some(store) = store {
            store.also_looked(ahead.looked());
        }
        let plan = Plan::make(&self.pipeline, store, &sources, numerics, wanted, &history, ahead)?;
        if let Some((node, input)) = plan.without_input(&self.pipeline) {
            let name = |id: NodeId| self.pipeline.nodes[id.0].name.as_str();
            let text = format!("error: `{}` reads `{}`, which has no result", name(node), name(input));
            let mut error = CliError::new(exit::USAGE, text);
            error.hint = Some("leave `--only` out to make it first".to_owned());
            return Err(error);
        }
        Ok((plan, sources, history))
    }
}

impl From<LockError> for CliError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Io { .. } => Self::environment("the lock file cannot be used", &error),
            LockError::Content { .. } => {
                let mut failure = Self::new(exit::USAGE, format!("error: {error}"));
                failure.hint =
                    Some("take it from version control, or remove it to read all sources anew".to_owned());
                failure
            }
        }
    }
}

/// The store of a pipeline file's project, or of this folder's: opened to be changed, or only to be looked
/// at. None if there is none.
pub(crate) fn open_store(
    arguments: &Arguments,
    pipeline: Option<&Path>,
    to_change: bool,
) -> Result<Option<Store>, CliError> {
    // The file need not be valid, nor be there: a store can be looked after without it.
    let anchor = pipeline.map_or_else(|| PathBuf::from("pipeline.toml"), Path::to_owned);
    let path = arguments.global.store().unwrap_or_else(|| language::project_root(&anchor).join(".pipe"));
    match Store::open_existing(&path, Durability::Full)? {
        Some(_) if to_change => Ok(Some(Store::open(&path, Durability::Full)?)),
        other => Ok(other),
    }
}

fn load_options(arguments: &Arguments) -> LoadOptions {
    LoadOptions {
        profiles: arguments.global.profile.clone(),
        vars: arguments.global.var.clone(),
        sets: arguments.global.set.clone(),
        limits: None,
        executor: None,
    }
}

/// `pipe check`.
pub(crate) fn check(
    arguments: &Arguments,
    file: &FileArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let mut loaded = language::load(&file.pipeline, &load_options(arguments), registry);
    language::try_profiles(&file.pipeline, &load_options(arguments), registry, &mut loaded);
    let code = if loaded.has_errors() { exit::USAGE } else { exit::DONE };
    if arguments.global.json {
        print_json(&language::render_json(&loaded.diagnostics, &loaded.sources))?;
        return Ok(code);
    }
    eprint!("{}", language::render_text(&loaded.diagnostics, &loaded.sources, arguments.global.colour()));
    if let Some(pipeline) = &loaded.pipeline
        && !arguments.global.quiet
    {
        let warnings = loaded.diagnostics.iter().filter(|one| one.severity == Severity::Warning).count();
        let note = if warnings == 0 { "no mistakes" } else { "no errors" };
        print(&format!(
            "{}: {} stages, {} nodes, {note}\n",
            file.pipeline.display(),
            pipeline.stages.len(),
            pipeline.nodes.len()
        ))?;
    }
    Ok(code)
}
