//! Recurrent networks of one layer.
//!
//! The gates of all positions are kept for the backward pass, whose gradient of the weights is one product over
//! all positions.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use super::elementwise::{sigmoid, tanh};
use super::panels::{Panels, Start, multiply_parallel};
use super::product::{Matrix, product};
use super::rows::column_sums;
use super::{borrow, composed, contiguous, is_half, on_cpu, wide};

/// The states `[batch, length, hidden]` of a long short-term memory (Hochreiter and Schmidhuber 1997) that
/// begins with zeros. `inputs` `[batch, length, 4 hidden]` is what the inputs add to the gates; `weight`
/// `[4 hidden, hidden]` and `bias` `[4 hidden]` are those of the state. Gates stand in PyTorch's order: input,
/// forget, cell, output.
///
/// # Errors
/// If the shapes do not fit.
pub fn lstm(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    recurrent(inputs, weight, bias, Cell::Lstm)
}

/// As [`lstm`], of gated recurrent units (Cho et al. 2014), gates in the order reset, update, new:
/// `inputs` `[batch, length, 3 hidden]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn gru(inputs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    recurrent(inputs, weight, bias, Cell::Gru)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    Lstm,
    Gru,
}

impl Cell {
    fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru => 3,
        }
    }
}

fn recurrent(inputs: &Tensor, weight: &Tensor, bias: &Tensor, cell: Cell) -> Result<Tensor> {
    let (batch, length, width) = inputs.dims3()?;
    let (rows, hidden) = weight.dims2()?;
    if rows != cell.gates() * hidden || width != rows || bias.dims() != [rows] || inputs.elem_count() == 0 {
        bail!(
            "a recurrent layer of {:?} with bias {:?} cannot take {:?}",
            weight.dims(),
            bias.dims(),
            inputs.dims()
        );
    }
    if is_half(inputs) {
        return recurrent(&wide(inputs)?, &wide(weight)?, &wide(bias)?, cell)?.to_dtype(inputs.dtype());
    }
    if !on_cpu(inputs) {
        return match cell {
            Cell::Lstm => composed::lstm(inputs, weight, bias),
            Cell::Gru => composed::gru(inputs, weight, bias),
        };
    }
    let op = Recurrent { cell, batch, length, hidden, kept: OnceLock::new() };
    inputs.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

struct Recurrent {
    cell: Cell,
    batch: usize,
    length: usize,
    hidden: usize,
    kept: OnceLock<Kept>,
}

/// What the backward pass needs of the forward pass, rows (sample, position).
struct Kept {
    /// The gates, `[batch, length, gates]`.
    gates: Vec<f32>,
    /// Of a long short-term memory the cells; of gated units what the state adds to the new gate.
    inner: Vec<f32>,
    /// The states before each position.
    before: Vec<f32>,
}

/// Runs a loop compiled for the widest instructions of this machine. A closure as long as these would stay a
/// function of its own, without them, in which every fused multiply-add is a call.
fn vectorised(units: impl NullaryFnOnce<Output = ()>) {
    pulp::Arch::new().dispatch(units);
}

/// One position of a long short-term memory: sums become gates.
struct LstmStep<'a> {
    gates: &'a mut [f32],
    before: &'a [f32],
    cells: &'a mut [f32],
    states: &'a mut [f32],
}

impl NullaryFnOnce for LstmStep<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { gates, before, cells, states } = self;
        let hidden = states.len();
        let (input, rest) = gates.split_at_mut(hidden);
        let (forget, rest) = rest.split_at_mut(hidden);
        let (new, output) = rest.split_at_mut(hidden);
        for unit in 0..hidden {
            input[unit] = sigmoid(input[unit]);
            forget[unit] = sigmoid(forget[unit]);
            new[unit] = tanh(new[unit]);
            output[unit] = sigmoid(output[unit]);
            cells[unit] = forget[unit] * before[unit] + input[unit] * new[unit];
            states[unit] = output[unit] * tanh(cells[unit]);
        }
    }
}

/// One position of gated units: what the inputs add becomes gates. `own` is what the state adds.
struct GruStep<'a> {
    gates: &'a mut [f32],
    own: &'a [f32],
    before: &'a [f32],
    inner: &'a mut [f32],
    states: &'a mut [f32],
}

impl NullaryFnOnce for GruStep<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { gates, own, before, inner, states } = self;
        let hidden = states.len();
        let (reset, rest) = gates.split_at_mut(hidden);
        let (update, new) = rest.split_at_mut(hidden);
        for unit in 0..hidden {
            reset[unit] = sigmoid(reset[unit] + own[unit]);
            update[unit] = sigmoid(update[unit] + own[hidden + unit]);
            inner[unit] = own[2 * hidden + unit];
            new[unit] = tanh(new[unit] + reset[unit] * inner[unit]);
            states[unit] = new[unit] + update[unit] * (before[unit] - new[unit]);
        }
    }
}

/// What was kept of one position of one sample.
struct Step<'a> {
    gates: &'a [f32],
    inner: &'a [f32],
    inner_before: &'a [f32],
    before: &'a [f32],
}

