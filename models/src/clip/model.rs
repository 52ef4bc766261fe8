//! The two towers.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor, Var, bail};

use super::config::{ClipConfig, EotRule, TextConfig, VisionConfig};
use super::transformer::{Block, BlockShape};
use crate::checkpoint::{self, CheckpointError, CheckpointFiles, Trainable, Weights};
use crate::ops::{layer_norm, linear};
use crate::{DualEncoder, ImageTower, MaybeProbe, PatchGeometry, TextTower};

/// The image tower: `vision_model` and `visual_projection`.
#[derive(Debug)]
pub struct VisionTransformer {
    config: VisionConfig,
    class: Tensor,
    /// `[width, channels, patch, patch]`.
    patch: Tensor,
    positions: Tensor,
    pre_norm: [Tensor; 2],
    blocks: Vec<Block>,
    post_norm: [Tensor; 2],
    projection: Tensor,
}

/// The text tower: `text_model` and `text_projection`.
#[derive(Debug)]
pub struct TextTransformer {
    config: TextConfig,
    /// `[vocabulary, width]`.
    embedding: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    final_norm: [Tensor; 2],
    projection: Tensor,
}

/// A CLIP with both towers.
#[derive(Debug)]
pub struct ClipModel {
    config: ClipConfig,
    vision: VisionTransformer,
    text: TextTransformer,
    logit_scale: Tensor,
    variables: BTreeMap<String, Var>,
    tensors: BTreeMap<String, Tensor>,
}

fn observe(probe: MaybeProbe<'_>, name: &str, value: Tensor) -> Result<Tensor> {
    match probe {
        Some(probe) => probe.activation(name, value),
        None => Ok(value),
    }
}

fn norm_pair(
    weights: &mut Weights,
    name: &str,
    width: usize,
) -> std::result::Result<[Tensor; 2], CheckpointError> {
    Ok([weights.take(&format!("{name}.weight"), &[width])?, weights.take(&format!("{name}.bias"), &[width])?])
}

impl VisionTransformer {
    fn load(
        weights: &mut Weights,
        config: &VisionConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let prefix = "vision_model";
        let width = config.width;
        let shape = BlockShape {
            width,
            hidden: config.hidden,
            heads: config.heads,
            activation: config.activation,
            epsilon: config.epsilon,
            causal: false,
        };
        Ok(Self {
            class: weights.take(&format!("{prefix}.embeddings.class_embedding"), &[width])?,
            patch: weights.take(
                &format!("{prefix}.embeddings.patch_embedding.weight"),
                &[width, config.channels, config.patch, config.patch],
            )?,
            positions: weights.take(
                &format!("{prefix}.embeddings.position_embedding.weight"),
                &[config.patches() + 1, width],
            )?,
            // Spelled so in every published file.
            pre_norm: norm_pair(weights, &format!("{prefix}.pre_layrnorm"), width)?,
            blocks: (0..config.layers)
                .map(|layer| Block::load(weights, &format!("{prefix}.encoder.layers.{layer}"), shape))
                .collect::<std::result::Result<_, _>>()?,
            post_norm: norm_pair(weights, &format!("{prefix}.post_layernorm"), width)?,
            projection: weights.take("visual_projection.weight", &[projection, width])?,
            config: config.clone(),
        })
    }

    /// Patches and class token with positions, after the first norm: `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the image has another size.
    pub fn embeddings(&self, pixels: &Tensor) -> Result<Tensor> {
        let VisionConfig { image, patch, channels, width, .. } = self.config;
        let (batch, c, h, w) = pixels.dims4()?;
        if (c, h, w) != (channels, image, image) {
            bail!("the image tower takes [batch, {channels}, {image}, {image}], not {:?}", pixels.dims());
        }
        let grid = image / patch;
        // A convolution whose stride is its kernel is one product over the patches.
        let pixels = if grid * patch == image {
            pixels.clone()
        } else {
            pixels.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?
        };
        let patches = pixels
            .reshape((batch, channels, grid, patch, grid, patch))?
            .permute((0, 2, 4, 1, 3, 5))?
            .contiguous()?
            .reshape((batch, grid * grid, channels * patch * patch))?;
        let kernel = self.patch.reshape((width, channels * patch * patch))?;
        let patches = linear(&patches, &kernel, None)?;
        let class = self.class.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let tokens = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        layer_norm(&tokens, &self.pre_norm[0], &self.pre_norm[1], self.config.epsilon)
    }

