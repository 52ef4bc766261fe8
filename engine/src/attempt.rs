//! One execution of an action: staging, the stage itself in a pool of its own, commit.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_cache::{
    ActionKey, CommitOutcome, Committed, Digest, Lease, PartRecord, RecordMeta, SharedOutputs, StagedOutput,
    Staging, Store, StoreError,
};
use pipe_mirror::Mirror;

use crate::artifact::{Artifact, InputArtifact};
use crate::brief::{Brief, Port};
use crate::checkpoints::Checkpoints;
use crate::context::{OutputWriter, StageContext, StageHost};
use crate::error::{FailureClass, StageError};
use crate::events::EventLog;
use crate::host::{AttemptLog, Host, add_counts};
use crate::isolate;
use crate::kind::AnyKind;
use crate::remote::{FetchError, Fetcher, News, Remote, RemoteFile, Watch};
use crate::workers::Worker;

/// Actions that take less are written to the disk together.
const SHORT: Duration = Duration::from_secs(1);

/// Everything an attempt needs, owned by its thread.
pub(crate) struct Attempt {
    pub(crate) brief: Arc<Brief>,
    pub(crate) kind: Arc<dyn AnyKind>,
    pub(crate) key: ActionKey,
    pub(crate) inputs: BTreeMap<String, Vec<InputArtifact>>,
    /// The outputs that it writes.
    pub(crate) outputs: Vec<Port>,
    pub(crate) task: Task,
    pub(crate) threads: usize,
    /// The slots of the GPUs that it has for itself.
    pub(crate) gpus: Vec<usize>,
    pub(crate) store: Store,
    pub(crate) run: String,
    /// The git revision of the project.
    pub(crate) revision: Option<String>,
    pub(crate) log: PathBuf,
    pub(crate) events: Arc<EventLog>,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// The greatest resident memory of the process so far, in bytes; the scheduler measures it.
    pub(crate) peak: Arc<AtomicU64>,
    pub(crate) lease: Option<Lease>,
    /// Files of its inputs that are not in the store.
    pub(crate) absent: Vec<Absent>,
    pub(crate) fetcher: Arc<Fetcher>,
    /// The remote cache, where this attempt asks it first: parts do, of nodes it is known.
    pub(crate) mirror: Option<Mirror>,
}

/// Files of a remote source that are known and not in the store.
#[derive(Clone)]
pub(crate) struct Absent {
    pub(crate) remote: Remote,
    pub(crate) revision: Option<String>,
    pub(crate) files: Vec<RemoteFile>,
}

/// What is executed.
pub(crate) enum Task {
    /// A node.
    Whole,
    /// A row-wise node on one part, under this key.
    Part(Digest),
    /// The end of a row-wise node: what the parts gave is merged.
    Merge(Box<Merge>),
}

/// What is merged.
pub(crate) struct Merge {
    /// What the parts gave, by output port.
    pub(crate) partials: BTreeMap<String, Vec<Artifact>>,
    /// Outputs that need no merging.
    pub(crate) shared: SharedOutputs,
    /// Seconds that the parts took.
    pub(crate) seconds: f64,
    /// What they counted.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Task {
    /// The key of the part, for events.
    fn shard(&self) -> Option<String> {
        match self {
            Self::Part(key) => Some(key.to_hex()),
            _ => None,
        }
    }
}

/// How it ended.
pub(crate) struct Finished {
    pub(crate) result: Result<Committed, AttemptError>,
    pub(crate) wall: Duration,
    /// Processor time of the stage's threads and programs.
    pub(crate) cpu: Option<Duration>,
    /// Whether nothing was executed, because the remote cache had the result.
    pub(crate) is_taken: bool,
}

/// Why it did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("panicked: {0}")]
    Panic(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("ran for more than the {0} s that `resources.time` allows")]
    Timeout(u64),
    /// The cluster will not run it, or has lost it for good.
    #[error("{0}")]
    Lost(String),
}

