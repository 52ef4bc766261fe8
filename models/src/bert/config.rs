//! `config.json` of a BERT in the Hugging Face layout.

use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointError;
use crate::sizes::{check_epsilon, check_heads, check_layers, check_sizes};

/// The sizes of a BERT; what `config.json` leaves out is BERT-base's. Fields that do not change the
/// encoder are ignored.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct BertConfig {
    /// Rows of the word embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Width inside the perceptrons.
    pub intermediate_size: usize,
    /// Number of positions.
    pub max_position_embeddings: usize,
    /// Number of segments.
    pub type_vocab_size: usize,
    /// Epsilon of layer norms.
    pub layer_norm_eps: f64,
    /// The id that texts are padded with.
    pub pad_token_id: u32,
    /// The nonlinearity; only `gelu`, with the exact error function.
    pub hidden_act: String,
    /// Share of values that are dropped while training.
    pub hidden_dropout_prob: f64,
    /// Share of attention probabilities that are dropped while training.
    pub attention_probs_dropout_prob: f64,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            hidden_act: "gelu".to_owned(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
        }
    }
}

impl BertConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is no configuration of a BERT, naming the field.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let config: Self = serde_json::from_str(text)
            .map_err(|error| CheckpointError::new("config.json", error.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Fails, naming the field, unless the sizes make sense.
    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ])?;
        check_layers(&[("num_hidden_layers", self.num_hidden_layers)])?;
        check_heads("hidden_size", self.hidden_size, self.num_attention_heads)?;
        check_epsilon("layer_norm_eps", self.layer_norm_eps)?;
        let error = |reason: String| Err(CheckpointError::new("config.json", reason));
        if self.hidden_act != "gelu" {
            return error(format!("`hidden_act` is `{}`; `gelu` is expected", self.hidden_act));
        }
        for (name, rate) in [
            ("hidden_dropout_prob", self.hidden_dropout_prob),
            ("attention_probs_dropout_prob", self.attention_probs_dropout_prob),
        ] {
            if !(0.0..1.0).contains(&rate) {
                return error(format!("`{name}` is {rate}; a share below 1 is expected"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_leaves_out_is_the_base_model() {
        let config = BertConfig::from_json(r#"{"model_type": "bert", "num_hidden_layers": 3}"#).unwrap();
        assert_eq!(config, BertConfig { num_hidden_layers: 3, ..BertConfig::default() });
    }

    #[test]
    fn senseless_sizes_are_refused_by_name() {
        for (json, part) in [
            (r#"{"hidden_size": 0}"#, "hidden_size"),
            (r#"{"num_attention_heads": 7}"#, "7 heads"),
            (r#"{"hidden_act": "relu"}"#, "hidden_act"),
            (r#"{"layer_norm_eps": 2}"#, "layer_norm_eps"),
            (r#"{"hidden_dropout_prob": 1}"#, "hidden_dropout_prob"),
            (r#"{"vocab_size": 1e300}"#, "config.json"),
            ("3", "config.json"),
        ] {
            let error = BertConfig::from_json(json).unwrap_err().to_string();
            assert!(error.contains(part), "{part} in {error}");
        }
    }
}
