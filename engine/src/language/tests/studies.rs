//! What a study without mistakes means.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::{Study, registry};
use crate::language::{render_json, render_text, schema, select};
use crate::pipeline::{InputSource, NodeId, Origin, Pipeline};

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.nodes.iter().map(|node| node.name.as_str()).collect()
}

/// The sources of an input as text: `node.port` or the pattern of files.
fn sources(pipeline: &Pipeline, node: usize, input: &str) -> Vec<String> {
    let input = pipeline.nodes[node].inputs.iter().find(|one| one.name == input).unwrap();
    let source = |source: &InputSource| match source {
        InputSource::Node { node, port } => format!("{}.{port}", pipeline.nodes[node.0].name),
        InputSource::File { pattern, .. } => pattern.clone(),
        InputSource::Remote(remote) => remote.text().to_owned(),
        InputSource::Blob(digest) => digest.to_string(),
    };
    input.sources.iter().map(source).collect()
}

#[test]
fn a_matrix_is_a_product_whose_last_axis_is_fastest() {
    let pipeline = Study::new(
        r#"
[vars]
seeds = [0, 1]
[stage.a]
kind = "make"
matrix = { m = ["x", "y"], seed = "${seeds}" }
exclude = [{ m = "y", seed = 1 }]
include = [{ m = "z", seed = 7 }]
[stage.b]
kind = "train.linear"
matrix = "@a"
inputs = { rows = "a.rows" }
[stage.c]
kind = "make"
matrix = { seed = "@a", flag = [true] }
"#,
    )
    .pipeline();
    assert_eq!(
        names(&pipeline),
        [
            "a[m=x,seed=0]",
            "a[m=x,seed=1]",
            "a[m=y,seed=0]",
            "a[m=z,seed=7]",
            "b[m=x,seed=0]",
            "b[m=x,seed=1]",
            "b[m=y,seed=0]",
            "b[m=z,seed=7]",
            "c[seed=0,flag=true]",
            "c[seed=1,flag=true]",
            "c[seed=7,flag=true]",
        ]
    );
    assert_eq!(sources(&pipeline, 6, "rows"), ["a[m=y,seed=0].rows"]);
    assert_eq!(pipeline.stages[1].nodes, [4, 5, 6, 7].map(NodeId));
}

#[test]
fn references_join_select_and_fan_in() {
    let pipeline = Study::new(
        r#"
[stage.data]
kind = "make"
matrix = { set = ["s", "t"] }
[stage.fit]
kind = "train.linear"
matrix = { set = "@data", seed = [0, 1, 2] }
inputs = { rows = "data.rows", start = "first" }
[stage.first]
kind = "train.linear"
inputs = { rows = "data[set=t].rows" }
[stage.some]
kind = "gather"
matrix = { set = "@data" }
inputs = { models = "fit[seed=*]" }
[stage.all]
kind = "gather"
inputs = { models = ["fit[seed=*,set=*].model", "first"] }
"#,
    )
    .pipeline();
    let place = |name: &str| names(&pipeline).iter().position(|other| *other == name).unwrap();
    assert_eq!(sources(&pipeline, place("fit[set=t,seed=1]"), "rows"), ["data[set=t].rows"]);
    assert_eq!(sources(&pipeline, place("fit[set=t,seed=1]"), "start"), ["first.model"]);
    assert_eq!(
        sources(&pipeline, place("some[set=t]"), "models"),
        ["fit[set=t,seed=0].model", "fit[set=t,seed=1].model", "fit[set=t,seed=2].model"]
    );
    let all = sources(&pipeline, place("all"), "models");
    assert_eq!((all.len(), all[3].as_str(), all[6].as_str()), (7, "fit[set=t,seed=0].model", "first.model"));
    assert!(pipeline.nodes[place("all")].inputs[0].with_axes);
}

