//! Studies on a real Slurm: a controller and two nodes on this machine, started for the tests. Where there is no Slurm, or
//! no right to start one, the tests say so and pass; those of refused and lost submissions need none, because a script
//! plays Slurm's part.
//!
//! The program of these studies is the test itself: called with a command of `pipe`, it is `pipe` with the kinds of the
//! tests. `scripts/cluster-campaign.sh` calls it so too.

mod fake;
mod kinds;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use world::{Cluster, World, wait_for};

const COMMANDS: [&str; 8] = ["run", "worker", "isolated", "status", "cancel", "log", "plan", "check"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| COMMANDS.contains(&first.as_str())) {
        return pipe_engine::main(&kinds::registry());
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    // They wait most of the time.
    let played: Vec<_> = fake::TESTS
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, test)| (name, std::thread::spawn(test)))
        .collect();
    let code = on_a_cluster(&wanted);
    for (name, test) in played {
        test.join().expect("its panic was told");
        println!("{name}: ok");
    }
    code
}

/// The tests that need a real one.
fn on_a_cluster(wanted: &dyn Fn(&str) -> bool) -> ExitCode {
    let cluster = match Cluster::start() {
        Ok(cluster) => cluster,
        Err(reason) => {
            println!("SKIPPED tests on a cluster: {reason}");
            return ExitCode::SUCCESS;
        }
    };
    // It waits for a minute, in which the others run.
    let refused = wanted("what_is_never_to_be_had_fails_at_its_line").then(|| {
        std::thread::spawn({
            let cluster = cluster.name();
            move || what_is_never_to_be_had_fails_at_its_line(&cluster)
        })
    });
    let tests: [(&str, fn(&str)); 6] = [
        ("parts_and_steps_are_those_of_a_local_run", parts_and_steps_are_those_of_a_local_run),
        ("killed_drivers_lose_nothing", killed_drivers_lose_nothing),
        ("a_task_that_has_to_stop_is_continued", a_task_that_has_to_stop_is_continued),
        ("two_drivers_do_everything_once", two_drivers_do_everything_once),
        ("a_run_is_cancelled", a_run_is_cancelled),
        ("a_detached_run_goes_on_by_itself", a_detached_run_goes_on_by_itself),
    ];
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        let began = Instant::now();
        test(&cluster.name());
        println!("{name}: ok, {:.1} s", began.elapsed().as_secs_f64());
    }
    if let Some(refused) = refused {
        refused.join().expect("its panic was told");
        println!("what_is_never_to_be_had_fails_at_its_line: ok");
    }
    ExitCode::SUCCESS
}

/// A table of parts, what is made of each, their sum, and steps that take a while.
fn study(parts: usize, millis: u64, steps: usize) -> String {
    format!(
        "[stage.numbers]\nkind = \"numbers\"\nparams = {{ count = {parts} }}\n\
         [stage.doubled]\nkind = \"double\"\ninputs = {{ rows = \"numbers\" }}\nparams = {{ millis = {millis} }}\n\
         resources = {{ mem = \"100MiB\", time = \"5min\" }}\n\
         [stage.sum]\nkind = \"total\"\ninputs = {{ rows = \"doubled\" }}\n\
         [stage.story]\nkind = \"story\"\ninputs = {{ rows = \"sum\" }}\n\
         [stage.trained]\nkind = \"steps\"\nparams = {{ count = {steps}, millis = 50, text = \"a\" }}\n\
         [stage.after]\nkind = \"steps\"\nparams = {{ text = \"b\" }}\ninputs = {{ start = \"trained\" }}\n"
    )
}

fn parts_and_steps_are_those_of_a_local_run(cluster: &str) {
    let world = World::new(cluster, &study(200, 10, 3));
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    world.expect_marks(200 + 3);
    world.expect_results_of_a_local_run();
    // All is there: nobody asks the cluster.
    world.pipe_without_cluster(&["run", "--executor", "slurm"]).expect(0);
    let jobs = world.arrays();
    assert!((5..=15).contains(&jobs), "{jobs} arrays for five stages");
}

fn killed_drivers_lose_nothing(cluster: &str) {
    let world = World::new(cluster, &study(40, 150, 60));
    for seconds in [1.2, 2.7, 1.9] {
        let mut driver = world.start(&["run", "--executor", "slurm"]);
        std::thread::sleep(Duration::from_secs_f64(seconds));
        driver.kill().unwrap();
        driver.wait().unwrap();
    }
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    world.expect_marks(40 + 3);
    world.expect_results_of_a_local_run();
}

