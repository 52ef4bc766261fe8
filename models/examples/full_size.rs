//! Times a published architecture at full size with random weights, and prints its peak memory.
//!
//! `cargo run --release -p pipe-models --example full_size NAME [BATCH] [forward|input|step|train] [DEVICE] [PRECISION]`
//!
//! `NAME` is a published architecture: its image tower, or its text tower if it has no other. `NAME/text` is the text
//! tower of one with both, `NAME/fusion` both with the transformer that predicts words over them (PMC-CLIP).
//!
//! `forward` embeds images; `input` also computes the gradient of their embeddings with respect to
//! pixels, weights frozen, as attribution does; `step` computes the gradients of all weights, in f32. `train` is a whole
//! step of training on pairs, whatever the part: both towers, the contrastive loss, the gradients of all weights, and
//! AdamW with its moments.
//! `DEVICE` is `cpu` or `cuda:0`, `PRECISION` `f32`, `bf16` or `f16`. On a GPU the first pass also starts the device.

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var, bail};
use pipe_models::device::{DeviceName, Precision};
use pipe_models::random::Key;
use pipe_models::train::{AdamW, AdamWOptions, loss};
use pipe_models::{FoundationModel, PUBLISHED, TextTower, Trainable, published};
use rayon::prelude::*;

/// What is measured of a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Image,
    Text,
    Fusion,
}

fn main() -> Result<()> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let (architecture, part) = match name.split_once('/') {
        None => (name, None),
        Some((architecture, "text")) => (architecture, Some(Part::Text)),
        Some((architecture, "fusion")) => (architecture, Some(Part::Fusion)),
        Some(_) => ("", None),
    };
    let Some(config) = published(architecture) else {
        eprintln!("NAME is one of {}, with `/text` or `/fusion` behind it", PUBLISHED.join(", "));
        std::process::exit(2);
    };
    let batch: usize = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mode = arguments.get(2).map_or("forward", String::as_str);
    let trains = matches!(mode, "step" | "train");
    let trainable = if trains { Trainable::All } else { Trainable::Frozen };
    let device = match arguments.get(3).map_or("cpu", String::as_str).parse::<DeviceName>() {
        Ok(device) => device.open().map_err(|error| error.to_string()),
        Err(problem) => Err(problem),
    };
    let device = device.unwrap_or_else(|problem| {
        eprintln!("{problem}");
        std::process::exit(2);
    });
    let precision = match arguments.get(4).map_or("f32", String::as_str) {
        "bf16" => Precision::Bf16,
        "f16" => Precision::F16,
        _ => Precision::F32,
    };
    let mut model = config.random(1, &device, trainable).expect("a published model fits");
    if precision != Precision::F32 && !trains {
        model = config.build_frozen(model.tensors(), precision).expect("its own tensors fit");
    }
    let model = model.as_ref();
    let part = part.unwrap_or(if model.as_image_tower().is_some() { Part::Image } else { Part::Text });
    println!("{name}: {:.2} GiB after loading", peak_memory());
    // Its moments are memory that no other mode has.
    let adamw = || AdamW::new(model.variables(), AdamWOptions::default(), AdamW::matrices_decay);
    let mut optimiser = (mode == "train").then(adamw);
    let passes = if device.is_cpu() { 3 } else { 12 };
    for pass in 0..passes {
        let pixels =
            if part == Part::Text && mode != "train" { None } else { pixels(model, batch, &device)? };
        let ids = if part == Part::Image && mode != "train" { None } else { ids(model, batch, &device)? };
        device.synchronize()?;
        let (start, busy) = (Instant::now(), processor_time());
        match &mut optimiser {
            Some(optimiser) => train(model, optimiser, pixels.as_ref(), ids.as_ref())?,
            None => run(model, part, pixels.as_ref(), ids.as_ref(), mode)?,
        }
        device.synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = batch as f64 / seconds;
        println!(
            "{name} {mode} batch {batch} pass {pass}: {seconds:.3} s, {rate:.2} per second, {:.2} s of all cores, \
             peak {:.2} GiB",
            processor_time() - busy,
            peak_memory()
        );
    }
    Ok(())
}

/// Random pixels, if the model takes any.
fn pixels(model: &dyn FoundationModel, batch: usize, device: &Device) -> Result<Option<Tensor>> {
    let Some(image) = model.as_image_tower() else { return Ok(None) };
    let shape = image.geometry().input(batch);
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> =
        (1..=count).into_par_iter().map(|counter| Key(1).uniform(counter) as f32).collect();
    Tensor::from_vec(values, shape, device).map(Some)
}

/// Token ids without padding, if the model takes any.
fn ids(model: &dyn FoundationModel, batch: usize, device: &Device) -> Result<Option<Tensor>> {
    let Some(text) = model.as_text_tower() else { return Ok(None) };
    let length = text.context_length();
    let ids: Vec<u32> = (0..batch * length).map(|place| 5 + (place % 1000) as u32).collect();
    Tensor::from_vec(ids, (batch, length), device).map(Some)
}

/// One pass of a part, the sum of its results taken as what is differentiated.
fn run(
    model: &dyn FoundationModel,
    part: Part,
    pixels: Option<&Tensor>,
    ids: Option<&Tensor>,
    mode: &str,
) -> Result<()> {
    let pixels = match pixels {
        Some(pixels) if mode == "input" => Some(Var::from_tensor(pixels)?.into_inner()),
        pixels => pixels.cloned(),
    };
    let images = || match (model.as_image_tower(), &pixels) {
        (Some(tower), Some(pixels)) => tower.embed_images(pixels, None),
        _ => bail!("the model has no image tower"),
    };
    let of_text = || match (model.as_text_tower(), ids) {
        (Some(tower), Some(ids)) => Ok((tower, ids)),
        _ => bail!("the model has no text tower"),
    };
    let result = match part {
        Part::Image => images()?,
        Part::Text => {
            let (tower, ids): (&dyn TextTower, _) = of_text()?;
            tower.embed_texts(ids, None)?
        }
        Part::Fusion => {
            let Some(predictor) = model.as_word_predictor() else { bail!("the model predicts no words") };
            let (tower, ids) = of_text()?;
            let hidden = tower.hidden_states(&tower.token_embeddings(ids)?, ids, None)?;
            predictor.word_log_probabilities(&hidden, &images()?, None)?
        }
    };
    let sum = result.sum_all()?;
    if mode != "forward" {
        sum.backward()?;
    }
    sum.to_scalar::<f32>().map(|_| ())
}

/// A step of training on pairs.
fn train(
    model: &dyn FoundationModel,
    optimiser: &mut AdamW,
    pixels: Option<&Tensor>,
    ids: Option<&Tensor>,
) -> Result<()> {
    let (Some(towers), Some(pixels), Some(ids)) = (model.as_dual_encoder(), pixels, ids) else {
        bail!("the model has one tower")
    };
    let images = towers.image_tower().embed_images(pixels, None)?;
    let texts = towers.text_tower().embed_texts(ids, None)?;
    let loss = loss::info_nce(&towers.logits(&images, &texts)?, &[])?;
    let gradients = loss.backward()?;
    loss.to_scalar::<f32>()?;
    // What was kept for the backward pass is not needed for the step.
    drop((images, texts, loss));
    optimiser.step(&gradients, 1e-6, 1.0)
}

/// Seconds that all threads have computed so far; on a busy machine these say more than those that have passed. 0 where
/// the system does not tell.
fn processor_time() -> f64 {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = status.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Of user and of system, in hundredths of a second.
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The greatest resident size of the process so far, in GiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / f64::from(1 << 20)
}
