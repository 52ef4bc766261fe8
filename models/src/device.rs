//! Where tensors are computed, and in which precision. The one module that tells devices apart: a model
//! computes where its weights are and as they are, and everything outside of it is f32 on the CPU.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::first_line;
use crate::ops::has_half_products;

/// A device as a person names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DeviceName {
    /// The first GPU that this program can use, else the CPU.
    #[default]
    Auto,
    /// The cores of this machine.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// The GPU of an Apple machine.
    Metal,
}

/// What a device may be called.
pub const DEVICE_NAMES: &str = "`auto`, `cpu`, `cuda:0` (or another number) or `metal`";

impl FromStr for DeviceName {
    type Err = String;

    /// # Errors
    /// Which names there are.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            _ => text
                .strip_prefix("cuda:")
                .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is no device; {DEVICE_NAMES} is expected")),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Cpu => out.write_str("cpu"),
            Self::Cuda(number) => write!(out, "cuda:{number}"),
            Self::Metal => out.write_str("metal"),
        }
    }
}

/// The data type of weights and activations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, 8 of them the exponent: the range of f32, three decimal digits less.
    Bf16,
    /// 16 bits, 5 of them the exponent: values beyond 65,504 are infinite.
    F16,
}

impl Precision {
    /// The type in candle.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Its name in the numerics class.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// A device that is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{name}` is not there: {reason}; found: {}", found.join(", "))]
pub struct DeviceError {
    /// What was asked for.
    pub name: DeviceName,
    /// Why it cannot be used, and what would help.
    pub reason: String,
    /// The devices that can be used.
    pub found: Vec<String>,
}

/// A device beside the CPU.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Gpu {
    /// As people know it: `cuda:0 (NVIDIA A100)`.
    description: String,
    /// Its part of the numerics class: `cuda:sm_80`.
    class: String,
}

impl DeviceName {
    /// The device that `auto` stands for; any other stands for itself.
    fn resolved(self) -> Self {
        let has = |gpus: Result<Vec<Gpu>, String>| gpus.is_ok_and(|gpus| !gpus.is_empty());
        match self {
            Self::Auto if has(cuda::gpus()) => Self::Cuda(0),
            Self::Auto if has(metal::gpus()) => Self::Metal,
            Self::Auto => Self::Cpu,
            named => named,
        }
    }

