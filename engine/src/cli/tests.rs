//! The program with kinds made for tests: stages that panic, fail and count how often they run.

mod edits;
mod rows;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tempfile::TempDir;

use crate::context::StageContext;
use crate::error::StageError;
use crate::kind::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, Registry, StageKind,
};

/// What the stage does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
enum Does {
    #[default]
    Write,
    Panic,
    PanicInThread,
    Fail,
    NoSpace,
    Nothing,
    Differ,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct Params {
    text: String,
    does: Does,
}

/// Writes its text and what it read.
struct Note;

static EXECUTED: AtomicUsize = AtomicUsize::new(0);

impl StageKind for Note {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "note",
            summary: "a kind of the tests",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort { many: true, ..InputPort::optional("", &[], "anything") }),
        }
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "a text")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let number = EXECUTED.fetch_add(1, Ordering::Relaxed);
        let mut text = params.text.clone();
        for (_, artifacts) in context.all_inputs() {
            for input in artifacts {
                let location = &input.artifact.single_file()?.location;
                text.push_str(&std::fs::read_to_string(location).unwrap());
            }
        }
        match params.does {
            Does::Panic => panic!("the stage {text} lost its mind"),
            Does::PanicInThread => {
                use rayon::prelude::*;
                (0..100).into_par_iter().for_each(|item| assert!(item != 77, "item {item} is odd"));
            }
            Does::Fail => return Err(StageError::failed("it never works")),
            Does::NoSpace => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(StageError::because("packing", std::io::Error::other(full)));
            }
            Does::Nothing => return Ok(()),
            Does::Differ => text.push_str(&number.to_string()),
            Does::Write => {}
        }
        std::fs::write(context.output("out")?.path("text.txt")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }
}

fn registry() -> Registry {
    Registry::new()
        .with(Note)
        .with(rows::Lines)
        .with(rows::Append)
        .with(rows::Find)
        .with(rows::Count)
        .with(rows::Two)
}

