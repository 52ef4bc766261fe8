//! Stages that fail, data that are damaged, stores that refuse: what a person is told, by which exit code,
//! and that nothing is left half done.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::study::{Answer, SMALL, SMALL_NODES, Study, is_root, text};

/// [`SMALL`] with a batch that its pairs do not fill: known only once they are there.
fn failing() -> Study {
    Study::new(&SMALL.replace("batch = 8", "batch = 64"))
}

const BLOCKED: [&str; 2] = ["embedded[model=trained]", "retrieved[model=trained]"];

#[test]
fn a_failed_stage_is_reported_and_independent_branches_go_on() {
    let study = failing();
    let answer = study.run(&[]).expect(1);
    assert_eq!(answer.started().len(), SMALL_NODES - BLOCKED.len());
    let failed: Vec<_> =
        answer.events_of("action_finished").into_iter().filter(|event| event["status"] != "ok").collect();
    assert_eq!((failed.len(), &failed[0]["node"]), (1, &"trained".into()));
    let end = &answer.events_of("run_finished")[0];
    assert_eq!((&end["status"], &end["executed"], &end["failed"]), (&"failed".into(), &6.into(), &1.into()));
    assert_eq!(end["blocked"], 2);
    study.assert_clean();
    // The other branch was published.
    assert!(study.path("results/small/retrieved/metrics/model=initial").is_dir());

    // Again: only what failed, and a person reads why.
    let plan = study.pipe(&["plan", "study.toml"]).expect(0);
    let reason = "its last attempt failed just now: 24 pairs of split `train` do not fill one batch of 64";
    assert!(plan.stdout.contains(reason), "{}", plan.stdout);
    let again = study.pipe(&["run", "study.toml"]).expect(1);
    assert!(
        again.stderr.contains("error: `trained` failed\n  cause: 24 pairs of split `train`"),
        "{}",
        again.stderr
    );
    assert!(
        again.stderr.contains(&format!("Blocked  {} (by `trained`)", BLOCKED.join(", "))),
        "{}",
        again.stderr
    );
    let log = again.stderr.lines().find_map(|line| line.strip_prefix("  log: ")).expect("the log is named");
    assert!(std::fs::read_to_string(study.path("").join(log)).expect("it is there").contains("24 pairs"));
    let log = study.pipe(&["log", "study.toml", "trained"]).expect(0);
    assert!(log.stdout.contains("24 pairs of split `train`"), "{}", log.stdout);

    // Mended: the failed one and what it blocked.
    study.edit("batch = 64", "batch = 8");
    let mended = study.run(&[]).expect(0);
    assert_eq!(mended.started(), [BLOCKED[0], BLOCKED[1], "trained"]);
}

#[test]
fn fail_fast_starts_nothing_new() {
    // One core, so that the failing stage is over before others are due.
    let study = failing();
    study.run(&["initial", "pairs"]).expect(0);
    let answer = study.run(&["--fail-fast", "--jobs", "1"]).expect(1);
    let started = answer.started();
    assert!(started.contains(&"trained".to_owned()), "{started:?}");
    let after: Vec<_> = answer.events().into_iter().skip_while(|event| event["status"] != "failed").collect();
    assert!(after.iter().all(|event| event["ev"] != "action_started"), "{after:?}");
}

/// A study that reads a model from files.
const MODEL: &str = r#"[pipeline]
name = "model"
format = 1

[stage.model]
kind = "checkpoint"
inputs = { source = "file:model" }

[stage.shapes]
kind = "ingest.phantom"
params = { domain = "general", task = "shape", size = 28, train = 8, test = 4 }
"#;

/// A study that reads a sound model from the folder `model`.
fn with_model() -> Study {
    let finished = Study::finished();
    let study = Study::new(MODEL);
    let copied = Command::new("cp")
        .arg("-r")
        .args([finished.path("results/small/initial/checkpoint"), study.path("model")])
        .status();
    assert!(copied.expect("cp starts").success());
    // Published files are as writable as others.
    study
}

