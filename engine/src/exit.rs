//! Exit codes: the contract with scripts and job schedulers.

/// Done, also when nothing was to do.
pub const DONE: u8 = 0;
/// A stage failed.
pub const STAGE_FAILED: u8 = 1;
/// Wrong usage, or an invalid pipeline.
pub const USAGE: u8 = 2;
/// The store or the environment refuses: no space, no permission, no such device.
pub const ENVIRONMENT: u8 = 3;
/// Input data are missing or damaged.
pub const INPUT_DATA: u8 = 4;
/// A determinism check found a difference.
pub const NOT_DETERMINISTIC: u8 = 5;
/// `plan --check` found work.
pub const WORK_TO_DO: u8 = 6;
/// Out of time; may be continued.
pub const OUT_OF_TIME: u8 = 75;
/// Interrupted.
pub const INTERRUPTED: u8 = 130;
/// Terminated.
pub const TERMINATED: u8 = 143;

/// The table for `--help`.
pub const TABLE: &str = "Exit codes:
  0    done, also when nothing was to do
  1    a stage failed
  2    wrong usage, or an invalid pipeline
  3    store or environment: no space, no permission, no such device
  4    input data missing or damaged
  5    a determinism check found a difference
  6    `plan --check` found work
  75   out of time, may be continued
  130  interrupted; 143 terminated";
