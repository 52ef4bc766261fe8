//! Models whose weights are a little or much off: changes by which metrics of explanations are judged (MetaQuantus:
//! Hedström et al. 2023).

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use pipe_engine::StageError;
use pipe_models::random::Key;

use crate::model::{Head, Model, checkpoint_error, tensor_error};

/// What a batch norm remembers is no weight.
const REMEMBERED: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// The model with each weight, those of its head too, multiplied by a draw of its own from a normal distribution of mean 1
/// and this deviation: a function of `seed`, the name of its tensor and its place.
///
/// # Errors
/// If the device fails.
pub(crate) fn noisy(model: &Model, deviation: f64, seed: i64) -> Result<Model, StageError> {
    let changed = |name: &str, tensor: &Tensor| -> candle_core::Result<Tensor> {
        let is_weight = tensor.dtype().is_float() && !REMEMBERED.iter().any(|end| name.ends_with(end));
        if !is_weight {
            return Ok(tensor.clone());
        }
        let key = Key::derive("pipe weight noise/1", seed as u64, &[name.into()]);
        let factors: Vec<f32> = (1..=tensor.elem_count() as u64)
            .map(|counter| (1.0 + deviation * key.normal(counter)) as f32)
            .collect();
        let factors = Tensor::from_vec(factors, tensor.shape(), tensor.device())?;
        (tensor.to_dtype(DType::F32)? * factors)?.to_dtype(tensor.dtype())
    };
    let tensors = model.network.tensors();
    let tensors: candle_core::Result<BTreeMap<String, Tensor>> =
        tensors.iter().map(|(name, tensor)| Ok((name.clone(), changed(name, tensor)?))).collect();
    let head = match &model.head {
        Some(head) => Some(Head {
            weight: changed("head.weight", &head.weight).map_err(tensor_error)?,
            bias: changed("head.bias", &head.bias).map_err(tensor_error)?,
            ..head.clone()
        }),
        None => None,
    };
    model.with_tensors(tensors.map_err(tensor_error)?, head).map_err(checkpoint_error)
}

#[cfg(test)]
mod tests {
    use pipe_models::resnet::ResNetConfig;
    use pipe_models::{ModelConfig, Preprocessor, Trainable};

    use super::*;
    use crate::model::{DEVICE, HeadDescription, HeadInput};

    #[test]
    fn weights_are_multiplied_and_statistics_stay() {
        let config = ModelConfig::ResNet(ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 }.into());
        let network = config.random(3, &DEVICE, Trainable::Frozen).unwrap();
        let head = Head {
            input: HeadInput::Embedding,
            description: HeadDescription {
                classes: vec!["a".to_owned(), "b".to_owned()],
                task: String::new(),
            },
            weight: Tensor::ones((2, 128), DType::F32, &DEVICE).unwrap(),
            bias: Tensor::zeros(2, DType::F32, &DEVICE).unwrap(),
        };
        let model = Model::new(network, Some(Preprocessor::clip(64)), None).with_head(head);
        let values = |model: &Model| -> BTreeMap<String, Vec<f32>> {
            let tensors = model.network.tensors();
            let value = |tensor: &Tensor| {
                tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            };
            tensors.iter().map(|(name, tensor)| (name.clone(), value(tensor))).collect()
        };
        let plain = values(&model);
        let [one, other, none] =
            [(0.1, 1), (0.1, 2), (0.0, 1)].map(|(deviation, seed)| noisy(&model, deviation, seed).unwrap());
        assert_eq!(values(&none), plain);
        assert_eq!(values(&one), values(&noisy(&model, 0.1, 1).unwrap()));
        let (one_values, other) = (values(&one), values(&other));
        let mut moved = 0;
        for (name, before) in &plain {
            if REMEMBERED.iter().any(|end| name.ends_with(end)) {
                assert_eq!(before, &one_values[name], "{name}");
                continue;
            }
            for (place, (before, after)) in before.iter().zip(&one_values[name]).enumerate() {
                assert!((after - before).abs() <= 0.6 * before.abs(), "{name}: {before} {after}");
                moved += usize::from(*after != *before && other[name][place] != *after);
            }
        }
        assert!(moved > 1000);
        let weight: Vec<f32> = one.head.unwrap().weight.flatten_all().unwrap().to_vec1().unwrap();
        let mean = weight.iter().sum::<f32>() / 256.0;
        let deviation = (weight.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / 256.0).sqrt();
        assert!((mean - 1.0).abs() < 0.03 && (deviation - 0.1).abs() < 0.02, "{mean} {deviation}");
    }
}