    /// The residual stream after all blocks, before the last norm: `[batch, 1 + patches, width]`.
    ///
    /// # Errors
    /// If the image has another size, or the probe fails.
    pub fn hidden(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let mut x = observe(probe, "vision.embeddings", self.embeddings(pixels)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &format!("vision.layers.{layer}"), probe)?;
        }
        Ok(x)
    }

    /// The normed class token, `[batch, width]`: the input of the projection.
    ///
    /// # Errors
    /// If a layer's shapes do not fit.
    pub fn pool(&self, hidden: &Tensor) -> Result<Tensor> {
        let class = hidden.narrow(1, 0, 1)?.squeeze(1)?;
        layer_norm(&class, &self.post_norm[0], &self.post_norm[1], self.config.epsilon)
    }
}

impl ImageTower for VisionTransformer {
    fn geometry(&self) -> PatchGeometry {
        PatchGeometry {
            channels: self.config.channels,
            image: [self.config.image; 2],
            patch: [self.config.patch; 2],
            prefix_tokens: 1,
        }
    }

    fn embedding_width(&self) -> usize {
        self.projection.dims()[0]
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let pooled = observe(probe, "vision.pooled", self.pool(&self.hidden(pixels, probe)?)?)?;
        linear(&pooled, &self.projection, None)
    }
}

impl TextTransformer {
    fn load(
        weights: &mut Weights,
        config: &TextConfig,
        projection: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        let prefix = "text_model";
        let width = config.width;
        let shape = BlockShape {
            width,
            hidden: config.hidden,
            heads: config.heads,
            activation: config.activation,
            epsilon: config.epsilon,
            causal: true,
        };
        Ok(Self {
            embedding: weights
                .take(&format!("{prefix}.embeddings.token_embedding.weight"), &[config.vocabulary, width])?,
            positions: weights.take(
                &format!("{prefix}.embeddings.position_embedding.weight"),
                &[config.positions, width],
            )?,
            blocks: (0..config.layers)
                .map(|layer| Block::load(weights, &format!("{prefix}.encoder.layers.{layer}"), shape))
                .collect::<std::result::Result<_, _>>()?,
            final_norm: norm_pair(weights, &format!("{prefix}.final_layer_norm"), width)?,
            projection: weights.take("text_projection.weight", &[projection, width])?,
            config: config.clone(),
        })
    }

    /// The residual stream after all blocks and the last norm, `[batch, tokens, width]`, from token
    /// embeddings.
    ///
    /// # Errors
    /// If there are more tokens than positions, or the probe fails.
    pub fn hidden(&self, embeddings: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let tokens = embeddings.dim(1)?;
        if tokens > self.config.positions {
            bail!("{tokens} tokens do not fit into {} positions", self.config.positions);
        }
        let x = embeddings.broadcast_add(&self.positions.narrow(0, 0, tokens)?)?;
        let mut x = observe(probe, "text.embeddings", x)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, &format!("text.layers.{layer}"), probe)?;
        }
        layer_norm(&x, &self.final_norm[0], &self.final_norm[1], self.config.epsilon)
    }

    /// The hidden state at the end of each text, `[batch, width]`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn pool(&self, hidden: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (_, tokens, width) = hidden.dims3()?;
        let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        let places: Vec<u32> = rows
            .iter()
            .enumerate()
            .map(|(row, ids)| (row * tokens + end_of_text(ids, self.config.eot)) as u32)
            .collect();
        let places = Tensor::from_vec(places, rows.len(), hidden.device())?;
        hidden.reshape(((), width))?.index_select(&places, 0)
    }
}

/// The pooled position of a row of ids.
fn end_of_text(ids: &[u32], rule: EotRule) -> usize {
    match rule {
        EotRule::Greatest => {
            let greatest = ids.iter().max();
            ids.iter().position(|id| Some(id) == greatest).unwrap_or(0)
        }
        EotRule::First(eot) => ids.iter().position(|id| *id == eot).unwrap_or(0),
    }
}

