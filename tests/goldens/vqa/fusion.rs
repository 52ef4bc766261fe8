//! How image and question are joined: bilinear and stacked attention, the cross-modal transformer.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use pipe_models::vqa::{
    AnswerClassifier, AnswerModel, Batch, Bilinear, BilinearSizes, CrossModal, CrossModalConfig, Images,
    Mode, Questions, StackedAttention, StackedSizes, TextStates, soft_cross_entropy_sum,
};
use pipe_models::{Trainable, Weights};

use super::support::{TOLERANCE, compare_gradients, number, size, variable, weights};
use crate::harness::{self, Golden};

#[test]
fn bilinear_attention() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["ban"];
    for (file, tokens) in config["visual_tokens"].as_object().unwrap() {
        let golden = Golden::open(&folder, &format!("{file}.safetensors"));
        let sizes = BilinearSizes {
            visual: size(config, "visual_dim"),
            hidden: size(config, "hidden"),
            glimpses: size(config, "glimpses"),
        };
        let mut weights = Weights::new(weights(&golden), Trainable::All);
        let ban = Bilinear::load(&mut weights, "v_att", "", sizes).unwrap();
        let classifier =
            AnswerClassifier::load(&mut weights, "classifier", sizes.hidden, size(config, "answers"))
                .unwrap();
        let parameters = weights.finish().unwrap();

        let (v, q) = (variable(&golden, "in.v"), variable(&golden, "in.q"));
        assert_eq!(v.dim(1).unwrap() as u64, tokens.as_u64().unwrap());
        let fused = ban.forward(&v, &q, None, Mode::Evaluation).unwrap();
        let logits = classifier.forward(&fused.joint, Mode::Evaluation).unwrap();
        let loss = soft_cross_entropy_sum(&logits, &golden.input("in.target")).unwrap();
        let loss = (loss / logits.dim(0).unwrap() as f64).unwrap();
        golden.compare("eff.h_mat", &ban.map_weight().unwrap(), TOLERANCE);
        golden.compare("out.att_logits", &fused.logits, TOLERANCE);
        golden.compare("out.att", &fused.maps, TOLERANCE);
        for (glimpse, read) in fused.read.iter().enumerate() {
            golden.compare(&format!("out.b_emb.{glimpse}"), read, TOLERANCE);
        }
        golden.compare("out.joint", &fused.joint, TOLERANCE);
        golden.compare("out.logits", &logits, TOLERANCE);
        golden.compare("out.loss", &loss, TOLERANCE);
        let gradients = loss.backward().unwrap();
        golden.compare("grad.v", gradients.get(&v).unwrap(), TOLERANCE);
        golden.compare("grad.q", gradients.get(&q).unwrap(), TOLERANCE);
        compare_gradients(&golden, &gradients, parameters.variables(), "");
        golden.finish();
    }
}

#[test]
fn stacked_attention() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["san"];
    for (file, tokens) in config["visual_tokens"].as_object().unwrap() {
        let golden = Golden::open(&folder, &format!("{file}.safetensors"));
        let sizes = StackedSizes {
            visual: size(config, "visual_dim"),
            hidden: size(config, "hidden"),
            stacks: size(config, "stacks"),
        };
        let mut weights = Weights::new(weights(&golden), Trainable::All);
        let san = StackedAttention::load(&mut weights, "san", sizes).unwrap();
        let classifier =
            AnswerClassifier::load(&mut weights, "classifier", sizes.hidden, size(config, "answers"))
                .unwrap();
        let parameters = weights.finish().unwrap();

        let (v, q) = (variable(&golden, "in.v"), variable(&golden, "in.q"));
        assert_eq!(v.dim(1).unwrap() as u64, tokens.as_u64().unwrap());
        let (joint, maps) = san.forward(&v, &q, Mode::Evaluation).unwrap();
        assert_eq!(maps.len(), sizes.stacks);
        let logits = classifier.forward(&joint, Mode::Evaluation).unwrap();
        let loss = soft_cross_entropy_sum(&logits, &golden.input("in.target")).unwrap();
        let loss = (loss / logits.dim(0).unwrap() as f64).unwrap();
        golden.compare("out.u", &joint, TOLERANCE);
        golden.compare("out.logits", &logits, TOLERANCE);
        golden.compare("out.loss", &loss, TOLERANCE);
        let gradients = loss.backward().unwrap();
        golden.compare("grad.v", gradients.get(&v).unwrap(), TOLERANCE);
        golden.compare("grad.q", gradients.get(&q).unwrap(), TOLERANCE);
        compare_gradients(&golden, &gradients, parameters.variables(), "");
        golden.finish();
    }
}

#[test]
fn cross_modal_transformer() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["fusion_head"];
    let golden = Golden::open(&folder, "fusion_head.safetensors");
    let width = size(config, "width");
    assert_eq!(size(config, "mlp_width"), 4 * width);
    assert_eq!((number(config, "layer_norm_eps"), number(config, "head_layer_norm_eps")), (1e-5, 1e-12));
    let own = CrossModalConfig {
        layers: size(config, "layers"),
        heads: size(config, "heads"),
        // The embedding of the file has length 1 already.
        normalised: false,
        ..CrossModalConfig::new(size(config, "answers"), width, width)
    };
    let mut tensors: BTreeMap<String, Tensor> = weights(&golden);
    tensors.insert("img_special_token".to_owned(), golden.input("in.img_special_token"));
    let model = CrossModal::from_tensors(own, tensors, Trainable::All).unwrap();

    let (text, image) = (variable(&golden, "in.text_hidden"), variable(&golden, "in.image"));
    let (batch, length, _) = text.dims3().unwrap();
    assert_eq!(length, size(config, "text_tokens"));
    let pooled = Tensor::full(size(config, "pool_position") as u32, batch, &Device::Cpu).unwrap();
    let states = TextStates {
        hidden: text.as_tensor().clone(),
        mask: Tensor::ones((batch, length), DType::F32, &Device::Cpu).unwrap(),
        pooled,
    };
    let batch = Batch {
        images: Images { features: Some(image.unsqueeze(1).unwrap()), ..Images::default() },
        questions: Questions { words: None, states: Some(states) },
        types: None,
    };
    golden.compare("out.sequence", &model.sequence(&batch, Mode::Evaluation).unwrap(), TOLERANCE);
    golden.compare("out.logits", &model.logits(&batch, Mode::Evaluation).unwrap(), TOLERANCE);
    let loss = model.loss(&batch, &golden.input("in.target"), Mode::Evaluation).unwrap().total;
    golden.compare("out.loss", &loss, TOLERANCE);
    let gradients = loss.backward().unwrap();
    golden.compare("grad.text_hidden", gradients.get(&text).unwrap(), TOLERANCE);
    golden.compare("grad.image", gradients.get(&image).unwrap(), TOLERANCE);
    compare_gradients(&golden, &gradients, model.variables(), "");
    golden.finish();
}
