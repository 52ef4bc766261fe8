//! Remote sources: fetched once, pinned in the lock file, and never again without need.

use std::path::Path;

use crate::study::{Answer, Study};

#[path = "../../engine/src/remote/tests/server.rs"]
mod server;

use server::{Fault, Repository, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const STUDY: &str = r#"[pipeline]
name = "small"
format = 1

[stage.model]
kind = "checkpoint"
inputs = { source = "hf:o/n@main" }
"#;

/// A study of a sound model on a hub.
fn published() -> (Study, Server) {
    let finished = Study::finished();
    let files = finished.files("results/small/initial/checkpoint");
    assert!(files.len() > 2, "a checkpoint has files");
    let file = |(name, content): (String, Vec<u8>)| (name, content, String::new());
    let files = files.into_iter().map(file).collect();
    let server = Server::start();
    let repository = Repository { commit: COMMIT.to_owned(), files, gate: None };
    server.set(|world| _ = world.repositories.insert("models/o/n".to_owned(), repository));
    (Study::new(STUDY), server)
}

/// The program with the server for hub and Zenodo.
fn pipe_as(study: &Study, server: &Server, token: Option<&str>, arguments: &[&str]) -> Answer {
    let mut command = study.command(arguments);
    for name in
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"]
    {
        command.env_remove(name);
    }
    command.envs(token.map(|token| ("HF_TOKEN", token)));
    command.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN_PATH").env("HF_HOME", study.path("hf"));
    command.env("HF_ENDPOINT", &server.url).env("ZENODO_ENDPOINT", &server.url);
    Answer::of(&command.output().expect("the program starts"))
}

fn pipe(study: &Study, server: &Server, arguments: &[&str]) -> Answer {
    pipe_as(study, server, None, arguments)
}

fn run(study: &Study, server: &Server, arguments: &[&str]) -> Answer {
    pipe(study, server, &[&["run", "study.toml", "--json"], arguments].concat())
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).expect("it can be removed");
}

fn lock(study: &Study) -> String {
    std::fs::read_to_string(study.path("study.lock")).unwrap_or_default()
}

#[test]
fn a_source_is_fetched_once_and_is_what_its_files_are() {
    let (study, server) = published();
    // `plan` says what it does not do.
    let plan = pipe(&study, &server, &["plan", "study.toml"]).expect(0);
    assert!(plan.stdout.contains("its source `hf:o/n@main` would be fetched first"), "{}", plan.stdout);
    assert!(
        server.requests().is_empty() && !study.path(".pipe").exists() && !study.path("study.lock").exists()
    );
    let first = run(&study, &server, &[]).expect(0);
    assert_eq!(first.started(), ["model"]);
    let order: Vec<String> =
        first.events().iter().map(|event| event["ev"].as_str().expect("a word").to_owned()).collect();
    let place = |name: &str| order.iter().position(|event| event == name).unwrap_or_else(|| panic!("{name}"));
    assert!(
        place("run_started") < place("fetch_started") && place("fetch_progress") < place("fetch_finished")
    );
    assert!(place("fetch_finished") < place("planned") && place("planned") < place("action_started"));
    assert_eq!(first.events_of("fetch_finished")[0]["status"], "ok");
    let text = lock(&study);
    assert!(text.contains("source = \"hf:o/n@main\"") && text.contains(COMMIT), "{text}");
    study.assert_clean();
    // Nothing is asked again, whatever `main` is now.
    server.requests();
    server.set(|world| world.repositories.clear());
    let second = run(&study, &server, &[]).expect(0);
    assert!(second.started().is_empty() && server.requests().is_empty());
    assert_eq!(lock(&study), text);
    // What the study reads is no garbage.
    let blobs = study.files(".pipe/cas").len();
    pipe(&study, &server, &["gc", "study.toml", "--grace", "0s", "--apply"]).expect(0);
    assert_eq!(study.files(".pipe/cas").len(), blobs);
    // The same files in a folder have the same key.
    let repository = Study::finished();
    for (name, content) in repository.files("results/small/initial/checkpoint") {
        study.write_file(&format!("model/{name}"), content);
    }
    study.edit("hf:o/n@main", "file:model");
    assert!(run(&study, &server, &[]).expect(0).started().is_empty(), "where it lies is in no key");
}

