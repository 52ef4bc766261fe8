//! What a person sees while a run goes on, on standard error: bars on a terminal, else plain lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value as Json;

use crate::cli::size;

/// A line for a stage without news at most this often, where there is no terminal.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How much is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verbosity {
    /// Errors only.
    Quiet,
    /// Start and end of stages.
    Normal,
    /// Hits and checkpoints too.
    Verbose,
}

/// The reader of the event stream that draws.
pub(crate) struct Display {
    verbosity: Verbosity,
    bars: Option<MultiProgress>,
    running: BTreeMap<String, Running>,
}

struct Running {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Display {
    pub(crate) fn new(verbosity: Verbosity, terminal: bool) -> Self {
        let bars = (terminal && verbosity == Verbosity::Normal).then(MultiProgress::new);
        Self { verbosity, bars, running: BTreeMap::new() }
    }

    fn line(&self, verb: &str, text: &str) {
        let line = format!("{verb:>10}  {text}");
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(line);
            }
            None => eprintln!("{line}"),
        }
    }

    pub(crate) fn show(&mut self, event: &str, fields: &Json) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        if fields["shard"].is_string() {
            // Parts are told in the progress of their node.
            return;
        }
        let node = fields["node"].as_str().unwrap_or_default().to_owned();
        match event {
            "planned" => {
                let counts = &fields["counts"];
                let (hit, run, maybe) = (&counts["hit"], &counts["run"], &counts["maybe"]);
                self.line("Plan", &format!("{hit} up to date, {run} to run, {maybe} depend on them"));
            }
            "action_started" => {
                let bar = self.bars.as_ref().map(|bars| {
                    let bar = bars.add(ProgressBar::new(0));
                    if let Ok(style) = ProgressStyle::with_template(
                        "{prefix:>10}  {msg} {wide_bar} {pos}/{len} {elapsed_precise}",
                    ) {
                        bar.set_style(style);
                    }
                    bar.set_prefix("Run");
                    bar.set_message(node.clone());
                    bar
                });
                if bar.is_none() {
                    let reason =
                        fields["reason"].as_str().map(|reason| format!("  ({reason})")).unwrap_or_default();
                    let shards = &fields["shards"];
                    let parts = match (shards["run"].as_u64(), shards["total"].as_u64()) {
                        (Some(run), Some(total)) => format!("  {run} of {total} parts"),
                        _ => String::new(),
                    };
                    self.line("Run", &format!("{node}{parts}{reason}"));
                }
                self.running.insert(node, Running { bar, said: Instant::now() });
            }
            "progress" => self.progress(&node, fields),
            "fetch_started" => self.fetch_started(fields),
            "fetch_progress" => self.progress(fields["subject"].as_str().unwrap_or_default(), fields),
            "fetch_retry" => {
                let text = |key: &str| fields[key].as_str().unwrap_or_default();
                let delay = fields["delay"].as_f64().unwrap_or_default();
                let line = format!("{}  {}; again in {delay:.1} s", text("subject"), text("detail"));
                self.line("Retry", &line);
            }
            "fetch_finished" => {
                let subject = fields["subject"].as_str().unwrap_or_default();
                if let Some(Running { bar: Some(bar), .. }) = self.running.remove(subject) {
                    bar.finish_and_clear();
                }
                let verb = match fields["status"].as_str() {
                    Some("ok") => "Fetched",
                    Some("cancelled") => "Stopped",
                    _ => "Failed",
                };
                let bytes = size(fields["bytes"].as_u64().unwrap_or(0));
                let seconds = fields["wall"].as_f64().unwrap_or_default();
                self.line(verb, &format!("{subject}  {bytes}  {seconds:.1} s"));
            }
            "resume" => self.line("Resume", &format!("{node}  after step {}", fields["step"])),
            "checkpoint" if self.verbosity == Verbosity::Verbose => {
                self.line("Kept", &format!("{node}  after step {}", fields["step"]));
            }
            "action_hit" if self.verbosity == Verbosity::Verbose => self.line("Cached", &node),
            "action_finished" => {
                if let Some(Running { bar: Some(bar), .. }) = self.running.remove(&node) {
                    bar.finish_and_clear();
                }
                let seconds = fields["wall"].as_f64().unwrap_or_default();
                match fields["status"].as_str() {
                    Some("ok") => self.line("Done", &format!("{node}  {seconds:.1} s")),
                    Some("cancelled") => self.line("Stopped", &node),
                    Some("left") => self.line("Left", &node),
                    _ => self.line("Failed", &format!("{node}  {seconds:.1} s")),
                }
            }
            "warning" => self.line(
                "Warning",
                &format!(
                    "{} {}",
                    fields["subject"].as_str().unwrap_or_default(),
                    fields["detail"].as_str().unwrap_or_default()
                ),
            ),
            "retry" => {
                let seconds = fields["delay"].as_f64().unwrap_or_default();
                let class = fields["class"].as_str().unwrap_or_default();
                self.line("Retry", &format!("{node}  in {seconds:.0} s, after a failure of class {class}"));
            }
            "submitted" => self.line("Submit", fields["detail"].as_str().unwrap_or_default()),
            "corruption" | "nondeterminism" | "waiting" => {
                self.line(
                    event,
                    &format!(
                        "{} {}",
                        fields["subject"].as_str().unwrap_or_default(),
                        fields["detail"].as_str().unwrap_or_default()
                    ),
                );
            }
            _ => {}
        }
    }

    fn fetch_started(&mut self, fields: &Json) {
        let subject = fields["subject"].as_str().unwrap_or_default().to_owned();
        let bytes = fields["bytes"].as_u64().unwrap_or(0);
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new(bytes));
            let template = "{prefix:>10}  {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix("Fetch");
            bar.set_message(subject.clone());
            bar
        });
        if bar.is_none() {
            let files = fields["files"].as_u64().unwrap_or(0);
            self.line("Fetch", &format!("{subject}  {files} files, {}", size(bytes)));
        }
        self.running.insert(subject, Running { bar, said: Instant::now() });
    }

    fn progress(&mut self, node: &str, fields: &Json) {
        let Some(running) = self.running.get_mut(node) else { return };
        let (done, total) = (fields["done"].as_u64().unwrap_or(0), fields["total"].as_u64().unwrap_or(0));
        let unit = fields["unit"].as_str().unwrap_or_default();
        let figures: Vec<String> = fields["metrics"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name} {:.4}", value.as_f64().unwrap_or(f64::NAN)))
            .collect();
        let figures = figures.join(", ");
        if let Some(bar) = &running.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{node}  {unit}  {figures}"));
        } else if running.said.elapsed() >= HEARTBEAT {
            running.said = Instant::now();
            self.line("...", &format!("{node}  {done}/{total} {unit}  {figures}"));
        }
    }
}
