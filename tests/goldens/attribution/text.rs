//! Token embeddings of texts, words, and image and question together.

use std::path::Path;

use candle_core::{D, DType, Device, Result, Tensor};
use pipe_attribution::{
    Attribution, Baseline, Coalitions, Evaluator, FeatureAblation, Features, Gradient, InputXGradient,
    Inputs, IntegratedGradients, Joint, KernelShap, Method, Score, ShapleyValues, TextSimilarity, Word,
    token_values,
};
use pipe_models::import::{ImportOptions, import};
use pipe_models::ops::linear;
use pipe_models::{CheckpointFiles, DualEncoder, FoundationModel, MaybeProbe, Trainable, normalise};
use serde_json::{Value as Json, json};

use super::gradients::{VitCase, compare_gap, rule};
use super::networks::{indices, pick, size, sizes};
use super::{BATCH, GRADIENT, OCCLUSION, attribute, open, row};
use crate::harness::{self, Golden};

/// Captum solves its regression in f32.
const KERNEL_SHAP: f64 = 1e-3;
/// Means of many differences of f32 scores.
const SHAPLEY: f64 = 1e-4;

fn rows(tensor: &Tensor, places: &[usize]) -> Tensor {
    let places: Vec<u32> = places.iter().map(|place| *place as u32).collect();
    tensor.index_select(&Tensor::new(places, tensor.device()).unwrap(), 0).unwrap()
}

fn integrated(entry: &Json, baseline: Tensor) -> IntegratedGradients {
    IntegratedGradients {
        steps: size(&entry["steps"]),
        quadrature: rule(&entry["rule"]),
        baseline: Baseline::Tensor(baseline),
        multiply_by_inputs: true,
    }
}

#[test]
fn text_attr() {
    let Some((folder, config)) = open() else { return };
    let case = VitCase::open(&folder, &config);
    let golden = Golden::open(&folder, "text_attr.safetensors");
    let texts = &config["text"];
    let ids = case.ids.narrow(0, 0, size(&texts["texts"])).unwrap();
    let pictures = rows(&case.x, &sizes(&texts["text_i_uses_image"]));
    let clip = &case.network.clip;
    let images = clip.image_tower().embed_images(&pictures, None).unwrap();
    golden.compare("image_embedding_normalised", &normalise(&images).unwrap(), GRADIENT);
    let score = TextSimilarity::new(clip, &ids, &images).unwrap();
    let embeddings = score.embeddings().unwrap();
    golden.compare("token_embeddings", &embeddings, 1e-6);
    let gradient = attribute(&score, &Gradient, &embeddings);
    golden.compare("score", &row(&gradient.scores), GRADIENT);
    golden.compare("gradient_embedding", &gradient.values, GRADIENT);
    let product = attribute(&score, &InputXGradient::default(), &embeddings);
    golden.compare("ixg_embedding", &product.values, GRADIENT);

    let absent = golden.input("baseline_ids");
    let absent = clip.text_tower().token_embeddings(&absent).unwrap();
    for entry in config["integrated_gradients"]["text"].as_array().unwrap() {
        let baseline = match entry["baseline"].as_str().unwrap() {
            "zero embedding" => embeddings.zeros_like().unwrap(),
            _ => absent.clone(),
        };
        let key = entry["key"].as_str().unwrap();
        let ours = attribute(&score, &integrated(entry, baseline), &embeddings);
        golden.compare(key, &ours.values, GRADIENT);
        compare_gap(&golden, &format!("{key}_delta"), &ours, GRADIENT);
        if key == "lig_ids_baseline" {
            after_the_end(&ids, &ours);
        }
    }
    words(&golden, &score, &embeddings, texts);
    answers(&golden, &case, &config, (&ids, &pictures, &embeddings));
    golden.finish();
}

/// No token behind the end mark, whose hidden state is pooled, can matter to a causal text tower.
fn after_the_end(ids: &Tensor, attribution: &Attribution) {
    let ids: Vec<Vec<u32>> = ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    let (_, tokens, width) = attribution.values.dims3().unwrap();
    let values: Vec<f32> = attribution.values.flatten_all().unwrap().to_vec1().unwrap();
    for (ids, values) in ids.iter().zip(values.chunks_exact(tokens * width)) {
        let greatest = ids.iter().max().unwrap();
        let end = ids.iter().position(|id| id == greatest).unwrap();
        assert!(values[(end + 1) * width..].iter().all(|value| *value == 0.0));
    }
}

