//! Whole models: forward, losses and gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_models::train::clip_gradient_norm;
use pipe_models::vqa::{
    AnswerModel, Autoencoder, AutoencoderInput, Batch, Fusion, ImageConfig, Images, Mevf, MevfConfig, Mode,
    Qcr, QcrConfig, QuestionType, QuestionTypeClassifier, QuestionTypeConfig, Questions, WordsConfig,
};
use pipe_models::{Trainable, Weights};
use serde_json::Value as Json;

use super::QUESTION_TYPES;
use super::support::{self, TOLERANCE, compare_gradients, number, size, sizes, under, weights};
use crate::harness::{self, Golden};

/// The model of a file of this name by the sections of `config.json`.
pub(super) fn mevf(all: &Json, file: &str, answers: usize) -> MevfConfig {
    let config = &all["mevf_e2e"];
    let fusion = match file.contains("san") {
        true => Fusion::San { stacks: size(config, "san_stacks") },
        false => Fusion::Ban { glimpses: size(config, "glimpses") },
    };
    MevfConfig {
        image: support::image(config, &all["maml_cnn"]),
        question: support::question(
            &all["question"],
            config["rnn"].as_str().unwrap(),
            size(config, "hidden"),
        ),
        reconstruction: number(config, "ae_alpha"),
        ..MevfConfig::new(answers, size(&all["question"], "vocab"), fusion)
    }
}

/// QCR by the sections of `config.json`.
pub(super) fn qcr(all: &Json, image: ImageConfig) -> QcrConfig {
    let (config, question) = (&all["qcr"], &all["question"]);
    let words =
        WordsConfig { width: size(question, "word_dim"), ..WordsConfig::new(size(question, "vocab")) };
    QcrConfig {
        image,
        question: support::question(question, config["rnn"].as_str().unwrap(), size(config, "hidden")),
        glimpses: size(config, "glimpses"),
        conditioning: words,
        ..QcrConfig::new(
            size(config, "closed_answers"),
            size(config, "open_answers"),
            size(question, "vocab"),
        )
    }
}

#[test]
fn mevf_end_to_end() {
    let Some(folder) = harness::topic("vqa") else { return };
    let all = harness::json(&folder.join("config.json"));
    for file in ["mevf_ban_e2e", "mevf_san_e2e"] {
        let golden = Golden::open(&folder, &format!("{file}.safetensors"));
        let config = mevf(&all, file, size(&all["mevf_e2e"], "answers"));
        let tensors = under(&weights(&golden), "model.");
        let model = Mevf::from_tensors(config.clone(), tensors.clone(), Trainable::All).unwrap();
        let large = golden.input("in.x128");
        let batch = Batch {
            images: Images {
                meta: Some(golden.input("in.x84")),
                autoencoder: Some(AutoencoderInput::Pixels(large.clone())),
                features: None,
            },
            questions: Questions::tokens(support::tokens(&golden, "in.tokens")),
            types: None,
        };
        golden.compare("out.features", &model.joint(&batch, Mode::Evaluation).unwrap(), TOLERANCE);
        golden.compare("out.logits", &model.logits(&batch, Mode::Evaluation).unwrap(), TOLERANCE);
        let loss = model.loss(&batch, &golden.input("in.target"), Mode::Evaluation).unwrap();
        golden.compare("out.loss", &loss.total, TOLERANCE);
        let parts: BTreeMap<_, _> = loss.parts.into_iter().collect();
        golden.compare("out.bce_sum", &parts["answers"], TOLERANCE);
        golden.compare("out.rec_mse", &parts["reconstruction"], TOLERANCE);
        let gradients = loss.total.backward().unwrap();
        let (norm, _) = clip_gradient_norm(model.variables(), &gradients, 1.0).unwrap();
        golden.compare("out.grad_global_norm", &Tensor::new(norm, large.device()).unwrap(), TOLERANCE);
        compare_gradients(&golden, &gradients, model.variables(), "");

        let own = tensors.into_iter().filter(|(name, _)| name.starts_with("ae_v_emb.")).collect();
        let mut weights = Weights::new(own, Trainable::Frozen);
        let autoencoder =
            Autoencoder::load(&mut weights, "ae_v_emb", &config.image.autoencoder.unwrap()).unwrap();
        weights.finish().unwrap();
        let decoded = autoencoder.decode(&autoencoder.encode(&large).unwrap()).unwrap();
        let [first, last] = sizes(&all["mevf_e2e"]["decoded_patch"]);
        let patch = decoded.narrow(2, first, last - first).unwrap().narrow(3, first, last - first).unwrap();
        golden.compare("out.dec_patch", &patch, TOLERANCE);
        golden.compare("out.dec_mean", &decoded.mean((1, 2, 3)).unwrap(), TOLERANCE);
        golden.finish();
    }
}

