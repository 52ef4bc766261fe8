//! What can be wrapped around a method.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is made of a method's values before channels become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wrapper {
    /// Their mean over noisy copies of the image, as SmoothGrad of the gradient.
    NoiseMean,
    /// The mean of their squares.
    NoiseSquares,
    /// Their variance.
    NoiseVariance,
    /// Their absolute values.
    Absolute,
    /// They are blurred by a Gaussian.
    Smoothing,
}

impl Wrapper {
    /// Its name in parameters and metadata.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NoiseMean => "noise_mean",
            Self::NoiseSquares => "noise_squares",
            Self::NoiseVariance => "noise_variance",
            Self::Absolute => "absolute",
            Self::Smoothing => "smoothing",
        }
    }

    /// Whether it averages over noisy copies of the image.
    pub(super) fn takes_noise(self) -> bool {
        matches!(self, Self::NoiseMean | Self::NoiseSquares | Self::NoiseVariance)
    }
}
