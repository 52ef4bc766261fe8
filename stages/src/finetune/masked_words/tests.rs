//! A tiny PMC-CLIP with random weights, and captions of phantoms.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use pipe_engine::{OutputWriter, StageError};
use pipe_models::pmc_clip::{LossWeights, PmcClip};
use pipe_models::random::Key;
use pipe_models::{ModelConfig, Preprocessor, Tokenizer, Trainable};
use serde_json::json;
use tempfile::TempDir;

use super::{Hidden, MaskedWords};
use crate::artifact;
use crate::checkpoint::Checkpoint;
use crate::finetune::FinetuneContrastive;
use crate::finetune::contrastive::Params;
use crate::finetune::pairs::{Batch, Pairs};
use crate::images::{Change, Pixels};
use crate::model::{DEVICE, Model};
use crate::phantom::IngestPhantom;
use crate::table::{Column, read};
use crate::testing::{Made, run, tree};
use crate::tokenizer::TrainTokenizer;

const SIDE: usize = 32;
const CONTEXT: usize = 20;

/// Word pieces of some texts: their words whole, and every letter.
fn tokenizer(texts: &[&str]) -> Tokenizer {
    let mut pieces: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned).to_vec();
    let words: BTreeSet<String> = texts
        .iter()
        .flat_map(|text| text.split(|letter: char| !letter.is_alphanumeric()))
        .map(str::to_lowercase)
        .filter(|word| word.len() > 1)
        .collect();
    pieces.extend(words);
    pieces
        .extend(('a'..='z').chain('0'..='9').flat_map(|letter| [letter.to_string(), format!("##{letter}")]));
    pieces.extend([".", ",", "-", "(", ")", "/", ":", ";"].map(str::to_owned));
    Tokenizer::from_vocabulary(&pieces.join("\n"), true).unwrap()
}

fn config(vocabulary: usize, fusion: bool) -> ModelConfig {
    let fusion = fusion.then(|| json!({ "layers": 1, "heads": 2, "hidden": 16 }));
    let config = json!({
        "image": { "width": 8, "blocks": [1, 1, 1, 1], "image": SIDE }, "pool_heads": 4,
        "text": {
            "vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": CONTEXT,
        },
        "context": CONTEXT, "pooling": "cls", "projection": 16, "fusion": fusion,
    });
    ModelConfig::PmcClip(serde_json::from_value(config).unwrap())
}

fn model(texts: &[&str], fusion: bool) -> Model {
    let tokenizer = tokenizer(texts);
    let network = config(tokenizer.vocabulary(), fusion).random(3, &DEVICE, Trainable::All).unwrap();
    Model::new(network, Some(Preprocessor::clip(SIDE)), Some(tokenizer))
}

const CAPTIONS: [&str; 5] = [
    "axial slice with a small nodule of the left lung",
    "chest radiograph without a finding",
    "a cyst of the right kidney, hyperdense",
    "two round opacities",
    "fracture of the left femur",
];

fn words(model: &Model, captions: &[&str], seed: u64) -> MaskedWords<'static> {
    let tokenizer: &'static Tokenizer = Box::leak(Box::new(model.tokenizer().unwrap().clone()));
    MaskedWords {
        tokenizer,
        positions: CONTEXT,
        pad: 0,
        vocabulary: tokenizer.words().into_iter().map(|id| tokenizer.token(id)).collect(),
        rows: captions.iter().enumerate().map(|(id, text)| (id.to_string(), (*text).to_owned())).collect(),
        seed,
    }
}

/// Images of noise.
struct Noise;

impl Pixels for Noise {
    fn ids(&self) -> &[String] {
        &[]
    }
    fn splits(&self) -> &[String] {
        &[]
    }
    fn groups(&self) -> &[Option<String>] {
        &[]
    }
    fn batch(&self, rows: &[usize]) -> Result<Tensor, StageError> {
        self.changed_batch(rows, None)
    }
    fn changed_batch(&self, rows: &[usize], _: Option<&dyn Change>) -> Result<Tensor, StageError> {
        let values = rows.iter().flat_map(|row| {
            (1..=3 * SIDE * SIDE).map(|draw| Key(*row as u64 + 7).normal(draw as u64) as f32)
        });
        Ok(Tensor::from_vec(values.collect::<Vec<_>>(), (rows.len(), 3, SIDE, SIDE), &DEVICE).unwrap())
    }
    fn map_shape(&self) -> Vec<usize> {
        vec![SIDE; 2]
    }
    fn black(&self) -> Vec<f32> {
        vec![0.0; 3]
    }
}

