//! Kinds that show how their inputs came about are told of the results above, whatever is made again.

use serde_json::Value as Json;

use super::{World, stage};
use crate::ancestry::Ancestor;
use crate::context::StageContext;
use crate::error::StageError;
use crate::kind::{ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageKind};

/// Writes how its inputs came about.
pub(super) struct Told;

impl StageKind for Told {
    type Params = super::Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "told",
            summary: "a kind of the tests",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort { many: true, ..InputPort::optional("", &[], "anything") }),
        }
    }

    fn shows_ancestry(&self) -> bool {
        true
    }

    fn outputs(&self, _: &super::Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "a text")]
    }

    fn run(&self, _: &super::Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let text = serde_json::json!(context.ancestry()).to_string();
        std::fs::write(context.output("out")?.path("told.json")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }
}

/// `a` gives the same whatever `number` is.
fn study(number: u32, text: &str) -> String {
    let told = stage("page", &format!("text = \"{text}\""), "i = \"b\"").replace("note", "told");
    let a = stage("a", &format!("text = \"x\", number = {number}"), "");
    [a, stage("b", "text = \"y\"", "i = \"a\""), stage("beside", "", ""), told].concat()
}

/// What the page was told: stage, places of what it reads, keys of results.
fn told(world: &World) -> Vec<(String, Vec<usize>, Vec<String>)> {
    let text = std::fs::read_to_string(world.path("results/w/page/out/told.json")).unwrap();
    let ancestors: Vec<Ancestor> = serde_json::from_str(&text).unwrap();
    let result = |one: &Ancestor| one.results.iter().map(|result| result.key.to_hex()).collect();
    let line = |one: &Ancestor| (one.stage.clone(), one.reads.iter().copied().collect(), result(one));
    ancestors.iter().map(line).collect()
}

/// The same, from what `plan` says of keys.
fn planned(world: &World) -> Vec<(String, Vec<usize>, Vec<String>)> {
    let plan = world.answer("plan", &["--json"]);
    let key = |name: &str| -> String {
        let nodes = plan["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["node"] == name).unwrap();
        node["key"].as_str().unwrap().to_owned()
    };
    let line = |name: &str, reads: &[usize]| (name.to_owned(), reads.to_vec(), vec![key(name)]);
    vec![line("a", &[]), line("b", &[0]), ("page".to_owned(), vec![1], Vec::new())]
}

#[test]
fn a_key_far_above_is_shown_though_its_result_stops_the_wave() {
    let world = World::new(&study(1, ""));
    assert_eq!(world.pipe("run", &[]), 0);
    let first = told(&world);
    assert_eq!(first, planned(&world));
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
    world.write(&study(2, ""));
    let plan = world.answer("plan", &["--json"]);
    assert_eq!((plan["run"].as_u64(), plan["maybe"].as_u64()), (Some(1), Some(2)));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), ["a", "page"]);
    let why = |event: &Json| event["reason"].as_str().unwrap().to_owned();
    assert_eq!(why(&world.of("action_started")[1]), "its inputs came about by other results, which it shows");
    assert_eq!(told(&world), planned(&world));
    assert_ne!(told(&world)[0], first[0]);
    assert_eq!(told(&world)[1], first[1]);
    // Its old page is still there.
    world.write(&study(1, ""));
    assert_eq!(world.pipe("run", &[]), 0);
    assert!(world.started().is_empty());
    assert_eq!(told(&world), first);
}

#[test]
fn it_is_told_of_what_was_evicted_or_damaged() {
    let world = World::new(&study(1, "1"));
    assert_eq!(world.pipe("run", &[]), 0);
    let first = told(&world);
    for (text, evicted) in [("2", &["a", "b"][..]), ("3", &["a"])] {
        let evict: Vec<&str> = evicted.iter().flat_map(|node| ["--evict", node]).collect();
        assert_eq!(world.pipe("gc", &[&evict[..], &["--apply", "--now"]].concat()), 0);
        world.write(&study(1, text));
        assert_eq!(world.pipe("run", &["page"]), 0, "{text}");
        assert_eq!(told(&world), first, "{text}");
    }
    // Whoever reads the file of `b` finds that it is damaged.
    let shown = world.answer("show", &["b", "--json"]);
    let blob = shown["nodes"][0]["outputs"]["out"]["files"][0]["blob"].as_str().unwrap();
    let path = world.path(".pipe/cas").join(&blob[..2]).join(&blob[2..]);
    std::fs::remove_file(&path).unwrap();
    world.write(&study(1, "4"));
    assert_eq!(world.pipe("run", &["page"]), 0);
    assert_eq!(world.started(), ["a", "b", "page"], "`a` is still evicted, and `b` reads it");
    assert_eq!(told(&world), first);
}
