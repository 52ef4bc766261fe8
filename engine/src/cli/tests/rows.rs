//! Row-wise kinds of the tests, on tables of lines, and what of them runs after an edit.

use std::collections::BTreeMap;
use std::path::Path;

use pipe_cache::{Digest, part_digest, part_ends};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::World;
use crate::artifact::Artifact;
use crate::context::{OutputWriter, StageContext, TablePart};
use crate::error::StageError;
use crate::kind::{
    ArtifactType, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, StageKind,
};

/// A table of lines of text.
const LINES: ArtifactType = ArtifactType("table<lines>");

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Params {
    text: String,
    /// Rows of a part, on average.
    target: i64,
    /// Only the first rows: then the kind is not row-wise.
    first: Option<i64>,
    /// A row that is an error.
    fails_at: Option<String>,
}

impl Default for Params {
    fn default() -> Self {
        Self { text: String::new(), target: 4, first: None, fails_at: None }
    }
}

fn description(name: &'static str, inputs: Vec<InputPort>) -> KindDescription {
    KindDescription {
        name,
        summary: "a row-wise kind of the tests",
        implementation: 1,
        schema_version: 1,
        numerics: Numerics::Exact,
        cpu: DefaultCpu::One,
        inputs,
        free_inputs: None,
    }
}

fn file_text(path: &Path) -> Result<String, StageError> {
    std::fs::read_to_string(path).map_err(|error| StageError::input(path, error.to_string()))
}

fn text_of(artifact: &Artifact) -> Result<String, StageError> {
    artifact.files.iter().map(|file| file_text(&file.location)).collect()
}

fn lines_of(artifact: &Artifact) -> Result<Vec<String>, StageError> {
    Ok(text_of(artifact)?.lines().map(str::to_owned).collect())
}

/// Writes lines as a table, cut at `ends`; what stands behind the last one is a part too.
fn write(output: &mut OutputWriter, lines: &[String], ends: &[usize]) -> Result<(), StageError> {
    let mut parts = Vec::new();
    let mut start = 0;
    for end in ends.iter().copied().chain([lines.len()]) {
        if end == start && !parts.is_empty() {
            continue;
        }
        let rows = &lines[start..end];
        let path = format!("part-{:05}.txt", parts.len());
        let text: String = rows.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(output.path(&path)?, text)
            .map_err(|error| StageError::environment("writing", error))?;
        let digests: Vec<Digest> = rows.iter().map(|line| Digest::of(line.as_bytes())).collect();
        parts.push(TablePart { path, digest: part_digest("lines", 1, &digests), rows: rows.len() as u64 });
        start = end;
    }
    output.set_table(parts);
    Ok(())
}

/// The lines of files from outside, as a table.
pub(super) struct Lines;

impl StageKind for Lines {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("lines", vec![InputPort::required("source", &[ArtifactType::FILE], "text files")])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", LINES, "a row per line")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let lines = lines_of(context.input("source")?)?;
        let digests: Vec<Digest> = lines.iter().map(|line| Digest::of(line.as_bytes())).collect();
        write(context.output("rows")?, &lines, &part_ends(&digests, params.target as usize))
    }
}

/// Each line with a text behind it, and with the digest of what it reads whole.
pub(super) struct Append;

impl StageKind for Append {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let rows = InputPort::required("rows", &[LINES], "the lines").class(InputClass::Map);
        description("append", vec![rows, InputPort::optional("with", &[], "read whole")])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", LINES, "the lines with more text")]
    }

    fn is_row_wise(&self, params: &Params, _: &dyn Fn(&str) -> bool) -> bool {
        params.first.is_none()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let with = match context.optional_input("with") {
            Some(artifact) => Digest::of(text_of(artifact)?.as_bytes()).to_short(),
            None => String::new(),
        };
        let mut lines = lines_of(context.input("rows")?)?;
        lines.truncate(params.first.map_or(usize::MAX, |first| first as usize));
        if let Some(line) = lines.iter().find(|line| Some(*line) == params.fails_at.as_ref()) {
            return Err(StageError::failed(format!("the row `{line}` cannot be read")));
        }
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}{}{with}", params.text)).collect();
        context.host().count("rows", lines.len() as u64);
        write(context.output("rows")?, &lines, &[])
    }
}

/// Each line with the line of another table that begins with the same letter.
pub(super) struct Find;

fn found<'a>(line: &str, names: &'a [String]) -> Option<&'a str> {
    names.iter().find(|name| name.chars().next() == line.chars().next()).map(String::as_str)
}

