/// Stands for the file of weights until that is known.
const WEIGHTS: &str = "the weights";

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
    /// What is wrong with tensors whose file the place of the mistake does not know.
    pub(crate) fn in_weights(reason: impl Into<String>) -> Self {
        Self::new(WEIGHTS, reason)
    }

    /// The same, where the file is known.
    #[must_use]
    pub(crate) fn of_file(self, name: &str) -> Self {
        if self.file == WEIGHTS { Self::new(name, self.reason) } else { self }
    }

    pub(crate) fn new(file: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { file: file.into(), reason: reason.into() }
    }
}

/// The first line of an error's text: candle's may carry a backtrace.
pub(crate) fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
