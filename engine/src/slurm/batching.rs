//! Which actions make a task: as many as fill its time.

use std::time::Duration;

/// The tasks for actions of which each takes so many seconds, in their order, as their places. One of which nothing is
/// known is a task of its own. At most `most` tasks are made; what is left over waits.
pub(crate) fn tasks(seconds: &[Option<f64>], target: f64, most: usize) -> Vec<Vec<usize>> {
    let mut tasks: Vec<Vec<usize>> = Vec::new();
    // What the last task has left; none if nothing may be added to it.
    let mut left: Option<f64> = None;
    for (place, seconds) in seconds.iter().enumerate() {
        let rest = seconds.zip(left).map(|(seconds, rest)| rest - seconds).filter(|rest| *rest >= 0.0);
        if let (Some(rest), Some(task)) = (rest, tasks.last_mut()) {
            task.push(place);
            left = Some(rest);
        } else if tasks.len() < most {
            tasks.push(vec![place]);
            left = seconds.map(|seconds| target - seconds);
        } else {
            break;
        }
    }
    tasks
}

/// How often something may be done: so many times a second, and some at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: f64,
    tokens: f64,
    /// Seconds of the caller's clock.
    filled: f64,
}

impl Bucket {
    const BURST: f64 = 5.0;

    /// One that gets a token `every` so often.
    pub(crate) fn new(every: Duration) -> Self {
        Self { rate: every.as_secs_f64().recip(), tokens: Self::BURST, filled: 0.0 }
    }

    /// Whether there is a token at this time, in seconds.
    pub(crate) fn has_one(&mut self, now: f64) -> bool {
        self.tokens = (self.tokens + (now - self.filled).max(0.0) * self.rate).min(Self::BURST);
        self.filled = now;
        self.tokens >= 1.0
    }

    /// Takes one token at this time, if there is one.
    pub(crate) fn take(&mut self, now: f64) -> bool {
        let has_one = self.has_one(now);
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_filled_in_order() {
        let known = |seconds: &[f64]| seconds.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(
            tasks(&known(&[10.0, 10.0, 10.0, 10.0, 10.0]), 25.0, 9),
            [vec![0, 1], vec![2, 3], vec![4]]
        );
        assert_eq!(
            tasks(&known(&[100.0, 1.0, 1.0]), 25.0, 9),
            [vec![0], vec![1, 2]],
            "what is too long is alone"
        );
        assert_eq!(tasks(&[None, None, Some(1.0), Some(1.0), None], 25.0, 9).len(), 4);
        assert_eq!(tasks(&known(&[20.0, 20.0, 20.0, 1.0]), 25.0, 2), [vec![0], vec![1]]);
        assert_eq!(tasks(&known(&[20.0; 3]), 25.0, 0), Vec::<Vec<usize>>::new());
        assert_eq!(tasks(&[], 25.0, 9), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn a_bucket_gives_a_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(Duration::from_millis(500));
        assert_eq!((0..9).filter(|_| bucket.take(0.0)).count(), 5);
        assert!(!bucket.take(0.4));
        assert!(bucket.take(0.6) && !bucket.take(0.7));
        assert_eq!((0..9).filter(|_| bucket.take(1000.0)).count(), 5, "it does not overflow");
    }
}
