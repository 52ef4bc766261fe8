//! Large files go in parts.
//!
//! A server keeps parts, and somebody pays for them, until it is told that they are all or that none is wanted. A process
//! that was killed tells neither, and what is under way cannot be listed by the library that speaks to the server. So an
//! upload is marked by an object, `v1/uploads/<digest of the blob>/<digest of the upload's id>`, that holds its id: from
//! before the first part to after the last. Who finds a mark of yesterday ends its upload.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::PutMode;
use object_store::multipart::{MultipartStore, PartId};
use pipe_cache::Digest;

use crate::objects::{Listed, Objects, Refusal, Sending, age, blob_path};

/// The length of a part.
pub(crate) const PART: u64 = 16 << 20;
/// Parts of one file that are on their way at a time.
pub(crate) const PARTS_AT_A_TIME: usize = 4;
/// Where marks lie.
pub(crate) const MARKS: &str = "v1/uploads";
/// Nobody sends a file for so long.
pub(crate) const ABANDONED: Duration = Duration::from_secs(24 * 3600);

fn mark_path(blob: &Digest, id: &str) -> String {
    format!("{MARKS}/{}/{}", blob.to_hex(), Digest::of(id.as_bytes()).to_hex())
}

impl Objects {
    /// Puts a file of `length` bytes there in parts, marked while it is under way.
    pub(crate) async fn put_in_parts(
        &self,
        to: &Arc<dyn MultipartStore>,
        blob: &Digest,
        file: &File,
        length: u64,
    ) -> Result<(), Sending> {
        let path = self.at(&blob_path(blob));
        let id = to.create_multipart(&path).await.map_err(|error| self.refusal(error))?;
        let mark = mark_path(blob, &id);
        let (path, id) = (&path, &id);
        let sent = async {
            self.put(&mark, id.clone().into(), PutMode::Overwrite).await?;
            let parts = (0..length.div_ceil(PART)).map(|number| async move {
                let mut bytes = vec![0; PART.min(length - number * PART) as usize];
                file.read_exact_at(&mut bytes, number * PART).map_err(|_| Sending::Unreadable)?;
                let sent = to.put_part(path, id, number as usize, bytes.into()).await;
                sent.map_err(|error| Sending::from(self.refusal(error)))
            });
            let parts: Vec<PartId> =
                futures_util::stream::iter(parts).buffered(PARTS_AT_A_TIME).try_collect().await?;
            let complete = to.complete_multipart(path, id, parts).await;
            complete.map(drop).map_err(|error| Sending::from(self.refusal(error)))
        };
        let sent = sent.await;
        // A mark that stays is one of an upload that has ended, which whoever finds it sees.
        if sent.is_ok() || to.abort_multipart(path, id).await.is_ok() {
            let _ = self.remove(&mark).await;
        }
        sent
    }

    /// The marks of uploads that nobody goes on with.
    pub(crate) async fn abandoned_uploads(&self, after: Duration) -> Result<Vec<Listed>, Refusal> {
        let marks = self.list(MARKS).await?;
        Ok(marks.into_iter().filter(|mark| age(mark.modified) > after).collect())
    }

    /// Ends the upload of a mark, whatever has come of it: then its parts are gone.
    pub(crate) async fn end_upload(&self, mark: &str) -> Result<(), Refusal> {
        let blob = mark.split('/').rev().nth(1).and_then(|hex| hex.parse::<Digest>().ok());
        if let (Some(to), Some(blob)) = (self.parts(), blob) {
            let id = match self.short(mark).await {
                Ok(mark) => String::from_utf8_lossy(&mark.bytes).into_owned(),
                // Somebody else has done it.
                Err(Refusal::Missing) => return Ok(()),
                Err(refusal) => return Err(refusal),
            };
            match to.abort_multipart(&self.at(&blob_path(&blob)), &id).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.refusal(error)),
            }
        }
        self.remove(mark).await
    }

    /// Ends what nobody goes on with. It is a service to who pays for the place: what fails is left to the next time.
    pub(crate) async fn end_abandoned_uploads(&self, after: Duration) {
        for mark in self.abandoned_uploads(after).await.unwrap_or_default() {
            let _ = self.end_upload(&mark.path).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;

    fn wait_for<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// A place in memory, and a blob as long as several parts.
    struct Bench {
        memory: Arc<InMemory>,
        objects: Objects,
        file: File,
        bytes: Vec<u8>,
        blob: Digest,
    }

    impl Bench {
        fn new() -> Self {
            let bytes: Vec<u8> = (0..2 * PART + 5).map(|place| (place % 251) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &bytes).unwrap();
            let memory = Arc::new(InMemory::new());
            let objects = Objects::of_bucket(Arc::clone(&memory), Path::from("lab"), "memory".to_owned());
            Self { memory, objects, file, blob: Digest::of(&bytes), bytes }
        }

        async fn put(&self, length: u64) -> Result<(), Sending> {
            self.objects.put_in_parts(self.objects.parts().unwrap(), &self.blob, &self.file, length).await
        }

        fn path(&self) -> Path {
            self.objects.at(&blob_path(&self.blob))
        }

        /// As a process leaves it that is killed after the first part.
        async fn break_off(&self) -> String {
            let id = self.memory.create_multipart(&self.path()).await.unwrap();
            self.objects
                .put(&mark_path(&self.blob, &id), id.clone().into(), PutMode::Overwrite)
                .await
                .unwrap();
            self.memory.put_part(&self.path(), &id, 0, vec![1].into()).await.unwrap();
            id
        }

        async fn marks(&self) -> usize {
            self.objects.list(MARKS).await.unwrap().len()
        }
    }

    #[test]
    fn a_file_goes_in_parts_and_leaves_no_mark() {
        wait_for(async {
            let bench = Bench::new();
            bench.put(bench.bytes.len() as u64).await.unwrap();
            let there = bench.memory.get(&bench.path()).await.unwrap().bytes().await.unwrap();
            assert!(there == bench.bytes, "other bytes stand there");
            assert_eq!(bench.marks().await, 0);
        });
    }

    #[test]
    fn a_file_that_cannot_be_read_to_its_end_is_not_there_and_leaves_no_mark() {
        wait_for(async {
            let bench = Bench::new();
            let sent = bench.put(bench.bytes.len() as u64 + 1).await;
            assert!(matches!(sent, Err(Sending::Unreadable)), "{sent:?}");
            assert!(bench.memory.head(&bench.path()).await.is_err());
            assert_eq!(bench.marks().await, 0);
        });
    }

    #[test]
    fn what_was_broken_off_yesterday_is_ended_and_what_is_under_way_is_not() {
        wait_for(async {
            let bench = Bench::new();
            let id = bench.break_off().await;
            bench.objects.end_abandoned_uploads(ABANDONED).await;
            assert_eq!(bench.marks().await, 1, "it may be under way");
            tokio::time::sleep(Duration::from_millis(5)).await;
            bench.objects.end_abandoned_uploads(Duration::ZERO).await;
            assert_eq!(bench.marks().await, 0);
            assert!(
                bench.memory.put_part(&bench.path(), &id, 1, vec![1].into()).await.is_err(),
                "it has ended"
            );
            // Nothing that does not stand under the name of a blob is an upload of ours.
            bench.objects.put(&format!("{MARKS}/odd"), id.into(), PutMode::Overwrite).await.unwrap();
            bench.objects.end_upload(&format!("{MARKS}/odd")).await.unwrap();
            bench.objects.end_upload(&mark_path(&bench.blob, "gone")).await.unwrap();
            assert_eq!(bench.marks().await, 0);
        });
    }
}
