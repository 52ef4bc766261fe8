use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use pipe_models::CheckpointFiles;
use pipe_models::checkpoint::{read_tensors, write_tensors};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::phantom::IngestPhantom;
use crate::testing::{run, tree};
use crate::tokenizer::TrainTokenizer;

/// A small valid checkpoint as a folder of files.
fn folder() -> TempDir {
    let phantoms = run(&IngestPhantom, &json!({ "size": 28, "train": 8, "test": 0 }), &[]).unwrap();
    let trained =
        run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &phantoms["captions"])]).unwrap();
    let tower = json!({ "width": 8, "layers": 1, "heads": 2 });
    let params = json!({ "init": "random", "image_size": 28, "patch": 14, "vision": tower, "text": tower, "context": 16, "projection": 8 });
    let made = run(&Checkpoint, &params, &[("tokenizer", &trained["tokenizer"])]).unwrap();
    let folder = TempDir::new().unwrap();
    for file in &made["checkpoint"].files {
        std::fs::copy(&file.location, folder.path().join(&file.path)).unwrap();
    }
    folder
}

fn load(folder: &Path) -> Result<(), StageError> {
    run(&Checkpoint, &json!({}), &[("source", &tree(folder, "file"))]).map(|_| ())
}

#[test]
fn a_damaged_file_is_named_with_what_is_wrong() {
    type Damage = fn(&Path);
    fn edit(path: &Path, from: &str, to: &str) {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{from} is not in {}", path.display());
        std::fs::write(path, text.replace(from, to)).unwrap();
    }
    let cases: &[(&str, Damage, &str)] = &[
        ("config.json", |path| std::fs::remove_file(path).unwrap(), "no such file"),
        ("config.json", |path| std::fs::write(path, "{ \"model").unwrap(), "EOF"),
        ("config.json", |path| std::fs::write(path, "[1, 2]").unwrap(), "model_type"),
        (
            "config.json",
            |path| edit(path, "\"model_type\": \"clip\"", "\"model_type\": \"gpt2\""),
            "`gpt2`; one of",
        ),
        (
            "config.json",
            |path| edit(path, "\"num_attention_heads\": 2", "\"num_attention_heads\": 3"),
            "3 heads do not divide",
        ),
        ("config.json", |path| edit(path, "\"hidden_size\": 8", "\"hidden_size\": 1e30"), "hidden_size"),
        ("model.safetensors", |path| edit_shape(path), "tensors do not fit"),
        ("model.safetensors", |path| retype(path, DType::F64), "`visual_projection.weight` [8, 8] holds F64"),
        ("model.safetensors", |path| retype(path, DType::I64), "`visual_projection.weight` [8, 8] holds I64"),
        ("model.safetensors", |path| std::fs::remove_file(path).unwrap(), "no such file"),
        ("model.safetensors", |path| cut(path, 2), ""),
        ("model.safetensors", |path| std::fs::write(path, [0xff; 64]).unwrap(), ""),
        ("model.safetensors", |path| std::fs::write(path, []).unwrap(), ""),
        ("tokenizer.json", |path| std::fs::write(path, "{}").unwrap(), ""),
        ("tokenizer.json", |path| cut(path, 2), ""),
        ("tokenizer.json", |path| edit(path, "endoftext", "endofworld"), "no end mark"),
        ("tokenizer.json", |path| std::fs::write(path, [0xff, 0xfe, 0x00]).unwrap(), "UTF-8"),
        (
            "preprocessor_config.json",
            |path| edit(path, "\"image_std\": [", "\"image_std\": [0, "),
            "image_std",
        ),
    ];
    let whole = folder();
    load(whole.path()).unwrap();
    for (file, damage, reason) in cases {
        let folder = TempDir::new().unwrap();
        for entry in std::fs::read_dir(whole.path()).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        damage(&folder.path().join(file));
        let error = load(folder.path()).err().unwrap_or_else(|| panic!("{file}: {reason} was accepted"));
        let StageError::InputData { path, reason: found } = &error else { panic!("{file}: {error:?}") };
        assert_eq!(path.file_name(), PathBuf::from(file).file_name(), "{error}");
        assert!(found.contains(reason), "`{found}` should say `{reason}`");
    }
}

fn cut(path: &Path, share: usize) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / share]).unwrap();
}

/// Writes one tensor with elements of another type.
fn retype(path: &Path, dtype: DType) {
    change(path, |tensor| tensor.to_dtype(dtype));
}

fn change(path: &Path, to: impl Fn(&Tensor) -> candle_core::Result<Tensor>) {
    let files = CheckpointFiles::new([("weights".to_owned(), path.to_owned())]);
    let mut tensors = read_tensors(&files, "weights", &DEVICE).unwrap();
    let tensor = tensors.get_mut("visual_projection.weight").unwrap();
    *tensor = to(tensor).unwrap();
    write_tensors(path, &tensors).unwrap();
}

