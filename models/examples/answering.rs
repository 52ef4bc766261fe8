//! Times training steps of a published model of visual question answering at full size with random weights, and prints
//! its peak memory.
//!
//! `cargo run --release -p pipe-models --example answering [mevf-ban|mevf-san|qcr] [BATCH] [reconstructing|trained|frozen]`
//!
//! A step is the published one: loss with dropout and batch norms in training, gradients of all parameters, their norm
//! clipped, Adamax. `reconstructing` trains the auto-encoder along, as published; `trained` without its decoder; `frozen` is given its codes.

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use pipe_models::random::Key;
use pipe_models::train::{Adamax, AdamaxOptions, Dropout, clip_gradient_norm};
use pipe_models::vqa::{
    AnswerModel, AutoencoderInput, Batch, Fusion, Images, Mevf, MevfConfig, Mode, Qcr, QcrConfig,
    QuestionType, Questions,
};

/// Those of VQA-RAD: words of the questions, answers in one list, and closed and open ones.
const WORDS: usize = 1177;
const ANSWERS: usize = 458;
const CLOSED: usize = 56;
const OPEN: usize = 431;
const STEPS: u64 = 6;

fn main() -> Result<()> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("mevf-ban", String::as_str);
    let batch: usize = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(32);
    let mode = arguments.get(2).map_or("reconstructing", String::as_str);
    let (frozen, reconstruct) = (mode == "frozen", mode == "reconstructing");
    let (model, answers): (Box<dyn AnswerModel>, usize) = match name {
        "qcr" => (Box::new(qcr(reconstruct)), CLOSED + OPEN),
        "mevf-san" => (Box::new(mevf(Fusion::San { stacks: 2 }, reconstruct)), ANSWERS),
        _ => (Box::new(mevf(Fusion::Ban { glimpses: 2 }, reconstruct)), ANSWERS),
    };
    let variables = model.variables();
    let mut optimiser = Adamax::new(variables, AdamaxOptions::default(), Adamax::alike);
    let (asked, targets) = questions(batch, answers, frozen)?;
    for step in 0..STEPS {
        let (start, busy) = (Instant::now(), processor_time());
        let dropout = Dropout::new(1, step);
        let loss = model.loss(&asked, &targets, Mode::Training(Some(&dropout)))?.total;
        let gradients = loss.backward()?;
        let (_, factor) = clip_gradient_norm(variables, &gradients, 0.25)?;
        optimiser.step(&gradients, 0.002, factor)?;
        let loss: f32 = loss.to_scalar()?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name} batch {batch} step {step}: {seconds:.4} s, {:.4} s of all cores, loss {loss:.3}, peak {:.2} GiB",
            processor_time() - busy,
            peak_memory()
        );
    }
    Ok(())
}

fn mevf(fusion: Fusion, reconstruct: bool) -> Mevf {
    let mut config = MevfConfig::new(ANSWERS, WORDS, fusion);
    if let Some(autoencoder) = &mut config.image.autoencoder {
        autoencoder.reconstruct = reconstruct;
    }
    Mevf::random(config, 1, [].into()).expect("the published sizes fit")
}

fn qcr(reconstruct: bool) -> Qcr {
    let mut config = QcrConfig::new(CLOSED, OPEN, WORDS);
    if let Some(autoencoder) = &mut config.image.autoencoder {
        autoencoder.reconstruct = reconstruct;
    }
    Qcr::random(config, 1, [].into()).expect("the published sizes fit")
}

/// Random images and questions, three of five closed, each with one answer.
fn questions(batch: usize, answers: usize, frozen: bool) -> Result<(Batch, Tensor)> {
    let device = &Device::Cpu;
    let values = |shape: &[usize], key: u64| {
        let count = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (1..=count).map(|counter| Key(key).uniform(counter) as f32).collect();
        Tensor::from_vec(values, shape, device)
    };
    let autoencoder = match frozen {
        true => AutoencoderInput::Codes(values(&[batch, 16, 32, 32], 2)?),
        false => AutoencoderInput::Pixels(values(&[batch, 1, 128, 128], 2)?),
    };
    let meta = values(&[batch, 1, 84, 84], 1)?;
    let words: Vec<u32> = (0..batch * 12).map(|place| (place * 37 % WORDS) as u32).collect();
    let types: Vec<QuestionType> =
        (0..batch).map(|row| if row % 5 < 3 { QuestionType::Closed } else { QuestionType::Open }).collect();
    let mut targets = vec![0.0f32; batch * answers];
    for (row, kind) in types.iter().enumerate() {
        let label = if *kind == QuestionType::Closed { row % CLOSED } else { CLOSED + row };
        targets[row * answers + label] = 1.0;
    }
    let batch = Batch {
        images: Images { meta: Some(meta), autoencoder: Some(autoencoder), features: None },
        questions: Questions::tokens(Tensor::from_vec(words, (batch, 12), device)?),
        types: Some(types),
    };
    let targets = Tensor::from_vec(targets, (batch.questions.count()?, answers), device)?;
    Ok((batch, targets))
}

/// Seconds that all threads have computed so far; on a busy machine these say more than those that have passed. 0 where
/// the system does not tell.
fn processor_time() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    // The first number is of nanoseconds on a processor.
    let time = |thread: std::fs::DirEntry| -> Option<f64> {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    threads.filter_map(time).sum::<f64>() / 1e9
}

/// The greatest resident size of the process so far, in GiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) / f64::from(1 << 20)
}
