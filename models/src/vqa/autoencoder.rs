//! The convolutional denoising auto-encoder of MEVF (Nguyen et al. 2019; Masci et al. 2011).

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use super::images::{channels_first, channels_last};
use crate::Activation;
use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::ops::composed::sigmoid;
use crate::ops::{Window, activate, conv_transpose2d, conv2d, max_pool2d};
use crate::random::Key;
use crate::weights::Weights;

/// The sizes of the auto-encoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderConfig {
    /// Channels of the three convolutions of the encoder; the last are those of the code.
    pub channels: [usize; 3],
    /// Rows and columns of an image, a multiple of 4.
    pub image: usize,
    /// Values of the feature that the code becomes.
    pub width: usize,
    /// Whether training also reconstructs the image. Without, the decoder, more than half of the work, is
    /// left out; its weights stay as they are.
    pub reconstruct: bool,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self { channels: [64, 32, 16], image: 128, width: 64, reconstruct: true }
    }
}

impl AutoencoderConfig {
    /// Values of a code.
    pub fn code(&self) -> usize {
        self.channels[2] * (self.image / 4) * (self.image / 4)
    }
}

const KERNEL: usize = 3;
/// A convolution that keeps the size.
const SAME: Window = Window { stride: 1, padding: 1 };
const POOL: Window = Window { stride: 2, padding: 0 };
/// A transposed convolution that doubles the size, with one row and column more at the end.
const DOUBLE: Window = Window { stride: 2, padding: 1 };

/// A kernel as it is stored and its bias.
#[derive(Clone, Debug)]
struct Convolution {
    /// `[out, in, rows, columns]`, transposed `[in, out, rows, columns]`.
    weight: Tensor,
    bias: Tensor,
}

impl Convolution {
    fn load(
        weights: &mut Weights,
        name: &str,
        [first, second]: [usize; 2],
        out: usize,
    ) -> std::result::Result<Self, CheckpointError> {
        // PyTorch counts the second dimension as inputs, transposed or not.
        let start = Start::of_inputs(second * KERNEL * KERNEL);
        let shape = [first, second, KERNEL, KERNEL];
        Ok(Self {
            weight: weights.begin(&format!("{name}.weight"), &shape, start)?,
            bias: weights.begin(&format!("{name}.bias"), &[out], start)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &channels_last(&self.weight)?, Some(&self.bias), SAME)
    }

    fn transposed(&self, x: &Tensor) -> Result<Tensor> {
        conv_transpose2d(x, &channels_last(&self.weight)?, &self.bias, DOUBLE, 1)
    }
}

fn rectified(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Relu)
}

/// Encoder and decoder.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    encoder: [Convolution; 3],
    up: [Convolution; 2],
    decoder: [Convolution; 2],
}

impl Autoencoder {
    /// Takes `{name}.conv1` to `conv5`, `tran_conv1` and `tran_conv2`; names begin without a dot if `name` is
    /// empty.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        config: &AutoencoderConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        let [first, second, third] = config.channels;
        let dot = if name.is_empty() { "" } else { "." };
        let mut convolution = |part: &str, shape: [usize; 2], out: usize| {
            Convolution::load(weights, &format!("{name}{dot}{part}"), shape, out)
        };
        Ok(Self {
            encoder: [
                convolution("conv1", [first, 1], first)?,
                convolution("conv2", [second, first], second)?,
                convolution("conv3", [third, second], third)?,
            ],
            up: [
                convolution("tran_conv1", [third, second], second)?,
                convolution("tran_conv2", [second, first], first)?,
            ],
            decoder: [convolution("conv4", [second, second], second)?, convolution("conv5", [1, first], 1)?],
        })
    }

    /// Images `[batch, 1, rows, columns]` to codes `[batch, channels, rows / 4, columns / 4]`.
    ///
    /// # Errors
    /// If the images are no grey ones or their sizes no multiples of 4.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let (_, channels, rows, columns) = images.dims4()?;
        if channels != 1 || !rows.is_multiple_of(4) || !columns.is_multiple_of(4) {
            bail!("the auto-encoder takes grey images of a multiple of 4, not {:?}", images.dims());
        }
        let [first, second, third] = &self.encoder;
        let x = max_pool2d(&rectified(&first.forward(&channels_last(images)?)?)?, 2, POOL)?;
        let x = max_pool2d(&rectified(&second.forward(&x)?)?, 2, POOL)?;
        channels_first(&rectified(&third.forward(&x)?)?)
    }

    /// Codes `[batch, channels, rows, columns]` to images `[batch, 1, 4 rows, 4 columns]` in 0..1.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn decode(&self, codes: &Tensor) -> Result<Tensor> {
        let x = rectified(&self.up[0].transposed(&channels_last(codes)?)?)?;
        let x = rectified(&self.decoder[0].forward(&x)?)?;
        let x = rectified(&self.up[1].transposed(&x)?)?;
        channels_first(&sigmoid(&self.decoder[1].forward(&x)?)?)
    }

    /// The mean squared difference between `clean` images and what is made of `noisy` ones: the loss of
    /// pre-training.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn denoising_loss(&self, noisy: &Tensor, clean: &Tensor) -> Result<Tensor> {
        mean_squared_difference(&self.decode(&self.encode(noisy)?)?, clean)
    }
}

/// The mean of squared differences.
pub(super) fn mean_squared_difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a - b)?.sqr()?.mean_all()
}

/// Images with normal noise of this deviation, not clipped: a function of the key and the place of each value.
///
/// # Errors
/// Whatever the device reports.
pub fn with_noise(images: &Tensor, deviation: f64, key: Key) -> Result<Tensor> {
    let noise: Vec<f32> =
        (1..=images.elem_count() as u64).map(|counter| (key.normal(counter) * deviation) as f32).collect();
    images + Tensor::from_vec(noise, images.shape(), images.device())?.to_dtype(images.dtype())?
}