/// Words present and absent: positions 1 to n, one token each.
fn words(golden: &Golden, score: &TextSimilarity<'_>, embeddings: &Tensor, config: &Json) {
    let counts = indices(&golden.input("word_count"));
    let (most, (_, tokens, width)) = (size(&config["max_words"]), embeddings.dims3().unwrap());
    let device = embeddings.device();
    // The row of the absent word's id, at every position.
    let absent = Tensor::new(vec![size(&config["absent_word_id"]) as u32; tokens], device).unwrap();
    let absent = score.embeddings_of(&absent.unsqueeze(0).unwrap()).unwrap();
    let drawn = golden.input("word_kernelshap_coalitions").to_vec3::<f32>().unwrap();
    let coalitions: Vec<Vec<Vec<bool>>> = drawn
        .iter()
        .zip(&counts)
        .map(|(rows, count)| {
            let present = |row: &Vec<f32>| row[..*count as usize].iter().map(|word| *word > 0.5).collect();
            rows.iter().map(present).collect()
        })
        .collect();
    let all = Inputs::new(embeddings).unwrap();
    let mut found = vec![Vec::new(); 3];
    for (text, count) in counts.iter().enumerate() {
        let words: Vec<Word> =
            (1..=*count as usize).map(|token| Word { place: 0..0, tokens: vec![token] }).collect();
        let features = || Features::of_words(tokens, width, &words).unwrap();
        let baseline = || Baseline::Tensor(absent.clone());
        let of_text = Inputs::of_samples(&embeddings.narrow(0, text, 1).unwrap(), vec![text]).unwrap();
        assert_eq!(of_text.row_shape(), all.row_shape());
        let kernel = KernelShap {
            features: features(),
            baseline: baseline(),
            coalitions: Coalitions::Given(coalitions.clone()),
        };
        let methods: [&dyn Method; 3] = [
            &FeatureAblation { features: features(), baseline: baseline() },
            &ShapleyValues { features: features(), baseline: baseline() },
            &kernel,
        ];
        for (method, found) in methods.into_iter().zip(&mut found) {
            let values = method.attribute(&Evaluator::new(score, BATCH), &of_text).unwrap().values;
            // Every value of a word's embedding has the word's attribution; marks have none.
            let per_token: Vec<f32> =
                values.narrow(2, 0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert!(
                per_token[0] == 0.0 && per_token[*count as usize + 1..].iter().all(|value| *value == 0.0)
            );
            found
                .extend((0..most).map(|word| if word < *count as usize { per_token[word + 1] } else { 0.0 }));
        }
    }
    let scale = golden.input("score").abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (key, values, tolerance) in [
        ("word_ablation", &found[0], OCCLUSION),
        ("word_shapley_exact", &found[1], SHAPLEY),
        ("word_kernelshap", &found[2], KERNEL_SHAP),
    ] {
        let ours = Tensor::from_slice(values, (counts.len(), most), device).unwrap();
        if tolerance == OCCLUSION {
            golden.compare_within(key, &ours, f64::from(scale), tolerance);
        } else {
            golden.compare(key, &ours, tolerance);
        }
    }
}

/// The logit of an answer, as a function of image and question embeddings together.
struct AnswerLogit<'a> {
    joint: Joint,
    case: &'a VitCase,
    ids: &'a Tensor,
    targets: Vec<u32>,
}

impl AnswerLogit<'_> {
    fn logits(
        &self,
        pictures: &Tensor,
        embeddings: &Tensor,
        ids: &Tensor,
        probe: MaybeProbe<'_>,
    ) -> Result<Tensor> {
        let clip = &self.case.network.clip;
        let image = clip.image_tower().embed_images(pictures, probe)?;
        let text = clip.text_tower().embed_token_embeddings(embeddings, ids, probe)?;
        let [first, first_bias, second, second_bias] = &self.case.network.answers;
        let hidden = linear(&Tensor::cat(&[&image, &text], D::Minus1)?, first, Some(first_bias))?.relu()?;
        linear(&hidden, second, Some(second_bias))
    }
}

impl Score for AnswerLogit<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let parts = self.joint.split(input)?;
        let logits = self.logits(&parts[0], &parts[1], &rows(self.ids, samples), probe)?;
        pick(&logits, &self.targets, samples)
    }
}

