//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pipe_cache::{Durability, Verify};

use super::{CliError, print};
use crate::exit;
use crate::language::quantity;
use crate::pipeline::{Place, RemoteMode};

/// How many distinct plans keep their results, unless `gc` is told otherwise.
pub(crate) const KEPT_RUNS: usize = 10;

/// What is younger is no garbage, unless `gc` is told otherwise.
pub(crate) const GRACE: &str = "24h";

/// A build system for studies that compare foundation models.
///
/// A study is one TOML file. `pipe run study.toml` makes every result of it up to date and runs nothing
/// else.
#[derive(Parser, Debug)]
#[command(name = "pipe", version, after_help = exit::TABLE, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The store; by default `.pipe` in the project of the pipeline file
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Study")]
    store: Option<PathBuf>,
    /// Where results are published; by default `results` in that project
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Study")]
    results: Option<PathBuf>,
    /// A profile of the pipeline file; may be given several times, later ones win
    #[arg(long, global = true, value_name = "NAME", help_heading = "Study")]
    pub(crate) profile: Vec<String>,
    /// Sets a variable of the pipeline: `--var seeds=[0,1]`
    #[arg(long, global = true, value_name = "NAME=VALUE", help_heading = "Study")]
    pub(crate) var: Vec<String>,
    /// Sets a value of a stage: `--set stage.tuned.params.lr=2e-5`
    #[arg(long, global = true, value_name = "PATH=VALUE", help_heading = "Study")]
    pub(crate) set: Vec<String>,
    /// Colour of messages
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, help_heading = "Output")]
    color: Colour,
    /// Machine output on standard output: one JSON object, or JSON Lines of events for `run`
    #[arg(long, global = true, help_heading = "Output")]
    pub(crate) json: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Say more: results found in the store, every stage on a line of its own
    #[arg(short, long, global = true, help_heading = "Output")]
    pub(crate) verbose: bool,
}

