//! The implementation version of each kind is raised by hand when it gives other results. Here this is noticed when
//! it was forgotten: `digests.tsv` holds what a small study gave by its action keys, and the same key must give the
//! same results. Where the code of a kind changes what it gives, raise `implementation` in its description; then, as
//! after every other change of keys, `PIPE_UPDATE_DIGESTS=1 cargo test --release --test cli versions` writes what
//! this machine gives. It does not write another result under a key that it knows.
//!
//! Floats are the same bits only on processors of one model, so the file has a part for each model that wrote one, the newest
//! first. On others, and where an older part does not know a key, the kinds that compute with tensors, and all that reads
//! their results, are left out, and that is said.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value as Json;

use crate::study::Study;

/// Every kind that needs no data from elsewhere.
const KINDS: &str = r#"
[pipeline]
name = "kinds"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", weights = "chest", task = "finding-chest", seed = 5, size = 28, train = 16, val = 4, test = 8, questions = 2 }

[stage.pictures]
kind = "ingest.images"
inputs = { source = "file:pictures" }

[stage.shared]
kind = "overlap"
inputs = { pairs = ["pairs.images", "pairs.captions", "pairs.questions"], pictures = ["pictures.images"] }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = 28, patch = 14, context = 64, projection = 8, vision = { width = 16, layers = 1 }, text = { width = 16, layers = 1 } }

[stage.tokens]
kind = "tokenize"
inputs = { text = "pairs.captions", tokenizer = "initial" }

[stage.trained]
kind = "finetune.contrastive"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "initial" }
params = { epochs = 1, batch = 8, lr = 1e-3 }

[stage.tuned]
kind = "finetune.classify"
matrix = { mode = ["linear_probe", "full", "lora"] }
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "trained.checkpoint" }
params = { mode = "${mode}", epochs = 1, batch = 8 }

[stage.grey]
kind = "pretrain.autoencoder"
inputs = { images = "pairs.images" }
params = { epochs = 1, batch = 8 }

[stage.meta]
kind = "pretrain.meta"
inputs = { images = "pairs.images", labels = "pairs.labels" }
params = { ways = 2, shots = 1, tasks = 2, steps = 2, inner_steps = 2 }

[stage.answering]
kind = "finetune.vqa"
inputs = { images = "pairs.images", questions = "pairs.questions", checkpoint = "trained.checkpoint" }
params = { method = "mevf", hidden = 16, word_width = 8, autoencoder = "none", epochs = 1 }

[stage.dealt]
kind = "resplit"
inputs = { questions = "pairs.questions" }
params = { test = 0.1 }

[stage.embedded]
kind = "embed"
inputs = { images = "pairs.images", captions = "tokens", checkpoint = "trained.checkpoint" }
params = { normalise = true }

[stage.classified]
kind = "evaluate.classify"
matrix = { mode = "@tuned" }
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned.checkpoint" }

[stage.retrieved]
kind = "evaluate.retrieve"
inputs = { images = "embedded.images", texts = "embedded.texts" }

[stage.answered]
kind = "evaluate.vqa"
inputs = { images = "pairs.images", questions = "pairs.questions", model = "answering.model" }

[stage.ablated]
kind = "ablate"
inputs = { images = "pairs.images", questions = "pairs.questions", model = "answering.model" }

[stage.compared]
kind = "compare"
inputs = { tuned = "classified[mode=*].predictions" }

[stage.explained]
kind = "attribute"
matrix = { method = ["input_x_gradient", "occlusion"] }
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned[mode=full].checkpoint" }
params = { method = "${method}" }

[stage.words]
kind = "attribute.text"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "trained.checkpoint" }
params = { method = "input_x_gradient", limit = 4 }

[stage.reasons]
kind = "attribute.vqa"
inputs = { images = "pairs.images", questions = "pairs.questions", model = "answering.model" }
params = { method = "input_x_gradient", limit = 4 }

[stage.likeness]
kind = "compare.saliency"
inputs = { first = "explained[method=input_x_gradient].saliency", second = "explained[method=occlusion].saliency" }

[stage.scored]
kind = "score"
inputs = { saliency = "explained[method=occlusion].saliency", images = "pairs.images", masks = "pairs.masks", checkpoint = "tuned[mode=full].checkpoint" }
params = { steps = 4 }

