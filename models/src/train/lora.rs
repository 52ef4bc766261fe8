//! Low-rank adaptation (Hu et al. 2022): W + (alpha / rank) B A on the query and value rows of
//! attention, W frozen.
//!
//! The adaptation works on the tensors of a checkpoint, not on a model: a frozen model built of
//! [`Lora::apply`]'s tensors trains A and B, and one built of the merged tensors is an ordinary model.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, Var, bail};

use crate::random::{Key, Part};

/// Rank and scale.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LoraOptions {
    /// Columns of B and rows of A.
    pub rank: usize,
    /// The product is multiplied by `alpha / rank`.
    pub alpha: f64,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0 }
    }
}

/// The low-rank change of some rows of one weight.
#[derive(Debug)]
struct Adapter {
    rows: Range<usize>,
    /// `[rank, columns]`.
    a: Var,
    /// `[rows, rank]`.
    b: Var,
}

/// The change of a model's weights, by their names in the checkpoint.
#[derive(Debug)]
pub struct Lora {
    scale: f64,
    adapters: BTreeMap<String, Vec<Adapter>>,
}

/// Which rows of a weight of `rows` rows are queries and values, by its name; empty for other weights.
fn adapted_rows(name: &str, rows: usize) -> Vec<(&'static str, Range<usize>)> {
    let ends = |suffix: &str| name.ends_with(suffix);
    if ends(".self_attn.q_proj.weight") || ends(".attention.self.query.weight") || ends(".to_q.weight") {
        vec![("q", 0..rows)]
    } else if ends(".self_attn.v_proj.weight") || ends(".attention.self.value.weight") {
        vec![("v", 0..rows)]
    } else if ends(".to_kv.weight") {
        vec![("v", rows / 2..rows)]
    } else if ends(".attn.in_proj_weight") || ends(".attn.qkv.weight") {
        let third = rows / 3;
        vec![("q", 0..third), ("v", 2 * third..rows)]
    } else {
        Vec::new()
    }
}

impl Lora {
    /// Adapters of all query and value weights whose name `wanted` accepts. B is zero, so that nothing
    /// changes at first; A is uniform within 1 / sqrt(columns) (Kaiming with a = sqrt 5), drawn from
    /// `seed` and the weight's name.
    ///
    /// # Errors
    /// If no such weight is there, or the rank is zero or beyond the weights'.
    pub fn new(
        tensors: &BTreeMap<String, Tensor>,
        options: LoraOptions,
        wanted: impl Fn(&str) -> bool,
        seed: u64,
    ) -> Result<Self> {
        let LoraOptions { rank, alpha } = options;
        let mut adapters = BTreeMap::new();
        for (name, tensor) in tensors.iter().filter(|(name, _)| wanted(name)) {
            let &[rows, columns] = tensor.dims() else { continue };
            let mut of_weight = Vec::new();
            for (letter, rows) in adapted_rows(name, rows) {
                if rank == 0 || rank > columns.min(rows.len()) {
                    bail!("`{name}` is {:?}; a rank of {rank} does not fit", tensor.dims());
                }
                let key = Key::derive("pipe lora v1", seed, &[Part::Text(name), Part::Text(letter)]);
                let bound = 1.0 / (columns as f64).sqrt();
                let values: Vec<f32> = (0..(rank * columns) as u64)
                    .map(|counter| ((2.0 * key.uniform(counter) - 1.0) * bound) as f32)
                    .collect();
                let a =
                    Tensor::from_vec(values, (rank, columns), &Device::Cpu)?.to_device(tensor.device())?;
                let b = Tensor::zeros((rows.len(), rank), DType::F32, tensor.device())?;
                of_weight.push(Adapter { rows, a: Var::from_tensor(&a)?, b: Var::from_tensor(&b)? });
            }
            if !of_weight.is_empty() {
                adapters.insert(name.clone(), of_weight);
            }
        }
        if adapters.is_empty() {
            bail!("the model has no query and value weights to adapt");
        }
        Ok(Self { scale: alpha / rank as f64, adapters })
    }

    /// A and B of every adapter: `NAME.lora_A.0`, `NAME.lora_B.0`, of packed weights also `.1`.
    pub fn variables(&self) -> BTreeMap<String, Var> {
        self.adapters
            .iter()
            .flat_map(|(name, adapters)| {
                adapters.iter().enumerate().flat_map(move |(index, adapter)| {
                    [
                        (format!("{name}.lora_A.{index}"), adapter.a.clone()),
                        (format!("{name}.lora_B.{index}"), adapter.b.clone()),
                    ]
                })
            })
            .collect()
    }