impl AttemptError {
    /// The class by which it may be retried; none for what another attempt cannot change.
    pub(crate) fn class(&self) -> Option<FailureClass> {
        Some(match self {
            Self::Stage(StageError::Cancelled | StageError::InputData { .. }) => return None,
            // A full disk stays full.
            error if is_no_space(error) => return None,
            Self::Stage(StageError::Environment { .. }) | Self::Store(_) => FailureClass::Io,
            Self::Stage(StageError::OutOfMemory(_)) => FailureClass::Oom,
            Self::Stage(StageError::Signalled { .. }) => FailureClass::Signal,
            Self::Timeout(_) => FailureClass::Timeout,
            Self::Lost(_) => FailureClass::Lost,
            Self::Stage(StageError::Failed { .. }) | Self::Panic(_) => FailureClass::Error,
        })
    }
}

/// Whether some cause of an error is a full disk or an exhausted quota, whatever class the stage gave it.
pub(crate) fn is_no_space(error: &AttemptError) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        // An I/O error that wraps another shows the inner one's cause as its own.
        let inner =
            io.and_then(|error| error.get_ref()).map(|inner| inner as &(dyn std::error::Error + 'static));
        cause = inner.or_else(|| error.source());
    }
    false
}

impl Attempt {
    /// Runs to the end, whatever happens inside the stage, and tells how it ended. Nobody waits for what is tidied up
    /// after a success; after a failure it is done first, because the action may be tried again.
    pub(crate) fn execute(
        mut self,
        worker: Result<&Worker, &rayon::ThreadPoolBuildError>,
        tell: impl FnOnce(Finished),
    ) {
        let started = Instant::now();
        let mut cpu = None;
        let taken = self.take();
        let is_taken = taken.is_some();
        let mut staging = None;
        let result = match worker {
            _ if let Some(committed) = taken => Ok(committed),
            Ok(worker) => self.run_stage(worker, started, &mut cpu, &mut staging),
            Err(error) => Err(StageError::because("starting the stage's threads", error.to_string()).into()),
        };
        let is_executed = result.is_ok() && !is_taken;
        let finished = Finished { result, wall: started.elapsed(), cpu, is_taken };
        if is_executed {
            tell(finished);
            self.clear_checkpoints();
            self.tidy(staging);
        } else {
            self.tidy(staging);
            tell(finished);
        }
    }

    /// Gives back what it held until the record stood, so that another process waited instead of working twice.
    fn tidy(&mut self, staging: Option<Staging>) {
        drop(staging);
        if let Some(lease) = self.lease.take() {
            self.store.release(lease);
        }
    }

    /// The result that another machine has made.
    fn take(&self) -> Option<Committed> {
        let record = self.mirror.as_ref()?.bring(&self.key.digest(), &self.store)?;
        Some(Committed { record, outcome: CommitOutcome::Equal })
    }

    /// What an execution elsewhere needs of the network: the result, if another machine has made it; else what of its inputs
    /// is not in the store is fetched.
    pub(crate) fn prepare(self) -> Result<Option<Finished>, AttemptError> {
        let started = Instant::now();
        if let Some(committed) = self.take() {
            let wall = started.elapsed();
            return Ok(Some(Finished { result: Ok(committed), wall, cpu: None, is_taken: true }));
        }
        let host = self.host(started);
        self.absent.iter().try_for_each(|absent| self.fetch(absent, &host))?;
        Ok(None)
    }