thread_local! {
    /// What this thread prints, while a test wants to see it.
    static CAPTURED: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Takes a text that would be printed, if a test of this thread wants it.
pub(super) fn capture(text: &str) -> bool {
    CAPTURED.with(|captured| captured.borrow_mut().as_mut().map(|all| all.push_str(text)).is_some())
}

/// A study of notes in a folder of its own.
struct World {
    folder: TempDir,
}

impl World {
    fn new(stages: &str) -> Self {
        let world = Self { folder: TempDir::new().unwrap() };
        world.write(stages);
        world
    }

    fn write(&self, stages: &str) {
        let text = format!("[pipeline]\nname = \"w\"\nformat = 1\n{stages}");
        std::fs::write(self.path("w.toml"), text).unwrap();
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    fn pipe(&self, command: &str, arguments: &[&str]) -> u8 {
        let study = self.path("w.toml");
        let mut all = vec!["pipe", command, study.to_str().unwrap(), "--quiet"];
        all.extend(arguments);
        super::answer(all.into_iter().map(Into::into), &registry())
    }

    /// What a command prints as JSON.
    fn answer(&self, command: &str, arguments: &[&str]) -> Json {
        CAPTURED.with(|captured| *captured.borrow_mut() = Some(String::new()));
        self.pipe(command, arguments);
        let text = CAPTURED.with(|captured| captured.borrow_mut().take()).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The events of the newest run.
    fn events(&self) -> Vec<Json> {
        let runs = std::fs::read_dir(self.path(".pipe/runs")).unwrap();
        let newest = runs.map(|entry| entry.unwrap().path()).max().unwrap();
        let text = std::fs::read_to_string(newest.join("events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn of(&self, event: &str) -> Vec<Json> {
        self.events().into_iter().filter(|one| one["ev"] == event).collect()
    }

    fn started(&self) -> Vec<String> {
        let mut nodes: Vec<String> = self
            .of("action_started")
            .iter()
            .filter(|one| one["shard"].is_null())
            .map(|one| one["node"].as_str().unwrap().to_owned())
            .collect();
        nodes.sort();
        nodes
    }

    /// The nodes that all runs so far executed, sorted.
    fn started_by_all(&self) -> Vec<String> {
        let mut nodes = Vec::new();
        for run in std::fs::read_dir(self.path(".pipe/runs")).unwrap() {
            let text = std::fs::read_to_string(run.unwrap().path().join("events.jsonl")).unwrap();
            let events = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
            let started = events.filter(|one| one["ev"] == "action_started");
            nodes.extend(started.map(|one| one["node"].as_str().unwrap().to_owned()));
        }
        nodes.sort();
        nodes
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for run in std::fs::read_dir(self.path(".pipe/runs")).unwrap() {
            for log in std::fs::read_dir(run.unwrap().path().join("logs")).unwrap() {
                text.push_str(&std::fs::read_to_string(log.unwrap().path()).unwrap());
            }
        }
        text
    }
}

fn stage(name: &str, params: &str, inputs: &str) -> String {
    format!("[stage.{name}]\nkind = \"note\"\nparams = {{ {params} }}\ninputs = {{ {inputs} }}\n")
}

#[test]
fn a_panic_is_a_failed_stage_and_the_rest_goes_on() {
    for (does, message, place) in [
        ("panic", "panicked: the stage x lost its mind", "cli/tests.rs"),
        ("panic_in_thread", "panicked: item 77 is odd", "cli/tests.rs"),
    ] {
        let stages = [
            stage("bad", &format!("text = \"x\", does = \"{does}\""), ""),
            stage("after", "", "a = \"bad\""),
            stage("good", "text = \"y\"", ""),
            stage("after_good", "", "a = \"good\""),
        ];
        let world = World::new(&stages.concat());
        assert_eq!(world.pipe("run", &[]), 1);
        assert_eq!(world.started(), ["after_good", "bad", "good"]);
        let failed: Vec<Json> =
            world.of("action_finished").into_iter().filter(|one| one["status"] == "failed").collect();
        assert_eq!((failed.len(), failed[0]["error"].as_str()), (1, Some(message)));
        assert_eq!(world.of("run_finished")[0]["blocked"], 1);
        // Where it happened stands in the log, with a backtrace.
        assert!(world.logs().contains(place) && world.logs().contains("   1: "), "{}", world.logs());
        assert!(std::fs::read_dir(world.path(".pipe/tmp")).unwrap().next().is_none(), "staging is removed");
        // The dead do not come back: the next run tries again.
        assert_eq!(world.pipe("run", &[]), 1);
        assert_eq!(world.started(), ["bad"]);
    }
}

#[test]
fn a_full_disk_stops_the_run_whatever_class_the_stage_gave_it() {
    let stages = [stage("bad", "does = \"no_space\"", ""), stage("late", "text = \"y\"", "")];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &["--jobs", "1"]), 3);
    assert_eq!(world.started(), ["bad"]);
}

#[test]
fn a_stage_that_writes_nothing_has_failed() {
    let world = World::new(&stage("empty", "does = \"nothing\"", ""));
    assert_eq!(world.pipe("run", &[]), 1);
    let error = world.of("action_finished")[0]["error"].as_str().unwrap().to_owned();
    assert_eq!(error, "the stage wrote nothing to its output `out`");
}

#[test]
fn another_result_under_the_same_key_is_reported_and_the_first_stands() {
    let world = World::new(&stage("moody", "does = \"differ\"", ""));
    assert_eq!(world.pipe("run", &[]), 0);
    let first = std::fs::read(world.path("results/w/moody/out/text.txt")).unwrap();
    assert_eq!(world.pipe("run", &["--force", "moody"]), 0);
    assert_eq!(world.of("nondeterminism").len(), 1);
    assert_eq!(std::fs::read(world.path("results/w/moody/out/text.txt")).unwrap(), first);
}

#[test]
fn forced_nodes_run_and_equal_results_stop_the_wave() {
    let stages = [stage("a", "text = \"x\"", ""), stage("b", "", "i = \"a\""), stage("c", "", "i = \"b\"")];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.pipe("run", &["--force", "a"]), 0);
    assert_eq!(world.started(), ["a"]);
    assert_eq!(world.of("action_finished")[0]["cutoff"], true);
    assert_eq!(world.pipe("run", &["--force", "a", "--force", "c"]), 0);
    assert_eq!(world.started(), ["a", "c"]);
}

/// The reason that is given when an action starts is the one that `why` would give then.
#[test]
fn an_action_says_why_it_runs() {
    let both =
        |text: &str| [stage("a", &format!("text = \"{text}\""), ""), stage("b", "", "i = \"a\"")].concat();
    let world = World::new(&both("x"));
    assert_eq!(world.pipe("run", &[]), 0);
    let reasons = |world: &World| -> Vec<String> {
        world.of("action_started").iter().map(|one| one["reason"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(reasons(&world), ["it has no result yet", "it has no result yet"]);
    world.write(&both("z"));
    assert_eq!(world.pipe("run", &[]), 0);
    let given = reasons(&world);
    assert!(given[0].starts_with("param `text` \"x\" -> \"z\" ("), "{given:?}");
    assert_eq!(given[1], "input `i` changed: `a` gave another result");
}

/// Comparing with what was planned by a run that never came so far would say nothing.
#[test]
fn why_compares_with_the_last_result_and_not_with_the_last_plan() {
    let one = |text: &str, does: &str| stage("a", &format!("text = \"{text}\", does = \"{does}\""), "");
    let world = World::new(&one("x", "write"));
    assert_eq!(world.pipe("run", &[]), 0);
    world.write(&one("y", "fail"));
    assert_eq!(world.pipe("run", &[]), 1);
    world.write(&one("z", "write"));
    assert_eq!(world.pipe("run", &[]), 0);
    let started = &world.of("action_started")[0];
    assert!(started["reason"].as_str().unwrap().starts_with("param `text` \"x\" -> \"z\""), "{started}");
}

#[test]
fn an_action_knows_what_it_took_and_the_run_its_critical_path() {
    let stages = [
        stage("a", "text = \"x\"", ""),
        stage("b", "", "i = \"a\""),
        stage("c", "text = \"c\"", "i = \"b\", j = \"a\""),
    ];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &[]), 0);
    for one in world.of("action_finished") {
        assert!(one["cpu"].as_f64().is_some_and(|seconds| seconds >= 0.0), "{one}");
        assert!(one["peak_rss"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{one}");
    }
    let path = &world.of("run_finished")[0]["critical_path"];
    assert_eq!(path["nodes"], serde_json::json!(["a", "b", "c"]));
}

#[test]
fn a_chain_of_thousands_runs_and_is_planned_without_recursion() {
    let mut stages = stage("n0", "text = \"x\"", "");
    for index in 1..2000 {
        let params = format!("text = \"{}\"", index % 10);
        stages.push_str(&stage(&format!("n{index}"), &params, &format!("i = \"n{}\"", index - 1)));
    }
    let world = World::new(&stages);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.of("run_finished")[0]["executed"], 2000);
    assert_eq!(world.pipe("plan", &["--check"]), 0);
}

/// A run that finds a result of another one goes on with what depends on it.
#[test]
fn eight_runs_at_once_execute_each_action_once_and_none_ends_early() {
    let mut stages = String::new();
    let mut expected = Vec::new();
    for chain in 0..3 {
        for index in 0..8 {
            let input = if index > 0 { format!("i = \"c{chain}_{}\"", index - 1) } else { String::new() };
            stages.push_str(&stage(&format!("c{chain}_{index}"), &format!("text = \"{chain}\""), &input));
            expected.push(format!("c{chain}_{index}"));
        }
    }
    let world = World::new(&stages);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8).map(|_| scope.spawn(|| world.pipe("run", &[]))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), 0);
            assert!(world.path("results/w/c2_7/out/text.txt").is_file(), "a run ends when all is done");
        }
    });
    assert_eq!(world.started_by_all(), expected);
}

