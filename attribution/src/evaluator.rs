//! Evaluating a score in batches of bounded size, counting what it costs.

use std::cell::Cell;
use std::ops::{ControlFlow, Range};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use pipe_models::Probe;

use crate::method::Inputs;
use crate::{AttributionError, Result, Score};

/// How often the model was evaluated, in rows: the unit of the cost of a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passes {
    /// Rows whose score was computed.
    pub forward: u64,
    /// Rows whose gradient was computed.
    pub backward: u64,
}

/// Is told the passes so far after every batch, and may ask to stop.
pub type Observer<'a> = &'a dyn Fn(Passes) -> ControlFlow<()>;

/// Evaluates a score in batches of a given number of rows. Methods make their rows (steps, windows,
/// masks of several samples) while they are evaluated, so that memory does not grow with their number.
pub struct Evaluator<'a> {
    score: &'a dyn Score,
    batch: usize,
    observer: Option<Observer<'a>>,
    passes: Cell<Passes>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator of `score` with at most `batch` rows (at least one) per forward pass.
    pub fn new(score: &'a dyn Score, batch: usize) -> Self {
        Self { score, batch: batch.max(1), observer: None, passes: Cell::default() }
    }

    /// Calls `observer` after every batch.
    #[must_use]
    pub fn observed(mut self, observer: Observer<'a>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Rows of one forward pass at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The passes so far.
    pub fn passes(&self) -> Passes {
        self.passes.get()
    }

    /// The score of each row.
    ///
    /// # Errors
    /// If the score fails or the observer asks to stop; likewise below.
    pub fn scores(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(inputs.rows());
        self.score_each(inputs.rows(), |rows| part(inputs, rows), |_, score| scores.push(score))?;
        Ok(scores)
    }

    /// Scores `rows` rows that `make` makes range by range; `take` gets row number and score, in order.
    ///
    /// # Errors
    /// As [`Self::scores`].
    pub fn score_each(
        &self,
        rows: usize,
        mut make: impl FnMut(Range<usize>) -> Result<Inputs>,
        mut take: impl FnMut(usize, f32),
    ) -> Result<()> {
        for range in self.ranges(rows) {
            let inputs = make(range.clone())?;
            let scores = self.forward(&inputs, inputs.values())?;
            self.count(range.len(), 0)?;
            for (row, score) in range.zip(host(&scores)?) {
                take(row, score);
            }
        }
        Ok(())
    }

    /// Scores and gradients with respect to `rows` rows that `make` makes range by range; `take` gets
    /// row number, score and gradient, in order.
    ///
    /// # Errors
    /// As [`Self::scores`].
    pub fn gradient_each(
        &self,
        rows: usize,
        mut make: impl FnMut(Range<usize>) -> Result<Inputs>,
        mut take: impl FnMut(usize, f32, &[f32]),
    ) -> Result<()> {
        for range in self.ranges(rows) {
            let inputs = make(range.clone())?;
            let variable = Var::from_tensor(inputs.values())?;
            let scores = self.forward(&inputs, &variable)?;
            // Samples do not see each other, so the gradient of the sum holds each row's own.
            let gradient = scores.sum_all()?.backward()?.remove(&variable);
            self.count(range.len(), range.len())?;
            let gradient = match gradient {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                // No path leads from the input to the score.
                None => vec![0.0; variable.elem_count()],
            };
            let scores = host(&scores)?;
            for ((row, score), gradient) in range.zip(scores).zip(gradient.chunks_exact(inputs.row_length()))
            {
                take(row, score, gradient);
            }
        }
        Ok(())
    }

    /// Scores and gradients of each row of `inputs`, flat.
    pub(crate) fn gradients(&self, inputs: &Inputs) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut scores = Vec::with_capacity(inputs.rows());
        let mut gradients = Vec::with_capacity(inputs.rows() * inputs.row_length());
        self.gradient_each(
            inputs.rows(),
            |rows| part(inputs, rows),
            |_, score, gradient| {
                scores.push(score);
                gradients.extend_from_slice(gradient);
            },
        )?;
        Ok((scores, gradients))
    }

    /// As [`Self::gradients`], through a probe; `take` gets score and gradient of each row, in order.
    pub(crate) fn gradients_probed(
        &self,
        inputs: &Inputs,
        probe: &dyn Probe,
        mut take: impl FnMut(f32, &[f32]),
    ) -> Result<()> {
        for range in self.ranges(inputs.rows()) {
            let inputs = part(inputs, range)?;
            let variable = Var::from_tensor(inputs.values())?;
            let scores = self.probed(&inputs, &variable, probe)?;
            let gradient = self.backward(&scores)?.remove(&variable);
            let gradient = match gradient {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; variable.elem_count()],
            };
            for (score, gradient) in
                host(&scores)?.into_iter().zip(gradient.chunks_exact(inputs.row_length()))
            {
                take(score, gradient);
            }
        }
        Ok(())
    }

    /// The scores of a batch of at most [`Self::batch`] rows through a probe, with their graph.
    pub(crate) fn probed(&self, inputs: &Inputs, values: &Tensor, probe: &dyn Probe) -> Result<Tensor> {
        let scores = self.checked(inputs, self.score.score(values, inputs.samples(), Some(probe))?)?;
        self.count(inputs.rows(), 0)?;
        Ok(scores)
    }

    /// Gradients of a batch's scores, which are counted.
    pub(crate) fn backward(&self, scores: &Tensor) -> Result<GradStore> {
        let gradients = scores.sum_all()?.backward()?;
        self.count(0, scores.elem_count())?;
        Ok(gradients)
    }

    /// Batches of rows.
    pub(crate) fn parts(&self, inputs: &Inputs) -> Result<Vec<Inputs>> {
        self.ranges(inputs.rows()).map(|rows| part(inputs, rows)).collect()
    }

    fn ranges(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let batch = self.batch;
        (0..rows).step_by(batch).map(move |start| start..(start + batch).min(rows))
    }

    fn forward(&self, inputs: &Inputs, values: &Tensor) -> Result<Tensor> {
        self.checked(inputs, self.score.score(values, inputs.samples(), None)?)
    }

    fn checked(&self, inputs: &Inputs, scores: Tensor) -> Result<Tensor> {
        if scores.dims() != [inputs.rows()] {
            return Err(AttributionError::Settings(format!(
                "a score is one number per row; {} rows gave {:?}",
                inputs.rows(),
                scores.dims()
            )));
        }
        Ok(scores)
    }

    fn count(&self, forward: usize, backward: usize) -> Result<()> {
        let before = self.passes.get();
        let passes =
            Passes { forward: before.forward + forward as u64, backward: before.backward + backward as u64 };
        self.passes.set(passes);
        match self.observer.map(|observer| observer(passes)) {
            Some(ControlFlow::Break(())) => Err(AttributionError::Stopped),
            _ => Ok(()),
        }
    }
}

