//! Learning rates, parameter groups and low-rank adaptation.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use pipe_models::clip::ClipModel;
use pipe_models::ops::linear;
use pipe_models::train::{
    AdamW, AdamWOptions, Lora, LoraOptions, Schedule, WarmUp, layer_of, layer_wise, loss,
};
use pipe_models::{CheckpointFiles, DualEncoder, Trainable, checkpoint};
use serde_json::Value as Json;

use crate::harness::{self, Golden};

fn number(json: &Json, key: &str) -> f64 {
    json[key].as_f64().unwrap_or_else(|| panic!("`{key}` is {}", json[key]))
}

fn assert_close(label: &str, pairs: impl Iterator<Item = (f64, f64)>) {
    let worst = pairs
        .map(|(ours, golden)| (ours - golden).abs() / golden.abs().max(f64::MIN_POSITIVE))
        .fold(0.0, f64::max);
    println!("golden models/schedule.json#{label} rel={worst:.1e}");
    assert!(worst <= 1e-12, "{label}: {worst}");
}

#[test]
fn learning_rates() {
    let Some(folder) = harness::topic("models") else { return };
    let golden = harness::json(&folder.join("schedule.json"));
    let case = &golden["warmup_cosine"];
    for (key, begin, floor) in [
        ("lr", WarmUp::FromOneStep, 0.0),
        ("lr_hf", WarmUp::FromZero, 0.0),
        ("lr_with_floor", WarmUp::FromOneStep, number(case, "min_factor")),
    ] {
        let schedule = Schedule {
            rate: number(case, "base_lr"),
            warmup: number(case, "warmup_steps") as u64,
            begin,
            total: number(case, "total_steps") as u64,
            floor,
        };
        let rates = case[key].as_array().unwrap();
        assert_eq!(rates.len() as u64, schedule.total, "{key}");
        let ours = (0..).map(|step| schedule.at(step));
        // A rate of exactly zero has no relative error.
        assert_close(
            &format!("warmup_cosine.{key}"),
            ours.zip(rates).map(|(ours, rate)| (ours + 1e-300, rate.as_f64().unwrap() + 1e-300)),
        );
    }
}

/// Which parameters of the tiny CLIP decay.
#[test]
fn decay_groups() {
    let Some(folder) = harness::topic("models") else { return };
    let golden = harness::json(&folder.join("schedule.json"));
    let groups = &golden["groups"];
    let files = CheckpointFiles::folder(&folder.join(groups["base_model"].as_str().unwrap())).unwrap();
    let model = ClipModel::load(&files, &Device::Cpu, Trainable::All).unwrap();
    let assignment = groups["assignment"].as_object().unwrap();
    let (mut counts, mut elements) = (BTreeMap::<&str, u64>::new(), BTreeMap::<&str, u64>::new());
    for (name, variable) in model.variables() {
        let group = AdamW::matrices_decay(name, variable);
        let group_name = if group.decay { "decay" } else { "no_decay" };
        assert_eq!(assignment[name], group_name, "{name}");
        assert_eq!(group.rate, 1.0);
        *counts.entry(group_name).or_default() += 1;
        *elements.entry(group_name).or_default() += variable.elem_count() as u64;
    }
    assert_eq!(model.variables().len(), assignment.len());
    for (group, count) in counts {
        assert_eq!(groups["counts"][group], count, "{group}");
        assert_eq!(groups["elements"][group], elements[group], "{group}");
    }
    println!("golden models/schedule.json#groups {} parameters equal", assignment.len());
}

