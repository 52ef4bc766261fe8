//! Tensors on their way from a checkpoint into a model: handed out by name, some as variables.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::checkpoint::{CheckpointError, first_line};
use crate::device::Precision;
use crate::initial::{Initial, Start};

/// Which parameters become variables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trainable {
    /// None: inference and attribution.
    Frozen,
    /// All.
    All,
    /// Those of the image side: the image tower and its projection.
    Image,
    /// Those of the text side: the text tower and its projection.
    Text,
}

impl Trainable {
    fn contains(self, side: Side) -> bool {
        match self {
            Self::Frozen => false,
            Self::All => true,
            Self::Image => side == Side::Image,
            Self::Text => side == Side::Text,
        }
    }
}

/// The part of a model that a parameter belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The image tower or its projection.
    Image,
    /// The text tower or its projection.
    Text,
    /// Neither alone: the logit scale, a module over both towers.
    Both,
}

/// The parameters of a loaded model by their names in the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    variables: BTreeMap<String, Var>,
    /// Running statistics, which training changes and no gradient reaches.
    buffers: BTreeMap<String, Var>,
    /// Frozen parameters, buffers, and tensors that the model carries along unused.
    constants: BTreeMap<String, Tensor>,
}

impl Parameters {
    /// The variables by name; empty if the model is frozen.
    pub fn variables(&self) -> &BTreeMap<String, Var> {
        &self.variables
    }

    /// The running statistics of batch norms by name: training passes change them.
    pub fn buffers(&self) -> &BTreeMap<String, Var> {
        &self.buffers
    }

    /// The current values by name, detached. Those of variables and buffers are seen changing with them.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        let mut tensors = self.constants.clone();
        for (name, variable) in self.variables.iter().chain(&self.buffers) {
            tensors.insert(name.clone(), variable.as_detached_tensor());
        }
        tensors
    }

    /// Where they lie; the CPU, if there are none.
    pub fn device(&self) -> Device {
        let variables = self.variables.values().chain(self.buffers.values()).map(Var::as_tensor);
        variables.chain(self.constants.values()).next().map_or(Device::Cpu, |tensor| tensor.device().clone())
    }

    /// Sets variables and buffers to the values that [`Self::tensors`] gave earlier; constants among them
    /// are left alone.
    ///
    /// # Errors
    /// If a variable or buffer has no value or one of another shape; nothing is changed then.
    pub fn restore(&self, values: &BTreeMap<String, Tensor>) -> Result<(), CheckpointError> {
        let all = || self.variables.iter().chain(&self.buffers);
        for (name, variable) in all() {
            let found = values.get(name).map(Tensor::dims);
            if found != Some(variable.dims()) {
                let reason = format!("its shape is {found:?}, {:?} is expected", variable.dims());
                return Err(CheckpointError::new(name, reason));
            }
        }
        for (name, variable) in all() {
            let set =
                values[name].to_dtype(variable.dtype()).and_then(|value| variable.set(&value.contiguous()?));
            set.map_err(|error| CheckpointError::new(name, first_line(&error)))?;
        }
        Ok(())
    }
}

/// The tensors of a checkpoint while modules take their own out of them. Mismatches are collected, so
/// that all are reported at once.
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
    /// Makes what is missing, if weights are random.
    initial: Option<Initial>,
    trainable: Trainable,
    /// The data type of parameters that are no scalars.
    dtype: DType,
    side: fn(&str) -> Side,
    parameters: Parameters,
    problems: Vec<String>,
}

impl Weights {
    /// The tensors of a checkpoint by name.
    pub fn new(tensors: BTreeMap<String, Tensor>, trainable: Trainable) -> Self {
        let parameters = Parameters::default();
        Self {
            tensors,
            initial: None,
            trainable,
            dtype: DType::F32,
            side: |_| Side::Both,
            parameters,
            problems: Vec::new(),
        }
    }

    /// Weights of any architecture, drawn as they are taken.
    pub(crate) fn random(initial: Initial, trainable: Trainable) -> Self {
        Self { initial: Some(initial), ..Self::new(BTreeMap::new(), trainable) }
    }

    /// Modules of visual question answering that begin at random: each draws its parameters as its authors
    /// do, as a function of the seed and the parameter's name. What is `given` (word tables, published
    /// weights) is not drawn.
    pub fn seeded(seed: u64, given: BTreeMap<String, Tensor>, trainable: Trainable) -> Self {
        let device = given.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
        Self { initial: Some(Initial { seed, device }), ..Self::new(given, trainable) }
    }

    /// The same, in double precision: for comparisons with finite differences.
    #[cfg(test)]
    pub(crate) fn doubled(self) -> Self {
        Self { dtype: DType::F64, ..self }
    }

    /// The same, with parameters in this precision.
    pub(crate) fn in_precision(self, precision: Precision) -> Self {
        Self { dtype: precision.dtype(), ..self }
    }

