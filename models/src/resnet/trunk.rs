//! Stem and the four layers of bottleneck blocks.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use super::conv_norm::{ConvNorm, observe_map};
use crate::checkpoint::CheckpointError;
use crate::device::enter;
use crate::ops::Window;
use crate::probe::{nonlinearity, residual_sum};
use crate::shapes::Shapes;
use crate::sizes::{check_layers, check_sizes};
use crate::weights::Weights;
use crate::{Activation, Layer, MaybeProbe};

/// The sizes of a residual network.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNetConfig {
    /// Channels behind the stem; 64 in a ResNet-50.
    pub width: usize,
    /// Blocks of each layer; (3, 4, 6, 3) in a ResNet-50.
    pub blocks: [usize; 4],
    /// Side of the image, in pixels.
    pub image: usize,
}

impl ResNetConfig {
    /// The sizes of torchvision's network; its images are not told by shapes and have 224 pixels, as
    /// published.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing.
    pub(crate) fn infer_torchvision(
        tensors: &BTreeMap<String, Tensor>,
    ) -> std::result::Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        Ok(Self {
            width: shapes.dim("layer1.0.conv1.weight", 0)?,
            blocks: [1, 2, 3, 4].map(|layer| shapes.count(&format!("layer{layer}."))),
            image: 224,
        })
    }

    /// Fails, naming the field, unless the sizes make sense: even channels, and an image of a cell at
    /// least.
    pub(crate) fn check(&self) -> std::result::Result<(), CheckpointError> {
        check_sizes(&[("width", self.width / 2), ("image", self.image / STRIDE)])?;
        check_layers(&self.blocks.map(|count| ("blocks", count)))
    }

    /// Channels of the last feature map.
    pub fn features(&self) -> usize {
        self.width * 8 * EXPANSION
    }

    /// Side of the last feature map.
    pub(crate) fn grid(&self) -> usize {
        self.image / STRIDE
    }
}

/// Channels behind a bottleneck over those inside.
const EXPANSION: usize = 4;
/// Pixels of the image per cell of the last feature map, along each side.
pub(crate) const STRIDE: usize = 32;

const UNIT: Window = Window { stride: 1, padding: 0 };
const SAME: Window = Window { stride: 1, padding: 1 };

/// Who built the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    /// CLIP's: three convolutions in the stem, and average pooling wherever there is a stride.
    Modified,
    /// torchvision's: one convolution and max pooling in the stem, the stride in the 3 x 3 convolution.
    Plain,
}

#[derive(Debug)]
enum Stem {
    Modified(Box<[ConvNorm; 3]>),
    Plain(Box<ConvNorm>),
}

#[derive(Debug)]
struct Bottleneck {
    conv1: ConvNorm,
    conv2: ConvNorm,
    conv3: ConvNorm,
    /// Side of the squares that are averaged before `conv3` and before `downsample`.
    pool: usize,
    downsample: Option<ConvNorm>,
}

/// All convolutions of a residual network.
#[derive(Debug)]
pub(crate) struct Trunk {
    image: usize,
    stem: Stem,
    layers: Vec<Vec<Bottleneck>>,
}

