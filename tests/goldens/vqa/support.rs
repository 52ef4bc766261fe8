//! What the comparisons have in common.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use pipe_models::vqa::{
    AutoencoderConfig, Cell, ImageConfig, MetaCnnConfig, QuestionConfig, Reader, WordsConfig,
};
use serde_json::Value as Json;

use crate::harness::{self, Golden};

/// Relative to the greatest value of a tensor.
pub(super) const TOLERANCE: f64 = 1e-4;

/// A size of `config.json`.
pub(super) fn size(json: &Json, key: &str) -> usize {
    json[key].as_u64().unwrap_or_else(|| panic!("`{key}` is {}", json[key])) as usize
}

/// A number of `config.json`.
pub(super) fn number(json: &Json, key: &str) -> f64 {
    json[key].as_f64().unwrap_or_else(|| panic!("`{key}` is {}", json[key]))
}

/// A list of sizes of `config.json`.
pub(super) fn sizes<const N: usize>(json: &Json) -> [usize; N] {
    let list: Vec<usize> =
        json.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect();
    list.try_into().unwrap()
}

/// The weights of a file: what is neither input nor result.
pub(super) fn weights(golden: &Golden) -> BTreeMap<String, Tensor> {
    let other = ["in.", "out.", "grad.", "eff.", "after."];
    let keys: Vec<String> = golden
        .keys()
        .filter(|key| !other.iter().any(|prefix| key.starts_with(prefix)))
        .map(str::to_owned)
        .collect();
    keys.into_iter().map(|key| (key.clone(), golden.input(&key))).collect()
}

/// Those whose names begin with `prefix`, without it.
pub(super) fn under(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let own = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())));
    own.collect()
}

/// Compares the gradients that a file has of these variables, whose names there begin with `prefix`.
pub(super) fn compare_gradients(
    golden: &Golden,
    gradients: &candle_core::backprop::GradStore,
    variables: &BTreeMap<String, Var>,
    prefix: &str,
) {
    for (name, variable) in variables {
        let key = format!("grad.{prefix}{name}");
        if golden.has(&key) {
            let gradient = gradients.get(variable).cloned().unwrap_or_else(|| variable.zeros_like().unwrap());
            let greatest =
                harness::values(&golden.input(&key)).into_iter().fold(0.0f64, |max, g| max.max(g.abs()));
            if greatest < ROUNDING {
                // A softmax does not see what is added to all its arguments: such a gradient is 0 but for
                // rounding.
                golden.compare_within(&key, &gradient, 1.0, 10.0 * ROUNDING);
            } else {
                golden.compare(&key, &gradient, TOLERANCE);
            }
        }
    }
}

/// A gradient that is smaller everywhere is the rounding of a sum that is 0.
const ROUNDING: f64 = 1e-7;

/// Word ids as they are taken.
pub(super) fn tokens(golden: &Golden, key: &str) -> Tensor {
    golden.input(key).to_dtype(DType::U32).unwrap()
}

/// An input whose gradient is compared.
pub(super) fn variable(golden: &Golden, key: &str) -> Var {
    Var::from_tensor(&golden.input(key)).unwrap()
}

/// Two word tables and a recurrent network by the section `question` and the sizes of the tables.
pub(super) fn question(question: &Json, cell: &str, hidden: usize) -> QuestionConfig {
    let cell: Cell = serde_json::from_value(Json::from(cell)).unwrap();
    let tables =
        WordsConfig { width: size(question, "word_dim"), ..WordsConfig::new(size(question, "vocab")) };
    assert_eq!(u64::from(tables.padding()), question["pad_id"].as_u64().unwrap());
    QuestionConfig { hidden, reader: Reader::Words { tables, cell }, mask_padding: false }
}

/// The image side of the whole models.
pub(super) fn image(e2e: &Json, maml: &Json) -> ImageConfig {
    let [code, width] = sizes(&e2e["convert"]);
    let channels: [usize; 3] = sizes(&e2e["cdae_channels"]);
    let image = 4 * ((code / channels[2]) as f64).sqrt() as usize;
    let autoencoder = AutoencoderConfig { channels, image, width, reconstruct: true };
    assert_eq!(autoencoder.code(), code);
    let meta = MetaCnnConfig {
        filters: size(e2e, "filters"),
        blocks: size(maml, "blocks"),
        image: size(maml, "image"),
    };
    ImageConfig { meta: Some(meta), autoencoder: Some(autoencoder), ..ImageConfig::default() }
}
