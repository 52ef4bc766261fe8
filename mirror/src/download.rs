//! From the mirror into the store. Whatever comes is verified before it gets a name there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use pipe_cache::{Digest, Partial, Record, Store, StoreError};

use crate::objects::{Refusal, age, blob_path, record_path};
use crate::{Mode, Shared};

/// Files that come at a time.
const AT_A_TIME: usize = 4;
/// How often to look whether another process has fetched a file.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// A record that was used is written anew so often, so that rules that expire old objects spare it.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// The record of a key. One that does not read back, or is of another key, is none, and is replaced later.
pub(crate) async fn record(shared: &Shared, key: &Digest) -> Option<Record> {
    let path = record_path(key);
    let found = shared.answered(shared.objects.short(&path).await)?;
    let record = found.record().filter(|record| record.key == *key);
    if record.is_none() {
        shared.broken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(*key);
        return None;
    }
    if shared.mode == Mode::ReadWrite && age(found.modified) > RENEWED {
        let again = object_store::PutMode::Update(found.version);
        // Another machine may be first, and where the server knows no such condition it just grows old.
        let _ = shared.objects.put(&path, found.bytes, again).await;
    }
    record
}

/// Brings the files of a record that the store lacks; whether all are there now.
pub(crate) async fn files(shared: &Shared, record: &Record, store: &Store) -> bool {
    let files = record.outputs.values().flat_map(|output| &output.files);
    let missing: BTreeMap<Digest, u64> = files
        .filter(|file| !store.has_blob(&file.blob, file.bytes))
        .map(|file| (file.blob, file.bytes))
        .collect();
    let fetches = missing.into_iter().map(|(digest, bytes)| async move {
        let fetched = blob(shared, &digest, bytes, store).await;
        match fetched {
            Ok(()) => true,
            Err(Fetching::Refused(Refusal::Failed(reason))) => {
                shared.turn_off(reason);
                false
            }
            Err(Fetching::Refused(_) | Fetching::Damaged) => {
                shared.note_damaged(digest, record.key);
                false
            }
            Err(Fetching::Store(error)) => {
                shared.turn_off(not_stored(&error));
                false
            }
        }
    });
    let mut fetched = futures_util::stream::iter(fetches).buffer_unordered(AT_A_TIME);
    let mut all = true;
    // The others go on: what is there already need not come again.
    while let Some(came) = fetched.next().await {
        all &= came;
    }
    all
}

/// Why a mirror is of no use to a store that does not take what comes.
pub(crate) fn not_stored(error: &StoreError) -> String {
    format!("what it gave could not be stored: {error}")
}

/// Why a file did not come.
enum Fetching {
    Refused(Refusal),
    /// It is not what its name says.
    Damaged,
    Store(StoreError),
}

impl From<StoreError> for Fetching {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn blob(shared: &Shared, digest: &Digest, bytes: u64, store: &Store) -> Result<(), Fetching> {
    let identity = format!("mirror {digest}");
    let mut partial = loop {
        if let Some(partial) = store.partial(&identity)? {
            break partial;
        }
        // Another process is at it.
        tokio::time::sleep(LOOK_AGAIN).await;
        if store.has_blob(digest, bytes) {
            return Ok(());
        }
    };
    // Longer than the whole, it is no beginning of it.
    if partial.bytes() > bytes {
        partial.clear()?;
    }
    let was_begun = partial.bytes() > 0;
    let fetched = append(shared, digest, bytes, &mut partial).await;
    if let Err(error) = fetched {
        if !matches!(error, Fetching::Refused(Refusal::Failed(_))) {
            partial.discard()?;
        }
        return Err(error);
    }
    if partial.bytes() == bytes && partial.digest()? == *digest {
        return Ok(partial.store(*digest)?);
    }
    if was_begun {
        // The beginning may have been of something else.
        partial.clear()?;
        append(shared, digest, bytes, &mut partial).await?;
        if partial.bytes() == bytes && partial.digest()? == *digest {
            return Ok(partial.store(*digest)?);
        }
    }
    partial.discard()?;
    Err(Fetching::Damaged)
}

/// Adds what a file lacks, and never more than it may have.
async fn append(shared: &Shared, digest: &Digest, bytes: u64, partial: &mut Partial) -> Result<(), Fetching> {
    if partial.bytes() == bytes && bytes > 0 {
        return Ok(());
    }
    let streamed = shared.objects.stream(&blob_path(digest), partial.bytes()).await;
    let (length, mut stream) = streamed.map_err(Fetching::Refused)?;
    if length != bytes {
        return Err(Fetching::Damaged);
    }
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Fetching::Refused(shared.objects.broken_off(error)))?;
        if partial.bytes() + chunk.len() as u64 > bytes {
            return Err(Fetching::Damaged);
        }
        partial.append(&chunk)?;
    }
    Ok(())
}