/// Rows and columns of the targets that a branch sees.
fn targets(all: &Tensor, rows: &[u32], first: usize, count: usize) -> Tensor {
    let rows = Tensor::from_slice(rows, rows.len(), all.device()).unwrap();
    all.index_select(&rows, 0).unwrap().narrow(1, first, count).unwrap()
}

#[test]
fn conditional_reasoning() {
    let Some(folder) = harness::topic("vqa") else { return };
    let all = harness::json(&folder.join("config.json"));
    let config = &all["qcr"];
    let golden = Golden::open(&folder, "qcr_model.safetensors");
    let tensors = weights(&golden);
    let visual = size(config, "visual_dim");
    let image = ImageConfig { features: Some(visual), meta: None, autoencoder: None, constant: None };
    let own = qcr(&all, image);
    let model = Qcr::from_tensors(own.clone(), under(&tensors, "model."), Trainable::All).unwrap();
    let widths: [usize; 4] = sizes(&config["type_classifier_widths"]);
    let types =
        QuestionTypeConfig { words: own.conditioning.clone(), widths: [widths[0], widths[1], widths[2]] };
    let classifier =
        QuestionTypeClassifier::from_tensors(types, under(&tensors, "type_cls."), Trainable::Frozen).unwrap();

    let visual = super::support::variable(&golden, "in.v_emb");
    let tokens = support::tokens(&golden, "in.tokens");
    let annotated: Vec<QuestionType> = golden
        .input("in.answer_type")
        .to_vec1::<i64>()
        .unwrap()
        .into_iter()
        .map(|class| QUESTION_TYPES[class as usize])
        .collect();
    let batch = |types: Vec<QuestionType>| Batch {
        images: Images { features: Some(visual.as_tensor().clone()), ..Images::default() },
        questions: Questions::tokens(tokens.clone()),
        types: Some(types),
    };
    let target = golden.input("in.target");
    let columns = [("closed", 0, own.closed), ("open", own.closed, own.open)];
    let training = batch(annotated);
    let loss = model.loss(&training, &target, Mode::Evaluation).unwrap();
    golden.compare("out.loss", &loss.total, TOLERANCE);
    for (name, part) in &loss.parts {
        golden.compare(&format!("out.loss_{name}"), part, TOLERANCE);
    }
    for (answers, (name, first, count)) in
        model.branches(&training, Mode::Evaluation).unwrap().iter().zip(columns)
    {
        golden.compare(&format!("out.{name}_features"), &answers.joint, TOLERANCE);
        golden.compare(&format!("out.{name}_logits"), &answers.logits, TOLERANCE);
        golden.compare(&format!("out.{name}_target"), &targets(&target, &answers.rows, first, count), 0.0);
    }
    let gradients = loss.total.backward().unwrap();
    let (norm, _) = clip_gradient_norm(model.variables(), &gradients, 1.0).unwrap();
    golden.compare("out.grad_global_norm", &Tensor::new(norm, target.device()).unwrap(), TOLERANCE);
    compare_gradients(&golden, &gradients, model.variables(), "");
    compare_gradients(&golden, &gradients, model.variables(), "model.");
    for key in ["grad.v", "grad.v_emb", "grad.in.v_emb"] {
        if golden.has(key) {
            golden.compare(key, gradients.get(&visual).unwrap(), TOLERANCE);
        }
    }

    // Routed by the classifier, as in evaluation.
    let routed = classifier.classify(&tokens).unwrap();
    let classes: Vec<i64> = routed.iter().map(|one| *one as i64).collect();
    let count = classes.len();
    golden.compare("out.routed_pred", &Tensor::from_vec(classes, count, target.device()).unwrap(), 0.0);
    let evaluation = batch(routed.clone());
    for answers in model.branches(&evaluation, Mode::Evaluation).unwrap() {
        let (name, first, count) = columns[answers.kind as usize];
        golden.compare(&format!("out.routed_{name}_logits"), &answers.logits, TOLERANCE);
        golden.compare(
            &format!("out.routed_{name}_target"),
            &targets(&target, &answers.rows, first, count),
            0.0,
        );
    }
    // One row over all answers, those of the other branch impossible.
    let rows = model.logits(&evaluation, Mode::Evaluation).unwrap();
    assert_eq!(rows.dims(), [count, model.answers()]);
    for (row, kind) in rows.to_vec2::<f32>().unwrap().iter().zip(routed) {
        let (_, first, count) = columns[kind as usize];
        let possible = |column: usize| (first..first + count).contains(&column);
        assert!(
            row.iter().enumerate().all(|(column, logit)| logit.is_finite() == possible(column)),
            "{row:?}"
        );
    }
    golden.finish();
}