#[test]
fn layer_wise_decay() {
    let Some(folder) = harness::topic("models") else { return };
    let golden = harness::json(&folder.join("schedule.json"));
    let case = &golden["layerwise"];
    let (blocks, decay) = (number(case, "blocks") as usize, number(case, "decay"));
    let examples = case["examples"].as_array().unwrap();
    for example in examples {
        let name = example["name"].as_str().unwrap();
        assert_eq!(example["layer_id"], layer_of(name, blocks), "{name}");
        let axes = if number(example, "weight_decay") > 0.0 { 2 } else { 1 };
        assert_eq!(layer_wise(name, axes, blocks, decay).decay, axes == 2);
    }
    assert_close(
        "layerwise.examples",
        examples.iter().map(|example| {
            let name = example["name"].as_str().unwrap();
            (layer_wise(name, 2, blocks, decay).rate, number(example, "multiplier"))
        }),
    );
    // The multiplier of a layer, by any name of it.
    let name_of = |layer: usize| match layer {
        0 => "embeddings.class_embedding".to_owned(),
        layer if layer <= blocks => format!("encoder.layers.{}.mlp.fc1.weight", layer - 1),
        _ => "head.weight".to_owned(),
    };
    let rates = |base: f64| {
        (0..blocks + 2).map(move |layer| base * layer_wise(&name_of(layer), 2, blocks, decay).rate)
    };
    let numbers =
        |json: &Json| -> Vec<f64> { json.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    assert_close("layerwise.multiplier_by_id", rates(1.0).zip(numbers(&case["multiplier_by_id"])));
    let warmup = &golden["warmup_cosine"];
    let schedule = Schedule {
        rate: number(warmup, "base_lr"),
        warmup: number(warmup, "warmup_steps") as u64,
        begin: WarmUp::FromOneStep,
        total: number(warmup, "total_steps") as u64,
        floor: 0.0,
    };
    for (step, expected) in case["lr_at_step"].as_object().unwrap() {
        let base = schedule.at(step.parse().unwrap());
        assert_close(&format!("layerwise.lr_at_step.{step}"), rates(base).zip(numbers(expected)));
    }
}

/// The golden's `lora.BLOCK.LETTER` as the name of the weight of the vision tower.
fn weight(block: usize, letter: &str) -> String {
    format!("vision_model.encoder.layers.{block}.self_attn.{letter}_proj.weight")
}

/// A variable's name in the golden.
fn golden_names(layers: usize) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for block in 0..layers {
        for letter in ["q", "v"] {
            for factor in ["A", "B"] {
                let ours = format!("{}.lora_{factor}.0", weight(block, letter));
                names.insert(ours, format!("lora.{block}.{letter}.{factor}"));
            }
        }
    }
    names
}

/// f32 against the float64 run rounded to f32.
const ADAPTED: f64 = 2e-5;

