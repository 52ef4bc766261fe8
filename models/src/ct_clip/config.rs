//! The sizes of a CT-CLIP.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::bert::BertConfig;
use crate::checkpoint::CheckpointError;
use crate::shapes::Shapes;
use crate::sizes::{check_fits, check_layers, check_sizes};

/// What the image tower takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Adaptation {
    /// Volumes, as published.
    #[default]
    Native,
    /// Images of three channels in \[-1, 1\], made grey (ITU-R 601) and each repeated to the depth of one
    /// patch: one step. Our own, since CT-CLIP has no published way for flat images; results name it
    /// `ct-2d`.
    #[serde(rename = "ct-2d")]
    Flat,
}

/// What the backward pass does at the vector quantiser. The codebook is frozen in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantiserGradient {
    /// Passes the gradient of a code on to the token that it stands for, as in the original's training.
    #[default]
    StraightThrough,
    /// Stops, as the original does at inference: no gradient reaches the volume.
    Absent,
}

/// The sizes of the image tower.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CtVitConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Number of codes.
    pub codes: usize,
    /// Height and width of a volume, in voxels.
    pub image: usize,
    /// Depth of a volume, in slices. Other multiples of the patch's depth are taken too.
    pub slices: usize,
    /// Height and width of a patch, in voxels.
    pub patch: usize,
    /// Depth of a patch, in slices.
    pub patch_slices: usize,
    /// Layers over the patches of a step.
    pub spatial_layers: usize,
    /// Layers over the steps of a place.
    pub temporal_layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
    /// Width inside the perceptrons.
    pub hidden: usize,
}

impl CtVitConfig {
    /// Patches along a side.
    pub(crate) fn grid(&self) -> usize {
        self.image / self.patch
    }

    /// Voxels of a patch.
    pub(crate) fn voxels(&self) -> usize {
        self.patch_slices * self.patch * self.patch
    }
}

/// The sizes of a CT-CLIP.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CtClipConfig {
    /// The image tower.
    pub vision: CtVitConfig,
    /// The text tower.
    pub text: BertConfig,
    /// Tokens of a text.
    pub context: usize,
    /// Width of the common space.
    pub projection: usize,
    /// What the image tower takes.
    #[serde(default)]
    pub adaptation: Adaptation,
    /// What the backward pass does at the quantiser.
    #[serde(default)]
    pub quantiser: QuantiserGradient,
    /// Outputs of the classifier that CT-LiPro's files hold.
    #[serde(default)]
    pub classes: Option<usize>,
}

/// Steps of a published volume: 240 slices.
const STEPS: usize = 24;

impl CtClipConfig {
    /// Fails, naming the field, unless the sizes make sense.
    pub(super) fn check(&self) -> Result<(), CheckpointError> {
        let vision = &self.vision;
        check_sizes(&[
            ("width", vision.width),
            ("codes", vision.codes),
            ("image", vision.image),
            ("slices", vision.slices),
            ("patch", vision.patch),
            ("patch_slices", vision.patch_slices),
            ("heads", vision.heads),
            ("head_width", vision.head_width),
            ("hidden", vision.hidden),
            ("context", self.context),
            ("projection", self.projection),
            ("classes", self.classes.unwrap_or(1)),
        ])?;
        check_layers(&[
            ("spatial_layers", vision.spatial_layers),
            ("temporal_layers", vision.temporal_layers),
        ])?;
        check_fits(("patch", vision.patch), ("image", vision.image))?;
        check_fits(("patch_slices", vision.patch_slices), ("slices", vision.slices))?;
        self.text.check()?;
        check_fits(("context", self.context), ("max_position_embeddings", self.text.max_position_embeddings))
    }

    /// The sizes of a checkpoint, from names and shapes; volumes have 24 steps, as published.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing, or sizes contradict each other.
    pub fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let dim = |name: &str, axis: usize| shapes.dim(&format!("visual_transformer.{name}"), axis);
        let width = dim("to_patch_emb.2.weight", 0)?;
        let voxels = dim("to_patch_emb.2.weight", 1)?;
        let area = dim("to_patch_emb_first_frame.2.weight", 1)?;
        let heads = dim("spatial_rel_pos_bias.net.2.weight", 0)?;
        let inner = dim("enc_spatial_transformer.layers.0.1.to_q.weight", 0)?;
        let latent_inputs = shapes.dim("to_visual_latent.weight", 1)?;
        let (patch, grid) = (root(area), root(latent_inputs / width));
        if patch * patch != area
            || !voxels.is_multiple_of(area)
            || grid * grid * width != latent_inputs
            || !inner.is_multiple_of(heads)
        {
            let reason = format!(
                "a patch of {voxels} voxels with slices of {area}, {latent_inputs} inputs of the latent for a \
                 width of {width}, and {heads} heads in {inner} do not belong together"
            );
            return Err(CheckpointError::in_weights(reason));
        }
        let patch_slices = voxels / area;
        let text = shapes.bert("text_transformer.")?;
        Ok(Self {
            vision: CtVitConfig {
                width,
                codes: dim("vq._codebook.embed", 1)?,
                image: grid * patch,
                slices: STEPS * patch_slices,
                patch,
                patch_slices,
                spatial_layers: shapes.count("visual_transformer.enc_spatial_transformer.layers."),
                temporal_layers: shapes.count("visual_transformer.enc_temporal_transformer.layers."),
                heads,
                head_width: inner / heads,
                hidden: dim("enc_spatial_transformer.layers.0.3.4.weight", 1)?,
            },
            context: text.max_position_embeddings,
            text,
            projection: shapes.dim("to_visual_latent.weight", 0)?,
            adaptation: Adaptation::Native,
            quantiser: QuantiserGradient::StraightThrough,
            classes: match tensors.contains_key("classifier.weight") {
                true => Some(shapes.dim("classifier.weight", 0)?),
                false => None,
            },
        })
    }
}

fn root(square: usize) -> usize {
    (square as f64).sqrt().round() as usize
}