#[test]
fn weights_that_are_no_numbers_are_refused_on_request() {
    let folder = folder();
    let load = |params: serde_json::Value| {
        run(&Checkpoint, &params, &[("source", &tree(folder.path(), "file"))]).map(|_| ())
    };
    load(json!({ "finite": true })).unwrap();
    // x / 0 is infinite or NaN.
    change(&folder.path().join("model.safetensors"), |tensor| {
        tensor.affine(1.0, 0.0)?.div(&tensor.zeros_like()?)
    });
    load(json!({})).unwrap();
    let error = load(json!({ "finite": true })).err().unwrap();
    let StageError::InputData { path, reason } = &error else { panic!("{error:?}") };
    assert_eq!(path.file_name().unwrap(), "model.safetensors");
    assert!(
        reason.contains("tensor `visual_projection.weight`") && !reason.contains("text_model"),
        "{reason}"
    );
}

#[test]
fn a_window_of_sixteen_bits_travels_with_the_checkpoint() {
    let folder = folder();
    let params = json!({ "window": [1000.0, 3000.0] });
    let made = run(&Checkpoint, &params, &[("source", &tree(folder.path(), "file"))]).unwrap();
    let model = Model::load(&made["checkpoint"], Compute::exact()).unwrap();
    assert_eq!(model.preprocessor().unwrap().window, [1000.0, 3000.0]);
    let again = run(&Checkpoint, &json!({}), &[("source", &made["checkpoint"])]).unwrap();
    let model = Model::load(&again["checkpoint"], Compute::exact()).unwrap();
    assert_eq!(model.preprocessor().unwrap().window, [1000.0, 3000.0]);
    let problems = pipe_engine::AnyKind::resolve(&Checkpoint, &json!({ "window": [3000.0, 1000.0] }));
    assert_eq!(problems.unwrap_err()[0].path, "window");
}

/// Renames a tensor without changing the length of the header.
fn edit_shape(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let name = b"visual_projection.weight";
    let place = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let mut bytes = bytes;
    bytes[place] = b'w';
    std::fs::write(path, bytes).unwrap();
}

/// Weights by themselves are cleaned for as their authors' code does it, whichever way their tokeniser comes.
#[test]
fn a_tokeniser_beside_the_weights_is_one_of_their_folder() {
    let whole = folder();
    let tokenizer =
        Tokenizer::of_checkpoint(&CheckpointFiles::folder(whole.path()).unwrap()).unwrap().unwrap();
    let tower = json!({ "width": 64, "hidden": 64, "layers": 1, "heads": 1 });
    let mut sizes = json!({
        "image": { "transformer": tower }, "text": tower, "projection": 8,
    });
    for (section, field, value) in [("text", "vocabulary", tokenizer.vocabulary()), ("text", "positions", 16)]
    {
        sizes[section][field] = json!(value);
    }
    for (field, value) in [("image", 28), ("patch", 14)] {
        sizes["image"]["transformer"][field] = json!(value);
    }
    let config = published("clip-vit-b-32").unwrap().with_overrides(&sizes).unwrap();
    let weights = config.random(3, &DEVICE, Trainable::Frozen).unwrap().tensors();
    let (alone, texts, both) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    for folder in [&alone, &both] {
        write_tensors(&folder.path().join("ViT.safetensors"), &weights).unwrap();
    }
    for folder in [&texts, &both] {
        let from = whole.path().join("tokenizer.json");
        std::fs::copy(from, folder.path().join("tokenizer.json")).unwrap();
    }
    let (alone, texts, both) =
        (tree(alone.path(), "file"), tree(texts.path(), "file"), tree(both.path(), "file"));
    for (params, cleaning) in
        [(json!({}), Cleaning::OpenClip), (json!({ "cleaning": "as_stored" }), Cleaning::AsStored)]
    {
        let apart = run(&Checkpoint, &params, &[("source", &alone), ("tokenizer", &texts)]).unwrap();
        let together = run(&Checkpoint, &params, &[("source", &both)]).unwrap();
        assert_eq!(apart["checkpoint"].digest, together["checkpoint"].digest);
        // In two steps, too.
        let weights = run(&Checkpoint, &json!({}), &[("source", &alone)]).unwrap();
        let inputs = [("source", &weights["checkpoint"]), ("tokenizer", &texts)];
        let later = run(&Checkpoint, &params, &inputs).unwrap();
        assert_eq!(later["checkpoint"].digest, together["checkpoint"].digest);
        let model = Model::load(&apart["checkpoint"], Compute::exact()).unwrap();
        assert_eq!(model.tokenizer.unwrap().cleaning(), cleaning);
    }
}

#[test]
fn a_tokeniser_of_another_model_is_refused() {
    let whole = folder();
    let texts =
        run(&IngestPhantom, &json!({ "size": 28, "train": 200, "test": 0, "weights": "all" }), &[]).unwrap();
    let other = run(&TrainTokenizer, &json!({ "vocab_size": 900 }), &[("text", &texts["captions"])]).unwrap();
    std::fs::copy(&other["tokenizer"].single_file().unwrap().location, whole.path().join("tokenizer.json"))
        .unwrap();
    let error = load(whole.path()).err().unwrap();
    assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
    assert!(error.to_string().contains("the model's embedding table"), "{error}");
}