impl Trunk {
    /// Takes `{prefix}conv1` to `{prefix}layer4`.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        variant: Variant,
        config: &ResNetConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let width = config.width;
        let mut stem = |place: usize, sizes: [usize; 3], window: Window| {
            let (conv, norm) = (format!("{prefix}conv{place}"), format!("{prefix}bn{place}"));
            ConvNorm::load(weights, &conv, &norm, sizes, window)
        };
        let stem = match variant {
            Variant::Modified => Stem::Modified(Box::new([
                stem(1, [width / 2, 3, 3], Window { stride: 2, padding: 1 })?,
                stem(2, [width / 2, width / 2, 3], SAME)?,
                stem(3, [width, width / 2, 3], SAME)?,
            ])),
            Variant::Plain => {
                Stem::Plain(Box::new(stem(1, [width, 3, 7], Window { stride: 2, padding: 3 })?))
            }
        };
        let mut channels = width;
        let mut layers = Vec::new();
        for (layer, count) in config.blocks.iter().enumerate() {
            let planes = width << layer;
            let mut blocks = Vec::new();
            for block in 0..*count {
                let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                let name = format!("{prefix}layer{}.{block}", layer + 1);
                blocks.push(Bottleneck::load(weights, &name, variant, [channels, planes, stride])?);
                channels = planes * EXPANSION;
            }
            layers.push(blocks);
        }
        Ok(Self { image: config.image, stem, layers })
    }

    /// Pixels `[batch, 3, height, width]` to the last feature map `[batch, rows, columns, channels]`.
    pub(crate) fn forward(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let (_, channels, height, width) = pixels.dims4()?;
        if (channels, height, width) != (3, self.image, self.image) {
            bail!("the image tower takes [batch, 3, {0}, {0}], not {1:?}", self.image, pixels.dims());
        }
        let first = match &self.stem {
            Stem::Modified(convolutions) => convolutions[0].weight(),
            Stem::Plain(convolution) => convolution.weight(),
        };
        let mut x = enter(pixels, first)?.permute((0, 2, 3, 1))?.contiguous()?;
        match &self.stem {
            Stem::Modified(convolutions) => {
                for (index, convolution) in convolutions.iter().enumerate() {
                    x = convolution.forward(&x, &format!("vision.stem.bn{}", index + 1), probe)?;
                    x = relu(&x, &format!("vision.stem.relu{}", index + 1), probe)?;
                }
                x = Layer::AveragePool { side: 2 }.apply(&x, "vision.stem.pool", probe)?;
            }
            Stem::Plain(convolution) => {
                x = convolution.forward(&x, "vision.stem.bn1", probe)?;
                x = relu(&x, "vision.stem.relu1", probe)?;
                let pool = Layer::MaxPool { side: 3, window: Window { stride: 2, padding: 1 } };
                x = pool.apply(&x, "vision.stem.pool", probe)?;
            }
        }
        x = observe_map(probe, "vision.stem", x)?;
        for (layer, blocks) in self.layers.iter().enumerate() {
            let name = format!("vision.layer{}", layer + 1);
            for (index, block) in blocks.iter().enumerate() {
                x = block.forward(&x, &format!("{name}.{index}"), probe)?;
            }
            x = observe_map(probe, &name, x)?;
        }
        Ok(x)
    }
}

fn relu(x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
    nonlinearity(probe, name, Activation::Relu, x)
}

impl Bottleneck {
    fn load(
        weights: &mut Weights,
        name: &str,
        variant: Variant,
        [channels, planes, stride]: [usize; 3],
    ) -> std::result::Result<Self, CheckpointError> {
        let (pool, stride) = match variant {
            Variant::Modified => (stride, 1),
            Variant::Plain => (1, stride),
        };
        let strided = Window { stride, padding: 0 };
        let out = planes * EXPANSION;
        let mut part = |place: usize, sizes: [usize; 3], window: Window| {
            let (conv, norm) = (format!("{name}.conv{place}"), format!("{name}.bn{place}"));
            ConvNorm::load(weights, &conv, &norm, sizes, window)
        };
        Ok(Self {
            conv1: part(1, [planes, channels, 1], UNIT)?,
            conv2: part(2, [planes, planes, 3], Window { padding: 1, ..strided })?,
            conv3: part(3, [out, planes, 1], UNIT)?,
            pool,
            downsample: if pool * stride > 1 || channels != out {
                let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
                Some(ConvNorm::load(weights, &conv, &norm, [out, channels, 1], strided)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let y = self.conv1.forward(x, &format!("{name}.bn1"), probe)?;
        let y = relu(&y, &format!("{name}.relu1"), probe)?;
        let y = self.conv2.forward(&y, &format!("{name}.bn2"), probe)?;
        let y = relu(&y, &format!("{name}.relu2"), probe)?;
        let y = self.pooled(&y, &format!("{name}.pool"), probe)?;
        let y = self.conv3.forward(&y, &format!("{name}.bn3"), probe)?;
        let identity = match &self.downsample {
            Some(downsample) => {
                let pooled = self.pooled(x, &format!("{name}.downsample.pool"), probe)?;
                downsample.forward(&pooled, &format!("{name}.downsample.bn"), probe)?
            }
            None => x.clone(),
        };
        let sum = residual_sum(probe, &format!("{name}.sum"), &y, &identity)?;
        observe_map(probe, name, relu(&sum, &format!("{name}.relu3"), probe)?)
    }

    /// Squares of `pool` pixels averaged; without a stride nothing happens.
    fn pooled(&self, x: &Tensor, name: &str, probe: MaybeProbe<'_>) -> Result<Tensor> {
        match self.pool {
            1 => Ok(x.clone()),
            side => Layer::AveragePool { side }.apply(x, name, probe),
        }
    }
}
