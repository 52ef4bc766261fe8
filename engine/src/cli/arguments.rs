//! What may be typed: all commands, and what those that look are given.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{CliError, print};
use crate::exit;

mod results;
mod run;
mod store;

pub(crate) use results::*;
pub(crate) use run::*;
pub(crate) use store::*;

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
