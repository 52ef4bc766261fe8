//! From files of a source to blobs of the store.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pipe_cache::{Digest, Partial, Store};
use ureq::http::Method;

use super::http::{Client, Problem, pause};
use super::hub::Hub;
use super::lock::PinnedFile;
use super::reference::Place;
use super::{FetchError, Remote, RemoteFile, Watch};

/// How many files of a source are fetched at a time.
const CONNECTIONS: usize = 4;
const BUFFER: usize = 256 << 10;
/// How often a file that another process fetches is asked for again.
const POLL: Duration = Duration::from_millis(250);

/// Fetches, as the environment of this process sets it.
pub(crate) struct Fetcher {
    pub(super) client: Client,
    pub(super) hub: Hub,
    /// `ZENODO_ENDPOINT`, without a closing slash.
    pub(super) zenodo: String,
    offline: bool,
}

impl Fetcher {
    /// With the settings of the environment; `offline` allows what is on this machine alone.
    pub(crate) fn from_environment(offline: bool) -> Self {
        Self::new(|name| std::env::var(name).ok(), offline)
    }

    pub(super) fn new(variable: impl Fn(&str) -> Option<String>, offline: bool) -> Self {
        let zenodo = variable("ZENODO_ENDPOINT").filter(|value| !value.is_empty());
        let zenodo = zenodo.unwrap_or_else(|| "https://zenodo.org".to_owned());
        let authorities = variable("SSL_CERT_FILE").map(PathBuf::from);
        let (hub, token) = Hub::new(variable);
        let zenodo = zenodo.trim_end_matches('/').to_owned();
        Self { client: Client::new(token, authorities.as_deref()), hub, zenodo, offline }
    }

    /// Whether a file can be had without a network.
    pub(crate) fn is_local(
        &self,
        store: &Store,
        remote: &Remote,
        revision: Option<&str>,
        file: &PinnedFile,
    ) -> bool {
        store.has_blob(&file.digest, file.size) || self.cached(remote, revision, &file.path).is_some()
    }