/// The gradients of the four sums of one position of a long short-term memory.
struct LstmBack<'a> {
    step: Step<'a>,
    dstate: &'a [f32],
    dcell: &'a mut [f32],
    dgates: &'a mut [f32],
}

impl NullaryFnOnce for LstmBack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { step, dstate, dcell, dgates } = self;
        let hidden = dstate.len();
        for unit in 0..hidden {
            let gate = |which: usize| step.gates[which * hidden + unit];
            let (input, forget, new, output) = (gate(0), gate(1), gate(2), gate(3));
            let shown = tanh(step.inner[unit]);
            let dc = dstate[unit] * output * (1.0 - shown * shown) + dcell[unit];
            dgates[unit] = dc * new * input * (1.0 - input);
            dgates[hidden + unit] = dc * step.inner_before[unit] * forget * (1.0 - forget);
            dgates[2 * hidden + unit] = dc * input * (1.0 - new * new);
            dgates[3 * hidden + unit] = dstate[unit] * shown * output * (1.0 - output);
            dcell[unit] = dc * forget;
        }
    }
}

/// The gradients of one position of gated units: of what the inputs add in `dgates`, of what the state adds in
/// `down`, and what the state before gets directly in `direct`.
struct GruBack<'a> {
    step: Step<'a>,
    dstate: &'a [f32],
    direct: &'a mut [f32],
    dgates: &'a mut [f32],
    down: &'a mut [f32],
}

impl NullaryFnOnce for GruBack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { step, dstate, direct, dgates, down } = self;
        let hidden = dstate.len();
        for unit in 0..hidden {
            let gate = |which: usize| step.gates[which * hidden + unit];
            let (reset, update, new) = (gate(0), gate(1), gate(2));
            let dnew = dstate[unit] * (1.0 - update) * (1.0 - new * new);
            let dreset = dnew * step.inner[unit] * reset * (1.0 - reset);
            let dupdate = dstate[unit] * (step.before[unit] - new) * update * (1.0 - update);
            (dgates[unit], down[unit]) = (dreset, dreset);
            (dgates[hidden + unit], down[hidden + unit]) = (dupdate, dupdate);
            dgates[2 * hidden + unit] = dnew;
            down[2 * hidden + unit] = dnew * reset;
            direct[unit] = dstate[unit] * update;
        }
    }
}

