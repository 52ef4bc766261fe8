//! Results of another numerics class: misses, unless they are accepted.

use super::{World, registry};

#[test]
fn results_of_another_class_are_taken_only_where_they_are_accepted() {
    let study = |last: &str| {
        format!(
            "[stage.a]\nkind = \"weigh\"\nparams = {{ text = \"x\" }}\n\
             [stage.b]\nkind = \"weigh\"\nparams = {{ text = \"{last}\" }}\ninputs = {{ i = \"a\" }}\n\
             [stage.c]\nkind = \"note\"\ninputs = {{ i = \"b\" }}\n"
        )
    };
    let gpu = registry().with_numerics("cuda:sm_90;f32");
    let laptop = registry().with_numerics("cpu:x86_64;f32");
    let world = World::new(&study("y"));
    assert_eq!(world.pipe_with(&gpu, "run", &[]), 0);
    assert_eq!(world.of("action_started")[0]["device"], "cuda:sm_90");
    assert_eq!(world.pipe_with(&laptop, "plan", &["--check"]), 6);
    assert_eq!(world.pipe_with(&laptop, "plan", &["--check", "--accept-numerics", "any"]), 0);
    assert_eq!(world.pipe_with(&laptop, "run", &["--accept-numerics", "any"]), 0);
    assert_eq!(world.started(), [] as [&str; 0]);
    assert_eq!(world.of("planned")[0]["other_class"], serde_json::json!(["a", "b"]));
    let said = |arguments: &[&str]| world.answer_with(&laptop, "why", arguments)["nodes"][0].clone();
    assert_eq!(said(&["a", "--json", "--accept-numerics", "any"])["other_class"], "cuda:sm_90;f32");
    assert_eq!(said(&["a", "--json"])["status"], "run");
    // What is new is computed here, from what was accepted, and is of this class.
    world.write(&study("z"));
    assert_eq!(world.pipe_with(&laptop, "run", &["--accept-numerics", "any"]), 0);
    assert_eq!(world.started(), ["b", "c"]);
    assert_eq!(world.of("action_started")[0]["device"], "cpu");
    assert_eq!(std::fs::read_to_string(world.path("results/w/c/out/text.txt")).unwrap(), "zx");
    // Both machines know their own.
    assert_eq!(world.pipe_with(&gpu, "run", &["--force", "a"]), 0);
    assert_eq!(world.started(), ["a", "b"]);
    assert_eq!(world.pipe_with(&laptop, "run", &[]), 0);
    assert_eq!(world.started(), ["a"]);
    assert_eq!(world.pipe_with(&laptop, "run", &["--accept-numerics", "some"]), 2);
}

/// A result of another class that cannot be read is made again here, under this machine's key.
#[test]
fn an_accepted_result_that_rots_is_made_again_in_this_class() {
    let study = |last: &str| {
        format!(
            "[stage.a]\nkind = \"weigh\"\nparams = {{ text = \"x\" }}\n\
             [stage.b]\nkind = \"note\"\nparams = {{ text = \"{last}\" }}\ninputs = {{ i = \"a\" }}\n"
        )
    };
    let gpu = registry().with_numerics("cuda:sm_90;f32");
    let world = World::new(&study("y"));
    assert_eq!(world.pipe_with(&gpu, "run", &[]), 0);
    super::rot(&world);
    world.write(&study("z"));
    assert_eq!(world.pipe("run", &["--accept-numerics", "any"]), 0);
    let started = world.of("action_started");
    assert_eq!(started[0]["node"], "a");
    assert_eq!(started[0]["device"], "cpu");
    assert_eq!(world.pipe("plan", &["--check"]), 0);
}