#[test]
fn the_lock_file_is_enough_to_plan_and_to_fetch_again() {
    let (study, server) = published();
    let first = run(&study, &server, &[]).expect(0);
    let text = lock(&study);
    remove(&study.path(".pipe"));
    server.requests();
    let plan = pipe(&study, &server, &["plan", "study.toml"]).expect(0);
    assert!(plan.stdout.contains("1 to run"), "the key is known: {}", plan.stdout);
    let answer = pipe(&study, &server, &["run", "study.toml", "--offline"]).expect(4);
    assert!(answer.stderr.contains("`--offline` forbids to fetch it"), "{}", answer.stderr);
    assert!(server.requests().is_empty());
    // `main` has moved on; the commit of the lock file is fetched.
    let again = run(&study, &server, &["--locked"]).expect(0);
    assert_eq!(again.digests(), first.digests());
    assert!(server.requests().iter().all(|request| request.path.contains(COMMIT)));
    assert_eq!(lock(&study), text);
    // A blob is fetched only if an action needs it.
    let blobs = study.files(".pipe/cas");
    let line = text.lines().find(|line| line.contains("config.json")).expect("a file of the model");
    let digest = line.split("blake3 = \"").nth(1).and_then(|rest| rest.get(..64)).expect("a digest");
    let blob = format!("{}/{}", &digest[..2], &digest[2..]);
    assert!(blobs.iter().any(|(path, _)| *path == blob));
    let remove_blob = || std::fs::remove_file(study.path(".pipe/cas").join(&blob)).expect("it is there");
    // It is also a file of the result, if the stage copies it: then the action runs again.
    remove_blob();
    server.requests();
    run(&study, &server, &["--force", "model"]).expect(0);
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert!(paths.len() == 1 && paths[0].ends_with("config.json"), "{paths:?}");
}

#[test]
fn flags_forbid_what_they_say() {
    let (study, server) = published();
    for (flag, expected) in [("--locked", "`--locked` forbids"), ("--offline", "`--offline` forbids")] {
        let answer = pipe(&study, &server, &["run", "study.toml", flag]).expect(4);
        assert!(answer.stderr.contains("error[E012]") && answer.stderr.contains("study.toml:7:21"));
        assert!(answer.stderr.contains(expected), "{}", answer.stderr);
    }
    assert!(server.requests().is_empty() && !study.path(".pipe").exists() && lock(&study).is_empty());
    run(&study, &server, &[]).expect(0);
    run(&study, &server, &["--locked", "--offline"]).expect(0);
    study.write_file("study.lock", "version = 7\n");
    let answer = pipe(&study, &server, &["run", "study.toml"]).expect(2);
    assert!(
        answer.stderr.contains("study.lock") && answer.stderr.contains("version is 7"),
        "{}",
        answer.stderr
    );
}

#[test]
fn all_problems_are_told_at_once_and_nothing_is_made() {
    let (study, server) = published();
    server.set(|world| {
        let mut gated = world.repositories["models/o/n"].clone();
        let mut hostile = gated.clone();
        gated.gate = Some("secret".to_owned());
        hostile.files[0].0 = "../../outside".to_owned();
        world.repositories.insert("datasets/o/gated".to_owned(), gated);
        world.repositories.insert("models/o/hostile".to_owned(), hostile);
    });
    let mut text = STUDY.to_owned();
    let sources =
        ["file:nowhere", "hf:o/none@main", "hf:datasets/o/gated@main", "hf:o/hostile@main", "zenodo:5/x"];
    for (index, source) in sources.iter().enumerate() {
        text.push_str(&format!(
            "[stage.other{index}]\nkind = \"checkpoint\"\ninputs = {{ source = \"{source}\" }}\n"
        ));
    }
    study.write(&text);
    let answer = pipe(&study, &server, &["run", "study.toml"]).expect(4);
    for expected in [
        "there is no such file or folder",
        "the hub has no `o/none`",
        "`o/gated` is gated",
        "set HF_TOKEN",
        "`../../outside`, which is refused",
        "Zenodo has no record 5",
        "5 errors",
    ] {
        assert!(answer.stderr.contains(expected), "{expected}:\n{}", answer.stderr);
    }
    assert!(!study.path(".pipe").exists() && lock(&study).is_empty());
    // With a token the gate opens, and the token stays with the hub.
    study.write(&STUDY.replace("hf:o/n@main", "hf:datasets/o/gated@main"));
    pipe_as(&study, &server, Some("secret"), &["run", "study.toml"]).expect(0);
    let requests = server.requests();
    assert!(requests.iter().all(|one| !one.at_storage || !one.headers.contains_key("authorization")));
    assert!(!lock(&study).contains("secret"));
}

#[test]
fn broken_connections_are_survived_and_changed_content_is_refused() {
    let (study, server) = published();
    server.set(|world| world.faults = [Fault::Break(1), Fault::Status(503, Some(0))].into());
    let first = run(&study, &server, &[]).expect(0);
    assert_eq!(first.events_of("fetch_retry").len(), 2);
    // What the lock file names is served with other content of the same length.
    let text = lock(&study);
    remove(&study.path(".pipe"));
    let name = "config.json";
    let (_, content, _) = server.set(|world| {
        let files = &mut world.repositories.get_mut("models/o/n").expect("it is there").files;
        files.retain(|(path, ..)| path == name);
        files[0].clone()
    });
    let changed = vec![b' '; content.len()];
    server.set(|world| world.faults = vec![Fault::Content(changed); 1].into());
    study.edit("hf:o/n@main", "hf:o/n@main/config.json");
    study.write_file("study.lock", text.replace("hf:o/n@main", "hf:o/n@main/config.json"));
    let answer = run(&study, &server, &[]).expect(4);
    let expected = text.lines().find(|line| line.contains(name)).expect("a line");
    let expected = expected.split("blake3 = \"").nth(1).and_then(|rest| rest.get(..64)).expect("a digest");
    assert!(answer.stderr.contains(expected), "{}", answer.stderr);
    assert!(answer.stderr.contains("is not what the lock file says"), "{}", answer.stderr);
    assert!(answer.stderr.contains("remove the entry"), "{}", answer.stderr);
    assert_eq!(answer.events_of("action_finished")[0]["status"], "failed");
}

