//! Initial weights after the CLIP paper's code: widths set the scales, and output matrices shrink
//! with depth so that the residual stream keeps its size.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::config::ClipConfig;
use crate::checkpoint::CheckpointError;
use crate::random::Key;

/// The tensors of `config` by their Hugging Face names; a pure function of `seed`.
pub(super) fn tensors(
    config: &ClipConfig,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let mut maker = Maker { seed, device, tensors: BTreeMap::new() };
    let (text, vision) = (&config.text, &config.vision);
    maker.normal("text_model.embeddings.token_embedding.weight", &[text.vocabulary, text.width], 0.02)?;
    maker.normal("text_model.embeddings.position_embedding.weight", &[text.positions, text.width], 0.01)?;
    maker.blocks("text_model", text.layers, text.width, text.hidden)?;
    maker.norm("text_model.final_layer_norm", text.width)?;
    maker.normal("text_projection.weight", &[config.projection, text.width], scale(text.width))?;

    let width = vision.width;
    maker.normal("vision_model.embeddings.class_embedding", &[width], scale(width))?;
    let patch = [width, vision.channels, vision.patch, vision.patch];
    maker.normal(
        "vision_model.embeddings.patch_embedding.weight",
        &patch,
        scale(vision.channels * vision.patch * vision.patch),
    )?;
    maker.normal(
        "vision_model.embeddings.position_embedding.weight",
        &[vision.patches() + 1, width],
        scale(width),
    )?;
    maker.norm("vision_model.pre_layrnorm", width)?;
    maker.blocks("vision_model", vision.layers, width, vision.hidden)?;
    maker.norm("vision_model.post_layernorm", width)?;
    maker.normal("visual_projection.weight", &[config.projection, width], scale(width))?;
    maker.constant("logit_scale", &[], config.logit_scale as f32)?;
    Ok(maker.tensors)
}

/// width^-1/2.
fn scale(width: usize) -> f64 {
    (width as f64).powf(-0.5)
}

struct Maker<'a> {
    seed: u64,
    device: &'a Device,
    tensors: BTreeMap<String, Tensor>,
}

impl Maker<'_> {
    fn normal(&mut self, name: &str, shape: &[usize], deviation: f64) -> Result<(), CheckpointError> {
        let key = Key::derive("pipe initial weights/1", self.seed, &[name.into()]);
        let count = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (1..=count).map(|counter| (key.normal(counter) * deviation) as f32).collect();
        self.insert(name, values, shape)
    }

    fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<(), CheckpointError> {
        self.insert(name, vec![value; shape.iter().product()], shape)
    }

    fn insert(&mut self, name: &str, values: Vec<f32>, shape: &[usize]) -> Result<(), CheckpointError> {
        let tensor = Tensor::from_vec(values, shape, self.device)
            .map_err(|error| CheckpointError::new(name, error.to_string()))?;
        self.tensors.insert(name.to_owned(), tensor);
        Ok(())
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<(), CheckpointError> {
        self.constant(&format!("{name}.weight"), &[width], 1.0)?;
        self.constant(&format!("{name}.bias"), &[width], 0.0)
    }

    fn blocks(
        &mut self,
        tower: &str,
        layers: usize,
        width: usize,
        hidden: usize,
    ) -> Result<(), CheckpointError> {
        let depth = (2.0 * layers as f64).powf(-0.5);
        for layer in 0..layers {
            let prefix = format!("{tower}.encoder.layers.{layer}");
            for name in ["q_proj", "k_proj", "v_proj"] {
                self.normal(&format!("{prefix}.self_attn.{name}.weight"), &[width, width], scale(width))?;
                self.constant(&format!("{prefix}.self_attn.{name}.bias"), &[width], 0.0)?;
            }
            self.normal(
                &format!("{prefix}.self_attn.out_proj.weight"),
                &[width, width],
                scale(width) * depth,
            )?;
            self.constant(&format!("{prefix}.self_attn.out_proj.bias"), &[width], 0.0)?;
            self.norm(&format!("{prefix}.layer_norm1"), width)?;
            self.norm(&format!("{prefix}.layer_norm2"), width)?;
            self.normal(&format!("{prefix}.mlp.fc1.weight"), &[hidden, width], scale(2 * width))?;
            self.constant(&format!("{prefix}.mlp.fc1.bias"), &[hidden], 0.0)?;
            self.normal(&format!("{prefix}.mlp.fc2.weight"), &[width, hidden], scale(width) * depth)?;
            self.constant(&format!("{prefix}.mlp.fc2.bias"), &[width], 0.0)?;
        }
        Ok(())
    }
}
