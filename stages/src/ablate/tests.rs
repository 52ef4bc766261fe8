//! The whole stage on phantoms, whose truths are known.

use pipe_engine::Artifact;
use serde_json::json;

use super::Ablate;
use crate::checkpoint::Checkpoint;
use crate::embed::Embed;
use crate::finetune::FinetuneClassify;
use crate::phantom::IngestPhantom;
use crate::table::{Table, read};
use crate::testing::{Made, run};
use crate::tokenizer::TrainTokenizer;

/// Images with a marker that gives the label away, and a small model with random weights.
struct Study {
    phantoms: Made,
    initial: Made,
}

fn study() -> Study {
    let params = json!({
        "domain": "medical", "weights": "chest", "task": "abnormal", "size": 32, "seed": 5, "train": 300,
        "val": 0, "test": 60, "p_normal": 0.5, "contrast": 0.2, "shortcut_train": 1.0, "shortcut_test": 1.0,
    });
    let phantoms = run(&IngestPhantom, &params, &[]).unwrap();
    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &phantoms["captions"])]).unwrap();
    let size = json!({ "width": 32, "layers": 1, "heads": 2 });
    let params = json!({
        "init": "random", "image_size": 32, "patch": 8, "projection": 32, "vision": size, "text": size,
    });
    let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    Study { phantoms, initial }
}

impl Study {
    fn model(&self) -> &Artifact {
        &self.initial["checkpoint"]
    }

    fn ablate(&self, params: serde_json::Value, inputs: &[(&str, &Artifact)]) -> (Table, Table) {
        let mut all = vec![("images", &self.phantoms["images"])];
        all.extend_from_slice(inputs);
        let made = run(&Ablate, &params, &all).unwrap();
        (read(&made["metrics"]).unwrap(), read(&made["predictions"]).unwrap())
    }
}

/// The value of a condition's figure, and why there is none.
fn figure(metrics: &Table, method: &str, metric: &str) -> Result<f64, String> {
    let (methods, names) = (metrics.strings("method").unwrap(), metrics.strings("metric").unwrap());
    let rows: Vec<usize> =
        (0..metrics.rows()).filter(|row| methods[*row] == method && names[*row] == metric).collect();
    assert_eq!(rows.len(), 1, "{method} {metric}: {methods:?}");
    let reason = metrics.strings("reason").unwrap()[rows[0]].to_owned();
    metrics.float64("value").unwrap()[rows[0]].ok_or(reason)
}

#[test]
fn a_shortcut_is_in_the_border_and_in_no_shuffled_image() {
    let study = study();
    let labels = &study.phantoms["labels"];
    let inputs = [("images", &study.phantoms["images"]), ("labels", labels), ("checkpoint", study.model())];
    let params = json!({ "mode": "full", "epochs": 12, "lr": 3e-3, "batch": 20 });
    let tuned = run(&FinetuneClassify, &params, &inputs).unwrap();
    let params = json!({ "stratum": "truth_device", "c": 1.0, "permutations": 4 });
    let (metrics, predictions) =
        study.ablate(params.clone(), &[("labels", labels), ("checkpoint", &tuned["checkpoint"])]);
    let accuracy = |method: &str| figure(&metrics, method, "accuracy").unwrap();
    let full = accuracy("full");
    assert!(full > 0.8, "the marker is plain to see: {full}");
    assert!((accuracy("image_only_clip") - full).abs() < 0.1, "a probe on the tower that was tuned");
    assert!(accuracy("shuffled_image") < full - 0.2);
    assert!(accuracy("shuffled_within_stratum") < full - 0.2);
    assert!(accuracy("border_only") > accuracy("shuffled_image") + 0.1, "the marker stands in a corner");
    let majority = accuracy("majority");
    assert_eq!(figure(&metrics, "majority", "auroc"), Ok(0.5));
    assert_eq!(figure(&metrics, "image_mean", "auroc"), Ok(0.5));
    assert_eq!(figure(&metrics, "image_mean", "accuracy_gap"), Ok(full - accuracy("image_mean")));
    let share = (accuracy("border_only") - majority) / (full - majority);
    assert!((figure(&metrics, "border_only", "accuracy_relative_share").unwrap() - share).abs() < 1e-12);
    assert!(figure(&metrics, "full", "accuracy_synergy").unwrap_err().contains("text alone"));
    let methods = metrics.strings("method").unwrap();
    assert!(!methods.contains(&"text_prior"), "there are no prompts");

    // A row per sample, condition and draw.
    let conditions = predictions.strings("condition").unwrap();
    let count = |name: &str| conditions.iter().filter(|condition| **condition == name).count();
    assert_eq!((count("full"), count("shuffled_image"), count("border_only")), (60, 240, 60));
    assert!(predictions.columns().iter().all(|(name, _)| !name.starts_with("truth_")));

    // What was asked for and is not possible says why; the rest is left out.
    let params = json!({ "conditions": ["text_prior", "majority", "image_only"], "init": "unimodal" });
    let (metrics, _) = study.ablate(params, &[("labels", labels), ("checkpoint", &tuned["checkpoint"])]);
    assert!(figure(&metrics, "text_prior", "accuracy").unwrap_err().contains("no prompts"));
    assert!(figure(&metrics, "image_only_unimodal", "accuracy").unwrap_err().contains("unimodal"));
    assert!(!metrics.strings("method").unwrap().contains(&"blank_image"));
}

