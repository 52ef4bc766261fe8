//! Whether an attempt can still give a result, and what follows if it cannot.
//!
//! The store is the truth, and Slurm a hint: jobs are forgotten, ids are used again, and processes of a dead node live on.

use std::time::Duration;

/// How long nothing has to be seen of an attempt.
const SILENCE: Duration = Duration::from_secs(60);
/// In how many looks at the queue.
const LOOKS: u32 = 2;

/// What is known of an attempt whose action did not fail.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signs {
    /// Its result stands in the store.
    pub(crate) recorded: bool,
    /// The queue has its task in a state in which it may still work.
    pub(crate) live: bool,
    /// Its task is at its end, and the queue has not noticed.
    pub(crate) completing: bool,
    /// Somebody has the lease of its action.
    pub(crate) held: bool,
    /// The worker of its task has ended, and did not say that all of its actions have results: those may not be seen yet.
    pub(crate) exited: bool,
    /// It has ended before it was done, and the queue does not say yet why: at the end of its time, or because a person
    /// cancelled it.
    pub(crate) unexplained: bool,
    /// In how many looks at the queue nothing of all this was seen, and for how long.
    pub(crate) unseen: (u32, Duration),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Done,
    Alive,
    /// Look again.
    Doubtful,
    Lost,
}

/// Judges an attempt.
pub(crate) fn judge(signs: &Signs) -> Verdict {
    let (looks, silence) = signs.unseen;
    let is_over = looks >= LOOKS && silence >= SILENCE;
    if signs.recorded {
        Verdict::Done
    } else if signs.unexplained && !signs.held && !is_over {
        Verdict::Doubtful
    } else if (signs.live && !(signs.completing && signs.exited)) || signs.held {
        Verdict::Alive
    } else if signs.exited || is_over {
        Verdict::Lost
    } else {
        Verdict::Doubtful
    }
}

/// Why an attempt gave no result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// Its time was over.
    OutOfTime,
    OutOfMemory,
    /// A person, or the site, cancelled its job.
    Cancelled,
    /// The program that the task found is another one.
    OtherProgram,
    /// The cluster lost it; in words.
    Lost(String),
}

/// What is done then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum After {
    Again,
    /// With half as much memory on top.
    WithMoreMemory,
    Fail(String),
}

/// How often the attempts at an action gave no result. Nothing of this counts as a failure of the action itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    lost: u32,
    out_of_time: u32,
    out_of_memory: u32,
}

impl Tries {
    /// Losses in a row without progress.
    const LOST: u32 = 10;
    /// Ends of time in a row without progress.
    const OUT_OF_TIME: u32 = 2;
    const OUT_OF_MEMORY: u32 = 1;

