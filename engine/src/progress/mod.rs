//! What a person sees while a run goes on, on standard error: bars on a terminal, else plain lines.

mod pace;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value as Json;

use self::pace::Pace;
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
    /// The whole run, below its stages; only on a terminal.
    whole: Option<ProgressBar>,
}

struct Running {
    bar: Option<ProgressBar>,
    said: Instant,
    pace: Pace,
}

impl Running {
    fn new(bar: Option<ProgressBar>) -> Self {
        Self { bar, said: Instant::now(), pace: Pace::default() }
    }
}

impl Display {
    pub(crate) fn new(verbosity: Verbosity, terminal: bool) -> Self {
        let bars = (terminal && verbosity == Verbosity::Normal).then(MultiProgress::new);
        Self { verbosity, bars, running: BTreeMap::new(), whole: None }
    }

    /// A bar for the whole run: nodes that are done of those that were not up to date.
    fn planned(&mut self, hit: u64, to_do: u64) {
        let Some(bars) = self.bars.as_ref().filter(|_| to_do > 0) else { return };
        let bar = bars.add(ProgressBar::new(to_do));
        let template = "{prefix:>10}  {pos}/{len} stages{msg}  {wide_bar} {elapsed_precise}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix("All");
        if hit > 0 {
            bar.set_message(format!(", {hit} were up to date"));
        }
        self.whole = Some(bar);
    }

    /// One stage more is done, or needs not be done.
    fn advance(&mut self) {
        if let Some(bar) = &self.whole {
            bar.inc(1);
        }
    }

    /// A bar above that of the whole run.
    fn bar(&self, length: u64, template: &str, prefix: &'static str, message: &str) -> Option<ProgressBar> {
        let bars = self.bars.as_ref()?;
        let bar = ProgressBar::new(length);
        let bar = match &self.whole {
            Some(whole) => bars.insert_before(whole, bar),
            None => bars.add(bar),
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(prefix);
        bar.set_message(message.to_owned());
        Some(bar)
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
                let count = |count: &Json| count.as_u64().unwrap_or(0);
                self.planned(count(hit), count(run) + count(maybe));
            }
            "action_started" => {
                let template = "{prefix:>10}  {msg} {wide_bar} {pos}/{len} {elapsed_precise}";
                let bar = self.bar(0, template, "Run", &node);
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
                self.running.insert(node, Running::new(bar));
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
            "action_hit" => {
                if self.verbosity == Verbosity::Verbose {
                    self.line("Cached", &node);
                }
                self.advance();
            }
            "action_finished" => {
                if let Some(Running { bar: Some(bar), .. }) = self.running.remove(&node) {
                    bar.finish_and_clear();
                }
                let seconds = fields["wall"].as_f64().unwrap_or_default();
                match fields["status"].as_str() {
                    Some("ok") => self.line("Done", &format!("{node}  {seconds:.1} s")),
                    Some("cancelled") => self.line("Stopped", &node),
                    Some("left") => self.line("Left", &node),
                    _ => {
                        // A program's last words take further lines, which the end of the run tells.
                        let first = fields["error"].as_str().and_then(|error| error.lines().next());
                        let cause = first.map(|first| format!("  {first}")).unwrap_or_default();
                        self.line("Failed", &format!("{node}  {seconds:.1} s{cause}"));
                    }
                }
                self.advance();
            }
            "warning" => self.line(
                "Warning",
                &format!(
                    "{} {}",
                    fields["subject"].as_str().unwrap_or_default(),
                    fields["detail"].as_str().unwrap_or_default()
                ),
            ),
            "run_finished" => {
                if let Some(bar) = self.whole.take() {
                    bar.finish_and_clear();
                }
            }
            "retry" => {
                // It is not done after all.
                if let Some(bar) = &self.whole {
                    bar.dec(1);
                }
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
        let template = "{prefix:>10}  {msg} {wide_bar} {bytes}/{total_bytes}";
        let bar = self.bar(bytes, template, "Fetch", &subject);
        if bar.is_none() {
            let files = fields["files"].as_u64().unwrap_or(0);
            self.line("Fetch", &format!("{subject}  {files} files, {}", size(bytes)));
        }
        self.running.insert(subject, Running::new(bar));
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
        let now = Instant::now();
        running.pace.note(now, done);
        let pace = running.pace.words(total, unit);
        if let Some(bar) = &running.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(format!("{node}  {unit}  {pace}  {figures}"));
        } else if now.duration_since(running.said) >= HEARTBEAT {
            running.said = now;
            let line = format!("{node}  {done}/{total} {unit}  {pace}  {figures}");
            self.line("...", line.trim_end());
        }
    }
}
