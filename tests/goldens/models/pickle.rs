//! The published containers: every tensor of the manifest is found by name, shape and type, and equal
//! weights in different containers are equal.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use pipe_models::checkpoint::{TensorFile, check_finite};

use crate::harness;

fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let name = path.file_name().unwrap().to_string_lossy();
    TensorFile::open(path, &name)
        .and_then(|file| file.read(&Device::Cpu, |_| true))
        .unwrap_or_else(|error| panic!("{error}"))
}

fn assert_equal(name: &str, ours: &Tensor, golden: &Tensor) {
    assert_eq!((ours.dims(), ours.dtype()), (golden.dims(), golden.dtype()), "{name}");
    let values = |tensor: &Tensor| -> Vec<f64> {
        tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(values(ours), values(golden), "{name}");
}

/// Names, shapes and types of all containers against the manifest.
#[test]
fn every_tensor_of_the_manifest() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    for (model, entry) in manifest["goldens"].as_object().unwrap() {
        let files: Vec<_> = [
            format!("{model}.pt"),
            format!("{model}/model.safetensors"),
            format!("{model}/open_clip_model.safetensors"),
            format!("{model}/open_clip_pytorch_model.bin"),
        ]
        .into_iter()
        .filter(|file| folder.join(file).exists())
        .collect();
        assert!(!files.is_empty(), "{model} has no file");
        for file in files {
            let tensors = read(&folder.join(&file));
            check_finite(&file, &tensors).unwrap();
            let expected = entry["tensors"].as_object().unwrap();
            for (name, description) in expected {
                let name = name.strip_prefix("module.").unwrap_or(name);
                let tensor = tensors.get(name).unwrap_or_else(|| panic!("{file} has no `{name}`"));
                let dtype = match description[0].as_str().unwrap() {
                    "float16" | "float32" | "float64" | "bfloat16" => DType::F32,
                    "int64" => DType::I64,
                    other => panic!("{file}#{name}: {other}"),
                };
                assert_eq!(
                    (tensor.dims().to_vec(), tensor.dtype()),
                    (shape(&description[1]), dtype),
                    "{file}#{name}"
                );
            }
            // A traced archive also holds its sizes, which the manifest does not list.
            let sizes = ["input_resolution", "context_length", "vocab_size"];
            let listed =
                |name: &str| expected.keys().any(|key| key.strip_prefix("module.").unwrap_or(key) == name);
            for (name, tensor) in tensors.iter().filter(|(name, _)| !listed(name)) {
                assert!(sizes.contains(&name.as_str()), "{file}#{name} is not in the manifest");
                assert_eq!((tensor.elem_count(), tensor.dtype()), (1, DType::I64), "{file}#{name}");
            }
            println!("golden models/{file} {} tensors found", tensors.len());
        }
    }
}

fn shape(json: &serde_json::Value) -> Vec<usize> {
    json.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
}

/// The same weights as safetensors and as a pickle.
#[test]
fn the_pickle_equals_the_safetensors() {
    let Some(folder) = harness::topic("models/biomedclip-tiny") else { return };
    let pickled = read(&folder.join("open_clip_pytorch_model.bin"));
    let plain = read(&folder.join("open_clip_model.safetensors"));
    assert_eq!(pickled.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
    for (name, tensor) in &pickled {
        assert_equal(name, tensor, &plain[name]);
    }
    println!("golden biomedclip-tiny/open_clip_pytorch_model.bin {} tensors equal", plain.len());
}

/// PMC-CLIP's split files, one of them a bare tensor, hold the weights of its whole checkpoint.
#[test]
fn the_split_files_equal_the_whole() {
    let Some(folder) = harness::topic("models") else { return };
    let whole = read(&folder.join("pmc-clip-tiny.pt"));
    let split = folder.join("pmc-clip-tiny-split");
    let mut compared = 0;
    for (file, prefix) in [
        ("image_encoder(resnet50).pth", "visual."),
        ("text_encoder.pth", "text_encoder."),
        ("text_projection_layer.pth", "text_projection"),
    ] {
        for (name, tensor) in read(&split.join(file)) {
            let name = format!("{prefix}{name}");
            assert_equal(&name, &tensor, &whole[&name]);
            compared += 1;
        }
    }
    println!("golden models/pmc-clip-tiny-split {compared} tensors equal");
    assert!(compared > 0);
}
