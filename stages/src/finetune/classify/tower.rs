//! What of an image tower learns, and how a pass of it trains.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_engine::StageError;
use pipe_models::train::{BatchStatistics, LoraOptions};
use pipe_models::{MaybeProbe, ModelConfig, Trainable};

use super::params::{Lora, NormStatistics, Params};
use crate::model::{Model, checkpoint_error, tensor_error};

/// What of the image tower learns.
pub(super) enum Tower {
    /// All of it: the variables of the model.
    Whole,
    /// Adapters of a frozen model.
    Adapted(Box<Adapted>),
}

/// Adapters, and the model that they change.
pub(super) struct Adapted {
    lora: pipe_models::train::Lora,
    config: ModelConfig,
    /// The tensors of the frozen model.
    frozen: BTreeMap<String, Tensor>,
}

impl Tower {
    /// Adapters of the image tower of `model`.
    pub(super) fn adapted(params: &Params, model: &Model) -> Result<Self, StageError> {
        let Lora { rank, alpha } = params.lora;
        let options = LoraOptions { rank: rank as usize, alpha };
        let frozen = model.network.tensors();
        let image_side = |name: &str| model.network.variables().contains_key(name);
        let lora = pipe_models::train::Lora::new(&frozen, options, image_side, params.seed as u64)
            .map_err(tensor_error)?;
        Ok(Self::Adapted(Box::new(Adapted { lora, config: model.network.model_config(), frozen })))
    }

    /// What is trained beside the head.
    pub(super) fn variables(&self, model: &Model) -> BTreeMap<String, Var> {
        match self {
            Self::Whole => model.network.variables().clone(),
            Self::Adapted(adapted) => adapted.lora.variables(),
        }
    }

    /// Makes the model one of the present values: of adapters its weights are computed anew.
    pub(super) fn update(&self, model: &mut Model, gradients: Gradients) -> Result<(), StageError> {
        let Self::Adapted(adapted) = self else { return Ok(()) };
        let Adapted { lora, config, frozen } = adapted.as_ref();
        let tensors = match gradients {
            Gradients::Wanted => lora.apply(frozen),
            Gradients::None => lora.merge(frozen),
        };
        let tensors = tensors.map_err(tensor_error)?;
        model.replace_network(config.build(tensors, Trainable::Frozen).map_err(checkpoint_error)?);
        Ok(())
    }

    /// Running statistics that training changes.
    ///
    /// # Errors
    /// If batch norms are to learn and the model has none.
    pub(super) fn running(
        &self,
        model: &Model,
        params: &Params,
    ) -> Result<BTreeMap<String, Var>, StageError> {
        if params.batch_norm == NormStatistics::Stored {
            return Ok(BTreeMap::new());
        }
        let running = model.network.parameters().buffers().clone();
        if running.is_empty() {
            let name = model.network.model_config().name();
            return Err(StageError::failed(format!(
                "`batch_norm = \"batch\"` is for networks with batch norms, and the checkpoint (`{name}`) has none"
            )));
        }
        Ok(running)
    }
}

/// What watches a training pass.
pub(super) fn training_pass(params: &Params) -> MaybeProbe<'static> {
    match params.batch_norm {
        NormStatistics::Stored => None,
        NormStatistics::Batch => Some(&BatchStatistics),
    }
}

/// Whether a pass is followed by one backwards.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gradients {
    Wanted,
    None,
}
