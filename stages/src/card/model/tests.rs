//! A model with its card: the files are the model's, and the figures those of its evaluation.

use pipe_engine::AnyKind;
use serde_json::json;

use super::ModelCard;
use crate::checkpoint::Checkpoint;
use crate::evaluate_classify::EvaluateClassify;
use crate::finetune::FinetuneClassify;
use crate::metrics::figures;
use crate::phantom::IngestPhantom;
use crate::testing::run;
use crate::tokenizer::TrainTokenizer;

#[test]
fn the_folder_holds_the_model_and_what_it_reached() {
    let data = json!({ "weights": "chest", "task": "abnormal", "p_normal": 0.5, "size": 28, "train": 40, "val": 0, "test": 30 });
    let data = run(&IngestPhantom, &data, &[]).unwrap();
    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 400 }), &[("text", &data["captions"])]).unwrap();
    let tower = json!({ "width": 16, "layers": 1 });
    let params = json!({ "init": "random", "image_size": 28, "patch": 7, "context": 32, "projection": 8, "vision": tower, "text": tower });
    let start = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let (images, labels) = (("images", &data["images"]), ("labels", &data["labels"]));
    let probe = json!({ "mode": "linear_probe", "c": 1.0 });
    let trained =
        run(&FinetuneClassify, &probe, &[images, labels, ("checkpoint", &start["checkpoint"])]).unwrap();
    let model = &trained["checkpoint"];
    let judged = run(&EvaluateClassify, &json!({}), &[images, labels, ("checkpoint", model)]).unwrap();
    let params = json!({ "name": "A | probe", "licence": "MIT", "base_models": ["own/clip"], "evaluation_data": "Chest phantoms" });
    let inputs = [("model", model), ("metrics", &judged["metrics"]), ("log", &trained["log"])];
    let card = run(&ModelCard, &params, &inputs).unwrap();
    for file in &model.files {
        let copy = card["folder"].file(&file.path).unwrap();
        assert_eq!(std::fs::read(&copy.location).unwrap(), std::fs::read(&file.location).unwrap());
    }
    let page = card["folder"].file("README.md").unwrap();
    let page = std::fs::read_to_string(&page.location).unwrap();
    let figures = figures(&judged["metrics"]).unwrap();
    let (_, auroc) = figures.iter().find(|(name, _)| name.starts_with("auroc[")).unwrap();
    let (yaml, text) = page.split_once("\n---\n").unwrap();
    assert!(yaml.contains("license: \"mit\"\nbase_model:\n- \"own/clip\"\n"), "{yaml}");
    assert!(yaml.contains(&format!("    - type: \"auroc\"\n      value: {auroc}\n")), "{yaml}");
    assert!(text.contains("# A \\| probe"), "{text}");
    let row = text.lines().find(|line| line.contains("| auroc |")).unwrap();
    assert!(row.contains(&format!("{auroc:.3} [")) && row.ends_with("| 30 |"), "{row}");
}

#[test]
fn a_model_without_a_name_is_refused() {
    assert_eq!(AnyKind::resolve(&ModelCard, &json!({ "name": " " })).err().unwrap().len(), 1);
}
