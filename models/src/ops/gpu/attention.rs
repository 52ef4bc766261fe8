//! Dot-product attention. The probabilities are computed again in the backward pass instead of being kept.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::{Argument, Element, by_element, count, elements, elsewhere, launch, matrix, room, warps};
use crate::ops::{Scores, wide};

/// As [`crate::ops::attention()`]; without a bias on the scores.
pub(in crate::ops) fn attention(packed: &Tensor, scores: &Scores<'_>) -> Result<Tensor> {
    let (_, tokens, triple) = packed.dims3()?;
    let heads = Heads { tokens, parts: 3, heads: scores.heads, width: triple / 3 / scores.heads };
    let scale = scores.scale.unwrap_or_else(|| (heads.width as f64).powf(-0.5)) as f32;
    let packed = packed.contiguous()?;
    let op = Attention { heads, softmax: Softmax { scale, causal: scores.causal, tokens } };
    match scores.mask {
        Some(mask) => packed.apply_op2(&wide(&mask.detach())?.contiguous()?, op),
        None => packed.apply_op1(op),
    }
}

/// Tokens are padded to a multiple of this while their heads are apart: tensor cores take no others at full speed.
const ALIGNMENT: usize = 8;

/// How vectors are packed: `[batch, tokens, parts * heads * width]`.
#[derive(Clone, Copy)]
struct Heads {
    tokens: usize,
    parts: usize,
    heads: usize,
    width: usize,
}

impl Heads {
    fn padded(self) -> usize {
        self.tokens.next_multiple_of(ALIGNMENT)
    }
}

/// Takes packed vectors apart to `[parts, batch, heads, padded tokens, width]`, zeros behind the tokens.
struct Apart(Heads);

/// Packs vectors again.
struct Packed(Heads);

/// Copies between both orders.
fn reorder<T: Element>(of: Heads, batch: usize, x: Argument<'_>, back: bool) -> Result<CudaStorage> {
    let device = x.0.device();
    let Heads { tokens, parts, heads, width } = of;
    let [whole, apart] = [tokens, of.padded()].map(|tokens| batch * tokens * parts * heads * width);
    let (from, to) = if back { (apart, whole) } else { (whole, apart) };
    if x.1.shape().elem_count() != from {
        bail!("{:?} cannot be {parts} x {heads} heads of {width}", x.1.dims());
    }
    let y = room::<T>(device, to)?;
    let rows = count(apart / width.max(1))?;
    let (batch, tokens, padded) = (count(batch)?, count(tokens)?, count(of.padded())?);
    let (parts, heads, width) = (count(parts)?, count(heads)?, count(width)?);
    let (x, back, config) = (elements::<T>(x)?, u32::from(back), warps(rows));
    launch!(device, T, "heads", config, &x, &y, &batch, &tokens, &padded, &parts, &heads, &width, &back);
    Ok(T::wrap_cuda_slice(y, device.clone()))
}

impl CustomOp1 for Apart {
    fn name(&self) -> &'static str {
        "heads apart on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (batch, _, _) = layout.shape().dims3()?;
        let Heads { parts, heads, width, .. } = self.0;
        let y = by_element!(x, reorder(self.0, batch, (x, layout), false))?;
        Ok((y, Shape::from((parts, batch, heads, self.0.padded(), width))))
    }
}

impl CustomOp1 for Packed {
    fn name(&self) -> &'static str {
        "packed heads on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (parts, batch, heads, _, width) = layout.shape().dims5()?;
        let y = by_element!(x, reorder(self.0, batch, (x, layout), true))?;
        Ok((y, Shape::from((batch, self.0.tokens, parts * heads * width))))
    }
}

/// Softmax over the first `tokens` of the last dimension of scores `[batch, heads, padded, padded]` times a factor;
/// what is behind them gets nothing.
#[derive(Clone, Copy)]
struct Softmax {
    scale: f32,
    causal: bool,
    tokens: usize,
}

/// Of the mask `[batch, tokens]` every sample has a row.
fn softmax<T: Element>(op: Softmax, x: Argument<'_>, seen: Option<Argument<'_>>) -> Result<CudaStorage> {
    let device = x.0.device();
    let (rows, columns) = matrix(x.1)?;
    let y = room::<T>(device, x.1.shape().elem_count())?;
    let (values, config) = (elements::<T>(x)?, warps(rows));
    let (scale, causal, tokens) = (op.scale, u32::from(op.causal), count(op.tokens)?);
    match seen {
        Some(seen) => {
            let (samples, keys) = seen.1.shape().dims2()?;
            let samples = count(samples)?.max(1);
            if keys != op.tokens || !rows.is_multiple_of(samples) {
                bail!("a mask of {:?} does not fit scores of {:?}", seen.1.dims(), x.1.dims());
            }
            let (seen, each) = (elements::<f32>(seen)?, rows / samples);
            launch!(
                device, T, "softmax", config, &values, &seen, &y, &rows, &columns, &tokens, &each, &scale,
                &causal
            );
        }
        None => {
            launch!(
                device, T, "softmax", config, &values, &0usize, &y, &rows, &columns, &tokens, &rows, &scale,
                &causal
            );
        }
    }
    Ok(T::wrap_cuda_slice(y, device.clone()))
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((by_element!(x, softmax(*self, (x, layout), None))?, layout.shape().clone()))
    }
}