fn a_task_that_has_to_stop_is_continued(cluster: &str) {
    let world = World::new(cluster, &study(1, 0, 120));
    let mut driver = world.start(&["run", "--executor", "slurm", "trained"]);
    for stop in ["USR1", "TERM"] {
        let job = wait_for("the task runs", || world.running_job());
        std::thread::sleep(Duration::from_millis(800));
        // Slurm loses a signal now and then.
        wait_for("the task has ended", || {
            world.slurm("scancel", &["--batch", &format!("--signal={stop}"), &job]);
            std::thread::sleep(Duration::from_millis(400));
            (world.running_job().as_ref() != Some(&job)).then_some(())
        });
    }
    assert!(driver.wait().unwrap().success());
    let resumed = world.events("resume");
    assert!(resumed.len() == 2 && resumed[1]["step"].as_u64() > resumed[0]["step"].as_u64(), "{resumed:?}");
    world.pipe(&["run", "--executor", "slurm"]).expect(0);
    world.expect_marks(1 + 3);
    world.expect_results_of_a_local_run();
}

fn two_drivers_do_everything_once(cluster: &str) {
    let world = World::new(cluster, &study(30, 50, 20));
    let mut drivers =
        [world.start(&["run", "--executor", "slurm"]), world.start(&["run", "--executor", "slurm"])];
    for driver in &mut drivers {
        assert!(driver.wait().unwrap().success());
    }
    world.expect_marks(30 + 3);
    world.expect_results_of_a_local_run();
}

fn a_run_is_cancelled(cluster: &str) {
    let world = World::new(cluster, &study(1, 0, 2000));
    let mut driver = world.start(&["run", "--executor", "slurm", "trained", "--grace", "3"]);
    wait_for("the task runs", || world.running_job());
    let status = world.pipe(&["status"]).expect(0);
    assert!(status.contains("1 running") && status.contains("of trained"), "{status}");
    // Who works on it: the process, and its place in the cluster.
    let at_work = wait_for("it is worked on", || {
        let status = world.pipe(&["status"]).expect(0);
        status.lines().find(|line| line.starts_with("at work  trained")).map(str::to_owned)
    });
    assert!(at_work.contains(", job ") && at_work.contains("_0, run "), "{at_work}");
    let told = world.pipe(&["cancel", "last"]).expect(0);
    assert!(told.contains("1 tasks cancelled; 0 of 1 actions"), "{told}");
    assert!(!driver.wait().unwrap().success());
    assert_eq!(world.running_job(), None);
    let arrays = world.arrays();
    // What it has done so far is not lost, and jobs of a driver that is interrupted go on.
    let mut driver = world.start(&["run", "--executor", "slurm", "trained", "--grace", "1"]);
    wait_for("the task runs", || world.running_job());
    world.interrupt(&driver);
    assert_eq!(driver.wait().unwrap().code(), Some(130));
    assert!(world.running_job().is_some() && world.arrays() == arrays + 1);
    let mut driver = world.start(&["run", "--executor", "slurm", "trained"]);
    std::thread::sleep(Duration::from_secs(2));
    world.interrupt(&driver);
    std::thread::sleep(Duration::from_millis(300));
    world.interrupt(&driver);
    assert_eq!(driver.wait().unwrap().code(), Some(130));
    wait_for("its jobs are gone", || world.running_job().is_none().then_some(()));
    assert_eq!(world.arrays(), arrays + 1, "the third driver took over the job of the second");
}

fn a_detached_run_goes_on_by_itself(cluster: &str) {
    let world = World::new(cluster, &study(20, 20, 40));
    world.pipe(&["run", "--executor", "slurm", "--detach"]).expect(0);
    wait_for("all is done", || world.has_result("after").then_some(()));
    wait_for("all is done", || world.has_result("story").then_some(()));
    wait_for("the last part of the run ends", || world.running_job().is_none().then_some(()));
    world.expect_marks(20 + 3);
    world.expect_results_of_a_local_run();
}

fn what_is_never_to_be_had_fails_at_its_line(cluster: &str) {
    let world = World::new(
        cluster,
        "[stage.large]\nkind = \"steps\"\nparams = { text = \"large\" }\nresources = { cpu = 64 }\n\
         [stage.nowhere]\nkind = \"steps\"\nparams = { text = \"nowhere\" }\nresources = { partition = \"nosuch\" }\n\
         [stage.good]\nkind = \"steps\"\nparams = { text = \"good\" }\n\
         [stage.after]\nkind = \"steps\"\ninputs = { start = \"large\" }\n",
    );
    let began = Instant::now();
    let told = world.pipe(&["run", "--executor", "slurm"]).expect(1);
    assert!(began.elapsed() < Duration::from_secs(120));
    let lines = world.lines();
    for (asked, column) in [("cpu = 64", "64"), ("partition = \"nosuch\"", "\"nosuch\"")] {
        let line = lines.iter().position(|line| line.contains(asked)).unwrap();
        let column = lines[line].find(column).unwrap();
        let place = format!("study.toml:{}:{}", line + 1, column + 1);
        assert!(told.contains(&place), "{place} is not in {told}");
    }
    assert!(told.contains("PartitionConfig") && told.contains("Blocked  after (by `large`)"), "{told}");
    assert!(world.has_result("good"));
    wait_for("nothing is left in the queue", || world.queued().is_empty().then_some(()));
}