fn answers(
    golden: &Golden,
    case: &VitCase,
    config: &Json,
    (ids, pictures, embeddings): (&Tensor, &Tensor, &Tensor),
) {
    let joint = Joint::new(&[&pictures.dims()[1..], &embeddings.dims()[1..]]);
    let targets = indices(&golden.input("vqa_target"));
    let score = AnswerLogit { joint: joint.clone(), case, ids, targets };
    golden.compare("vqa_logits", &score.logits(pictures, embeddings, ids, None).unwrap(), GRADIENT);
    let inputs = joint.join(&[pictures, embeddings]).unwrap();
    let product = attribute(&score, &InputXGradient::default(), &inputs).values;
    golden.compare("vqa_ixg_embedding", &joint.split(&product).unwrap()[1], GRADIENT);
    for entry in config["integrated_gradients"]["vqa"].as_array().unwrap() {
        let method = IntegratedGradients {
            baseline: Baseline::Constant(entry["baseline"].as_f64().unwrap() as f32),
            ..integrated(entry, inputs.clone())
        };
        let ours = attribute(&score, &method, &inputs);
        let parts = joint.split(&ours.values).unwrap();
        for (key, part) in entry["keys"].as_array().unwrap().iter().zip(&parts) {
            golden.compare(key.as_str().unwrap(), part, GRADIENT);
        }
        compare_gap(golden, "vqa_ig_delta", &ours, GRADIENT);
        for shares in joint.shares(&ours.values).unwrap() {
            println!("golden attribution/vqa: shares of image and question {shares:?}");
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

/// The tiny BiomedCLIP of the models' goldens.
fn biomed_clip(folder: &Path) -> Box<dyn FoundationModel> {
    let files = ["open_clip_model.safetensors", "open_clip_config.json"];
    let files = CheckpointFiles::new(files.map(|file| (file.to_owned(), folder.join(file))));
    // Numbers of heads do not follow from the shapes of a model as small as this.
    let overrides = json!({
        "vision": { "heads": harness::json(&folder.join("timm_tiny.json"))["vit"]["num_heads"] },
        "text": {
            "num_attention_heads": harness::json(&folder.join("bert/config.json"))["num_attention_heads"],
        },
    });
    let options = ImportOptions { config: overrides, ..ImportOptions::default() };
    import(&files, &options, &Device::Cpu).unwrap().build(Trainable::Frozen).unwrap()
}

#[test]
fn bert_text_attr() {
    let Some((folder, config)) = open() else { return };
    let config = &config["bert_text"];
    let Some(models) = harness::topic(config["model"].as_str().unwrap()) else { return };
    let model = biomed_clip(&models);
    let encoder = model.as_dual_encoder().unwrap();
    let tower = encoder.text_tower();
    let golden = Golden::open(&folder, "bert_text_attr.safetensors");
    let expected = Golden::open(&models, "expected.safetensors");
    let ids = golden.input("input_ids");
    let images = expected.input("image_embeds").narrow(0, 0, size(&config["texts"])).unwrap();
    let mask = tower.attention_mask(&ids).unwrap().unwrap();
    golden.compare("attention_mask", &mask, 0.0);
    let score = TextSimilarity::new(encoder, &ids, &images).unwrap();
    let embeddings = score.embeddings().unwrap();
    golden.compare("word_embeddings", &embeddings, 1e-6);
    let width = embeddings.dims()[2];
    let tokens = |values: &Tensor| {
        let values: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
        Tensor::from_vec(token_values(&values, width), ids.dims(), ids.device()).unwrap()
    };
    let gradient = attribute(&score, &Gradient, &embeddings);
    golden.compare("score", &row(&gradient.scores), GRADIENT);
    golden.compare("gradient_embedding", &gradient.values, GRADIENT);
    let product = attribute(&score, &InputXGradient::default(), &embeddings).values;
    golden.compare("ixg_embedding", &product, GRADIENT);
    golden.compare("token_score_ixg", &tokens(&product), GRADIENT);
    for (kind, key) in config["keys"].as_object().unwrap() {
        let key = key.as_str().unwrap();
        let entry = json!({ "steps": config["ig_steps"], "rule": config["ig_rule"] });
        let baseline_ids = absent(&ids, config, &config[format!("{kind}_id")]);
        golden.compare(&format!("baseline_ids_{kind}"), &baseline_ids, 0.0);
        let baseline = tower.token_embeddings(&baseline_ids).unwrap();
        let ours = attribute(&score, &integrated(&entry, baseline), &embeddings);
        golden.compare(key, &ours.values, GRADIENT);
        golden.compare(&format!("token_score_ig_{kind}"), &tokens(&ours.values), GRADIENT);
        golden.compare(&format!("score_{kind}"), &row(ours.baseline_scores.as_ref().unwrap()), GRADIENT);
        compare_gap(&golden, &format!("{key}_delta"), &ours, GRADIENT);
    }
    golden.finish();
}

/// The ids with every word replaced: marks and padding stay.
fn absent(ids: &Tensor, config: &Json, replacement: &Json) -> Tensor {
    let kept = ["pad_id", "cls_id", "sep_id"].map(|name| size(&config[name]) as u32);
    let ids: Vec<Vec<u32>> = ids.to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    let absent: Vec<Vec<u32>> = ids
        .iter()
        .map(|ids| {
            let words: Vec<Word> = (0..ids.len())
                .filter(|token| !kept.contains(&ids[*token]))
                .map(|token| Word { place: 0..0, tokens: vec![token] })
                .collect();
            pipe_attribution::absent_ids(ids, &words, size(replacement) as u32)
        })
        .collect();
    Tensor::new(absent, &Device::Cpu).unwrap()
}
