//! Folders of open_clip: what its configuration says, and what is refused.

use serde_json::{Value as Json, json};

use super::imports::{check, folder, found, random};
use super::{bert, text, vision};
use crate::biomed_clip::BiomedClipConfig;
use crate::checkpoint::tests::state_dict;
use crate::checkpoint::write_tensors;
use crate::clip::{EotRule, OpenAiClipConfig, OpenAiImage};
use crate::import::{Imported, Layout};
use crate::preprocess::Fit;
use crate::{Activation, FoundationModel, ModelConfig};

/// The description of a small BiomedCLIP, as open_clip writes it.
pub(super) fn biomed_description() -> Json {
    json!({ "model_cfg": {
        "embed_dim": 10,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch8_32", "timm_model_pretrained": false, "timm_pool": "",
            "timm_proj": "linear", "timm_proj_bias": false, "image_size": 32,
        },
        "text_cfg": {
            "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_tokenizer_name": "the same", "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 9,
        },
    } })
}

/// open_clip's folder of a CLIP of its own: GELU unless it says otherwise, heads of a width of its own.
#[test]
fn open_clip_tells_what_shapes_do_not() {
    for (quick, activation) in
        [(None, Activation::Gelu), (Some(false), Activation::Gelu), (Some(true), Activation::QuickGelu)]
    {
        let mut text = text();
        text.activation = activation;
        text.eot = EotRule::Greatest;
        let image = OpenAiImage::Transformer(vision(activation));
        let model = random(&ModelConfig::OpenAiClip(OpenAiClipConfig { image, text, projection: 10 }));
        let mut description = json!({ "model_cfg": {
            "embed_dim": 10,
            "vision_cfg": { "image_size": 32, "layers": 2, "width": 24, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.0 },
            "text_cfg": { "context_length": 9, "vocab_size": 40, "width": 16, "heads": 2, "layers": 2 },
        }, "preprocess_cfg": { "resize_mode": "squash" } });
        if let Some(quick) = quick {
            description["model_cfg"]["quick_gelu"] = quick.into();
        }
        let folder = folder(&[("open_clip_config.json", &description)]);
        write_tensors(&folder.path().join("open_clip_model.safetensors"), &model.tensors()).unwrap();
        let imported = check(folder.path(), Layout::OpenClip, model.as_ref());
        assert_eq!(imported.preprocessor.unwrap().fit, Fit::Stretch);
    }
    // Without the width of heads they are those of the published models: 64 values, or one of them.
    let model = random(&ModelConfig::OpenAiClip(OpenAiClipConfig {
        image: OpenAiImage::Transformer(vision(Activation::Gelu)),
        text: text(),
        projection: 10,
    }));
    let folder =
        folder(&[("open_clip_config.json", &json!({ "model_cfg": { "text_cfg": { "heads": 4 } } }))]);
    std::fs::write(folder.path().join("open_clip_pytorch_model.bin"), state_dict(&model.tensors())).unwrap();
    let ModelConfig::OpenAiClip(config) = found(folder.path()).unwrap().config else { panic!() };
    let OpenAiImage::Transformer(vision) = config.image else { panic!() };
    assert_eq!((config.text.heads, vision.heads), (4, 1));
    let folder =
        self::folder(&[("open_clip_config.json", &json!({ "model_cfg": { "text_cfg": { "heads": -1 } } }))]);
    write_tensors(&folder.path().join("open_clip_model.safetensors"), &model.tensors()).unwrap();
    let error = found(folder.path()).err().unwrap();
    assert!(error.contains("`text_cfg.heads` is -1"), "{error}");
}

/// A model with a description, changed at one place.
fn described(
    model: &dyn FoundationModel,
    description: &Json,
    place: &str,
    value: Json,
) -> Result<Imported, String> {
    let mut description = description.clone();
    *description.pointer_mut(place).unwrap_or_else(|| panic!("{place} is a field")) = value;
    let folder = folder(&[("open_clip_config.json", &description)]);
    write_tensors(&folder.path().join("open_clip_model.safetensors"), &model.tensors()).unwrap();
    found(folder.path())
}