#[test]
fn one_stage_can_have_several_kinds() {
    let pipeline = Study::new(
        r#"
[vars]
root = "data"
sets = [
    { id = "x", kind = "make", inputs = { source = "file:${root}/x.npz" }, params = { size = 4 } },
    { id = "y", kind = "make", inputs = {}, params = { size = 6, name = "${root}" } },
]
[stage.data]
kind = "${set.kind}"
matrix = { set = "${sets}", seed = [3] }
inputs = "${set.inputs}"
params = "${set.params}"
"#,
    )
    .set("stage.data[set=y].params.lr=1")
    .pipeline();
    assert_eq!(names(&pipeline), ["data[set=x,seed=3]", "data[set=y,seed=3]"]);
    assert_eq!(sources(&pipeline, 0, "source"), ["data/x.npz"]);
    assert_eq!(pipeline.nodes[0].params.json["size"], 4);
    assert_eq!(pipeline.nodes[0].params.json["lr"], 0.5);
    assert_eq!(pipeline.nodes[1].params.json["name"], "data");
    assert_eq!(pipeline.nodes[1].params.json["lr"], json!(1.0));
}

#[test]
fn a_table_in_a_matrix_may_name_other_axes() {
    let pipeline = Study::new(
        r#"
[stage.a]
kind = "make"
matrix = { m = [{ id = "x", text = "seed ${seed} of ${m}" }], seed = [3] }
params = { name = "${m.text}" }
"#,
    )
    .pipeline();
    assert_eq!(pipeline.nodes[0].name, "a[m=x,seed=3]");
    assert_eq!(pipeline.nodes[0].params.json["name"], "seed 3 of x");
}

#[test]
fn templates_keep_types_and_escape() {
    let pipeline = Study::new(
        r#"
[vars]
list = [0.5, 1]
table = { inner = { depth = 3 } }
size = "${sizes[1]}"
sizes = [2, 8]
[stage.a]
kind = "make"
params = { weights = "${list}", head = "${table.inner}", size = "${size}", name = "$${x} is ${size}, ${list[0]}" }
"#,
    )
    .pipeline();
    let params = &pipeline.nodes[0].params.json;
    assert_eq!(params["weights"], json!([0.5, 1.0]));
    assert_eq!(params["head"], json!({ "depth": 3 }));
    assert_eq!(params["size"], 8);
    assert_eq!(params["name"], "${x} is 8, 0.5");
}

