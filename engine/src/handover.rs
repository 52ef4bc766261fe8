//! Receiving what comes soon without going to sleep: to be woken takes a thread longer than many an action.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// How long a receiver looks before it sleeps: more than the scheduler, or a short action, needs.
const SOON: Duration = Duration::from_micros(400);

/// How long nobody looks after a look took too long.
const PAUSE: Duration = Duration::from_millis(50);

/// Until when nobody looks, in nanoseconds since the first look.
static PAUSED: AtomicU64 = AtomicU64::new(0);

/// As [`Receiver::recv_timeout`], awake for the first moment.
pub(crate) fn receive<T>(from: &Receiver<T>, timeout: Duration) -> Result<T, RecvTimeoutError> {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = FIRST.get_or_init(Instant::now);
    let now = || u64::try_from(first.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let began = now();
    let mut looked = began;
    while looked.saturating_sub(began) < SOON.as_nanos() as u64 && PAUSED.load(Ordering::Relaxed) <= looked {
        match from.try_recv() {
            Ok(message) => return Ok(message),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => std::thread::yield_now(),
        }
        let last = std::mem::replace(&mut looked, now());
        // Other work has the cores, and who gives way to it waits for long: who sleeps is woken sooner.
        if looked.saturating_sub(last) > SOON.as_nanos() as u64 {
            PAUSED.store(looked.saturating_add(PAUSE.as_nanos() as u64), Ordering::Relaxed);
        }
    }
    from.recv_timeout(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_at_once_or_late_or_never_is_told_apart() {
        let (sender, receiver) = std::sync::mpsc::channel();
        sender.send(1).unwrap();
        assert_eq!(receive(&receiver, Duration::ZERO), Ok(1));
        assert_eq!(receive(&receiver, Duration::from_millis(1)), Err(RecvTimeoutError::Timeout));
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            sender.send(2).unwrap();
        });
        assert_eq!(receive(&receiver, Duration::MAX), Ok(2));
        late.join().unwrap();
        assert_eq!(receive(&receiver, Duration::MAX), Err(RecvTimeoutError::Disconnected));
    }
}
