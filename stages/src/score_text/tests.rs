//! The stage on phantoms and a tiny CLIP with random weights.

use std::collections::BTreeMap;

use pipe_engine::InputArtifact;
use serde_json::{Value as Json, json};

use super::ScoreText;
use crate::attribute_text::AttributeText;
use crate::checkpoint::Checkpoint;
use crate::phantom::IngestPhantom;
use crate::pieces::PIECE_METRICS;
use crate::table::{Table, read};
use crate::testing::{Made, run, run_with};
use crate::tokenizer::TrainTokenizer;

struct Study {
    phantoms: Made,
    checkpoint: Made,
}

impl Study {
    fn new(seed: i64) -> Self {
        let phantoms = run(&IngestPhantom, &json!({ "size": 28, "train": 24, "test": 8 }), &[]).unwrap();
        let text = [("text", &phantoms["captions"])];
        let tokenizer = run(&TrainTokenizer, &json!({ "vocab_size": 400 }), &text).unwrap();
        let tower = json!({ "width": 16, "layers": 2, "heads": 2 });
        let params = json!({
            "init": "random", "image_size": 28, "patch": 14, "vision": tower, "text": tower, "context": 128,
            "projection": 16, "seed": seed,
        });
        let checkpoint = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
        Self { phantoms, checkpoint }
    }

    fn words(&self, method: &str) -> Made {
        let inputs = [
            ("captions", &self.phantoms["captions"]),
            ("images", &self.phantoms["images"]),
            ("checkpoint", &self.checkpoint["checkpoint"]),
        ];
        run(&AttributeText, &json!({ "method": method, "steps": 20, "limit": 6 }), &inputs).unwrap()
    }

    fn score(&self, words: &[&Made], params: &Json) -> Result<Scores, String> {
        let input = |artifact: &pipe_engine::Artifact| {
            vec![InputArtifact { axes: BTreeMap::new(), stage: String::new(), artifact: artifact.clone() }]
        };
        let files = words.iter().flat_map(|made| input(&made["words"])).collect();
        let inputs = BTreeMap::from([
            ("words".to_owned(), files),
            ("images".to_owned(), input(&self.phantoms["images"])),
            ("checkpoint".to_owned(), input(&self.checkpoint["checkpoint"])),
        ]);
        let made = run_with(2, &ScoreText, params, inputs).map_err(|error| error.to_string())?;
        Ok(Scores(read(&made["scores"]).unwrap()))
    }
}

struct Scores(Table);

impl Scores {
    /// The values, or their reasons, of a method by a metric, caption by caption.
    fn of(&self, method: &str, metric: &str) -> Vec<Result<f64, String>> {
        let (methods, metrics) = (self.0.strings("method").unwrap(), self.0.strings("metric").unwrap());
        let (values, reasons) = (self.0.float64("value").unwrap(), self.0.utf8("reason").unwrap());
        (0..self.0.rows())
            .filter(|row| methods[*row] == method && metrics[*row] == metric)
            .map(|row| values[row].ok_or_else(|| reasons[row].clone().unwrap()))
            .collect()
    }

    fn mean(&self, method: &str, metric: &str) -> f64 {
        let values = self.of(method, metric);
        assert_eq!(values.len(), 6, "{method} {metric}");
        values.into_iter().map(Result::unwrap).sum::<f64>() / 6.0
    }
}

#[test]
fn words_that_matter_beat_words_that_know_nothing() {
    let study = Study::new(0);
    let (occlusion, gradients) = (study.words("occlusion"), study.words("integrated_gradients"));
    let scores = study.score(&[&occlusion, &gradients], &json!({})).unwrap();
    assert_eq!(scores.0.rows(), 4 * 6 * PIECE_METRICS.len());
    // What occlusion says is what each word alone costs.
    assert!(scores.mean("occlusion", "word_faithfulness_estimate") > 0.999);
    for method in ["occlusion", "integrated_gradients"] {
        for control in ["random", "length"] {
            let gap = |method| scores.mean(method, "word_deletion_gap");
            assert!(gap(method) > gap(control), "{method} {} {control} {}", gap(method), gap(control));
        }
        let [gap, insertion, deletion] = ["deletion_gap", "insertion", "deletion"]
            .map(|metric| scores.mean(method, &format!("word_{metric}")));
        assert!((gap - (insertion - deletion)).abs() < 1e-9);
        assert!(scores.mean(method, "word_comprehensiveness") > scores.mean(method, "word_sufficiency"));
        let relative = scores.mean(method, "word_relative_complexity");
        assert!(0.0 < relative && relative < 1.0);
    }
    let other = study.score(&[&occlusion, &gradients], &json!({ "batch": 5, "limit": 4 })).unwrap();
    let first = |scores: &Scores| scores.of("integrated_gradients", "word_deletion")[..4].to_vec();
    for (ours, other) in first(&scores).into_iter().zip(first(&other)) {
        assert!((ours.unwrap() - other.unwrap()).abs() < 1e-4, "another batch, other scores");
    }
}

#[test]
fn words_of_another_model_and_words_that_are_missing_say_so() {
    let (study, other) = (Study::new(0), Study::new(1));
    let scores = study.score(&[&other.words("occlusion")], &json!({})).unwrap();
    let values = scores.of("occlusion", "word_deletion");
    let refused =
        |value: &Result<f64, String>| value.as_ref().is_err_and(|reason| reason.contains("the model gives"));
    assert!(!values.is_empty() && values.iter().all(refused), "{values:?}");
    let shapley = study.words("shapley_values");
    let scores = study.score(&[&shapley], &json!({})).unwrap();
    // Captions of many words have no Shapley values; the reason stands where the score would.
    let values = scores.of("shapley_values", "word_deletion");
    assert!(
        values
            .iter()
            .filter_map(|value| value.as_ref().err())
            .all(|reason| reason.starts_with("not_applicable"))
    );
    let twice = study.score(&[&shapley, &shapley], &json!({})).err().unwrap();
    assert!(twice.contains("no axis tells them apart"), "{twice}");
}
