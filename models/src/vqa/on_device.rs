//! A model that answers where its parameters lie, and is spoken to on the CPU.

use candle_core::{Device, Result, Tensor};

use super::{AnswerLoss, AnswerModel, Batch, Mode};
use crate::weights::Parameters;

/// A model whose parameters lie on a GPU. What it is shown and what it gives is on the CPU, as it is of the towers;
/// gradients pass both ways.
pub struct OnDevice {
    model: Box<dyn AnswerModel>,
    device: Device,
}

impl OnDevice {
    /// The model, whose parameters lie on `device`.
    pub fn new(model: Box<dyn AnswerModel>, device: Device) -> Self {
        Self { model, device }
    }
}

fn here(x: &Tensor) -> Result<Tensor> {
    x.to_device(&Device::Cpu)
}

impl AnswerModel for OnDevice {
    fn answers(&self) -> usize {
        self.model.answers()
    }

    fn logits(&self, batch: &Batch, mode: Mode<'_>) -> Result<Tensor> {
        here(&self.model.logits(&batch.to_device(&self.device)?, mode)?)
    }

    fn loss(&self, batch: &Batch, targets: &Tensor, mode: Mode<'_>) -> Result<AnswerLoss> {
        let (batch, targets) = (batch.to_device(&self.device)?, targets.to_device(&self.device)?);
        let AnswerLoss { total, parts } = self.model.loss(&batch, &targets, mode)?;
        let parts = parts.into_iter().map(|(name, part)| Ok((name, here(&part)?)));
        Ok(AnswerLoss { total: here(&total)?, parts: parts.collect::<Result<_>>()? })
    }

    fn embed_words(&self, tokens: &Tensor) -> Result<Tensor> {
        here(&self.model.embed_words(&tokens.to_device(&self.device)?)?)
    }

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }
}
