//! What a plan says that it will cost.

use serde_json::Value as Json;

use super::World;
use super::rows::{STUDY, lines, write_lines};

fn node<'a>(answer: &'a Json, name: &str) -> &'a Json {
    let nodes = answer["estimate"]["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["node"] == name).unwrap_or_else(|| panic!("{name} is not there: {answer}"))
}

fn about(value: &Json, expected: f64) {
    let value = value.as_f64().unwrap_or_else(|| panic!("{value} is not {expected}"));
    assert!((value / expected - 1.0).abs() < 0.1, "{value} is not about {expected}");
}

#[test]
fn nothing_is_said_of_what_never_ran() {
    let world = World::new(STUDY);
    write_lines(&world, "rows.txt", &lines(3000));
    let answer = world.answer("plan", &["--estimate", "--json"]);
    assert_eq!(answer["estimate"]["unknown"], 4);
    for name in ["table", "more", "again", "count"] {
        let node = node(&answer, name);
        assert!(
            node["seconds"].is_null() && node["jobs"].is_null() && node["measured_on"].is_null(),
            "{node}"
        );
    }
    assert_eq!(answer["estimate"]["jobs"], 0);
}

#[test]
fn costs_go_with_rows_and_with_parts_that_have_no_result() {
    let world = World::new(STUDY);
    let mut rows = lines(3000);
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &[]), 0);
    // Up to date: nothing costs anything.
    let answer = world.answer("plan", &["--estimate", "--json"]);
    assert_eq!((answer["hit"].as_u64(), &answer["estimate"]["nodes"]), (Some(4), &serde_json::json!([])));

    // Other parameters: the same rows again, as long as before.
    let set = ["--set", "stage.more.params.text=x"];
    let again = world.answer("plan", &[&["--estimate", "--json"][..], &set].concat());
    let (more, all) = (node(&again, "more"), parts(&world, "more"));
    assert_eq!((more["actions"].as_u64(), more["rows"].as_f64()), (Some(all), Some(3000.0)));
    assert_eq!(more["measured_on"], "node");
    assert_eq!(more["jobs"], 1, "they fill one task");
    assert_eq!(more["gpu_seconds"], 0.0);
    about(&more["bytes"], published_bytes(&world, "more/rows"));
    // What depends on it has as many rows to work on, though its table does not exist yet.
    assert_eq!(
        (node(&again, "again")["rows"].as_f64(), &node(&again, "again")["actions"]),
        (Some(3000.0), &more["actions"])
    );

    // One part was edited.
    rows[1500] = "edited".to_owned();
    write_lines(&world, "rows.txt", &rows);
    assert_eq!(world.pipe("run", &["table"]), 0);
    let edited = world.answer("plan", &["--estimate", "--json"]);
    assert_eq!(node(&edited, "more")["actions"], 1);
    about(&node(&edited, "more")["bytes"], published_bytes(&world, "more/rows") / all as f64);

    // A hundred times as many rows, which are nowhere yet.
    write_lines(&world, "rows.txt", &lines(3001));
    let given = ["--estimate", "--json", "--rows", "table=300000"];
    let large = world.answer("plan", &given);
    about(&node(&large, "more")["actions"], 100.0 * all as f64);
    about(&node(&large, "again")["bytes"], 100.0 * published_bytes(&world, "again/rows"));
    assert_eq!(large["estimate"]["unknown"], 0);
    assert_eq!(world.pipe("plan", &["--estimate", "--rows", "table=many"]), 2);
    assert_eq!(world.pipe("plan", &["--estimate", "--rows", "nobody=3"]), 2);
}

#[test]
fn a_new_node_is_known_by_others_of_its_kind_and_marked_so() {
    let world = World::new(STUDY);
    write_lines(&world, "rows.txt", &lines(3000));
    assert_eq!(world.pipe("run", &[]), 0);
    let other = "[stage.other]\nkind = \"append\"\ninputs = { rows = \"table\" }\nparams = { text = \"+\" }\n\
                 [stage.alone]\nkind = \"note\"\n";
    world.write(&format!("{STUDY}{other}"));
    let answer = world.answer("plan", &["--estimate", "--json"]);
    let other = node(&answer, "other");
    assert_eq!((&other["measured_on"], other["rows"].as_f64()), (&Json::from("kind"), Some(3000.0)));
    assert!(other["seconds"].as_f64().unwrap() > 0.0);
    assert!(node(&answer, "alone")["seconds"].is_null(), "no note was ever written");
    assert_eq!(answer["estimate"]["unknown"], 1);
}

/// How many parts the result of a row-wise node is made of.
fn parts(world: &World, name: &str) -> u64 {
    std::fs::read_dir(world.path("results/w").join(name).join("rows")).unwrap().count() as u64
}

fn published_bytes(world: &World, port: &str) -> f64 {
    let files = std::fs::read_dir(world.path("results/w").join(port)).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len() as f64).sum()
}
