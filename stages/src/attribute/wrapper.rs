//! What can be wrapped around a method.

use pipe_attribution::{Absolute, Average, Blurred, Deviation, Method, Noise, Smoothed};
use pipe_engine::ParameterProblem;
use pipe_models::random::Key;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Noise is drawn apart from subsets and orders.
const NOISE_STREAM: u64 = 1 << 32;

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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NoiseMean => "noise_mean",
            Self::NoiseSquares => "noise_squares",
            Self::NoiseVariance => "noise_variance",
            Self::Absolute => "absolute",
            Self::Smoothing => "smoothing",
        }
    }

    /// Whether it averages over noisy copies of the image.
    pub(crate) fn takes_noise(self) -> bool {
        matches!(self, Self::NoiseMean | Self::NoiseSquares | Self::NoiseVariance)
    }
}

/// The names of wrappers, from the inside out.
pub(crate) fn names(wrap: &[Wrapper]) -> String {
    wrap.iter().map(|wrapper| wrapper.name()).collect::<Vec<_>>().join(", ")
}

/// A method with everything that is wrapped around it; `sigma` is what smoothing blurs by.
pub(crate) fn wrapped(
    mut method: Box<dyn Method>,
    wrap: &[Wrapper],
    noise: &dyn Fn() -> Noise,
    sigma: f64,
) -> Box<dyn Method> {
    for wrapper in wrap {
        let averaged = |method, average| Smoothed { method, noise: noise(), average };
        method = match wrapper {
            Wrapper::NoiseMean => Box::new(averaged(method, Average::Mean)),
            Wrapper::NoiseSquares => Box::new(averaged(method, Average::MeanOfSquares)),
            Wrapper::NoiseVariance => Box::new(averaged(method, Average::Variance)),
            Wrapper::Absolute => Box::new(Absolute(method)),
            Wrapper::Smoothing => Box::new(Blurred { method, sigma }),
        };
    }
    method
}

/// Noise around words: `draws` copies of 25, `share`s of a range of 0.15 unless they are given. Keys are those that other
/// things of the same words are drawn by.
pub(crate) fn noise_of_words(
    draws: Option<i64>,
    share: Option<f64>,
    deviation: impl Fn(f64) -> Deviation,
    keys: impl Iterator<Item = Key>,
) -> Noise {
    Noise::Normal {
        draws: draws.unwrap_or(25).max(1) as usize,
        deviation: deviation(share.unwrap_or(0.15)),
        keys: keys.map(|key| key.sub(NOISE_STREAM)).collect(),
    }
}

/// What is wrong with wrappers around a method that averages over noise itself, or does not.
pub(crate) fn check_noise(wrap: &[Wrapper], averages_noise: bool) -> Option<ParameterProblem> {
    let noisy = wrap.iter().filter(|wrapper| wrapper.takes_noise()).count();
    (noisy + usize::from(averages_noise) > 1).then(|| ParameterProblem {
        path: "wrap".to_owned(),
        message: "an average over noisy copies would be averaged over noisy copies again".to_owned(),
        help: Some(
            "name one average over noise; around `gradient` the three are SmoothGrad and its relatives"
                .to_owned(),
        ),
    })
}

/// What is wrong with wrappers where words are explained, which lie on no grid that could be blurred.
pub(crate) fn check_words(wrap: &[Wrapper]) -> Option<ParameterProblem> {
    if wrap.contains(&Wrapper::Smoothing) {
        return Some(ParameterProblem {
            path: "wrap".to_owned(),
            message: "words do not lie on a grid: there is nothing to blur between them".to_owned(),
            help: Some(
                "`noise_mean`, `noise_squares`, `noise_variance` and `absolute` are defined".to_owned(),
            ),
        });
    }
    check_noise(wrap, false)
}