    /// What follows. `progress` tells whether there is a newer checkpoint, or another result of the same task, than
    /// when the attempt began; `asked` whether the stage said how much memory it needs; `limit` the seconds of a task.
    pub(crate) fn after(&mut self, cause: Cause, progress: bool, asked: bool, limit: Option<u64>) -> After {
        if progress {
            (self.lost, self.out_of_time) = (0, 0);
        }
        match cause {
            Cause::Cancelled => After::Fail("its job was cancelled in Slurm".to_owned()),
            Cause::OtherProgram => After::Fail(
                "its job found another build of this program than the one that submitted it; run again with the new one"
                    .to_owned(),
            ),
            Cause::OutOfTime => {
                self.out_of_time += u32::from(!progress);
                if self.out_of_time < Self::OUT_OF_TIME {
                    return After::Again;
                }
                let limit = limit.map_or_else(|| "the partition's limit".to_owned(), |limit| format!("{limit} s"));
                let text = format!("it takes longer than its task may ({limit}), and keeps no state that helps the next");
                After::Fail(format!("{text}; raise `resources.time`"))
            }
            Cause::OutOfMemory => {
                self.out_of_memory += 1;
                if self.out_of_memory <= Self::OUT_OF_MEMORY && asked {
                    return After::WithMoreMemory;
                }
                After::Fail("its job needed more memory than it had; raise `resources.mem`".to_owned())
            }
            Cause::Lost(what) => {
                self.lost += 1;
                if self.lost <= Self::LOST {
                    return After::Again;
                }
                After::Fail(format!("the cluster lost it {} times in a row, at last: {what}", self.lost))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_comes_before_slurm_and_both_before_time() {
        let nothing = Signs::default();
        let unseen = |looks, seconds| (looks, Duration::from_secs(seconds));
        for (name, signs, verdict) in [
            ("a result", Signs { recorded: true, live: true, held: true, ..nothing }, Verdict::Done),
            ("in the queue", Signs { live: true, unseen: unseen(9, 900), ..nothing }, Verdict::Alive),
            ("requeued after an exit", Signs { live: true, exited: true, ..nothing }, Verdict::Alive),
            ("at its end", Signs { live: true, completing: true, ..nothing }, Verdict::Alive),
            ("ended", Signs { live: true, completing: true, exited: true, ..nothing }, Verdict::Lost),
            (
                "ended, nobody says why",
                Signs { live: true, completing: true, exited: true, unexplained: true, ..nothing },
                Verdict::Doubtful,
            ),
            (
                "ended, and nobody ever says why",
                Signs {
                    live: true,
                    completing: true,
                    exited: true,
                    unexplained: true,
                    unseen: unseen(9, 60),
                    ..nothing
                },
                Verdict::Lost,
            ),
            ("forgotten by Slurm", Signs { held: true, unseen: unseen(9, 900), ..nothing }, Verdict::Alive),
            ("taken by another worker", Signs { held: true, exited: true, ..nothing }, Verdict::Alive),
            ("just not seen", Signs { unseen: unseen(1, 0), ..nothing }, Verdict::Doubtful),
            ("twice in a row", Signs { unseen: unseen(2, 20), ..nothing }, Verdict::Doubtful),
            ("once, long ago", Signs { unseen: unseen(1, 900), ..nothing }, Verdict::Doubtful),
            ("gone", Signs { unseen: unseen(2, 60), ..nothing }, Verdict::Lost),
            ("exited", Signs { exited: true, ..nothing }, Verdict::Lost),
        ] {
            assert_eq!(judge(&signs), verdict, "{name}");
        }
    }

    #[test]
    fn losses_are_forgiven_and_progress_forgives_all() {
        let lost = || Cause::Lost("NODE_FAIL".to_owned());
        let mut tries = Tries::default();
        for _ in 0..10 {
            assert_eq!(tries.after(lost(), false, false, None), After::Again);
        }
        assert_eq!(tries.after(lost(), true, false, None), After::Again);
        for _ in 0..9 {
            assert_eq!(tries.after(lost(), false, false, None), After::Again);
        }
        let After::Fail(text) = tries.after(lost(), false, false, None) else { panic!("ten are enough") };
        assert!(text.contains("11 times") && text.contains("NODE_FAIL"), "{text}");
    }

    #[test]
    fn the_end_of_time_counts_only_without_progress_and_memory_grows_once() {
        let mut tries = Tries::default();
        for _ in 0..50 {
            assert_eq!(tries.after(Cause::OutOfTime, true, false, Some(60)), After::Again);
        }
        assert_eq!(tries.after(Cause::OutOfTime, false, false, Some(60)), After::Again);
        let After::Fail(text) = tries.after(Cause::OutOfTime, false, false, Some(60)) else {
            panic!("twice")
        };
        assert!(text.contains("60 s"), "{text}");
        assert_eq!(tries.after(Cause::OutOfMemory, false, true, None), After::WithMoreMemory);
        assert!(matches!(tries.after(Cause::OutOfMemory, false, true, None), After::Fail(_)));
        assert!(matches!(Tries::default().after(Cause::OutOfMemory, false, false, None), After::Fail(_)));
        assert!(matches!(Tries::default().after(Cause::Cancelled, true, true, None), After::Fail(_)));
    }
}
