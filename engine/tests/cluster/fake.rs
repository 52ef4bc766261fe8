//! Submissions that are refused, or of which the answer is lost; a script plays Slurm's part.

use crate::study;
use crate::world::{World, wait_for};

pub(crate) const TESTS: [(&str, fn()); 7] = [
    ("parts_that_others_made_are_not_ordered", parts_that_others_made_are_not_ordered),
    ("a_lost_answer_is_no_second_submission", a_lost_answer_is_no_second_submission),
    ("too_many_jobs_are_submitted_later", too_many_jobs_are_submitted_later),
    ("too_large_arrays_are_halved", too_large_arrays_are_halved),
    ("what_nobody_knows_is_tried_three_times", what_nobody_knows_is_tried_three_times),
    ("a_stage_says_how_its_own_jobs_are_submitted", a_stage_says_how_its_own_jobs_are_submitted),
    ("a_stage_bounds_its_own_jobs", a_stage_bounds_its_own_jobs),
];

const ONE: &str = "[stage.one]\nkind = \"steps\"\nparams = { text = \"one\" }\n";

/// It is found in the queue by its name.
fn a_lost_answer_is_no_second_submission() {
    let stages = "[stage.one]\nkind = \"steps\"\nparams = { count = 160, millis = 50, text = \"one\" }\n";
    let world = World::with_fake_slurm(&["lost"], stages);
    let told = world.pipe(&["run", "--executor", "slurm"]).expect(0);
    assert!(told.contains("gives no answer") && told.contains("answers again"), "{told}");
    assert_eq!(world.submissions().len(), 1);
    world.expect_marks(1);
    world.expect_results_of_a_local_run();
}

fn too_many_jobs_are_submitted_later() {
    let quota = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)";
    let stages = format!(
        "{ONE}[stage.two]\nkind = \"steps\"\nparams = {{ count = 30, millis = 50, text = \"two\" }}\n"
    );
    let world = World::with_fake_slurm(&["", quota], &stages);
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    assert_eq!(world.submissions().len(), 3);
    world.expect_marks(2);
    // With no job of ours in the queue it never changes.
    let world = World::with_fake_slurm(&[quota], ONE);
    let told = world.pipe(&["run", "--executor", "slurm"]).expect(1);
    assert!(told.contains("job submit limit"), "{told}");
    // Those of another run of ours will leave.
    let world = World::with_fake_slurm(&[quota], ONE);
    world.queue_another_job();
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    assert_eq!(world.submissions().len(), 2);
    world.expect_marks(1);
}

fn a_stage_says_how_its_own_jobs_are_submitted() {
    let own = "resources = { setup = \"touch set-up\", extra_args = [\"--exclusive\"], max_tasks = 3, time_margin = 7 }\n";
    let two = "[stage.two]\nkind = \"steps\"\nparams = { text = \"two\" }\n";
    let world = World::with_fake_slurm(&[], &format!("{ONE}{own}{two}"));
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    let calls = world.submissions();
    let of = |words: &str| calls.iter().filter(|call| call.contains(words)).count();
    assert_eq!((calls.len(), of("--exclusive"), of("%3"), of("USR1@7")), (2, 1, 1, 1), "{calls:?}");
    assert!(world.path("set-up").is_file());
    world.expect_marks(2);
    world.expect_results_of_a_local_run();
}

/// One task at a time, and after the first five no more for an hour; what is another stage's goes on.
fn a_stage_bounds_its_own_jobs() {
    let many = |stage: &str, resources: &str| {
        format!(
            "[stage.{stage}]\nkind = \"steps\"\nmatrix = {{ i = \"${{n}}\" }}\nparams = {{ text = \"{stage}${{i}}\" }}\n\
             resources = {{ {resources} }}\n"
        )
    };
    let stages = |own: &str| {
        let vars = "[vars]\nn = [0, 1, 2, 3, 4, 5, 6]\n";
        format!("{vars}{}{}", many("bounded", own), many("free", "extra_args = [\"--free\"]"))
    };
    let world = World::with_fake_slurm(&[], &stages("max_submitted = 1, submit_rate = \"1/h\""));
    let mut driver = world.start(&["run", "--executor", "slurm", "--grace", "1"]);
    let bounded = || world.submissions().into_iter().filter(|call| !call.contains("--free")).count();
    wait_for("five are submitted, and the others are done", || {
        (bounded() == 5 && world.marks().len() == 5 + 7).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    let calls = world.submissions();
    assert_eq!((bounded(), calls.len()), (5, 6), "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.contains("--array=0-0%")).count(), 5, "{calls:?}");
    world.interrupt(&driver);
    assert_eq!(driver.wait().unwrap().code(), Some(130));
    world.write(&stages("cpu = 1"));
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    world.expect_marks(7 + 7);
    world.expect_results_of_a_local_run();
}

fn too_large_arrays_are_halved() {
    let stages = "[vars]\nn = [0, 1, 2, 3]\n[stage.many]\nkind = \"steps\"\nmatrix = { i = \"${n}\" }\n\
                  params = { text = \"many${i}\" }\n";
    let world = World::with_fake_slurm(&["Invalid job array specification"], stages);
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    let sizes: Vec<bool> = world.submissions().iter().map(|call| call.contains("--array=0-1%")).collect();
    assert_eq!(sizes, [false, true, true]);
    world.expect_marks(4);
    world.expect_results_of_a_local_run();
}

fn what_nobody_knows_is_tried_three_times() {
    let world = World::with_fake_slurm(&["the dog ate it"; 4], &study(1, 0, 1));
    let told = world.pipe(&["run", "--executor", "slurm", "numbers"]).expect(1);
    assert!(told.contains("the dog ate it") && world.submissions().len() == 3, "{told}");
    let calls = world.submissions();
    assert!(calls[1].ends_with("--dependency=singleton") && !calls[0].contains("singleton"), "{calls:?}");
}

/// A table that grew is another one; the parts that it had are in the remote cache, though the store is new.
fn parts_that_others_made_are_not_ordered() {
    let world = World::with_fake_slurm(&[], ONE);
    let write = |parts: usize| {
        let remote = format!("[remote]\nurl = \"{}\"\nmode = \"read-write\"\n", world.shared_folder());
        world.write(&format!("{remote}{}", study(parts, 0, 1)));
    };
    write(6);
    world.pipe(&["run", "--executor", "local", "doubled"]).expect(0);
    world.forget_store();
    write(8);
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    // Six of its parts at first, and two later.
    let marks = world.marks();
    let doubled: Vec<_> = marks.iter().filter(|(name, _)| name.starts_with("double")).collect();
    assert!(doubled.len() == 8 && doubled.iter().all(|(_, times)| **times == 1), "{marks:?}");
    let hits = world.events("action_hit");
    assert_eq!(hits.iter().filter(|hit| hit["source"] == "remote" && hit["shard"].is_string()).count(), 6);
    world.expect_results_of_a_local_run();
}
