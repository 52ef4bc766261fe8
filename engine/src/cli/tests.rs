//! The program with kinds made for tests: stages that panic, fail and count how often they run.

mod ancestry;
mod edits;
mod estimate;
mod evict;
mod growth;
mod interim;
mod numerics;
mod random_edits;
mod remote;
mod resources;
mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
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
    /// Two attempts at the same text fail.
    FailTwice,
    BadInput,
    /// It notes who else runs.
    Meet,
    /// It looks for half a second whether it shall stop.
    Wait,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct Params {
    text: String,
    does: Does,
    /// Tells nodes of one text apart.
    number: i64,
}

/// Writes its text and what it read.
struct Note {
    name: &'static str,
    numerics: Numerics,
}

/// How often a text was tried.
static TRIED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

static EXECUTED: AtomicUsize = AtomicUsize::new(0);

impl StageKind for Note {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: self.name,
            summary: "a kind of the tests",
            implementation: 1,
            schema_version: 1,
            numerics: self.numerics,
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
            Does::FailTwice => {
                let mut tried = TRIED.lock().unwrap();
                let count = tried.entry(text.clone()).or_insert(0);
                *count += 1;
                if *count <= 2 {
                    return Err(StageError::environment(
                        "reading",
                        std::io::Error::other("the cable is loose"),
                    ));
                }
            }
            Does::BadInput => return Err(StageError::input("x.csv", "it is torn")),
            Does::Meet => resources::meet(&params.text, context),
            Does::Wait => {
                for _ in 0..100 {
                    context.check_cancelled()?;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
            Does::Differ => text.push_str(&number.to_string()),
            Does::Write => {}
        }
        std::fs::write(context.output("out")?.path("text.txt")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }
}

fn registry() -> Registry {
    Registry::new()
        .with(Note { name: "note", numerics: Numerics::Exact })
        .with(Note { name: "weigh", numerics: Numerics::Tensor })
        .with(rows::Lines)
        .with(rows::Append)
        .with(rows::Find)
        .with(rows::Count)
        .with(rows::Two)
        .with(ancestry::Told)
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
        self.pipe_with(&registry(), command, arguments)
    }

    fn pipe_with(&self, registry: &Registry, command: &str, arguments: &[&str]) -> u8 {
        let study = self.path("w.toml");
        let mut all = vec!["pipe", command, study.to_str().unwrap(), "--quiet"];
        all.extend(arguments);
        super::answer(all.into_iter().map(Into::into), registry)
    }

    /// What a command prints as JSON.
    fn answer(&self, command: &str, arguments: &[&str]) -> Json {
        self.answer_with(&registry(), command, arguments)
    }

    fn answer_with(&self, registry: &Registry, command: &str, arguments: &[&str]) -> Json {
        CAPTURED.with(|captured| *captured.borrow_mut() = Some(String::new()));
        self.pipe_with(registry, command, arguments);
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

/// What else runs stops at its next safe point, with `--fail-fast=now` too; otherwise it ends as it would have.
#[test]
fn what_runs_beside_a_failure_is_stopped_or_goes_on() {
    for (does, arguments, code, slow, late) in [
        ("no_space", &[][..], 3, "cancelled", false),
        ("fail", &["--fail-fast=now"], 1, "cancelled", false),
        ("fail", &["--fail-fast"], 1, "ok", false),
        ("fail", &[], 1, "ok", true),
    ] {
        let stages = [
            "[executor.local]\ncpu = 2\n".to_owned(),
            stage("slow", "text = \"x\", does = \"wait\"", ""),
            stage("bad", &format!("does = \"{does}\""), ""),
            stage("late", "text = \"late\"", ""),
        ];
        let world = World::new(&stages.concat());
        assert_eq!(world.pipe("run", arguments), code, "{does} {arguments:?}");
        let status = |node: &str| -> Option<Json> {
            let finished = world.of("action_finished").into_iter().find(|one| one["node"] == node);
            finished.map(|one| one["status"].clone())
        };
        assert_eq!(status("slow"), Some(slow.into()), "{does} {arguments:?}");
        assert_eq!(status("late").is_some(), late, "{does} {arguments:?}");
        assert!(std::fs::read_dir(world.path(".pipe/tmp")).unwrap().next().is_none(), "staging is removed");
    }
}

#[test]
fn a_stage_that_writes_nothing_has_failed() {
    let world = World::new(&stage("empty", "does = \"nothing\"", ""));
    assert_eq!(world.pipe("run", &[]), 1);
    let error = world.of("action_finished")[0]["error"].as_str().unwrap().to_owned();
    assert_eq!(error, "output `out`: the stage wrote nothing to it");
}

#[test]
fn another_result_under_the_same_key_is_reported_and_the_first_stands() {
    let world = World::new(&stage("moody", "does = \"differ\"", ""));
    assert_eq!(world.pipe("run", &[]), 0);
    let first = std::fs::read(world.path("results/w/moody/out/text.txt")).unwrap();
    assert_eq!(world.pipe("run", &["--force", "moody"]), 0);
    assert_eq!(world.of("nondeterminism").len(), 1);
    assert_eq!(world.of("reproduced")[0]["equal"], false);
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

/// Two nodes of one key: the second has the result of the first as soon as it is there.
#[test]
fn nodes_of_one_key_run_once_and_wait_for_nobody() {
    let twins: Vec<String> = (0..6).map(|place| stage(&format!("n{place}"), "text = \"x\"", "")).collect();
    let world = World::new(&twins.concat());
    assert_eq!(world.pipe("run", &["--jobs", "2"]), 0);
    assert_eq!(world.started().len(), 1);
    assert_eq!(world.of("action_hit").len(), 5);
    assert!(world.of("waiting").is_empty());
    assert!(world.of("run_finished")[0]["wall"].as_f64().unwrap() < 0.25);
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
            rot_file(&blob.unwrap().path());
        }
    }
}

fn rot_file(path: &std::path::Path) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0] ^= 1;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().append(true).open(path).unwrap().set_modified(modified).unwrap();
}

