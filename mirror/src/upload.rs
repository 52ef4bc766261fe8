//! From the store to the mirror, in the background: the files of a result, then its record.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use object_store::PutMode;
use pipe_cache::{Digest, FileRecord, Record, Store};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::objects::{Refusal, Sending, alternative_path, blob_path, record_path};
use crate::parts::ABANDONED;
use crate::{Shared, probe};

/// Results that are on their way at a time.
const AT_A_TIME: usize = 4;
/// How often who waits is told.
const TELL: Duration = Duration::from_millis(100);

/// Which files of a result are put there. Its record always is: it holds digests, lengths and parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Blobs {
    /// All of them.
    #[default]
    All,
    /// None: others may know that the result exists, and make it themselves.
    None,
}

/// What was put there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uploaded {
    /// Records, those included that stood there already.
    pub records: u64,
    /// Files that were sent.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Keys under which other outputs stand there: their kinds are not deterministic. Ours stand beside them.
    pub differing: Vec<Digest>,
}

/// The way to the mirror.
#[derive(Debug)]
pub(crate) struct Uploads {
    queue: mpsc::UnboundedSender<(Record, Blobs, Store)>,
    task: JoinHandle<()>,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    asked: AtomicU64,
    done: AtomicU64,
    records: AtomicU64,
    blobs: AtomicU64,
    bytes: AtomicU64,
    differing: Mutex<Vec<Digest>>,
}

impl Uploads {
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (queue, asked) = mpsc::unbounded_channel();
        let count = Arc::new(Count::default());
        // Its own runtime is held by whoever holds the mirror.
        let task = shared.threads.spawn(work(Arc::downgrade(shared), asked, Arc::clone(&count)));
        Self { queue, task, count }
    }

    pub(crate) fn send(&self, record: Record, blobs: Blobs, store: Store) {
        self.count.asked.fetch_add(1, Ordering::Relaxed);
        // The receiver is gone only with the mirror.
        let _ = self.queue.send((record, blobs, store));
    }

    pub(crate) fn finish(
        self,
        shared: &Shared,
        is_cancelled: impl Fn() -> bool,
        mut progress: impl FnMut(u64, u64),
    ) -> Uploaded {
        let Self { queue, mut task, count } = self;
        drop(queue);
        loop {
            let ended = shared.threads.block_on(async { tokio::time::timeout(TELL, &mut task).await });
            progress(count.done.load(Ordering::Relaxed), count.asked.load(Ordering::Relaxed));
            if ended.is_ok() {
                break;
            }
            if is_cancelled() {
                task.abort();
                break;
            }
        }
        Uploaded {
            records: count.records.load(Ordering::Relaxed),
            blobs: count.blobs.load(Ordering::Relaxed),
            bytes: count.bytes.load(Ordering::Relaxed),
            differing: std::mem::take(&mut count.differing.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

async fn work(
    shared: Weak<Shared>,
    mut asked: mpsc::UnboundedReceiver<(Record, Blobs, Store)>,
    count: Arc<Count>,
) {
    let mut creates_once = None;
    let mut under_way = tokio::task::JoinSet::new();
    while let Some((record, blobs, store)) = asked.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        // Before the first record, and only if there is one.
        let creates_once = match creates_once {
            Some(known) => known,
            None => {
                let known = shared.answered(probe::creates_once(&shared.objects).await).unwrap_or(false);
                if !shared.is_off.load(Ordering::Relaxed) {
                    shared.objects.end_abandoned_uploads(ABANDONED).await;
                }
                *creates_once.insert(known)
            }
        };
        if under_way.len() >= AT_A_TIME {
            let _ = under_way.join_next().await;
        }
        let count = Arc::clone(&count);
        under_way.spawn(async move {
            if !shared.is_off.load(Ordering::Relaxed) {
                one(&shared, &record, blobs, &store, creates_once, &count).await;
            }
            count.done.fetch_add(1, Ordering::Relaxed);
        });
    }
    while under_way.join_next().await.is_some() {}
}

/// Puts one result there. One whose files are gone from the store is left out.
async fn one(
    shared: &Shared,
    record: &Record,
    blobs: Blobs,
    store: &Store,
    creates_once: bool,
    count: &Count,
) {
    if blobs == Blobs::All {
        for file in record.outputs.values().flat_map(|output| &output.files) {
            match blob(shared, file, store, count).await {
                Ok(()) => {}
                Err(Sending::Refused(refusal)) => {
                    _ = shared.answered::<()>(Err(refusal));
                    return;
                }
                Err(Sending::Unreadable) => return,
            }
        }
    }
    if shared.answered(write_record(shared, record, creates_once, count).await).is_some() {
        count.records.fetch_add(1, Ordering::Relaxed);
    }
}

async fn blob(shared: &Shared, file: &FileRecord, store: &Store, count: &Count) -> Result<(), Sending> {
    let path = blob_path(&file.blob);
    // Equal names are equal bytes, unless we have seen that they are not.
    if !shared.is_damaged(&file.blob) {
        match shared.objects.length(&path).await {
            Ok(length) if length == file.bytes => return Ok(()),
            Ok(_) | Err(Refusal::Missing) => {}
            Err(refusal) => return Err(refusal.into()),
        }
    }
    shared.objects.put_file(&file.blob, &store.blob_path(&file.blob), file.bytes).await?;
    shared.damaged.lock().unwrap_or_else(PoisonError::into_inner).remove(&file.blob);
    count.blobs.fetch_add(1, Ordering::Relaxed);
    count.bytes.fetch_add(file.bytes, Ordering::Relaxed);
    Ok(())
}

/// Who is first stands. Only what is of no use is replaced.
async fn write_record(
    shared: &Shared,
    record: &Record,
    creates_once: bool,
    count: &Count,
) -> Result<(), Refusal> {
    let path = record_path(&record.key);
    let text = Bytes::from(record.to_text());
    let mode = if creates_once { PutMode::Create } else { PutMode::Overwrite };
    match shared.objects.put(&path, text.clone(), mode).await {
        Err(Refusal::Exists) => {}
        other => return other,
    }
    let there = shared.objects.short(&path).await?;
    match there.record().filter(|there| there.key == record.key) {
        Some(there) if there.has_equal_outputs(record) => Ok(()),
        Some(_) if !shared.is_broken(&record.key) => {
            count.differing.lock().unwrap_or_else(PoisonError::into_inner).push(record.key);
            let ours = Digest::of(&text);
            shared.objects.put(&alternative_path(&record.key, &ours), text, PutMode::Overwrite).await
        }
        _ => match shared.objects.put(&path, text, PutMode::Update(there.version)).await {
            // Another machine has mended it.
            Err(Refusal::Changed) => Ok(()),
            other => other,
        },
    }
}
