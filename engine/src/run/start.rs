//! From ready to running: what fits, most urgent first; leases; inputs that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use pipe_cache::{LeaseAttempt, Reading, StoreError};
use serde_json::json;

use super::{Running, Scheduler, State, Work};
use crate::attempt::{Absent, Attempt, AttemptError};
use crate::context::{Artifact, ArtifactFile, InputArtifact};
use crate::error::StageError;
use crate::kind::DefaultCpu;
use crate::pipeline::{InputSource, NodeId};
use crate::plan::Status;
use crate::remote::lock::PinnedFile;
use crate::workers::Worker;

/// How often a lease held by another process is asked for again.
const LEASE_POLL: Duration = Duration::from_millis(250);

/// How often a node is made again because its results are damaged when they are read: more often, the
/// disk is at fault.
const REPAIRS: u32 = 3;

/// What came of an attempt to start a node.
enum Started {
    /// It runs in a thread of its own.
    Running,
    /// It does not, and nothing else changed.
    No,
    /// It does not, but other nodes may be ready now.
    Changed,
}

/// Why the inputs of a node cannot be read.
enum Unreadable {
    /// These producers have to run again.
    Damaged(BTreeSet<NodeId>),
    Error(AttemptError),
}

impl From<StoreError> for Unreadable {
    fn from(error: StoreError) -> Self {
        Self::Error(error.into())
    }
}

