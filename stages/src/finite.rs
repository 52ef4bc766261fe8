//! Values of a model that are no finite numbers are refused before anything is counted: a comparison with NaN is
//! false whichever way it is asked, so that a figure of a broken model can be that of a perfect one.

use pipe_engine::StageError;

/// Refuses values of the sample `id` that are not finite; `what` names them: `embedding`, `logits`.
///
/// # Errors
/// With the first such value, its place and what may be the reason.
pub(crate) fn check_finite(what: &str, id: &str, values: &[f32]) -> Result<(), StageError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(place) => Err(StageError::failed(format!(
            "the {what} of `{id}` hold {} at place {place} of {}, which is no finite number: the checkpoint is \
             damaged or its training diverged, or `precision` is too narrow for it (`f32` is the widest)",
            values[place],
            values.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_named_with_its_sample() {
        assert!(check_finite("logits", "a", &[0.0, -1.0, f32::MAX]).is_ok());
        for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
            let error = check_finite("logits", "image 7", &[0.0, value]).unwrap_err().to_string();
            assert!(
                error.contains("`image 7`") && error.contains(&format!("hold {name} at place 1 of 2")),
                "{error}"
            );
        }
    }
}