#[test]
fn prompts_without_words_leave_chance() {
    let study = study();
    let prompts = json!({
        "normal": ["frontal x-ray of the chest with no abnormality"],
        "abnormal": ["frontal x-ray of the chest showing a large effusion"],
    });
    let params = json!({ "prompts": prompts, "init": "random", "c": 1.0, "permutations": 3 });
    let inputs = [("labels", &study.phantoms["labels"]), ("checkpoint", study.model())];
    let (metrics, predictions) = study.ablate(params, &inputs);
    assert_eq!(figure(&metrics, "uninformative_prompts", "auroc"), Ok(0.5));
    assert_eq!(figure(&metrics, "text_prior", "auroc"), Ok(0.5));
    assert!(figure(&metrics, "nonsense_prompts", "auroc").is_ok());
    assert!(figure(&metrics, "nonsense_prompts", "auroc_draw_std").is_ok());
    assert!(figure(&metrics, "image_only_random", "accuracy_gap").is_ok());
    assert!(figure(&metrics, "full", "accuracy_synergy").is_ok());
    let modality = metrics.strings("modality").unwrap();
    let methods = metrics.strings("method").unwrap();
    let of = |method: &str| modality[methods.iter().position(|known| *known == method).unwrap()];
    assert_eq!((of("full"), of("text_prior"), of("image_only_random")), ("both", "text", "image"));
    assert_eq!((of("majority"), of("shuffled_image"), of("nonsense_prompts")), ("none", "text", "image"));
    let conditions = predictions.strings("condition").unwrap();
    assert_eq!(conditions.iter().filter(|name| **name == "nonsense_prompts").count(), 180);
}

#[test]
fn reports_alone_give_their_labels_away() {
    let study = study();
    let labels = &study.phantoms["labels"];
    let prompts = json!({ "normal": ["no abnormality"], "abnormal": ["an effusion"] });
    let params = json!({ "prompts": prompts, "conditions": ["text_only", "image_only"], "c": 100.0 });
    let captions = &study.phantoms["captions"];
    let inputs = [("labels", labels), ("checkpoint", study.model()), ("captions", captions)];
    let (metrics, predictions) = study.ablate(params.clone(), &inputs);
    let auroc = |method: &str| figure(&metrics, method, "auroc").unwrap();
    // Even through a tower with random weights: captions name the finding.
    assert!(auroc("text_only_clip") > 0.9, "{}", auroc("text_only_clip"));
    let synergy = figure(&metrics, "full", "auroc_synergy").unwrap();
    let best = auroc("text_only_clip").max(auroc("image_only_clip"));
    assert!((synergy - (auroc("full") - best)).abs() < 1e-12);
    let conditions = predictions.strings("condition").unwrap();
    assert_eq!(conditions.iter().filter(|name| **name == "text_only_clip").count(), 60);

    // Without texts it is not there, and where it was asked for it says why.
    let (metrics, _) = study.ablate(params, &inputs[..2]);
    assert!(figure(&metrics, "text_only_clip", "accuracy").unwrap_err().contains("captions"));
}

