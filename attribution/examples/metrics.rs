//! Times metrics of explanations on a small convolutional network with random weights.
//!
//! `cargo run --release -p pipe-attribution --example metrics METRIC [SAMPLES] [ROUNDS]`
//!
//! METRIC is `raw` (the bare network), `pixel_flipping`, `faithfulness_correlation`, `max_sensitivity` or
//! `parameter_randomisation`. The batch of the model is 64 rows; SAMPLES are scored in one call.

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use pipe_attribution::metrics::{
    Baseline, Draws, Engine, LayerOrder, Part, Perturbation, Preparation, Randomisation, Robustness, Sample,
    Scale, Shape, Similarity, explained, faithfulness_correlation, pixel_flipping_quantus, random_subsets,
};
use pipe_attribution::{Evaluator, InputXGradient, Score};
use pipe_models::ops::{Window, tanh};
use pipe_models::random::Key;
use pipe_models::{Layer, MaybeProbe};

const SHAPE: Shape = Shape::flat(1, 28, 28);
const CLASSES: usize = 10;
const BATCH: usize = 64;
/// Of pixel flipping.
const FEATURES_IN_STEP: usize = 4;
/// Of faithfulness correlation.
const RUNS: usize = 100;
/// Of faithfulness correlation.
const SUBSET: usize = 224;
/// Of max-sensitivity.
const DRAWS: usize = 50;

/// convolution - tanh - pool, twice, and three linear layers: 28 x 28 pixels to ten logits.
#[derive(Clone)]
struct Network {
    layers: Vec<Layer>,
}

impl Network {
    /// The size of each layer with parameters: outputs, and inputs of one output.
    const SIZES: [(&'static [usize], usize); 5] =
        [(&[6, 5, 5, 1], 25), (&[16, 5, 5, 6], 150), (&[120, 256], 256), (&[84, 120], 120), (&[10, 84], 84)];

    fn layer(place: usize, seed: u64) -> Result<Layer> {
        let (shape, inputs) = Self::SIZES[place];
        let key = Key(seed).sub(place as u64);
        let bound = 2.5 / (inputs as f64).sqrt();
        let draw = |count: usize, key: Key| -> Vec<f32> {
            (1..=count as u64).map(|draw| (bound * (2.0 * key.uniform(draw) - 1.0)) as f32).collect()
        };
        let weight = Tensor::from_vec(draw(shape.iter().product(), key), shape, &Device::Cpu)?;
        let bias = Some(Tensor::from_vec(draw(shape[0], key.sub(1)), shape[0], &Device::Cpu)?);
        Ok(match place {
            0 | 1 => Layer::Convolution { kernel: weight, bias, window: Window { stride: 1, padding: 0 } },
            _ => Layer::Linear { weight, bias },
        })
    }

    fn new(seed: u64) -> Result<Self> {
        Ok(Self {
            layers: (0..Self::SIZES.len()).map(|place| Self::layer(place, seed)).collect::<Result<_>>()?,
        })
    }

    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.permute((0, 2, 3, 1))?.contiguous()?;
        for (place, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            if place + 1 < self.layers.len() {
                x = tanh(&x)?;
            }
            if place < 2 {
                x = Layer::AveragePool { side: 2 }.forward(&x)?;
            }
            if place == 1 {
                x = x.flatten_from(1)?;
            }
        }
        Ok(x)
    }
}

/// The logit of each sample's class.
struct ClassLogit<'a>(&'a Network);

impl Score for ClassLogit<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], _probe: MaybeProbe<'_>) -> Result<Tensor> {
        let classes: Vec<u32> = samples.iter().map(|sample| (sample % CLASSES) as u32).collect();
        let classes = Tensor::from_vec(classes, (samples.len(), 1), input.device())?;
        self.0.logits(input)?.gather(&classes, 1)?.squeeze(1)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // SAFETY: nothing has started a thread yet.
    unsafe { pipe_models::process::prepare() };
    // As the program runs a stage: by a thread of its pool.
    rayon::ThreadPoolBuilder::new().build()?.install(|| measure().map_err(|error| error.to_string()))?;
    Ok(())
}

