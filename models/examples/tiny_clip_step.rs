//! Times one training step of the small CLIP of the study on phantoms, on one thread.
//!
//! `cargo run --release -p pipe-models --example tiny_clip_step [STEPS]`

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use pipe_models::clip::{ClipConfig, ClipModel, EotRule, TextConfig, VisionConfig};
use pipe_models::random::Key;
use pipe_models::train::{AdamW, AdamWOptions, clip_gradient_norm, loss};
use pipe_models::{Activation, DualEncoder, Trainable};

fn main() -> Result<()> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    let steps: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50);
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(16 << 20).build().expect("a pool starts");
    pool.install(|| train(steps))
}

fn train(steps: usize) -> Result<()> {
    let batch = 32;
    let config = ClipConfig {
        text: TextConfig {
            vocabulary: 600,
            width: 64,
            hidden: 256,
            layers: 2,
            heads: 2,
            positions: 24,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
            eot: EotRule::First(599),
            bos: 598,
            pad: 599,
        },
        vision: VisionConfig {
            width: 64,
            hidden: 256,
            layers: 4,
            heads: 2,
            image: 48,
            patch: 8,
            channels: 3,
            activation: Activation::QuickGelu,
            epsilon: 1e-5,
        },
        projection: 64,
        logit_scale: 2.659,
    };
    let model = ClipModel::random(&config, 1, &Device::Cpu, Trainable::All).expect("a small model fits");
    let values: Vec<f32> = (1..=batch * 3 * 48 * 48).map(|c| Key(1).normal(c as u64) as f32).collect();
    let pixels = Tensor::from_vec(values, (batch, 3, 48, 48), &Device::Cpu)?;
    let ids: Vec<u32> = (0..batch * 24).map(|c| if c % 24 == 20 { 599 } else { (c % 590) as u32 }).collect();
    let ids = Tensor::from_vec(ids, (batch, 24), &Device::Cpu)?;
    let mut adamw = AdamW::new(model.variables(), AdamWOptions::default(), AdamW::matrices_decay);
    let mut parts = [0.0f64; 3];
    for step in 0..steps + 5 {
        let start = Instant::now();
        let images = model.image_tower().embed_images(&pixels, None)?;
        let texts = model.text_tower().embed_texts(&ids, None)?;
        let loss = loss::info_nce(&model.logits(&images, &texts)?, &[])?;
        let forward = start.elapsed();
        let gradients = loss.backward()?;
        let backward = start.elapsed();
        let (_, factor) = clip_gradient_norm(model.variables(), &gradients, 1.0)?;
        adamw.step(&gradients, 1e-3, factor)?;
        drop(gradients);
        let all = start.elapsed();
        if step >= 5 {
            parts[0] += forward.as_secs_f64();
            parts[1] += (backward - forward).as_secs_f64();
            parts[2] += (all - backward).as_secs_f64();
        }
    }
    let [forward, backward, optimiser] = parts.map(|part| 1e3 * part / steps as f64);
    println!(
        "forward {forward:.1} ms, backward {backward:.1} ms, optimiser {optimiser:.1} ms, step {:.1} ms",
        forward + backward + optimiser
    );
    Ok(())
}
