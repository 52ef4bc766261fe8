//! The tiny networks of the goldens, built from `config.json` and the stored parameters.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{D, DType, Result, Tensor};
use pipe_attribution::Score;
use pipe_models::clip::{EotRule, OpenAiClip, OpenAiClipConfig, OpenAiImage};
use pipe_models::ops::{RunningStatistics, Window, activate, composed, linear};
use pipe_models::{
    Activation, ClipConfig, ClipModel, DualEncoder, ImageTower, Layer, MaybeProbe, PatchGeometry, Trainable,
};
use serde_json::Value as Json;

use crate::harness::Golden;

pub(super) fn size(json: &Json) -> usize {
    json.as_u64().unwrap_or_else(|| panic!("{json} is no size")) as usize
}

pub(super) fn sizes(json: &Json) -> Vec<usize> {
    json.as_array().unwrap_or_else(|| panic!("{json} is no list")).iter().map(size).collect()
}

/// A network from inputs to class logits.
pub(super) trait Network: Sync {
    fn logits(&self, input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor>;
}

/// The logit of each sample's target.
pub(super) struct ClassLogit<'a, N> {
    pub(super) network: &'a N,
    pub(super) targets: Vec<u32>,
}

impl<N: Network> Score for ClassLogit<'_, N> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        pick(&self.network.logits(input, probe)?, &self.targets, samples)
    }
}

/// Entry `targets[samples[i]]` of row i.
pub(super) fn pick(logits: &Tensor, targets: &[u32], samples: &[usize]) -> Result<Tensor> {
    let columns: Vec<u32> = samples.iter().map(|sample| targets[*sample]).collect();
    let columns = Tensor::from_vec(columns, (samples.len(), 1), logits.device())?;
    logits.gather(&columns, 1)?.squeeze(1)
}

pub(super) fn indices(tensor: &Tensor) -> Vec<u32> {
    tensor.to_dtype(DType::U32).unwrap().to_vec1().unwrap()
}

fn activation(json: &Json) -> Activation {
    match json.as_str() {
        Some("relu") => Activation::Relu,
        Some("gelu") => Activation::Gelu,
        Some("quick_gelu") => Activation::QuickGelu,
        other => panic!("unknown activation {other:?}"),
    }
}

/// Parameters by name.
type Parameters = BTreeMap<String, Tensor>;

fn parameters(folder: &Path, file: &str) -> Parameters {
    let golden = Golden::open(folder, file);
    let parameters = golden.keys().map(|key| (key.to_owned(), golden.input(key))).collect();
    golden.finish();
    parameters
}

/// A plain CNN: its layers are listed by name in the configuration.
pub(super) struct Cnn {
    parameters: Parameters,
    layers: Vec<String>,
    padding: usize,
    stride: usize,
    pool: usize,
    average: bool,
    epsilon: f64,
    activation: Activation,
}

impl Cnn {
    pub(super) fn open(folder: &Path, config: &Json) -> Self {
        let config = &config["cnn"];
        assert_eq!(config["pool_kernel"], config["pool_stride"], "pools do not overlap");
        let layers = config["layers"].as_array().unwrap();
        Self {
            parameters: parameters(folder, "cnn_model.safetensors"),
            layers: layers.iter().map(|layer| layer.as_str().unwrap().to_owned()).collect(),
            padding: size(&config["padding"]),
            stride: size(&config["stride"]),
            pool: size(&config["pool_kernel"]),
            average: config["pool"] == "average",
            epsilon: config["batch_norm_eps"].as_f64().unwrap(),
            activation: activation(&config["activation"]),
        }
    }

    /// The weights of the last layer, `[classes, channels]`.
    pub(super) fn classifier(&self) -> &Tensor {
        &self.parameters["fc.weight"]
    }

    fn parameter(&self, layer: &str, name: &str) -> Option<&Tensor> {
        self.parameters.get(&format!("{layer}.{name}"))
    }