fn part(inputs: &Inputs, rows: Range<usize>) -> Result<Inputs> {
    let values = inputs.values().narrow(0, rows.start, rows.len())?;
    Inputs::of_samples(&values, inputs.samples()[rows].to_vec())
}

pub(crate) fn host(scores: &Tensor) -> Result<Vec<f32>> {
    Ok(scores.detach().to_dtype(DType::F32)?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Linear, normal};

    #[test]
    fn rows_are_evaluated_in_batches_and_counted() {
        let score = Linear::new(2, &[3, 4]);
        let inputs = Inputs::new(&normal(1, &[5, 3, 4])).unwrap();
        let seen = Cell::new(Vec::new());
        let observer = |passes: Passes| {
            let mut all = seen.take();
            all.push(passes.forward);
            seen.set(all);
            ControlFlow::Continue(())
        };
        let evaluator = Evaluator::new(&score, 2).observed(&observer);
        let scores = evaluator.scores(&inputs).unwrap();
        assert_eq!(scores.len(), 5);
        assert_eq!(seen.take(), [2, 4, 5]);
        evaluator.gradients(&inputs).unwrap();
        assert_eq!(evaluator.passes(), Passes { forward: 10, backward: 5 });
    }

    #[test]
    fn an_observer_stops_between_batches() {
        let score = Linear::new(2, &[3]);
        let inputs = Inputs::new(&normal(1, &[6, 3])).unwrap();
        let stop = |passes: Passes| {
            if passes.forward >= 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let evaluator = Evaluator::new(&score, 2).observed(&stop);
        assert!(matches!(evaluator.scores(&inputs), Err(AttributionError::Stopped)));
        assert_eq!(evaluator.passes().forward, 4);
    }

    #[test]
    fn a_score_of_another_shape_is_an_error() {
        struct Wrong;
        impl Score for Wrong {
            fn score(
                &self,
                input: &Tensor,
                _samples: &[usize],
                _probe: pipe_models::MaybeProbe<'_>,
            ) -> candle_core::Result<Tensor> {
                input.sum_all()
            }
        }
        let inputs = Inputs::new(&normal(1, &[2, 3])).unwrap();
        assert!(matches!(Evaluator::new(&Wrong, 4).scores(&inputs), Err(AttributionError::Settings(_))));
    }
}
