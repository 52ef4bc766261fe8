//! How fast something goes, and how long it will take still, by what was seen of it lately.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::cli::size;

/// What was seen earlier says little of how fast it goes now.
const WINDOW: Duration = Duration::from_secs(60);

/// Over less than this a rate says nothing.
const LEAST: Duration = Duration::from_secs(2);

/// What was done until when, over the last minute. It counts from what is told first: what was resumed had been done
/// before.
#[derive(Debug, Default)]
pub(super) struct Pace {
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// So much is done by now.
    pub(super) fn note(&mut self, now: Instant, done: u64) {
        // Another epoch counts from the beginning again.
        if self.seen.back().is_some_and(|(_, before)| done < *before) {
            self.seen.clear();
        }
        self.seen.push_back((now, done));
        // One from before the window stays, so that slow work has a rate too.
        while self.seen.len() > 2 && now.duration_since(self.seen[1].0) > WINDOW {
            self.seen.pop_front();
        }
    }

    /// Units a second; none before it means something.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((began, before), (ended, done)) = (self.seen.front()?, self.seen.back()?);
        let time = ended.duration_since(*began);
        (time >= LEAST && done > before).then(|| (done - before) as f64 / time.as_secs_f64())
    }

    /// How fast it goes and when it will be done, for people: `12.5/s  ETA 01:30`.
    pub(super) fn words(&self, total: u64, unit: &str) -> String {
        let Some(rate) = self.rate() else { return "ETA --:--".to_owned() };
        let left = total.saturating_sub(self.seen.back().map_or(0, |(_, done)| *done)) as f64 / rate;
        let rate = match rate {
            rate if unit == "bytes" => format!("{}/s", size(rate as u64)),
            rate if rate < 0.1 => format!("{:.1}/min", 60.0 * rate),
            rate if rate < 100.0 => format!("{rate:.1}/s"),
            rate => format!("{rate:.0}/s"),
        };
        format!("{rate}  ETA {}", clock(Duration::from_secs_f64(left.min(1e9))))
    }
}

/// `01:30`, or `2:01:30` from an hour on.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes:02}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(began: Instant, seconds: u64) -> Instant {
        began + Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let began = Instant::now();
        let mut pace = Pace::default();
        pace.note(at(began, 0), 0);
        pace.note(at(began, 1), 100);
        assert_eq!(pace.words(1000, "images"), "ETA --:--");
        pace.note(at(began, 10), 100);
        assert_eq!(pace.words(1000, "images"), "10.0/s  ETA 01:30");
        // From then on it does one a second, and after a minute only that counts.
        for second in 11..=120 {
            pace.note(at(began, second), 100 + second - 10);
        }
        let rate = pace.rate().unwrap();
        assert!((rate - 1.0).abs() < 0.02, "{rate}");
        assert!(pace.seen.len() < 64);
    }

    #[test]
    fn what_was_done_before_does_not_count() {
        let began = Instant::now();
        let mut pace = Pace::default();
        pace.note(at(began, 30), 500);
        assert_eq!(pace.words(600, "steps"), "ETA --:--");
        pace.note(at(began, 40), 520);
        assert_eq!(pace.words(600, "steps"), "2.0/s  ETA 00:40");
    }

    #[test]
    fn what_begins_anew_has_a_new_rate() {
        let began = Instant::now();
        let mut pace = Pace::default();
        pace.note(at(began, 10), 500);
        pace.note(at(began, 11), 3);
        assert_eq!(pace.rate(), None);
        pace.note(at(began, 15), 7);
        assert_eq!(pace.words(7, "images"), "1.0/s  ETA 00:00");
    }

    #[test]
    fn slow_work_has_a_rate_and_a_time() {
        let began = Instant::now();
        let mut pace = Pace::default();
        pace.note(began, 0);
        pace.note(at(began, 1000), 1);
        pace.note(at(began, 2000), 2);
        assert_eq!(pace.words(9, "images"), "0.1/min  ETA 1:56:40");
        let mut pace = Pace::default();
        pace.note(began, 0);
        pace.note(at(began, 4), 8 << 20);
        assert_eq!(pace.words(16 << 20, "bytes"), format!("{}/s  ETA 00:04", size(2 << 20)));
        assert_eq!(clock(Duration::from_secs(36_000)), "10:00:00");
    }
}
