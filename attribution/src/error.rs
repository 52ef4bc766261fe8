//! Why a method gave no attribution.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttributionError {
    /// A tensor operation of the model, or a shape that it does not take.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// Settings of the method that do not fit these inputs.
    #[error("{0}")]
    Settings(String),
    /// The method is not defined for this model; the reason.
    #[error("{0}")]
    NotApplicable(String),
    /// The observer asked to stop.
    #[error("stopped on request")]
    Stopped,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, AttributionError>;
