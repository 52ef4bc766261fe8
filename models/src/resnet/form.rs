//! The forms of residual networks beside CLIP's: torchvision's and MedMNIST's, of images and of volumes.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::trunk::{ResNetConfig, STRIDE};
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::shapes::Shapes;
use crate::sizes::{check_layers, check_sizes};

/// What a block of a residual network is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockForm {
    /// Three convolutions, the middle one of a quarter of the channels: ResNet-50 and larger.
    #[default]
    Bottleneck,
    /// Two convolutions: ResNet-18 and 34.
    Basic,
}

impl BlockForm {
    /// Channels behind a block over those inside.
    pub(super) fn expansion(self) -> usize {
        match self {
            Self::Bottleneck => 4,
            Self::Basic => 1,
        }
    }
}

/// How a residual network begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StemForm {
    /// torchvision's: 7 x 7 at stride 2, and max pooling. A cell of the last map is 32 pixels.
    #[default]
    Wide,
    /// That of MedMNIST's experiments and of CIFAR's: 3 x 3 at stride 1, no pooling. A cell is 8 pixels.
    Small,
}

/// The form of a residual network. The default is torchvision's ResNet-50.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Form {
    /// What a block is made of.
    pub block: BlockForm,
    /// How the network begins.
    pub stem: StemForm,
    /// What is seen of an image: 3 colours, or 1, its luma (ITU-R 601). Of a volume 1.
    pub channels: usize,
    /// Slices, if the network takes volumes: its convolutions then have a third axis.
    pub slices: Option<usize>,
}

impl Default for Form {
    fn default() -> Self {
        Self { block: BlockForm::Bottleneck, stem: StemForm::Wide, channels: 3, slices: None }
    }
}

impl Form {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Axes of convolutions: 2 for images, 3 for volumes.
    pub(super) fn axes(self) -> usize {
        if self.slices.is_some() { 3 } else { 2 }
    }

    /// How the weights of a convolution begin: `out` by `inputs` with a kernel of so many pixels along each axis.
    ///
    /// torchvision's own: normal with the root of two over the outputs (He et al. 2015). MedMNIST's class says
    /// nothing, and so its weights begin as every convolution of PyTorch does. Bottleneck networks with the wide stem
    /// begin as all other architectures here, by their names.
    pub(super) fn start(self, [out, inputs, kernel]: [usize; 3]) -> Option<Start> {
        let places = kernel.pow(self.axes() as u32);
        match (self.stem, self.block) {
            (StemForm::Wide, BlockForm::Bottleneck) => None,
            (StemForm::Wide, BlockForm::Basic) => {
                Some(Start::Normal((2.0 / (out * places).max(1) as f64).sqrt()))
            }
            (StemForm::Small, _) => Some(Start::of_inputs(inputs * places)),
        }
    }
}

/// A residual network of He et al. (2016) with its sizes: torchvision's or MedMNIST's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlainResNetConfig {
    /// Channels behind the stem; 64 in the published ones.
    pub width: usize,
    /// Blocks of each layer; (2, 2, 2, 2) in a ResNet-18, (3, 4, 6, 3) in a ResNet-50.
    pub blocks: [usize; 4],
    /// Side of the image, in pixels.
    pub image: usize,
    /// The form; torchvision's ResNet-50, if it is left out.
    #[serde(default, skip_serializing_if = "Form::is_default")]
    pub form: Form,
}

impl From<ResNetConfig> for PlainResNetConfig {
    fn from(ResNetConfig { width, blocks, image }: ResNetConfig) -> Self {
        Self { width, blocks, image, form: Form::default() }
    }
}

/// Side of MedMNIST's images, and slices of its volumes.
const MEDMNIST: usize = 28;

impl PlainResNetConfig {
    /// torchvision's ResNet-18.
    pub fn resnet18() -> Self {
        let form = Form { block: BlockForm::Basic, ..Form::default() };
        Self { width: 64, blocks: [2; 4], image: 224, form }
    }