#[test]
fn retrieval_by_chance_is_k_over_the_pool() {
    let params = json!({ "weights": "all", "size": 28, "seed": 3, "train": 150, "test": 40 });
    let phantoms = run(&IngestPhantom, &params, &[]).unwrap();
    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 700 }), &[("text", &phantoms["captions"])]).unwrap();
    let size = json!({ "width": 32, "layers": 1, "heads": 2 });
    let params = json!({
        "init": "random", "image_size": 28, "patch": 7, "projection": 32, "vision": size, "text": size,
    });
    let model = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let model = &model["checkpoint"];
    let (images, captions) = (&phantoms["images"], &phantoms["captions"]);
    let inputs = [("images", images), ("captions", captions), ("checkpoint", model)];
    let embedded = run(&Embed, &json!({}), &inputs).unwrap();

    let params = json!({ "k": [1, 5], "permutations": 3, "c": 1.0 });
    let given = [
        ("images", images),
        ("captions", captions),
        ("checkpoint", model),
        ("image_embeddings", &embedded["images"]),
        ("text_embeddings", &embedded["texts"]),
    ];
    let made = run(&Ablate, &params, &given).unwrap();
    let metrics = read(&made["metrics"]).unwrap();
    for direction in ["image_to_text", "text_to_image"] {
        let name = |name: &str| format!("{direction}_{name}");
        let chance = figure(&metrics, "random", &name("recall@5")).unwrap();
        assert!((chance - 5.0 / 40.0).abs() < 1e-12);
        for condition in ["full", "shuffled_image", "shuffled_within_stratum", "popularity", "keywords"] {
            let recall = figure(&metrics, condition, &name("recall@5")).unwrap();
            assert!((0.0..=1.0).contains(&recall), "{condition}");
        }
        // Words and pictures of a modality agree, which beats chance without any matching.
        assert!(figure(&metrics, "metadata", &name("recall@5")).unwrap() > chance + 0.05);
        let within = figure(&metrics, "within_stratum", &name("recall@5")).unwrap();
        assert!(within > figure(&metrics, "full", &name("recall@5")).unwrap());
        assert!(figure(&metrics, "full", &name("hubness_skewness")).is_ok());
    }
    // The same without embeddings given: they are computed.
    let computed = run(&Ablate, &params, &inputs).unwrap();
    assert_eq!(computed["metrics"].digest, made["metrics"].digest);
    assert_eq!(computed["predictions"].digest, made["predictions"].digest);

    // Embeddings alone are enough for what needs no words and no columns.
    let made = run(&Ablate, &params, &given[3..]).unwrap();
    let alone = read(&made["metrics"]).unwrap();
    for condition in ["full", "random", "shuffled_image", "popularity"] {
        let name = "text_to_image_recall@5";
        assert_eq!(figure(&alone, condition, name), figure(&metrics, condition, name));
    }
    assert!(!alone.strings("method").unwrap().contains(&"metadata"));

    // Embeddings of other captions are refused.
    let others = run(&Embed, &json!({ "splits": ["train"] }), &inputs).unwrap();
    let mut wrong = given;
    (wrong[3].1, wrong[4].1) = (&others["images"], &others["texts"]);
    assert!(run(&Ablate, &params, &wrong).is_err());
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    let study = study();
    let [images, labels, captions] = ["images", "labels", "captions"].map(|port| &study.phantoms[port]);
    let refused = |inputs: &[(&str, &Artifact)]| match run(&Ablate, &json!({}), inputs) {
        Ok(_) => panic!("it ran"),
        Err(error) => error.to_string(),
    };
    assert!(refused(&[("images", images)]).contains("none is given"));
    assert!(refused(&[("labels", labels)]).contains("`images`"));
    assert!(
        refused(&[("images", images), ("labels", labels), ("questions", captions)])
            .contains("several are given")
    );
    assert!(refused(&[("images", images), ("labels", labels)]).contains("checkpoint"));
    assert!(refused(&[("images", images), ("captions", captions)]).contains("image_embeddings"));
}