[stage.scored_words]
kind = "score.text"
inputs = { words = "words.words", images = "pairs.images", checkpoint = "trained.checkpoint" }

[stage.trusted]
kind = "score.reliability"
inputs = { scores = "scored.scores", minor = "scored.scores", disruptive = "scored.scores" }

[stage.noisy]
kind = "corrupt"
inputs = { images = "pairs.images" }
params = { corruption = "noise", level = 3, splits = ["test"] }

[stage.mosaics]
kind = "mosaic"
inputs = { images = "pairs.images", labels = "pairs.labels" }
params = { count = 2 }

[stage.masker]
kind = "masker"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned[mode=full].checkpoint" }
params = { selector_epochs = 1, epochs = 1, batch = 8, width = 4 }

[stage.masked]
kind = "attribute"
inputs = { images = "pairs.images", checkpoint = "tuned[mode=full].checkpoint", masker = "masker.masker" }
params = { method = "trained_saliency" }

[stage.pointed]
kind = "score.grid"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned[mode=full].checkpoint" }
params = { count = 1, steps = 4, confidence = 0.0, layers = ["input"], methods = ["input_x_gradient", "grad_cam"] }

[stage.carded]
kind = "card"
inputs = { images = "pairs.images", labels = "pairs.labels" }
params = { name = "Phantoms", licence = "CC0-1.0", description = "Drawn from a seed." }

[stage.carded_model]
kind = "card.model"
inputs = { model = "tuned[mode=full].checkpoint", metrics = "classified[mode=*].metrics" }

[stage.asked]
kind = "query"
inputs = { labels = "pairs.labels" }
params = { sql = "select count(*) as rows from labels" }

[stage.counted]
kind = "command"
inputs = { labels = "pairs.labels" }
params = { argv = ["sh", "-c", "ls in/labels | wc -l > count.txt"], outputs = ["count.txt"] }

[stage.page]
kind = "report"
inputs = { classification = "classified[mode=*].metrics", saliency = "explained[method=*].saliency", images = "pairs.images" }
"#;

/// Kinds that read data sets as they are published: their tests hold them to those.
const NOT_HERE: [&str; 7] = [
    "ingest.ct_rate",
    "ingest.huggingface",
    "ingest.medmnist",
    "ingest.pmc",
    "ingest.roco",
    "ingest.slake",
    "ingest.vqa_rad",
];

/// The heading of what is the same on every processor.
const EVERY: &str = "every processor";

/// A picture of one pixel.
const PICTURE: &[u8] = &[
    0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 13, b'I', b'H', b'D', b'R', 0, 0, 0, 1, 0, 0, 0,
    1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 10, b'I', b'D', b'A', b'T', 0x78, 0x9c, 0x63, 0x68, 0,
    0, 0, 0x82, 0, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82,
];

/// A node of the study.
struct Made {
    kind: String,
    key: String,
    /// Port and content digest of each output.
    outputs: String,
    /// Whether floats decide a digit of it.
    has_floats: bool,
}

fn text(value: &Json) -> String {
    value.as_str().expect("a string").to_owned()
}

/// All nodes by name; inputs stand before what reads them.
fn made(study: &Study) -> BTreeMap<String, Made> {
    let shown = study.json("show", &[]);
    let mut floats: BTreeSet<String> = BTreeSet::new();
    let mut nodes = BTreeMap::new();
    for node in shown["nodes"].as_array().expect("a list of nodes") {
        let outputs = node["outputs"].as_object().expect("outputs by port");
        let outputs: Vec<String> =
            outputs.iter().map(|(port, output)| format!("{port}={}", text(&output["digest"]))).collect();
        let (name, kind) = (text(&node["node"]), text(&node["kind"]));
        let inputs = node["inputs"].as_object().expect("inputs by port").values();
        let sources = inputs.flat_map(|list| list.as_array().expect("a list of sources"));
        let reads_floats = sources.map(text).any(|source| floats.iter().any(|one| source.starts_with(one)));
        let is_exact = node["numerics"].as_str() == Some("none");
        let has_floats = !is_exact || reads_floats;
        if has_floats {
            floats.insert(name.clone());
        }
        nodes.insert(name, Made { kind, key: text(&node["key"]), outputs: outputs.join(" "), has_floats });
    }
    nodes
}