/// When messages are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Global {
    /// `--store`, then PIPE_STORE.
    pub(crate) fn store(&self) -> Option<PathBuf> {
        self.store.clone().or_else(|| std::env::var_os("PIPE_STORE").map(PathBuf::from))
    }

    /// `--results`, then PIPE_RESULTS.
    pub(crate) fn results(&self) -> Option<PathBuf> {
        self.results.clone().or_else(|| std::env::var_os("PIPE_RESULTS").map(PathBuf::from))
    }

    /// Whether messages on standard error are coloured.
    pub(crate) fn colour(&self) -> bool {
        use std::io::IsTerminal;
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto if set("NO_COLOR") => false,
            Colour::Auto if set("CLICOLOR_FORCE") => true,
            Colour::Auto => {
                std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
            }
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Begins a study: writes a small pipeline file that runs within a minute
    #[command(after_help = "Examples:\n  pipe init\n  pipe init my-study --template attribution")]
    Init(InitArguments),
    /// Makes every result of a study up to date
    #[command(
        after_help = "Examples:\n  pipe run study.toml\n  pipe run study.toml tuned --set stage.tuned.params.lr=2e-5\n  pipe run study.toml --profile smoke"
    )]
    Run(RunArguments),
    /// Says what would run, and why
    #[command(
        after_help = "Examples:\n  pipe plan study.toml\n  pipe plan study.toml --check && echo up to date\n  pipe plan study.toml --estimate --rows pairs=15000000"
    )]
    Plan(PlanArguments),
    /// Says why a node would run: the causes, root first
    Why(WhyArguments),
    /// Shows what runs now, how the last run ended, and what is up to date
    Status(FileArguments),
    /// Cancels the jobs of a run in a cluster, and waits until they have ended
    #[command(after_help = "Examples:\n  pipe cancel study.toml last\n  pipe cancel study.toml 01a2")]
    Cancel(CancelArguments),
    /// Shows a node: its parameters, inputs, outputs and where each value was set
    #[command(
        after_help = "Examples:\n  pipe show study.toml 'tuned[model=clip]'\n  pipe show study.toml pairs.images\n  pipe show study.toml --resolved"
    )]
    Show(ShowArguments),
    /// Lists runs, or prints the events of one, or what a node wrote when it last ran
    #[command(
        after_help = "Examples:\n  pipe log study.toml\n  pipe log study.toml last\n  pipe log study.toml 'tuned[model=clip]'"
    )]
    Log(LogArguments),
    /// Says how two runs differ: nodes, parameters, inputs, results
    #[command(
        after_help = "Examples:\n  pipe diff study.toml 01a2 last\n  pipe diff study.toml 01a2 01a3 --exit-code"
    )]
    Diff(DiffArguments),
    /// Answers one SQL query over all results of a study
    #[command(
        after_help = "Examples:\n  pipe query study.toml --tables\n  pipe query study.toml \"select stage, model, value from metrics where metric = 'auroc'\"\n  pipe query study.toml - --format csv --output figures.csv < figures.sql"
    )]
    Query(QueryArguments),
    /// Lays figures out with their intervals, for a paper
    #[command(
        after_help = "Examples:\n  pipe report study.toml --table model:dataset:auroc --format latex\n  pipe report study.toml --table model+mode::auroc,accuracy --where stage=classified\n  pipe report study.toml --table model:domain:recall@1 --where method=image_to_text --format csv"
    )]
    Report(ReportArguments),
    /// Writes a run as a folder or an archive that stands alone (RO-Crate)
    #[command(
        after_help = "Examples:\n  pipe export study.toml last results.zip\n  pipe export study.toml 01a2 crate/ report 'tested*'\n  pipe export study.toml last pictures/ explained --sheets"
    )]
    Export(ExportArguments),
    /// Draws the graph of a study
    Graph(GraphArguments),
    /// Finds every mistake of a pipeline file, with its place
    Check(FileArguments),
    /// Prints the JSON Schema of pipeline files, for editors; or their reference, for people
    #[command(
        after_help = "Examples:\n  pipe schema > pipeline.schema.json\n  pipe schema --format md\n  pipe schema --tables"
    )]
    Schema(SchemaArguments),
    /// Removes published results, never the store
    Clean(FileArguments),
    /// Checks stored results against their digests
    #[command(
        after_help = "Examples:\n  pipe verify study.toml\n  pipe verify study.toml --repair && pipe run study.toml\n  pipe verify study.toml --sources"
    )]
    Verify(VerifyArguments),
    /// Says what the store keeps that nothing needs, and removes it with `--apply`
    #[command(
        after_help = "Examples:\n  pipe gc study.toml\n  pipe gc study.toml --apply --max-size 200GiB\n  pipe gc study.toml --explain b3:DIGEST"
    )]
    Gc(GcArguments),
    /// Puts the results of a study into its remote cache
    #[command(after_help = "Examples:\n  pipe push study.toml\n  pipe push study.toml embedded --json")]
    Push(MirrorArguments),
    /// Takes results of a study from its remote cache, and runs nothing
    #[command(after_help = "Examples:\n  pipe pull study.toml\n  pipe pull study.toml report")]
    Pull(MirrorArguments),
    /// Keeps results whatever the garbage collector does
    Pin(PinArguments),
    /// Lets go of what a pin keeps
    Unpin(UnpinArguments),
    /// Examines the machine and the store
    Doctor(OptionalFileArguments),
    /// Executes one action for another process of this program
    #[command(hide = true)]
    Isolated {
        /// The folder that says what is to be done
        folder: PathBuf,
    },
    /// Executes actions of a batch in a job of a cluster; submitted by `run --executor slurm`
    #[command(hide = true)]
    Worker(WorkerArguments),
    /// Prints the manual page of the program, or writes one for each command into a folder
    Man {
        /// The folder, made if it is not there
        folder: Option<PathBuf>,
    },
    /// Prints completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct InitArguments {
    /// The folder; by default this one
    #[arg(value_name = "FOLDER", default_value = ".")]
    pub(crate) folder: PathBuf,
    /// What the study asks; `--template help` lists them
    #[arg(long, value_name = "NAME")]
    pub(crate) template: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct WorkerArguments {
    /// The batch
    #[arg(long, value_name = "BATCH")]
    pub(crate) batch: String,
    /// The task of the batch; by default what Slurm says
    #[arg(long, value_name = "NUMBER")]
    pub(crate) task: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct CancelArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run: its id, the beginning of it, or `last`
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
}

#[derive(Args, Debug)]
pub(crate) struct FileArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct OptionalFileArguments {
    /// The pipeline file whose project is examined
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct TargetArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A stage, a node, or a glob over nodes
    #[arg(value_name = "NODE", required = true)]
    pub(crate) targets: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct WhyArguments {
    #[command(flatten)]
    pub(crate) target: TargetArguments,
    /// Take results that another kind of device computed where there are none of this one's, as `run` would
    #[arg(long, value_name = "CLASSES", value_parser = ["any"])]
    pub(crate) accept_numerics: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ShowArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A stage, a node, a glob over nodes, or one of these with an output (`NODE.PORT`); all by default
    #[arg(value_name = "NODE")]
    pub(crate) targets: Vec<String>,
    /// Print every value with the place that set it
    #[arg(long)]
    pub(crate) resolved: bool,
}

#[derive(Args, Debug)]
pub(crate) struct LogArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run (its id, the beginning of it, or `last`), or a stage, a node, or a glob over nodes
    #[arg(value_name = "RUN|NODE")]
    pub(crate) target: Option<String>,
    /// How many runs are listed
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    pub(crate) last: usize,
}

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

