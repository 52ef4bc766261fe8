//! Threads that execute actions, each with a pool of as many threads as its actions may use. A worker that
//! is done waits for the next action of its size: making threads takes longer than many an action.

use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use crate::handover;
use crate::panics::Panics;

/// candle and gemm recurse little, but a deep model's graph is dropped recursively.
const STACK_BYTES: usize = 16 << 20;

/// The threads on which an action runs.
pub(crate) struct Worker {
    /// The thread that executes is one of them.
    pub(crate) pool: rayon::ThreadPool,
    pub(crate) panics: Panics,
}

/// What a worker does: with its threads, or with the reason why there are none.
type Job = Box<dyn FnOnce(Result<&Worker, &rayon::ThreadPoolBuildError>) + Send>;

/// A worker that waits: how many threads it has, and where it takes its next job from.
type Waiting = (usize, mpsc::Sender<Job>);

/// The workers of a run; those that wait end with it.
#[derive(Default)]
pub(crate) struct Workers {
    waiting: Arc<Mutex<Vec<Waiting>>>,
}

impl Workers {
    /// Executes `job` on `threads` threads.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn execute(&self, threads: usize, mut job: Job) -> std::io::Result<()> {
        loop {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(place) = waiting.iter().position(|(size, _)| *size == threads) else { break };
            let (_, worker) = waiting.swap_remove(place);
            drop(waiting);
            match worker.send(job) {
                Ok(()) => return Ok(()),
                Err(mpsc::SendError(returned)) => job = returned,
            }
        }
        let waiting = Arc::downgrade(&self.waiting);
        let thread = std::thread::Builder::new().name("action".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || work(threads, job, &waiting)).map(drop)
    }
}

/// Does one job after the other, until there is nobody who could give one.
fn work(threads: usize, mut job: Job, waiting: &Weak<Mutex<Vec<Waiting>>>) {
    let panics = Panics::default();
    panics.keep();
    let kept = panics.clone();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .use_current_thread()
        .stack_size(STACK_BYTES)
        .thread_name(|index| format!("action.{index}"))
        .start_handler(move |_| kept.keep())
        .build();
    let worker = pool.map(|pool| Worker { pool, panics });
    loop {
        job(worker.as_ref());
        let Some(waiting) = waiting.upgrade() else { return };
        let (sender, jobs) = mpsc::channel();
        waiting.lock().unwrap_or_else(PoisonError::into_inner).push((threads, sender));
        drop(waiting);
        match handover::receive(&jobs, Duration::MAX) {
            Ok(next) => job = next,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_used_again_by_size_and_keep_panics_apart() {
        let workers = Workers::default();
        let (sender, receiver) = mpsc::channel();
        let ask = |threads: usize| {
            let sender = sender.clone();
            let job: Job = Box::new(move |worker| {
                let worker = worker.unwrap();
                let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    worker.pool.install(|| {
                        use rayon::prelude::*;
                        (0..100).into_par_iter().for_each(|item| assert!(item != 77));
                    });
                }));
                let threads = worker.pool.broadcast(|_| std::thread::current().id());
                let text = worker.panics.take().unwrap_or_default();
                sender.send((std::thread::current().id(), threads.len(), caught.is_err(), text)).unwrap();
            });
            workers.execute(threads, job).unwrap();
            let answer = receiver.recv().unwrap();
            // It waits a moment after its answer.
            while workers.waiting.lock().unwrap().is_empty() {
                std::thread::yield_now();
            }
            answer
        };
        let first = ask(1);
        assert!(first.1 == 1 && first.2 && first.3.contains("item != 77"), "{first:?}");
        let again = ask(1);
        assert_eq!((again.0, again.1), (first.0, 1));
        assert!(again.3.contains("item != 77"));
        let wide = ask(3);
        assert_eq!(wide.1, 3);
        assert!(wide.3.contains("item != 77"), "{wide:?}");
    }
}
