//! Operations on NVIDIA GPUs whose kernels are our own, each with its gradient: what candle composes of many
//! launches is one here. The kernels stand in `kernels.cu` and are compiled when a device is first used.
//!
//! Arguments may be f32, bf16 or f16; sums are in f32 and of a fixed order. Each has its composed twin in
//! [`super::composed`], and the tests of devices compare the two. What has no kernel here is composed.

mod activation;
mod attention;
mod convolution;
mod layer_norm;
mod linear;

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{CpuStorage, CudaStorage, DType, Error, Layout, Result, Shape, Tensor, bail};
use half::{bf16, f16};

pub(super) use activation::activate;
pub(super) use attention::attention;
pub(super) use convolution::conv2d;
pub(super) use layer_norm::layer_norm;
pub(super) use linear::linear;

const SOURCE: &str = include_str!("kernels.cu");

/// The oldest cards that today's toolkits compile for; the driver makes newer code of it.
const ARCHITECTURE: &str = "compute_75";

/// Threads of a warp, which works on one row, and rows of a block.
const WARP: u32 = 32;
const ROWS: u32 = 4;

/// Threads of a block of an elementwise kernel.
const THREADS: u32 = 256;

/// Whether the kernels here apply.
pub(super) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16)
}

/// The kernels in the language that drivers take; compiled once.
fn compiled() -> Result<&'static str> {
    static COMPILED: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compile = || {
        let options = CompileOptions { arch: Some(ARCHITECTURE), ..CompileOptions::default() };
        compile_ptx_with_opts(SOURCE, options).map(|ptx| ptx.to_src()).map_err(|error| error.to_string())
    };
    match COMPILED.get_or_init(compile) {
        Ok(ptx) => Ok(ptx),
        Err(error) => bail!("compiling the kernels for the GPU: {error}"),
    }
}

/// A type of elements with kernels of this suffix.
trait Element: CudaDType + DeviceRepr {
    const SUFFIX: &'static str;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
}

impl Element for f16 {
    const SUFFIX: &'static str = "f16";
}

/// Calls a generic function with the element type of a storage.
macro_rules! by_element {
    ($storage:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match &$storage.slice {
            candle_core::cuda_backend::CudaStorageSlice::F32(_) => $function::<f32>($($argument),*),
            candle_core::cuda_backend::CudaStorageSlice::BF16(_) => $function::<half::bf16>($($argument),*),
            candle_core::cuda_backend::CudaStorageSlice::F16(_) => $function::<half::f16>($($argument),*),
            _ => candle_core::bail!("the GPU's kernels take f32, bf16 and f16"),
        }
    };
}
use by_element;

/// Launches the kernel of a name for a type of elements.
///
/// The safety of every launch: arguments are of the types and in the order of `kernels.cu`, where `size_t` is `usize`,
/// `unsigned` `u32` and a null pointer `0usize`; slices are as long as the counts beside them say, which callers take
/// from the layouts of the same tensors; and the kernels' indices stay below these counts.
macro_rules! launch {
    ($device:expr, $element:ty, $name:literal, $config:expr, $($argument:expr),* $(,)?) => {{
        use candle_core::cuda_backend::WrapErr as _;
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg as _;
        let name = format!(concat!($name, "_{}"), <$element as super::Element>::SUFFIX);
        let function = $device.get_or_load_custom_func(&name, "pipe", super::compiled()?)?;
        let mut launch = function.builder();
        $(launch.arg($argument);)*
        // SAFETY: see above.
        unsafe { launch.launch($config) }.w()?;
    }};
}
use launch;

/// A tensor as an operation gets it.
type Argument<'a> = (&'a CudaStorage, &'a Layout);

/// The elements of a contiguous tensor, from its first on.
fn elements<'a, T: CudaDType>((storage, layout): Argument<'a>) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(T::as_cuda_slice(storage)?.slice(start..end)),
        None => bail!("a kernel takes contiguous tensors, not strides of {:?}", layout.stride()),
    }
}

/// As many 32-bit numbers as a kernel counts rows or columns in.
fn count(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| Error::Msg(format!("{number} are too many for a GPU's kernel")))
}

/// Rows spread over blocks, a warp for each.
fn warps(rows: u32) -> LaunchConfig {
    let grid_dim = (rows.div_ceil(ROWS).max(1), 1, 1);
    LaunchConfig { grid_dim, block_dim: (WARP, ROWS, 1), shared_mem_bytes: 0 }
}

/// Elementwise work: each thread takes every n-th element.
fn threads(length: usize) -> LaunchConfig {
    let blocks = length.div_ceil(THREADS as usize).clamp(1, 1 << 16) as u32;
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}

/// Rows and columns of a tensor seen as a matrix.
fn matrix(layout: &Layout) -> Result<(u32, u32)> {
    let columns = layout.dims().last().copied().unwrap_or(1).max(1);
    Ok((count(layout.shape().elem_count() / columns)?, count(columns)?))
}

/// Room for results, which a kernel fills whole.
fn room<T: Element>(device: &CudaDevice, length: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every kernel here writes each element of its result, and nothing reads it before on this stream.
    unsafe { device.alloc::<T>(length) }
}

/// The operations of this module are only called on a GPU.
fn elsewhere() -> Result<(CpuStorage, Shape)> {
    bail!("an operation of the GPU was called on the CPU")
}
