//! Questions: word tables, recurrent networks, the attention and the type classifier of QCR.

use candle_core::{DType, Tensor};
use pipe_models::vqa::{
    Mode, QuestionConditioning, QuestionEncoder, QuestionTypeClassifier, QuestionTypeConfig, Questions,
    WordsConfig,
};
use pipe_models::{Trainable, Weights, train};

use super::support::{self, TOLERANCE, compare_gradients, size, sizes, under, weights};
use crate::harness::{self, Golden};

#[test]
fn recurrent_networks() {
    let Some(folder) = harness::topic("vqa") else { return };
    let config = &harness::json(&folder.join("config.json"))["question"];
    for (file, cell) in config["rnn"].as_object().unwrap() {
        let golden = Golden::open(&folder, &format!("{file}.safetensors"));
        let own = support::question(config, cell.as_str().unwrap(), size(config, "hidden"));
        let mut weights = Weights::new(weights(&golden), Trainable::All);
        let encoder = QuestionEncoder::load(&mut weights, &own).unwrap();
        let parameters = weights.finish().unwrap();
        let tokens = support::tokens(&golden, "in.tokens");
        assert_eq!(tokens.dim(1).unwrap(), size(config, "length"));
        golden.compare("out.emb", &encoder.embed(&tokens).unwrap(), 0.0);
        let states = encoder.forward(&Questions::tokens(tokens), None).unwrap();
        golden.compare("out.all", &states.all, TOLERANCE);
        golden.compare("out.last", &states.last, TOLERANCE);
        let loss = (&states.all * golden.input("in.cotangent")).unwrap().sum_all().unwrap();
        golden.compare("out.loss", &loss, TOLERANCE);
        compare_gradients(&golden, &loss.backward().unwrap(), parameters.variables(), "");
        golden.finish();
    }
}

#[test]
fn conditioning_and_types() {
    let Some(folder) = harness::topic("vqa") else { return };
    let all = harness::json(&folder.join("config.json"));
    let (config, question) = (&all["qcr"], &all["question"]);
    let golden = Golden::open(&folder, "qcr_question_modules.safetensors");
    let words =
        WordsConfig { width: size(question, "word_dim"), ..WordsConfig::new(size(question, "vocab")) };
    let tensors = weights(&golden);
    let mut weights = Weights::new(
        tensors
            .iter()
            .filter(|(name, _)| name.starts_with("type_att."))
            .map(|(n, t)| (n.clone(), t.clone()))
            .collect(),
        Trainable::All,
    );
    let conditioning =
        QuestionConditioning::load(&mut weights, "type_att", &words, size(config, "hidden")).unwrap();
    let parameters = weights.finish().unwrap();
    let widths: [usize; 4] = sizes(&config["type_classifier_widths"]);
    let types = QuestionTypeConfig { words, widths: [widths[0], widths[1], widths[2]] };
    let classifier =
        QuestionTypeClassifier::from_tensors(types, under(&tensors, "type_cls."), Trainable::All).unwrap();

    let tokens = support::tokens(&golden, "in.tokens");
    let embedded = conditioning.attention().embed(&tokens).unwrap();
    golden.compare("out.q_att_vec", &conditioning.attention().forward(&embedded).unwrap(), TOLERANCE);
    let factors = conditioning.forward(&embedded, Mode::Evaluation).unwrap();
    golden.compare("out.type_att", &factors, TOLERANCE);
    let logits = classifier.logits(&tokens, Mode::Evaluation).unwrap();
    golden.compare("out.type_logits", &logits, TOLERANCE);
    let labels = golden.input("in.type_label").to_dtype(DType::U32).unwrap();
    let entropy = train::loss::cross_entropy(&logits, &labels).unwrap();
    golden.compare("out.type_ce", &entropy, TOLERANCE);
    let typed: Vec<_> =
        labels.to_vec1::<u32>().unwrap().iter().map(|label| super::QUESTION_TYPES[*label as usize]).collect();
    let same = classifier.loss(&tokens, &typed, Mode::Evaluation).unwrap();
    golden.compare("out.type_ce", &same, TOLERANCE);
    let loss = ((factors * golden.input("in.cotangent")).unwrap().sum_all().unwrap() + entropy).unwrap();
    let gradients = loss.backward().unwrap();
    compare_gradients(&golden, &gradients, parameters.variables(), "type_att.");
    compare_gradients(&golden, &gradients, parameters.variables(), "");
    compare_gradients(&golden, &gradients, classifier.parameters().variables(), "type_cls.");
    // The tables begin as the word vectors, with a row of zeros for the padding behind them.
    let glove = golden.input("glove");
    for table in ["type_att.w_emb.emb.weight", "type_cls.w_emb.emb.weight"] {
        let rows: Tensor = tensors[table].narrow(0, 0, glove.dim(0).unwrap()).unwrap();
        golden.compare("glove", &rows, 0.0);
    }
    golden.finish();
}
