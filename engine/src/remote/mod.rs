//! Remote sources: files on the Hugging Face hub, on Zenodo or at any address, named by an input.
//!
//! Where a source lies is in no key. When it is first read, what its name means *now* is resolved to a list
//! of files with a revision ([`resolve`]), the files are fetched into the store ([`fetch`]), and both
//! are written down in the lock file beside the pipeline ([`lock`]). From then on the lock file says what
//! the source is, and nothing is asked of any server unless a file is needed and not in the store.

mod checksum;
mod fetch;
mod http;
mod hub;
pub(crate) mod lock;
mod reference;
mod resolve;
#[cfg(test)]
mod tests;
mod watch;

use pipe_cache::{Digest, StoreError};

pub(crate) use checksum::Checksum;
pub(crate) use fetch::Fetcher;
pub use reference::Remote;
pub(crate) use watch::{News, Watch};

/// A file of a remote source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Its published path: inside the repository or record, or the last name of the address.
    pub(crate) path: String,
    /// Its length, if it is published.
    pub(crate) size: Option<u64>,
    /// What its publisher says of its content.
    pub(crate) checksum: Option<Checksum>,
    /// What the lock file says of its content.
    pub(crate) digest: Option<Digest>,
    /// The server's tag of this content, if it gives one.
    pub(crate) tag: Option<String>,
}

/// What a name means now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The commit, or the number of the record; none for an address.
    pub(crate) revision: Option<String>,
    /// The files that the source's pattern selects.
    pub(crate) files: Vec<RemoteFile>,
}

/// Why a source cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// What is there is not what is wanted, or not given to us.
    #[error("{reason}")]
    Source {
        /// What is wrong.
        reason: String,
        /// What would help.
        help: Option<String>,
    },
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run was asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl FetchError {
    fn new(reason: impl Into<String>) -> Self {
        Self::Source { reason: reason.into(), help: None }
    }

    fn help(self, text: impl Into<String>) -> Self {
        match self {
            Self::Source { reason, .. } => Self::Source { reason, help: Some(text.into()) },
            other => other,
        }
    }
}

/// Whether a path of a publisher can name a file of an artifact: relative, of plain names, nothing that a
/// terminal or a file system would take for something else.
pub(crate) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(|character: char| character.is_control() || character == '\\')
        && path.split('/').all(|name| !name.is_empty() && name != "." && name != ".." && name.len() <= 255)
}
