//! The image side: parts that see an image, side by side in each visual token.

use candle_core::{D, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::Mode;
use super::autoencoder::{Autoencoder, AutoencoderConfig, mean_squared_difference};
use super::batch::{AutoencoderInput, Images};
use super::layers::linear_layer;
use super::meta_cnn::{MetaCnn, MetaCnnConfig};
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::layers::Linear;
use crate::sizes::{check_layers, check_sizes};
use crate::weights::Weights;

/// Which parts see an image. What they see stands side by side in a visual token, in this order.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Values of a token of an image encoder that is no part of this model.
    pub features: Option<usize>,
    /// The meta-learned network.
    pub meta: Option<MetaCnnConfig>,
    /// The denoising auto-encoder.
    pub autoencoder: Option<AutoencoderConfig>,
    /// Values of a learned vector that is the same for every image: alone, the control that sees questions
    /// only.
    pub constant: Option<usize>,
}

impl Default for ImageConfig {
    /// MEVF's: the meta-learned network and the auto-encoder.
    fn default() -> Self {
        Self {
            features: None,
            meta: Some(MetaCnnConfig::default()),
            autoencoder: Some(AutoencoderConfig::default()),
            constant: None,
        }
    }
}

impl ImageConfig {
    /// An image encoder of this width in the place of the meta-learned network (PubMedCLIP).
    pub fn encoder(width: usize) -> Self {
        Self { features: Some(width), meta: None, ..Self::default() }
    }

    /// A learned vector in the place of images.
    pub fn constant(width: usize) -> Self {
        Self { features: None, meta: None, autoencoder: None, constant: Some(width) }
    }

    /// Fails unless all sizes are sizes and something sees the image.
    pub(super) fn check(&self) -> std::result::Result<(), CheckpointError> {
        let mut sizes = vec![("image.width", self.width())];
        if let Some(MetaCnnConfig { filters, blocks, image }) = self.meta {
            sizes.extend([("meta.filters", filters), ("meta.image", image)]);
            check_layers(&[("meta.blocks", blocks)])?;
        }
        if let Some(AutoencoderConfig { channels, image, width, .. }) = self.autoencoder {
            sizes.extend(channels.map(|channels| ("autoencoder.channels", channels)));
            sizes.extend([("autoencoder.image", image), ("autoencoder.width", width)]);
            if !image.is_multiple_of(4) {
                let reason = format!("`autoencoder.image` is {image}; a multiple of 4 is expected");
                return Err(CheckpointError::new("config.json", reason));
            }
        }
        check_sizes(&sizes)
    }

    /// Values of a visual token.
    pub fn width(&self) -> usize {
        self.features.unwrap_or(0)
            + self.meta.map_or(0, |meta| meta.filters)
            + self.autoencoder.map_or(0, |autoencoder| autoencoder.width)
            + self.constant.unwrap_or(0)
    }
}

/// What the parts are called in a state dict.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartNames {
    pub(super) meta: &'static str,
    pub(super) autoencoder: &'static str,
}

/// The parts.
#[derive(Clone, Debug)]
pub(super) struct ImageBranch {
    config: ImageConfig,
    meta: Option<MetaCnn>,
    autoencoder: Option<(Autoencoder, Linear)>,
    /// `[width]`.
    constant: Option<Tensor>,
}

/// What the image side made of a batch.
pub(super) struct Seen {
    /// `[batch, tokens, width]`.
    pub(super) tokens: Tensor,
    /// The mean squared difference of images and reconstructions, if that was asked for.
    pub(super) reconstruction: Option<Tensor>,
}

impl ImageBranch {
    pub(super) fn load(
        weights: &mut Weights,
        names: PartNames,
        config: &ImageConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        config.check()?;
        let meta = match &config.meta {
            Some(meta) => Some(MetaCnn::load(weights, names.meta, meta)?),
            None => None,
        };
        let autoencoder = match &config.autoencoder {
            Some(own) => {
                let autoencoder = Autoencoder::load(weights, names.autoencoder, own)?;
                Some((autoencoder, linear_layer(weights, "convert", own.width, own.code())?))
            }
            None => None,
        };
        let constant = match config.constant {
            Some(width) => Some(weights.begin("v_constant", &[width], Start::Normal(1.0))?),
            None => None,
        };
        Ok(Self { config: config.clone(), meta, autoencoder, constant })
    }

    /// Looks at `batch` images; `reconstruct` asks for the reconstruction too.
    pub(super) fn forward(
        &self,
        images: &Images,
        batch: usize,
        reconstruct: bool,
        mode: Mode<'_>,
    ) -> Result<Seen> {
        let mut parts = Vec::with_capacity(4);
        let mut tokens = 1;
        let mut reconstruction = None;
        if let Some(width) = self.config.features {
            let Some(features) = &images.features else { bail!("the batch has no features of an encoder") };
            if features.dims3()?.2 != width {
                bail!("features of {:?} are not of width {width}", features.dims());
            }
            tokens = features.dim(1)?;
            parts.push(features.clone());
        }
        if let Some(meta) = &self.meta {
            let Some(images) = &images.meta else { bail!("the batch has no images for the meta network") };
            parts.push(meta.forward(images, mode)?.unsqueeze(1)?);
        }
        if let Some((autoencoder, convert)) = &self.autoencoder {
            let codes = match &images.autoencoder {
                Some(AutoencoderInput::Pixels(pixels)) => {
                    let codes = autoencoder.encode(pixels)?;
                    if reconstruct && self.config.autoencoder.is_some_and(|config| config.reconstruct) {
                        reconstruction = Some(mean_squared_difference(&autoencoder.decode(&codes)?, pixels)?);
                    }
                    codes
                }
                Some(AutoencoderInput::Codes(codes)) => codes.clone(),
                None => bail!("the batch has no images for the auto-encoder"),
            };
            parts.push(convert.forward(&codes.flatten_from(1)?)?.unsqueeze(1)?);
        }
        if let Some(constant) = &self.constant {
            parts.push(constant.reshape((1, 1, ()))?.broadcast_as((batch, 1, constant.elem_count()))?);
        }
        // A vector of the whole image stands beside every token of a grid.
        for part in &mut parts {
            let (found, own, width) = part.dims3()?;
            if found != batch || (own != tokens && own != 1) {
                bail!("a part of the image side gave {:?} for {batch} questions", part.dims());
            }
            *part = part.broadcast_as((batch, tokens, width))?.contiguous()?;
        }
        Ok(Seen { tokens: Tensor::cat(&parts, D::Minus1)?, reconstruction })
    }
}
