//! What is done with a store.

use std::path::PathBuf;

use clap::Args;

/// How many distinct plans keep their results, unless `gc` is told otherwise.
pub(crate) const KEPT_RUNS: usize = 10;

/// What is younger is no garbage, unless `gc` is told otherwise.
pub(crate) const GRACE: &str = "24h";

#[derive(Args, Debug)]
pub(crate) struct VerifyArguments {
    /// The pipeline file whose store is verified
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: Option<PathBuf>,
    /// A stage, a node, or a glob over nodes; the whole store by default
    #[arg(value_name = "NODE")]
    pub(crate) targets: Vec<String>,
    /// Move what is damaged aside, so that the next run makes it again; of sources, record what they are now
    #[arg(long)]
    pub(crate) repair: bool,
    /// Read the local sources of the study instead, frozen ones too, and compare them with what is known of them
    #[arg(long, requires = "pipeline")]
    pub(crate) sources: bool,
}

#[derive(Args, Debug)]
pub(crate) struct GcArguments {
    /// The pipeline file whose store is looked at
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: Option<PathBuf>,
    /// Remove what is listed
    #[arg(long)]
    pub(crate) apply: bool,
    /// Do not keep what is removed in `trash/` for the grace period
    #[arg(long, requires = "apply")]
    pub(crate) now: bool,
    /// Remove nothing that is younger
    #[arg(long, value_name = "DURATION", default_value = GRACE)]
    pub(crate) grace: String,
    /// How many distinct plans of each pipeline and profile keep their results
    #[arg(long, value_name = "NUMBER", default_value_t = KEPT_RUNS)]
    pub(crate) keep_runs: usize,
    /// Remove only until the store takes no more, the least recently used first
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_size: Option<String>,
    /// Instead, remove the files of these stages, nodes or globs and keep their records: nothing runs again for it,
    /// and what is read later is made again
    #[arg(long, value_name = "NODE", requires = "pipeline", conflicts_with_all = ["max_size", "explain"])]
    pub(crate) evict: Vec<String>,
    /// Instead, collect in the remote cache of the study
    #[arg(long, requires = "pipeline", conflicts_with_all = ["max_size", "explain", "evict", "now"])]
    pub(crate) remote: bool,
    /// In the remote cache, also remove results that nobody used for longer
    #[arg(long, value_name = "DURATION", requires = "remote")]
    pub(crate) older_than: Option<String>,
    /// Say what keeps a key, an artifact or a blob
    #[arg(long, value_name = "DIGEST", conflicts_with = "apply")]
    pub(crate) explain: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct PinArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// Stages, nodes or globs whose results are kept; all by default
    #[arg(value_name = "NODE")]
    pub(crate) targets: Vec<String>,
    /// The name of the pin; by default that of the pipeline
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct UnpinArguments {
    /// The pipeline file whose store holds the pin
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// The name of the pin
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}