/// Two steps of LoRA on the vision tower and a head, and the merged weights.
#[test]
fn low_rank_adaptation() {
    let Some(folder) = harness::topic("models") else { return };
    let golden = Golden::open(&folder, "lora-step.safetensors");
    let constants = golden.metadata(&folder, "lora-step.safetensors");
    let constant = |key: &str| -> f64 { constants[key].parse().unwrap() };
    let files = CheckpointFiles::folder(&folder.join(&constants["base"])).unwrap();
    let base = checkpoint::tensors(&files, &Device::Cpu).unwrap();
    let options = LoraOptions { rank: constant("rank") as usize, alpha: constant("alpha") };
    let lora = Lora::new(&base, options, |name| name.starts_with("vision_model."), 0).unwrap();
    let names = golden_names(constant("layers") as usize);
    let mut variables: BTreeMap<String, Var> =
        lora.variables().into_iter().map(|(name, variable)| (names[&name].clone(), variable)).collect();
    assert_eq!(variables.len(), names.len());
    for name in ["head.weight", "head.bias"] {
        variables.insert(name.to_owned(), Var::from_tensor(&golden.input(&format!("init.{name}"))).unwrap());
    }
    for (name, variable) in &variables {
        let first = golden.input(&format!("init.{name}"));
        if name.ends_with(".A") {
            // Our own draw lies in the range that the definition gives.
            let bound = 1.0 / (first.dim(1).unwrap() as f32).sqrt();
            for values in [&first, variable.as_tensor()] {
                let values: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
                assert!(values.iter().all(|value| value.abs() <= bound), "{name}");
            }
        }
        variable.set(&first).unwrap();
    }

    let config = pipe_models::ClipConfig::from_json(&files.text("config.json").unwrap()).unwrap();
    let build = |tensors: BTreeMap<String, Tensor>| {
        ClipModel::from_tensors(config.clone(), tensors, Trainable::Frozen).unwrap()
    };
    let (pixels, labels) = (golden.input("in.pixels"), golden.input("in.labels"));
    let embed = |tensors| build(tensors).image_tower().embed_images(&pixels, None).unwrap();
    let logits = |embeddings: &Tensor| {
        linear(embeddings, variables["head.weight"].as_tensor(), Some(variables["head.bias"].as_tensor()))
            .unwrap()
    };
    let labels = labels.to_dtype(DType::U32).unwrap();
    let loss_of = || loss::cross_entropy(&logits(&embed(lora.apply(&base).unwrap())), &labels).unwrap();

    let embeddings = embed(lora.apply(&base).unwrap());
    golden.compare("out.image_embeds", &embeddings, ADAPTED);
    golden.compare("out.logits", &logits(&embeddings), ADAPTED);
    let adamw = AdamWOptions {
        beta1: constant("beta1"),
        beta2: constant("beta2"),
        epsilon: constant("eps"),
        weight_decay: constant("weight_decay"),
    };
    let mut optimiser = AdamW::new(&variables, adamw, AdamW::matrices_decay);
    for step in 0..constant("steps") as usize {
        let loss = loss_of();
        golden.compare(&format!("out.loss.{step}"), &loss, ADAPTED);
        let gradients = loss.backward().unwrap();
        for (name, variable) in &variables {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name} has no gradient"));
            golden.compare(&format!("grad.{step}.{name}"), gradient, 1e-4);
        }
        optimiser.step(&gradients, constant("lr"), 1.0).unwrap();
        for (name, variable) in &variables {
            golden.compare(&format!("after.{}.{name}", step + 1), variable, 1e-4);
        }
    }
    golden.compare(&format!("out.loss.{}", constant("steps")), &loss_of(), ADAPTED);

    // What is exported is an ordinary model.
    let merged = lora.merge(&base).unwrap();
    for block in 0..constant("layers") as usize {
        for letter in ["q", "v"] {
            let name = weight(block, letter);
            golden.compare(&format!("merged.{name}"), &merged[&name], ADAPTED);
        }
        let rows = ["q", "k", "v"].map(|letter| merged[&weight(block, letter)].clone());
        golden.compare(&format!("merged_in_proj.{block}.weight"), &Tensor::cat(&rows, 0).unwrap(), ADAPTED);
        let packed = merge_packed(&base, block, &variables, options);
        golden.compare(&format!("merged_in_proj.{block}.weight"), &packed, ADAPTED);
    }
    golden.compare("out.image_embeds_after", &embed(merged), ADAPTED);
    golden.finish();
}

/// The same adapters on a weight in OpenAI's layout, queries, keys and values packed.
fn merge_packed(
    base: &BTreeMap<String, Tensor>,
    block: usize,
    variables: &BTreeMap<String, Var>,
    options: LoraOptions,
) -> Tensor {
    let rows = ["q", "k", "v"].map(|letter| base[&weight(block, letter)].clone());
    let name = "visual.transformer.resblocks.0.attn.in_proj_weight".to_owned();
    let packed = BTreeMap::from([(name.clone(), Tensor::cat(&rows, 0).unwrap())]);
    let lora = Lora::new(&packed, options, |_| true, 0).unwrap();
    for (ours, variable) in lora.variables() {
        let letter = if ours.ends_with(".0") { "q" } else { "v" };
        let factor = if ours.contains("lora_A") { "A" } else { "B" };
        variable.set(variables[&format!("lora.{block}.{letter}.{factor}")].as_tensor()).unwrap();
    }
    lora.merge(&packed).unwrap()[&name].clone()
}