    /// The layer `name`; none where it is a nonlinearity.
    fn layer(&self, name: &str) -> Result<Option<Layer>> {
        let weight = |part: &str| {
            self.parameter(name, part).unwrap_or_else(|| panic!("`{name}` has no `{part}`")).clone()
        };
        Ok(Some(match name {
            _ if name.starts_with("relu") => return Ok(None),
            _ if name.starts_with("conv") => Layer::Convolution {
                kernel: weight("weight").permute((0, 2, 3, 1))?.contiguous()?,
                bias: self.parameter(name, "bias").cloned(),
                window: Window { stride: self.stride, padding: self.padding },
            },
            _ if name.starts_with("bn") => Layer::BatchNorm {
                gamma: weight("weight"),
                beta: weight("bias"),
                statistics: RunningStatistics {
                    mean: weight("running_mean"),
                    variance: weight("running_var"),
                    epsilon: self.epsilon,
                },
            },
            _ if name.starts_with("pool") && self.average => Layer::AveragePool { side: self.pool },
            _ if name.starts_with("pool") => {
                Layer::MaxPool { side: self.pool, window: Window { stride: self.pool, padding: 0 } }
            }
            "gap" => Layer::GlobalMean,
            "fc" => Layer::Linear { weight: weight("weight"), bias: self.parameter(name, "bias").cloned() },
            other => panic!("unknown layer `{other}`"),
        }))
    }

    /// The names of all layers.
    pub(super) fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Goes through some layers: values of the shape of activations, `[batch, channels, rows, columns]`.
    pub(super) fn through(&self, layers: &[String], input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        layers.iter().try_fold(input.clone(), |x, name| {
            let x = if x.rank() == 4 { x.permute((0, 2, 3, 1))?.contiguous()? } else { x };
            let y = match self.layer(name)? {
                Some(layer) => layer.apply(&x, name, probe)?,
                None => {
                    let replaced = match probe {
                        Some(probe) => probe.nonlinearity(name, self.activation, &x)?,
                        None => None,
                    };
                    match replaced {
                        Some(replaced) => replaced,
                        None => activate(&x, self.activation)?,
                    }
                }
            };
            let y = if y.rank() == 4 { y.permute((0, 3, 1, 2))?.contiguous()? } else { y };
            match probe {
                Some(probe) => probe.activation(name, y),
                None => Ok(y),
            }
        })
    }
}

impl Network for Cnn {
    fn logits(&self, input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        self.through(&self.layers, input, probe)
    }
}

/// conv - relu - average pool - conv - relu - mean - fc, in three dimensions.
pub(super) struct VolumeCnn {
    parameters: Parameters,
    padding: usize,
    pool: usize,
}

impl VolumeCnn {
    pub(super) fn open(golden: &Golden, config: &Json) -> Self {
        let names = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"];
        Self {
            parameters: names.map(|name| (name.to_owned(), golden.input(name))).into(),
            padding: size(&config["cnn3d"]["padding"]),
            pool: size(&config["cnn3d"]["pool_kernel"]),
        }
    }

    /// A sum over the kernel's depth of two-dimensional convolutions of the shifted volume.
    fn convolve(&self, x: &Tensor, layer: &str) -> Result<Tensor> {
        let (kernel, bias) =
            (&self.parameters[&format!("{layer}.weight")], &self.parameters[&format!("{layer}.bias")]);
        let padded = x.pad_with_zeros(2, self.padding, self.padding)?;
        let (batch, channels, depth, height, width) = padded.dims5()?;
        let taps = kernel.dims()[2];
        let slices = depth + 1 - taps;
        let mut sum: Option<Tensor> = None;
        for tap in 0..taps {
            let shifted = padded.narrow(2, tap, slices)?.transpose(1, 2)?.contiguous()?.reshape((
                batch * slices,
                channels,
                height,
                width,
            ))?;
            let plane = shifted.conv2d(
                &kernel.narrow(2, tap, 1)?.squeeze(2)?.contiguous()?,
                self.padding,
                1,
                1,
                1,
            )?;
            sum = Some(match sum {
                Some(sum) => (sum + plane)?,
                None => plane,
            });
        }
        let sum = sum.expect("a kernel has taps");
        let (_, out, height, width) = sum.dims4()?;
        sum.reshape((batch, slices, out, height, width))?
            .transpose(1, 2)?
            .contiguous()?
            .broadcast_add(&bias.reshape((1, (), 1, 1, 1))?)
    }

    fn average(&self, x: &Tensor) -> Result<Tensor> {
        let (k, mut x) = (self.pool, x.clone());
        for axis in 2..5 {
            let length = x.dims()[axis] / k;
            let mut dims = x.dims().to_vec();
            dims[axis] = length;
            dims.insert(axis + 1, k);
            x = x.narrow(axis, 0, length * k)?.contiguous()?.reshape(dims)?.mean(axis + 1)?;
        }
        Ok(x)
    }
}

