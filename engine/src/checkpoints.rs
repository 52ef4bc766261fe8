//! What a long action keeps of its work, so that the next attempt need not begin again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pipe_cache::StoreError;

use crate::error::StageError;

/// The time between two checkpoints: what a kill may cost.
pub(crate) const EVERY: Duration = Duration::from_secs(300);
/// How many are kept.
pub(crate) const KEEP: usize = 2;

/// The checkpoints of a running action. A stage asks [`Self::resume`] once, and [`Self::is_due`] at each
/// point where its state is whole.
///
/// A result must not depend on whether and where an action was interrupted: what is restored is all that
/// the rest of the work depends on, to the bit.
#[derive(Debug)]
pub struct Checkpoints {
    store: Option<pipe_cache::Checkpoints>,
    every: Duration,
    last: Mutex<Instant>,
}

/// A state to go on from.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// The step after which it was kept.
    pub step: u64,
    /// The files that were kept.
    pub folder: PathBuf,
}

impl From<pipe_cache::Checkpoint> for Resumed {
    fn from(checkpoint: pipe_cache::Checkpoint) -> Self {
        Self { step: checkpoint.step, folder: checkpoint.folder }
    }
}

impl Checkpoints {
    /// None are kept.
    pub fn none() -> Self {
        Self { store: None, every: EVERY, last: Mutex::new(Instant::now()) }
    }

    /// Checkpoints in a store, one each time that `every` has passed.
    pub fn new(store: pipe_cache::Checkpoints, every: Duration) -> Self {
        Self { store: Some(store), every, last: Mutex::new(Instant::now()) }
    }

    /// The newest state that an earlier attempt kept.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn resume(&self) -> Result<Option<Resumed>, StageError> {
        let Some(store) = &self.store else { return Ok(None) };
        Ok(store.newest().map_err(store_error)?.map(Resumed::from))
    }

    /// Whether it is time to keep the state.
    pub fn is_due(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.is_some() && last.elapsed() >= self.every
    }

    /// Keeps the state after `step`: the files that `write` puts into a folder.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn save(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        let Some(store) = &self.store else { return Ok(()) };
        store.save(step, |folder| write(folder).map_err(Failure)).map_err(|Failure(error)| error)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(())
    }
}

/// A stage's error on its way through the store.
struct Failure(StageError);

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self(store_error(error))
    }
}

fn store_error(error: StoreError) -> StageError {
    match error {
        StoreError::Fs(error) => StageError::environment(
            format!("keeping a checkpoint in `{}`", error.path.display()),
            error.source,
        ),
        error => StageError::because("keeping a checkpoint", error),
    }
}
