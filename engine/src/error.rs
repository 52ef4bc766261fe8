//! How a stage fails, in classes that decide the exit code and what a person is told.

use std::path::PathBuf;

use pipe_cache::SpillError;

/// The classes by which failures are retried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureClass {
    /// Out of memory, of the machine or of a device.
    Oom,
    /// A system call failed.
    Io,
    /// A child process was ended by a signal.
    Signal,
    /// The time of `resources.time` was over.
    Timeout,
    /// The executor lost the action.
    Lost,
    /// The stage itself failed.
    Error,
}

impl FailureClass {
    /// All classes.
    pub const ALL: [Self; 6] = [Self::Oom, Self::Io, Self::Signal, Self::Timeout, Self::Lost, Self::Error];

    /// As `retry.on` and events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oom => "oom",
            Self::Io => "io",
            Self::Signal => "signal",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Error => "error",
        }
    }

    /// The class of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

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
    /// There is not enough memory, of the machine or of a device; another attempt may find more.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A child process was ended by a signal.
    #[error("`{program}` was ended by signal {signal}")]
    Signalled {
        /// The program.
        program: String,
        /// The signal's number.
        signal: i32,
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

impl From<SpillError> for StageError {
    fn from(error: SpillError) -> Self {
        let doing = format!("keeping what is too long for memory in `{}`", error.folder.display());
        Self::Environment { doing, source: error.source }
    }
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
