//! Runs that are interrupted: what is left is sound, and the same command finishes.

use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::study::{SMALL, Study, is};

/// [`SMALL`] with a training that takes a second or two.
fn slow() -> String {
    SMALL.replace("epochs = 2", "epochs = 400")
}

/// Training has begun.
fn training(event: &Json) -> bool {
    is(event, "progress", "trained")
}

#[test]
fn an_interrupt_stops_at_a_safe_point_and_the_next_run_finishes() {
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 143)] {
        let study = Study::new(&slow());
        let running = study.start(&["trained"], training);
        running.signal(signal);
        let answer = running.wait().expect(code);
        assert!(answer.stderr.contains("Stopping  at the next safe point"), "{}", answer.stderr);
        let finished = answer.events_of("action_finished");
        assert!(finished.iter().any(|event| event["node"] == "trained" && event["status"] == "cancelled"));
        assert_eq!(answer.events_of("run_finished")[0]["status"], "cancelled");
        study.assert_clean();
        // What was done before stays done.
        assert_eq!(study.run(&["trained"]).expect(0).started(), ["trained"], "{signal}");
    }
}

#[test]
fn a_second_interrupt_stops_at_once() {
    let study = Study::new(&slow());
    let running = study.start(&["trained"], training);
    running.signal("INT");
    std::thread::sleep(std::time::Duration::from_millis(1));
    running.signal("INT");
    let answer = running.wait().expect(130);
    let finished = answer.events_of("action_finished");
    assert!(finished.iter().any(|event| event["node"] == "trained" && event["status"] == "cancelled"));
    // Nothing is left for the next start to sweep.
    study.assert_clean();
    assert_eq!(study.run(&["trained"]).expect(0).started(), ["trained"]);
    study.assert_clean();
}

/// No lock has to be removed, and the result is that of an undisturbed run.
#[test]
fn a_killed_run_is_finished_by_the_same_command_with_equal_results() {
    let undisturbed = Study::new(&slow()).run(&[]).expect(0).digests();
    let study = Study::new(&slow());
    let running = study.start(&[], training);
    running.signal("KILL");
    let killed = running.wait();
    assert_eq!(killed.code, None);
    let committed = study.records();
    let second = study.run(&[]).expect(0);
    assert!(second.started().contains(&"trained".to_owned()));
    for event in second.events_of("action_started") {
        let key = event["key"].as_str().expect("a key");
        let record = format!("{}/{}.json", &key[..2], &key[2..]);
        assert!(!committed.contains(&record), "what was committed is a hit: {event}");
    }
    let mut digests: Vec<_> = killed.digests().into_iter().chain(second.digests()).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests, undisturbed);
    study.assert_clean();
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

/// Training goes on after its last checkpoint, in this process or in one of its own, and gives the same bits.
#[test]
fn a_killed_training_resumes_where_it_was() {
    let undisturbed = Study::new(&slow()).run(&["trained"]).expect(0).digests();
    for more in ["", "isolate = true\n"] {
        let study = Study::new(&slow());
        let policy = format!("lr = 1e-3 }}\ncheckpoint = {{ every = 20, retain = true }}\n{more}");
        study.edit("lr = 1e-3 }", &policy);
        let (kept, first) = (std::cell::Cell::new(0), std::cell::OnceCell::new());
        let running = study.start(&["trained"], |event| {
            if !is(event, "checkpoint", "trained") {
                return false;
            }
            kept.set(kept.get() + 1);
            // What it reads was flushed by then, however fast it learns.
            kept.get() >= 3 && first.get_or_init(Instant::now).elapsed() > Duration::from_millis(300)
        });
        running.signal("KILL");
        let killed = running.wait();
        let second = study.run(&["trained"]).expect(0);
        assert_eq!(second.started(), ["trained"]);
        let resumed = second.events_of("resume");
        let last = killed.events_of("checkpoint").last().expect("there were some")["step"].as_u64();
        assert_eq!((resumed.len(), resumed[0]["node"].as_str()), (1, Some("trained")));
        assert!(resumed[0]["step"].as_u64() >= last.min(Some(60)), "{resumed:?} after {last:?}");
        let mut digests: Vec<_> = killed.digests().into_iter().chain(second.digests()).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests, undisturbed, "{more}");
        // They were to be retained, by collections too, as long as the result is.
        let checkpoints = study.files(".pipe/ckpt").len();
        assert!(checkpoints > 2);
        study.pipe(&["gc", "study.toml", "--apply", "--grace", "0s"]).expect(0);
        assert_eq!(study.files(".pipe/ckpt").len(), checkpoints);
    }
}

#[test]
fn killed_at_any_moment_the_store_stays_sound() {
    let study = Study::new(SMALL);
    for milliseconds in [0, 3, 10, 20, 40, 60, 90, 130, 180, 240] {
        let running = study.start(&[], |event| event["ev"] == "planned");
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        running.signal("KILL");
        running.wait();
    }
    study.run(&[]).expect(0);
    study.assert_clean();
    for (name, content) in study.files(".pipe/cas") {
        assert_eq!(pipe_cache::Digest::of(&content).to_hex(), name.replace('/', ""));
    }
    let fresh = Study::new(SMALL);
    fresh.run(&[]).expect(0);
    let published = |study: &Study| -> Vec<(String, Vec<u8>)> {
        study.files("results").into_iter().filter(|(name, _)| !name.ends_with(".published.json")).collect()
    };
    assert!(published(&study) == published(&fresh), "the results are those of an undisturbed run");
}

#[test]
fn a_time_limit_ends_a_stage() {
    let study = Study::new(&slow().replace("epochs = 400", "epochs = 5000"));
    study.edit("lr = 1e-3 }", "lr = 1e-3 }\nresources = { time = \"1s\" }");
    let answer = study.run(&["trained"]).expect(1);
    let failed: Vec<_> =
        answer.events_of("action_finished").into_iter().filter(|one| one["status"] == "failed").collect();
    let error = failed[0]["error"].as_str().expect("it says why");
    assert!(error.contains("1 s") && error.contains("resources.time"), "{error}");
    study.assert_clean();
}