#[test]
fn what_is_published_is_named_without_a_mistake() {
    let study = Study::new(STUDY);
    let check = |name: &str, arguments: &[&str]| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name);
        let answer = study.pipe(&[&["check", crate::study::text(&file)], arguments].concat()).expect(0);
        assert!(
            answer.stderr.is_empty() && answer.stdout.contains("no mistakes"),
            "{name}: {}{}",
            answer.stdout,
            answer.stderr
        );
    };
    for name in ["grids.toml", "models.toml", "planted.toml", "robustness.toml", "own-steps.toml"] {
        check(name, &[]);
    }
    for name in DATA_SETS {
        check(name, &[]);
        check(name, &["--profile", "published"]);
    }
}

/// The examples that read data sets.
const DATA_SETS: [&str; 9] = [
    "breast-resnet18.toml",
    "breastmnist.toml",
    "caption-data.toml",
    "ct-rate.toml",
    "medmnist.toml",
    "own-images.toml",
    "slake.toml",
    "vqa-data.toml",
    "vqa-rad.toml",
];

/// The profile `published` fetches data sets from where they are published; nothing is left to do by hand.
#[test]
fn data_sets_are_fetched_from_where_they_are_published() {
    let data = std::env::var_os("PIPE_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        std::path::PathBuf::from,
    );
    let npz = data.join("medmnist/breastmnist.npz");
    let (Ok(npz), Ok(tables)) =
        (std::fs::read(&npz), std::fs::canonicalize(data.join("fixture-ct-rate/dataset")))
    else {
        println!("SKIPPED fetched data sets: `{}` does not exist (set PIPE_DATA)", data.display());
        return;
    };
    let server = Server::start();
    let scans = Repository {
        commit: COMMIT.to_owned(),
        files: files_below(&tables)
            .into_iter()
            .map(|(path, content)| (format!("dataset/{path}"), content, String::new()))
            .collect(),
        gate: Some("secret".to_owned()),
    };
    server.set(|world| {
        let record = format!(
            "{{\"id\": 10519652, \"files\": [{{\"key\": \"breastmnist.npz\", \"size\": {}}}, {{\"key\": \"other.npz\", \"size\": 9}}]}}",
            npz.len()
        );
        world.records.insert("10519652".to_owned(), record);
        world.files.insert("/zenodo/10519652/breastmnist.npz".to_owned(), npz);
        world.repositories.insert("datasets/ibrahimhamamci/CT-RATE".to_owned(), scans);
    });
    let example = |name: &str| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name);
        Study::new(&std::fs::read_to_string(file).expect("an example is text"))
    };
    let study = example("medmnist.toml");
    run(&study, &server, &["--profile", "published", "images"]).expect(0);
    assert!(lock(&study).contains("source = \"zenodo:10519652/breastmnist.npz\""), "{}", lock(&study));
    // Who has the file already needs no server.
    server.requests();
    let folder = format!("data={}", crate::study::text(&data.join("medmnist")));
    let local = run(&study, &server, &["--var", &folder, "images"]).expect(0);
    assert!(local.started().is_empty() && server.requests().is_empty(), "where it lies is in no key");

    // A licence that asks for a click: the message says so, and a token is enough.
    let study = example("ct-rate.toml");
    let volumes = ["--profile", "published", "--var", "volumes=valid/**"];
    let answer = pipe(&study, &server, &[&["run", "study.toml"], &volumes[..]].concat()).expect(4);
    assert!(answer.stderr.contains("is gated") && answer.stderr.contains("HF_TOKEN"), "{}", answer.stderr);
    let arguments = [&["run", "study.toml", "--json"], &volumes[..]].concat();
    let answer = pipe_as(&study, &server, Some("secret"), &arguments).expect(0);
    assert_eq!(answer.started(), ["scans"]);
    assert!(lock(&study).contains("dataset/valid/") && !lock(&study).contains("dataset/train/"));
}

/// All files below a folder, by path.
fn files_below(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder is listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("it lies in the folder");
                files.push((
                    crate::study::text(name).to_owned(),
                    std::fs::read(&path).expect("a file is read"),
                ));
            }
        }
    }
    files
}