#[test]
fn questions_are_asked_again_with_less_to_see() {
    let params = json!({
        "domain": "medical", "seed": 4, "size": 28, "train": 60, "val": 0, "test": 40, "questions": 3, "weights": "chest"
    });
    let data = run(&IngestPhantom, &params, &[]).unwrap();
    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &data["captions"])]).unwrap();
    let size = json!({ "width": 16, "layers": 1, "heads": 2 });
    let params = json!({ "init": "random", "image_size": 28, "patch": 14, "projection": 16, "vision": size, "text": size });
    let initial = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let train = |modality: &str| {
        let params = json!({
            "hidden": 16, "word_width": 8, "autoencoder": "none", "epochs": 10, "lr": 0.02, "modality": modality
        });
        let inputs = [
            ("images", &data["images"]),
            ("questions", &data["questions"]),
            ("checkpoint", &initial["checkpoint"]),
        ];
        run(&crate::finetune::FinetuneVqa, &params, &inputs).unwrap()
    };
    let (both, question) = (train("both"), train("question"));
    let inputs = [
        ("images", &data["images"]),
        ("questions", &data["questions"]),
        ("model", &both["model"]),
        ("question_only", &question["model"]),
    ];
    let params = json!({ "permutations": 3, "additive": 12, "stratum": "organ", "conditions": [] });
    let made = run(&Ablate, &params, &inputs).unwrap();
    let metrics = read(&made["metrics"]).unwrap();
    let (names, methods) = (metrics.strings("metric").unwrap(), metrics.strings("method").unwrap());
    let values = metrics.float64("value").unwrap();
    let figure = |metric: &str, method: &str| {
        let row = (0..metrics.rows()).find(|row| names[*row] == metric && methods[*row] == method);
        values[row.unwrap_or_else(|| panic!("no {metric} of {method}"))].unwrap()
    };
    // The floors know more and more, and what a permutation leaves is what the question gives.
    let accuracy = |method: &str| figure("accuracy", method);
    assert!(accuracy("majority") <= accuracy("answer_type_prior") + 1e-12);
    for condition in [
        "question_type_prior",
        "question_lookup",
        "question_only",
        "image_mean",
        "blank_image",
        "shuffled_image",
    ] {
        assert!((0.0..=1.0).contains(&accuracy(condition)), "{condition}");
    }
    let gap = figure("accuracy_gap", "question_only");
    assert!((gap - (accuracy("full") - accuracy("question_only"))).abs() < 1e-12);
    // An additive model is at most as good as one that may do anything, where nothing was fitted to the test.
    assert!(figure("emap_accuracy", "additive") <= 1.0 && figure("emap_accuracy", "full") <= 1.0);
    let interaction = figure("emap_accuracy", "full") - figure("emap_accuracy", "additive");
    assert!((figure("emap_accuracy_gap", "additive") - interaction).abs() < 1e-12);
    let (lows, highs) = (metrics.float64("ci_low").unwrap(), metrics.float64("ci_high").unwrap());
    for metric in ["emap_accuracy", "emap_accuracy_gap", "prior_distance", "changed_share"] {
        // The gap may be nothing in every resample.
        let has_interval = |row: usize| {
            let interval = lows[row].zip(highs[row]);
            interval.is_some_and(|(low, high)| low < high || metric == "emap_accuracy_gap")
        };
        assert!((0..metrics.rows()).any(|row| names[row] == metric && has_interval(row)), "{metric}");
    }
    let predictions = read(&made["predictions"]).unwrap();
    let (conditions, draws) = (predictions.strings("condition").unwrap(), predictions.int64("draw").unwrap());
    let of = |condition: &str| (0..predictions.rows()).filter(|row| conditions[*row] == condition).count();
    assert_eq!(of("shuffled_question"), 3 * of("full"));
    assert!(
        (0..predictions.rows()).all(|row| draws[row].is_some() == conditions[row].starts_with("shuffled"))
    );
    // The model of the question alone is blind to every change of images.
    let inputs =
        [("images", &data["images"]), ("questions", &data["questions"]), ("model", &question["model"])];
    let made = run(&Ablate, &json!({ "permutations": 2 }), &inputs).unwrap();
    let metrics = read(&made["metrics"]).unwrap();
    let (names, methods) = (metrics.strings("metric").unwrap(), metrics.strings("method").unwrap());
    let values = metrics.float64("value").unwrap();
    for row in 0..metrics.rows() {
        if names[row] == "changed_share" && methods[row] != "shuffled_question" {
            assert_eq!(values[row], Some(0.0), "{}", methods[row]);
        }
    }
}

