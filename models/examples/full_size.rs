//! Times a published architecture at full size with random weights, and prints its peak memory.
//!
//! `cargo run --release -p pipe-models --example full_size NAME [BATCH] [forward|input|step]`
//!
//! `forward` embeds images; `input` also computes the gradient of their embeddings with respect to
//! pixels, weights frozen, as attribution does; `step` computes the gradients of all weights.

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
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
    let model = config.random(1, &Device::Cpu, trainable).expect("a published model fits");
    println!("{name}: {:.2} GiB after loading", peak_memory());
    for pass in 0..3 {
        let start = Instant::now();
        run(model.as_ref(), batch, mode)?;
        let seconds = start.elapsed().as_secs_f64();
        let rate = batch as f64 / seconds;
        println!(
            "{name} {mode} batch {batch} pass {pass}: {seconds:.3} s, {rate:.2} per second, peak {:.2} GiB",
            peak_memory()
        );
    }
    Ok(())
}

fn run(model: &dyn FoundationModel, batch: usize, mode: &str) -> Result<()> {
    let embeddings = match (model.as_image_tower(), model.as_text_tower()) {
        (Some(image), _) => {
            let shape = image.geometry().input(batch);
            let count = shape.iter().product::<usize>() as u64;
            let values: Vec<f32> =
                (1..=count).into_par_iter().map(|counter| Key(1).uniform(counter) as f32).collect();
            let pixels = Tensor::from_vec(values, shape, &Device::Cpu)?;
            let pixels = match mode {
                "input" => Var::from_tensor(&pixels)?.into_inner(),
                _ => pixels,
            };
            image.embed_images(&pixels, None)?
        }
        (None, Some(text)) => {
            let tokens = batch * text.context_length();
            let ids: Vec<u32> = (0..tokens).map(|place| 5 + (place % 1000) as u32).collect();
            let ids = Tensor::from_vec(ids, (batch, text.context_length()), &Device::Cpu)?;
            text.embed_texts(&ids, None)?
        }
        (None, None) => return Ok(()),
    };
    let sum = embeddings.sum_all()?;
    if mode != "forward" {
        sum.backward()?;
    }
    sum.to_scalar::<f32>().map(|_| ())
}

/// The greatest resident size of the process so far, in GiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / f64::from(1 << 20)
}