#[test]
fn a_missing_source_is_named_before_anything_runs() {
    let study = Study::new(&format!(
        "{MODEL}\n[stage.other]\nkind = \"checkpoint\"\ninputs = {{ source = \"file:nowhere/*.safetensors\" }}\n"
    ));
    for command in ["run", "plan"] {
        let answer = study.pipe(&[command, "study.toml"]).expect(4);
        // All of them at once.
        for (node, path) in [("model", "model"), ("other", "nowhere")] {
            assert!(
                answer.stderr.contains(&format!("node `{node}` reads `file:{path}")),
                "{}",
                answer.stderr
            );
        }
        assert!(answer.stderr.contains("there is no such file or folder"), "{}", answer.stderr);
        assert!(answer.stderr.contains("error[E012]") && answer.stderr.contains("study.toml:7:21"));
        assert!(answer.stderr.contains(text(&study.path("model"))), "{}", answer.stderr);
    }
    assert!(!study.path(".pipe").exists() && !study.path("results").exists());
    study.pipe(&["plan", "study.toml", "--json"]).expect(4);
    let found = study.json("plan", &[]);
    assert_eq!(
        (&found["diagnostics"][0]["code"], &found["diagnostics"][0]["start"]["line"]),
        (&"E012".into(), &7.into())
    );
    // What does not read it can be run.
    study.run(&["shapes"]).expect(0);
}

/// How a file of a model is damaged, and words of the reason.
fn damages() -> Vec<(&'static str, &'static str, Box<dyn Fn(Vec<u8>) -> Vec<u8>>, &'static str)> {
    fn json(edit: impl Fn(&mut serde_json::Value) + 'static) -> Box<dyn Fn(Vec<u8>) -> Vec<u8>> {
        Box::new(move |bytes| {
            let mut value = serde_json::from_slice(&bytes).expect("it was sound");
            edit(&mut value);
            serde_json::to_vec(&value).expect("values are JSON")
        })
    }
    vec![
        (
            "truncated tensors",
            "model.safetensors",
            Box::new(|bytes| bytes[..bytes.len() / 2].to_vec()),
            "model.safetensors",
        ),
        ("no tensors", "model.safetensors", Box::new(|_| Vec::new()), "model.safetensors"),
        ("a long header", "model.safetensors", Box::new(|_| vec![0xff; 64]), "model.safetensors"),
        (
            "a page instead of tensors",
            "model.safetensors",
            Box::new(|_| b"<!DOCTYPE html>".to_vec()),
            "model.safetensors",
        ),
        ("a truncated configuration", "config.json", Box::new(|bytes| bytes[..20].to_vec()), "config.json"),
        (
            "another architecture",
            "config.json",
            json(|config| config["model_type"] = "gpt2".into()),
            "config.json",
        ),
        (
            "other sizes",
            "config.json",
            json(|config| config["vision_config"]["hidden_size"] = 32.into()),
            "is F32 [16], [32] is expected",
        ),
        (
            "huge sizes",
            "config.json",
            json(|config| config["vision_config"]["hidden_size"] = (1u64 << 50).into()),
            "config.json",
        ),
        (
            "a negative size",
            "config.json",
            json(|config| config["projection_dim"] = (-1).into()),
            "config.json",
        ),
        (
            "a truncated tokeniser",
            "tokenizer.json",
            Box::new(|bytes| bytes[..100].to_vec()),
            "tokenizer.json",
        ),
        ("an empty tokeniser", "tokenizer.json", Box::new(|_| b"{}".to_vec()), "tokenizer.json"),
        (
            "a wrong preprocessor",
            "preprocessor_config.json",
            Box::new(|bytes| bytes[..20].to_vec()),
            "preprocessor_config.json",
        ),
    ]
}

