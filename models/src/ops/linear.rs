//! y = x W^T + b.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::elementwise::vectorised;
#[cfg(feature = "cuda")]
use super::gpu;
use super::panels::{Panels, Start, multiply_parallel};
use super::product::{self, Matrix};
use super::shared_rows::computed_once;
use super::weight::{self, Terms, View};
use super::{composed, contiguous, is_half_on_cpu, on_cpu, wide};

/// `x W^T + b` for `x` `[..., in]`, `weight` `[out, in]` and `bias` `[out]`, giving `[..., out]`.
///
/// The gradients of arguments that no variable reaches (frozen weights, a constant input) are not
/// computed.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_with(x, weight, bias, 1)
}

/// [`linear`] of images, `x` `[images, places, in]`: on a CPU a row that the image before has in the same place, as most are where
/// one image comes with many windows hidden, is multiplied once. The values are those of [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_of_images(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (images, _, _) = x.dims3()?;
    linear_with(x, weight, bias, images)
}

fn linear_with(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, images: usize) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        return on_cpu_with(&wide(x)?, weight, bias, images, Terms::of(x))?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        #[cfg(feature = "cuda")]
        if gpu::takes(x) {
            return gpu::linear(x, weight, bias);
        }
        return composed::linear(x, weight, bias);
    }
    on_cpu_with(x, weight, bias, images, Terms::Full)
}

/// [`linear_with`] for `x` of f32 on a CPU.
fn on_cpu_with(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    images: usize,
    terms: Terms,
) -> Result<Tensor> {
    let weight = taken(weight, terms)?;
    let (out, width) = weight.dims2()?;
    if x.dims().last() != Some(&width) {
        bail!("a linear layer of [{out}, {width}] cannot take {:?}", x.dims());
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let layer = Linear { stored: Stored::Rows, images, terms };
    match bias {
        Some(bias) => x.apply_op3(&weight, &wide(bias)?.contiguous()?, layer),
        None => x.apply_op2(&weight, layer),
    }
}

/// A weight as it is packed: in f32 if it is learned, so that its gradient is.
fn taken(weight: &Tensor, terms: Terms) -> Result<Tensor> {
    if terms.take(weight) && !weight.track_op() { Ok(weight.clone()) } else { wide(weight) }
}

/// `x P` for `x` `[..., in]` and `projection` `[in, out]`, giving `[..., out]`; gradients as [`linear`].
///
/// # Errors
/// If the shapes do not fit.
pub fn project(x: &Tensor, projection: &Tensor) -> Result<Tensor> {
    if is_half_on_cpu(x) {
        return project_with(&wide(x)?, projection, Terms::of(x))?.to_dtype(x.dtype());
    }
    if !on_cpu(x) {
        return linear(x, &projection.t()?, None);
    }
    project_with(x, projection, Terms::Full)
}

/// [`project`] for `x` of f32 on a CPU.
fn project_with(x: &Tensor, projection: &Tensor, terms: Terms) -> Result<Tensor> {
    let projection = taken(projection, terms)?;
    let (width, out) = projection.dims2()?;
    if x.dims().last() != Some(&width) {
        bail!("a projection of [{width}, {out}] cannot take {:?}", x.dims());
    }
    x.contiguous()?.apply_op2(&projection.contiguous()?, Linear { stored: Stored::Columns, images: 1, terms })
}

/// How a weight lies in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// `[out, in]`.
    Rows,
    /// `[in, out]`.
    Columns,
}

impl Stored {
    /// Outputs and inputs of a weight.
    fn sizes(self, weight: &Shape) -> Result<(usize, usize)> {
        let (rows, columns) = weight.dims2()?;
        Ok(if self == Self::Rows { (rows, columns) } else { (columns, rows) })
    }

    /// The matrix `[out, in]`.
    fn view(self, out: usize, width: usize) -> View {
        match self {
            Self::Rows => View::whole(out, width),
            Self::Columns => View::whole(width, out).turned(),
        }
    }
}