    /// The GPU of this name; `None` for the CPU.
    fn gpu(self) -> Result<Option<Gpu>, String> {
        let (gpus, number) = match self.resolved() {
            Self::Auto | Self::Cpu => return Ok(None),
            Self::Cuda(number) => (cuda::gpus()?, number),
            Self::Metal => (metal::gpus()?, 0),
        };
        match gpus.get(number) {
            Some(gpu) => Ok(Some(gpu.clone())),
            None => Err(format!("this machine has {} of this kind, counted from 0", gpus.len())),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// If there is no such device, or this program was not built for it.
    pub fn open(self) -> Result<Device, DeviceError> {
        let missing = |reason: String| DeviceError { name: self, reason, found: found() };
        self.gpu().map_err(missing)?;
        match self.resolved() {
            Self::Auto | Self::Cpu => Ok(Device::Cpu),
            // One stream whatever thread asks: the default one is another for each thread, and a stage that computes
            // on several would read on one what is not yet written on the other.
            Self::Cuda(number) => Device::new_cuda_with_stream(number),
            Self::Metal => Device::new_metal(0),
        }
        .map_err(|error| missing(first_line(&error)))
    }
}

/// `x` as a tower takes it, whose weights are like `weight`: on its device, of its type. What is of a half type stays so:
/// the tower then computes in that type, with weights that keep all their digits (mixed precision).
pub(crate) fn enter(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.to_device(weight.device())?;
    match x.dtype() {
        DType::BF16 | DType::F16 => Ok(x),
        _ => x.to_dtype(weight.dtype()),
    }
}

/// What a tower gives, and what a probe sees: f32 on the CPU.
pub(crate) fn leave(y: &Tensor) -> candle_core::Result<Tensor> {
    y.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

/// The devices that this program can use here.
pub fn found() -> Vec<String> {
    let gpus = [cuda::gpus(), metal::gpus()].into_iter().flatten().flatten();
    std::iter::once("cpu".to_owned()).chain(gpus.map(|gpu| gpu.description)).collect()
}

/// The devices that this program can use here, and why it cannot use others: one line.
pub fn survey() -> String {
    let reasons = [cuda::gpus(), metal::gpus()].into_iter().filter_map(Result::err);
    std::iter::once(found().join(", ")).chain(reasons).collect::<Vec<_>>().join("; ")
}

/// Raised by hand whenever the kernels of this crate give other digits than before: on the CPU, and on GPUs.
const VERSION: u32 = 2;
const GPU_VERSION: u32 = 3;

/// What decides the last digits of results on this device in this precision: the kind of device, its
/// instructions, how its products are cut, and the data type. Devices of one class give equal bits. The
/// number of a device is not in it, and `auto` is what it stands for.
pub fn numerics_class(name: DeviceName, precision: Precision) -> String {
    let (device, version) = match name.gpu() {
        Ok(Some(gpu)) => (gpu.class, GPU_VERSION),
        Ok(None) if precision == Precision::Bf16 && has_half_products() => {
            (format!("{};bf16", cpu()), VERSION)
        }
        Ok(None) => (cpu(), VERSION),
        // Nothing is computed on a device that is not there, so nothing is ever kept under its name.
        Err(_) => (format!("{name} is not there"), VERSION),
    };
    format!("{device};{};v{version}", precision.name())
}

/// The class of this machine's cores: the instructions that kernels are compiled for, and the length of the
/// partial sums of products, which follows the size of the cache.
fn cpu() -> String {
    #[cfg(target_arch = "x86_64")]
    let (level, rows, columns) = if std::is_x86_feature_detected!("avx512f") {
        ("avx512", 48, 8)
    } else if std::is_x86_feature_detected!("fma") {
        ("avx2", 24, 4)
    } else {
        ("sse2", 4, 4)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (level, rows, columns) = ("baseline", 8, 4);
    // Of a long product: gemm cuts it into equal parts of at most this many terms.
    let long = 1 << 20;
    let terms = gemm_common::cache::kernel_params(long, long, long, rows, columns, size_of::<f32>()).kc;
    // Libraries that take candle's own products.
    let library = match () {
        () if cfg!(feature = "mkl") => ";mkl",
        () if cfg!(feature = "accelerate") => ";accelerate",
        () => "",
    };
    format!("cpu:{};{level};k={terms}{library}", std::env::consts::ARCH)
}

/// Why a program without a feature has no device of a kind.
#[cfg(not(all(feature = "cuda", feature = "metal")))]
fn not_built(kind: &str, feature: &str) -> String {
    format!(
        "this program was built without {kind}; `cargo build --release --features {feature}` builds it with"
    )
}

/// NVIDIA's GPUs.
mod cuda {
    use super::Gpu;

    /// All of this machine, asked once.
    #[cfg(feature = "cuda")]
    pub(super) fn gpus() -> Result<Vec<Gpu>, String> {
        use std::sync::OnceLock;

        use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError};
        use candle_core::cuda_backend::gemm_reduced_precision_f32;

        static ALL: OnceLock<Result<Vec<Gpu>, String>> = OnceLock::new();
        let ask = || -> Result<Vec<Gpu>, DriverError> {
            let gpu = |number: i32| {
                let context = CudaContext::new(number as usize)?;
                let (major, minor) = context.compute_capability()?;
                // Whether products of f32 may round their factors to 10 bits.
                let tf32 = u8::from(gemm_reduced_precision_f32());
                let description = format!("cuda:{number} ({})", context.name()?);
                Ok(Gpu { description, class: format!("cuda:sm_{major}{minor};tf32={tf32}") })
            };
            (0..CudaContext::device_count()?).map(gpu).collect()
        };
        ALL.get_or_init(|| ask().map_err(|error| format!("the driver says: {error}"))).clone()
    }

    #[cfg(not(feature = "cuda"))]
    pub(super) fn gpus() -> Result<Vec<Gpu>, String> {
        Err(super::not_built("CUDA", "cuda"))
    }
}

/// The GPU of Apple machines.
mod metal {
    use super::Gpu;

    #[cfg(feature = "metal")]
    pub(super) fn gpus() -> Result<Vec<Gpu>, String> {
        use std::sync::OnceLock;

        static ALL: OnceLock<Result<Vec<Gpu>, String>> = OnceLock::new();
        let ask = || match candle_core::Device::new_metal(0) {
            Ok(_) => Ok(vec![Gpu { description: "metal".to_owned(), class: "metal".to_owned() }]),
            Err(error) => Err(super::first_line(&error)),
        };
        ALL.get_or_init(ask).clone()
    }

    #[cfg(not(feature = "metal"))]
    pub(super) fn gpus() -> Result<Vec<Gpu>, String> {
        Err(super::not_built("Metal", "metal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:13", "metal"] {
            assert_eq!(text.parse::<DeviceName>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "CPU", "cuda:99999999999999999999"] {
            let problem = text.parse::<DeviceName>().unwrap_err();
            assert!(problem.contains(&format!("`{text}`")) && problem.contains("cuda:0"), "{problem}");
        }
    }

    #[test]
    fn the_class_says_what_decides_digits_and_nothing_else() {
        let class = |name: &str, precision| numerics_class(name.parse().unwrap(), precision);
        let cpu = class("cpu", Precision::F32);
        assert!(cpu.starts_with("cpu:") && cpu.contains(std::env::consts::ARCH), "{cpu}");
        assert!(cpu.contains(";k=") && cpu.contains(";f32;v"), "{cpu}");
        assert_ne!(class("cpu", Precision::Bf16), cpu);
        assert_ne!(class("cpu", Precision::Bf16), class("cpu", Precision::F16));
        let auto = class("auto", Precision::F32);
        let same = found().into_iter().map(|found| found.split(' ').next().unwrap().to_owned()).next_back();
        assert_eq!(auto, class(&same.unwrap(), Precision::F32), "it is the class of what it stands for");
    }

    #[test]
    fn a_missing_device_is_told_with_what_was_found() {
        let error = DeviceName::Cuda(4096).open().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`cuda:4096`") && text.contains("found: cpu"), "{text}");
        if !cfg!(feature = "cuda") {
            assert!(text.contains("--features cuda"), "{text}");
        }
        assert!(numerics_class(DeviceName::Cuda(4096), Precision::F32).contains("not there"));
        assert!(DeviceName::Cpu.open().unwrap().is_cpu());
    }
}