#[test]
fn precedence_rises_from_file_to_command_line_and_origins_tell() {
    let text = r#"
[vars]
size = 2
[stage.a]
kind = "make"
matrix = { m = ["x", "y"] }
params = { size = "${size}", lr = 0.25 }
[profile.one]
vars = { size = 4 }
set = { "stage.a.params.lr" = 1 }
[profile.two]
vars.size = 6
set.stage.a.params.head.depth = 5
"#;
    let params = |study: Study| {
        study.pipeline().nodes.iter().map(|node| node.params.json.clone()).collect::<Vec<Json>>()
    };
    assert_eq!(params(Study::new(text))[0]["size"], 2);
    let two = params(Study::new(text).profile("one").profile("two"));
    assert_eq!(
        (&two[0]["size"], &two[0]["lr"], &two[0]["head"]["depth"]),
        (&json!(6), &json!(1.0), &json!(5))
    );
    assert_eq!(params(Study::new(text).profile("two").profile("one"))[0]["size"], 4);
    let three = params(Study::new(text).profile("one").var("size=8"));
    assert_eq!(three[0]["size"], 8);
    let study = Study::new(text)
        .profile("one")
        .var("size=8")
        .set("stage.a[m=y].params.size=10")
        .set("stage.a.params.name=some words");
    let pipeline = study.pipeline();
    assert_eq!(pipeline.nodes[0].params.json["size"], 8);
    assert_eq!(pipeline.nodes[1].params.json["size"], 10);
    assert_eq!(pipeline.nodes[1].params.json["name"], "some words");
    let origin = |node: usize, key: &str| pipeline.nodes[node].origins.get(key).unwrap().clone();
    assert_eq!(origin(0, "size"), Origin::CommandLine("--var size=8".to_owned()));
    assert_eq!(origin(1, "size"), Origin::CommandLine("--set stage.a[m=y].params.size=10".to_owned()));
    match origin(0, "lr") {
        Origin::File { file: 0, span, profile } => {
            assert_eq!((&pipeline.sources[0].text[span], profile.as_deref()), ("1", Some("one")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(pipeline.profiles, ["one"]);
}

#[test]
fn includes_are_read_and_their_paths_are_their_own() {
    let study = Study::new(
        r#"
[pipeline]
name = "t"
format = 1
include = ["parts/*.toml", "more/vars.toml"]
[stage.a]
kind = "make"
params = { size = "${size}" }
"#,
    )
    .file("parts/b.toml", "[stage.b]\nkind = \"make\"\ninputs = { source = \"file:b.csv\" }\n")
    .file("parts/a.toml", "[stage.c]\nkind = \"make\"\n")
    .file("more/vars.toml", "[vars]\nsize = 6\n[profile.p]\nvars = { size = 8 }\n");
    let pipeline = study.pipeline();
    assert_eq!(names(&pipeline), ["a", "c", "b"]);
    match &pipeline.nodes[2].inputs[0].sources[0] {
        InputSource::File { pattern, path, .. } => {
            assert_eq!(pattern, "b.csv");
            assert_eq!(path, &std::path::absolute(study.folder.path().join("parts/b.csv")).unwrap());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(study.profile("p").pipeline().nodes[0].params.json["size"], 8);
}

#[test]
fn the_project_is_the_nearest_ancestor_with_a_store() {
    let study = Study::new("[stage.a]\nkind = \"make\"\n");
    assert_eq!(study.pipeline().project, study.folder.path());
    let deep = Study::new("[stage.a]\nkind = \"make\"\n").file("deep/pipeline.toml", "");
    std::fs::rename(deep.path(), deep.folder.path().join("deep/pipeline.toml")).unwrap();
    std::fs::create_dir(deep.folder.path().join(".pipe")).unwrap();
    let loaded =
        crate::language::load(&deep.folder.path().join("deep/pipeline.toml"), &deep.options, &registry());
    assert_eq!(loaded.pipeline.unwrap().project, deep.folder.path());
}

#[test]
fn resources_are_read() {
    let pipeline =
        Study::new("[stage.a]\nkind = \"make\"\nresources = { cpu = 4, mem = \"1GiB\", time = \"2h\" }\n")
            .pipeline();
    let resources = &pipeline.nodes[0].resources;
    assert_eq!((resources.cpu, resources.memory, resources.time), (Some(4), Some(1 << 30), Some(7200)));
}

#[test]
fn retries_are_read_and_can_be_set() {
    let text = "[vars]\nmost = 2\n[stage.a]\nkind = \"make\"\nretry = { max = \"${most}\", backoff = \"1min\", on = [\"io\", \"error\"] }\n[stage.b]\nkind = \"make\"\n";
    let pipeline = Study::new(text).set("stage.b.retry.max=3").pipeline();
    let retry = &pipeline.nodes[0].retry;
    assert_eq!((retry.max, retry.backoff), (2, 60));
    assert_eq!(retry.on.iter().map(|class| class.name()).collect::<Vec<_>>(), ["io", "error"]);
    assert_eq!(pipeline.nodes[1].retry.max, 3);
    assert!(matches!(pipeline.nodes[1].setting_origins.get("retry.max"), Some(Origin::CommandLine(_))));
}

#[test]
fn nodes_are_selected_by_name_selector_and_glob() {
    let pipeline = Study::new("[stage.fit]\nkind = \"make\"\nmatrix = { m = [\"x\", \"y\"], s = [0, 1] }\n[stage.other]\nkind = \"make\"\n").pipeline();
    let chosen =
        |target: &str| -> Vec<usize> { select(&pipeline, target).unwrap().iter().map(|id| id.0).collect() };
    assert_eq!(chosen("fit"), [0, 1, 2, 3]);
    assert_eq!(chosen("fit[m=y]"), [2, 3]);
    assert_eq!(chosen("fit[s=1,m=*]"), [1, 3]);
    assert_eq!(chosen("fit[m=x,s=1]"), [1]);
    assert_eq!(chosen("o*"), [4]);
    assert_eq!(chosen("*s=0]"), [0, 2]);
    assert_eq!(chosen("fit[m=*x]"), [0, 1]);
    assert_eq!(chosen("f*[s=1]"), [1, 3]);
    for (target, code) in [
        ("fti", "E004"),
        ("fit[n=1]", "E002"),
        ("fit[m=z]", "E002"),
        ("z*", "E004"),
        ("", "E004"),
        ("fit[", "E004"),
    ] {
        assert_eq!(select(&pipeline, target).unwrap_err().code, code, "{target}");
    }
}

/// One mistake in many nodes does not bury a person.
#[test]
fn of_many_diagnostics_the_first_are_shown_and_the_rest_is_counted() {
    let values: Vec<String> = (0..300).map(|value| format!("\"{value}\"")).collect();
    let text = format!(
        "[vars]\nunused = 1\n[stage.a]\nkind = \"make\"\nmatrix = {{ m = [{}] }}\nparams = {{ size = \"${{m}}\" }}\n",
        values.join(", ")
    );
    let loaded = Study::new(&text).load();
    let total = loaded.diagnostics.len();
    assert!(total > 300, "{total}");
    let text = render_text(&loaded.diagnostics, &loaded.sources, false);
    assert_eq!(text.matches("error[E003]").count(), 50);
    assert_eq!(text.matches("warning[").count(), 0);
    let rest = format!("and {} more, which `pipe check --json` lists\n\n", total - 50);
    assert!(text.contains(&rest), "{text}");
}

#[test]
fn diagnostics_are_rendered_for_people_and_for_editors() {
    let study = Study::new("[stage.a]\nkind = \"make\"\nparams = { \"größe\" = 4 }\n");
    let loaded = study.load();
    let text = render_text(&loaded.diagnostics, &loaded.sources, false);
    assert!(text.contains("error[E002]: unknown parameter `größe`"), "{text}");
    assert!(text.contains("pipeline.toml:6:12"), "{text}");
    assert!(text.contains("^^^^^^^") && text.ends_with("1 error, 0 warnings\n"), "{text}");
    assert!(render_text(&loaded.diagnostics, &loaded.sources, true).contains("\u{1b}["));
    let json = render_json(&loaded.diagnostics, &loaded.sources);
    let one = &json["diagnostics"][0];
    assert_eq!(
        (&json["version"], &one["code"], &one["severity"]),
        (&json!(1), &json!("E002"), &json!("error"))
    );
    assert_eq!(one["start"], json!({ "line": 6, "column": 12 }));
    assert_eq!(one["end"], json!({ "line": 6, "column": 19 }));
    assert!(one["file"].as_str().unwrap().ends_with("pipeline.toml"));
}

#[test]
fn the_schema_describes_every_kind() {
    let schema = schema(&registry());
    let stage = &schema["properties"]["stage"]["additionalProperties"];
    let rules = stage["allOf"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["if"]["properties"]["kind"]["const"] == "make").unwrap();
    let params = &rule["then"]["properties"]["params"];
    assert_eq!(params["additionalProperties"], false);
    assert_eq!(params["type"], json!(["object", "string"]));
    assert_eq!(params["properties"]["lr"]["type"], json!(["number", "string"]));
    assert_eq!(params["properties"]["name"]["type"], "string");
    let size = &params["properties"]["size"];
    assert_eq!((&size["description"], &size["maximum"]), (&json!("Rows."), &json!(100)));
    // Inside tables, optional ones too, templates are taken as anywhere.
    assert_eq!(params["properties"]["head"]["properties"]["depth"]["type"], json!(["integer", "string"]));
    let rule = rules.iter().find(|rule| rule["if"]["properties"]["kind"]["const"] == "strict").unwrap();
    let pace = &rule["then"]["properties"]["params"]["properties"]["pace"];
    assert_eq!(pace["type"], json!(["object", "null", "string"]), "{pace}");
    assert_eq!(pace["properties"]["mode"]["anyOf"][1]["pattern"], "\\$\\{", "{pace}");
    assert_eq!(pace["properties"]["times"]["items"]["type"], json!(["integer", "string"]));
    assert_eq!(stage["additionalProperties"], false);
    assert_eq!(schema["additionalProperties"], false);
}

/// Chains, fans and grids of thousands of nodes: no step is quadratic and none recurses.
#[test]
fn thousands_of_nodes_are_loaded_in_seconds() {
    let started = std::time::Instant::now();
    let mut chain = String::from("[stage.s0]\nkind = \"make\"\n");
    for index in 1..10_000 {
        let (before, matrix) = (index - 1, if index % 2 == 0 { "" } else { "doc = \"x\"\n" });
        let _ = write!(
            chain,
            "[stage.s{index}]\nkind = \"free\"\n{matrix}inputs = {{ x = \"s{before}{}\" }}\n",
            if before == 0 { ".rows" } else { "" }
        );
    }
    assert_eq!(Study::new(&chain).pipeline().nodes.len(), 10_000);
    // Each borrows the axis of the next, so the order of the file is the wrong one.
    let mut borrowed: String = (0..5_000)
        .map(|i| format!("[stage.s{i}]\nkind = \"make\"\nmatrix = {{ m = \"@s{}\" }}\n", i + 1))
        .collect();
    borrowed.push_str("[stage.s5000]\nkind = \"make\"\nmatrix = { m = [1] }\n");
    assert_eq!(Study::new(&borrowed).pipeline().nodes.len(), 5_001);
    let vars: String = (1..10_000).map(|i| format!("v{i} = \"${{v{}}}\"\n", i - 1)).collect();
    let text =
        format!("[vars]\nv0 = 4\n{vars}[stage.a]\nkind = \"make\"\nparams = {{ size = \"${{v9999}}\" }}\n");
    assert_eq!(Study::new(&text).pipeline().nodes[0].params.json["size"], 4);
    let values = (0..100).map(|value| value.to_string()).collect::<Vec<_>>().join(", ");
    let grid = format!(
        "[stage.a]\nkind = \"train.linear\"\nmatrix = {{ m = [{values}], n = [{values}] }}\ninputs = {{ rows = \"r.rows\" }}\n[stage.r]\nkind = \"make\"\n[stage.b]\nkind = \"gather\"\nmatrix = {{ m = \"@a\" }}\ninputs = {{ models = \"a[n=*]\" }}\n"
    );
    let pipeline = Study::new(&grid).pipeline();
    assert_eq!(pipeline.nodes.len(), 10_101);
    let fans: BTreeMap<&str, usize> = pipeline.nodes[10_001..]
        .iter()
        .map(|node| (node.name.as_str(), node.inputs[0].sources.len()))
        .collect();
    assert!(fans.values().all(|count| *count == 100));
    let taken = started.elapsed();
    eprintln!("four studies of thousands of nodes: {taken:?}");
    assert!(taken.as_secs() < 20, "{taken:?}");
}

#[test]
fn a_path_is_relative_to_the_place_that_writes_its_beginning() {
    let path = |study: &Study| match &study.pipeline().nodes[0].inputs[0].sources[0] {
        InputSource::File { path, .. } => path.clone(),
        other => panic!("{other:?}"),
    };
    let text = |source: &str| {
        format!("[vars]\nroot = \"data\"\n[stage.a]\nkind = \"make\"\ninputs = {{ source = \"{source}\" }}\n")
    };
    let absolute = |path: &std::path::Path| std::path::absolute(path).unwrap();
    let begins = Study::new(&text("file:${root}/a.npz"));
    assert_eq!(path(&begins), absolute(&begins.folder.path().join("data/a.npz")));
    let begins = begins.var("root=../elsewhere");
    assert_eq!(path(&begins), absolute("../elsewhere/a.npz".as_ref()));
    let ends = Study::new(&text("file:raw/${root}")).var("root=other");
    assert_eq!(path(&ends), absolute(&ends.folder.path().join("raw/other")));
    let set = Study::new(&text("file:a")).set("stage.a.inputs.source=file:b");
    let loaded = set.load();
    match &loaded.pipeline.unwrap().nodes[0].inputs[0].sources[0] {
        InputSource::File { path, .. } => assert_eq!(*path, absolute("b".as_ref())),
        other => panic!("{other:?}"),
    }
}
