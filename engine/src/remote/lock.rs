//! The lock file beside a pipeline, `<pipeline>.lock`: what its remote sources were when they were first
//! read. It is TOML, sorted by source, so that version control shows what changed. The plan of each run names
//! the blobs of its sources, so that whoever collects garbage keeps them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use pipe_cache::{Digest, tree_digest};
use serde::Deserialize;

use super::{Checksum, Remote, RemoteFile, Resolved, is_plain};

/// A hundred thousand files take about 20 MB.
const LIMIT: u64 = 256 << 20;

/// A file of a source, as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PinnedFile {
    /// Its published path.
    pub(crate) path: String,
    /// Its length.
    pub(crate) size: u64,
    /// The digest of its content: the name of its blob.
    pub(crate) digest: Digest,
    /// The published checksum, which it had.
    pub(crate) checksum: Option<Checksum>,
}

/// A source, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// The commit or the record.
    pub(crate) revision: Option<String>,
    /// The files, sorted by path.
    pub(crate) files: Vec<PinnedFile>,
}

/// A source of which the content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pinned {
    /// The commit or the record.
    pub(crate) revision: Option<String>,
    /// The files with their paths inside the artifact, sorted by these.
    pub(crate) files: Vec<(String, PinnedFile)>,
    /// The content digest, as a local source of the same files has it.
    pub(crate) digest: Digest,
}

/// A lock file, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockFile {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

/// A lock file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// It cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It says something that no lock file says.
    #[error("`{}` is not a lock file that this program reads: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LockText {
    version: i64,
    #[serde(default)]
    source: Vec<EntryText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    source: String,
    revision: Option<String>,
    files: Vec<FileText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    path: String,
    size: u64,
    blake3: String,
    checksum: Option<String>,
}

impl LockFile {
    /// Where the lock file of a pipeline lies.
    pub(crate) fn beside(pipeline: &Path) -> PathBuf {
        pipeline.with_extension("lock")
    }

    /// Reads a lock file; one that is not there holds nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: path.to_owned(), source };
        let refuse = |reason: String| LockError::Content { path: path.to_owned(), reason };
        let mut text = String::new();
        match File::open(path) {
            Ok(file) => _ = file.take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), entries: BTreeMap::new() });
            }
            Err(error) => return Err(failed(error)),
        }
        if text.len() as u64 > LIMIT {
            return Err(refuse(format!("it is longer than {LIMIT} bytes")));
        }
        let entries = parse(&text).map_err(refuse)?;
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of a source. An entry that cannot be of this source is an error.
    pub(crate) fn pinned(&self, remote: &Remote) -> Option<Result<Pinned, String>> {
        let entry = self.entries.get(remote.text())?;
        let paths: Vec<&str> = entry.files.iter().map(|file| file.path.as_str()).collect();
        Some(remote.select(&paths).map(|selected| {
            let files: Vec<(String, PinnedFile)> =
                selected.into_iter().map(|(inside, index)| (inside, entry.files[index].clone())).collect();
            let digest =
                tree_digest(files.iter().map(|(inside, file)| (inside.as_str(), file.size, file.digest)));
            Pinned { revision: entry.revision.clone(), files, digest }
        }))
    }

    /// Adds entries to the lock file at `path` and returns it. Entries that are there already, also those
    /// that another process added meanwhile, stay.
    pub(crate) fn add(path: &Path, pipeline: &Path, new: BTreeMap<String, Entry>) -> Result<Self, LockError> {
        // Held while it is read and replaced. Where the file system has no locks, two processes that end at
        // the same moment lose an entry, which the next run adds again.
        let guard = File::open(pipeline).ok();
        let _ = guard.as_ref().map(File::lock);
        let mut lock = Self::read(path)?;
        for (source, entry) in new {
            lock.entries.entry(source).or_insert(entry);
        }
        let text = lock.text(pipeline);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}", uuid::Uuid::now_v7().simple()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&aside)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&aside, path));
        if written.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        written.map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        Ok(lock)
    }

    fn text(&self, pipeline: &Path) -> String {
        let pipeline = pipeline.file_name().unwrap_or_default().to_string_lossy();
        let pipeline: String = pipeline.chars().filter(|character| !character.is_control()).collect();
        let mut text = format!(
            "# What the remote sources of `{pipeline}` were when they were first read. `pipe run` writes this file;\n\
             # keep it under version control. To take a source as it is now, remove its entry.\n\
             version = 1\n"
        );
        for (source, entry) in &self.entries {
            text.push_str(&format!("\n[[source]]\nsource = {}\n", quoted(source)));
            if let Some(revision) = &entry.revision {
                text.push_str(&format!("revision = {}\n", quoted(revision)));
            }
            text.push_str("files = [\n");
            for file in &entry.files {
                let PinnedFile { path, size, digest, checksum } = file;
                let path = quoted(path);
                let checksum = checksum
                    .as_ref()
                    .map(|checksum| format!(", checksum = \"{checksum}\""))
                    .unwrap_or_default();
                text.push_str(&format!(
                    "  {{ path = {path}, size = {size}, blake3 = \"{digest}\"{checksum} }},\n"
                ));
            }
            text.push_str("]\n");
        }
        text
    }
}

