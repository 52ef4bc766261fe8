//! Vectors whose values are written once, and not filled with zeros before.

use std::mem::MaybeUninit;

/// A vector of `length` values.
///
/// # Safety
/// `write` writes each of them.
pub(super) unsafe fn written(length: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    write(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: the caller's promise.
    unsafe { values.set_len(length) };
    values
}
