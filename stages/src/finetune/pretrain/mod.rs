//! Stage kinds that train the small networks by which MEVF sees an image, before it sees a question: `pretrain.autoencoder`
//! and `pretrain.meta`. `finetune.vqa` begins with what they give, as with the published weights.

mod autoencoder;
mod classes;
mod grey;
mod meta;
#[cfg(test)]
mod tests;

pub use autoencoder::PretrainAutoencoder;
pub use meta::PretrainMeta;

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use pipe_engine::{StageContext, StageError};
use pipe_models::checkpoint::write_tensors;
use pipe_models::train::{AdamW, AdamWOptions, Group};

/// Adam as Kingma and Ba have it: nothing decays.
fn adam(variables: &BTreeMap<String, Var>) -> AdamW {
    let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    AdamW::new(variables, options, |_, _| Group { rate: 1.0, decay: false })
}

/// Writes learned weights as the output `weights`.
fn save(
    name: &str,
    tensors: &BTreeMap<String, Tensor>,
    context: &mut StageContext<'_>,
) -> Result<(), StageError> {
    let path = context.output("weights")?.path(name)?;
    write_tensors(&path, tensors).map_err(|error| {
        StageError::environment(format!("writing `{name}`"), std::io::Error::other(error.reason))
    })
}