impl Network for VolumeCnn {
    fn logits(&self, input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let observe = |name: &str, value: Tensor| match probe {
            Some(probe) => probe.activation(name, value),
            None => Ok(value),
        };
        let x = observe("relu1", self.convolve(input, "conv1")?.relu()?)?;
        let x = self.average(&x)?;
        let x = observe("relu2", self.convolve(&x, "conv2")?.relu()?)?;
        linear(
            &x.flatten_from(2)?.mean(D::Minus1)?,
            &self.parameters["fc.weight"],
            Some(&self.parameters["fc.bias"]),
        )
    }
}

/// The tiny CLIP with its heads.
pub(super) struct Vit {
    pub(super) clip: ClipModel,
    classifier: [Tensor; 2],
    /// Weight and bias of the two layers from image and question embedding to answers.
    pub(super) answers: [Tensor; 4],
}

impl Vit {
    pub(super) fn open(folder: &Path, config: &Json) -> Self {
        let parameters = parameters(folder, "vit_model.safetensors");
        let (vision, text) = (&config["vit"], &config["text"]);
        let hidden = size(&vision["mlp_width"]);
        let text_hidden = parameters["transformer.resblocks.0.mlp.c_fc.weight"].dims()[0];
        let json = serde_json::json!({
            "projection_dim": vision["embed_dim"],
            "vision_config": {
                "hidden_size": vision["width"], "intermediate_size": hidden, "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["heads"], "image_size": vision["image"],
                "patch_size": vision["patch"], "hidden_act": vision["activation"],
                "layer_norm_eps": vision["layer_norm_eps"],
            },
            "text_config": {
                "hidden_size": text["width"], "intermediate_size": text_hidden, "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"], "vocab_size": text["vocab"],
                "max_position_embeddings": text["context"], "hidden_act": text["activation"],
                "layer_norm_eps": text["layer_norm_eps"],
            },
        });
        let mut config = ClipConfig::from_json(&json.to_string()).unwrap();
        config.text.eot = EotRule::Greatest;
        let clip = ClipModel::from_tensors(config, renamed(&parameters), Trainable::Frozen).unwrap();
        let classifier = [parameters["classifier.weight"].clone(), parameters["classifier.bias"].clone()];
        let answers = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
        let answers = answers.map(|name| parameters[&format!("vqa.{name}")].clone());
        Self { clip, classifier, answers }
    }
}

impl Network for Vit {
    fn logits(&self, input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let embeddings = self.clip.image_tower().embed_images(input, probe)?;
        linear(&embeddings, &self.classifier[0], Some(&self.classifier[1]))
    }
}

/// CLIP's residual network with the classifier of the tiny CLIP.
pub(super) struct ResNet {
    clip: OpenAiClip,
    classifier: [Tensor; 2],
}

impl ResNet {
    pub(super) fn open(folder: &Path, config: &Json) -> Self {
        let clip = parameters(folder, "vit_model.safetensors");
        let classifier = [clip["classifier.weight"].clone(), clip["classifier.bias"].clone()];
        // A CLIP needs a text tower: any of the same width.
        let of_text =
            |name: &str| !["visual.", "classifier.", "vqa."].iter().any(|tower| name.starts_with(tower));
        let mut tensors = parameters(folder, "rn_model.safetensors");
        tensors.extend(clip.into_iter().filter(|(name, _)| of_text(name)));
        let mut sizes = OpenAiClipConfig::infer(&tensors).unwrap();
        sizes.text.heads = size(&config["text"]["heads"]);
        match &mut sizes.image {
            OpenAiImage::ResNet { pool_heads, .. } => *pool_heads = size(&config["rn"]["attnpool_heads"]),
            OpenAiImage::Transformer(_) => panic!("the weights are those of a residual network"),
        }
        let clip = OpenAiClip::from_tensors(sizes, tensors, Trainable::Frozen).unwrap();
        Self { clip, classifier }
    }

    pub(super) fn clip_tower(&self) -> &dyn ImageTower {
        self.clip.image_tower()
    }

    pub(super) fn geometry(&self) -> PatchGeometry {
        self.clip_tower().geometry()
    }
}

impl Network for ResNet {
    fn logits(&self, input: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let embeddings = self.clip.image_tower().embed_images(input, probe)?;
        linear(&embeddings, &self.classifier[0], Some(&self.classifier[1]))
    }
}

