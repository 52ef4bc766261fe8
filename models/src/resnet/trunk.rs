//! Stem and the four layers of blocks.

use candle_core::{Result, Tensor, bail};

use super::conv_norm::{ConvNorm, Convolution, Pass, observe_map};
use super::form::{BlockForm, Form, StemForm};
use crate::checkpoint::CheckpointError;
use crate::device::enter;
use crate::ops::Window;
use crate::probe::{nonlinearity, residual_sum};
use crate::sizes::{check_layers, check_sizes};
use crate::weights::Weights;
use crate::{Activation, Layer, MaybeProbe};

/// The sizes of CLIP's residual network.
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
    /// Fails, naming the field, unless the sizes make sense: even channels, and an image of a cell at
    /// least.
    pub(crate) fn check(&self) -> std::result::Result<(), CheckpointError> {
        check_sizes(&[("width", self.width / 2), ("image", self.image / STRIDE)])?;
        check_layers(&self.blocks.map(|count| ("blocks", count)))
    }

    /// Channels of the last feature map.
    pub fn features(&self) -> usize {
        self.width * 8 * BlockForm::Bottleneck.expansion()
    }

    /// Side of the last feature map.
    pub(crate) fn grid(&self) -> usize {
        self.image / STRIDE
    }
}

/// Pixels of the image per cell of the last feature map, along each side.
pub(crate) const STRIDE: usize = 32;

const UNIT: Window = Window { stride: 1, padding: 0 };
const SAME: Window = Window { stride: 1, padding: 1 };
/// The shares of red, green and blue in grey (ITU-R 601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Who built the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Variant {
    /// CLIP's: three convolutions in the stem, and average pooling wherever there is a stride.
    Modified,
    /// torchvision's and MedMNIST's: one convolution in the stem, the stride in a 3 x 3 convolution.
    Plain(Form),
}

impl Variant {
    fn form(self) -> Form {
        match self {
            Self::Modified => Form::default(),
            Self::Plain(form) => form,
        }
    }

    /// Takes a convolution and its norm.
    fn load(
        self,
        weights: &mut Weights,
        [conv, norm]: [&str; 2],
        sizes: [usize; 3],
        window: Window,
    ) -> std::result::Result<ConvNorm, CheckpointError> {
        let form = self.form();
        let convolution = Convolution { sizes, window, axes: form.axes(), start: form.start(sizes) };
        ConvNorm::load(weights, conv, norm, convolution)
    }
}

#[derive(Debug)]
enum Stem {
    Modified(Box<[ConvNorm; 3]>),
    /// Behind a wide one there is max pooling.
    Plain(Box<ConvNorm>, StemForm),
}

#[derive(Debug)]
struct Block {
    /// Two, or three of a bottleneck.
    convolutions: Vec<ConvNorm>,
    /// Side of the squares that are averaged before the last convolution and before `downsample`.
    pool: usize,
    downsample: Option<ConvNorm>,
}

/// All convolutions of a residual network.
#[derive(Debug)]
pub(crate) struct Trunk {
    image: usize,
    form: Form,
    stem: Stem,
    layers: Vec<Vec<Block>>,
}

impl Trunk {
    /// Takes `{prefix}conv1` to `{prefix}layer4` of a network of this width, these blocks and images of this side.
    pub(crate) fn load(
        weights: &mut Weights,
        prefix: &str,
        variant: Variant,
        config: &ResNetConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let (width, form) = (config.width, variant.form());
        let mut stem = |place: usize, sizes: [usize; 3], window: Window| {
            let (conv, norm) = (format!("{prefix}conv{place}"), format!("{prefix}bn{place}"));
            variant.load(weights, [&conv, &norm], sizes, window)
        };
        let stem = match (variant, form.stem) {
            (Variant::Modified, _) => Stem::Modified(Box::new([
                stem(1, [width / 2, 3, 3], Window { stride: 2, padding: 1 })?,
                stem(2, [width / 2, width / 2, 3], SAME)?,
                stem(3, [width, width / 2, 3], SAME)?,
            ])),
            (Variant::Plain(_), of @ StemForm::Wide) => Stem::Plain(
                Box::new(stem(1, [width, form.channels, 7], Window { stride: 2, padding: 3 })?),
                of,
            ),
            (Variant::Plain(_), of @ StemForm::Small) => {
                Stem::Plain(Box::new(stem(1, [width, form.channels, 3], SAME)?), of)
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
                blocks.push(Block::load(weights, &name, variant, [channels, planes, stride])?);
                channels = planes * form.block.expansion();
            }
            layers.push(blocks);
        }
        Ok(Self { image: config.image, form, stem, layers })
    }

