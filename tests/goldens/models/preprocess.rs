//! Pixels against open_clip, transformers and torchvision; volumes against CT-CLIP's own script.

use candle_core::{Device, Tensor};
use pipe_models::Preprocessor;
use pipe_models::preprocess::volume::{CtPreprocessor, CtScan};
use pipe_models::preprocess::{Picture, Pipeline};

use crate::harness::{self, Golden};

/// Bytes and normalised values are equal to the bit.
const EXACT: f64 = 0.0;

/// `side * side * 3` values as `[3, side, side]`.
fn planes(square: Vec<u8>, side: usize) -> Tensor {
    Tensor::from_vec(square, (side, side, 3), &Device::Cpu)
        .and_then(|tensor| tensor.permute((2, 0, 1))?.contiguous())
        .unwrap()
}

#[test]
fn images() {
    let Some(folder) = harness::topic("models/preprocess") else { return };
    let golden = Golden::open(&folder, "expected.safetensors");
    let meta = harness::json(&folder.join("meta.json"));
    let side = meta["target_size"].as_u64().unwrap() as usize;
    let keys: Vec<String> = golden.keys().map(str::to_owned).collect();
    for key in keys {
        let (image, kind) = key.split_once('.').unwrap();
        let bytes = std::fs::read(folder.join(format!("{image}.png"))).unwrap();
        let picture = Picture::decode(&bytes).unwrap();
        let (pipeline, side) = match kind.trim_end_matches("_u8") {
            "openclip" => (Pipeline::OpenClip, side),
            "openclip224" => (Pipeline::OpenClip, 224),
            "hf_pil" => (Pipeline::HuggingFace, side),
            "hf_torchvision" => (Pipeline::HuggingFaceTorch, side),
            other => panic!("{other}"),
        };
        let preprocessor = Preprocessor { pipeline, ..Preprocessor::clip(side) };
        let square = preprocessor.square(&picture).unwrap();
        if kind.ends_with("_u8") {
            golden.compare(&key, &planes(square, side), EXACT);
        } else {
            let pixels = preprocessor.tensor(&square, &Device::Cpu).unwrap();
            golden.compare(&key, &pixels.squeeze(0).unwrap(), EXACT);
        }
    }
    golden.finish();
}

#[test]
fn volumes() {
    let Some(folder) = harness::topic("models/ct-preprocess") else { return };
    let golden = Golden::open(&folder, "expected.safetensors");
    let meta = harness::json(&folder.join("meta.json"));
    let [rows, columns, slices] = [0, 1, 2].map(|axis| meta["target_h_w_d"][axis].as_u64().unwrap() as usize);
    let preprocessor = CtPreprocessor { size: [slices, rows, columns], ..CtPreprocessor::ct_clip() };
    for (case, entry) in meta["cases"].as_object().unwrap() {
        let raw = golden.input(&format!("{case}.raw_hwd"));
        let (rows, columns, slices) = raw.dims3().unwrap();
        let voxels: Vec<f32> = raw.flatten_all().unwrap().to_vec1().unwrap();
        let number = |key: &str| entry[key].as_f64().unwrap();
        let scan = CtScan {
            voxels: &voxels,
            shape: [rows, columns, slices],
            slope: number("rescale_slope"),
            intercept: number("rescale_intercept"),
            spacing_in_plane: number("xy_spacing_mm"),
            spacing_between_planes: number("z_spacing_mm"),
        };
        let (units, size) = preprocessor.hounsfield_units(&scan, |unit| unit as f32).unwrap();
        let units = Tensor::from_vec(units, size.to_vec(), &Device::Cpu).unwrap();
        golden.compare(&format!("{case}.resized_hu_dhw"), &units, EXACT);
        let volume = preprocessor.volume(&scan).unwrap();
        let shape = [&[1], preprocessor.size.as_slice()].concat();
        golden.compare(
            &format!("{case}.tensor"),
            &Tensor::from_vec(volume, shape, &Device::Cpu).unwrap(),
            EXACT,
        );
    }
    golden.finish();
}