impl StageKind for Find {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let rows = InputPort::required("rows", &[LINES], "the lines").class(InputClass::Map);
        let names = InputPort::required("names", &[LINES], "looked up").class(InputClass::Lookup);
        description("find", vec![rows, names])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", LINES, "the lines with what was found")]
    }

    fn lookup(
        &self,
        _: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, names): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        let names = lines_of(names)?;
        let digest = |part: &Artifact| {
            let lines = lines_of(part)?;
            let all: Vec<String> = lines.iter().map(|line| format!("{:?}", found(line, &names))).collect();
            Ok(Digest::of(all.concat().as_bytes()))
        };
        parts.iter().map(digest).collect::<Result<_, StageError>>().map(Some)
    }

    fn run(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let names = lines_of(context.input("names")?)?;
        let lines = lines_of(context.input("rows")?)?;
        let lines: Vec<String> =
            lines.iter().map(|line| format!("{line}={}", found(line, &names).unwrap_or("?"))).collect();
        write(context.output("rows")?, &lines, &[])
    }
}

/// Number of lines and of bytes.
pub(super) struct Count;

impl StageKind for Count {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let rows = InputPort::required("rows", &[LINES], "the lines").class(InputClass::Reduce);
        description("count", vec![rows])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "two numbers")]
    }

    fn merge(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut sums = (0u64, 0u64);
        for partial in context.partials("out") {
            let text = text_of(partial)?;
            let mut numbers = text.split(' ').map(|number| number.parse::<u64>().unwrap_or_default());
            sums.0 += numbers.next().unwrap_or_default();
            sums.1 += numbers.next().unwrap_or_default();
        }
        let text = format!("{} {} {}", params.text, sums.0, sums.1);
        std::fs::write(context.output("out")?.path("count.txt")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }

    fn run(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let lines = lines_of(context.input("rows")?)?;
        let text = format!("{} {}", lines.len(), lines.iter().map(String::len).sum::<usize>());
        std::fs::write(context.output("out")?.path("count.txt")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }
}

/// Two tables at once, each row by row.
pub(super) struct Two;

impl StageKind for Two {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let port = |name| InputPort::required(name, &[LINES], "lines").class(InputClass::Map);
        description("two", vec![port("left"), port("right")])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        let port = |name: &'static str| OutputPort::new(name, LINES, "the lines").following(name);
        vec![port("left"), port("right")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        for side in ["left", "right"] {
            let Some(artifact) = context.optional_input(side) else { continue };
            let lines = lines_of(artifact)?;
            let lines: Vec<String> =
                lines.iter().map(|line| format!("{line}{side}{}", params.text)).collect();
            write(context.output(side)?, &lines, &[])?;
        }
        Ok(())
    }
}

/// How many parts of each row-wise node the newest run computed.
fn parts_run(world: &World) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for event in world.of("action_finished").iter().filter(|event| event["shard"].is_string()) {
        assert_eq!(event["status"], "ok", "{event}");
        *counts.entry(event["node"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    counts
}

pub(super) fn write_lines(world: &World, name: &str, lines: &[String]) {
    std::fs::write(world.path(name), lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
}

/// All published text of a port, in the order of its files.
fn published(world: &World, port: &str) -> String {
    let folder = world.path("results/w").join(port);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

pub(super) fn lines(count: u64) -> Vec<String> {
    (0..count).map(|row| format!("{}{row}", char::from(b'a' + (row % 7) as u8))).collect()
}

pub(super) const STUDY: &str = r#"
[stage.table]
kind = "lines"
inputs = { source = "file:rows.txt" }
params = { target = 64 }
[stage.more]
kind = "append"
inputs = { rows = "table" }
params = { text = "!" }
[stage.again]
kind = "append"
inputs = { rows = "more" }
params = { text = "?" }
[stage.count]
kind = "count"
inputs = { rows = "again" }
"#;

#[test]
fn only_parts_that_changed_run() {
    let world = World::new(STUDY);
    let mut rows = lines(3000);
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &[]), 0);
    let all = parts_run(&world)["more"];
    assert!((20..60).contains(&all), "{all} parts");
    assert_eq!(parts_run(&world), [("again", all), ("count", all), ("more", all)].map(own).into());
    let expected: String = rows.iter().map(|line| format!("{line}!?\n")).collect();
    assert_eq!(published(&world, "again/rows"), expected);
    assert_eq!(published(&world, "count/out"), format!(" 3000 {}", expected.len() - 3000));
    // Nothing to do.
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
    // An edited row; the plan knows it beforehand where the tables are known.
    rows[1500] = "edited".to_owned();
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &["table"]), 0);
    let answer = world.answer("plan", &["--json"]);
    let node = answer["nodes"].as_array().unwrap().iter().find(|node| node["node"] == "more").unwrap();
    assert_eq!(node["shards"], serde_json::json!({ "total": all, "run": 1 }));
    let why = world.answer("why", &["more", "--json"]);
    assert_eq!(why["nodes"][0]["shards"]["run"], 1);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(parts_run(&world), [("again", 1), ("count", 1), ("more", 1)].map(own).into());
    let started = world.of("action_started");
    let whole = started.iter().find(|one| one["node"] == "more" && one["shard"].is_null()).unwrap();
    assert_eq!(whole["shards"], serde_json::json!({ "total": all, "run": 1 }));
    // What a result costs is what all of its parts cost, whenever they ran.
    let finished = world.of("action_finished");
    let whole = finished.iter().find(|one| one["node"] == "more" && one["shard"].is_null()).unwrap();
    assert_eq!(whole["counts"], serde_json::json!({ "rows": 3000 }));
    let expected: String = rows.iter().map(|line| format!("{line}!?\n")).collect();
    assert_eq!(published(&world, "again/rows"), expected);
    assert_eq!(published(&world, "count/out"), format!(" 3000 {}", expected.len() - 3000));
    // Back again: nothing runs but the table, whose result is there too.
    rows[1500] = lines(3000)[1500].clone();
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
    // Rows that move are hits: another parameter would run all parts.
    rows.rotate_left(1000);
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(parts_run(&world)["more"] <= 4, "{:?}", parts_run(&world));
}

fn own((name, count): (&str, u64)) -> (String, u64) {
    (name.to_owned(), count)
}

#[test]
fn equal_parts_are_one_action_and_other_nodes_share_them() {
    // The study has the same table twice, once with rows before it.
    let study = format!(
        "{STUDY}[stage.other]\nkind = \"lines\"\ninputs = {{ source = \"file:other.txt\" }}\nparams = {{ target = 64 }}\n\
         [stage.other_more]\nkind = \"append\"\ninputs = {{ rows = \"other\" }}\nparams = {{ text = \"!\" }}\n"
    );
    let world = World::new(&study);
    // A thousand equal rows are cut at the greatest length, into equal parts.
    let mut rows = vec!["same".to_owned(); 1024];
    rows.extend(lines(1000));
    write_lines(&world, "rows.txt", &rows);
    write_lines(&world, "other.txt", &[rows.as_slice(), &lines(1001)[1000..]].concat());
    assert_eq!(world.pipe("run", &[]), 0);
    let run = parts_run(&world);
    assert!(run["more"] + run["other_more"] < 30, "{run:?}");
    let expected: String = rows.iter().map(|line| format!("{line}!\n")).collect();
    assert_eq!(published(&world, "more/rows"), expected);
    assert!(published(&world, "other_more/rows").starts_with(&expected[..expected.len() / 2]));
}

#[test]
fn a_limit_makes_a_kind_whole_and_a_file_from_outside_is_no_table() {
    let world = World::new(&STUDY.replace("text = \"!\"", "text = \"!\", first = 100"));
    write_lines(&world, "rows.txt", &lines(3000));
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(!parts_run(&world).contains_key("more"));
    assert_eq!(published(&world, "count/out").split(' ').nth(1), Some("100"));
}

const LOOKUP: &str = r#"
[stage.table]
kind = "lines"
inputs = { source = "file:rows.txt" }
params = { target = 16 }
[stage.names]
kind = "lines"
inputs = { source = "file:names.txt" }
[stage.found]
kind = "find"
inputs = { rows = "table", names = "names" }
[stage.both]
kind = "two"
inputs = { left = "found", right = "names" }
"#;

#[test]
fn what_rows_look_up_is_in_the_keys_of_their_parts() {
    let world = World::new(LOOKUP);
    // Sorted, so that each letter stands in few parts.
    let mut rows = lines(400);
    rows.sort();
    write_lines(&world, "rows.txt", &rows);
    let mut names: Vec<String> = "abcdefg".chars().map(|letter| format!("{letter} name")).collect();
    write_lines(&world, "names.txt", &names);
    assert_eq!(world.pipe("run", &[]), 0);
    let all = parts_run(&world)["found"];
    names[3] = "d other".to_owned();
    write_lines(&world, "names.txt", &names);
    assert_eq!(world.pipe("run", &[]), 0);
    let run = parts_run(&world);
    assert!(run["found"] >= 1 && run["found"] * 3 < all, "{run:?} of {all}");
    assert!(published(&world, "found/rows").contains("d3=d other\n"));
    assert!(published(&world, "both/right").contains("d otherright\n"));
    assert!(published(&world, "both/left").contains("d3=d otherleft\n"));
    // A name that no row has changes nothing below the node.
    names.push("z nobody".to_owned());
    write_lines(&world, "names.txt", &names);
    assert_eq!(world.pipe("run", &[]), 0);
    let run = parts_run(&world);
    assert!(!run.contains_key("found") && run["both"] >= 1, "{run:?}");
}

#[test]
fn parts_of_a_node_that_fails_stay() {
    let world = World::new(&STUDY.replace("text = \"!\"", "text = \"!\", fails_at = \"a700\""));
    write_lines(&world, "rows.txt", &lines(3000));
    assert_eq!(world.pipe("run", &[]), 1);
    let finished = world.of("action_finished");
    let of = |status: &str| {
        finished.iter().filter(|one| one["shard"].is_string() && one["status"] == status).count()
    };
    assert_eq!(of("failed"), 1);
    assert!(of("ok") > 20, "the other parts go on");
    assert!(world.logs().contains("the row `a700` cannot be read"));
    // No record names what the others gave, and yet it is kept.
    assert_eq!(world.pipe("gc", &["--apply", "--grace", "0s", "--now"]), 0);
    assert_eq!(world.of("run_finished")[0]["blocked"], 2);
    // The row is mended: its part runs, the others are there.
    let mut rows = lines(3000);
    rows[700] = "mended".to_owned();
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(parts_run(&world)["more"], 1);
}

#[test]
fn a_damaged_part_is_made_again_alone() {
    let world = World::new(STUDY);
    write_lines(&world, "rows.txt", &lines(3000));
    assert_eq!(world.pipe("run", &[]), 0);
    // One blob of `more` goes: found by its published name.
    let file = std::fs::read(world.path("results/w/more/rows/part-00003.txt")).unwrap();
    let hex = Digest::of(&file).to_hex();
    std::fs::remove_file(world.path(&format!(".pipe/cas/{}/{}", &hex[..2], &hex[2..]))).unwrap();
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(parts_run(&world), [("more", 1)].map(own).into());
    assert_eq!(world.pipe("run", &["--force", "again"]), 0);
    assert!(parts_run(&world)["again"] > 20);
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
}

#[test]
fn several_runs_at_once_share_the_parts() {
    let world = World::new(STUDY);
    write_lines(&world, "rows.txt", &lines(3000));
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| world.pipe("run", &[]))).collect();
        for run in runs {
            assert_eq!(run.join().unwrap(), 0);
        }
    });
    let mut keys = Vec::new();
    for run in std::fs::read_dir(world.path(".pipe/runs")).unwrap() {
        let text = std::fs::read_to_string(run.unwrap().path().join("events.jsonl")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        let started = events.filter(|one| one["ev"] == "action_started" && one["shard"].is_string());
        keys.extend(started.map(|one| one["key"].as_str().unwrap().to_owned()));
    }
    let all = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), all, "each part ran once");
    assert!(all > 60);
}

