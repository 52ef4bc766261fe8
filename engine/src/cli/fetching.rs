//! The remote sources of a run: what was never read is resolved, fetched and written into the lock file
//! before any action.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pipe_cache::Store;
use serde_json::json;

use super::CliError;
use super::arguments::RunArguments;
use super::signals::Signals;
use super::study::Study;
use crate::action::{MissingSource, Unpinned};
use crate::events::EventLog;
use crate::plan::Wanted;
use crate::remote::lock::{Entry, LockFile, PinnedFile};
use crate::remote::{FetchError, Fetcher, News, Resolved, Watch};

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(100);

/// A source to be fetched, with what its name means now.
pub(crate) struct ToFetch {
    source: Unpinned,
    resolved: Resolved,
}

/// How fetching one source ended.
type Fetched = Result<Vec<PinnedFile>, Vec<(String, FetchError)>>;

/// Asks what the sources that were never read mean now. Whatever is missing, here or elsewhere, is named at
/// once, before anything is fetched or made.
pub(crate) fn resolve(
    study: &Study,
    store: Option<&Store>,
    wanted: &Wanted,
    run: &RunArguments,
    fetcher: &Fetcher,
) -> Result<Vec<ToFetch>, CliError> {
    let (sources, mut missing) = study.try_sources(store, wanted)?;
    let mut to_fetch = Vec::new();
    for source in sources.unpinned() {
        let (reason, help) = if run.locked {
            let lock = study.lock_path();
            (
                format!("it is not in `{}`, and `--locked` forbids to change that", lock.display()),
                Some("run once without `--locked`, and keep the lock file under version control".to_owned()),
            )
        } else if run.offline {
            (
                "it was never read, and `--offline` forbids to fetch it".to_owned(),
                Some("run once without `--offline`".to_owned()),
            )
        } else {
            match fetcher.resolve(&source.remote, &Watch::silent()) {
                Ok(resolved) => {
                    to_fetch.push(ToFetch { source: source.clone(), resolved });
                    continue;
                }
                Err(FetchError::Source { reason, help }) => (reason, help),
                Err(error) => (error.to_string(), None),
            }
        };
        missing.push(problem(source, reason, help));
    }
    if missing.is_empty() { Ok(to_fetch) } else { Err(study.missing_sources(&missing)) }
}

fn problem(source: &Unpinned, reason: String, help: Option<String>) -> MissingSource {
    let Unpinned { remote, origin, node } = source;
    MissingSource {
        source: remote.text().to_owned(),
        origin: origin.clone(),
        node: node.clone(),
        reason,
        help: help.into_iter().collect(),
    }
}

/// Fetches the sources and adds them to the lock file, also when others fail. The code to end with if the
/// run was interrupted.
pub(crate) fn fetch(
    study: &Study,
    store: &Store,
    to_fetch: Vec<ToFetch>,
    fetcher: &Arc<Fetcher>,
    events: &Arc<EventLog>,
    signals: &Signals,
    grace: Duration,
) -> Result<Option<u8>, CliError> {
    let (sender, receiver) = mpsc::channel();
    {
        let (store, fetcher, events) = (store.clone(), Arc::clone(fetcher), Arc::clone(events));
        let stop = Arc::clone(&signals.stop);
        let work = move || {
            for one in to_fetch {
                let fetched = fetch_one(&store, &fetcher, &events, &stop, &one);
                // The receiver is gone only when the run was aborted.
                let _ = sender.send((one, fetched));
            }
        };
        std::thread::Builder::new()
            .name("fetch".to_owned())
            .spawn(work)
            .map_err(|error| CliError::environment("starting a thread", &error))?;
    }
    let (mut entries, mut missing, mut refused) = (BTreeMap::new(), Vec::new(), None);
    let mut stopped: Option<Instant> = None;
    loop {
        match receiver.recv_timeout(TICK) {
            Ok((ToFetch { source, resolved }, Ok(files))) => {
                entries.insert(source.remote.text().to_owned(), Entry::new(&resolved, files));
            }
            Ok((ToFetch { source, .. }, Err(failed))) => {
                for (path, error) in failed {
                    match error {
                        FetchError::Cancelled => {}
                        FetchError::Store(error) => refused = Some(error),
                        FetchError::Source { reason, help } => {
                            missing.push(problem(&source, format!("`{path}`: {reason}"), help));
                        }
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if signals.stop.load(Ordering::Relaxed) {
            let since = *stopped.get_or_insert_with(Instant::now);
            if signals.count.load(Ordering::Relaxed) >= 2 || since.elapsed() > grace {
                break;
            }
        }
    }
    if !entries.is_empty() {
        LockFile::add(&study.lock_path(), &study.pipeline.path, entries)?;
    }
    if let Some(error) = refused {
        return Err(error.into());
    }
    if signals.stop.load(Ordering::Relaxed) {
        return Ok(Some(signals.exit_code()));
    }
    if missing.is_empty() { Ok(None) } else { Err(study.missing_sources(&missing)) }
}

fn fetch_one(
    store: &Store,
    fetcher: &Fetcher,
    events: &EventLog,
    stop: &Arc<std::sync::atomic::AtomicBool>,
    one: &ToFetch,
) -> Fetched {
    let started = Instant::now();
    let ToFetch { source, resolved } = one;
    let subject = source.remote.text();
    let bytes: u64 = resolved.files.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
    events.emit(
        "fetch_started",
        json!({
            "subject": subject, "revision": resolved.revision, "files": resolved.files.len(), "bytes": bytes,
        }),
    );
    let watch = Watch::new(Arc::clone(stop), bytes, |news| match news {
        News::Progress(done, total) => events.emit(
            "fetch_progress",
            json!({ "subject": subject, "done": done, "total": total, "unit": "bytes" }),
        ),
        News::Retry(delay, reason) => events.emit(
            "fetch_retry",
            json!({ "subject": subject, "detail": reason, "delay": delay.as_secs_f64() }),
        ),
    });
    let fetched = fetcher.fetch(store, &source.remote, resolved.revision.as_deref(), &resolved.files, &watch);
    let status = match &fetched {
        Ok(_) => "ok",
        Err(_) if watch.stopped() => "cancelled",
        Err(_) => "failed",
    };
    let bytes: u64 = fetched.iter().flatten().map(|file| file.size).fold(0, u64::saturating_add);
    events.emit(
        "fetch_finished",
        json!({ "subject": subject, "status": status, "bytes": bytes, "wall": started.elapsed().as_secs_f64() }),
    );
    fetched
}

/// Writes down that a run ended before it had a plan.
pub(crate) fn close(events: &EventLog, cancelled: bool, wall: Duration) {
    let status = if cancelled { "cancelled" } else { "failed" };
    events.emit(
        "run_finished",
        json!({ "status": status, "executed": 0, "failed": 0, "blocked": 0, "repaired": 0, "wall": wall.as_secs_f64() }),
    );
}
