//! Bounds on the sizes of an architecture, which come from files that nobody vouches for.

use crate::checkpoint::CheckpointError;

/// A size beyond this is no model but a mistake or an attack.
const LIMIT: usize = 1 << 20;
/// So is a transformer of more layers.
const LAYERS: usize = 1 << 10;

fn error(reason: String) -> CheckpointError {
    CheckpointError::new("config.json", reason)
}

/// Fails, naming the field, unless all sizes are from 1 to 2^20.
pub(crate) fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), CheckpointError> {
    check_up_to(LIMIT, sizes)
}

/// Fails, naming the field, unless all numbers of layers are from 1 to 2^10.
pub(crate) fn check_layers(layers: &[(&str, usize)]) -> Result<(), CheckpointError> {
    check_up_to(LAYERS, layers)
}

fn check_up_to(limit: usize, sizes: &[(&str, usize)]) -> Result<(), CheckpointError> {
    match sizes.iter().find(|(_, size)| !(1..=limit).contains(size)) {
        Some((name, size)) => {
            Err(error(format!("`{name}` is {size}; a whole number from 1 to {limit} is expected")))
        }
        None => Ok(()),
    }
}

/// Fails unless the heads divide the width of `part`.
pub(crate) fn check_heads(part: &str, width: usize, heads: usize) -> Result<(), CheckpointError> {
    if heads > 0 && width.is_multiple_of(heads) {
        Ok(())
    } else {
        Err(error(format!("`{part}`: {heads} heads do not divide a width of {width}")))
    }
}

/// Fails unless epsilon is a small positive number.
pub(crate) fn check_epsilon(part: &str, epsilon: f64) -> Result<(), CheckpointError> {
    if epsilon > 0.0 && epsilon < 1.0 {
        Ok(())
    } else {
        Err(error(format!("`{part}` is {epsilon}; a small positive number is expected")))
    }
}

/// Fails unless `inner` is at most `outer`.
pub(crate) fn check_fits(
    (inner_name, inner): (&str, usize),
    (outer_name, outer): (&str, usize),
) -> Result<(), CheckpointError> {
    if inner <= outer {
        Ok(())
    } else {
        Err(error(format!("`{inner_name}` is {inner}, more than `{outer_name}`, {outer}")))
    }
}
