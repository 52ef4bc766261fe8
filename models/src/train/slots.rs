//! What optimisers keep of each parameter.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use crate::ops::sum_of_squares;

/// How a parameter is treated.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Group {
    /// Factor on the learning rate.
    pub rate: f64,
    /// Whether weight decay applies.
    pub decay: bool,
}

/// What the optimiser remembers of one parameter, its elements in row-major order.
#[derive(Clone, PartialEq, Debug)]
pub struct Moments {
    /// The first moment.
    pub first: Vec<f32>,
    /// The second moment; of Adamax the decayed greatest gradient.
    pub second: Vec<f32>,
    /// Steps in which the parameter had a gradient.
    pub steps: i32,
}

/// The optimiser's state of one parameter.
#[derive(Debug)]
struct Slot {
    variable: Var,
    group: Group,
    steps: i32,
    kept: Kept,
}

impl Slot {
    /// To where the parameter lies.
    fn move_moments(&mut self) -> Result<()> {
        let variable = &self.variable;
        if let (Kept::Host { first, second }, false) = (&self.kept, variable.device().is_cpu()) {
            let there = |values: &[f32]| Tensor::from_slice(values, variable.shape(), variable.device());
            self.kept = Kept::Gpu { first: there(first)?, second: there(second)? };
        }
        Ok(())
    }
}

/// Both moments, once a step was taken where the parameter lies.
#[derive(Debug)]
enum Kept {
    Host { first: Vec<f32>, second: Vec<f32> },
    Gpu { first: Tensor, second: Tensor },
}

/// Parameters by name, in name order, with what is remembered of each.
#[derive(Debug)]
pub(super) struct Slots(BTreeMap<String, Slot>);

impl Slots {
    pub(super) fn new(variables: &BTreeMap<String, Var>, group: impl Fn(&str, &Var) -> Group) -> Self {
        let slots = variables.iter().map(|(name, variable)| {
            let count = variable.elem_count();
            let kept = Kept::Host { first: vec![0.0; count], second: vec![0.0; count] };
            let slot = Slot { variable: variable.clone(), group: group(name, variable), steps: 0, kept };
            (name.clone(), slot)
        });
        Self(slots.collect())
    }

    pub(super) fn state(&self) -> Result<BTreeMap<String, Moments>> {
        let moments = |(name, slot): (&String, &Slot)| {
            let (first, second) = match &slot.kept {
                Kept::Host { first, second } => (first.clone(), second.clone()),
                Kept::Gpu { first, second } => {
                    let here = |moment: &Tensor| moment.flatten_all()?.to_vec1::<f32>();
                    (here(first)?, here(second)?)
                }
            };
            Ok((name.clone(), Moments { first, second, steps: slot.steps }))
        };
        self.0.iter().map(moments).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes a state of the same parameters; whether it was one.
    pub(super) fn restore(&mut self, mut state: BTreeMap<String, Moments>) -> bool {
        let fits = |(name, slot): (&String, &Slot)| {
            let count = slot.variable.elem_count();
            let moments = state.get(name);
            moments.is_some_and(|moments| moments.first.len() == count && moments.second.len() == count)
        };
        if state.len() != self.0.len() || !self.0.iter().all(fits) {
            return false;
        }
        for (name, slot) in &mut self.0 {
            if let Some(Moments { first, second, steps }) = state.remove(name) {
                slot.kept = Kept::Host { first, second };
                slot.steps = steps;
            }
        }
        true
    }

    /// Changes every parameter that has a gradient by one rule, told twice: `on_host` changes a piece of the values,
    /// `on_gpu` makes new values and moments of the whole.
    pub(super) fn change(
        &mut self,
        gradients: &GradStore,
        on_host: impl Fn(&Treatment, Piece<'_>) + Sync,
        on_gpu: impl Fn(&Treatment, &Whole<'_>) -> Result<Changed>,
    ) -> Result<()> {
        for slot in self.0.values_mut() {
            let Some(gradient) = gradients.get(&slot.variable) else { continue };
            slot.steps += 1;
            let treatment = Treatment { group: slot.group, steps: slot.steps };
            // The gradient of a parameter may still know how it came about: kept in a moment it would keep all activations.
            let gradient = gradient.detach().to_dtype(DType::F32)?.contiguous()?;
            slot.move_moments()?;
            match &mut slot.kept {
                Kept::Host { first, second } => {
                    let pieces = |values: &mut [f32], gradient: &[f32]| {
                        values
                            .par_chunks_mut(PIECE)
                            .zip(gradient.par_chunks(PIECE))
                            .zip(first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE)))
                            .for_each(|((values, gradient), (first, second))| {
                                on_host(&treatment, Piece { values, gradient, first, second });
                            });
                    };
                    change_values(&slot.variable, &gradient, pieces)?;
                }
                Kept::Gpu { first, second } => {
                    let values = &slot.variable.as_detached_tensor();
                    let changed = on_gpu(&treatment, &Whole { values, gradient: &gradient, first, second })?;
                    slot.variable.set(&changed.values)?;
                    (*first, *second) = (changed.first, changed.second);
                }
            }
        }
        Ok(())
    }
}

/// Lets `change` change the values of a parameter by its gradient: where they lie, on a CPU.
fn change_values(variable: &Var, gradient: &Tensor, change: impl FnMut(&mut [f32], &[f32])) -> Result<()> {
    let is_here = variable.device().is_cpu() && variable.dtype() == DType::F32 && variable.is_contiguous();
    if is_here && variable.shape() == gradient.shape() {
        return variable.inplace_op2(gradient, &InPlace(RefCell::new(change)));
    }
    let mut change = change;
    let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
    change(&mut values, &gradient.flatten_all()?.to_vec1::<f32>()?);
    variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)
}