/// Whoever looked would notice that it has rotted.
#[test]
fn a_result_whose_readers_are_up_to_date_is_not_looked_into() {
    let study = |last: &str| {
        [
            stage("a", "text = \"x\"", ""),
            stage("b", "text = \"y\"", "i = \"a\""),
            stage("c", &format!("text = \"{last}\""), "i = \"b\""),
        ]
        .concat()
    };
    let world = World::new(&study("z"));
    assert_eq!(world.pipe("run", &[]), 0);
    let shown = world.answer("show", &["a", "--json"]);
    let blob = shown["nodes"][0]["outputs"]["out"]["files"][0]["blob"].as_str().unwrap().to_owned();
    rot_file(&world.path(".pipe/cas").join(&blob[..2]).join(&blob[2..]));
    // Not by a run with nothing to do, and not by one that works below its readers.
    assert_eq!(world.pipe("run", &[]), 0);
    world.write(&study("new"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((world.started(), world.of("corruption").len()), (vec!["c".to_owned()], 0));
    // Nor is it written anew into the results, where it still is what it was.
    assert_eq!(std::fs::read_to_string(world.path("results/w/a/out/text.txt")).unwrap(), "x");
    // One that reads it looks, and has it made again.
    assert_eq!(world.pipe("run", &["--force", "b"]), 0);
    assert_eq!((world.started(), world.of("corruption").len()), (vec!["a".to_owned(), "b".to_owned()], 1));
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

#[test]
fn failures_of_the_right_class_are_retried() {
    let study = |text: &str, does: &str, retry: &str| {
        World::new(&format!(
            "[stage.a]\nkind = \"note\"\nparams = {{ text = \"{text}\", does = \"{does}\" }}\nretry = {{ {retry}, backoff = \"0s\" }}\n"
        ))
    };
    let world = study("retried", "fail_twice", "max = 2");
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), ["a", "a", "a"]);
    let attempts: Vec<Json> = world.of("action_started").iter().map(|one| one["attempt"].clone()).collect();
    assert_eq!(attempts, [1, 2, 3].map(Json::from));
    let retries = world.of("retry");
    assert_eq!((retries.len(), &retries[0]["class"], &retries[1]["retry"]), (2, &"io".into(), &2.into()));
    assert_eq!(world.of("run_finished")[0]["failed"], 0);
    // Too few, another class, and what no attempt can change.
    for (text, does, retry, started, code) in [
        ("few", "fail_twice", "max = 1", 2, 3),
        ("other", "fail_twice", "max = 2, on = [\"error\"]", 1, 3),
        ("stage", "fail", "max = 2, on = [\"error\"]", 3, 1),
        ("stage", "fail", "max = 2", 1, 1),
        ("input", "bad_input", "max = 2, on = [\"error\", \"io\"]", 1, 4),
        ("disk", "no_space", "max = 2, on = [\"error\", \"io\"]", 1, 3),
    ] {
        let world = study(text, does, retry);
        assert_eq!(world.pipe("run", &[]), code, "{text}");
        assert_eq!(world.started().len(), started, "{text}");
    }
}

#[test]
fn results_are_made_again_and_compared() {
    let stages = [
        stage("a", "text = \"x\"", ""),
        stage("b", "text = \"y\"", "i = \"a\""),
        stage("moody", "does = \"differ\"", ""),
        stage("after", "", "i = \"moody\""),
    ];
    let world = World::new(&stages.concat());
    assert_eq!(world.pipe("run", &[]), 0);
    let published = || std::fs::read(world.path("results/w/after/out/text.txt")).unwrap();
    let before = published();
    // Only what is asked for, not what it reads.
    assert_eq!(world.pipe("run", &["--reproduce", "b"]), 0);
    assert_eq!(world.started(), ["b"]);
    let told = &world.of("reproduced")[0];
    assert_eq!(
        (&told["node"], &told["equal"], &told["differences"]),
        (&"b".into(), &true.into(), &Json::Array(vec![]))
    );
    assert_eq!(world.pipe("run", &["--reproduce"]), 5);
    assert_eq!(world.started(), ["a", "after", "b", "moody"]);
    let differing: Vec<Json> =
        world.of("reproduced").into_iter().filter(|one| one["equal"] == false).collect();
    assert_eq!((differing.len(), &differing[0]["node"]), (1, &"moody".into()));
    let difference = &differing[0]["differences"][0];
    assert_eq!((&difference["port"], &difference["path"]), (&"out".into(), &"text.txt".into()));
    assert!(difference["bytes"].as_u64().unwrap() > 0);
    // Both are kept, and the stored one stands.
    for blob in ["stored", "again"] {
        let hex = difference[blob].as_str().unwrap();
        assert!(world.path(".pipe/cas").join(&hex[..2]).join(&hex[2..]).is_file());
    }
    assert_eq!(published(), before);
    assert_eq!(world.pipe("run", &["--reproduce", "--rate", "0"]), 0);
    assert_eq!(world.started(), [] as [&str; 0]);
    assert_eq!(world.pipe("run", &["--reproduce", "--rate", "2"]), 2);
    assert_eq!(world.pipe("run", &["--rate", "0.5"]), 2);
}
