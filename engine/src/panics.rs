//! Panics inside stages: a failure of that stage, with a backtrace in its log, and nothing on the
//! terminal.

use std::backtrace::Backtrace;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// What panicked, by thread pool, until the attempt asks for it.
static CAUGHT: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());

const PREFIX: &str = "stage ";

/// The threads of one attempt: panics in them are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool(u64);

impl Pool {
    /// A new pool; from the first one on, panics in threads of pools are kept instead of printed.
    pub(crate) fn new() -> Self {
        static HOOK: Once = Once::new();
        static NEXT: AtomicU64 = AtomicU64::new(0);
        HOOK.call_once(|| {
            let default = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let thread = std::thread::current();
                match thread.name().and_then(number_of) {
                    Some(pool) => {
                        let text = format!("{info}\n{}", Backtrace::force_capture());
                        // The first is the cause; others may follow from it.
                        CAUGHT.lock().unwrap_or_else(PoisonError::into_inner).entry(pool).or_insert(text);
                    }
                    None => default(info),
                }
            }));
        });
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The name of a thread of this pool.
    pub(crate) fn thread(self, index: usize) -> String {
        format!("{PREFIX}{}.{index}", self.0)
    }

    /// What panicked first in this pool, and where.
    pub(crate) fn caught(self) -> Option<String> {
        CAUGHT.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0)
    }
}

fn number_of(thread: &str) -> Option<u64> {
    thread.strip_prefix(PREFIX)?.split_once('.')?.0.parse().ok()
}
