//! Objects at a place: few operations, with answers that tell what is missing from what failed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload, UpdateVersion, WriteMultipart,
};
use pipe_cache::{Digest, Record};

use crate::parts::{PART, PARTS_AT_A_TIME};

/// A record of ten thousand parts takes a few megabytes.
const LONGEST_RECORD: u64 = 256 << 20;
/// From this length on a file is sent in parts.
const LARGE: u64 = 64 << 20;

/// Why there is no answer of the kind that was asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    Missing,
    /// Something stands there already.
    Exists,
    /// Something else stands there by now.
    Changed,
    /// The place does not answer, or not as it should.
    Failed(String),
}

/// A place that holds objects below a prefix.
#[derive(Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// The same place, where it keeps parts of files.
    parts: Option<Arc<dyn MultipartStore>>,
    prefix: Path,
    /// As people write it.
    name: String,
}

impl fmt::Debug for Objects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Objects").field(&self.name).finish()
    }
}

/// A short object as it stands.
#[derive(Debug)]
pub(crate) struct Short {
    pub(crate) bytes: Bytes,
    pub(crate) version: UpdateVersion,
    pub(crate) modified: SystemTime,
}

/// One object of a list.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// Below the prefix.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
}

impl Short {
    /// What stands there, if it is a record that agrees with itself.
    pub(crate) fn record(&self) -> Option<Record> {
        std::str::from_utf8(&self.bytes).ok().and_then(Record::from_text)
    }
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    let hex = digest.to_hex();
    format!("v1/cas/{}/{hex}", &hex[..2])
}

pub(crate) fn record_path(key: &Digest) -> String {
    let hex = key.to_hex();
    format!("v1/ac/{}/{hex}", &hex[..2])
}

pub(crate) fn alternative_path(key: &Digest, ours: &Digest) -> String {
    format!("v1/alt/{}/{}", key.to_hex(), ours.to_hex())
}

impl Objects {
    /// A folder.
    pub(crate) fn of_folder(store: Arc<dyn ObjectStore>, name: String) -> Self {
        Self { store, parts: None, prefix: Path::default(), name }
    }

    /// A bucket.
    pub(crate) fn of_bucket<S: ObjectStore + MultipartStore>(
        store: Arc<S>,
        prefix: Path,
        name: String,
    ) -> Self {
        Self { parts: Some(Arc::clone(&store) as Arc<dyn MultipartStore>), store, prefix, name }
    }

    pub(crate) fn parts(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.parts.as_ref()
    }

    /// `path` below the prefix.
    pub(crate) fn at(&self, path: &str) -> Path {
        self.prefix.parts().chain(Path::from(path).parts()).collect()
    }

    pub(crate) fn refusal(&self, error: Error) -> Refusal {
        match error {
            Error::NotFound { .. } => Refusal::Missing,
            Error::AlreadyExists { .. } => Refusal::Exists,
            Error::Precondition { .. } | Error::NotModified { .. } => Refusal::Changed,
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Refusal::Failed(format!(
                "`{}` does not let these credentials in (a reader needs to list it too, or what is missing looks forbidden)",
                self.name
            )),
            error => Refusal::Failed(format!("`{}` does not answer: {}", self.name, chain(&error))),
        }
    }

    /// A whole object, where a record should stand; one that is too long for that is none.
    pub(crate) async fn short(&self, path: &str) -> Result<Short, Refusal> {
        let found = self.store.get(&self.at(path)).await.map_err(|error| self.refusal(error))?;
        if found.meta.size > LONGEST_RECORD {
            return Err(Refusal::Missing);
        }
        let modified = SystemTime::from(found.meta.last_modified);
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        let bytes = found.bytes().await.map_err(|error| self.refusal(error))?;
        Ok(Short { bytes, version, modified })
    }

    /// The bytes of an object from `offset` on, as they come, and its whole length.
    pub(crate) async fn stream(
        &self,
        path: &str,
        offset: u64,
    ) -> Result<(u64, BoxStream<'static, Result<Bytes, Error>>), Refusal> {
        let mut options = GetOptions::default();
        if offset > 0 {
            options.range = Some(GetRange::Offset(offset));
        }
        let found =
            self.store.get_opts(&self.at(path), options).await.map_err(|error| self.refusal(error))?;
        Ok((found.meta.size, found.into_stream()))
    }

    /// Why a stream ended early.
    pub(crate) fn broken_off(&self, error: Error) -> Refusal {
        self.refusal(error)
    }

    pub(crate) async fn length(&self, path: &str) -> Result<u64, Refusal> {
        let found: ObjectMeta = self.store.head(&self.at(path)).await.map_err(|error| self.refusal(error))?;
        Ok(found.size)
    }

    pub(crate) async fn put(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<(), Refusal> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store.put_opts(&self.at(path), PutPayload::from(bytes), options).await;
        put.map(drop).map_err(|error| self.refusal(error))
    }

    /// Puts the file of a blob of `length` bytes there, a large one in parts.
    pub(crate) async fn put_file(
        &self,
        blob: &Digest,
        file: &std::path::Path,
        length: u64,
    ) -> Result<(), Sending> {
        let path = blob_path(blob);
        if length < LARGE {
            let bytes = std::fs::read(file).map_err(|_| Sending::Unreadable)?;
            return Ok(self.put(&path, bytes.into(), PutMode::Overwrite).await?);
        }
        let mut file = std::fs::File::open(file).map_err(|_| Sending::Unreadable)?;
        if let Some(to) = &self.parts {
            return self.put_in_parts(to, blob, &file, length).await;
        }
        let upload = self.store.put_multipart(&self.at(&path)).await.map_err(|error| self.refusal(error))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART as usize);
        match self.write(&mut upload, &mut file).await {
            Ok(()) => upload.finish().await.map(drop).map_err(|error| self.refusal(error).into()),
            Err(error) => {
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    async fn write(&self, upload: &mut WriteMultipart, file: &mut std::fs::File) -> Result<(), Sending> {
        use std::io::Read as _;
        loop {
            let mut part = Vec::with_capacity(PART as usize);
            file.by_ref().take(PART).read_to_end(&mut part).map_err(|_| Sending::Unreadable)?;
            if part.is_empty() {
                return Ok(());
            }
            upload.wait_for_capacity(PARTS_AT_A_TIME).await.map_err(|error| self.refusal(error))?;
            upload.put(part.into());
        }
    }

    pub(crate) async fn remove(&self, path: &str) -> Result<(), Refusal> {
        match self.store.delete(&self.at(path)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.refusal(error)),
        }
    }

    /// The objects below a folder.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, Refusal> {
        let below = self.at(folder);
        let listed = self.store.list(Some(&below)).map_ok(|meta| Listed {
            path: meta
                .location
                .prefix_match(&self.prefix)
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
                .unwrap_or_default(),
            bytes: meta.size,
            modified: SystemTime::from(meta.last_modified),
        });
        listed.try_collect().await.map_err(|error| self.refusal(error))
    }
}

/// Why a file did not get there.
#[derive(Debug)]
pub(crate) enum Sending {
    /// It is not here any more.
    Unreadable,
    Refused(Refusal),
}

impl From<Refusal> for Sending {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// How long ago something was written, by its server's clock against ours: good to the hour.
pub(crate) fn age(modified: SystemTime) -> Duration {
    SystemTime::now().duration_since(modified).unwrap_or_default()
}

/// An error with its causes, without the texts that repeat others.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text
}
