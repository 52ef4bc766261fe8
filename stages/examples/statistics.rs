//! Times what figures cost: the choice of a probe's strength, and intervals by resampling.
//!
//! `cargo run --release --example statistics draw FOLDER` writes the samples, for a peer to read.
//! `cargo run --release --example statistics sweep|bootstrap [ROUNDS]` prints the seconds of each round.
//!
//! The probe has 2,000 rows of 512 features and 8 classes, and 500 rows to be judged on; the area under the ROC curve
//! is that of 1,000 samples, resampled 2,000 times.

use std::path::Path;
use std::time::Instant;

use pipe_models::random::Key;
use pipe_models::train::logistic::{Samples, sweep};
use pipe_stages::statistics::{Groups, Ranking, bootstrap};

const WIDTH: usize = 512;
const CLASSES: usize = 8;
const TRAIN: usize = 2000;
const VALIDATION: usize = 500;
const SCORED: usize = 1000;
/// How far the classes are apart in the first direction, in its deviations; less and less in the others.
const APART: f64 = 0.7;

/// Features `[rows, WIDTH]` with a class each. As those of embeddings they are correlated, and their variance falls off
/// with the direction: as one over its number. So does what the direction says of the class.
struct Features {
    values: Vec<f32>,
    labels: Vec<usize>,
}

impl Features {
    fn draw(rows: usize, seed: u64) -> Self {
        let normals = |key: Key| -> Vec<f64> { (1..=WIDTH as u64).map(|draw| key.normal(draw)).collect() };
        let directions: Vec<Vec<f64>> = (1..=WIDTH as u64).map(|place| normals(Key(5).sub(place))).collect();
        let centres: Vec<Vec<f64>> = (1..=CLASSES as u64).map(|class| normals(Key(7).sub(class))).collect();
        let mut this = Self { values: Vec::with_capacity(rows * WIDTH), labels: Vec::with_capacity(rows) };
        for row in 1..=rows as u64 {
            let key = Key(seed).sub(row);
            let class = key.below(1, CLASSES as u64) as usize;
            let mut x = [0.0; WIDTH];
            for (place, (direction, noise)) in directions.iter().zip(normals(key.sub(1))).enumerate() {
                let deviation = 1.0 / ((place + 1) as f64).sqrt();
                let length = (APART * deviation * centres[class][place] + noise) * deviation;
                for (value, part) in x.iter_mut().zip(direction) {
                    *value += length * part / (WIDTH as f64).sqrt();
                }
            }
            this.values.extend(x.iter().map(|value| *value as f32));
            this.labels.push(class);
        }
        this
    }

    fn samples(&self) -> Samples<'_> {
        Samples { features: &self.values, width: WIDTH, labels: &self.labels, classes: CLASSES }
    }
}

/// Scores of a binary task, and which are positive.
fn scored() -> (Vec<f64>, Vec<bool>) {
    let key = Key(11);
    let sample = |row: u64| {
        let is_positive = key.sub(1).uniform(row) < 0.3;
        (key.normal(row) + f64::from(u8::from(is_positive)), is_positive)
    };
    (1..=SCORED as u64).map(sample).unzip()
}

fn draw(folder: &Path) -> std::io::Result<()> {
    let write = |name: &str, values: &[f64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(folder.join(name), bytes)
    };
    for (name, rows, seed) in [("train", TRAIN, 1), ("validation", VALIDATION, 2)] {
        let Features { values, labels } = Features::draw(rows, seed);
        write(name, &values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>())?;
        write(&format!("{name}_labels"), &labels.iter().map(|label| *label as f64).collect::<Vec<_>>())?;
    }
    let (scores, positive) = scored();
    write("scores", &scores)?;
    write("positive", &positive.iter().map(|positive| f64::from(u8::from(*positive))).collect::<Vec<_>>())
}

/// Does `work` a number of times; it returns what is to be said of its result.
fn time<E: std::error::Error + 'static>(
    rounds: usize,
    work: impl Fn() -> Result<String, E>,
) -> Result<(), Box<dyn std::error::Error>> {
    for round in 0..rounds {
        let start = Instant::now();
        let result = work()?;
        println!("round {round}: {:.4} s, {result}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = || arguments.get(1).map_or(Ok(3), |rounds| rounds.parse::<usize>());
    match arguments.first().map(String::as_str) {
        Some("draw") => Ok(draw(Path::new(arguments.get(1).map_or(".", String::as_str)))?),
        Some("sweep") => {
            let (train, validation) = (Features::draw(TRAIN, 1), Features::draw(VALIDATION, 2));
            time(rounds()?, || sweep(train.samples(), validation.samples()).map(|c| format!("C {c:.6}")))
        }
        Some("bootstrap") => {
            let (scores, positive) = scored();
            time(rounds()?, || {
                let ranking = Ranking::new(&scores, &positive);
                let area = |weights: &[f64]| ranking.auroc(weights);
                let estimate = bootstrap(&Groups::singles(scores.len()), 0, area);
                let estimate = estimate.ok_or_else(|| std::io::Error::other("no area"))?;
                let end = |end: Option<f64>| end.map_or("-".to_owned(), |value| format!("{value:.4}"));
                Ok::<_, std::io::Error>(format!(
                    "{:.4} ({} to {})",
                    estimate.value,
                    end(estimate.low),
                    end(estimate.high)
                ))
            })
        }
        _ => Err("usage: statistics draw FOLDER | sweep [ROUNDS] | bootstrap [ROUNDS]".into()),
    }
}