#[test]
fn a_counterpart_has_the_same_answers_words_and_head() {
    let params = json!({
        "domain": "medical", "seed": 4, "size": 28, "train": 30, "val": 0, "test": 12, "questions": 3, "weights": "chest"
    });
    let data = run(&IngestPhantom, &params, &[]).unwrap();
    let train = |more: serde_json::Value| {
        let mut params = json!({
            "hidden": 16, "word_width": 8, "autoencoder": "none", "epochs": 1, "lr": 0.02, "modality": "question"
        });
        for (name, value) in more.as_object().unwrap() {
            params[name] = value.clone();
        }
        let inputs = [("images", &data["images"]), ("questions", &data["questions"])];
        run(&crate::finetune::FinetuneVqa, &params, &inputs).unwrap()
    };
    let both = train(json!({ "modality": "both" }));
    let ablate = |other: &Made| {
        let inputs = [
            ("images", &data["images"]),
            ("questions", &data["questions"]),
            ("model", &both["model"]),
            ("question_only", &other["model"]),
        ];
        let params = json!({ "conditions": ["question_only"], "additive": 0 });
        run(&Ablate, &params, &inputs).map(|made| read(&made["metrics"]).unwrap())
    };
    let metrics = ablate(&train(json!({}))).unwrap();
    // Open and closed questions are tested by themselves.
    for name in ["mcnemar_p", "mcnemar_open_p", "mcnemar_closed_p_holm", "accuracy_open_equivalence_p"] {
        assert!(figure(&metrics, "question_only", name).is_ok(), "{name}");
    }
    for (more, reason) in [
        (json!({ "min_occurrence": 3 }), "their lists have"),
        (json!({ "unknown_is_last": true }), "vocabularies"),
        (json!({ "hidden": 24 }), "heads"),
        (json!({ "matching": "exact" }), "compared as `normalised` and `exact`"),
    ] {
        let error = ablate(&train(more)).err().unwrap().to_string();
        assert!(error.contains(reason) && error.contains("`question_only`"), "{error}");
    }
}

