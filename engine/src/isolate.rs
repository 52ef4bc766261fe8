//! `isolate = true`: an action in a process of its own, so that whatever happens to its memory happens to it
//! alone.
//!
//! The child is this same program. It finds a request in the scratch folder of the attempt, executes the stage
//! on the files that are named there, and leaves an answer beside it; what it tells meanwhile are lines of JSON
//! on its standard output, and its standard error is the log. It commits nothing: the staging, the lease and
//! the record are the parent's, so a child that dies is an attempt that failed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pipe_cache::{Digest, Durability, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::ancestry::Ancestor;
use crate::artifact::{Artifact, InputArtifact};
use crate::attempt::{AttemptError, chain, is_no_space, panic_text};
use crate::checkpoints::Checkpoints;
use crate::context::{OutputWriter, StageContext, StageHost, TablePart};
use crate::error::StageError;
use crate::kind::{Registry, ResolvedParams};
use crate::pipeline::CheckpointEvery;
use crate::program::Program;
use crate::workers::{Worker, Workers};

/// How long a child has to reach a safe point when it is to stop.
const GRACE: Duration = Duration::from_secs(30);

/// The folder of the conversation, in the scratch folder of the attempt: what else is there is the stage's.
const FOLDER: &str = "isolated";
const REQUEST: &str = "request.json";
const ANSWER: &str = "answer.json";

/// What a child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) node: String,
    pub(crate) kind: String,
    /// With defaults.
    pub(crate) params: Json,
    pub(crate) inputs: BTreeMap<String, Vec<InputArtifact>>,
    pub(crate) lists: BTreeSet<String>,
    /// The folders of the output ports.
    pub(crate) outputs: BTreeMap<String, PathBuf>,
    /// What the parts gave, if they are to be merged.
    pub(crate) partials: Option<BTreeMap<String, Vec<Artifact>>>,
    pub(crate) is_part: bool,
    pub(crate) threads: usize,
    pub(crate) gpus: Vec<usize>,
    pub(crate) memory: Option<u64>,
    pub(crate) scratch: PathBuf,
    pub(crate) provenance: String,
    pub(crate) ancestry: Vec<Ancestor>,
    pub(crate) checkpoints: CheckpointRequest,
}

/// Where a child keeps its state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointRequest {
    pub(crate) store: PathBuf,
    pub(crate) is_durable: bool,
    pub(crate) key: Digest,
    pub(crate) keep: usize,
    pub(crate) every: CheckpointEvery,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    outcome: Result<Outputs, Failure>,
}

/// By port, the parts of what is a table.
pub(crate) type Outputs = BTreeMap<String, Option<Vec<TablePart>>>;

/// An error on its way to the parent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Cancelled,
    InputData { path: PathBuf, reason: String },
    Environment { doing: String, cause: String, code: Option<i32> },
    OutOfMemory(String),
    Signalled { program: String, signal: i32 },
    Failed { message: String },
    NoSpace { message: String },
    Panic { message: String },
    Timeout(u64),
}

/// What a child tells while it works.
#[derive(Debug, Serialize, Deserialize)]
enum News {
    Progress { done: u64, total: u64, unit: String, figures: Vec<(String, f64)> },
    Warning(String),
    Checkpoint(u64),
    Resumed(u64),
    Count { what: String, number: u64 },
}

/// Executes an action in a child.
pub(crate) fn execute(request: &Request, host: &dyn StageHost) -> Result<Outputs, AttemptError> {
    let answer = converse(request, &request.scratch.join(FOLDER), host)?;
    answer.outcome.map_err(Failure::into_error)
}

