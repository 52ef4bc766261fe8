//! What is run, and how.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use pipe_cache::{Durability, Verify};

use crate::language::quantity;
use crate::pipeline::{Place, RemoteMode};

#[derive(Args, Debug, Default)]
pub(crate) struct Selection {
    /// Stages, nodes or globs to bring up to date; all by default. What they depend on is included
    #[arg(value_name = "TARGET", help_heading = "Selection")]
    pub(crate) targets: Vec<String>,
    /// Only the targets themselves: their inputs have to be there
    #[arg(long, help_heading = "Selection")]
    pub(crate) only: bool,
    /// The targets and everything that depends on them
    #[arg(long, conflicts_with = "only", help_heading = "Selection")]
    pub(crate) downstream: bool,
    /// Of all that, only these and what they depend on
    #[arg(long, value_name = "TARGET", help_heading = "Selection")]
    pub(crate) until: Vec<String>,
    /// Leave these out, and what depends on them
    #[arg(long, value_name = "TARGET", help_heading = "Selection")]
    pub(crate) exclude: Vec<String>,
    /// Run these whatever is in the store
    #[arg(short, long, value_name = "TARGET", help_heading = "Selection")]
    pub(crate) force: Vec<String>,
    /// Take results that another kind of device computed, whose last digits may differ, where there are none of this
    /// one's
    #[arg(long, value_name = "CLASSES", value_parser = ["any"], help_heading = "Selection")]
    pub(crate) accept_numerics: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Say what would run and stop
    #[arg(short = 'n', long, help_heading = "Execution")]
    pub(crate) dry_run: bool,
    /// Where actions run; by default what the study says
    #[arg(long, value_name = "WHERE", value_parser = Place::NAMES, help_heading = "Execution")]
    pub(crate) executor: Option<String>,
    /// Submit what is ready and a job that goes on when it is done, and end; with `--executor slurm`
    #[arg(long, conflicts_with_all = ["dry_run", "reproduce"], help_heading = "Execution")]
    pub(crate) detach: bool,
    /// Cores to use; by default all
    #[arg(short, long, value_name = "CORES", help_heading = "Execution")]
    pub(crate) jobs: Option<usize>,
    /// After a failure start nothing new; `now` also stops what runs
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "new", value_parser = ["new", "now"], help_heading = "Execution")]
    pub(crate) fail_fast: Option<String>,
    /// Do not change the lock file: a remote source that is not in it is an error
    #[arg(long, help_heading = "Execution")]
    pub(crate) locked: bool,
    /// Fetch nothing: a remote source that is not on this machine is an error
    #[arg(long, help_heading = "Execution")]
    pub(crate) offline: bool,
    /// Execute what is up to date once more and compare the results; exit with 5 if one differs
    #[arg(long, conflicts_with = "dry_run", help_heading = "Execution")]
    pub(crate) reproduce: bool,
    /// The share of the results that `--reproduce` makes again, 0 to 1; other ones in each run
    #[arg(long, value_name = "SHARE", requires = "reproduce", default_value_t = 1.0, value_parser = share, help_heading = "Execution")]
    pub(crate) rate: f64,
    /// Whether results are taken from the remote cache, and put there too; else as `[remote]` or PIPE_REMOTE_MODE says
    #[arg(long, value_enum, value_name = "MODE", help_heading = "Execution")]
    pub(crate) remote: Option<Remote>,
    /// How far stored results are checked before they are read
    #[arg(long, value_enum, default_value_t = Verification::Once, value_name = "HOW", help_heading = "Execution")]
    pub(crate) verify: Verification,
    /// Whether results are flushed to the disk, and so survive a power loss
    #[arg(long, value_enum, default_value_t = Durable::Full, value_name = "HOW", help_heading = "Execution")]
    pub(crate) durability: Durable,
    /// Publish results as second names of the store's files instead of copies: who writes into one damages the store
    #[arg(long, help_heading = "Execution")]
    pub(crate) hard_links: bool,
    /// Seconds that running stages have to reach a safe point after an interrupt
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Execution")]
    pub(crate) grace: u64,
    /// Start nothing when the store's disk has less free than this
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "1GiB", help_heading = "Execution")]
    pub(crate) min_free: u64,
}

fn bytes(text: &str) -> Result<u64, String> {
    quantity::bytes(text).ok_or_else(|| "it has to be a size such as `1GiB`".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it has to be a number from 0 to 1".to_owned())
}

/// What the remote cache is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Remote {
    /// Nothing
    Off,
    /// Results are taken from it
    Read,
    /// Results are put there too
    ReadWrite,
}

impl From<Remote> for RemoteMode {
    fn from(remote: Remote) -> Self {
        match remote {
            Remote::Off => Self::Off,
            Remote::Read => Self::Read,
            Remote::ReadWrite => Self::ReadWrite,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct MirrorArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    #[command(flatten)]
    pub(crate) selection: Selection,
}

/// How far stored results are checked before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verification {
    /// By content; large ones once per boot of the machine
    Once,
    /// By content, every time
    Always,
    /// By length only
    Size,
    /// Not at all
    Never,
}

impl From<Verification> for Verify {
    fn from(how: Verification) -> Self {
        match how {
            Verification::Once => Self::Once,
            Verification::Always => Self::Always,
            Verification::Size => Self::Size,
            Verification::Never => Self::Never,
        }
    }
}

/// Whether results are flushed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durable {
    /// They are
    Full,
    /// They are not: what a power loss damages is found and made again
    Rename,
}

impl From<Durable> for Durability {
    fn from(how: Durable) -> Self {
        match how {
            Durable::Full => Self::Full,
            Durable::Rename => Self::Rename,
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct PlanArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Exit with 6 if anything would run
    #[arg(long)]
    pub(crate) check: bool,
    /// Say what it will cost: jobs, hours, bytes, by what results so far took
    #[arg(long)]
    pub(crate) estimate: bool,
    /// Rows that a node will give which has no result yet, for the estimate: `--rows pairs=15000000`
    #[arg(long, value_name = "NODE=ROWS", requires = "estimate")]
    pub(crate) rows: Vec<String>,
}