#[derive(Args, Debug)]
pub(crate) struct DiffArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run: its id, the beginning of it, or `last`
    #[arg(value_name = "OLD_RUN")]
    pub(crate) old: String,
    /// Another run
    #[arg(value_name = "NEW_RUN")]
    pub(crate) new: String,
    /// Exit with 6 if anything differs
    #[arg(long)]
    pub(crate) exit_code: bool,
}

/// How the language of pipeline files is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaFormat {
    /// JSON Schema
    Json,
    /// Markdown
    Md,
}

#[derive(Args, Debug)]
pub(crate) struct SchemaArguments {
    /// How it is written
    #[arg(long, value_enum, default_value_t = SchemaFormat::Json, value_name = "FORMAT")]
    pub(crate) format: SchemaFormat,
    /// Describe the tables of results instead: a dictionary of their columns, in Markdown
    #[arg(long, conflicts_with = "format")]
    pub(crate) tables: bool,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AnswerFormat {
    /// Aligned columns, for people
    Table,
    /// Comma-separated values; texts that a spreadsheet would compute begin with an apostrophe
    Csv,
    /// One JSON object
    Json,
    /// A table of Markdown
    Md,
    /// A tabular of LaTeX, with the rules of `booktabs`
    Latex,
}

#[derive(Args, Debug)]
pub(crate) struct AnswerArguments {
    /// How it is written
    #[arg(long, value_enum, default_value_t = AnswerFormat::Table, value_name = "FORMAT", help_heading = "Output")]
    pub(crate) format: AnswerFormat,
    /// The file it is written to, whole or not at all; by default standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Digits after the point, for people; `csv` and `json` always have all
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=15), help_heading = "Output")]
    pub(crate) digits: u8,
}

#[derive(Args, Debug)]
pub(crate) struct QueryArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// One query in SQL, as SQLite has it; `-` reads it from standard input
    #[arg(value_name = "SQL", required_unless_present = "tables")]
    pub(crate) sql: Option<String>,
    /// List the tables with their columns instead
    #[arg(long, conflicts_with = "sql")]
    pub(crate) tables: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Debug)]
pub(crate) struct ReportArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// What the rows are, what the columns are, and which figures: `model:dataset:auroc`. Several names of
    /// rows or columns are joined by `+`, several metrics by `,`; columns may be left out
    #[arg(long, value_name = "ROWS:COLUMNS:METRIC")]
    pub(crate) table: String,
    /// Of all figures, only those where a column has this value; `NAME=` asks for those without one
    #[arg(long = "where", value_name = "NAME=VALUE")]
    pub(crate) filters: Vec<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerArguments,
}

#[derive(Args, Debug)]
pub(crate) struct ExportArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// A run: its id, the beginning of it, or `last`
    #[arg(value_name = "RUN")]
    pub(crate) run: String,
    /// A folder that does not exist, or an archive if it ends in `.zip`
    #[arg(value_name = "FOLDER|FILE.zip")]
    pub(crate) to: PathBuf,
    /// Stages, nodes or globs whose results are written; all by default. Provenance is written of every node
    #[arg(value_name = "NODE")]
    pub(crate) targets: Vec<String>,
    /// Only results of which no row is about a single image, patient or question, and nothing of what stages said
    #[arg(long)]
    pub(crate) aggregate_only: bool,
    /// Instead of results the pictures of saliency maps, as PNG sheets for print
    #[arg(long, conflicts_with = "aggregate_only")]
    pub(crate) sheets: bool,
    /// Samples of which pictures are drawn, at most
    #[arg(long, value_name = "N", default_value_t = 8, requires = "sheets", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) samples: u32,
}

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

/// How the graph is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// An indented list
    Text,
    /// Graphviz
    Dot,
    /// Mermaid
    Mermaid,
    /// A picture
    Svg,
}

#[derive(Args, Debug)]
pub(crate) struct GraphArguments {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) pipeline: PathBuf,
    /// How it is written
    #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
    pub(crate) format: GraphFormat,
    /// One node for each instance instead of one for each stage
    #[arg(long)]
    pub(crate) nodes: bool,
    /// Say and colour what is up to date
    #[arg(long)]
    pub(crate) status: bool,
    /// Say of row-wise stages in how many parts they run
    #[arg(long)]
    pub(crate) shards: bool,
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<u8, CliError> {
    use clap::CommandFactory;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "pipe", &mut script);
    print(&String::from_utf8_lossy(&script))
}