#[test]
fn independent_labels_are_asked_with_their_opposite() {
    let study = study();
    let labels = read(&study.phantoms["labels"]).unwrap();
    let bits =
        (0..labels.rows()).map(|row| Some(vec![i64::from(row % 2 == 0), i64::from(row % 3 == 0)])).collect();
    let labels = labels
        .replacing("label", crate::table::Column::ListInt64(bits))
        .with_metadata("task", "multi-label, binary-class")
        .with_metadata("label_names", json!(["effusion", "nodule"]).to_string());
    let folder = tempfile::tempdir().unwrap();
    let mut output = pipe_engine::OutputWriter::new(folder.path().to_owned());
    let options = crate::table::WriteOptions::text("{}");
    crate::table::write(&mut output, &crate::table::TableSchema::labels(), &labels, options).unwrap();
    let labels = crate::testing::tree(folder.path(), &study.phantoms["labels"].artifact_type);
    let texts = |ending: &str| json!({ "effusion": [format!("an effusion is{ending} seen")], "nodule": [format!("a nodule is{ending} seen")] });
    let inputs = [("images", &study.phantoms["images"]), ("labels", &labels), ("checkpoint", study.model())];
    let evaluate = crate::evaluate_classify::EvaluateClassify;
    let within = json!({ "prompts": texts(""), "absent": texts(" not"), "stratified": true });
    let error = run(&evaluate, &within, &inputs).err().unwrap().to_string();
    assert!(error.contains("`stratified`"), "{error}");
    // A cosine alone is no probability.
    let alone = json!({ "prompts": texts("") });
    for error in [run(&Ablate, &alone, &inputs).err(), run(&evaluate, &alone, &inputs).err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains("`absent`") && error.contains("effusion is not present."), "{error}");
    }
    let both = json!({ "prompts": texts(""), "absent": texts(" not") });
    let scores = |table: &Table| {
        let rows: Vec<usize> = match table.column("condition") {
            Some(_) => {
                let conditions = table.strings("condition").unwrap();
                (0..table.rows()).filter(|row| conditions[*row] == "full").collect()
            }
            None => (0..table.rows()).collect(),
        };
        table.select(&rows).list_float32("scores").unwrap().to_vec()
    };
    let evaluated = run(&evaluate, &both, &inputs).unwrap();
    let mut params = both.clone();
    params["permutations"] = json!(2);
    params["conditions"] = json!(["nonsense_prompts", "uninformative_prompts", "text_prior"]);
    let (metrics, predictions) = study.ablate(params, &[("labels", &labels), ("checkpoint", study.model())]);
    assert_eq!(scores(&predictions), scores(&read(&evaluated["predictions"]).unwrap()));
    assert_eq!(figure(&metrics, "text_prior", "auroc"), Ok(0.5));
    assert!(figure(&metrics, "nonsense_prompts", "auroc").is_ok());
    // One text for all labels is one score for all of them.
    let conditions = predictions.strings("condition").unwrap();
    let scores = predictions.list_float32("scores").unwrap();
    for row in (0..predictions.rows()).filter(|row| conditions[*row] == "uninformative_prompts") {
        let scores = scores[row].as_ref().unwrap();
        assert!((scores[0] - scores[1]).abs() < 1e-6, "{scores:?}");
    }
}

#[test]
fn a_model_without_numbers_is_neither_embedded_nor_scored() {
    let study = study();
    let (images, labels) = (&study.phantoms["images"], &study.phantoms["labels"]);
    let name = study.model().files.iter().find(|file| file.path.ends_with(".safetensors")).unwrap();
    let (_folder, broken) = crate::testing::poisoned(study.model(), &name.path);
    let refused =
        |kind: &dyn pipe_engine::AnyKind, params: serde_json::Value, inputs: &[(&str, &Artifact)]| {
            let error = run(kind, &params, inputs).err().unwrap().to_string();
            assert!(error.contains("NaN") && error.contains("no finite number"), "{error}");
        };
    refused(&Embed, json!({ "modality": "image" }), &[("images", images), ("checkpoint", &broken)]);
    let inputs = [("images", images), ("labels", labels), ("checkpoint", &broken)];
    let prompts = json!({ "normal": ["normal"], "abnormal": ["an effusion"] });
    let evaluate = crate::evaluate_classify::EvaluateClassify;
    refused(&evaluate, json!({ "prompts": prompts }), &inputs);
    refused(&evaluate, json!({ "neighbours": {} }), &inputs);
    refused(&Ablate, json!({ "prompts": prompts }), &inputs);
}