    /// Fetches files of a source that was resolved to `revision`, several at a time, and returns what they
    /// are in the order given. All that fail are named.
    pub(crate) fn fetch(
        &self,
        store: &Store,
        remote: &Remote,
        revision: Option<&str>,
        files: &[RemoteFile],
        watch: &Watch<'_>,
    ) -> Result<Vec<PinnedFile>, Vec<(String, FetchError)>> {
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<PinnedFile, FetchError>>>> =
            Mutex::new(files.iter().map(|_| None).collect());
        let work = || {
            while let Some((index, file)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                files.get(index).map(|file| (index, file))
            } {
                let result = if watch.stopped() {
                    Err(FetchError::Cancelled)
                } else {
                    self.fetch_file(store, remote, revision, file, watch)
                };
                results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..CONNECTIONS.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
        let (mut fetched, mut failed) = (Vec::with_capacity(files.len()), Vec::new());
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (file, result) in files.iter().zip(results) {
            match result.unwrap_or(Err(FetchError::Cancelled)) {
                Ok(file) => fetched.push(file),
                Err(error) => failed.push((file.path.clone(), error)),
            }
        }
        if failed.is_empty() { Ok(fetched) } else { Err(failed) }
    }

    fn fetch_file(
        &self,
        store: &Store,
        remote: &Remote,
        revision: Option<&str>,
        file: &RemoteFile,
        watch: &Watch<'_>,
    ) -> Result<PinnedFile, FetchError> {
        let stored = || match (file.digest, file.size) {
            (Some(digest), Some(size)) if store.has_blob(&digest, size) => Some(pinned(file, size, digest)),
            _ => None,
        };
        let url = self.url(remote, revision, &file.path);
        let download = Download { remote, url: &url, file };
        let mut partial = loop {
            // Another process, or another stage, may have been faster.
            if let Some(file) = stored() {
                watch.advance(file.size);
                return Ok(file);
            }
            match store.partial(&download.identity())? {
                Some(partial) => break partial,
                None if watch.sleep(POLL) => {}
                None => return Err(FetchError::Cancelled),
            }
        };
        if let Some(file) = stored() {
            watch.advance(file.size);
            partial.discard()?;
            return Ok(file);
        }
        if let Some(path) = self.cached(remote, revision, &file.path) {
            partial.clear()?;
            copy(&path, &mut partial, watch)?;
            match verify(file, &partial, remote) {
                Ok(digest) => return finish(file, partial, digest),
                // Damaged, or made by hand: the hub has the right one.
                Err(_) => restart(&mut partial, watch)?,
            }
        }
        if self.offline {
            partial.discard()?;
            return Err(FetchError::new("it is not in the store, and `--offline` forbids to fetch it"));
        }
        let resumed = partial.bytes() > 0;
        watch.advance(partial.bytes());
        self.download(&download, &mut partial, watch)?;
        let verified = match verify(file, &partial, remote) {
            // What was there before may have been damaged.
            Err(_) if resumed => {
                restart(&mut partial, watch)?;
                self.download(&download, &mut partial, watch)?;
                verify(file, &partial, remote)
            }
            verified => verified,
        };
        match verified {
            Ok(digest) => finish(file, partial, digest),
            Err(error) => {
                partial.discard()?;
                Err(error)
            }
        }
    }

    /// Where another program keeps a file of the hub.
    fn cached(&self, remote: &Remote, revision: Option<&str>, path: &str) -> Option<PathBuf> {
        match remote.place() {
            Place::Hub(repository) => self.hub.cached(repository, revision?, path),
            _ => None,
        }
    }

    /// Receives until all is there, over as many connections as it takes.
    fn download(
        &self,
        download: &Download<'_>,
        partial: &mut Partial,
        watch: &Watch<'_>,
    ) -> Result<(), FetchError> {
        let mut failures = 0;
        loop {
            let before = partial.bytes();
            match self.receive(download, partial, watch) {
                Ok(()) => return Ok(()),
                Err(Problem::Passing { reason, wait }) => {
                    // Whatever came is a sign of life.
                    if partial.bytes() > before {
                        failures = 0;
                    }
                    pause(watch, &mut failures, &reason, wait)?;
                }
                Err(problem @ Problem::Refused { .. }) => return Err(self.refusal(download, problem)),
                Err(problem) => return Err(problem.into()),
            }
        }
    }

    fn refusal(&self, download: &Download<'_>, problem: Problem) -> FetchError {
        match download.remote.place() {
            Place::Hub(repository) => {
                self.hub.refusal(&self.client, repository, Some(&download.file.path), problem)
            }
            _ => problem.into(),
        }
    }

    /// One connection.
    fn receive(
        &self,
        download: &Download<'_>,
        partial: &mut Partial,
        watch: &Watch<'_>,
    ) -> Result<(), Problem> {
        let Download { url, file, .. } = *download;
        let size = file.size;
        if !download.is_resumable() || size.is_some_and(|size| partial.bytes() > size) {
            restart(partial, watch)?;
        }
        let have = partial.bytes();
        if have > 0 && size == Some(have) {
            return Ok(());
        }
        let range = format!("bytes={have}-");
        let mut headers = vec![("accept-encoding", "identity")];
        if have > 0 {
            headers.push(("range", range.as_str()));
            headers.extend(file.tag.as_deref().map(|tag| ("if-range", tag)));
        }
        let answer = self.client.open(&Method::GET, url, &headers)?;
        let total = match (answer.status, answer.range()) {
            (206, Some((start, total))) if start == have => total,
            (200, _) => {
                restart(partial, watch)?;
                answer.length()
            }
            (status, _) => {
                // A part that was not asked for, or none.
                restart(partial, watch)?;
                let reason = format!("the server answered {status} to a request for bytes from {have} on");
                return Err(Problem::Passing { reason, wait: None });
            }
        };
        if let (Some(size), Some(total)) = (size, total)
            && size != total
        {
            let reason = format!("it is published with {size} bytes, and the server has {total}");
            return Err(FetchError::new(reason).into());
        }
        let limit = size.or(total);
        let mut reader = answer.reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            if watch.stopped() {
                return Err(FetchError::Cancelled.into());
            }
            let read = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Problem::Passing { reason: broken(partial, limit, &error), wait: None });
                }
            };
            if limit.is_some_and(|limit| partial.bytes() + read as u64 > limit) {
                restart(partial, watch)?;
                let reason = format!("more than its {} bytes come", limit.unwrap_or_default());
                return Err(FetchError::new(reason).into());
            }
            partial.append(&buffer[..read]).map_err(FetchError::from)?;
            watch.advance(read as u64);
        }
        if limit.is_some_and(|limit| partial.bytes() < limit) {
            let reason = broken(partial, limit, &"it was closed");
            return Err(Problem::Passing { reason, wait: None });
        }
        Ok(())
    }
}

