//! PMC-CLIP, with its fusion transformer.

use candle_core::{Tensor, Var};
use pipe_models::bert::BertPooling;
use pipe_models::pmc_clip::{LossWeights, PmcClip, PmcClipConfig, masked_word_loss};
use pipe_models::{DualEncoder, TextTower, Trainable};

use super::resnet::compare_maps;
use super::{OUTPUT, check_hooks, compare_towers, compare_training_step, published, published_parts};
use crate::harness::{self, Golden};

#[test]
fn pmc_clip() {
    let Some(folder) = harness::topic("models") else { return };
    let manifest = harness::json(&folder.join("manifest.json"));
    let golden = Golden::open(&folder, "pmc-clip-tiny.expected.safetensors");
    let stated = harness::json(&folder.join("pmc-clip-tiny.config.json"));
    let size = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
    let tensors = published(&folder, "pmc-clip-tiny.pt");
    let mut config = PmcClipConfig::infer(&tensors).unwrap();
    config.pool_heads = size(&stated["attnpool_heads"]);
    config.context = size(&stated["context_length"]);
    config.text.num_attention_heads = size(&stated["bert"]["heads"]);
    let model = PmcClip::from_tensors(config.clone(), tensors.clone(), Trainable::All).unwrap();

    let pixels = Var::from_tensor(&golden.input("pixels")).unwrap();
    let (ids, labels) = (golden.input("bert_input_ids"), golden.input("bert_label_ids"));
    compare_maps(&golden, &model, &pixels);
    compare_towers(&golden, &model, &pixels, &ids);

    let text = model.text();
    let hidden = text.hidden_states(&text.token_embeddings(&ids).unwrap(), &ids, None).unwrap();
    let images = model.image_tower().embed_images(&pixels, None).unwrap();
    let fused = model.fuse(&hidden, &images, None).unwrap();
    golden.compare("fusion_output", &fused, OUTPUT);
    let words = model.word_log_probabilities(&fused).unwrap();
    golden.compare("mlm_log_probs", &words, OUTPUT);
    golden.compare("mlm_loss", &masked_word_loss(&words, &labels).unwrap(), OUTPUT);
    let losses = |pixels: &Tensor| model.losses(pixels, &ids, &labels, LossWeights::default(), None).unwrap();
    golden.compare("match_loss", &losses(&pixels).matching, OUTPUT);

    // The clean caption, by both ways of pooling; the split files hold the same towers.
    let caption = golden.input("caption_ids");
    golden.compare("clean_text_embeds_cls", &text.embed_texts(&caption, None).unwrap(), OUTPUT);
    let mut split = published_parts(
        &folder.join("pmc-clip-tiny-split"),
        &[
            ("image_encoder(resnet50).pth", "visual."),
            ("text_encoder.pth", "text_encoder."),
            ("text_projection_layer.pth", "text_projection"),
        ],
    );
    let mut split_config = PmcClipConfig { fusion: None, ..config.clone() };
    assert_eq!(PmcClipConfig::infer(&split).unwrap().fusion, None);
    let from_split = PmcClip::from_tensors(split_config.clone(), split.clone(), Trainable::Frozen).unwrap();
    golden.compare("image_embeds", &from_split.image_tower().embed_images(&pixels, None).unwrap(), OUTPUT);
    golden.compare("clean_text_embeds_cls", &from_split.text().embed_texts(&caption, None).unwrap(), OUTPUT);
    assert!(from_split.fuse(&hidden, &images, None).is_err());
    split_config.pooling = BertPooling::Pooler;
    split.remove("logit_scale");
    let pooled = PmcClip::from_tensors(split_config, split, Trainable::Frozen).unwrap();
    golden.compare("clean_text_embeds_pooler", &pooled.text().embed_texts(&caption, None).unwrap(), OUTPUT);
    golden.compare("text_bert_pooler", &pooled.text().pool(&hidden).unwrap(), OUTPUT);
    // A mask would make a difference, which the original does not make.
    let embeddings = text.token_embeddings(&caption).unwrap();
    let pad = text.pad_id();
    let mask = caption.ne(i64::from(pad)).unwrap().to_dtype(candle_core::DType::F32).unwrap();
    let masked = text.bert().hidden(&embeddings, Some(&mask), None, None).unwrap();
    let masked = text.project(&text.pool(&masked).unwrap(), None).unwrap();
    golden.compare("clean_text_embeds_cls_with_attention_mask", &masked, OUTPUT);
    assert!(text.embed_texts(&caption.narrow(1, 0, 3).unwrap(), None).is_err(), "rows need the whole length");

    check_hooks(&model, &pixels, &ids);
    let manifest = &manifest["goldens"]["pmc-clip-tiny"];
    compare_training_step(&golden, manifest, &model, &pixels, |pixels| losses(pixels).total);
    golden.finish();
}