fn measure() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("raw", String::as_str);
    let number = |place: usize, default: usize| {
        arguments.get(place).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (count, rounds) = (number(1, 32), number(2, 3));
    let network = Network::new(19)?;
    let score = ClassLogit(&network);
    let images: Vec<Vec<f32>> = (0..count as u64)
        .map(|sample| (1..=784).map(|draw| Key(sample).normal(draw) as f32).collect())
        .collect();
    let rows: Vec<(usize, &[f32])> = images.iter().map(Vec::as_slice).enumerate().collect();
    let evaluator = Evaluator::new(&score, BATCH);
    let method = InputXGradient::default();
    let maps = explained(&method, &evaluator, SHAPE, &rows)?;
    let samples: Vec<Sample<'_>> =
        rows.iter().zip(&maps).map(|((index, image), map)| Sample { index: *index, image, map }).collect();
    for round in 0..rounds {
        let evaluator = Evaluator::new(&score, BATCH);
        let (start, busy) = (Instant::now(), processor_time());
        let passes = run(name, &network, &evaluator, &samples)?;
        let (seconds, busy) = (start.elapsed().as_secs_f64(), processor_time() - busy);
        println!(
            "{name} samples {count} round {round}: {seconds:.5} s, {busy:.5} s of all cores, {passes} passes"
        );
    }
    Ok(())
}

/// Seconds that all threads have computed so far; on a busy machine these say more than those that have passed.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Scores the samples once; the number of rows that went through the network.
fn run(
    name: &str,
    network: &Network,
    evaluator: &Evaluator<'_>,
    samples: &[Sample<'_>],
) -> pipe_attribution::Result<f64> {
    let engine = Engine::new(evaluator, SHAPE);
    let method = InputXGradient::default();
    match name {
        "pixel_flipping" => {
            pixel_flipping_quantus(&engine, samples, Baseline::Black, FEATURES_IN_STEP)?;
        }
        "faithfulness_correlation" => {
            let subsets: Vec<_> = (0..samples.len() as u64)
                .map(|sample| random_subsets(Key(1).sub(sample), RUNS, SUBSET, SHAPE.features()))
                .collect();
            faithfulness_correlation(&engine, samples, &subsets, &Baseline::Black.images(samples))?;
        }
        "max_sensitivity" => {
            let explain = |images: &[(usize, &[f32])]| explained(&method, evaluator, SHAPE, images);
            let noise = Perturbation::Uniform { low: -0.2, high: 0.2 };
            let image = |draw: usize, place: usize| {
                noise.add(samples[place].image, Key(2).sub(place as u64).sub(draw as u64), 1.0)
            };
            let robustness = Robustness {
                samples,
                draws: Draws { count: DRAWS, image: &image },
                explain: &explain,
                preparation: Preparation { scale: Scale::None, part: Part::Signed },
                outputs: None,
            };
            robustness.sensitivity()?;
        }
        "parameter_randomisation" => {
            let layers = network.layers.len();
            let explain = |random: &[usize], images: &[(usize, &[f32])]| {
                let mut changed = network.clone();
                for layer in random {
                    changed.layers[*layer] = Network::layer(*layer, 43)?;
                }
                explained(&method, &Evaluator::new(&ClassLogit(&changed), BATCH), SHAPE, images)
            };
            let randomisation = Randomisation {
                samples,
                layers,
                order: LayerOrder::BottomUp,
                preparation: Preparation { scale: Scale::PerMap, part: Part::Absolute },
                explain: &explain,
            };
            randomisation.similarities(&|a, b| Similarity::Spearman.of(a, b))?;
            return Ok((layers * samples.len()) as f64);
        }
        _ => {
            let rows = vec![0; BATCH * 8];
            engine.scores(&rows, |_, image| image.copy_from_slice(samples[0].image))?;
        }
    }
    Ok(evaluator.passes().forward as f64)
}
