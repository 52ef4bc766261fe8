//! CT-CLIP: gradients through the straight-through quantiser, occlusion, and rollout of factorised
//! attention.

use candle_core::{Device, Result, Tensor};
use pipe_attribution::{
    AttentionRule, Evaluator, FactorisedRelevance, Gradient, InputXGradient, Inputs, IntegratedGradients,
    Method, Score, attention_maps,
};
use pipe_models::ct_clip::{CtClip, QuantiserGradient};
use pipe_models::import::{ImportOptions, import};
use pipe_models::model::AttentionScope;
use pipe_models::{CheckpointFiles, DualEncoder, ImageTower, MaybeProbe, ModelConfig, TextTower, Trainable};
use serde_json::json;

use super::gradients::{compare_gap, rule};
use super::networks::size;
use super::perturbation::occlusions;
use super::{BATCH, GRADIENT, attribute, open, row};
use crate::harness::{self, Golden};

/// A path on which codes jump.
const JUMPING: f64 = 2e-4;

/// The similarity of each volume with one text.
struct Similarity<'a> {
    model: &'a CtClip,
    text: Tensor,
}

impl Score for Similarity<'_> {
    fn score(&self, input: &Tensor, _: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let volumes = self.model.image_tower().embed_images(input, probe)?;
        self.model.logits(&volumes, &self.text)?.squeeze(1)
    }
}

#[test]
fn ct_attr() {
    let Some((folder, config)) = open() else { return };
    let config = &config["ct"];
    let Some(weights) = harness::topic(config["model"].as_str().unwrap()) else { return };
    let Some(stated) = harness::topic(config["model_config"].as_str().unwrap()) else { return };
    let stated = harness::json(&stated);
    let overrides = json!({
        "vision": { "slices": stated["frames"] }, "text": { "num_attention_heads": stated["bert"]["heads"] },
    });
    let files = CheckpointFiles::new([("weights.pt".to_owned(), weights)]);
    let options = ImportOptions { config: overrides, ..ImportOptions::default() };
    let imported = import(&files, &options, &Device::Cpu).unwrap();
    let ModelConfig::CtClip(sizes) = imported.config else { panic!("no CT-CLIP") };
    assert_eq!(sizes.quantiser, QuantiserGradient::StraightThrough);
    let model = CtClip::from_tensors(sizes, imported.tensors, Trainable::Frozen).unwrap();

    let golden = Golden::open(&folder, "ct_attr.safetensors");
    let (x, ids) = (golden.input("volume"), golden.input("input_ids"));
    golden.compare("attention_mask", &model.text().attention_mask(&ids).unwrap().unwrap(), 0.0);
    let score = Similarity { model: &model, text: model.text_tower().embed_texts(&ids, None).unwrap() };
    let vision = model.vision();
    let codes = vision.code_indices(&vision.encode(&x, None).unwrap()).unwrap();
    golden.compare("codes", &codes.flatten_from(1).unwrap(), 0.0);
    let gradient = attribute(&score, &Gradient, &x);
    golden.compare("score", &row(&gradient.scores), GRADIENT);
    golden.compare("gradient", &gradient.values, GRADIENT);
    golden.compare("ixg", &attribute(&score, &InputXGradient::default(), &x).values, GRADIENT);
    for (key, value) in config["ig_baselines"].as_object().unwrap() {
        let method = IntegratedGradients {
            steps: size(&config["ig_steps"]),
            quadrature: rule(&config["ig_rule"]),
            baseline: super::baseline(value, &golden),
            multiply_by_inputs: true,
        };
        let ours = attribute(&score, &method, &x);
        golden.compare(key, &ours.values, JUMPING);
        compare_gap(&golden, &format!("{key}_delta"), &ours, JUMPING);
        let at = key.rsplit_once('_').unwrap().1;
        golden.compare(&format!("score_{at}"), &row(&ours.baseline_scores.unwrap()), GRADIENT);
    }
    let mut entries = config["occlusion"].clone();
    for entry in entries.as_array_mut().unwrap() {
        entry["stored_channels"] = json!(1);
    }
    occlusions(&golden, &entries, &score, &x);
    rollout(&golden, vision, &score, &x);
    golden.finish();
}

fn rollout(golden: &Golden, vision: &dyn ImageTower, score: &dyn Score, x: &Tensor) {
    let hooks = vision.attention_hooks();
    let names = |scope: AttentionScope| -> Vec<String> {
        hooks.iter().filter(|hook| hook.scope == scope).map(|hook| hook.name.clone()).collect()
    };
    let (spatial, temporal) = (names(AttentionScope::Step), names(AttentionScope::Cell));
    let geometry = vision.geometry();
    let ([grid_rows, columns], steps) = (geometry.grid(), geometry.steps());
    let (inputs, evaluator) = (Inputs::new(x).unwrap(), Evaluator::new(score, BATCH));
    for (kind, names) in [("spatial", &spatial), ("temporal", &temporal)] {
        let (maps, _) = attention_maps(&evaluator, &inputs, names, AttentionRule::Rollout).unwrap();
        for (layer, map) in maps.iter().enumerate() {
            golden.compare(&format!("attn_{kind}_layer{layer}"), &map.probabilities, GRADIENT);
        }
    }
    let grid = [steps, grid_rows, columns];
    let method = FactorisedRelevance { rule: AttentionRule::Rollout, spatial, temporal, grid };
    let blocks = method.blocks(&evaluator, &inputs).unwrap();
    let places = grid_rows * columns;
    let tensor = |values: Vec<f32>, shape: &[usize]| Tensor::from_vec(values, shape, x.device()).unwrap();
    golden.compare("rollout_spatial", &tensor(blocks.spatial.clone(), &[steps, places, places]), GRADIENT);
    golden.compare("rollout_temporal", &tensor(blocks.temporal.clone(), &[places, steps, steps]), GRADIENT);
    let tokens = steps * places;
    let full = (0..tokens * tokens).map(|at| {
        let [(t, l), (u, m)] = [at / tokens, at % tokens].map(|token| (token / places, token % places));
        blocks.temporal[(l * steps + t) * steps + u] * blocks.spatial[(u * places + l) * places + m]
    });
    golden.compare("rollout_full", &tensor(full.collect(), &[tokens, tokens]), GRADIENT);
    let map = method.attribute(&evaluator, &inputs).unwrap().values;
    golden.compare("rollout_map", &map.squeeze(0).unwrap().squeeze(0).unwrap(), GRADIENT);
    let spatial: Vec<f32> = blocks
        .spatial
        .chunks_exact(places * places)
        .flat_map(|block| {
            (0..places).map(|key| block.iter().skip(key).step_by(places).sum::<f32>() / places as f32)
        })
        .collect();
    golden.compare("rollout_spatial_map", &tensor(spatial, &grid), GRADIENT);
}
