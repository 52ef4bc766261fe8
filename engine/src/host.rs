//! What a running stage tells and asks, as events, a log and a flag.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_cache::Digest;

use crate::context::StageHost;
use crate::events::EventLog;

/// Progress of one action is written at most this often.
pub(crate) const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// The log of an attempt: a file from its first line on.
pub(crate) struct AttemptLog {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl AttemptLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: Mutex::default() }
    }

    /// Adds a line. What cannot be written is left out: the stage goes on.
    fn write(&self, line: &str) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.is_none() {
            *file = File::options().create(true).append(true).open(&self.path).ok();
        }
        if let Some(file) = file.as_mut() {
            let _ = writeln!(file, "{line}");
        }
    }
}

/// Adds what was counted to what others counted.
pub(crate) fn add_counts<'a>(
    counts: &mut BTreeMap<String, u64>,
    more: impl IntoIterator<Item = (&'a str, u64)>,
) {
    for (what, number) in more {
        let count = counts.entry(what.to_owned()).or_default();
        *count = count.saturating_add(number);
    }
}

/// The engine's side of a running stage.
pub(crate) struct Host {
    pub(crate) node: String,
    /// The key of the part, if it works on one.
    pub(crate) shard: Option<String>,
    pub(crate) key: Digest,
    pub(crate) events: Arc<EventLog>,
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) log: AttemptLog,
    pub(crate) last_progress: Mutex<Option<Instant>>,
    /// What programs of the stage took: processor time, and the most memory of one of them in bytes.
    pub(crate) programs: Mutex<(Duration, u64)>,
    /// What the stage counted.
    pub(crate) counts: Mutex<BTreeMap<String, u64>>,
}

impl Host {
    /// An event about the state that is kept.
    fn state(&self, event: &str, step: u64) {
        self.log(&format!("{event} after step {step}"));
        let fields = serde_json::json!({ "node": self.node, "shard": self.shard, "key": self.key.to_hex(), "step": step });
        self.events.emit(event, fields);
    }
}

impl StageHost for Host {
    fn progress(&self, done: u64, total: u64, unit: &str, figures: &[(&str, f64)]) {
        let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= PROGRESS_PERIOD) || done == total;
        if !due {
            return;
        }
        *last = Some(Instant::now());
        let metrics: serde_json::Map<String, serde_json::Value> =
            figures.iter().map(|(name, value)| ((*name).to_owned(), serde_json::json!(value))).collect();
        self.events.emit(
            "progress",
            serde_json::json!({ "node": self.node, "shard": self.shard, "done": done, "total": total, "unit": unit, "metrics": metrics }),
        );
    }

    fn log(&self, line: &str) {
        self.log.write(line);
    }

    fn warn(&self, message: &str) {
        self.log(&format!("warning: {message}"));
        self.events.emit("warning", serde_json::json!({ "subject": self.node, "detail": message }));
    }

    fn checkpoint(&self, step: u64) {
        self.state("checkpoint", step);
    }

    fn resumed(&self, step: u64) {
        self.state("resume", step);
    }

    fn count(&self, what: &str, number: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        add_counts(&mut counts, [(what, number)]);
    }

    fn spent(&self, cpu: Duration, memory: u64) {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        *programs = (programs.0 + cpu, programs.1.max(memory));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}