/// The model of this machine's processor, and how its floats are computed.
fn processor(study: &Study) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let shown = study.json("show", &["trained"]);
    let class = shown["nodes"][0]["numerics"].as_str().unwrap_or_default().to_owned();
    format!("{} {class}", model.map_or("unknown", |(_, name)| name.trim()))
}

#[test]
fn the_same_key_gives_the_same_results() {
    let study = Study::new(KINDS);
    study.write_file("pictures/one.png", PICTURE);
    study.run(&[]).expect(0);
    let nodes = made(&study);
    let schema: Json = serde_json::from_str(&study.pipe(&["schema"]).expect(0).stdout).expect("JSON");
    let used: BTreeSet<&str> = nodes.values().map(|node| node.kind.as_str()).collect();
    let missing: Vec<String> = kinds(&schema)
        .into_iter()
        .filter(|kind| !used.contains(kind.as_str()) && !NOT_HERE.contains(&kind.as_str()))
        .collect();
    assert!(missing.is_empty(), "add {missing:?} to the study of this test");

    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cli/digests.tsv");
    let processor = processor(&study);
    let mut parts = parts(&std::fs::read_to_string(&path).unwrap_or_default());
    let is_newest = parts.get(1).is_some_and(|(of, _)| *of == processor);
    let (mut unknown, mut skipped) = (Vec::new(), BTreeSet::new());
    for (name, node) in &nodes {
        let of = if node.has_floats { processor.as_str() } else { EVERY };
        let lines = parts.iter().filter(|(heading, _)| heading == of).flat_map(|(_, lines)| lines);
        let mut noted = lines.filter_map(|line| line.split('\t').nth(2).zip(line.split('\t').nth(3)));
        match noted.find(|(key, _)| *key == node.key) {
            Some((_, outputs)) => assert_eq!(
                outputs, node.outputs,
                "`{name}` gives other results under the same key: raise `implementation` of `{}`",
                node.kind
            ),
            None if node.has_floats && !is_newest => _ = skipped.insert(node.kind.as_str()),
            None => unknown.push(name.as_str()),
        }
    }
    if std::env::var_os("PIPE_UPDATE_DIGESTS").is_some() {
        let lines = |has_floats: bool| {
            let these = nodes.iter().filter(|(_, node)| node.has_floats == has_floats);
            these
                .map(|(name, node)| format!("{name}\t{}\t{}\t{}", node.kind, node.key, node.outputs))
                .collect()
        };
        parts.retain(|(heading, _)| *heading != EVERY && *heading != processor);
        parts.splice(..0, [(EVERY.to_owned(), lines(false)), (processor, lines(true))]);
        let text = parts.iter().map(|(heading, lines)| format!("# {heading}\n{}\n", lines.join("\n")));
        std::fs::write(&path, text.collect::<String>()).expect("it can be written");
        return;
    }
    if !skipped.is_empty() {
        println!("SKIPPED {skipped:?}: no digests of these keys were noted on {processor}");
    }
    assert!(unknown.is_empty(), "no digests are noted for {unknown:?}: set PIPE_UPDATE_DIGESTS=1 once");
}

/// The parts of `digests.tsv`, each with its heading and its lines: what no float decides, then what each model of
/// processor gives, the newest first.
fn parts(text: &str) -> Vec<(String, Vec<String>)> {
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("# "), parts.last_mut()) {
            (Some(heading), _) => parts.push((heading.to_owned(), Vec::new())),
            (None, Some((_, lines))) => lines.push(line.to_owned()),
            (None, None) => panic!("`digests.tsv` begins with a heading"),
        }
    }
    parts
}

/// The names of all kinds, as the schema of a pipeline lists them.
fn kinds(schema: &Json) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut waiting = vec![schema];
    while let Some(value) = waiting.pop() {
        match value {
            Json::Object(entries) => {
                if let Some(Json::String(kind)) =
                    entries.get("properties").and_then(|all| all["kind"].get("const"))
                {
                    names.insert(kind.clone());
                }
                waiting.extend(entries.values());
            }
            Json::Array(items) => waiting.extend(items),
            _ => {}
        }
    }
    names
}
