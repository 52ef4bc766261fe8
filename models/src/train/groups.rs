//! How far each parameter may move: layer-wise decay of the learning rate (Clark et al. 2020; Bao,
//! Dong and Wei 2022).

use super::Group;

/// What stands before the blocks of a transformer, in the spellings of Hugging Face, OpenAI, timm and
/// CT-CLIP.
const BEFORE_BLOCKS: [&str; 12] = [
    "embeddings",
    "token_embedding",
    "class_embedding",
    "positional_embedding",
    "cls_token",
    "pos_embed",
    "patch_embed",
    "conv1",
    "pre_layrnorm",
    "ln_pre",
    "to_patch_emb",
    "spatial_rel_pos_bias",
];
/// What blocks are numbered under.
const BLOCKS: [&str; 4] = ["layers", "resblocks", "blocks", "layer"];

/// The layer of a parameter of a transformer of `blocks` blocks, by its name: 0 for the embeddings and
/// the norm before the blocks, i + 1 for block i, `blocks + 1` for the final norm, the projection and a
/// head.
pub fn layer_of(name: &str, blocks: usize) -> usize {
    let parts: Vec<&str> = name.split('.').collect();
    let numbered = parts.windows(2).find_map(|pair| {
        let number: usize = BLOCKS.contains(&pair[0]).then(|| pair[1].parse().ok())??;
        Some(number)
    });
    match numbered {
        Some(block) => (block + 1).min(blocks + 1),
        None if parts.iter().any(|part| BEFORE_BLOCKS.contains(part)) => 0,
        None => blocks + 1,
    }
}

/// The group of a parameter with `axes` axes: its rate falls by `decay` with each layer away from the
/// end; weight decay applies to matrices only.
pub fn layer_wise(name: &str, axes: usize, blocks: usize, decay: f64) -> Group {
    let distance = blocks + 1 - layer_of(name, blocks);
    Group { rate: decay.powi(i32::try_from(distance).unwrap_or(i32::MAX)), decay: axes >= 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_every_spelling() {
        for (name, layer) in [
            ("vision_model.embeddings.patch_embedding.weight", 0),
            ("vision_model.pre_layrnorm.weight", 0),
            ("vision_model.encoder.layers.0.self_attn.q_proj.weight", 1),
            ("vision_model.encoder.layers.11.mlp.fc1.bias", 12),
            ("vision_model.post_layernorm.weight", 13),
            ("visual_projection.weight", 13),
            ("visual.conv1.weight", 0),
            ("visual.transformer.resblocks.3.attn.in_proj_weight", 4),
            ("visual.proj", 13),
            ("visual.trunk.cls_token", 0),
            ("visual.trunk.blocks.2.norm1.weight", 3),
            ("visual.trunk.norm.weight", 13),
            ("bert.embeddings.word_embeddings.weight", 0),
            ("bert.encoder.layer.5.output.dense.weight", 6),
            ("head.bias", 13),
        ] {
            assert_eq!(layer_of(name, 12), layer, "{name}");
        }
    }
}