impl Scheduler<'_> {
    /// Starts what is ready and fits, the most urgent first.
    pub(super) fn start_ready(&self, work: &mut Work<'_>) {
        while self.start_round(work) {}
    }

    /// One walk over what is ready; whether another may find more.
    fn start_round(&self, work: &mut Work<'_>) -> bool {
        let now = Instant::now();
        let mut changed = false;
        let mut last = None;
        while work.free > 0
            && let Some(place) = work.state.next_open(last)
        {
            last = Some(place);
            let index = place.1;
            let due = match work.state[index] {
                State::Ready => true,
                State::Elsewhere(again) | State::Delayed(again) => again <= now,
                _ => false,
            };
            if !due {
                continue;
            }
            let id = NodeId(index);
            let cores = self.cores(id);
            if cores > work.free {
                continue;
            }
            match self.start(id, cores, work) {
                Ok(Started::Running) => work.free -= cores,
                Ok(Started::No) => {}
                Ok(Started::Changed) => changed = true,
                Err(error) => {
                    self.fail(id, &error, work);
                    changed |= self.may_start(work);
                }
            }
            if !self.may_start(work) {
                return false;
            }
        }
        changed
    }

    fn cores(&self, id: NodeId) -> usize {
        let node = &self.pipeline.nodes[id.0];
        let wanted = node.resources.cpu.unwrap_or(match node.description.cpu {
            DefaultCpu::One => 1,
            DefaultCpu::All => self.options.cores,
        });
        wanted.clamp(1, self.options.cores)
    }

    fn start(&self, id: NodeId, cores: usize, work: &mut Work<'_>) -> Result<Started, AttemptError> {
        let node = &self.pipeline.nodes[id.0];
        let Some((digest, key)) = work.plan.keys[id.0].clone() else {
            work.state[id.0] = State::Waiting;
            return Ok(Started::No);
        };
        let waited = matches!(work.state[id.0], State::Elsewhere(_));
        let lease = match self.store.lease(&digest, self.run.id())? {
            LeaseAttempt::Acquired(lease) => lease,
            LeaseAttempt::Busy(info) => {
                if !waited {
                    let owner = info
                        .map(|info| {
                            format!("waits for run {} ({}:{})", info.run, info.owner.host, info.owner.pid)
                        })
                        .unwrap_or_else(|| "waits for another process".to_owned());
                    self.events.emit(
                        "waiting",
                        json!({ "node": node.name, "key": digest.to_hex(), "subject": node.name, "detail": owner }),
                    );
                }
                work.state[id.0] = State::Elsewhere(Instant::now() + LEASE_POLL);
                return Ok(Started::No);
            }
        };
        // Between planning and the lease another process may have finished it.
        if !work.plan.forced.contains(&id)
            && let Some(record) = self.store.lookup(&digest)?
        {
            drop(lease);
            self.hit(id, record, work);
            return Ok(Started::Changed);
        }
        let (inputs, absent) = match self.inputs(id, work) {
            Ok(inputs) => inputs,
            Err(Unreadable::Error(error)) => return Err(error),
            Err(Unreadable::Damaged(producers)) => {
                self.make_again(&producers, work)?;
                work.state[id.0] = State::Waiting;
                return Ok(Started::Changed);
            }
        };
        let attempt = *work.attempts.entry(id).and_modify(|count| *count += 1).or_insert(1);
        let reason = match &work.plan.status[id.0] {
            Status::Run(reasons) | Status::Maybe(reasons) => {
                reasons.first().map(|reason| reason.words(self.pipeline))
            }
            _ => None,
        };
        self.events.emit(
            "action_started",
            json!({
                "node": node.name, "shard": null, "key": digest.to_hex(), "attempt": attempt,
                "executor": "local", "device": "cpu", "slurm": null, "reason": reason,
            }),
        );
        let peak = Arc::new(AtomicU64::new(work.resident));
        let attempt = Attempt {
            node: node.clone(),
            key,
            inputs,
            threads: cores,
            store: self.store.clone(),
            run: self.run.id().to_owned(),
            revision: self.revision.clone(),
            log: self.run.log(&node.name, attempt),
            events: Arc::clone(&self.events),
            cancelled: Arc::clone(&work.cancelled),
            peak: Arc::clone(&peak),
            lease,
            absent,
            fetcher: Arc::clone(self.fetcher),
        };
        let sender = work.sender.clone();
        let job = Box::new(move |worker: Result<&Worker, &_>| {
            // The receiver is gone only when the run was aborted.
            let _ = sender.send((id, attempt.execute(worker)));
        });
        work.workers
            .execute(cores, job)
            .map_err(|error| StageError::environment("starting a thread", error))?;
        work.state[id.0] = State::Running;
        work.running.insert(id, Running { cores, peak });
        Ok(Started::Running)
    }

    /// Lets the producers of damaged artifacts run again.
    fn make_again(&self, producers: &BTreeSet<NodeId>, work: &mut Work<'_>) -> Result<(), AttemptError> {
        for producer in producers {
            let node = &self.pipeline.nodes[producer.0];
            if work.attempts.get(producer).is_some_and(|attempts| *attempts >= REPAIRS) {
                let doing = format!("reading what `{}` wrote {REPAIRS} times", node.name);
                let cause = std::io::Error::other("it is damaged each time: the disk cannot be trusted");
                return Err(StageError::environment(doing, cause).into());
            }
            work.plan.records[producer.0] = None;
            work.plan.status[producer.0] = Status::Run(vec![crate::why::DirtyReason::Damaged]);
            work.state[producer.0] = State::Ready;
        }
        Ok(())
    }

    /// The inputs of a node, verified, and what of them has to be fetched first.
    fn inputs(
        &self,
        id: NodeId,
        work: &mut Work<'_>,
    ) -> Result<(BTreeMap<String, Vec<InputArtifact>>, Vec<Absent>), Unreadable> {
        let mut absent = Vec::new();
        let mut inputs = BTreeMap::new();
        let mut damaged = BTreeSet::new();
        for input in &self.pipeline.nodes[id.0].inputs {
            let mut artifacts = Vec::with_capacity(input.sources.len());
            for source in &input.sources {
                match source {
                    InputSource::Node { node, port } => match self.result(*node, port, work)? {
                        Some(artifact) => artifacts.push(artifact),
                        None => _ = damaged.insert(*node),
                    },
                    InputSource::File { pattern, path } => {
                        if let Some(source) = self.sources.get(path) {
                            let files = source.files.iter().map(|file| ArtifactFile {
                                path: file.path.clone(),
                                bytes: file.bytes,
                                location: file.location.clone(),
                            });
                            let origin = format!("file:{pattern}");
                            artifacts.push(external(origin, source.digest, files.collect()));
                        }
                    }
                    InputSource::Remote(remote) => {
                        let Some(pinned) = self.sources.pinned(remote) else { continue };
                        let mut missing = BTreeSet::new();
                        for (_, file) in &pinned.files {
                            if !self.is_sound(id, file, work)? {
                                missing.insert(file.path.as_str());
                            }
                        }
                        let to_fetch = pinned.to_fetch(|file| missing.contains(file.path.as_str()));
                        if !to_fetch.is_empty() {
                            let revision = pinned.revision.clone();
                            absent.push(Absent { remote: remote.clone(), revision, files: to_fetch });
                        }
                        let files = pinned.files.iter().map(|(path, file)| ArtifactFile {
                            path: path.clone(),
                            bytes: file.size,
                            location: self.store.blob_path(&file.digest),
                        });
                        let origin = remote.text().to_owned();
                        artifacts.push(external(origin, pinned.digest, files.collect()));
                    }
                    InputSource::Blob(digest) => {
                        let origin = format!("store:b3:{digest}");
                        let location = self.store.blob_path(digest);
                        let bytes = std::fs::metadata(&location).map_or(0, |metadata| metadata.len());
                        if let Some(damage) = self.store.verify_blob(digest, bytes, self.options.verify)? {
                            return Err(Unreadable::Error(StageError::input(origin, damage.reason).into()));
                        }
                        let file = ArtifactFile { path: digest.to_hex(), bytes, location };
                        artifacts.push(external(origin, *digest, vec![file]));
                    }
                }
            }
            inputs.insert(input.name.clone(), artifacts);
        }
        if damaged.is_empty() { Ok((inputs, absent)) } else { Err(Unreadable::Damaged(damaged)) }
    }

    /// Whether a file of a remote source is in the store; that it is damaged is reported.
    fn is_sound(&self, id: NodeId, file: &PinnedFile, work: &mut Work<'_>) -> Result<bool, StoreError> {
        if !self.store.blob_path(&file.digest).exists() {
            return Ok(false);
        }
        let Some(damage) = self.store.verify_blob(&file.digest, file.size, self.options.verify)? else {
            return Ok(true);
        };
        work.outcome.damaged += 1;
        let subject = &self.pipeline.nodes[id.0].name;
        self.events.emit(
            "corruption",
            json!({ "subject": subject, "detail": damage.reason, "blob": damage.blob.to_hex() }),
        );
        Ok(false)
    }

    /// One artifact of a producer; none if it is damaged, which is reported.
    fn result(
        &self,
        producer: NodeId,
        port: &str,
        work: &mut Work<'_>,
    ) -> Result<Option<InputArtifact>, StoreError> {
        let node = &self.pipeline.nodes[producer.0];
        let record = work.plan.records[producer.0].as_ref();
        let Some(output) = record.and_then(|record| record.outputs.get(port)) else { return Ok(None) };
        let files = match self.store.read(output, self.options.verify)? {
            Reading::Files(files) => files,
            Reading::Damaged(damages) => {
                for damage in damages {
                    work.outcome.damaged += 1;
                    self.events.emit(
                        "corruption",
                        json!({ "subject": node.name, "detail": damage.reason, "blob": damage.blob.to_hex() }),
                    );
                }
                return Ok(None);
            }
        };
        Ok(Some(InputArtifact {
            axes: node.axes.iter().cloned().collect(),
            stage: node.stage.clone(),
            artifact: Artifact {
                artifact_type: output.artifact_type.clone(),
                digest: output.content,
                files: files
                    .into_iter()
                    .map(|file| ArtifactFile { path: file.path, bytes: file.bytes, location: file.location })
                    .collect(),
                origin: None,
            },
        }))
    }
}

fn external(origin: String, digest: pipe_cache::Digest, files: Vec<ArtifactFile>) -> InputArtifact {
    InputArtifact {
        axes: BTreeMap::new(),
        stage: String::new(),
        artifact: Artifact { artifact_type: "file".to_owned(), digest, files, origin: Some(origin) },
    }
}