    /// Pixels `[batch, 3, height, width]` to the last feature map `[batch, rows, columns, channels]`; volumes
    /// `[batch, 1, slices, height, width]` from -1 to 1 to `[batch, steps, rows, columns, channels]`.
    pub(crate) fn forward(&self, pixels: &Tensor, probe: MaybeProbe<'_>) -> Result<Tensor> {
        let pass = Pass::new(probe);
        let mut x = self.entered(pixels)?;
        match &self.stem {
            Stem::Modified(convolutions) => {
                for (index, convolution) in convolutions.iter().enumerate() {
                    x = convolution.forward(&x, &format!("vision.stem.bn{}", index + 1), pass)?;
                    x = relu(&x, &format!("vision.stem.relu{}", index + 1), pass)?;
                }
                x = Layer::AveragePool { side: 2 }.apply(&x, "vision.stem.pool", pass.probe)?;
            }
            Stem::Plain(convolution, form) => {
                x = convolution.forward(&x, "vision.stem.bn1", pass)?;
                x = relu(&x, "vision.stem.relu1", pass)?;
                if *form == StemForm::Wide {
                    let pool = Layer::MaxPool { side: 3, window: Window { stride: 2, padding: 1 } };
                    x = pool.apply(&x, "vision.stem.pool", pass.probe)?;
                }
            }
        }
        x = observe_map(pass.probe, "vision.stem", x)?;
        for (layer, blocks) in self.layers.iter().enumerate() {
            let name = format!("vision.layer{}", layer + 1);
            for (index, block) in blocks.iter().enumerate() {
                x = block.forward(&x, &format!("{name}.{index}"), pass)?;
            }
            x = observe_map(pass.probe, &name, x)?;
        }
        Ok(x)
    }

    /// What the network sees of pixels, channels last.
    fn entered(&self, pixels: &Tensor) -> Result<Tensor> {
        let (side, first) = (
            self.image,
            match &self.stem {
                Stem::Modified(convolutions) => convolutions[0].weight(),
                Stem::Plain(convolution, _) => convolution.weight(),
            },
        );
        if let Some(slices) = self.form.slices {
            let (_, channels, found, height, width) = pixels.dims5()?;
            if (channels, found, height, width) != (1, slices, side, side) {
                let found = pixels.dims();
                bail!("the image tower takes [batch, 1, {slices}, {side}, {side}], not {found:?}");
            }
            // Volumes are handed around from air, -1, to 1; MedMNIST's networks see them from 0 to 1.
            return (enter(pixels, first)?.permute((0, 2, 3, 4, 1))?.contiguous()? * 0.5)? + 0.5;
        }
        let (_, channels, height, width) = pixels.dims4()?;
        if (channels, height, width) != (3, side, side) {
            bail!("the image tower takes [batch, 3, {side}, {side}], not {:?}", pixels.dims());
        }
        let pixels = enter(pixels, first)?;
        if self.form.channels == 3 {
            return pixels.permute((0, 2, 3, 1))?.contiguous();
        }
        let luma = Tensor::new(&LUMA, pixels.device())?.reshape((1, 3, 1, 1))?.to_dtype(pixels.dtype())?;
        pixels.broadcast_mul(&luma)?.sum_keepdim(1)?.permute((0, 2, 3, 1))?.contiguous()
    }
}

fn relu(x: &Tensor, name: &str, pass: Pass<'_>) -> Result<Tensor> {
    nonlinearity(pass.probe, name, Activation::Relu, x)
}

impl Block {
    fn load(
        weights: &mut Weights,
        name: &str,
        variant: Variant,
        [channels, planes, stride]: [usize; 3],
    ) -> std::result::Result<Self, CheckpointError> {
        let (pool, stride) = match variant {
            Variant::Modified => (stride, 1),
            Variant::Plain(_) => (1, stride),
        };
        let strided = Window { stride, padding: 0 };
        let block = variant.form().block;
        let out = planes * block.expansion();
        let mut part = |place: usize, sizes: [usize; 3], window: Window| {
            let (conv, norm) = (format!("{name}.conv{place}"), format!("{name}.bn{place}"));
            variant.load(weights, [&conv, &norm], sizes, window)
        };
        let convolutions = match block {
            BlockForm::Bottleneck => vec![
                part(1, [planes, channels, 1], UNIT)?,
                part(2, [planes, planes, 3], Window { padding: 1, ..strided })?,
                part(3, [out, planes, 1], UNIT)?,
            ],
            BlockForm::Basic => vec![
                part(1, [planes, channels, 3], Window { padding: 1, ..strided })?,
                part(2, [planes, planes, 3], SAME)?,
            ],
        };
        let downsample = if pool * stride > 1 || channels != out {
            let (conv, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
            Some(variant.load(weights, [&conv, &norm], [out, channels, 1], strided)?)
        } else {
            None
        };
        Ok(Self { convolutions, pool, downsample })
    }

    fn forward(&self, x: &Tensor, name: &str, pass: Pass<'_>) -> Result<Tensor> {
        let count = self.convolutions.len();
        let mut y = x.clone();
        for (place, convolution) in (1..).zip(&self.convolutions) {
            if place == count {
                y = self.pooled(&y, &format!("{name}.pool"), pass)?;
            }
            y = convolution.forward(&y, &format!("{name}.bn{place}"), pass)?;
            if place < count {
                y = relu(&y, &format!("{name}.relu{place}"), pass)?;
            }
        }
        let identity = match &self.downsample {
            Some(downsample) => {
                let pooled = self.pooled(x, &format!("{name}.downsample.pool"), pass)?;
                downsample.forward(&pooled, &format!("{name}.downsample.bn"), pass)?
            }
            None => x.clone(),
        };
        let sum = residual_sum(pass.probe, &format!("{name}.sum"), &y, &identity)?;
        observe_map(pass.probe, name, relu(&sum, &format!("{name}.relu{count}"), pass)?)
    }

    /// Squares of `pool` pixels averaged; without a stride nothing happens.
    fn pooled(&self, x: &Tensor, name: &str, pass: Pass<'_>) -> Result<Tensor> {
        match self.pool {
            1 => Ok(x.clone()),
            side => Layer::AveragePool { side }.apply(x, name, pass.probe),
        }
    }
}
