//! What a long action keeps of its work, so that the next attempt need not begin again.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use pipe_cache::StoreError;

use crate::error::StageError;
use crate::pipeline::CheckpointEvery;

/// The checkpoints of a running action. A stage asks [`Self::resume`] once, and [`Self::is_due`] at each
/// point where its state is whole.
///
/// A result must not depend on whether and where an action was interrupted: what is restored is all that
/// the rest of the work depends on, to the bit.
#[derive(Debug)]
pub struct Checkpoints {
    store: Option<pipe_cache::Checkpoints>,
    every: CheckpointEvery,
    /// When the last one was made, or the work began, and after which step.
    last: Mutex<(Instant, u64)>,
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
        Self { store: None, every: CheckpointEvery::Seconds(u64::MAX), last: Mutex::new((Instant::now(), 0)) }
    }

    /// Checkpoints in a store, one each time that `every` has passed.
    pub fn new(store: pipe_cache::Checkpoints, every: CheckpointEvery) -> Self {
        Self { store: Some(store), every, last: Mutex::new((Instant::now(), 0)) }
    }

    /// The newest state that an earlier attempt kept.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn resume(&self) -> Result<Option<Resumed>, StageError> {
        let Some(store) = &self.store else { return Ok(None) };
        let resumed = store.newest().map_err(store_error)?.map(Resumed::from);
        self.note(resumed.as_ref().map_or(0, |resumed| resumed.step));
        Ok(resumed)
    }

    /// Whether it is time to keep the state, now that `step` is done.
    pub fn is_due(&self, step: u64) -> bool {
        let (when, kept) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let has_passed = match self.every {
            CheckpointEvery::Seconds(seconds) => when.elapsed().as_secs() >= seconds,
            CheckpointEvery::Steps(steps) => step.saturating_sub(kept) >= steps,
        };
        self.store.is_some() && has_passed
    }

    fn note(&self, step: u64) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), step);
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
        self.note(step);
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
