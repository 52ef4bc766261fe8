//! What a fetch tells of itself, and what it listens to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Progress is told at most this often.
const PERIOD: Duration = Duration::from_secs(1);
/// How often a sleeper looks whether it is to stop.
const TICK: Duration = Duration::from_millis(50);

/// What is told.
pub(crate) enum News<'a> {
    /// Bytes that are here, of all.
    Progress(u64, u64),
    /// Something failed and is tried again after a while.
    Retry(Duration, &'a str),
}

/// The listener of one fetch.
pub(crate) struct Watch<'a> {
    stop: Arc<AtomicBool>,
    tell: Box<dyn Fn(News<'_>) + Send + Sync + 'a>,
    done: AtomicU64,
    total: u64,
    told: Mutex<Option<Instant>>,
}

impl<'a> Watch<'a> {
    /// Tells `tell` how far it is with `total` bytes, until `stop` is set.
    pub(crate) fn new(stop: Arc<AtomicBool>, total: u64, tell: impl Fn(News<'_>) + Send + Sync + 'a) -> Self {
        Self { stop, tell: Box::new(tell), done: AtomicU64::new(0), total, told: Mutex::new(None) }
    }

    /// Says nothing and never stops.
    pub(crate) fn silent() -> Watch<'static> {
        Watch::new(Arc::default(), 0, |_| {})
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Bytes that came.
    pub(super) fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if done == self.total || told.is_none_or(|told| told.elapsed() >= PERIOD) {
            *told = Some(Instant::now());
            (self.tell)(News::Progress(done, self.total.max(done)));
        }
    }

    /// Bytes that came in vain.
    pub(super) fn retreat(&self, bytes: u64) {
        let less = |done: u64| Some(done.saturating_sub(bytes));
        let _ = self.done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Says that something is tried again after `delay`, and waits for it; whether it may go on.
    pub(super) fn retry(&self, delay: Duration, reason: &str) -> bool {
        (self.tell)(News::Retry(delay, reason));
        self.sleep(delay)
    }

    /// Waits; whether it may go on.
    pub(super) fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(TICK));
        }
        false
    }
}
