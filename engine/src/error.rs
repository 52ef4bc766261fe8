//! How a stage fails, in classes that decide the exit code and what a person is told.

use std::path::PathBuf;

/// Why a stage did not finish.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The run was asked to stop, and the stage did.
    #[error("cancelled")]
    Cancelled,
    /// Input data are missing or damaged (exit code 4).
    #[error("`{}`: {reason}", path.display())]
    InputData {
        /// The file, as the user knows it.
        path: PathBuf,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The store or the machine refuses: no space, no permission, no device (exit code 3).
    #[error("{doing}")]
    Environment {
        /// What was being done, and to what.
        doing: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Anything else (exit code 1).
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// The cause, if another library reported one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl StageError {
    /// A failure described by a sentence.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), source: None }
    }

    /// A failure with its cause: `doing` says what was attempted.
    pub fn because(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed { message: doing.into(), source: Some(source.into()) }
    }

    /// Damaged or missing input data.
    pub fn input(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::InputData { path: path.into(), reason: reason.into() }
    }

    /// A failed system call on the store or on staging.
    pub fn environment(doing: impl Into<String>, source: std::io::Error) -> Self {
        Self::Environment { doing: doing.into(), source }
    }
}
