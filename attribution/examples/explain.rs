//! Times attribution methods on a published architecture at full size with random weights.
//!
//! `cargo run --release -p pipe-attribution --example explain METHOD [ARCHITECTURE] [SAMPLES] [BATCH] [ROUNDS]`
//!
//! METHOD is `forward` or `gradient` (the bare tower, as many batches as samples fill), `input_x_gradient`,
//! `integrated_gradients` (16 steps), `occlusion` (windows of 32 pixels, 32 apart) or `rise` (64 masks). What is explained
//! is one value of the embedding. A pass of `gradient` and of the first two methods is one way forward and back.

use std::time::Instant;

use candle_core::{Device, Result, Tensor, Var};
use pipe_attribution::{
    Baseline, Evaluator, InputXGradient, Inputs, IntegratedGradients, Method, Occlusion, Rise, Score,
};
use pipe_models::random::Key;
use pipe_models::{ImageTower, MaybeProbe, PUBLISHED, Trainable, published};
use rayon::prelude::*;

/// Of integrated gradients.
const STEPS: usize = 16;
/// Side of a window of occlusion, and how far windows stand apart.
const WINDOW: usize = 32;
/// Of RISE.
const MASKS: usize = 64;

/// One value of the embedding: that of the sample's index.
struct Value<'a>(&'a dyn ImageTower);

impl Score for Value<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let places: Vec<u32> = samples.iter().map(|sample| *sample as u32).collect();
        let places = Tensor::from_vec(places, (samples.len(), 1), input.device())?;
        self.0.embed_images(input, probe)?.gather(&places, 1)?.squeeze(1)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text =
        |place: usize, default: &str| arguments.get(place).cloned().unwrap_or_else(|| default.to_owned());
    let number = |place: usize, default: usize| {
        arguments.get(place).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (method, architecture) = (text(0, "forward"), text(1, "vit-b-16"));
    let (count, batch, rounds) = (number(2, 8), number(3, 8), number(4, 3));
    let Some(config) = published(&architecture) else {
        eprintln!("ARCHITECTURE is one of {}", PUBLISHED.join(", "));
        std::process::exit(2);
    };
    let model = config.random(1, &Device::Cpu, Trainable::Frozen)?;
    let Some(tower) = model.as_image_tower() else {
        eprintln!("`{architecture}` sees no images");
        std::process::exit(2);
    };
    let shape = tower.geometry().input(count);
    let values = shape.iter().product::<usize>() as u64;
    let images: Vec<f32> = (1..=values).into_par_iter().map(|draw| Key(1).normal(draw) as f32).collect();
    let images = Tensor::from_vec(images, shape, &Device::Cpu)?;
    let score = Value(tower);
    for round in 0..rounds {
        let start = Instant::now();
        let passes = run(&method, &score, &images, batch)?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{method} {architecture} samples {count} round {round}: {seconds:.4} s, {:.3} passes per second, peak {:.3} GiB",
            passes as f64 / seconds,
            peak_memory()
        );
    }
    Ok(())
}

/// Explains the images once; the number of passes through the tower.
fn run(method: &str, score: &Value<'_>, images: &Tensor, batch: usize) -> pipe_attribution::Result<u64> {
    let evaluator = Evaluator::new(score, batch);
    let inputs = Inputs::new(images)?;
    let side = images.dims()[images.rank() - 1];
    let window = || vec![3, WINDOW.min(side), WINDOW.min(side)];
    match method {
        "forward" => _ = evaluator.scores(&inputs)?,
        "gradient" => {
            for start in (0..inputs.rows()).step_by(batch) {
                let rows = batch.min(inputs.rows() - start);
                let pixels = Var::from_tensor(&images.narrow(0, start, rows)?.contiguous()?)?;
                let samples: Vec<usize> = (start..start + rows).collect();
                score.score(pixels.as_tensor(), &samples, None)?.sum_all()?.backward()?;
            }
            return Ok(inputs.rows() as u64);
        }
        "input_x_gradient" => _ = InputXGradient::default().attribute(&evaluator, &inputs)?,
        "integrated_gradients" => {
            let method = IntegratedGradients { steps: STEPS, ..IntegratedGradients::default() };
            method.attribute(&evaluator, &inputs)?;
        }
        "occlusion" => {
            let method = Occlusion { window: window(), strides: window(), baseline: Baseline::Zero };
            method.attribute(&evaluator, &inputs)?;
        }
        "rise" => _ = Rise::new(MASKS, Key(2)).attribute(&evaluator, &inputs)?,
        other => {
            eprintln!("`{other}` is no method of this measurement");
            std::process::exit(2);
        }
    }
    let passes = evaluator.passes();
    Ok(if passes.backward > 0 { passes.backward } else { passes.forward })
}

/// The greatest resident size of the process so far, in GiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / f64::from(1 << 20)
}
