//! The image side: the auto-encoder, the meta-learned network, and the published weights of both.

use candle_core::{DType, Device, Tensor};
use pipe_models::preprocess::{Picture, grey_square};
use pipe_models::vqa::{Autoencoder, AutoencoderConfig, MetaCnn, MetaCnnConfig, Mode, published};
use pipe_models::{Trainable, Weights};
use serde_json::Value as Json;

use super::support::{TOLERANCE, compare_gradients, number, size, sizes, under, variable, weights};
use crate::harness::{self, Golden};

#[test]
fn denoising_autoencoder() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["cdae"];
    let golden = Golden::open(&folder, "cdae.safetensors");
    let own = AutoencoderConfig {
        channels: sizes(&config["channels"]),
        image: size(config, "image"),
        width: size(config, "code_dim"),
        reconstruct: true,
    };
    let all = weights(&golden);
    let mut weights = Weights::new(
        all.iter().filter(|(name, _)| name.starts_with("ae.")).map(|(n, t)| (n.clone(), t.clone())).collect(),
        Trainable::All,
    );
    let autoencoder = Autoencoder::load(&mut weights, "ae", &own).unwrap();
    let parameters = weights.finish().unwrap();
    let convert = candle_core::Var::from_tensor(&all["convert.weight"]).unwrap();

    let clean = golden.input("in.clean");
    let noisy = candle_core::Var::from_tensor(&(&clean + golden.input("in.noise")).unwrap()).unwrap();
    let code = autoencoder.encode(&noisy).unwrap();
    golden.compare("out.enc", &code, TOLERANCE);
    golden.compare("out.dec", &autoencoder.decode(&code).unwrap(), TOLERANCE);
    let flat = code.flatten_from(1).unwrap();
    assert_eq!(flat.dim(1).unwrap(), own.code());
    let embedded = pipe_models::ops::linear(&flat, &convert, Some(&all["convert.bias"])).unwrap();
    golden.compare("out.emb", &embedded, TOLERANCE);
    let reconstruction = autoencoder.denoising_loss(&noisy, &clean).unwrap();
    golden.compare("out.rec_loss", &reconstruction, TOLERANCE);
    let penalty = (embedded.sqr().unwrap().sum_all().unwrap() * number(config, "embedding_penalty")).unwrap();
    let total = (reconstruction + penalty).unwrap();
    golden.compare("out.total", &total, TOLERANCE);
    let gradients = total.backward().unwrap();
    golden.compare("grad.in", gradients.get(&noisy).unwrap(), TOLERANCE);
    golden.compare("grad.convert.weight", gradients.get(&convert).unwrap(), TOLERANCE);
    compare_gradients(&golden, &gradients, parameters.variables(), "");
    golden.finish();
}

#[test]
fn meta_learned_network() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["maml_cnn"];
    let golden = Golden::open(&folder, "maml_cnn.safetensors");
    let own = MetaCnnConfig {
        filters: size(config, "filters"),
        blocks: size(config, "blocks"),
        image: size(config, "image"),
    };
    let all = weights(&golden);
    // TensorFlow's layout becomes ours.
    for (name, tensor) in published::from_tensorflow(under(&all, "hwio."), "cnn").unwrap() {
        golden.compare(&name, &tensor, 0.0);
    }
    let mut weights = Weights::new(
        all.iter()
            .filter(|(name, _)| name.starts_with("cnn."))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect(),
        Trainable::All,
    );
    let network = MetaCnn::load(&mut weights, "cnn", &own).unwrap();
    let parameters = weights.finish().unwrap();
    let x = variable(&golden, "in.x");
    golden.compare("out.eval", &network.forward(&x, Mode::Evaluation).unwrap(), TOLERANCE);
    let trained = network.forward(&x, Mode::Training(None)).unwrap();
    golden.compare("out.train", &trained, TOLERANCE);
    for (name, buffer) in parameters.buffers() {
        golden.compare(&name.replacen("cnn", "after", 1), buffer, TOLERANCE);
    }
    let loss = (trained * golden.input("in.cotangent")).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let pixels = gradients.get(&x).unwrap().sum((2, 3)).unwrap();
    golden.compare("grad.in_sum", &pixels, TOLERANCE);
    compare_gradients(&golden, &gradients, parameters.variables(), "");
    golden.finish();
}

fn pixels(golden: &Golden, key: &str) -> Tensor {
    (golden.input(key).to_dtype(DType::F32).unwrap() / 255.0).unwrap()
}

/// The published weights on real images.
#[test]
fn published_weights() {
    let (Some(folder), Some(data)) = (harness::topic("vqa"), harness::data("vqa-rad-mevf")) else { return };
    let config = &harness::json(&folder.join("config.json"))["real_features"];
    let golden = Golden::open(&folder, "mevf_real_features.safetensors");
    let file = |key: &str| {
        let path = config[key].as_str().unwrap();
        data.join(std::path::Path::new(path).file_name().unwrap())
    };
    let meta = published::meta_cnn_weights(&file("maml_weights"), "maml").unwrap();
    let autoencoder = published::autoencoder_weights(&file("cdae_weights"), "ae").unwrap();
    assert_eq!(autoencoder.values().map(Tensor::elem_count).sum::<usize>(), 56_689);
    let given = meta.into_iter().chain(autoencoder).collect();
    let mut weights = Weights::seeded(0, given, Trainable::Frozen);
    let network = MetaCnn::load(&mut weights, "maml", &MetaCnnConfig::default()).unwrap();
    let autoencoder = Autoencoder::load(&mut weights, "ae", &AutoencoderConfig::default()).unwrap();
    weights.finish().unwrap();

    let small = pixels(&golden, "in.images84_u8");
    golden.compare("out.maml_features", &network.forward(&small, Mode::Evaluation).unwrap(), TOLERANCE);
    for (block, map) in network.maps(&small, Mode::Evaluation).unwrap().iter().enumerate() {
        let mean = map.mean((1, 2)).unwrap();
        golden.compare(&format!("out.maml_block{}_mean", block + 1), &mean, TOLERANCE);
    }
    let batch = network.forward(&small, Mode::Training(None)).unwrap();
    golden.compare("out.maml_features_batch_statistics", &batch, TOLERANCE);

    let large = pixels(&golden, "in.images128_u8");
    let code = autoencoder.encode(&large).unwrap();
    golden.compare("out.cdae_code", &code, TOLERANCE);
    let decoded = autoencoder.decode(&code).unwrap();
    let patch = decoded.narrow(2, 60, 8).unwrap().narrow(3, 60, 8).unwrap();
    golden.compare("out.cdae_rec_patch", &patch, TOLERANCE);
    let error = (&decoded - &large).unwrap().sqr().unwrap().mean((1, 2, 3)).unwrap();
    golden.compare("out.cdae_rec_mse", &error, TOLERANCE);

    // Our own decoding and resizing of the same files; decoders differ by a few levels.
    for (key, side) in [("in.images84_u8", 84), ("in.images128_u8", 128)] {
        let images: Vec<Tensor> = config["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name: &Json| {
                let bytes = std::fs::read(data.join("images").join(name.as_str().unwrap())).unwrap();
                let picture = Picture::decode(&bytes).unwrap();
                let grey = grey_square(&picture, side, [0.0, 65_535.0]);
                Tensor::from_vec(grey, (1, side, side), &Device::Cpu).unwrap()
            })
            .collect();
        golden.compare_within(key, &Tensor::stack(&images, 0).unwrap(), 1.0, 3.0);
    }
    golden.finish();
}