impl CustomOp2 for Softmax {
    fn name(&self) -> &'static str {
        "masked softmax on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        seen: &CudaStorage,
        seen_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let seen = Some((seen, seen_layout));
        Ok((by_element!(x, softmax(*self, (x, layout), seen))?, layout.shape().clone()))
    }
}

/// By the unscaled scores, of probabilities and their gradient.
struct SoftmaxBackward {
    scale: f32,
}

fn softmax_backward<T: Element>(
    scale: f32,
    y: Argument<'_>,
    gradient: Argument<'_>,
) -> Result<(CudaStorage, Shape)> {
    let device = y.0.device();
    let (rows, columns) = matrix(y.1)?;
    let dx = room::<T>(device, y.1.shape().elem_count())?;
    let (values, gradient) = (elements::<T>(y)?, elements::<T>(gradient)?);
    launch!(device, T, "softmax_backward", warps(rows), &values, &gradient, &dx, &rows, &columns, &scale);
    Ok((T::wrap_cuda_slice(dx, device.clone()), y.1.shape().clone()))
}

impl CustomOp2 for SoftmaxBackward {
    fn name(&self) -> &'static str {
        "gradient of softmax on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        y: &CudaStorage,
        layout: &Layout,
        gradient: &CudaStorage,
        gradient_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_element!(y, softmax_backward(self.scale, (y, layout), (gradient, gradient_layout)))
    }
}

#[derive(Clone, Copy)]
struct Attention {
    heads: Heads,
    softmax: Softmax,
}

fn forward<T: Element>(
    Attention { heads, softmax: op }: Attention,
    packed: Argument<'_>,
    seen: Option<Argument<'_>>,
) -> Result<(CudaStorage, Shape)> {
    let (batch, tokens, _) = packed.1.shape().dims3()?;
    let (samples, padded, width) = (batch * heads.heads, heads.padded(), heads.width);
    let apart = reorder::<T>(heads, batch, packed, false)?;
    let part = |index: usize| {
        Layout::contiguous_with_offset((samples, padded, width), index * samples * padded * width)
    };
    let (queries, keys, values) = (part(0), part(1).transpose(1, 2)?, part(2));
    let products = apart.matmul(&apart, (samples, padded, padded, width), &queries, &keys)?;
    let square = Layout::contiguous((samples, padded, padded));
    let probabilities = softmax::<T>(op, (&products, &square), seen)?;
    drop(products);
    let attended = probabilities.matmul(&apart, (samples, padded, width, padded), &square, &values)?;
    let together = Layout::contiguous((samples, padded, width));
    let y = reorder::<T>(Heads { parts: 1, ..heads }, batch, (&attended, &together), true)?;
    Ok((y, Shape::from((batch, tokens, heads.heads * width))))
}

impl Attention {
    fn backward(&self, packed: &Tensor, seen: Option<&Tensor>, gradient: &Tensor) -> Result<Tensor> {
        let apart = packed.detach().apply_op1_no_bwd(&Apart(self.heads))?;
        let part = |index: usize| apart.get(index);
        let (queries, keys, values) = (part(0)?, part(1)?, part(2)?);
        let products = queries.matmul(&keys.transpose(2, 3)?)?;
        let probabilities = match seen {
            Some(seen) => products.apply_op2_no_bwd(&seen.detach(), &self.softmax)?,
            None => products.apply_op1_no_bwd(&self.softmax)?,
        };
        let alone = Heads { parts: 1, ..self.heads };
        let gradient = gradient.contiguous()?.detach().apply_op1_no_bwd(&Apart(alone))?.squeeze(0)?;
        let of_values = probabilities.transpose(2, 3)?.matmul(&gradient)?;
        let of_probabilities = gradient.matmul(&values.transpose(2, 3)?)?;
        let of_scores = probabilities
            .apply_op2_no_bwd(&of_probabilities, &SoftmaxBackward { scale: self.softmax.scale })?;
        let of_queries = of_scores.matmul(&keys)?;
        let of_keys = of_scores.transpose(2, 3)?.matmul(&queries)?;
        Tensor::stack(&[of_queries, of_keys, of_values], 0)?.apply_op1_no_bwd(&Packed(self.heads))
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(&self, packed: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        by_element!(packed, forward(*self, (packed, layout), None))
    }

    fn bwd(&self, packed: &Tensor, _y: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        self.backward(packed, None, gradient).map(Some)
    }
}

impl CustomOp2 for Attention {
    fn name(&self) -> &'static str {
        "masked attention on a GPU"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        elsewhere()
    }

    fn cuda_fwd(
        &self,
        packed: &CudaStorage,
        layout: &Layout,
        seen: &CudaStorage,
        seen_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_element!(packed, forward(*self, (packed, layout), Some((seen, seen_layout))))
    }

    fn bwd(
        &self,
        packed: &Tensor,
        seen: &Tensor,
        _y: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.backward(packed, Some(seen), gradient)?), None))
    }
}
