//! Activations that are computed again in the backward pass instead of being kept (Chen et al. 2016).

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, Var};

use super::{is_half_on_cpu, on_cpu, values, wide};

/// A part of a model as a function of its input and parameters.
pub type Part = dyn Fn(&Tensor, &[Tensor]) -> Result<Tensor> + Send + Sync;

/// `part(x, parameters)`, of which the graph keeps only the arguments: the backward pass calls `part`
/// again. Whatever reaches the result has to be an argument; what the part captures besides is a constant.
///
/// # Errors
/// Whatever the part reports.
pub fn recompute(x: &Tensor, parameters: &[Tensor], part: Arc<Part>) -> Result<Tensor> {
    if is_half_on_cpu(x) && x.track_op() {
        let dtype = x.dtype();
        let rounded: Arc<Part> = Arc::new(move |x, parameters| wide(&part(&x.to_dtype(dtype)?, parameters)?));
        return recompute(&wide(x)?, parameters, rounded)?.to_dtype(dtype);
    }
    let tracked: Vec<&Tensor> = parameters.iter().filter(|parameter| parameter.track_op()).collect();
    if !on_cpu(x) || (!x.track_op() && tracked.is_empty()) {
        return part(x, parameters);
    }
    // An operation has few arguments: the trained parameters go through it as one vector.
    let packed = if tracked.is_empty() {
        Tensor::zeros(1, x.dtype(), x.device())?
    } else {
        let flat = tracked.iter().map(|parameter| parameter.flatten_all()).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&flat, 0)?
    };
    let constants: Vec<Tensor> = parameters.iter().map(Tensor::detach).collect();
    let result = part(&x.detach(), &constants)?;
    let op = Recompute {
        shape: result.shape().clone(),
        result: Mutex::new(values(&result)?),
        tracked: parameters.iter().map(Tensor::track_op).collect(),
        parameters: constants,
        part,
    };
    x.apply_op2(&packed, op)
}

struct Recompute {
    part: Arc<Part>,
    /// Detached.
    parameters: Vec<Tensor>,
    tracked: Vec<bool>,
    /// Until the operation takes it.
    result: Mutex<Vec<f32>>,
    shape: Shape,
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn cpu_fwd(
        &self,
        _x: &CpuStorage,
        _x_layout: &Layout,
        _packed: &CpuStorage,
        _packed_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        // A panic between lock and unlock is impossible, so a poisoned lock holds the values all the same.
        let mut result = self.result.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((CpuStorage::F32(std::mem::take(&mut *result)), self.shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        packed: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let x_variable = if x.track_op() { Some(Var::from_tensor(&x.detach())?) } else { None };
        let variables = self
            .parameters
            .iter()
            .zip(&self.tracked)
            .map(|(parameter, tracked)| tracked.then(|| Var::from_tensor(parameter)).transpose())
            .collect::<Result<Vec<_>>>()?;
        let arguments: Vec<Tensor> = self
            .parameters
            .iter()
            .zip(&variables)
            .map(|(parameter, variable)| {
                variable.as_ref().map_or_else(|| parameter.clone(), |variable| variable.as_tensor().clone())
            })
            .collect();
        let input = x_variable.as_ref().map_or_else(|| x.detach(), |variable| variable.as_tensor().clone());
        let y = (self.part)(&input, &arguments)?;
        // The gradient of sum(y * grad) is that of y seeded with grad.
        let mut gradients = (y * grad.detach())?.sum_all()?.backward()?;
        let dx = match &x_variable {
            Some(variable) => Some(match gradients.remove(variable) {
                Some(gradient) => gradient,
                None => variable.zeros_like()?,
            }),
            None => None,
        };
        let dpacked = if packed.track_op() {
            let flat = variables
                .iter()
                .flatten()
                .map(|variable| match gradients.remove(variable) {
                    Some(gradient) => gradient.flatten_all(),
                    None => variable.flatten_all()?.zeros_like(),
                })
                .collect::<Result<Vec<_>>>()?;
            Some(Tensor::cat(&flat, 0)?)
        } else {
            None
        };
        Ok((dx, dpacked))
    }
}