#[test]
fn damaged_data_are_named_and_leave_no_record() {
    for (name, file, damage, words) in damages() {
        let study = with_model();
        study.run(&["shapes"]).expect(0);
        let before = study.records();
        let path = study.path("model").join(file);
        let sound = std::fs::read(&path).expect("the model has it");
        std::fs::write(&path, damage(sound.clone())).expect("it can be written");
        let answer = study.pipe(&["run", "study.toml"]);
        assert_eq!(answer.code, Some(4), "{name}: {}", answer.stderr);
        assert!(answer.stderr.contains("error: `model` failed\n  cause: "), "{name}: {}", answer.stderr);
        let folder = format!("`{}/", text(&study.path("model")));
        assert!(answer.stderr.contains(&folder), "{name}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{name}: {}", answer.stderr);
        assert!(!answer.stderr.contains("panicked"), "{name}: {}", answer.stderr);
        assert_eq!(study.records(), before, "{name}");
        study.assert_clean();
        std::fs::write(&path, sound).expect("it can be written");
        study.run(&[]).expect(0);
    }
    let study = with_model();
    std::fs::remove_file(study.path("model/model.safetensors")).expect("it is there");
    let answer = study.pipe(&["run", "study.toml", "model"]).expect(4);
    assert!(answer.stderr.contains("model.safetensors"), "{}", answer.stderr);
    assert_eq!(study.records().len(), 0);
}

#[test]
fn a_source_that_leaves_its_folder_is_refused() {
    let study = with_model();
    std::os::unix::fs::symlink("/etc/hostname", study.path("model/link.json")).expect("links can be made");
    let answer = study.pipe(&["run", "study.toml"]).expect(4);
    assert!(answer.stderr.contains("the link leaves the source"), "{}", answer.stderr);
}

/// Runs a command without the right to override file modes; `None` where that cannot be done.
fn without_privilege(command: Command) -> Option<Answer> {
    if !is_root() {
        let mut command = command;
        return Some(Answer::of(&command.output().expect("the program starts")));
    }
    let mut lowered = Command::new("setpriv");
    lowered.args(["--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]);
    lowered.arg(command.get_program()).args(command.get_args());
    lowered.current_dir(command.get_current_dir().expect("the study's folder")).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => lowered.env(name, value),
            None => lowered.env_remove(name),
        };
    }
    let output = lowered.output().ok()?;
    let refused = String::from_utf8_lossy(&output.stderr).contains("setpriv:");
    (!refused).then(|| Answer::of(&output))
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the mode can be set");
}

#[test]
fn a_store_that_cannot_be_written_is_exit_3() {
    let study = Study::new(SMALL);
    // Below a folder that may not be written to.
    std::fs::create_dir(study.path("closed")).expect("folders can be made");
    set_mode(&study.path("closed"), 0o555);
    let store = study.path("closed/store");
    let Some(answer) = without_privilege(study.command(&["run", "study.toml", "--store", text(&store)]))
    else {
        println!("SKIPPED a store that cannot be written: `setpriv` cannot lower privileges here");
        return;
    };
    let answer = answer.expect(3);
    assert!(
        answer.stderr.contains("Permission denied") && answer.stderr.contains(text(&store)),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("--store"), "{}", answer.stderr);
    // A store of someone else.
    study.run(&["shapes"]).expect(0);
    for folder in ["", "cas", "ac", "runs", "tmp", "lease"] {
        set_mode(&study.path(".pipe").join(folder), 0o555);
    }
    let answer = without_privilege(study.command(&["run", "study.toml"])).expect("it could before").expect(3);
    assert!(answer.stderr.contains("Permission denied"), "{}", answer.stderr);
    // What only looks can look.
    let plan = without_privilege(study.command(&["plan", "study.toml"])).expect("it could before").expect(0);
    assert!(plan.stdout.contains("1 up to date"), "{}", plan.stdout);
    let doctor =
        without_privilege(study.command(&["doctor", "study.toml"])).expect("it could before").expect(3);
    assert!(doctor.stdout.contains("Permission denied"), "{}", doctor.stdout);
    for folder in ["", "cas", "ac", "runs", "tmp", "lease"] {
        set_mode(&study.path(".pipe").join(folder), 0o755);
    }
    // Results that cannot be published.
    let results = study.path("closed/results");
    let arguments = ["run", "study.toml", "shapes", "--results", text(&results)];
    let answer = without_privilege(study.command(&arguments)).expect("it could before").expect(3);
    assert!(answer.stderr.contains(text(&results)), "{}", answer.stderr);
    set_mode(&study.path("closed"), 0o755);
}

