//! Twenty steps of training beside PyTorch's, from the same weights: the files and how they were made are in
//! `tests/trajectories/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};

use crate::checkpoint::write_tensors;
use crate::import::{ImportOptions, import};
use crate::model::FoundationModel;
use crate::ops::linear;
use crate::train::loss::cross_entropy;
use crate::train::{AdamW, AdamWOptions, BatchStatistics, Group};
use crate::{CheckpointFiles, MaybeProbe, Trainable};

const CPU: Device = Device::Cpu;

/// What PyTorch did.
struct Trajectory {
    weights: BTreeMap<String, Tensor>,
    /// `[count, 1 or 3, side, side]` from -1 to 1, of volumes `[count, 1, slices, side, side]`.
    pixels: Tensor,
    /// `[count]`.
    labels: Tensor,
    /// `[steps, batch]`.
    batches: Tensor,
    rate: f64,
    losses: Vec<f64>,
    evaluated: Vec<Vec<f32>>,
}

impl Trajectory {
    fn read(path: &Path) -> Self {
        let mut tensors = candle_core::safetensors::load(path, &CPU).unwrap();
        let weights: Vec<String> =
            tensors.keys().filter(|name| name.starts_with("weights/")).cloned().collect();
        let weights = weights.into_iter().map(|name| {
            let tensor = tensors.remove(&name).unwrap();
            (name["weights/".len()..].to_owned(), tensor)
        });
        let weights = weights.collect();
        let images = tensors["images"].to_dtype(DType::F32).unwrap().unsqueeze(1).unwrap();
        let pixels = ((images / 127.5).unwrap() - 1.0).unwrap();
        let pixels = match pixels.rank() {
            4 => pixels.repeat((1, 3, 1, 1)).unwrap(),
            _ => pixels,
        };
        Self {
            weights,
            pixels,
            labels: tensors["labels"].to_dtype(DType::U32).unwrap(),
            batches: tensors["batches"].clone(),
            rate: tensors["rate"].to_vec1::<f64>().unwrap()[0],
            losses: tensors["losses"].to_vec1().unwrap(),
            evaluated: tensors["evaluated"].to_vec2().unwrap(),
        }
    }

    /// The network, from its weights in a file.
    fn network(&self) -> Box<dyn FoundationModel> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resnet18.safetensors");
        write_tensors(&path, &self.weights).unwrap();
        let mut config = serde_json::json!({ "image": self.pixels.dim(3).unwrap() });
        if self.pixels.rank() == 5 {
            config["form"] = serde_json::json!({ "slices": self.pixels.dim(2).unwrap() });
        }
        let options = ImportOptions { config, ..ImportOptions::default() };
        let files = CheckpointFiles::new([("resnet18.safetensors".to_owned(), path)]);
        import(&files, &options, &CPU).unwrap().build(Trainable::All).unwrap()
    }

    /// Trains as PyTorch did; the greatest relative difference of a loss, and of a logit over the greatest.
    fn follow(&self) -> (f64, f64) {
        let network = self.network();
        let head = |name: &str| Var::from_tensor(&self.weights[name].to_dtype(DType::F32).unwrap()).unwrap();
        let (weight, bias) = (head("linear.weight"), head("linear.bias"));
        let logits = |pixels: &Tensor, probe: MaybeProbe<'_>| {
            let embeddings = network.as_image_tower().unwrap().embed_images(pixels, probe).unwrap();
            linear(&embeddings, &weight, Some(&bias)).unwrap()
        };
        let mut variables = network.variables().clone();
        variables
            .extend([("head.weight".to_owned(), weight.clone()), ("head.bias".to_owned(), bias.clone())]);
        let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
        let mut adam = AdamW::new(&variables, options, |_, _| Group { rate: 1.0, decay: false });
        let mut worst = 0.0f64;
        for (step, expected) in self.losses.iter().enumerate() {
            let rows = self.batches.get(step).unwrap().to_dtype(DType::U32).unwrap();
            let pixels = self.pixels.index_select(&rows, 0).unwrap();
            let labels = self.labels.index_select(&rows, 0).unwrap();
            let loss = cross_entropy(&logits(&pixels, Some(&BatchStatistics)), &labels).unwrap();
            adam.step(&loss.backward().unwrap(), self.rate, 1.0).unwrap();
            let loss = f64::from(loss.to_scalar::<f32>().unwrap());
            worst = worst.max((loss - expected).abs() / expected);
        }
        // By the running statistics, which have followed the batches.
        let (mut error, mut greatest) = (0.0f64, 0.0f64);
        for (row, expected) in self.evaluated.iter().enumerate() {
            let own = logits(&self.pixels.narrow(0, row, 1).unwrap(), None).to_vec2::<f32>().unwrap();
            for (own, expected) in own[0].iter().zip(expected) {
                error = error.max(f64::from((own - expected).abs()));
                greatest = greatest.max(f64::from(expected.abs()));
            }
        }
        (worst, error / greatest)
    }
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/trajectories").join(name)
}

#[test]
fn training_follows_pytorch_step_by_step() {
    for name in ["resnet18-2d.safetensors", "resnet18-3d.safetensors"] {
        let trajectory = Trajectory::read(&file(name));
        assert_eq!(trajectory.losses.len(), 20);
        let (loss, logit) = trajectory.follow();
        println!("{name}: losses within {loss:.1e}, logits afterwards within {logit:.1e}");
        assert!(loss < 1e-3, "{name}: a loss is {loss} away");
        assert!(logit < 1e-2, "{name}: a logit is {logit} away");
    }
}

/// Networks of full size, where `PIPE_TRAJECTORIES` names files that the script made. They have millions of gradients
/// next to zero, whose signs are Adam's first steps: rounding moves them further apart than small ones.
#[test]
#[ignore = "takes minutes, and files that are not part of the repository"]
fn training_in_full_size_follows_pytorch() {
    let files =
        std::env::var("PIPE_TRAJECTORIES").expect("PIPE_TRAJECTORIES names files, with colons between");
    for name in files.split(':') {
        let (loss, logit) = Trajectory::read(Path::new(name)).follow();
        println!("{name}: losses within {loss:.1e}, logits afterwards within {logit:.1e}");
        assert!(loss < 1e-3, "{name}: a loss is {loss} away");
    }
}
