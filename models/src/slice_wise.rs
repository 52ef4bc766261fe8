//! Volumes through a tower of flat images: the embedding of a volume is the mean of those of its slices.

use candle_core::{Result, Tensor, bail};

use crate::model::{
    ActivationLayout, AttentionHook, CamHook, Depth, DualEncoder, FoundationModel, ImageTower, PatchGeometry,
    TextTower,
};
use crate::weights::Parameters;
use crate::{MaybeProbe, ModelConfig};

/// The model on volumes of so many slices, `[batch, channels, slices, height, width]`, each slice preprocessed
/// as a flat image: an embedding is the mean over the slices, not normalised before. Parameters, configuration
/// and text tower are those of `model`. A model without an image tower, or whose tower takes volumes, stays as
/// it is, and so does one of a single slice, which is a flat image.
pub fn slice_wise(model: Box<dyn FoundationModel>, slices: usize) -> Box<dyn FoundationModel> {
    match model.as_image_tower().map(|tower| tower.geometry().depth) {
        Some(None) if slices > 1 => Box::new(SliceWise { model, slices }),
        _ => model,
    }
}

struct SliceWise {
    /// It has an image tower of flat images.
    model: Box<dyn FoundationModel>,
    slices: usize,
}

impl SliceWise {
    fn tower(&self) -> &dyn ImageTower {
        self.model.as_image_tower().expect("the model was wrapped for its image tower")
    }

    /// `[batch, channels, slices, height, width]` to `[batch * slices, channels, height, width]`.
    fn flat(&self, volumes: &Tensor) -> Result<Tensor> {
        let expected = self.geometry().input(volumes.dims().first().copied().unwrap_or_default());
        if volumes.dims() != expected {
            bail!("the image tower takes {expected:?}, not {:?}", volumes.dims());
        }
        volumes.transpose(1, 2)?.contiguous()?.flatten(0, 1)
    }
}

impl ImageTower for SliceWise {
    fn geometry(&self) -> PatchGeometry {
        PatchGeometry { depth: Some(Depth { slices: self.slices, patch: 1 }), ..self.tower().geometry() }
    }

    fn embedding_width(&self) -> usize {
        self.tower().embedding_width()
    }

    fn embed_images(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let embeddings = self.tower().embed_images(&self.flat(pixels)?, probe)?;
        let (rows, width) = embeddings.dims2()?;
        embeddings.reshape((rows / self.slices, self.slices, width))?.mean(1)
    }

    fn feature_width(&self) -> usize {
        self.tower().feature_width()
    }

    fn features(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let features = self.tower().features(&self.flat(pixels)?, probe)?;
        let (rows, cells, width) = features.dims3()?;
        features.reshape((rows / self.slices, self.slices * cells, width))
    }

    fn cam_hook(&self) -> CamHook {
        let CamHook { name, layout } = self.tower().cam_hook();
        let layout = match layout {
            ActivationLayout::Tokens => ActivationLayout::SliceTokens,
            ActivationLayout::Map => ActivationLayout::SliceMap,
            other => other,
        };
        CamHook { name, layout }
    }

    /// The mean over slices of the mean over their places is that over all places.
    fn pools_by_mean(&self) -> bool {
        self.tower().pools_by_mean()
    }

    /// None: what attends here are the tokens of one slice, and no layer relates the slices.
    fn attention_hooks(&self) -> Vec<AttentionHook> {
        Vec::new()
    }
}

impl DualEncoder for SliceWise {
    fn image_tower(&self) -> &dyn ImageTower {
        self
    }

    fn text_tower(&self) -> &dyn TextTower {
        self.inner().text_tower()
    }

    fn logit_scale(&self) -> &Tensor {
        self.inner().logit_scale()
    }
}

impl SliceWise {
    fn inner(&self) -> &dyn DualEncoder {
        self.model.as_dual_encoder().expect("it is one only where the model is")
    }
}

impl FoundationModel for SliceWise {
    fn model_config(&self) -> ModelConfig {
        self.model.model_config()
    }

    fn as_dual_encoder(&self) -> Option<&dyn DualEncoder> {
        self.model.as_dual_encoder().map(|_| self as &dyn DualEncoder)
    }

    fn as_image_tower(&self) -> Option<&dyn ImageTower> {
        Some(self)
    }

    fn as_text_tower(&self) -> Option<&dyn TextTower> {
        self.model.as_text_tower()
    }

    fn is_slice_wise(&self) -> bool {
        true
    }

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }
}