struct Linear {
    stored: Stored,
    /// The images that the rows are of; 1 where none is to be compared with another.
    images: usize,
    terms: Terms,
}

/// `start + a b`, `[rows, columns]`.
fn product(a: Matrix<'_>, b: &Panels, start: Start<'_>, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; a.rows * columns];
    multiply_parallel(a, b, 1.0, start, &mut out, columns);
    out
}

fn result_shape(x: &Layout, out: usize) -> Shape {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    Shape::from(dims)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = self.stored.sizes(w_layout.shape())?;
        let weight = weight::pack(w, w_layout, self.stored.view(out, width).turned(), self.terms)?;
        let y = self.forward(contiguous(x, x_layout, "x")?, &weight, Start::Zero, [width, out]);
        Ok((CpuStorage::F32(y), result_shape(x_layout, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.backward(x, weight, None, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, width) = self.stored.sizes(w_layout.shape())?;
        let bias = contiguous(b, b_layout, "bias")?;
        if bias.len() != out {
            bail!("a bias of {} values cannot belong to {out} outputs", bias.len());
        }
        let weight = weight::pack(w, w_layout, self.stored.view(out, width).turned(), self.terms)?;
        let y = self.forward(contiguous(x, x_layout, "x")?, &weight, Start::Row(bias), [width, out]);
        Ok((CpuStorage::F32(y), result_shape(x_layout, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        self.backward(x, weight, Some(bias), grad)
    }
}

type Gradients = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

impl Linear {
    /// `[rows, out]`.
    fn forward(&self, x: &[f32], weight: &Panels, start: Start<'_>, [width, out]: [usize; 2]) -> Vec<f32> {
        let of =
            |x: &[f32]| product(Matrix::new(x, x.len() / width.max(1), width, width), weight, start, out);
        computed_once(x, self.images, [width, out], of)
    }

    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<Gradients> {
        let (out, width) = self.stored.sizes(weight.shape())?;
        let grad = grad.contiguous()?;
        let (grad_storage, grad_layout) = grad.storage_and_layout();
        let (x_storage, x_layout) = x.storage_and_layout();
        let (w_storage, w_layout) = weight.storage_and_layout();
        let (candle_core::Storage::Cpu(g), candle_core::Storage::Cpu(x_cpu), candle_core::Storage::Cpu(w)) =
            (&*grad_storage, &*x_storage, &*w_storage)
        else {
            bail!("the linear kernel's backward pass runs on a CPU");
        };
        let dy = contiguous(g, grad_layout, "gradient")?;
        let rows = dy.len() / out.max(1);
        let dy_matrix = Matrix::new(dy, rows, out, out);
        let dx = if x.track_op() {
            let weight = weight::pack(w, w_layout, self.stored.view(out, width), self.terms)?;
            let dx = product(dy_matrix, &weight, Start::Zero, width);
            Some(Tensor::from_vec(dx, x.shape(), x.device())?)
        } else {
            None
        };
        let dw = if weight.track_op() {
            let x = Matrix::new(contiguous(x_cpu, x_layout, "x")?, rows, width, width);
            let (left, right) = match self.stored {
                Stored::Rows => (dy_matrix.transposed(), x),
                Stored::Columns => (x.transposed(), dy_matrix),
            };
            let mut dw = vec![0.0; out * width];
            // Transposed on the left, which `gemm` packs best.
            product::product(left, right, 1.0, false, &mut dw, right.columns, true);
            Some(Tensor::from_vec(dw, weight.shape(), weight.device())?)
        } else {
            None
        };
        let db = match bias {
            Some(bias) if bias.track_op() => {
                let mut db = vec![0.0f32; out];
                vectorised(|| {
                    for row in dy.chunks_exact(out) {
                        for (sum, value) in db.iter_mut().zip(row) {
                            *sum += value;
                        }
                    }
                });
                Some(Tensor::from_vec(db, bias.shape(), bias.device())?)
            }
            _ => None,
        };
        Ok((dx, dw, db))
    }
}
