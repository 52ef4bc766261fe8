//! Panics inside stages: a failure of that stage, with a backtrace in its log, and nothing on the
//! terminal.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::sync::{Arc, Mutex, Once, PoisonError};

thread_local! {
    /// Where panics of this thread are kept.
    static KEPT: RefCell<Option<Panics>> = const { RefCell::new(None) };
}

/// The first panic in the threads of one worker, and where it happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panics(Arc<Mutex<Option<String>>>);

impl Panics {
    /// Keeps the panics of this thread from now on, instead of printing them.
    pub(crate) fn keep(&self) {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let default = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                match KEPT.try_with(|kept| kept.borrow().clone()).ok().flatten() {
                    Some(Self(kept)) => {
                        let text = format!("{info}\n{}", Backtrace::force_capture());
                        // The first is the cause; others may follow from it.
                        kept.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
                    }
                    None => default(info),
                }
            }));
        });
        KEPT.set(Some(self.clone()));
    }

    /// What panicked first since this was asked last.
    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