/// A change of the values of a tensor by those of another.
struct InPlace<F>(RefCell<F>);

impl<F: FnMut(&mut [f32], &[f32])> InplaceOp2 for InPlace<F> {
    fn name(&self) -> &'static str {
        "step"
    }

    fn cpu_fwd(
        &self,
        values: &mut CpuStorage,
        values_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let places = (values_layout.contiguous_offsets(), gradient_layout.contiguous_offsets());
        let (CpuStorage::F32(values), CpuStorage::F32(gradient), (Some(own), Some(its))) =
            (values, gradient, places)
        else {
            bail!("a step takes contiguous f32");
        };
        self.0.borrow_mut()(&mut values[own.0..own.1], &gradient[its.0..its.1]);
        Ok(())
    }
}

/// Values of a piece.
const PIECE: usize = 1 << 14;

/// How a parameter is treated in this step.
pub(super) struct Treatment {
    pub(super) group: Group,
    /// Steps in which the parameter had a gradient, with this one.
    pub(super) steps: i32,
}

/// A parameter with its gradient and moments.
pub(super) struct Whole<'a> {
    pub(super) values: &'a Tensor,
    pub(super) gradient: &'a Tensor,
    pub(super) first: &'a Tensor,
    pub(super) second: &'a Tensor,
}

/// What a step makes of it.
pub(super) struct Changed {
    pub(super) values: Tensor,
    pub(super) first: Tensor,
    pub(super) second: Tensor,
}

/// A piece of a parameter with its gradient and moments.
pub(super) struct Piece<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) gradient: &'a [f32],
    pub(super) first: &'a mut [f32],
    pub(super) second: &'a mut [f32],
}

/// The sums of two gradients of the same `variables`: those of a batch that was computed in pieces. What was added is freed
/// before the next is, so that little more is held than both.
///
/// # Errors
/// Whatever the device reports.
pub fn add_gradients(
    variables: &BTreeMap<String, Var>,
    mut sum: GradStore,
    mut piece: GradStore,
) -> Result<GradStore> {
    for variable in variables.values() {
        // What a gradient came from would stay in memory with the sum.
        if let Some(gradient) = piece.remove(variable).map(|gradient| gradient.detach()) {
            let total = match sum.remove(variable) {
                Some(before) => (before.detach() + gradient)?,
                None => gradient,
            };
            sum.insert(variable, total);
        }
    }
    Ok(sum)
}

/// The L2 norm over the gradients of all `variables`, in f64 and an order of its own, and the factor (at most 1)
/// that brings it down to `limit`.
///
/// # Errors
/// Whatever the device reports.
pub fn clip_gradient_norm(
    variables: &BTreeMap<String, Var>,
    gradients: &GradStore,
    limit: f64,
) -> Result<(f64, f64)> {
    let mut sum = 0.0f64;
    for variable in variables.values() {
        if let Some(gradient) = gradients.get(variable) {
            sum += sum_of_squares(gradient)?;
        }
    }
    let norm = sum.sqrt();
    // PyTorch adds 1e-6 to the norm.
    Ok((norm, (limit / (norm + 1e-6)).min(1.0)))
}