#[test]
fn labels_lie_on_the_words_that_were_chosen() {
    let model = model(&CAPTIONS[..3], true);
    // "radiographs" and others have several pieces.
    let captions = ["radiographs of nodules, axial slice", "a kidneys opacity fracture of the left lungs"];
    let words = words(&model, &captions, 5);
    let mask = model.encode("[MASK]").unwrap()[1];
    let (mut masked, mut others, mut asked) = (0usize, 0usize, 0i32);
    for (row, caption) in captions.iter().enumerate() {
        let plain = model.encode(caption).unwrap();
        for epoch in 0..1000 {
            let Hidden { ids, labels } = words.of(row, epoch).unwrap();
            for place in 0..CONTEXT {
                if labels[place] == 0 {
                    assert_eq!(ids[place], plain[place], "what is not asked for is seen");
                    continue;
                }
                assert_eq!(labels[place], plain[place], "what is asked for stood there");
                asked += 1;
                masked += usize::from(ids[place] == mask);
                others += usize::from(ids[place] != mask && ids[place] != plain[place]);
            }
        }
        // Begin and end are asked for, too.
        let hidden = words.of(row, 0).unwrap();
        assert_eq!((hidden.labels[0], hidden.ids[0]), (2, 2));
        assert!(hidden.asked() >= 2);
    }
    let asked = f64::from(asked - 2 * 2 * 1000);
    assert!((masked as f64 / asked - 0.8).abs() < 0.05 && others > 0, "{masked} {others} {asked}");
}

#[test]
fn masks_depend_on_seed_id_and_epoch_alone() {
    let model = model(&CAPTIONS, true);
    let ids = |seed: u64, captions: &[&str], epoch: i64| -> Vec<Vec<u32>> {
        let words = words(&model, captions, seed);
        (0..captions.len()).map(|row| words.of(row, epoch).unwrap().ids).collect()
    };
    let of = |seed: u64, epoch: i64| ids(seed, &CAPTIONS, epoch);
    assert_eq!(of(1, 3)[..2], ids(1, &CAPTIONS[..2], 3));
    assert!((0..4).any(|epoch| of(1, epoch) != of(1, epoch + 1)));
    assert!((0..4).any(|seed| of(seed, 0) != of(seed + 1, 0)));
}

#[test]
fn the_gradient_is_that_of_both_losses_whole_and_in_pieces() {
    let model = model(&CAPTIONS, true);
    let words = words(&model, &CAPTIONS, 2);
    let hidden: Vec<Hidden> = (0..5).map(|row| words.of(row, 4).unwrap()).collect();
    let encoded = |(row, text): (usize, &&str)| (row, model.encode(text).unwrap(), row);
    let pairs = Pairs { rows: CAPTIONS.iter().enumerate().map(encoded).collect() };
    let rows = [3, 0, 4, 1, 2];
    let hidden: Vec<Hidden> = rows
        .iter()
        .map(|row| Hidden { ids: hidden[*row].ids.clone(), labels: hidden[*row].labels.clone() })
        .collect();
    let of = |mlm: f64, pieces: i64| {
        let params = Params { mlm, pieces, ..Params::default() };
        let batch = Batch { rows: &rows, hidden: Some(&hidden), step: 0 };
        pairs.gradients(&params, &model, &Noise, batch).unwrap()
    };
    let (value, gradients) = of(0.5, 1);

    let ModelConfig::PmcClip(pmc) = model.network.model_config() else { panic!() };
    let reference = PmcClip::from_tensors(pmc, model.network.tensors(), Trainable::All).unwrap();
    let matrix = |of: fn(&Hidden) -> &Vec<u32>| {
        let values: Vec<u32> = hidden.iter().flat_map(|caption| of(caption).clone()).collect();
        Tensor::from_vec(values, (5, CONTEXT), &DEVICE).unwrap()
    };
    let (ids, labels) = (matrix(|caption| &caption.ids), matrix(|caption| &caption.labels));
    let pixels = Noise.batch(&rows).unwrap();
    let losses = reference.losses(&pixels, &ids, &labels, LossWeights::default(), None).unwrap();
    let scalar = |tensor: &Tensor| f64::from(tensor.to_scalar::<f32>().unwrap());
    assert!((value - scalar(&losses.total)).abs() < 1e-5 * value, "{value}");
    assert!((of(1.0, 1).0 - scalar(&losses.masked_words)).abs() < 1e-5 * value);

    let variables = model.network.variables();
    let (in_pieces, other) = of(0.5, 3);
    assert!((in_pieces - value).abs() < 1e-5 * value);
    let greatest = |values: &Tensor| scalar(&values.abs().unwrap().max_all().unwrap());
    for (name, variable) in variables {
        let (Some(whole), Some(pieces)) = (gradients.get(variable), other.get(variable)) else {
            assert!(gradients.get(variable).is_none() && other.get(variable).is_none(), "{name}");
            continue;
        };
        let scale = greatest(whole).max(1e-4);
        assert!(greatest(&(whole - pieces).unwrap()) < 1e-3 * scale, "{name}");
    }
    assert!(gradients.get(&variables["mlm_projection"]).is_some());

    // Along the gradient, scaled for each tensor: every part of the model has its share.
    let before: BTreeMap<&str, Tensor> =
        variables.iter().map(|(name, variable)| (name.as_str(), variable.copy().unwrap())).collect();
    let directions: BTreeMap<&str, Tensor> = variables
        .iter()
        .filter_map(|(name, variable)| {
            let gradient = gradients.get(variable)?;
            let size = greatest(gradient);
            (size > 1e-6).then(|| (name.as_str(), (gradient / size).unwrap()))
        })
        .collect();
    let slope: f64 = directions
        .iter()
        .map(|(name, way)| {
            let gradient = gradients.get(&variables[*name]).unwrap();
            scalar(&(gradient * way).unwrap().sum_all().unwrap())
        })
        .sum();
    let at = |step: f64| {
        for (name, way) in &directions {
            variables[*name].set(&(&before[name] + (way * step).unwrap()).unwrap()).unwrap();
        }
        of(0.5, 1).0
    };
    let step = 5e-4;
    let difference = (at(step) - at(-step)) / (2.0 * step);
    assert!((difference - slope).abs() < 0.03 * slope, "{difference} {slope}");
}