impl Entry {
    /// What was fetched of what was resolved.
    pub(crate) fn new(resolved: &Resolved, mut files: Vec<PinnedFile>) -> Self {
        files.sort_by(|left, right| left.path.cmp(&right.path));
        Self { revision: resolved.revision.clone(), files }
    }
}

impl Pinned {
    /// The files that `is_missing` accepts, to be fetched again.
    pub(crate) fn to_fetch(&self, is_missing: impl Fn(&PinnedFile) -> bool) -> Vec<RemoteFile> {
        let missing = self.files.iter().map(|(_, file)| file).filter(|file| is_missing(file));
        missing
            .map(|file| RemoteFile {
                path: file.path.clone(),
                size: Some(file.size),
                checksum: file.checksum.clone(),
                digest: Some(file.digest),
                tag: None,
            })
            .collect()
    }
}

/// A basic string; names with control characters never come so far.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn parse(text: &str) -> Result<BTreeMap<String, Entry>, String> {
    let read: LockText = toml::from_str(text).map_err(|error| error.to_string())?;
    if read.version != 1 {
        return Err(format!("its version is {}, this program reads 1", read.version));
    }
    let mut entries = BTreeMap::new();
    for entry in read.source {
        let of = |what: String| format!("the entry of `{}` {what}", entry.source.escape_debug());
        if !matches!(Remote::parse(&entry.source), Some(Ok(_))) {
            return Err(of("names no remote source".to_owned()));
        }
        let mut files = Vec::with_capacity(entry.files.len());
        for file in entry.files {
            let wrong = |what: &str| of(format!("has a file `{}` {what}", file.path.escape_debug()));
            if !is_plain(&file.path) {
                return Err(wrong("whose name is not a relative path"));
            }
            let digest: Digest = file.blake3.parse().map_err(|_| wrong("without a BLAKE3 digest"))?;
            let checksum = match &file.checksum {
                Some(text) => Some(Checksum::parse(text).ok_or_else(|| wrong("with an unknown checksum"))?),
                None => None,
            };
            files.push(PinnedFile { path: file.path, size: file.size, digest, checksum });
        }
        files.sort_by(|left: &PinnedFile, right| left.path.cmp(&right.path));
        if files.windows(2).any(|pair| pair[0].path == pair[1].path) {
            return Err(of("names a file twice".to_owned()));
        }
        if entries.insert(entry.source.clone(), Entry { revision: entry.revision, files }).is_some() {
            return Err(format!("`{}` has two entries", entry.source.escape_debug()));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str) -> PinnedFile {
        PinnedFile {
            path: path.to_owned(),
            size: 3,
            digest: Digest::of(path.as_bytes()),
            checksum: Checksum::parse("md5:b1946ac92492d2347c6235b4d2611184"),
        }
    }

    #[test]
    fn entries_are_added_and_others_stay() {
        let folder = tempfile::TempDir::new().unwrap();
        let pipeline = folder.path().join("study.toml");
        std::fs::write(&pipeline, "").unwrap();
        let path = LockFile::beside(&pipeline);
        assert_eq!(path, folder.path().join("study.lock"));
        let entry = |paths: &[&str]| Entry {
            revision: Some("r\"\\1".to_owned()),
            files: paths.iter().map(|path| file(path)).collect(),
        };
        let first = [("hf:o/n@main".to_owned(), entry(&["a \"b\".txt", "ü/b.pt"]))];
        LockFile::add(&path, &pipeline, first.into()).unwrap();
        let second =
            [("hf:o/n@main".to_owned(), entry(&["other"])), ("zenodo:1/x.npz".to_owned(), entry(&["x.npz"]))];
        LockFile::add(&path, &pipeline, second.into()).unwrap();
        let lock = LockFile::read(&path).unwrap();
        assert_eq!(lock.entries.len(), 2);
        assert_eq!(lock.entries["hf:o/n@main"], entry(&["a \"b\".txt", "ü/b.pt"]));
        let remote = Remote::parse("zenodo:1/x.npz").unwrap().unwrap();
        let pinned = lock.pinned(&remote).unwrap().unwrap();
        assert_eq!(pinned.files[0].0, "source.npz");
        assert_eq!(pinned.digest, tree_digest([("source.npz", 3, Digest::of(b"x.npz"))]));
        assert!(lock.pinned(&Remote::parse("zenodo:2/x.npz").unwrap().unwrap()).is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing aside is left");
    }

    #[test]
    fn a_lock_file_that_says_something_else_is_refused() {
        let digest = Digest::of(b"");
        let entry = |path: &str| {
            format!(
                "[[source]]\nsource = \"zenodo:1/x\"\nfiles = [{{ path = \"{path}\", size = 1, blake3 = \"{digest}\" }}]\n"
            )
        };
        let with = |path: &str| format!("version = 1\n{}", entry(path));
        parse(&with("x")).unwrap();
        for (text, expected) in [
            (String::new(), "version"),
            ("version = 2".to_owned(), "version is 2"),
            (with("../x"), "relative path"),
            (with("/x"), "relative path"),
            (with("a\\\\b"), "relative path"),
            (with("x").replace("zenodo:1/x", "file:x"), "no remote source"),
            (with("x").replace(&digest.to_hex(), "12"), "BLAKE3"),
            (with("x").replace("size = 1", "size = -1"), "size"),
            (with("x").replace("size = 1", "size = 1, checksum = \"crc:1\""), "checksum"),
            (format!("{}{}", with("x"), entry("x")), "two entries"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn fuzz_lock_files() {
        let digest = Digest::of(b"");
        let text = format!(
            "version = 1\n[[source]]\nsource = \"hf:o/n@main\"\nrevision = \"r\"\nfiles = [{{ path = \"a/x.pt\", size = 1, blake3 = \"{digest}\", checksum = \"md5:b1946ac92492d2347c6235b4d2611184\" }}]\n"
        );
        pipe_fuzz::fuzz(
            "lock files",
            &[text.into_bytes()],
            &[b"../", b"[[source]]\n", b"zenodo:", b"sha256:"],
            |bytes| {
                let Ok(text) = std::str::from_utf8(bytes) else { return };
                for entry in parse(text).into_iter().flat_map(BTreeMap::into_values) {
                    assert!(entry.files.iter().all(|file| is_plain(&file.path)));
                }
            },
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(version = 1\n)?[\\[\\]a-z=\" {}0-9\n.:/]{0,80}") {
            let _ = parse(&text);
        }
    }
}