/// One file to be fetched.
#[derive(Clone, Copy)]
struct Download<'a> {
    remote: &'a Remote,
    url: &'a str,
    file: &'a RemoteFile,
}

impl Download<'_> {
    /// Whether bytes of two connections are known to belong together: the address names a commit, or
    /// something tells that the whole is right.
    fn is_resumable(&self) -> bool {
        let RemoteFile { checksum, digest, tag, .. } = self.file;
        matches!(self.remote.place(), Place::Hub(_))
            || checksum.is_some()
            || digest.is_some()
            || tag.is_some()
    }

    /// What tells it from other downloads.
    fn identity(&self) -> String {
        let RemoteFile { size, checksum, digest, tag, .. } = self.file;
        let checksum = checksum.as_ref().map(ToString::to_string).unwrap_or_default();
        let digest = digest.map(|digest| digest.to_hex()).unwrap_or_default();
        format!("{}\n{size:?}\n{checksum}\n{digest}\n{}", self.url, tag.as_deref().unwrap_or_default())
    }
}

/// Begins a file again.
fn restart(partial: &mut Partial, watch: &Watch<'_>) -> Result<(), FetchError> {
    watch.retreat(partial.bytes());
    Ok(partial.clear()?)
}

fn broken(partial: &Partial, limit: Option<u64>, why: &dyn std::fmt::Display) -> String {
    let of = limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    format!("the connection broke after {}{of} bytes: {why}", partial.bytes())
}

/// Takes a file that another program fetched.
fn copy(path: &Path, partial: &mut Partial, watch: &Watch<'_>) -> Result<(), FetchError> {
    let unreadable = |error| FetchError::new(format!("`{}`: {error}", path.display()));
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(()),
            read => {
                partial.append(&buffer[..read])?;
                watch.advance(read as u64);
            }
        }
        if watch.stopped() {
            return Err(FetchError::Cancelled);
        }
    }
}

/// Compares what came with what was published and with what the lock file says; its digest.
fn verify(file: &RemoteFile, partial: &Partial, remote: &Remote) -> Result<Digest, FetchError> {
    if let Some(size) = file.size.filter(|size| *size != partial.bytes()) {
        return Err(FetchError::new(format!(
            "it is published with {size} bytes, and {} came",
            partial.bytes()
        )));
    }
    let found = partial.digest()?;
    if let Some(digest) = file.digest {
        return if found == digest {
            Ok(found)
        } else {
            let reason = format!(
                "it is not what the lock file says: blake3 {digest} is expected, blake3 {found} came"
            );
            Err(FetchError::new(reason).help(format!(
                "its publisher has changed it; to take it as it is now, remove the entry of `{}` from the lock file",
                remote.text()
            )))
        };
    }
    if let Some(checksum) = &file.checksum {
        let failed =
            |error: std::io::Error| FetchError::new(format!("`{}`: {error}", partial.path().display()));
        let found = checksum.of_file(partial.path()).map_err(failed)?;
        if found != *checksum {
            return Err(FetchError::new(format!("it is published as {checksum}, and {found} came")));
        }
    }
    Ok(found)
}

fn finish(file: &RemoteFile, partial: Partial, digest: Digest) -> Result<PinnedFile, FetchError> {
    let size = partial.bytes();
    partial.store(digest)?;
    Ok(pinned(file, size, digest))
}

fn pinned(file: &RemoteFile, size: u64, digest: Digest) -> PinnedFile {
    PinnedFile { path: file.path.clone(), size, digest, checksum: file.checksum.clone() }
}

impl From<Problem> for FetchError {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Passing { reason, .. } | Problem::Lasting(reason) => Self::new(reason),
            Problem::Refused { status: 401 | 403, .. } => {
                Self::new("the server does not give it without a permission (401 or 403)")
            }
            Problem::Refused { status: 404 | 410, .. } => Self::new("the server has no such file (404)"),
            Problem::Refused { status, .. } => Self::new(format!("the server answered {status}")),
            Problem::Reader(error) => error,
        }
    }
}