    /// Says which part of the model a name belongs to; before any tensor is taken.
    pub(crate) fn sides(&mut self, side: fn(&str) -> Side) {
        self.side = side;
    }

    /// Whether there is a tensor of this name that nobody has taken yet.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Adds a scalar that the checkpoint may leave out.
    pub(crate) fn fill_in(&mut self, name: &str, value: f32) -> Result<(), CheckpointError> {
        if self.initial.is_none() && !self.tensors.contains_key(name) {
            let device = self.tensors.values().next().map_or(Device::Cpu, |tensor| tensor.device().clone());
            let scalar = Tensor::new(value, &device)
                .map_err(|error| CheckpointError::new(name, first_line(&error)))?;
            self.tensors.insert(name.to_owned(), scalar);
        }
        Ok(())
    }

    /// Forgets a tensor that says nothing (`position_ids`) or is large and unused.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Keeps a tensor that the model does not use, so that a saved model has it too.
    pub(crate) fn carry(&mut self, name: &str) {
        if let Some(tensor) = self.tensors.remove(name) {
            self.parameters.constants.insert(name.to_owned(), tensor);
        }
    }

    /// Carries every tensor whose name begins with `prefix`.
    pub(crate) fn carry_all(&mut self, prefix: &str) {
        let names: Vec<String> =
            self.tensors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.iter().for_each(|name| self.carry(name));
    }

    /// The parameter of this name and shape: a variable if it is trainable. A mismatch is remembered
    /// and a stand-in of no elements returned.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let Some(tensor) = self.fitting(name, shape) else { return stand_in(name) };
        let problem = |error: candle_core::Error| CheckpointError::new(name, first_line(&error));
        // Factors (the logit scale) keep all their digits.
        let scalar = tensor.rank() == 0 && self.dtype != DType::F64;
        let tensor = if scalar { tensor } else { tensor.to_dtype(self.dtype).map_err(problem)? };
        if self.trainable.contains((self.side)(name)) {
            let variable = Var::from_tensor(&tensor).map_err(problem)?;
            let tensor = variable.as_tensor().clone();
            self.parameters.variables.insert(name.to_owned(), variable);
            Ok(tensor)
        } else {
            self.parameters.constants.insert(name.to_owned(), tensor.clone());
            Ok(tensor)
        }
    }

    /// As [`Self::take`]; if weights are random and this one is not given, it is drawn as `start` says.
    pub(crate) fn begin(
        &mut self,
        name: &str,
        shape: &[usize],
        start: Start,
    ) -> Result<Tensor, CheckpointError> {
        self.draw(name, shape, start)?;
        self.take(name, shape)
    }

    /// As [`Self::begin`], for a parameter that is not trained.
    pub(crate) fn frozen(
        &mut self,
        name: &str,
        shape: &[usize],
        start: Start,
    ) -> Result<Tensor, CheckpointError> {
        self.draw(name, shape, start)?;
        let dtype = self.dtype;
        self.buffer(name, shape)?
            .to_dtype(dtype)
            .map_err(|error| CheckpointError::new(name, first_line(&error)))
    }

    /// As [`Self::begin`], for running statistics, which keep all their digits in models of half precision.
    pub(crate) fn running(
        &mut self,
        name: &str,
        shape: &[usize],
        start: Start,
    ) -> Result<Var, CheckpointError> {
        self.draw(name, shape, start)?;
        let tensor = match self.fitting(name, shape) {
            Some(tensor) if self.dtype == DType::F64 => tensor.to_dtype(DType::F64),
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => stand_in(name).map(Ok)?,
        };
        self.keep_buffer(name, tensor)
    }

    /// As [`Self::running`], for a count of steps: an integer that a checkpoint may leave out.
    pub(crate) fn count(&mut self, name: &str) -> Result<Var, CheckpointError> {
        let tensor = match self.tensors.remove(name) {
            Some(tensor) => tensor.to_dtype(DType::I64).and_then(|tensor| tensor.reshape(())),
            None => Tensor::new(0i64, &Device::Cpu),
        };
        self.keep_buffer(name, tensor)
    }

    fn keep_buffer(
        &mut self,
        name: &str,
        tensor: candle_core::Result<Tensor>,
    ) -> Result<Var, CheckpointError> {
        let buffer = tensor
            .and_then(|tensor| Var::from_tensor(&tensor.copy()?))
            .map_err(|error| CheckpointError::new(name, first_line(&error)))?;
        self.parameters.buffers.insert(name.to_owned(), buffer.clone());
        Ok(buffer)
    }

    fn draw(&mut self, name: &str, shape: &[usize], start: Start) -> Result<(), CheckpointError> {
        if let (Some(initial), false) = (&self.initial, self.tensors.contains_key(name)) {
            let tensor = initial
                .start(name, shape, start)
                .map_err(|error| CheckpointError::new(name, first_line(&error)))?;
            self.tensors.insert(name.to_owned(), tensor);
        }
        Ok(())
    }

    /// As [`Self::take`], for a tensor that is no parameter and never trained (running statistics, a
    /// codebook).
    pub(crate) fn buffer(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, CheckpointError> {
        let Some(tensor) = self.fitting(name, shape) else { return stand_in(name) };
        self.parameters.constants.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }

    /// Whether weights may be of this type. Those of 64 bits are no published model's: to round them would
    /// change it, and would not be seen.
    fn is_weight(&self, dtype: DType) -> bool {
        dtype.is_float() && (dtype != DType::F64 || self.dtype == DType::F64)
    }

    fn fitting(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        if let (Some(initial), false) = (&self.initial, self.tensors.contains_key(name)) {
            match initial.draw(name, shape) {
                Ok(tensor) => return Some(tensor),
                Err(error) => self.problems.push(format!("`{name}` {shape:?}: {}", first_line(&error))),
            }
            return None;
        }
        match self.tensors.remove(name) {
            Some(tensor) if tensor.dims() == shape && self.is_weight(tensor.dtype()) => return Some(tensor),
            Some(tensor) if tensor.dims() == shape => self.problems.push(format!(
                "`{name}` {shape:?} holds {:?}, and weights are floats of 32 or 16 bits",
                tensor.dtype()
            )),
            Some(tensor) => self.problems.push(format!(
                "`{name}` is {:?} {:?}, {shape:?} is expected",
                tensor.dtype(),
                tensor.dims()
            )),
            None => self.problems.push(format!("`{name}` {shape:?} is missing")),
        }
        None
    }

    /// The parameters, if everything fitted and nothing was left over.
    ///
    /// # Errors
    /// What did not, all of it.
    pub fn finish(mut self) -> Result<Parameters, CheckpointError> {
        self.problems
            .extend(self.tensors.keys().map(|name| format!("`{name}` is not a tensor of this architecture")));
        if self.problems.is_empty() {
            Ok(self.parameters)
        } else {
            let reason =
                format!("{} tensors do not fit:\n  {}", self.problems.len(), self.problems.join("\n  "));
            Err(CheckpointError::in_weights(reason))
        }
    }
}