fn pairs_and_captions() -> (Made, Vec<String>) {
    let params =
        json!({ "domain": "medical", "weights": "chest", "size": 32, "seed": 4, "train": 24, "test": 0 });
    let made = run(&IngestPhantom, &params, &[]).unwrap();
    let captions = read(&made["captions"]).unwrap();
    let texts = captions.strings("caption").unwrap().into_iter().map(str::to_owned).collect();
    (made, texts)
}

#[test]
fn words_are_learned_beside_pairs() {
    let (made, texts) = pairs_and_captions();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let folder = TempDir::new().unwrap();
    let checkpoint = |fusion: bool| {
        let folder = folder.path().join(fusion.to_string());
        std::fs::create_dir(&folder).unwrap();
        model(&texts, fusion).save(&mut OutputWriter::new(folder.clone())).unwrap();
        tree(&folder, artifact::CHECKPOINT.0)
    };
    let trained = |checkpoint: &pipe_engine::Artifact, mlm: f64| {
        let inputs =
            [("images", &made["images"]), ("captions", &made["captions"]), ("checkpoint", checkpoint)];
        run(&FinetuneContrastive, &json!({ "epochs": 6, "batch": 8, "lr": 5e-3, "mlm": mlm }), &inputs)
    };
    let whole = checkpoint(true);
    let log = read(&trained(&whole, 1.0).unwrap()["log"]).unwrap();
    let Some(Column::Float64(values)) = log.column("value") else { panic!() };
    let metrics = log.strings("metric").unwrap();
    let losses: Vec<f64> =
        (0..log.rows()).filter(|row| metrics[*row] == "loss").filter_map(|row| values[row]).collect();
    assert!(losses[5] < 0.8 * losses[0], "{losses:?}");
    assert!(trained(&whole, 0.5).is_ok());
    let split = checkpoint(false);
    let error = trained(&split, 0.5).err().unwrap().to_string();
    assert!(error.contains("fusion transformer"), "{error}");
    assert!(trained(&split, 0.0).is_ok());

    let tokenizer =
        run(&TrainTokenizer, &json!({ "vocab_size": 600 }), &[("text", &made["captions"])]).unwrap();
    let size = json!({ "width": 16, "layers": 1, "heads": 2 });
    let params = json!({ "init": "random", "image_size": 32, "patch": 16, "projection": 16, "vision": size, "text": size });
    let clip = run(&Checkpoint, &params, &[("tokenizer", &tokenizer["tokenizer"])]).unwrap();
    let error = trained(&clip["checkpoint"], 0.5).err().unwrap().to_string();
    assert!(error.contains("`mlm`") && error.contains("clip"), "{error}");
}