impl TextTower for TextTransformer {
    fn context_length(&self) -> usize {
        self.config.positions
    }

    fn embedding_width(&self) -> usize {
        self.projection.dims()[0]
    }

    fn embed_texts(&self, ids: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.embed_token_embeddings(&self.token_embeddings(ids)?, ids, probe)
    }

    fn token_embeddings(&self, ids: &Tensor) -> Result<Tensor> {
        let (batch, tokens) = ids.dims2()?;
        let flat = ids.to_dtype(DType::U32)?.flatten_all()?;
        self.embedding.index_select(&flat, 0)?.reshape((batch, tokens, self.config.width))
    }

    fn embed_token_embeddings(
        &self,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let pooled = observe(probe, "text.pooled", self.pool(&self.hidden(embeddings, probe)?, ids)?)?;
        linear(&pooled, &self.projection, None)
    }
}

impl ClipModel {
    /// Loads a model from the files of a checkpoint; frozen, or with variables to train.
    ///
    /// # Errors
    /// If a file is missing or damaged, or names and shapes do not fit the configuration; all tensors
    /// that do not are listed.
    pub fn load(
        files: &CheckpointFiles,
        device: &Device,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        let config = ClipConfig::from_json(&files.text("config.json")?)?;
        let tensors = checkpoint::tensors(files, device)?;
        Self::from_tensors(config, tensors, trainable)
    }

    /// A model of `config` with random weights (see [`super::random`]).
    ///
    /// # Errors
    /// If the configuration asks for more memory than there is.
    pub fn random(
        config: &ClipConfig,
        seed: u64,
        device: &Device,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        let tensors = super::random::tensors(config, seed, device)?;
        Self::from_tensors(config.clone(), tensors, trainable)
    }

    /// A model of `config` with these tensors, by their Hugging Face names.
    ///
    /// # Errors
    /// If names and shapes do not fit.
    pub fn from_tensors(
        config: ClipConfig,
        tensors: BTreeMap<String, Tensor>,
        trainable: Trainable,
    ) -> std::result::Result<Self, CheckpointError> {
        let mut weights = Weights::new(tensors, trainable);
        // Published files carry these buffers; they hold 0, 1, 2, ...
        weights.ignore("text_model.embeddings.position_ids");
        weights.ignore("vision_model.embeddings.position_ids");
        let vision = VisionTransformer::load(&mut weights, &config.vision, config.projection);
        let text = TextTransformer::load(&mut weights, &config.text, config.projection);
        let logit_scale = weights.take("logit_scale", &[]);
        let (variables, tensors) = weights.finish()?;
        Ok(Self { vision: vision?, text: text?, logit_scale: logit_scale?, config, variables, tensors })
    }

    /// The configuration.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The image tower.
    pub fn vision(&self) -> &VisionTransformer {
        &self.vision
    }

    /// The text tower.
    pub fn text(&self) -> &TextTransformer {
        &self.text
    }

    /// The variables by name; empty if the model is frozen.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// The current values by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = self.tensors.clone();
        for (name, variable) in &self.variables {
            tensors.insert(name.clone(), variable.as_detached_tensor());
        }
        tensors
    }

    /// `exp(logit scale) * cosine` of every image with every text: `[images, texts]`.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn logits(&self, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let logits = linear(&normalise(images)?, &normalise(texts)?, None)?;
        logits.broadcast_mul(&self.logit_scale.exp()?)
    }

    /// Writes `config.json` and `model.safetensors` into `folder`. Equal models give equal bytes.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> std::result::Result<(), CheckpointError> {
        checkpoint::write(&folder.join("config.json"), self.config.to_json().as_bytes())?;
        checkpoint::write_tensors(&folder.join("model.safetensors"), &self.tensors())
    }
}

impl DualEncoder for ClipModel {
    fn image_tower(&self) -> &dyn ImageTower {
        &self.vision
    }

    fn text_tower(&self) -> &dyn TextTower {
        &self.text
    }

    fn logit_scale(&self) -> &Tensor {
        &self.logit_scale
    }
}

/// Rows divided by their L2 norm: `[batch, width]`.
///
/// # Errors
/// Whatever the device reports.
pub fn normalise(embeddings: &Tensor) -> Result<Tensor> {
    embeddings.broadcast_div(&embeddings.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}