fn stand_in(name: &str) -> Result<Tensor, CheckpointError> {
    Tensor::zeros(0, DType::F32, &Device::Cpu).map_err(|error| CheckpointError::new(name, first_line(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &str) -> Side {
        match name {
            "scale" => Side::Both,
            name if name.starts_with("image.") => Side::Image,
            _ => Side::Text,
        }
    }

    fn tensors(names: &[&str]) -> BTreeMap<String, Tensor> {
        let one = || Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        names.iter().map(|name| ((*name).to_owned(), one())).collect()
    }

    #[test]
    fn only_the_trainable_side_becomes_variables() {
        let names = ["image.weight", "image.mean", "text.weight", "scale", "text.unused"];
        for (trainable, expected) in [
            (Trainable::Frozen, vec![]),
            (Trainable::Image, vec!["image.weight"]),
            (Trainable::Text, vec!["text.weight"]),
            (Trainable::All, vec!["image.weight", "scale", "text.weight"]),
        ] {
            let mut weights = Weights::new(tensors(&names), trainable);
            weights.sides(side);
            for name in ["image.weight", "text.weight", "scale"] {
                weights.take(name, &[2]).unwrap();
            }
            weights.buffer("image.mean", &[2]).unwrap();
            weights.carry_all("text.");
            let parameters = weights.finish().unwrap();
            assert_eq!(parameters.variables().keys().collect::<Vec<_>>(), expected);
            let all: Vec<String> = parameters.tensors().into_keys().collect();
            assert_eq!(all, ["image.mean", "image.weight", "scale", "text.unused", "text.weight"]);
        }
    }

    #[test]
    fn weights_of_other_types_are_named() {
        for (dtype, named) in [(DType::F64, "F64"), (DType::I64, "I64"), (DType::U8, "U8")] {
            let mut tensors = tensors(&["a", "b"]);
            tensors.insert("a".to_owned(), Tensor::ones(2, dtype, &Device::Cpu).unwrap());
            let mut weights = Weights::new(tensors, Trainable::Frozen);
            weights.take("a", &[2]).unwrap();
            weights.take("b", &[2]).unwrap();
            let message = weights.finish().unwrap_err().to_string();
            assert!(
                message.contains(&format!("`a` [2] holds {named}")) && !message.contains("`b`"),
                "{message}"
            );
        }
    }

    #[test]
    fn every_mismatch_is_listed_at_once() {
        let mut weights = Weights::new(tensors(&["a", "b", "c"]), Trainable::Frozen);
        weights.take("a", &[3]).unwrap();
        weights.take("missing", &[1]).unwrap();
        weights.ignore("c");
        let message = weights.finish().unwrap_err().to_string();
        for part in ["3 tensors", "`a` is F32 [2], [3]", "`missing` [1] is missing", "`b` is not a tensor"] {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(!message.contains("`c`"));
    }
}