    /// The ResNet-18 of MedMNIST's experiments on grey images of 28 pixels (Yang et al. 2023).
    pub fn medmnist() -> Self {
        let form = Form { stem: StemForm::Small, channels: 1, ..Self::resnet18().form };
        Self { image: MEDMNIST, form, ..Self::resnet18() }
    }

    /// The same on volumes of 28 slices: every convolution and norm has a third axis.
    pub fn medmnist_3d() -> Self {
        let form = Form { slices: Some(MEDMNIST), ..Self::medmnist().form };
        Self { form, ..Self::medmnist() }
    }

    /// The sizes and the form of a checkpoint. Shapes do not tell the side of images: it is 224, and 28 where the
    /// stem is small, as published; slices are 28 then.
    ///
    /// # Errors
    /// If a tensor that tells a size is missing, or the stem is neither.
    pub(crate) fn infer(tensors: &BTreeMap<String, Tensor>) -> Result<Self, CheckpointError> {
        let shapes = Shapes(tensors);
        let stem = match shapes.dim("conv1.weight", 2)? {
            7 => StemForm::Wide,
            3 => StemForm::Small,
            other => {
                let reason = format!(
                    "`conv1.weight` has a kernel of {other}; 7 (torchvision) or 3 (MedMNIST) is known"
                );
                return Err(CheckpointError::in_weights(reason));
            }
        };
        let is_basic = !tensors.contains_key("layer1.0.conv3.weight");
        let is_3d = tensors["conv1.weight"].rank() == 5;
        Ok(Self {
            width: shapes.dim("conv1.weight", 0)?,
            blocks: [1, 2, 3, 4].map(|layer| shapes.count(&format!("layer{layer}."))),
            image: if stem == StemForm::Wide { 224 } else { MEDMNIST },
            form: Form {
                block: if is_basic { BlockForm::Basic } else { BlockForm::Bottleneck },
                stem,
                channels: shapes.dim("conv1.weight", 1)?,
                slices: is_3d.then_some(MEDMNIST),
            },
        })
    }

    /// Fails, naming the field, unless the sizes make sense: an image of a cell at least, whose cells are squares of
    /// equally many pixels.
    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        let Form { stem, channels, slices, .. } = self.form;
        let error = |reason: String| Err(CheckpointError::new("config.json", reason));
        if slices.is_some() && (stem == StemForm::Wide || channels != 1) {
            return error(
                "`form.slices` is for networks of volumes, which have `form.stem` small and 1 of `form.channels`"
                    .to_owned(),
            );
        }
        let least = if stem == StemForm::Wide { self.image / STRIDE } else { self.image };
        check_sizes(&[("width", self.width), ("image", least), ("form.slices", slices.unwrap_or(1))])?;
        check_layers(&self.blocks.map(|count| ("blocks", count)))?;
        if !matches!(channels, 1 | 3) {
            return error(format!("`form.channels` is {channels}; 1 (grey) or 3 (colours) is expected"));
        }
        for (name, pixels) in [("image", Some(self.image)), ("form.slices", slices)] {
            let Some(pixels) = pixels.filter(|_| stem == StemForm::Small) else { continue };
            if pixels / (pixels / cells(pixels)) != cells(pixels) {
                let next = pixels.next_multiple_of(SMALL_STRIDE);
                return error(format!(
                    "`{name}` is {pixels}, which does not part into equal cells; {next} does"
                ));
            }
        }
        Ok(())
    }

    /// Channels of the last feature map.
    pub fn features(&self) -> usize {
        self.width * 8 * self.form.block.expansion()
    }

    /// Pixels of a cell of the last feature map along an axis of the input of so many pixels.
    pub(super) fn cell(&self, pixels: usize) -> usize {
        match self.form.stem {
            StemForm::Wide => STRIDE,
            StemForm::Small => pixels / cells(pixels),
        }
    }
}

/// The stride of three layers.
const SMALL_STRIDE: usize = 8;

/// Cells behind a small stem along an axis of so many pixels: what is left over has a cell of its own.
fn cells(pixels: usize) -> usize {
    pixels.div_ceil(SMALL_STRIDE).max(1)
}