fn converse(request: &Request, folder: &Path, host: &dyn StageHost) -> Result<Answer, StageError> {
    let path = folder.join(REQUEST);
    let bytes = serde_json::to_vec(request)
        .map_err(|error| StageError::because("writing down what a child process is to do", error))?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, bytes))
        .map_err(|error| StageError::environment(format!("writing `{}`", path.display()), error))?;
    // A file of this name would be a later program's, if this one was replaced while it runs.
    let own = Path::new("/proc/self/exe");
    let program = if own.exists() { Ok(own.to_owned()) } else { std::env::current_exe() };
    let mut command = Command::new(
        program.map_err(|error| StageError::environment("finding the program of this process", error))?,
    );
    command.arg("isolated").arg(folder);
    let mut listener = |line: &str| match serde_json::from_str(line) {
        Ok(News::Progress { done, total, unit, figures }) => {
            let figures: Vec<(&str, f64)> =
                figures.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            host.progress(done, total, &unit, &figures);
        }
        Ok(News::Warning(message)) => host.warn(&message),
        Ok(News::Checkpoint(step)) => host.checkpoint(step),
        Ok(News::Resumed(step)) => host.resumed(step),
        Ok(News::Count { what, number }) => host.count(&what, number),
        // Something that a library printed.
        Err(_) => host.log(line),
    };
    let program = Program {
        command,
        name: request.node.clone(),
        scratch: folder,
        memory: request.memory,
        grace: GRACE,
        listener: Some(&mut listener),
    };
    let ended = program.run(host);
    // One that was asked to stop may have ended well all the same.
    match (ended, read_answer(folder)) {
        (Err(StageError::Cancelled) | Ok(()), Some(answer)) => Ok(answer),
        (Err(error), _) => Err(error),
        (Ok(()), None) => Err(StageError::failed("its process ended without an answer")),
    }
}

fn read_answer(folder: &Path) -> Option<Answer> {
    serde_json::from_slice(&std::fs::read(folder.join(ANSWER)).ok()?).ok()
}

/// The child's side: does what the request in `folder` says; whether it could be read and answered.
pub(crate) fn serve(folder: &Path, registry: &Registry) -> Result<(), String> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))
        .map_err(|error| error.to_string())?;
    let path = folder.join(REQUEST);
    let bytes = std::fs::read(&path).map_err(|error| format!("`{}`: {error}", path.display()))?;
    let request: Request =
        serde_json::from_slice(&bytes).map_err(|error| format!("`{}`: {error}", path.display()))?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let (registry, threads) = (registry.clone(), request.threads);
    let workers = Workers::default();
    let job = Box::new(move |worker: Result<&Worker, &rayon::ThreadPoolBuildError>| {
        let outcome = match worker {
            Ok(worker) => run(&request, &registry, &Host { stop }, worker),
            Err(error) => Err(StageError::because("starting the stage's threads", error.to_string()).into()),
        };
        let outcome = outcome.map_err(|error| Failure::of(&error));
        let _ = sender.send(Answer { outcome });
    });
    workers.execute(threads, job).map_err(|error| error.to_string())?;
    let answer = receiver.recv().map_err(|_| "the stage gave no answer".to_owned())?;
    let bytes = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
    let path = folder.join(ANSWER);
    std::fs::write(&path, bytes).map_err(|error| format!("`{}`: {error}", path.display()))
}

fn run(
    request: &Request,
    registry: &Registry,
    host: &Host,
    worker: &Worker,
) -> Result<Outputs, AttemptError> {
    let Some(kind) = registry.get(&request.kind) else {
        return Err(StageError::failed(format!("unknown stage kind `{}`", request.kind)).into());
    };
    // What enters the key is the parent's affair.
    let params =
        ResolvedParams { json: request.params.clone(), canonical: pipe_cache::Value::None, numerics: None };
    let writers =
        request.outputs.iter().map(|(port, folder)| (port.clone(), OutputWriter::new(folder.clone())));
    let CheckpointRequest { store, is_durable, key, keep, every } = &request.checkpoints;
    let durability = if *is_durable { Durability::Full } else { Durability::Rename };
    let store = Store::open(store, durability)?;
    let mut context = StageContext::new(
        request.inputs.clone(),
        writers.collect(),
        host,
        request.threads,
        request.scratch.clone(),
        request.provenance.clone(),
    )
    .with_gpus(request.gpus.clone())
    .with_memory(request.memory)
    .with_lists(request.lists.clone())
    .with_ancestry(request.ancestry.clone())
    .with_checkpoints(Checkpoints::new(store.checkpoints(key, *keep), *every));
    if request.is_part {
        context = context.of_part();
    }
    if let Some(partials) = &request.partials {
        context = context.with_partials(partials.clone());
    }
    let outcome = worker.pool.install(|| {
        std::panic::catch_unwind(AssertUnwindSafe(|| match request.partials {
            Some(_) => kind.merge(&params, &mut context),
            None => kind.run(&params, &mut context),
        }))
    });
    match outcome {
        Ok(result) => result?,
        Err(panic) => {
            host.log(&worker.panics.take().unwrap_or_default());
            return Err(AttemptError::Panic(panic_text(panic.as_ref())));
        }
    }
    let tables = context.outputs.iter();
    Ok(tables.map(|(port, writer)| (port.clone(), writer.table().map(<[TablePart]>::to_vec))).collect())
}