    /// The tensors with the changed weights in place of the frozen ones; gradients reach A and B.
    ///
    /// # Errors
    /// If a weight is missing or has another shape.
    pub fn apply(&self, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let mut changed = tensors.clone();
        for (name, adapters) in &self.adapters {
            let Some(weight) = tensors.get(name) else { bail!("the model has no tensor `{name}`") };
            changed.insert(name.clone(), self.change(weight, adapters)?);
        }
        Ok(changed)
    }

    fn change(&self, weight: &Tensor, adapters: &[Adapter]) -> Result<Tensor> {
        let mut parts = Vec::new();
        let mut place = 0;
        for adapter in adapters {
            if adapter.rows.start > place {
                parts.push(weight.narrow(0, place, adapter.rows.start - place)?);
            }
            let rows = weight.narrow(0, adapter.rows.start, adapter.rows.len())?;
            let change = (adapter.b.as_tensor().matmul(adapter.a.as_tensor())? * self.scale)?;
            parts.push((rows + change)?);
            place = adapter.rows.end;
        }
        let rows = weight.dim(0)?;
        if place < rows {
            parts.push(weight.narrow(0, place, rows - place)?);
        }
        Tensor::cat(&parts, 0)
    }

    /// As [`Self::apply`], without a connection to A and B: what is exported.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn merge(&self, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        Ok(self.apply(tensors)?.into_iter().map(|(name, tensor)| (name, tensor.detach())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(entries: &[(&str, usize)]) -> BTreeMap<String, Tensor> {
        entries
            .iter()
            .map(|(name, rows)| {
                let values = Tensor::arange(0f32, (rows * 6) as f32, &Device::Cpu).unwrap();
                ((*name).to_owned(), values.reshape((*rows, 6)).unwrap())
            })
            .collect()
    }

    const NAMES: [(&str, usize); 8] = [
        ("m.layers.0.self_attn.q_proj.weight", 6),
        ("m.layers.0.self_attn.k_proj.weight", 6),
        ("m.layers.0.self_attn.v_proj.weight", 6),
        ("m.resblocks.0.attn.in_proj_weight", 18),
        ("m.blocks.0.attn.qkv.weight", 18),
        ("m.layer.0.attention.self.query.weight", 6),
        ("m.layers.0.1.to_kv.weight", 12),
        ("m.head.weight", 6),
    ];

    /// The rows that differ from the frozen weight after B is set to one.
    fn changed_rows(name: &str) -> Vec<usize> {
        let base = tensors(&NAMES);
        let lora = Lora::new(&base, LoraOptions { rank: 2, alpha: 4.0 }, |_| true, 7).unwrap();
        let before = lora.merge(&base).unwrap();
        for (variable, var) in lora.variables() {
            if variable.contains("lora_B") {
                var.set(&var.ones_like().unwrap()).unwrap();
            }
        }
        let after = lora.merge(&base).unwrap();
        let [base, before, after] = [base, before, after].map(|map| map[name].to_vec2::<f32>().unwrap());
        assert_eq!(before, base, "nothing changes at first");
        (0..base.len()).filter(|row| base[*row] != after[*row]).collect()
    }

    #[test]
    fn only_queries_and_values_change() {
        let all = |range: Range<usize>| range.collect::<Vec<_>>();
        let packed: Vec<usize> = (0..6).chain(12..18).collect();
        for (name, rows) in [
            (NAMES[0].0, all(0..6)),
            (NAMES[1].0, vec![]),
            (NAMES[2].0, all(0..6)),
            (NAMES[3].0, packed.clone()),
            (NAMES[4].0, packed),
            (NAMES[5].0, all(0..6)),
            (NAMES[6].0, all(6..12)),
            (NAMES[7].0, vec![]),
        ] {
            assert_eq!(changed_rows(name), rows, "{name}");
        }
    }

    #[test]
    fn gradients_reach_both_factors() {
        let base = tensors(&NAMES[3..4]);
        let lora = Lora::new(&base, LoraOptions { rank: 2, alpha: 1.0 }, |_| true, 7).unwrap();
        let loss = lora.apply(&base).unwrap()[NAMES[3].0].sqr().unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let variables = lora.variables();
        assert_eq!(variables.len(), 4);
        assert!(variables.values().all(|variable| gradients.get(variable).is_some()));
    }

    #[test]
    fn a_model_without_attention_or_a_rank_too_high_is_refused() {
        let base = tensors(&NAMES[7..]);
        assert!(Lora::new(&base, LoraOptions::default(), |_| true, 0).is_err());
        let base = tensors(&NAMES[..1]);
        for rank in [0, 7] {
            assert!(Lora::new(&base, LoraOptions { rank, alpha: 1.0 }, |_| true, 0).is_err());
        }
        assert!(Lora::new(&base, LoraOptions { rank: 2, alpha: 1.0 }, |_| false, 0).is_err());
    }
}