/// The softmax of a network's logits at each sample's target.
pub(super) struct Probability<'a, N> {
    pub(super) network: &'a N,
    pub(super) targets: Vec<u32>,
    /// Each class for itself instead.
    pub(super) sigmoid: bool,
}

impl<N: Network> Score for Probability<'_, N> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let logits = self.network.logits(input, probe)?;
        let shares = match self.sigmoid {
            true => (logits.neg()?.exp()? + 1.0)?.recip()?,
            false => composed::softmax(&logits)?,
        };
        pick(&shares, &self.targets, samples)
    }
}

/// What is asked of an image and the texts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairing {
    /// exp(scale) * cosine with the target text.
    Similarity,
    /// Its softmax over all texts.
    Contrast,
}

/// An image's score with its target text.
pub(super) struct TextScore<'a> {
    pub(super) clip: &'a ClipModel,
    /// `[texts, width]`.
    pub(super) texts: Tensor,
    pub(super) targets: Vec<u32>,
    pub(super) pairing: Pairing,
}

impl Score for TextScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let images = self.clip.image_tower().embed_images(input, probe)?;
        let logits = self.clip.logits(&images, &self.texts)?;
        let logits = match self.pairing {
            Pairing::Similarity => logits,
            Pairing::Contrast => composed::softmax(&logits)?,
        };
        pick(&logits, &self.targets, samples)
    }
}

/// OpenAI's names and layout as Hugging Face's.
fn renamed(parameters: &Parameters) -> BTreeMap<String, Tensor> {
    let mut tensors = BTreeMap::new();
    let transposed = |tensor: &Tensor| tensor.t().unwrap().contiguous().unwrap();
    for (name, tensor) in parameters {
        let plain = |tensors: &mut BTreeMap<String, Tensor>, name: String| {
            tensors.insert(name, tensor.clone());
        };
        let (tower, rest) = match name.strip_prefix("visual.") {
            Some(rest) => ("vision_model", rest),
            None => ("text_model", name.as_str()),
        };
        if let Some(rest) = rest.strip_prefix("transformer.resblocks.") {
            let (layer, part) = rest.split_once('.').unwrap();
            let block = format!("{tower}.encoder.layers.{layer}");
            if let Some(kind) = part.strip_prefix("attn.in_proj_") {
                for (index, target) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                    let rows = tensor.dims()[0] / 3;
                    let piece = tensor.narrow(0, index * rows, rows).unwrap().contiguous().unwrap();
                    tensors.insert(format!("{block}.self_attn.{target}.{kind}"), piece);
                }
                continue;
            }
            let part = part
                .replace("attn.out_proj", "self_attn.out_proj")
                .replace("ln_1", "layer_norm1")
                .replace("ln_2", "layer_norm2")
                .replace("mlp.c_fc", "mlp.fc1")
                .replace("mlp.c_proj", "mlp.fc2");
            plain(&mut tensors, format!("{block}.{part}"));
            continue;
        }
        match name.as_str() {
            "visual.conv1.weight" => {
                plain(&mut tensors, "vision_model.embeddings.patch_embedding.weight".to_owned());
            }
            "visual.class_embedding" => {
                plain(&mut tensors, "vision_model.embeddings.class_embedding".to_owned());
            }
            "visual.positional_embedding" => {
                plain(&mut tensors, "vision_model.embeddings.position_embedding.weight".to_owned());
            }
            "visual.proj" => {
                tensors.insert("visual_projection.weight".to_owned(), transposed(tensor));
            }
            "text_projection" => {
                tensors.insert("text_projection.weight".to_owned(), transposed(tensor));
            }
            "positional_embedding" => {
                plain(&mut tensors, "text_model.embeddings.position_embedding.weight".to_owned());
            }
            "token_embedding.weight" => {
                plain(&mut tensors, "text_model.embeddings.token_embedding.weight".to_owned());
            }
            "logit_scale" => plain(&mut tensors, name.clone()),
            _ => {
                for (theirs, ours) in [
                    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
                    ("visual.ln_post.", "vision_model.post_layernorm."),
                    ("ln_final.", "text_model.final_layer_norm."),
                ] {
                    if let Some(rest) = name.strip_prefix(theirs) {
                        plain(&mut tensors, format!("{ours}{rest}"));
                    }
                }
            }
        }
    }
    tensors
}