#[test]
fn only_reads_what_is_there() {
    let both = [stage("a", "text = \"x\"", ""), stage("b", "text = \"y\"", "i = \"a\"")].concat();
    let world = World::new(&both);
    assert_eq!(world.pipe("run", &["b", "--only"]), 2);
    assert_eq!(world.pipe("plan", &["b", "--only"]), 2);
    assert_eq!(world.pipe("run", &["a", "--only"]), 0);
    assert_eq!(world.pipe("run", &["b", "--only"]), 0);
    assert_eq!(world.started_by_all(), ["a", "b"]);
    assert_eq!(std::fs::read_to_string(world.path("results/w/b/out/text.txt")).unwrap(), "yx");
}

/// Changes a byte of every blob, keeping all times: what a bad disk does.
fn rot(world: &World) {
    for folder in std::fs::read_dir(world.path(".pipe/cas")).unwrap() {
        for blob in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = blob.unwrap().path();
            let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[0] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
            std::fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
    }
}

#[test]
fn results_that_rot_unseen_are_repaired_when_they_are_read_or_published() {
    let stages = [
        stage("a", "text = \"x\"", ""),
        stage("b", "text = \"y\"", "i = \"a\""),
        stage("c", "text = \"z\"", "i = \"b\""),
    ];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &[]), 0);
    rot(&world);
    std::fs::remove_dir_all(world.path("results")).unwrap();
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), ["a", "b", "c"]);
    assert_eq!(world.of("run_finished")[0]["repaired"], 3);
    assert_eq!(std::fs::read_to_string(world.path("results/w/c/out/text.txt")).unwrap(), "zyx");
    // Nothing that reads them ran, so nothing was noticed; a forced reader notices.
    rot(&world);
    assert_eq!(world.pipe("run", &["--force", "c"]), 0);
    assert_eq!(world.started(), ["a", "b", "c"]);
    assert_eq!(std::fs::read_to_string(world.path("results/w/c/out/text.txt")).unwrap(), "zyx");
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), [] as [&str; 0]);
}
