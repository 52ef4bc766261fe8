//! Times a published architecture at full size with random weights, and prints its peak memory.
//!
//! `cargo run --release -p pipe-models --example full_size NAME [BATCH] [forward|input|step] [DEVICE] [PRECISION]`
//!
//! `forward` embeds images; `input` also computes the gradient of their embeddings with respect to
//! pixels, weights frozen, as attribution does; `step` computes the gradients of all weights, in f32.
//! `DEVICE` is `cpu` or `cuda:0`, `PRECISION` `f32`, `bf16` or `f16`. On a GPU the first pass also starts the device.

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use pipe_models::device::{DeviceName, Precision};
use pipe_models::random::Key;
use pipe_models::{FoundationModel, PUBLISHED, Trainable, published};
use rayon::prelude::*;

fn main() -> Result<()> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some(config) = published(name) else {
        eprintln!("NAME is one of {}", PUBLISHED.join(", "));
        std::process::exit(2);
    };
    let batch: usize = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let mode = arguments.get(2).map_or("forward", String::as_str);
    let trainable = if mode == "step" { Trainable::All } else { Trainable::Frozen };
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
    if precision != Precision::F32 && mode != "step" {
        model = config.build_frozen(model.tensors(), precision).expect("its own tensors fit");
    }
    println!("{name}: {:.2} GiB after loading", peak_memory());
    let passes = if device.is_cpu() { 3 } else { 12 };
    for pass in 0..passes {
        let input = input(model.as_ref(), batch, &device)?;
        device.synchronize()?;
        let (start, busy) = (Instant::now(), processor_time());
        run(model.as_ref(), &input, mode)?;
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

/// Random pixels, or token ids of a model without an image tower.
fn input(model: &dyn FoundationModel, batch: usize, device: &Device) -> Result<Tensor> {
    if let Some(image) = model.as_image_tower() {
        let shape = image.geometry().input(batch);
        let count = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> =
            (1..=count).into_par_iter().map(|counter| Key(1).uniform(counter) as f32).collect();
        return Tensor::from_vec(values, shape, device);
    }
    let length = model.as_text_tower().map_or(0, |text| text.context_length());
    let ids: Vec<u32> = (0..batch * length).map(|place| 5 + (place % 1000) as u32).collect();
    Tensor::from_vec(ids, (batch, length), device)
}

fn run(model: &dyn FoundationModel, input: &Tensor, mode: &str) -> Result<()> {
    let embeddings = match (model.as_image_tower(), model.as_text_tower()) {
        (Some(image), _) => {
            let pixels = match mode {
                "input" => Var::from_tensor(input)?.into_inner(),
                _ => input.clone(),
            };
            image.embed_images(&pixels, None)?
        }
        (None, Some(text)) => text.embed_texts(input, None)?,
        (None, None) => return Ok(()),
    };
    let sum = embeddings.sum_all()?;
    if mode != "forward" {
        sum.backward()?;
    }
    sum.to_scalar::<f32>().map(|_| ())
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
