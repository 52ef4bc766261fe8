//! Published containers in a study: every layout becomes a checkpoint that is tuned, classifies and is
//! explained.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float32Type;
use serde_json::json;
use tempfile::TempDir;

use crate::harness;

/// What comes before and after the containers.
const HEAD: &str = r#"
[pipeline]
name = "containers"
format = 1

[stage.images]
kind = "ingest.phantom"
params = { task = "abnormal", seed = 3, size = 28, train = 24, val = 0, test = 8 }
"#;
const TAIL: &str = r#"
[stage.tuned]
kind = "finetune.classify"
matrix = { of = "@model", mode = ["linear_probe", "full"] }
inputs = { images = "images.images", labels = "images.labels", checkpoint = "model" }
params = { mode = "${mode}", epochs = 1, batch = 8 }

[stage.classified]
kind = "evaluate.classify"
matrix = "@tuned"
inputs = { images = "images.images", labels = "images.labels", checkpoint = "tuned.checkpoint" }

[stage.explained]
kind = "attribute"
matrix = "@model"
inputs = { images = "images.images", labels = "images.labels", checkpoint = "tuned[mode=full].checkpoint" }
params = { method = "input_x_gradient", baseline = "zero" }

[stage.embedded]
kind = "embed"
matrix = "@model"
inputs = { images = "images.images", checkpoint = "tuned[mode=full].checkpoint" }
params = { modality = "image" }
"#;

/// A study that reads what the first one has tuned and exported, as published files.
const AGAIN: &str = r#"
[stage.embedded]
kind = "embed"
matrix = "@model"
inputs = { images = "images.images", checkpoint = "model" }
params = { modality = "image" }
"#;

#[test]
fn published_containers_go_through_a_study() {
    let Some(folder) = harness::topic("models") else { return };
    let pmc = harness::json(&folder.join("pmc-clip-tiny.config.json"));
    let pmc = json!({
        "pool_heads": pmc["attnpool_heads"], "context": pmc["context_length"],
        "text": { "num_attention_heads": pmc["bert"]["heads"] },
    });
    let ct = harness::json(&folder.join("ct-clip-tiny.config.json"));
    let ct = json!({
        "vision": { "slices": ct["frames"] }, "text": { "num_attention_heads": ct["bert"]["heads"] },
        "adaptation": "ct-2d",
    });
    let timm = harness::json(&folder.join("biomedclip-tiny/timm_tiny.json"));
    let bert = harness::json(&folder.join("biomedclip-tiny/bert/config.json"));
    let biomed = json!({
        "vision": { "heads": timm["vit"]["num_heads"] },
        "text": { "num_attention_heads": bert["num_attention_heads"] },
    });
    let containers = [
        ("hugging_face", "hf-clip-tiny", json!({})),
        ("open_ai", "openai-vit-tiny.pt", json!({})),
        ("resnet", "openai-rn-tiny.pt", json!({})),
        ("traced", "openai-vit-jit-tiny.pt", json!({})),
        ("biomed", "biomedclip-tiny", biomed),
        ("pmc", "pmc-clip-tiny.pt", pmc.clone()),
        ("pmc_split", "pmc-clip-tiny-split", pmc),
        ("ct", "ct-clip-tiny.pt", ct),
    ];
    let study = TempDir::new().unwrap();
    let mut text = HEAD.to_owned();
    let axis = |(id, path, config): &(&str, &str, serde_json::Value)| {
        let path = std::path::absolute(folder.join(path)).unwrap();
        assert!(!path.to_string_lossy().contains('"'), "the path can be written in TOML");
        format!("{{ id = \"{id}\", source = \"file:{}\", config = {} }}", path.display(), toml(config))
    };
    let axes: Vec<String> = containers.iter().map(axis).collect();
    write!(
        text,
        "\n[stage.model]\nkind = \"checkpoint\"\nmatrix = {{ of = [{}] }}\ninputs = {{ source = \"${{of.source}}\" }}\nparams = {{ config = \"${{of.config}}\" }}\n{TAIL}",
        axes.join(", ")
    )
    .unwrap();
    run(study.path(), "containers", &text);
    for (id, _, _) in &containers {
        let saliency = study.path().join(format!("results/containers/explained/saliency/of={id}"));
        assert!(saliency.is_dir(), "{}", saliency.display());
        for mode in ["linear_probe", "full"] {
            let metrics =
                study.path().join(format!("results/containers/classified/metrics/of={id}/mode={mode}"));
            assert!(metrics.is_dir(), "{}", metrics.display());
        }
    }
    // What was tuned is read again by its exported files alone, and says the same to the bit.
    let tuned = study.path().join("results/containers/tuned/checkpoint");
    let axes = containers.each_ref().map(|(id, _, _)| {
        format!(
            "{{ id = \"{id}\", source = \"file:{}\" }}",
            tuned.join(format!("of={id}/mode=full")).display()
        )
    });
    let model = "kind = \"checkpoint\"\ninputs = { source = \"${of.source}\" }";
    let again = HEAD.replace("\"containers\"", "\"again\"");
    let again =
        format!("{again}\n[stage.model]\nmatrix = {{ of = [{}] }}\n{model}\n{AGAIN}", axes.join(", "));
    run(study.path(), "again", &again);
    for (id, _, _) in &containers {
        let embeddings = ["containers", "again"].map(|name| {
            let folder = study.path().join(format!("results/{name}/embedded/images/of={id}"));
            vectors(&folder)
        });
        assert!(embeddings[0].len() >= 32 && embeddings[0] == embeddings[1], "{id}: exported and read again");
    }
    println!("golden models/*.pt {} containers went through a study", containers.len());
}

/// Runs a study of that name to its end.
fn run(folder: &Path, name: &str, text: &str) {
    let file = format!("{name}.toml");
    std::fs::write(folder.join(&file), text).unwrap();
    let answer = Command::new(env!("CARGO_BIN_EXE_pipe"))
        .args(["run", &file, "--json"])
        .current_dir(folder)
        .env_remove("PIPE_STORE")
        .env_remove("PIPE_RESULTS")
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .output()
        .unwrap();
    let events = String::from_utf8_lossy(&answer.stdout);
    let failures: Vec<&str> =
        events.lines().filter(|line| line.contains("\"ev\":\"action_failed\"")).collect();
    assert!(answer.status.success(), "{failures:#?} {}", String::from_utf8_lossy(&answer.stderr));
}

/// All embeddings of a folder, as bits.
fn vectors(folder: &Path) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "arrow")) {
        let reader =
            arrow_ipc::reader::FileReader::try_new(std::fs::File::open(file).unwrap(), None).unwrap();
        for batch in reader {
            let batch = batch.unwrap();
            let column = batch.column_by_name("embedding").unwrap();
            let values = column.as_fixed_size_list().values().as_primitive::<Float32Type>();
            bits.extend(values.values().iter().map(|value| value.to_bits()));
        }
    }
    bits
}

/// A configuration as an inline table.
fn toml(json: &serde_json::Value) -> String {
    match json {
        serde_json::Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name} = {}", toml(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}
