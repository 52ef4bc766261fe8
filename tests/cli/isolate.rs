//! `isolate = true`: actions in processes of their own.

use std::time::{Duration, Instant};

use crate::study::{SMALL, SMALL_NODES, Study, is};

/// [`SMALL`], each stage in a process of its own.
fn isolated() -> String {
    let mut text = String::new();
    for line in SMALL.lines() {
        text.push_str(line);
        text.push('\n');
        if line.starts_with("kind = ") {
            text.push_str("isolate = true\n");
        }
    }
    text
}

fn own(stages: &str) -> Study {
    Study::new(&format!("[pipeline]\nname = \"own\"\nformat = 1\n\n{stages}"))
}

/// A stage that runs a shell script in a process of its own.
fn stage(name: &str, script: &str, more: &str) -> String {
    format!(
        "[stage.{name}]\nkind = \"command\"\nisolate = true\n{more}\n\
         params = {{ argv = [\"sh\", \"-c\", '''{script}'''], outputs = [\"out.txt\"] }}\n\n"
    )
}

#[test]
fn results_are_those_of_this_process() {
    let study = Study::finished();
    study.write(&isolated());
    // It is in no key.
    assert_eq!(study.planned(&[]), []);
    // Trainings, row-wise parts and what merges them give the same to the bit.
    let again = study.run(&["--reproduce"]).expect(0);
    assert_eq!(again.started().len(), SMALL_NODES);
    let reproduced = again.events_of("reproduced");
    assert_eq!(reproduced.len(), SMALL_NODES);
    assert!(reproduced.iter().all(|one| one["equal"] == true), "{reproduced:?}");
    // What it tells arrives.
    let progress = again.events_of("progress");
    assert!(progress.iter().any(|one| one["node"] == "trained"), "{progress:?}");
    // Their processes are accounted for, in hundredths of a second.
    let finished = again.events_of("action_finished");
    let seconds: Vec<f64> = finished.iter().filter_map(|one| one["cpu"].as_f64()).collect();
    assert!(seconds.len() == finished.len() && seconds.iter().sum::<f64>() > 0.0, "{seconds:?}");
    study.assert_clean();
    let shown = study.pipe(&["show", "study.toml", "trained"]).expect(0);
    assert!(shown.stdout.contains("isolate = true"), "{}", shown.stdout);
    // So does what it counts: three epochs of three batches, of eight images and captions each.
    study.edit("epochs = 2", "epochs = 3");
    let finished = study.run(&["trained"]).expect(0).events_of("action_finished");
    assert_eq!(finished.len(), 1);
    let counts = &finished[0]["counts"];
    assert_eq!((&counts["training_steps"], &counts["forward_passes"]), (&9.into(), &144.into()), "{counts}");
}

#[test]
fn a_process_that_dies_is_a_failed_attempt_and_nothing_more() {
    let study = own(&format!(
        "{}{}",
        stage(
            "dies",
            "kill -KILL $PPID; sleep 10",
            "retry = { max = 1, backoff = \"0s\", on = [\"signal\"] }"
        ),
        stage("lives", "echo here; echo x > out.txt", "")
    ));
    let answer = study.run(&[]).expect(1);
    let retries = answer.events_of("retry");
    assert_eq!((retries.len(), &retries[0]["class"]), (1, &"signal".into()));
    let failed: Vec<_> =
        answer.events_of("action_finished").into_iter().filter(|one| one["status"] == "failed").collect();
    assert!(failed[0]["error"].as_str().expect("a text").contains("was ended by signal 9"), "{failed:?}");
    // The other is done, and what it said is in its log.
    assert!(study.path("results/own/lives/out/out.txt").is_file());
    let log = study.pipe(&["log", "study.toml", "lives"]).expect(0);
    assert!(log.stdout.contains("here\n"), "{}", log.stdout);
    study.assert_clean();
}

#[test]
fn more_memory_than_asked_for_is_out_of_memory() {
    let study =
        own("[stage.shapes]\nkind = \"ingest.phantom\"\nisolate = true\nresources = { mem = \"2MiB\" }\n\
         retry = { max = 1, backoff = \"0s\", on = [\"oom\"] }\n\
         params = { domain = \"general\", task = \"shape\", size = 64, train = 20000, test = 4 }\n");
    let answer = study.run(&[]).expect(1);
    let retries = answer.events_of("retry");
    assert_eq!((retries.len(), &retries[0]["class"]), (1, &"oom".into()));
    let failed = answer.events_of("action_finished");
    let error = failed[0]["error"].as_str().expect("a text");
    assert!(error.contains("out of memory") && error.contains("`resources.mem` allows 2097152"), "{error}");
    study.assert_clean();
}

#[test]
fn failures_and_bad_input_are_told_as_here() {
    let study = own(&stage("fails", "echo what went wrong >&2; exit 3", ""));
    let answer = study.pipe(&["run", "study.toml"]).expect(1);
    assert!(answer.stderr.contains("ended with exit code 3\n    what went wrong"), "{}", answer.stderr);
    let study =
        own("[stage.model]\nkind = \"checkpoint\"\nisolate = true\ninputs = { source = \"file:model\" }\n");
    study.write_file("model/config.json", "{");
    let answer = study.pipe(&["run", "study.toml"]).expect(4);
    assert!(answer.stderr.contains("model/config.json"), "{}", answer.stderr);
}

#[test]
fn a_process_ends_with_its_run() {
    for signal in ["TERM", "KILL"] {
        let study = own("");
        let pids = study.path("pids");
        let script = format!("echo $PPID $$ > {}; sleep 1000; echo x > out.txt", pids.display());
        study.write(&format!("[pipeline]\nname = \"own\"\nformat = 1\n\n{}", stage("endless", &script, "")));
        let running = study.start(&[], |event| is(event, "action_started", "endless"));
        let read = || std::fs::read_to_string(&pids).unwrap_or_default();
        let wait_for = |what: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !what() {
                assert!(began.elapsed() < Duration::from_secs(60), "{signal}: it did not come");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait_for(&|| read().ends_with('\n'));
        running.signal(signal);
        let answer = running.wait();
        assert_eq!(answer.code, if signal == "TERM" { Some(143) } else { None }, "{}", answer.stderr);
        let is_gone = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
        };
        wait_for(&|| read().split_whitespace().all(is_gone));
    }
}
