//! `pipe export`: a run as a folder or an archive that stands alone.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::study::{Answer, SMALL, SMALL_NODES, Study};

impl Study {
    fn export(&self, arguments: &[&str]) -> Answer {
        self.pipe(&[&["export", "study.toml"], arguments].concat())
    }

    /// The entities of the crate in a folder, by their id.
    fn entities(&self, folder: &str) -> BTreeMap<String, Json> {
        let text = std::fs::read(self.path(folder).join("ro-crate-metadata.json")).expect("it is there");
        let document: Json = serde_json::from_slice(&text).expect("it is JSON");
        let entities = document["@graph"].as_array().expect("a list").clone();
        let count = entities.len();
        let id = |entity: &Json| entity["@id"].as_str().expect("every entity has an id").to_owned();
        let by_id: BTreeMap<String, Json> =
            entities.into_iter().map(|entity| (id(&entity), entity)).collect();
        assert_eq!(by_id.len(), count, "an id stands twice");
        by_id
    }
}

/// Everything that an entity refers to.
fn references(value: &Json, found: &mut BTreeSet<String>) {
    match value {
        Json::Object(object) => match object.get("@id") {
            Some(id) if object.len() == 1 => _ = found.insert(id.as_str().expect("a text").to_owned()),
            _ => object.values().for_each(|value| references(value, found)),
        },
        Json::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn an_export_holds_the_results_and_tells_how_they_came_about() {
    let study = Study::finished();
    let answer = study.export(&["last", "crate"]).expect(0);
    assert!(answer.stdout.contains(&format!("{SMALL_NODES} nodes")), "{}", answer.stdout);
    let files = study.files("crate");
    let results: Vec<(String, Vec<u8>)> = files
        .iter()
        .filter_map(|(name, content)| Some((name.strip_prefix("results/")?.to_owned(), content.clone())))
        .collect();
    let published: Vec<(String, Vec<u8>)> = study
        .files("results/small")
        .into_iter()
        .filter(|(name, _)| !name.ends_with(".published.json"))
        .collect();
    assert!(results == published, "the files are those that were published");
    let text = std::fs::read_to_string(study.path("crate/study/study.toml")).expect("it is there");
    assert_eq!(text, SMALL);

    let entities = study.entities("crate");
    let mut referred = BTreeSet::new();
    entities.values().for_each(|entity| {
        entity.as_object().expect("an object").values().for_each(|value| references(value, &mut referred));
    });
    for id in referred.iter().filter(|id| !id.starts_with("http")) {
        assert!(entities.contains_key(id), "`{id}` is referred to and not described");
    }
    // Every file is described, with its length and digest.
    for (name, content) in files.iter().filter(|(name, _)| name != "ro-crate-metadata.json") {
        let entity = &entities[name];
        if name == "README.md" {
            continue;
        }
        let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(entity["sha256"], digest, "{name}");
        assert_eq!(entity["contentSize"], content.len().to_string(), "{name}");
    }
    let action = &entities["#node/embedded%5Bmodel=trained%5D"];
    assert_eq!(
        action["instrument"]["@id"].as_str().map(|id| entities[id]["name"].clone()),
        Some("embed".into())
    );
    let mut read = BTreeSet::new();
    references(&action["object"], &mut read);
    assert!(read.contains("results/trained/checkpoint/"), "{read:?}");
    assert!(read.iter().any(|id| entities[id]["name"] == "splits" && entities[id]["value"] == "[\"test\"]"));
    assert!(action["startTime"].as_str() < action["endTime"].as_str());
    assert_eq!(entities["./"]["mainEntity"]["@id"], "study/study.toml");
    // A later comment is another text of the same results: each run keeps its own.
    study.write(&format!("{SMALL}\n# Nothing.\n"));
    study.run(&[]).expect(0);
    study.export(&["last", "later"]).expect(0);
    let later = std::fs::read_to_string(study.path("later/study/study.toml")).expect("it is there");
    assert!(later.ends_with("# Nothing.\n"));
}

/// Two stages of the same content are one action: each has its results, and the record stands once.
#[test]
fn nodes_that_are_made_of_the_same_share_a_record() {
    let study = Study::finished();
    let again = "[stage.again]\nkind = \"tokenizer\"\ninputs = { text = \"pairs.captions\" }\nparams = { vocab_size = 512 }\n";
    study.write(&format!("{SMALL}\n{again}"));
    study.run(&[]).expect(0);
    study.export(&["last", "crate"]).expect(0);
    let entities = study.entities("crate");
    assert!(entities.contains_key("#node/again") && entities.contains_key("#node/vocabulary"));
    let records = study.files("crate").iter().filter(|(name, _)| name.starts_with("records/")).count();
    assert_eq!(records, SMALL_NODES);
}

#[test]
fn an_archive_holds_what_a_folder_would() {
    let study = Study::finished();
    study.export(&["last", "crate"]).expect(0);
    let answer = study.export(&["last", "crate.zip", "--json"]).expect(0);
    let summary: Json = serde_json::from_str(&answer.stdout).expect("one object");
    let files = study.files("crate");
    assert_eq!(summary["files"], files.len());
    let archive = std::fs::File::open(study.path("crate.zip")).expect("it is there");
    let mut archive = zip::ZipArchive::new(archive).expect("it is an archive");
    assert_eq!(archive.len(), files.len());
    for (name, content) in files {
        let mut found = Vec::new();
        std::io::copy(&mut archive.by_name(&name).expect("it is in the archive"), &mut found)
            .expect("it can be read");
        assert!(found == content, "{name}");
    }
    // Of the rest only the provenance.
    study.export(&["last", "part", "retrieved*"]).expect(0);
    let part = study.files("part");
    assert!(
        part.iter().all(|(name, _)| !name.starts_with("results/") || name.starts_with("results/retrieved/"))
    );
    assert_eq!(part.iter().filter(|(name, _)| name.starts_with("records/")).count(), SMALL_NODES);
    assert!(study.entities("part").contains_key("#node/pairs"));
}

/// The ports of which files were written.
fn ports(files: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
    let ports = files.keys().filter_map(|name| {
        let mut parts = name.strip_prefix("results/")?.split('/');
        Some(format!("{}.{}", parts.next()?, parts.next()?))
    });
    ports.collect()
}

#[test]
fn aggregates_leave_without_a_word_on_single_samples() {
    let study = Study::finished();
    let answer = study.export(&["last", "figures", "--aggregate-only"]).expect(0);
    assert!(answer.stdout.contains("outputs that tell of single samples"), "{}", answer.stdout);
    let files: BTreeMap<_, _> = study.files("figures").into_iter().collect();
    let expected =
        ["pairs.expected", "retrieved.metrics", "shapes.expected", "trained.log", "trained.tensorboard"];
    assert_eq!(ports(&files), expected.map(str::to_owned).into());
    let all: BTreeMap<_, _> = study.files("results/small").into_iter().collect();
    for (name, content) in &files {
        assert!(!name.starts_with("run/"), "{name}");
        match name.strip_prefix("results/") {
            Some(name) => assert!(all[name] == *content, "{name}"),
            // Ids of samples begin so.
            None => assert!(!String::from_utf8_lossy(content).contains("phantom-medical-"), "{name}"),
        }
    }
    assert_eq!(files.keys().filter(|name| name.starts_with("records/")).count(), SMALL_NODES);
    assert!(study.entities("figures").contains_key("#node/pairs"));
}

#[test]
fn an_export_comes_whole_or_not_at_all() {
    let study = Study::finished();
    let names = |study: &Study| -> BTreeSet<String> {
        let entries = std::fs::read_dir(study.path("")).expect("it can be listed");
        entries
            .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
            .collect()
    };
    study.write_file("notes/mine.txt", "mine");
    let before = names(&study);
    let answer = study.export(&["last", "notes"]).expect(2);
    assert!(answer.stderr.contains("`notes` exists"), "{}", answer.stderr);
    let answer = study.export(&["never", "crate"]).expect(2);
    assert!(answer.stderr.contains("`never` is no run"), "{}", answer.stderr);
    let answer = study.export(&["last", "crate", "pears"]).expect(2);
    assert!(answer.stderr.contains("did you mean `pairs`"), "{}", answer.stderr);

    let shown = study.json("show", &["vocabulary"]);
    let blob =
        shown["nodes"][0]["outputs"]["tokenizer"]["files"][0]["blob"].as_str().expect("a digest").to_owned();
    let path = study.path(".pipe/cas").join(&blob[..2]).join(&blob[2..]);
    let mut bytes = std::fs::read(&path).expect("it is there");
    bytes[9] ^= 1;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("the mode can be set");
    std::fs::write(&path, bytes).expect("it can be written");
    for to in ["crate", "crate.zip"] {
        let answer = study.export(&["last", to]).expect(3);
        // The checkpoint holds the same tokeniser, and comes before it.
        let damaged = "a file of `initial`, `results/initial/checkpoint/tokenizer.json`, is damaged";
        assert!(answer.stderr.contains(damaged), "{}", answer.stderr);
    }
    assert_eq!(names(&study), before, "nothing is left");
}

/// A classifier and maps of it.
const MAPS: &str = r#"[pipeline]
name = "maps"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", weights = "chest", task = "finding-chest", seed = 5, size = 28, train = 16, test = 6 }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = 28, patch = 14, context = 64, projection = 8, vision = { width = 16, layers = 1 }, text = { width = 16, layers = 1 } }

[stage.tuned]
kind = "finetune.classify"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "initial" }
params = { mode = "linear_probe" }

[stage.explained]
kind = "attribute"
matrix = { method = ["gradient", "input_x_gradient"] }
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned.checkpoint" }
params = { method = "${method}" }
"#;

#[test]
fn maps_leave_as_sheets_for_print() {
    let study = Study::new(MAPS);
    study.run(&[]).expect(0);
    let answer = study.export(&["last", "prints", "explained", "--sheets", "--samples", "3"]).expect(0);
    assert!(answer.stdout.starts_with("sheets of 2 nodes are in `prints`: 2 files"), "{}", answer.stdout);
    let table = std::fs::read_to_string(study.path("prints/explained.saliency.csv")).expect("a table");
    // Three samples with their original, and of either method the map and its overlay.
    let row = |text: &str| table.lines().filter(|line| line.contains(text)).count();
    assert_eq!((row("\"original\""), row(", overlay\""), row("input_x_gradient\",")), (3, 6, 3), "{table}");
    assert!(table.lines().skip(1).all(|line| line.starts_with("explained.saliency-1.png,")), "{table}");
    let sheet = std::fs::read(study.path("prints/explained.saliency-1.png")).expect("a picture");
    let length = |at: usize| u32::from_be_bytes(sheet[at..at + 4].try_into().expect("four bytes"));
    assert!(sheet.starts_with(b"\x89PNG") && length(16) > length(20), "five columns and more by three rows");
    // Nothing is replaced, and what is no picture is said to be none.
    study.export(&["last", "prints", "explained", "--sheets"]).expect(2);
    let none = study.export(&["last", "none", "tuned", "--sheets"]).expect(2);
    assert!(none.stderr.contains("none of these results is a picture"), "{}", none.stderr);
    assert!(!study.path("none").exists());
    // Pictures of single samples are no aggregate.
    study.export(&["last", "both", "--sheets", "--aggregate-only"]).expect(2);
}
