//! First interrupt: stop at the next safe point. Second: stop now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The flags that signals set.
pub(crate) struct Signals {
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) abort: Arc<AtomicBool>,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Registers the handlers.
    pub(crate) fn register() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let abort = Arc::new(AtomicBool::new(false));
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
        }
        let (watch_stop, watch_abort) = (Arc::clone(&stop), Arc::clone(&abort));
        let mut arrivals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _ in arrivals.forever() {
                if watch_stop.swap(true, Ordering::Relaxed) {
                    watch_abort.store(true, Ordering::Relaxed);
                } else {
                    eprintln!("{:>10}  at the next safe point; once more to stop at once", "Stopping");
                }
            }
        })?;
        Ok(Self { stop, abort, last })
    }

    /// 130 after an interrupt, 143 after a request to end.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.last.load(Ordering::Relaxed) == SIGINT as usize {
            crate::exit::INTERRUPTED
        } else {
            crate::exit::TERMINATED
        }
    }
}