/// What changes a model without a trace in its weights, and sizes that are others.
#[test]
fn open_clip_says_nothing_that_is_not_computed() {
    let mut text = text();
    (text.activation, text.eot) = (Activation::Gelu, EotRule::Greatest);
    let image = OpenAiImage::Transformer(vision(Activation::Gelu));
    let clip = random(&ModelConfig::OpenAiClip(OpenAiClipConfig { image, text, projection: 10 }));
    // As an export says it, with what open_clip's defaults are.
    let of_clip = json!({ "model_cfg": {
        "embed_dim": 10, "quick_gelu": false, "init_logit_bias": null, "custom_text": true,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 24, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.0,
            "pool_type": "tok", "no_ln_pre": false, "attentional_pool": false, "attn_pooler_heads": 8,
            "ls_init_value": null, "final_ln_after_pool": false, "norm_kwargs": null, "block_type": null,
        },
        "text_cfg": {
            "context_length": 9, "vocab_size": 40, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2,
            "pool_type": "argmax", "no_causal_mask": false, "embed_cls": false, "proj_bias": false,
            "proj_type": "linear", "pad_id": 0, "act_kwargs": {}, "unheard_of": null,
        },
    } });
    let sizes =
        BiomedClipConfig { vision: vision(Activation::Gelu), text: bert(), context: 9, projection: 10 };
    let biomed = random(&ModelConfig::BiomedClip(sizes));
    let of_biomed = biomed_description();
    for (model, whole, changes) in [
        (
            &clip,
            &of_clip,
            vec![
                ("embed_dim", json!(512), "`embed_dim` is 512; in the weights it is 10"),
                ("init_logit_bias", json!(-10.0), "`init_logit_bias`"),
                ("quick_gelu", json!("yes"), "`quick_gelu` is \"yes\"; false or true is supported"),
                (
                    "vision_cfg/image_size",
                    json!(224),
                    "`vision_cfg.image_size` is 224; in the weights it is 32",
                ),
                ("vision_cfg/image_size", json!([32, 64]), "`vision_cfg.image_size` is [32,64]"),
                ("vision_cfg/layers", json!([1, 1, 1, 1]), "`vision_cfg.layers` is [1,1,1,1]; a count"),
                ("vision_cfg/patch_size", json!(16), "`vision_cfg.patch_size`"),
                ("vision_cfg/mlp_ratio", json!(4), "`vision_cfg.mlp_ratio` is 4; in the weights it is 2"),
                (
                    "vision_cfg/pool_type",
                    json!("avg"),
                    "`vision_cfg.pool_type` is \"avg\"; \"tok\" is supported",
                ),
                ("vision_cfg/no_ln_pre", json!(true), "`vision_cfg.no_ln_pre` is true"),
                ("vision_cfg/attentional_pool", json!("parallel"), "`vision_cfg.attentional_pool`"),
                ("vision_cfg/ls_init_value", json!(0.1), "`vision_cfg.ls_init_value`"),
                ("vision_cfg/norm_kwargs", json!({ "eps": 1e-6 }), "`vision_cfg.norm_kwargs`"),
                ("vision_cfg/block_type", json!("custom"), "`vision_cfg.block_type`"),
                ("text_cfg", json!(3), "`text_cfg` is 3; a table"),
                ("text_cfg/context_length", json!(77), "`text_cfg.context_length` is 77"),
                ("text_cfg/vocab_size", json!(49408), "`text_cfg.vocab_size`"),
                (
                    "text_cfg/pool_type",
                    json!("last"),
                    "`text_cfg.pool_type` is \"last\"; \"argmax\" is supported",
                ),
                ("text_cfg/no_causal_mask", json!(true), "`text_cfg.no_causal_mask`"),
                ("text_cfg/proj_bias", json!(true), "`text_cfg.proj_bias`"),
                ("text_cfg/act_kwargs", json!({ "approximate": "tanh" }), "`text_cfg.act_kwargs`"),
                ("text_cfg/unheard_of", json!(1), "`text_cfg.unheard_of` is 1; only models without it"),
            ],
        ),
        (
            &biomed,
            &of_biomed,
            vec![
                ("embed_dim", json!(512), "`embed_dim` is 512; in the weights it is 10"),
                ("vision_cfg/timm_model_name", json!("vit_base_patch16_224"), "`vit_base_patch8`"),
                ("vision_cfg/timm_model_name", json!("vit_huge_patch8_32"), "`vision_cfg.timm_model_name`"),
                ("vision_cfg/timm_pool", json!("avg"), "\"avg\"; \"\" or \"token\" is supported"),
                ("vision_cfg/timm_pool", json!(null), "`vision_cfg.timm_pool` is \"avg\""),
                ("vision_cfg/timm_proj", json!("mlp"), "`vision_cfg.timm_proj`"),
                ("vision_cfg/image_size", json!(224), "`vision_cfg.image_size` is 224"),
                (
                    "text_cfg/hf_pooler_type",
                    json!("cls_pooler"),
                    "`text_cfg.hf_pooler_type` is \"cls_pooler\"",
                ),
                ("text_cfg/hf_pooler_type", json!(null), "`text_cfg.hf_pooler_type` is \"mean_pooler\""),
                ("text_cfg/hf_proj_type", json!("linear"), "`text_cfg.hf_proj_type`"),
                ("text_cfg/hf_model_name", json!("roberta-base"), "a BERT is supported"),
                ("text_cfg/context_length", json!("long"), "`text_cfg.context_length` is \"long\"; a count"),
            ],
        ),
    ] {
        let same = whole["model_cfg"]["embed_dim"].clone();
        described(model.as_ref(), whole, "/model_cfg/embed_dim", same).unwrap();
        for (field, value, reason) in changes {
            let place = format!("/model_cfg/{field}");
            let error = described(model.as_ref(), whole, &place, value).err();
            let error = error.unwrap_or_else(|| panic!("{field}: {reason}"));
            assert!(
                error.contains("open_clip_config.json") && error.contains(reason),
                "`{error}` should say `{reason}`"
            );
        }
    }
}