    fn host(&self, started: Instant) -> Host {
        Host {
            node: self.brief.node.clone(),
            shard: self.task.shard(),
            key: self.key.digest(),
            events: Arc::clone(&self.events),
            cancelled: Arc::clone(&self.cancelled),
            deadline: self.brief.time.map(|seconds| started + Duration::from_secs(seconds)),
            log: AttemptLog::new(self.log.clone()),
            last_progress: Mutex::new(None),
            programs: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    /// A stage knows external files by their path inside the source, a person by where they lie.
    fn with_known_path(&self, error: StageError) -> StageError {
        let StageError::InputData { path, reason } = error else { return error };
        let mut artifacts = self.inputs.values().flatten().map(|input| &input.artifact);
        let known = if path.is_relative() { artifacts.find_map(|one| locate(one, &path)) } else { None };
        StageError::InputData { path: known.unwrap_or(path), reason }
    }

    /// Fetches what is known and not in the store.
    fn fetch(&self, absent: &Absent, host: &Host) -> Result<(), AttemptError> {
        let Absent { remote, revision, files } = absent;
        let bytes = files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
        let watch = Watch::new(Arc::clone(&self.cancelled), bytes, |news| match news {
            News::Progress(done, total) => host.progress(done, total, "bytes", &[]),
            News::Retry(delay, reason) => {
                host.log(&format!("{reason}; again in {:.1} s", delay.as_secs_f64()));
            }
        });
        let fetched = self.fetcher.fetch(&self.store, remote, revision.as_deref(), files, &watch);
        let Err(failed) = fetched else { return Ok(()) };
        for (path, error) in &failed {
            host.log(&format!("{}: {path}: {error}", remote.text()));
        }
        // Whatever else went wrong says more than that the others were stopped.
        let cancelled = |(_, error): &(String, FetchError)| matches!(error, FetchError::Cancelled);
        let first = failed.into_iter().min_by_key(cancelled);
        Err(match first {
            None | Some((_, FetchError::Cancelled)) => StageError::Cancelled.into(),
            Some((_, FetchError::Store(error))) => error.into(),
            Some((path, FetchError::Source { reason, help })) => {
                let help = help.map(|help| format!("; {help}")).unwrap_or_default();
                StageError::input(format!("{}: {path}", remote.text()), format!("{reason}{help}")).into()
            }
        })
    }

    fn run_stage(
        &self,
        worker: &Worker,
        started: Instant,
        cpu: &mut Option<Duration>,
        staging: &mut Option<Staging>,
    ) -> Result<Committed, AttemptError> {
        let staging = staging.insert(self.store.stage()?);
        let mut outputs = BTreeMap::new();
        for port in &self.outputs {
            outputs.insert(port.name.clone(), OutputWriter::new(staging.output_folder(&port.name)?));
        }
        let host = self.host(started);
        for absent in &self.absent {
            self.fetch(absent, &host)?;
        }
        let scratch = staging.scratch();
        let outcome = if self.brief.isolate {
            self.in_child(&mut outputs, &host, &scratch)
        } else {
            self.in_process(&mut outputs, &host, scratch, worker, cpu)
        };
        let (programs, memory) = *host.programs.lock().unwrap_or_else(PoisonError::into_inner);
        *cpu = Some(cpu.unwrap_or_default() + programs);
        self.peak.fetch_max(memory, Ordering::Relaxed);
        if let Err(error) = outcome {
            host.log(&format!("{}: {}", self.brief.node, chain(&error)));
            let timed_out = host.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            return Err(match (error, self.brief.time) {
                (AttemptError::Stage(StageError::Cancelled), Some(seconds))
                    if timed_out && !self.cancelled.load(Ordering::Relaxed) =>
                {
                    AttemptError::Timeout(seconds)
                }
                (error, _) => error,
            });
        }
        let mut staged = Vec::new();
        for port in &self.outputs {
            let writer = &outputs[&port.name];
            staged.push(StagedOutput {
                port: port.name.clone(),
                artifact_type: port.artifact_type.clone(),
                parts: writer.table().map(|parts| {
                    parts
                        .iter()
                        .map(|part| PartRecord {
                            path: part.path.clone(),
                            rows: part.rows,
                            digest: part.digest,
                        })
                        .collect()
                }),
            });
        }
        let mut counts = std::mem::take(&mut *host.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let (shared, before) = match &self.task {
            Task::Merge(merge) => {
                add_counts(&mut counts, merge.counts.iter().map(|(what, number)| (what.as_str(), *number)));
                (merge.shared.clone(), merge.seconds)
            }
            _ => (SharedOutputs::default(), 0.0),
        };
        let meta = RecordMeta {
            created: crate::events::now(),
            run: self.run.clone(),
            host: self.store.owner().host.clone(),
            duration_seconds: before + started.elapsed().as_secs_f64(),
            cpu_seconds: cpu.map(|cpu| cpu.as_secs_f64()),
            peak_memory_bytes: Some(self.peak.load(Ordering::Relaxed)),
            device: Some(crate::action::device(&self.key.numerics).to_owned()),
            revision: self.revision.clone(),
            counts,
        };
        // What took no time may be lost with the power for some moments; what did may not.
        let committed = if started.elapsed() < SHORT {
            staging.commit_soon(&self.key, &staged, shared, meta)
        } else {
            staging.commit_node(&self.key, &staged, shared, meta)
        };
        let committed = committed.map_err(|error| match error {
            // What the stage left is its own mistake, not the disk's.
            error @ StoreError::Output { .. } => StageError::failed(error.to_string()).into(),
            error => AttemptError::from(error),
        })?;
        if let CommitOutcome::Nondeterministic { .. } = committed.outcome {
            nondeterministic(&self.events, &self.brief.node);
        }
        Ok(committed)
    }

    /// Removes the checkpoints of what is done, or marks them as kept.
    fn clear_checkpoints(&self) {
        let checkpoints = self.checkpoints();
        // What cannot be removed now is removed as garbage.
        let _ = if self.brief.checkpoint.retain { checkpoints.retain() } else { checkpoints.clear() };
    }

    fn checkpoints(&self) -> pipe_cache::Checkpoints {
        self.store.checkpoints(&self.key.digest(), self.brief.checkpoint.keep)
    }

    /// Executes the stage here.
    fn in_process(
        &self,
        outputs: &mut BTreeMap<String, OutputWriter>,
        host: &Host,
        scratch: PathBuf,
        worker: &Worker,
        cpu: &mut Option<Duration>,
    ) -> Result<(), AttemptError> {
        let provenance = provenance(&self.key, &self.brief.params);
        let writers = std::mem::take(outputs);
        let mut context =
            StageContext::new(self.inputs.clone(), writers, host, self.threads, scratch, provenance)
                .with_checkpoints(Checkpoints::new(self.checkpoints(), self.brief.checkpoint.every))
                .with_gpus(self.gpus.clone())
                .with_memory(self.brief.memory)
                .with_lists(self.brief.lists.clone())
                .with_ancestry(self.brief.ancestry.clone());
        match &self.task {
            Task::Whole => {}
            Task::Part(_) => context = context.of_part(),
            Task::Merge(merge) => context = context.with_partials(merge.partials.clone()),
        }
        let threads_time = || worker.pool.broadcast(|_| thread_time()).into_iter().sum::<Duration>();
        let (before, params) = (threads_time(), self.brief.params());
        let outcome = worker.pool.install(|| {
            std::panic::catch_unwind(AssertUnwindSafe(|| match self.task {
                Task::Whole | Task::Part(_) => self.kind.run(&params, &mut context),
                Task::Merge(_) => self.kind.merge(&params, &mut context),
            }))
        });
        // The threads work for one stage at a time, so all that they took was its own.
        *cpu = Some(threads_time().saturating_sub(before));
        let panicked = worker.panics.take();
        *outputs = context.outputs;
        match outcome {
            Ok(result) => result.map_err(|error| self.with_known_path(error).into()),
            Err(panic) => {
                host.log(&panicked.unwrap_or_default());
                Err(AttemptError::Panic(panic_text(panic.as_ref())))
            }
        }
    }

    /// Executes the stage in a process of its own.
    fn in_child(
        &self,
        outputs: &mut BTreeMap<String, OutputWriter>,
        host: &Host,
        scratch: &Path,
    ) -> Result<(), AttemptError> {
        let folder = |(port, writer): (&String, &OutputWriter)| (port.clone(), writer.folder().to_owned());
        let request = isolate::Request {
            node: self.brief.node.clone(),
            kind: self.brief.kind.clone(),
            params: self.brief.params.clone(),
            inputs: self.inputs.clone(),
            lists: self.brief.lists.clone(),
            outputs: outputs.iter().map(folder).collect(),
            partials: match &self.task {
                Task::Merge(merge) => Some(merge.partials.clone()),
                _ => None,
            },
            is_part: matches!(self.task, Task::Part(_)),
            threads: self.threads,
            gpus: self.gpus.clone(),
            memory: self.brief.memory,
            scratch: scratch.to_owned(),
            provenance: provenance(&self.key, &self.brief.params),
            ancestry: self.brief.ancestry.clone(),
            checkpoints: isolate::CheckpointRequest {
                store: self.store.root().to_owned(),
                is_durable: self.store.is_durable(),
                key: self.key.digest(),
                keep: self.brief.checkpoint.keep,
                every: self.brief.checkpoint.every,
            },
        };
        let tables = isolate::execute(&request, host).map_err(|error| match error {
            AttemptError::Stage(error) => self.with_known_path(error).into(),
            error => error,
        })?;
        for (port, parts) in tables {
            if let (Some(writer), Some(parts)) = (outputs.get_mut(&port), parts) {
                writer.set_table(parts);
            }
        }
        Ok(())
    }
}

/// Tells that a node gave another result under the same key.
pub(crate) fn nondeterministic(events: &EventLog, node: &str) {
    let detail = "gave another result under the same key; the stored one stands";
    events.emit("nondeterminism", serde_json::json!({ "subject": node, "detail": detail }));
}

/// Where a file of an external source lies that a stage names by its path inside the source, whether it
/// is there or not.
fn locate(artifact: &Artifact, inside: &Path) -> Option<PathBuf> {
    let origin = artifact.origin.as_ref()?;
    // The blobs of a remote source have names that say nothing.
    if Remote::parse(origin).is_some() {
        return Some(match artifact.single_file() {
            Ok(file) if file.path.starts_with("source") => PathBuf::from(origin),
            _ => PathBuf::from(format!("{origin}: {}", inside.display())),
        });
    }
    if let Some(file) = inside.to_str().and_then(|inside| artifact.file(inside)) {
        return Some(file.location);
    }
    let root = artifact.files.iter().find_map(|file| {
        let levels = Path::new(&file.path).components().count();
        let root = file.location.ancestors().nth(levels)?;
        file.location.ends_with(&file.path).then(|| root.to_owned())
    })?;
    Some(root.join(inside))
}

/// The processor time of the calling thread.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// What stored files say of where they come from.
fn provenance(key: &ActionKey, params: &serde_json::Value) -> String {
    let inputs: serde_json::Map<String, serde_json::Value> = key
        .inputs
        .iter()
        .map(|input| {
            let digests: Vec<String> =
                input.artifacts.iter().map(|artifact| artifact.digest.to_hex()).collect();
            (input.name.clone(), digests.into())
        })
        .collect();
    serde_json::json!({
        "version": 1,
        "kind": key.kind,
        "implementation": key.implementation,
        "params": params,
        "inputs": inputs,
    })
    .to_string()
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::ArtifactFile;

    #[test]
    fn files_of_sources_are_named_by_where_they_lie() {
        let file = |path: &str, location: &str| ArtifactFile {
            path: path.to_owned(),
            bytes: 0,
            location: PathBuf::from(location),
        };
        let artifact = |origin: Option<&str>, files: Vec<ArtifactFile>| Artifact {
            artifact_type: "file".to_owned(),
            digest: pipe_cache::Digest::of(b""),
            files: files.into_iter().collect(),
            origin: origin.map(str::to_owned),
        };
        let folder = artifact(Some("file:model"), vec![file("a/config.json", "/data/model/a/config.json")]);
        let found = |artifact: &Artifact, path: &str| {
            locate(artifact, Path::new(path)).map(|path| path.to_string_lossy().into_owned())
        };
        assert_eq!(found(&folder, "a/config.json").as_deref(), Some("/data/model/a/config.json"));
        assert_eq!(found(&folder, "b.txt").as_deref(), Some("/data/model/b.txt"));
        let single = artifact(Some("file:x.npz"), vec![file("source.npz", "/data/x.npz")]);
        assert_eq!(found(&single, "source.npz").as_deref(), Some("/data/x.npz"));
        assert_eq!(found(&single, "other.npz"), None);
        let remote = artifact(Some("hf:o/n@main"), vec![file("config.json", "/store/cas/ab/cd")]);
        assert_eq!(found(&remote, "config.json").as_deref(), Some("hf:o/n@main: config.json"));
        let remote = artifact(Some("zenodo:1/x.npz"), vec![file("source.npz", "/store/cas/ab/cd")]);
        assert_eq!(found(&remote, "source.npz").as_deref(), Some("zenodo:1/x.npz"));
        let stored = artifact(None, vec![file("config.json", "/store/cas/ab/cd")]);
        assert_eq!(found(&stored, "config.json"), None);
    }
}