/// The promise: a million rows, and only what changed is computed.
#[test]
fn of_a_million_rows_only_those_near_an_edit_run() {
    let study = STUDY.split("[stage.again]").next().unwrap().replace("target = 64", "target = 4096");
    let world = World::new(&study);
    let mut rows: Vec<String> = (0..1_000_000).map(|row| format!("row {row}")).collect();
    let run = |rows: &[String]| {
        write_lines(&world, "rows.txt", rows);
        assert_eq!(world.pipe("run", &[]), 0);
        parts_run(&world)["more"]
    };
    let all = run(&rows);
    assert!((150..260).contains(&all), "{all} parts");
    rows[123_456] = "edited".to_owned();
    let edited = run(&rows);
    rows.insert(500_000, "inserted".to_owned());
    let inserted = run(&rows);
    rows.remove(800_000);
    let deleted = run(&rows);
    for (what, count) in [("edited", edited), ("inserted", inserted), ("deleted", deleted)] {
        assert!((1..=2).contains(&count), "a row {what}: {count} parts ran");
    }
    rows.extend((0..10_000).map(|row| format!("appended {row}")));
    let appended = run(&rows);
    // 10,000 rows are two or three parts; the one that ended the table is another.
    assert!((1..=4).contains(&appended), "1 % appended: {appended} parts ran");
    println!(
        "of {all} parts ran: {edited} for an edit, {inserted} insertion, {deleted} deletion, {appended} for 1 % appended"
    );
    assert_eq!(published(&world, "more/rows").lines().count(), 1_010_000);
}

#[test]
fn the_order_in_which_a_folder_lists_its_files_changes_nothing() {
    let study = STUDY.replace("file:rows.txt", "file:in/*.txt");
    let world = World::new(&study);
    let fill = |order: &[usize]| {
        let _ = std::fs::remove_dir_all(world.path("in"));
        std::fs::create_dir(world.path("in")).unwrap();
        for index in order {
            write_lines(&world, &format!("in/{index}.txt"), &lines(100 * (*index as u64 + 1)));
        }
    };
    fill(&[0, 1, 2, 3]);
    assert_eq!(world.pipe("run", &[]), 0);
    fill(&[2, 0, 3, 1]);
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
}
