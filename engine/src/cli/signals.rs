//! First interrupt: stop at the next safe point. Second: stop now. With jobs in a cluster, first: submit nothing more;
//! second: cancel the jobs; third: stop now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::pipeline::Place;

/// The flags that signals set.
pub(crate) struct Signals {
    pub(crate) stop: Arc<AtomicBool>,
    /// How many there were.
    pub(crate) count: Arc<AtomicUsize>,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Registers the handlers of a run whose actions run there.
    pub(crate) fn register(place: Place) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
        }
        let (watch_stop, watch_count) = (Arc::clone(&stop), Arc::clone(&count));
        let words: &[&str] = match place {
            Place::Local => &["at the next safe point; once more to stop at once"],
            Place::Slurm => &[
                "nothing more is submitted, and jobs go on; once more to cancel them",
                "jobs are cancelled; once more to stop at once",
            ],
        };
        let mut arrivals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _ in arrivals.forever() {
                watch_stop.store(true, Ordering::Relaxed);
                let before = watch_count.fetch_add(1, Ordering::Relaxed);
                if let Some(words) = words.get(before) {
                    eprintln!("{:>10}  {words}", "Stopping");
                }
            }
        })?;
        Ok(Self { stop, count, last })
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