impl Recurrent {
    /// The states of all positions, and what is kept.
    fn forward(&self, inputs: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Kept) {
        let Self { cell, batch, length, hidden, .. } = *self;
        let width = cell.gates() * hidden;
        // Packed once for all positions.
        let weight = Panels::pack(Matrix::new(weight, width, hidden, hidden).transposed(), true);
        let mut gates = inputs.to_vec();
        if cell == Cell::Lstm {
            for row in gates.chunks_exact_mut(width) {
                row.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        let mut states = vec![0.0f32; batch * length * hidden];
        let mut inner = vec![0.0f32; batch * length * hidden];
        let mut before = vec![0.0f32; batch * length * hidden];
        let zeros = vec![0.0f32; hidden];
        let mut own = vec![0.0f32; if cell == Cell::Gru { batch * width } else { 0 }];
        for place in 0..length {
            let last = (place > 0)
                .then(|| Matrix::new(&states[(place - 1) * hidden..], batch, hidden, length * hidden));
            match (cell, last) {
                (Cell::Lstm, Some(last)) => {
                    let gates = &mut gates[place * width..];
                    multiply_parallel(last, &weight, 1.0, Start::Kept, gates, length * width);
                }
                (Cell::Lstm, None) => {}
                (Cell::Gru, last) => match last {
                    Some(last) => {
                        multiply_parallel(last, &weight, 1.0, Start::Row(bias), &mut own, width);
                    }
                    None => own.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(bias)),
                },
            }
            let samples = gates
                .par_chunks_exact_mut(length * width)
                .zip(inner.par_chunks_exact_mut(length * hidden))
                .zip(before.par_chunks_exact_mut(length * hidden))
                .zip(states.par_chunks_exact_mut(length * hidden))
                .enumerate();
            samples.for_each(|(sample, (((gates, inner), before), states))| {
                let here = place * hidden..(place + 1) * hidden;
                let gates = &mut gates[place * width..(place + 1) * width];
                let (earlier, states) = states.split_at_mut(place * hidden);
                let states = &mut states[..hidden];
                let earlier = last_values(earlier, hidden).unwrap_or(&zeros);
                before[here.clone()].copy_from_slice(earlier);
                match cell {
                    Cell::Lstm => {
                        let (cells, inner) = inner.split_at_mut(place * hidden);
                        let cells = last_values(cells, hidden).unwrap_or(&zeros);
                        let units = LstmStep { gates, before: cells, cells: &mut inner[..hidden], states };
                        vectorised(units);
                    }
                    Cell::Gru => {
                        let own = &own[sample * width..(sample + 1) * width];
                        vectorised(GruStep { gates, own, before: earlier, inner: &mut inner[here], states });
                    }
                }
            });
        }
        (states, Kept { gates, inner, before })
    }

    /// The gradients of the inputs' part of all gates, and of the state's part where that is another.
    fn backward(&self, kept: &Kept, weight: &[f32], grad: &[f32]) -> (Vec<f32>, Option<Vec<f32>>) {
        let Self { cell, batch, length, hidden, .. } = *self;
        let width = cell.gates() * hidden;
        let weight = Panels::pack(Matrix::new(weight, width, hidden, hidden), true);
        let mut dgates = vec![0.0f32; batch * length * width];
        let mut down = vec![0.0f32; if cell == Cell::Gru { batch * length * width } else { 0 }];
        // What later positions ask of the state, and of a cell; `[batch, hidden]`.
        let mut dstate = vec![0.0f32; batch * hidden];
        let mut later = vec![0.0f32; batch * hidden];
        let zeros = vec![0.0f32; hidden];
        for place in (0..length).rev() {
            let work = |sample: usize,
                        dstate: &mut [f32],
                        later: &mut [f32],
                        dgates: &mut [f32],
                        down: &mut [f32]| {
                let row = sample * length + place;
                let here = row * hidden..(row + 1) * hidden;
                let inner_before: &[f32] =
                    if place == 0 { &zeros } else { &kept.inner[here.start - hidden..here.start] };
                let step = Step {
                    gates: &kept.gates[row * width..(row + 1) * width],
                    inner: &kept.inner[here.clone()],
                    inner_before,
                    before: &kept.before[here.clone()],
                };
                dstate.iter_mut().zip(&grad[here]).for_each(|(sum, grad)| *sum += grad);
                let own = place * width..(place + 1) * width;
                match cell {
                    Cell::Lstm => {
                        let dgates = &mut dgates[own];
                        vectorised(LstmBack { step, dstate, dcell: later, dgates });
                    }
                    Cell::Gru => {
                        let dgates = &mut dgates[own.clone()];
                        vectorised(GruBack { step, dstate, direct: later, dgates, down: &mut down[own] });
                    }
                }
            };
            let samples = dstate
                .par_chunks_exact_mut(hidden)
                .zip(later.par_chunks_exact_mut(hidden))
                .zip(dgates.par_chunks_exact_mut(length * width))
                .enumerate();
            match cell {
                Cell::Lstm => samples.for_each(|(sample, ((dstate, later), dgates))| {
                    work(sample, dstate, later, dgates, &mut []);
                }),
                Cell::Gru => samples.zip(down.par_chunks_exact_mut(length * width)).for_each(
                    |((sample, ((dstate, later), dgates)), down)| work(sample, dstate, later, dgates, down),
                ),
            }
            if place == 0 {
                break;
            }
            // What the state before gets through the gates.
            let through = if cell == Cell::Lstm { &dgates } else { &down };
            let through = Matrix::new(&through[place * width..], batch, width, length * width);
            if cell == Cell::Gru {
                dstate.copy_from_slice(&later);
            }
            let start = if cell == Cell::Gru { Start::Kept } else { Start::Zero };
            multiply_parallel(through, &weight, 1.0, start, &mut dstate, hidden);
        }
        (dgates, (cell == Cell::Gru).then_some(down))
    }
}

/// The last `count` values, if there are so many.
fn last_values(values: &[f32], count: usize) -> Option<&[f32]> {
    values.len().checked_sub(count).map(|start| &values[start..])
}

impl CustomOp3 for Recurrent {
    fn name(&self) -> &'static str {
        "recurrent network"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        inputs_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = contiguous(inputs, inputs_layout, "inputs")?;
        let weight = contiguous(weight, weight_layout, "weight")?;
        let (states, kept) = self.forward(inputs, weight, contiguous(bias, bias_layout, "bias")?);
        // An operation is computed once; a second time would keep the same.
        self.kept.get_or_init(|| kept);
        Ok((CpuStorage::F32(states), Shape::from((self.batch, self.length, self.hidden))))
    }

    fn bwd(
        &self,
        inputs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _states: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else { bail!("a recurrent network goes back before it went forth") };
        let grad = grad.contiguous()?;
        let (dgates, down) = self.backward(kept, &borrow(weight)?, &borrow(&grad)?);
        let own = down.as_ref().unwrap_or(&dgates);
        let (width, rows) = (self.cell.gates() * self.hidden, self.batch * self.length);
        let dweight = match weight.track_op() {
            true => {
                let mut dweight = vec![0.0f32; width * self.hidden];
                let before = Matrix::new(&kept.before, rows, self.hidden, self.hidden);
                let own = Matrix::new(own, rows, width, width).transposed();
                product(own, before, 1.0, false, &mut dweight, self.hidden, true);
                Some(Tensor::from_vec(dweight, weight.shape(), weight.device())?)
            }
            false => None,
        };
        let dbias = match bias.track_op() {
            true => Some(Tensor::from_vec(column_sums(own, width), bias.shape(), bias.device())?),
            false => None,
        };
        let dinputs = match inputs.track_op() {
            true => Some(Tensor::from_vec(dgates, inputs.shape(), inputs.device())?),
            false => None,
        };
        Ok((dinputs, dweight, dbias))
    }
}
