/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{file}`: {reason}")]
pub struct CheckpointError {
    /// The file, or the tensor.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

impl CheckpointError {
    pub(crate) fn new(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { file: file.into(), reason: reason.into() }
    }
}

/// The first line of an error's text: candle's may carry a backtrace.
pub(crate) fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
