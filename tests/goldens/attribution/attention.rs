//! Attention rollout, Chefer's relevance, and its rules for two modalities.

use candle_core::{Device, Tensor};
use pipe_attribution::{
    AttentionRelevance, AttentionRule, Evaluator, Inputs, Method, Relevance, TextSimilarity, attention_maps,
    cross_attention_update, gradient_weighted, self_attention_update, without_residual,
};
use pipe_models::DualEncoder;

use super::gradients::VitCase;
use super::networks::Pairing;
use super::{BATCH, GRADIENT, open};
use crate::harness::Golden;

fn square(values: Vec<f32>, rows: usize, tokens: usize) -> Tensor {
    Tensor::from_vec(values, (rows, tokens, tokens), &Device::Cpu).unwrap()
}

fn matrix(golden: &Golden, key: &str) -> Relevance {
    let tensor = golden.input(key);
    let (rows, columns) = tensor.dims2().unwrap();
    Relevance { rows, columns, values: tensor.flatten_all().unwrap().to_vec1().unwrap() }
}

fn compare(golden: &Golden, key: &str, ours: &Relevance) {
    let ours = Tensor::from_slice(&ours.values, (ours.rows, ours.columns), &Device::Cpu).unwrap();
    golden.compare(key, &ours, GRADIENT);
}

#[test]
fn vit_attn() {
    let Some((folder, config)) = open() else { return };
    let case = VitCase::open(&folder, &config);
    let golden = Golden::open(&folder, "vit_attn.safetensors");
    let class = case.class_score();
    let tower = case.network.clip.image_tower();
    let geometry = tower.geometry();
    let names: Vec<String> = tower.attention_hooks().into_iter().map(|hook| hook.name).collect();
    let method = |rule, layers: &[String]| AttentionRelevance {
        rule,
        layers: layers.to_vec(),
        pooled: 0,
        prefix: geometry.prefix_tokens,
        grid: geometry.grid().to_vec(),
    };
    let inputs = Inputs::new(&case.x).unwrap();
    let evaluator = Evaluator::new(&class, BATCH);
    let (maps, _) = attention_maps(&evaluator, &inputs, &names, AttentionRule::Gradient).unwrap();
    for (layer, map) in maps.iter().enumerate() {
        golden.compare(&format!("attn_probs_layer{layer}"), &map.probabilities, GRADIENT);
        golden.compare(&format!("attn_grad_layer{layer}"), map.gradients.as_ref().unwrap(), GRADIENT);
    }
    for (key, rule) in [("rollout", AttentionRule::Rollout), ("chefer_vit_R", AttentionRule::Gradient)] {
        let (values, tokens, _) = method(rule, &names).matrices(&evaluator, &inputs).unwrap();
        golden.compare(key, &square(values, inputs.rows(), tokens), GRADIENT);
    }
    let similarity = case.text_score(Pairing::Similarity);
    let evaluator = Evaluator::new(&similarity, BATCH);
    let last = names.len() - 1;
    for (key, start) in [("chefer_clip_image_all", 0), ("chefer_clip_image_last", last)] {
        let method = method(AttentionRule::Gradient, &names[start..]);
        let map = method.attribute(&evaluator, &inputs).unwrap().values;
        golden.compare(key, &map.flatten_from(1).unwrap(), GRADIENT);
    }
    texts(&golden, &case);
    two_modalities(&golden);
    golden.finish();
}

/// Relevance of a text's tokens for its similarity with the image that it is the target of.
fn texts(golden: &Golden, case: &VitCase) {
    let clip = &case.network.clip;
    let tower = clip.text_tower();
    let rows = Tensor::new(case.texts.as_slice(), &Device::Cpu).unwrap();
    let ids = case.ids.index_select(&rows, 0).unwrap();
    let images = clip.image_tower().embed_images(&case.x, None).unwrap();
    let score = TextSimilarity::new(clip, &ids, &images).unwrap();
    let embeddings = score.embeddings().unwrap();
    let names: Vec<String> = tower.attention_hooks().into_iter().map(|hook| hook.name).collect();
    let inputs = Inputs::new(&embeddings).unwrap();
    for (key, start) in [("chefer_clip_text_R_all", 0), ("chefer_clip_text_R_last", names.len() - 1)] {
        let method = AttentionRelevance {
            rule: AttentionRule::Gradient,
            layers: names[start..].to_vec(),
            pooled: 0,
            prefix: 0,
            grid: Vec::new(),
        };
        let (values, tokens, _) = method.matrices(&Evaluator::new(&score, BATCH), &inputs).unwrap();
        golden.compare(key, &square(values, inputs.rows(), tokens), GRADIENT);
    }
}

fn two_modalities(golden: &Golden) {
    let weighted = |kind: &str| {
        let attention = golden.input(&format!("bimodal_in_attn_{kind}"));
        let gradient = golden.input(&format!("bimodal_in_grad_{kind}"));
        let (heads, queries, keys) = attention.dims3().unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        gradient_weighted(&values(&attention), &values(&gradient), [heads, queries, keys])
    };
    let [tt, ti, it, ii] =
        ["tt", "ti", "it", "ii"].map(|kind| matrix(golden, &format!("bimodal_in_R_{kind}")));
    compare(golden, "bimodal_out_handle_residual_R_tt", &without_residual(&tt));
    let [own, other] = self_attention_update(&weighted("tt"), &tt, &ti);
    compare(golden, "bimodal_out_self_R_tt_addition", &own);
    compare(golden, "bimodal_out_self_R_ti_addition", &other);
    let [other, own] = cross_attention_update(&weighted("ti"), &tt, &ii, &it);
    compare(golden, "bimodal_out_R_ti_addition", &other);
    compare(golden, "bimodal_out_R_tt_addition", &own);
}
