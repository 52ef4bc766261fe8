//! The small networks of the goldens, in f64, built from their list of layers.

use candle_core::{D, DType, Result, Tensor};
use pipe_attribution::Score;
use pipe_models::MaybeProbe;
use serde_json::Value as Json;

use crate::harness::Golden;

#[derive(Clone)]
enum Layer {
    Convolution { name: String, weight: Tensor, bias: Option<Tensor>, stride: usize, padding: usize },
    Linear { name: String, weight: Tensor, bias: Option<Tensor> },
    Pool { kind: String, kernel: usize, stride: usize },
    Flatten,
    Activation(String),
}

#[derive(Clone)]
pub(super) struct Network {
    layers: Vec<Layer>,
}

impl Network {
    /// Layers as `config.json` lists them, with the parameters of `model`.
    pub(super) fn new(layers: &Json, model: &Golden) -> Self {
        let layers = layers.as_array().expect("a list of layers").iter().map(|layer| {
            let kind = layer["type"].as_str().expect("a layer has a type");
            let name = layer["name"].as_str().unwrap_or_default().to_owned();
            let size = |key: &str, default: usize| layer[key].as_u64().map_or(default, |size| size as usize);
            let parameter = |part: &str| {
                model.input(&format!("{name}.{part}")).to_dtype(DType::F64).expect("parameters are floats")
            };
            let bias = || (layer["bias"] == true).then(|| parameter("bias"));
            match kind {
                "conv2d" => Layer::Convolution {
                    weight: parameter("weight"),
                    bias: bias(),
                    stride: size("stride", 1),
                    padding: size("padding", 0),
                    name: name.clone(),
                },
                "linear" => Layer::Linear { weight: parameter("weight"), bias: bias(), name: name.clone() },
                "avg_pool2d" | "max_pool2d" => {
                    let kernel = size("kernel", 2);
                    Layer::Pool { kind: kind.to_owned(), kernel, stride: size("stride", kernel) }
                }
                "flatten" => Layer::Flatten,
                other => Layer::Activation(other.to_owned()),
            }
        });
        Self { layers: layers.collect() }
    }

    /// Logits `[batch, classes]` in f64.
    pub(super) fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.outputs(images)?.pop().expect("a network has layers"))
    }

    /// What every layer that computes something gives for an image, flat and one after another: one row per image.
    pub(super) fn representations(&self, images: &Tensor) -> Result<Vec<Vec<f64>>> {
        let outputs = self.outputs(images)?;
        let computes = |layer: &Layer| !matches!(layer, Layer::Flatten);
        let flat: Result<Vec<Tensor>> = self
            .layers
            .iter()
            .zip(&outputs)
            .filter(|(layer, _)| computes(layer))
            .map(|(_, output)| output.flatten_from(1))
            .collect();
        Tensor::cat(&flat?, 1)?.to_vec2()
    }

    /// The network with the parameters of one layer replaced by those of `tensors` under `prefix`.
    pub(super) fn with_layer(&self, layer: &str, tensors: &Golden, prefix: &str) -> Self {
        let parameter = |part: &str| {
            let tensor = tensors.input(&format!("{prefix}{layer}.{part}"));
            tensor.to_dtype(DType::F64).expect("parameters are floats")
        };
        let mut changed = self.clone();
        for known in &mut changed.layers {
            match known {
                Layer::Convolution { name, weight, bias, .. } | Layer::Linear { name, weight, bias }
                    if name == layer =>
                {
                    *weight = parameter("weight");
                    *bias = bias.as_ref().map(|_| parameter("bias"));
                }
                _ => {}
            }
        }
        changed
    }

    fn outputs(&self, images: &Tensor) -> Result<Vec<Tensor>> {
        let mut outputs = Vec::with_capacity(self.layers.len());
        let mut x = images.to_dtype(DType::F64)?;
        for layer in &self.layers {
            x = match layer {
                Layer::Convolution { weight, bias, stride, padding, .. } => {
                    let y = x.conv2d(weight, *padding, *stride, 1, 1)?;
                    match bias {
                        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
                        None => y,
                    }
                }
                Layer::Linear { weight, bias, .. } => {
                    let y = x.matmul(&weight.t()?)?;
                    match bias {
                        Some(bias) => y.broadcast_add(bias)?,
                        None => y,
                    }
                }
                Layer::Pool { kind, kernel, stride } if kind == "max_pool2d" => {
                    x.max_pool2d_with_stride(*kernel, *stride)?
                }
                Layer::Pool { kernel, stride, .. } => x.avg_pool2d_with_stride(*kernel, *stride)?,
                Layer::Flatten => x.flatten_from(1)?,
                Layer::Activation(kind) => activate(kind, &x)?,
            };
            outputs.push(x.clone());
        }
        Ok(outputs)
    }

    /// The predicted class of each image.
    pub(super) fn predicted(&self, images: &Tensor) -> Result<Vec<usize>> {
        let classes: Vec<u32> = self.logits(images)?.argmax(D::Minus1)?.to_vec1()?;
        Ok(classes.into_iter().map(|class| class as usize).collect())
    }
}

fn activate(kind: &str, x: &Tensor) -> Result<Tensor> {
    match kind {
        "tanh" => x.tanh(),
        "relu" => x.relu(),
        "sigmoid" => (x.neg()?.exp()? + 1.0)?.recip(),
        "silu" => x.silu(),
        "gelu" => x.gelu_erf(),
        "elu" => x.elu(1.0),
        "softplus" => (x.exp()? + 1.0)?.log(),
        other => panic!("the activation `{other}` is not known here"),
    }
}

pub(super) fn softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

/// What is read off the logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    Logit,
    Probability,
    /// 1 where the predicted class is the target.
    Agreement,
}

impl Space {
    /// The space of an entry of the goldens.
    pub(super) fn of(entry: &Json) -> Self {
        if entry["softmax"] == true { Self::Probability } else { Self::Logit }
    }
}

/// The score of each sample's target class.
pub(super) struct TargetScore<'a> {
    pub(super) network: &'a Network,
    pub(super) targets: &'a [usize],
    pub(super) space: Space,
}

impl Score for TargetScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], _probe: MaybeProbe<'_>) -> Result<Tensor> {
        let logits = self.network.logits(input)?;
        let targets: Vec<u32> = samples.iter().map(|sample| self.targets[*sample] as u32).collect();
        let targets = Tensor::from_vec(targets, (samples.len(), 1), input.device())?;
        let values = match self.space {
            Space::Logit => logits,
            Space::Probability => softmax(&logits)?,
            Space::Agreement => {
                return logits.argmax_keepdim(1)?.eq(&targets)?.squeeze(1)?.to_dtype(DType::F64);
            }
        };
        values.gather(&targets, 1)?.squeeze(1)
    }
}