#[test]
fn a_folder_of_something_else_is_not_taken_for_a_store() {
    let study = Study::new(SMALL);
    study.write_file("documents/letter.txt", "dear");
    let answer = study.pipe(&["run", "study.toml", "--store", "documents"]).expect(3);
    assert!(answer.stderr.contains("letter.txt"), "{}", answer.stderr);
    assert_eq!(study.files("documents").len(), 1);
    study.write_file("newer/FORMAT", "pipe-store 9\n");
    let answer = study.pipe(&["run", "study.toml", "--store", "newer"]).expect(3);
    assert!(answer.stderr.contains("pipe-store 9"), "{}", answer.stderr);
}

/// A small disk; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).expect("folders can be made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&path).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(path))
    }

    fn grow(&self, size: &str) {
        let grown = Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status();
        assert!(grown.expect("mount starts").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_exit_3_and_the_store_stays_sound() {
    let study = Study::new(SMALL);
    let Some(disk) = SmallDisk::mount(study.path("disk"), "1m") else {
        println!("SKIPPED a full disk: a tmpfs cannot be mounted here");
        return;
    };
    let arguments = ["--store", "disk/store", "--set", "stage.shapes.params.train=1500", "--min-free", "0"];
    let answer = study.pipe(&[&["run", "study.toml"], &arguments[..]].concat()).expect(3);
    assert!(answer.stderr.contains("No space left on device"), "{}", answer.stderr);
    assert!(answer.stderr.contains("free some space"), "{}", answer.stderr);
    assert!(answer.stderr.contains(" of it is free"), "{}", answer.stderr);
    assert!(answer.stderr.contains("`pipe gc --apply` would free "), "{}", answer.stderr);
    let left: Vec<_> = study.files("disk/store/tmp").into_iter().map(|(name, _)| name).collect();
    assert!(left.is_empty(), "staging was removed: {left:?}");
    // With room, the same command does the rest, and every blob is what its name says.
    disk.grow("64m");
    study.run(&arguments).expect(0);
    assert_eq!(study.run(&arguments).expect(0).started(), [] as [&str; 0]);
    for (name, content) in study.files("disk/store/cas") {
        assert_eq!(pipe_cache::Digest::of(&content).to_hex(), name.replace('/', ""));
    }
}

#[test]
fn nothing_starts_on_a_disk_that_is_nearly_full() {
    let study = Study::new(SMALL);
    let answer = study.pipe(&["run", "study.toml", "--min-free", "9000000TiB"]).expect(3);
    assert!(
        answer.stderr.contains("nearly full") && answer.stderr.contains("--min-free"),
        "{}",
        answer.stderr
    );
    assert!(study.records().is_empty());
    study.run(&[]).expect(0);
    // With nothing to do there is nothing to start.
    study.run(&["--min-free", "9000000TiB"]).expect(0);
    let answer = study.pipe(&["run", "study.toml", "--min-free", "much"]).expect(2);
    assert!(answer.stderr.contains("1GiB"), "{}", answer.stderr);
}

#[test]
fn a_disk_too_small_for_a_store_is_exit_3() {
    let study = Study::new(SMALL);
    let Some(disk) = SmallDisk::mount(study.path("disk"), "16k") else {
        println!("SKIPPED a full disk: a tmpfs cannot be mounted here");
        return;
    };
    let arguments = ["run", "study.toml", "--store", "disk/store", "--min-free", "0"];
    let answer = study.pipe(&arguments).expect(3);
    assert!(answer.stderr.contains("No space left on device"), "{}", answer.stderr);
    drop(disk);
}
