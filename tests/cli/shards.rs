//! Row-wise stages: what an edit of some rows computes again, and that it is what a fresh study computes.

use crate::study::{Answer, Study};

/// Everything that is row-wise, on images in parts of a few rows.
const ROWS: &str = r#"
[pipeline]
name = "rows"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", weights = "chest", task = "finding-chest", seed = 5, size = 28, train = 12, test = 24, shard_rows = 4 }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = 28, patch = 14, context = 32, projection = 8, vision = { width = 16, layers = 1 }, text = { width = 16, layers = 1 } }

[stage.tuned]
kind = "finetune.classify"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "initial" }

[stage.classified]
kind = "evaluate.classify"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned.checkpoint" }
params = { subgroup = "region" }

[stage.tokens]
kind = "tokenize"
inputs = { text = "pairs.captions", tokenizer = "initial" }

[stage.embedded]
kind = "embed"
inputs = { images = "pairs.images", captions = "tokens", checkpoint = "initial" }
params = { normalise = true }

[stage.explained]
kind = "attribute"
inputs = { images = "pairs.images", labels = "pairs.labels", checkpoint = "tuned.checkpoint" }
params = { method = "input_x_gradient", target = "true" }

[stage.scored]
kind = "score"
inputs = { saliency = "explained", images = "pairs.images", masks = "pairs.masks", checkpoint = "tuned.checkpoint" }
params = { steps = 4 }

[stage.retrieved]
kind = "evaluate.retrieve"
inputs = { images = "embedded.images", texts = "embedded.texts" }
"#;

/// How many parts of a node were computed.
fn parts(answer: &Answer, node: &str) -> usize {
    let started = answer.events_of("action_started");
    started.iter().filter(|event| event["shard"].is_string() && event["node"] == node).count()
}

/// The content of all results, by node and port.
fn digests(study: &Study) -> Vec<(String, String, String)> {
    let mut digests = Vec::new();
    let show = |node: &str| study.json("show", &[node]);
    for node in ["tokens", "embedded", "classified", "explained", "scored", "retrieved"] {
        let shown = show(node);
        digests.push((node.to_owned(), String::new(), shown["nodes"][0]["outputs"].to_string()));
    }
    digests
}

#[test]
fn appended_rows_are_computed_and_nothing_else() {
    let study = Study::new(ROWS);
    let first = study.run(&[]).expect(0);
    for node in ["embedded", "classified", "explained", "scored"] {
        assert!(parts(&first, node) >= 5, "{node}: {} parts", parts(&first, node));
    }
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    // More test images: training, and so the model, is as it was.
    study.edit("test = 24", "test = 32");
    let second = study.run(&[]).expect(0);
    let nodes = [
        "classified",
        "embedded",
        "explained",
        "pairs",
        "retrieved",
        "scored",
        "tokens",
        "tuned",
        "vocabulary",
    ];
    assert_eq!(second.started(), nodes);
    for node in ["classified", "explained", "scored"] {
        let events = second.events_of("action_started");
        let event = events.iter().find(|event| event["node"] == node && event["shard"].is_null());
        let total = event.expect("it runs")["shards"]["total"].as_u64().expect("a number") as usize;
        let run = parts(&second, node);
        assert!(run >= 1 && run * 2 <= total, "{node}: {run} of {total}");
    }
    // What was put together is what a study computes that never was another.
    let fresh = Study::new(&ROWS.replace("test = 24", "test = 32"));
    fresh.run(&[]).expect(0);
    assert_eq!(digests(&study), digests(&fresh));
}

#[test]
fn other_labels_need_no_other_predictions() {
    let study = Study::new(ROWS);
    study.run(&["classified"]).expect(0);
    study.edit("test = 24", "test = 24, label_noise_test = 0.5");
    let second = study.run(&["classified"]).expect(0);
    assert!(second.started().iter().any(|node| node == "classified"), "{:?}", second.started());
    assert_eq!(parts(&second, "classified"), 0);
    let fresh = Study::new(&ROWS.replace("test = 24", "test = 24, label_noise_test = 0.5"));
    fresh.run(&["classified"]).expect(0);
    let result = |study: &Study| study.json("show", &["classified"])["nodes"][0]["outputs"].to_string();
    assert_eq!(result(&study), result(&fresh));
}

/// Questions in parts of a few rows, and a model that answers them.
const QUESTIONS: &str = r#"
[pipeline]
name = "questions"
format = 1

[stage.pairs]
kind = "ingest.phantom"
params = { domain = "medical", weights = "chest", seed = 5, size = 28, train = 60, test = 240, questions = 6 }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = 28, patch = 14, context = 64, projection = 8, vision = { width = 16, layers = 1 }, text = { width = 16, layers = 1 } }

[stage.answering]
kind = "finetune.vqa"
inputs = { images = "pairs.images", questions = "pairs.questions", checkpoint = "initial" }
params = { method = "mevf", hidden = 16, word_width = 8, autoencoder = "none", epochs = 2 }

[stage.answered]
kind = "evaluate.vqa"
inputs = { images = "pairs.images", questions = "pairs.questions", model = "answering.model" }
"#;

#[test]
fn appended_questions_are_asked_and_nothing_else() {
    let study = Study::new(QUESTIONS);
    assert!(parts(&study.run(&[]).expect(0), "answered") >= 3);
    study.edit("test = 240", "test = 260");
    let second = study.run(&[]).expect(0);
    let events = second.events_of("action_started");
    let event = events.iter().find(|event| event["node"] == "answered" && event["shard"].is_null());
    let total = event.expect("it runs")["shards"]["total"].as_u64().expect("a number") as usize;
    let run = parts(&second, "answered");
    assert!(run >= 1 && run * 2 <= total, "{run} of {total}");
    let fresh = Study::new(&QUESTIONS.replace("test = 240", "test = 260"));
    fresh.run(&[]).expect(0);
    let result = |study: &Study| study.json("show", &["answered"])["nodes"][0]["outputs"].to_string();
    assert_eq!(result(&study), result(&fresh));
}
