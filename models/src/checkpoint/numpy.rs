//! NumPy arrays in a pickle, as some older checkpoints hold them.

use super::pickle::{Id, Pickle, Value};
use super::stored::{Element, Storage, StoredTensor, row_major};
use super::torch::counts;

const MODULES: [&str; 2] = ["numpy.core.multiarray", "numpy._core.multiarray"];

/// What the pickle of an array or of a NumPy number refers to.
pub(super) fn is_known(module: &str, name: &str) -> bool {
    match module {
        "numpy" => matches!(name, "ndarray" | "dtype"),
        _ => MODULES.contains(&module) && matches!(name, "_reconstruct" | "scalar"),
    }
}

/// The array that a value stands for: `_reconstruct(ndarray, (0,), b"b")` with the state
/// `(version, shape, dtype, is Fortran order, bytes)`.
pub(super) fn array(pickle: &Pickle<'_>, id: Id, base: u64) -> Result<Option<StoredTensor>, String> {
    let Value::Call { function, state, .. } = pickle.value(id) else { return Ok(None) };
    if !matches!(pickle.global(*function), Some((module, "_reconstruct")) if MODULES.contains(&module)) {
        return Ok(None);
    }
    let error = || "a NumPy array is described in another form than NumPy does".to_owned();
    let state = state.and_then(|state| pickle.tuple(state)).ok_or_else(error)?;
    let &[_, shape, dtype, fortran, bytes] = state else { return Err(error()) };
    let shape: Vec<usize> =
        counts(pickle, shape).ok_or_else(error)?.into_iter().map(|size| size as usize).collect();
    let element = element(pickle, dtype)?;
    let &Value::Bytes(place, bytes) = pickle.value(bytes) else {
        return Err("the elements of a NumPy array are no bytes".to_owned());
    };
    let storage =
        Storage { element, start: base + place as u64, elements: bytes.len() as u64 / element.bytes() };
    let strides = if matches!(pickle.value(fortran), Value::Bool(true)) {
        let reversed: Vec<usize> = shape.iter().rev().copied().collect();
        row_major(&reversed).into_iter().rev().collect()
    } else {
        row_major(&shape)
    };
    StoredTensor::new(storage, 0, shape, strides).map(Some)
}

/// The element type of `dtype("f4", ...)` with the state `(version, byte order, ...)`.
fn element(pickle: &Pickle<'_>, id: Id) -> Result<Element, String> {
    let Value::Call { function, arguments, state } = pickle.value(id) else {
        return Err("a NumPy array has no element type".to_owned());
    };
    let code = pickle.tuple(*arguments).and_then(|arguments| pickle.text(*arguments.first()?));
    let (Some(("numpy", "dtype")), Some(code)) = (pickle.global(*function), code) else {
        return Err("a NumPy array has no element type".to_owned());
    };
    let order = state
        .and_then(|state| pickle.tuple(state))
        .and_then(|state| pickle.text(*state.get(1)?))
        .unwrap_or("|");
    match (code, order) {
        (_, ">") => Err("the numbers of a NumPy array are big endian".to_owned()),
        ("b1", _) => Ok(Element::Bool),
        ("u1", _) => Ok(Element::U8),
        ("i1", _) => Ok(Element::I8),
        ("i2", _) => Ok(Element::I16),
        ("u2", _) => Ok(Element::U16),
        ("i4", _) => Ok(Element::I32),
        ("u4", _) => Ok(Element::U32),
        ("i8", _) => Ok(Element::I64),
        ("f2", _) => Ok(Element::F16),
        ("f4", _) => Ok(Element::F32),
        ("f8", _) => Ok(Element::F64),
        _ => Err(format!("a NumPy array has elements of type `{}`", code.escape_debug())),
    }
}