impl Failure {
    pub(crate) fn of(error: &AttemptError) -> Self {
        let message = chain(error);
        match error {
            error if is_no_space(error) => Self::NoSpace { message },
            AttemptError::Panic(message) => Self::Panic { message: message.clone() },
            AttemptError::Timeout(seconds) => Self::Timeout(*seconds),
            AttemptError::Stage(StageError::Cancelled) => Self::Cancelled,
            AttemptError::Stage(StageError::InputData { path, reason }) => {
                Self::InputData { path: path.clone(), reason: reason.clone() }
            }
            AttemptError::Stage(StageError::Environment { doing, source }) => {
                let (cause, code) = (source.to_string(), source.raw_os_error());
                Self::Environment { doing: doing.clone(), cause, code }
            }
            AttemptError::Stage(StageError::OutOfMemory(text)) => Self::OutOfMemory(text.clone()),
            AttemptError::Stage(StageError::Signalled { program, signal }) => {
                Self::Signalled { program: program.clone(), signal: *signal }
            }
            AttemptError::Store(error) => {
                let doing = "using the store".to_owned();
                Self::Environment { doing, cause: chain(error), code: None }
            }
            _ => Self::Failed { message },
        }
    }

    pub(crate) fn into_error(self) -> AttemptError {
        let error = match self {
            Self::Panic { message } => return AttemptError::Panic(message),
            Self::Timeout(seconds) => return AttemptError::Timeout(seconds),
            Self::Cancelled => StageError::Cancelled,
            Self::InputData { path, reason } => StageError::InputData { path, reason },
            Self::Environment { doing, code: Some(code), .. } => {
                StageError::environment(doing, std::io::Error::from_raw_os_error(code))
            }
            Self::Environment { doing, cause, code: None } => {
                StageError::environment(doing, std::io::Error::other(cause))
            }
            Self::OutOfMemory(text) => StageError::OutOfMemory(text),
            Self::Signalled { program, signal } => StageError::Signalled { program, signal },
            Self::Failed { message } => StageError::failed(message),
            Self::NoSpace { message } => {
                StageError::because(message, std::io::Error::from(std::io::ErrorKind::StorageFull))
            }
        };
        error.into()
    }
}

/// The child's host: whoever listens is the parent.
struct Host {
    stop: Arc<AtomicBool>,
}

impl Host {
    fn tell(news: &News) {
        if let Ok(mut line) = serde_json::to_vec(news) {
            line.push(b'\n');
            let _ = std::io::stdout().lock().write_all(&line);
        }
    }
}

impl StageHost for Host {
    fn progress(&self, done: u64, total: u64, unit: &str, figures: &[(&str, f64)]) {
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Self::tell(&News::Progress { done, total, unit: unit.to_owned(), figures });
    }

    fn log(&self, line: &str) {
        eprintln!("{line}");
    }

    fn warn(&self, message: &str) {
        Self::tell(&News::Warning(message.to_owned()));
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn checkpoint(&self, step: u64) {
        Self::tell(&News::Checkpoint(step));
    }

    fn resumed(&self, step: u64) {
        Self::tell(&News::Resumed(step));
    }

    fn count(&self, what: &str, number: u64) {
        Self::tell(&News::Count { what: what.to_owned(), number });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Classes, exit codes and words are those of the child.
    #[test]
    fn errors_survive_the_way_to_the_parent() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let errors: Vec<AttemptError> = vec![
            StageError::Cancelled.into(),
            StageError::input("a.csv", "it is torn").into(),
            StageError::environment("reading `x`", std::io::Error::from_raw_os_error(13)).into(),
            StageError::environment("reading `x`", std::io::Error::other("the cable is loose")).into(),
            StageError::OutOfMemory("of the device".to_owned()).into(),
            StageError::Signalled { program: "cat".to_owned(), signal: 11 }.into(),
            StageError::failed("it never works").into(),
            StageError::because("fitting", "singular matrix").into(),
            StageError::because("packing", std::io::Error::other(full())).into(),
            AttemptError::Panic("it lost its mind".to_owned()),
            AttemptError::Timeout(60),
        ];
        for error in errors {
            let text = serde_json::to_string(&Failure::of(&error)).unwrap();
            let back = serde_json::from_str::<Failure>(&text).unwrap().into_error();
            assert_eq!((back.class(), is_no_space(&back)), (error.class(), is_no_space(&error)), "{text}");
            assert!(chain(&back).starts_with(&chain(&error)), "{} is not {}", chain(&back), chain(&error));
        }
    }
}
