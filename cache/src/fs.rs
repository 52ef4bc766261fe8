//! The one door to the file system: every change that the store makes goes through [`Disk`].
//!
//! Two promises are kept here and nowhere else: a file that appears under its final name is whole
//! (written aside, then linked or renamed), and under [`Durability::Full`] it is still whole after a
//! power loss (file first, folder second).

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_NOW};

#[cfg(test)]
use crate::faults::Faults;

/// How much a commit waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Files and folders are flushed to the disk: a commit survives a power loss.
    #[default]
    Full,
    /// Nothing is flushed: a commit survives the death of the program; after a power loss, empty or
    /// short files are found by verification.
    Rename,
}

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("{operation} `{}`: {source}", path.display())]
pub struct FsError {
    /// What was attempted, as in "writing".
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

impl FsError {
    /// An error of `operation` on `path`.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { operation, path: path.into(), source }
    }

    /// Whether the cause is a full disk or an exhausted quota.
    pub fn is_no_space(&self) -> bool {
        matches!(self.source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
    }
}

/// The file system, at one level of durability.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    durability: Durability,
    /// Whether folders and files are for a group of people, whatever the umask of each.
    shared: bool,
    #[cfg(test)]
    pub(crate) faults: Option<std::sync::Arc<Faults>>,
}

/// Announces a change to the fault injector of the tests; nothing in a built program.
macro_rules! step {
    ($disk:expr, $change:ident, $path:expr) => {
        #[cfg(test)]
        if let Some(faults) = &$disk.faults {
            faults
                .step(crate::faults::Change::$change, $path)
                .map_err(|error| FsError::new("(injected fault)", $path, error))?;
        }
    };
}

impl Disk {
    pub(crate) fn new(durability: Durability) -> Self {
        Self {
            durability,
            shared: false,
            #[cfg(test)]
            faults: None,
        }
    }

    /// The same file system for what is in this folder: shared, if the folder is (see [`is_shared`]).
    pub(crate) fn below(mut self, folder: &Path) -> Self {
        self.shared = is_shared(folder);
        self
    }

    /// Lets the group have what its owner has, in a shared folder.
    pub(crate) fn share(&self, file: &File) -> io::Result<()> {
        if !self.shared {
            return Ok(());
        }
        let mode = file.metadata()?.mode();
        // A folder hands its group on.
        let set_group = if mode & S_IFMT == S_IFDIR { S_ISGID } else { 0 };
        let wanted = Permissions::from_mode((mode | (mode & 0o700) >> 3 | set_group) & 0o7777);
        match file.set_permissions(wanted) {
            // Of another account, which made it in the same moment.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            set => set,
        }
    }

    fn share_folder(&self, path: &Path) -> Result<(), FsError> {
        let shared =
            if self.shared { File::open(path).and_then(|folder| self.share(&folder)) } else { Ok(()) };
        shared.map_err(|error| FsError::new("giving the group the folder", path, error))
    }

    /// The same file system, flushing always.
    pub(crate) fn flushing(&self) -> Self {
        let mut disk = self.clone();
        disk.durability = Durability::Full;
        disk
    }

    pub(crate) fn is_full(&self) -> bool {
        self.durability == Durability::Full
    }

    /// Makes a folder and its parents.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), FsError> {
        step!(self, MakeFolder, path);
        let is_new = |folder: &&Path| self.shared && !folder.exists();
        let new: Vec<&Path> = path.ancestors().take_while(is_new).collect();
        fs::create_dir_all(path).map_err(|error| FsError::new("making the folder", path, error))?;
        new.into_iter().try_for_each(|folder| self.share_folder(folder))
    }

    /// Makes a folder whose parent exists; whether it is new.
    pub(crate) fn make_subfolder(&self, path: &Path) -> Result<bool, FsError> {
        step!(self, MakeFolder, path);
        match fs::create_dir(path) {
            Ok(()) => self.share_folder(path).map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(FsError::new("making the folder", path, error)),
        }
    }

    /// Writes a file that does not exist yet and means nothing after a power loss: a lease, an owner, a
    /// probe of the clock.
    pub(crate) fn write_passing(&self, path: &Path, bytes: &[u8]) -> Result<File, FsError> {
        step!(self, Write, path);
        self.create(path, bytes)
    }

    /// As [`Disk::write_passing`], over a file that exists and that nothing reads.
    pub(crate) fn rewrite_passing(&self, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
        step!(self, Write, path);
        let refuse = |error| FsError::new("writing", path, error);
        let mut file = OpenOptions::new().write(true).open(path).map_err(refuse)?;
        file.write_all(bytes).map_err(refuse)?;
        // Cut behind and not emptied before: ext4 would start to write it to the disk.
        file.set_len(bytes.len() as u64).map_err(refuse)
    }

    /// As [`Disk::write_passing`], with mode 0444 from the start.
    pub(crate) fn write_read_only(&self, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
        step!(self, Write, path);
        self.create_with_mode(path, bytes, 0o444).map(|_| ())
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> Result<File, FsError> {
        self.create_with_mode(path, bytes, 0o666)
    }

    fn create_with_mode(&self, path: &Path, bytes: &[u8], mode: u32) -> Result<File, FsError> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(|error| FsError::new("creating", path, error))?;
        self.share(&file).map_err(|error| FsError::new("giving the group the file", path, error))?;
        file.write_all(bytes).map_err(|error| FsError::new("writing", path, error))?;
        Ok(file)
    }

    /// Writes a file that does not exist yet, and flushes it.
    pub(crate) fn write_new(&self, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
        step!(self, Write, path);
        let file = self.create(path, bytes)?;
        if self.is_full() {
            step!(self, SyncFile, path);
            file.sync_all().map_err(|error| FsError::new("flushing", path, error))?;
        }
        Ok(())
    }

    /// As [`Disk::write_atomic`], for what can be done without: after a power loss it may be empty.
    pub(crate) fn write_atomic_passing(&self, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
        let mut disk = self.clone();
        disk.durability = Durability::Rename;
        disk.write_atomic(path, bytes)
    }

    /// Replaces `path` by a file of these bytes in one step: readers see the old or the new one.
    pub(crate) fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = path.with_file_name(format!(".{name}.{}", nonce()));
        let written = self.write_new(&aside, bytes).and_then(|()| self.rename(&aside, path));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written?;
        match path.parent() {
            Some(parent) => self.sync_folder(parent),
            None => Ok(()),
        }
    }

    /// Flushes the bytes of a file.
    pub(crate) fn sync_file(&self, path: &Path) -> Result<(), FsError> {
        if self.is_full() {
            step!(self, SyncFile, path);
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(|error| FsError::new("flushing", path, error))?;
        }
        Ok(())
    }

    /// Flushes the entries of a folder.
    pub(crate) fn sync_folder(&self, path: &Path) -> Result<(), FsError> {
        if self.is_full() {
            step!(self, SyncFolder, path);
            File::open(path)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| FsError::new("flushing the folder", path, error))?;
        }
        Ok(())
    }

    /// Flushes everything that was written to the file system of `path`.
    pub(crate) fn sync_all(&self, path: &Path) -> Result<(), FsError> {
        if self.is_full() {
            step!(self, SyncAll, path);
            sync_file_system(path)
                .map_err(|error| FsError::new("flushing the file system of", path, error))?;
        }
        Ok(())
    }

    /// Gives `from` the name `to` unless that exists; whether it did not exist.
    pub(crate) fn link_new(&self, from: &Path, to: &Path) -> Result<bool, FsError> {
        step!(self, Link, to);
        use rustix::io::Errno;
        let placed = match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // What cannot be renamed so has two names for a moment.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                fs::hard_link(from, to).map(|()| _ = fs::remove_file(from))
            }
            other => other.map_err(io::Error::from),
        };
        match placed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(FsError::new("linking", to, error)),
        }
    }

    /// As [`Disk::link_new`], into a folder that may have to be made first.
    pub(crate) fn link_new_below(&self, from: &Path, to: &Path) -> Result<bool, FsError> {
        match self.link_new(from, to) {
            Err(error) if error.source.kind() == ErrorKind::NotFound => {
                if let Some(folder) = to.parent() {
                    self.make_subfolder(folder)?;
                }
                self.link_new(from, to)
            }
            linked => linked,
        }
    }

    /// Renames, replacing the target.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), FsError> {
        step!(self, Rename, to);
        fs::rename(from, to).map_err(|error| FsError::new("renaming to", to, error))
    }

    /// Renames away; whether there was something to rename.
    pub(crate) fn move_away(&self, from: &Path, to: &Path) -> Result<bool, FsError> {
        step!(self, Rename, from);
        match fs::rename(from, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FsError::new("moving away", from, error)),
        }
    }

    /// Mode 0444: what is in the store is never written again.
    pub(crate) fn make_read_only(&self, path: &Path) -> Result<(), FsError> {
        step!(self, Mode, path);
        fs::set_permissions(path, Permissions::from_mode(0o444))
            .map_err(|error| FsError::new("making read-only", path, error))
    }

    /// Sets the modification time to the file server's now.
    pub(crate) fn touch(&self, path: &Path) -> Result<(), FsError> {
        step!(self, Mode, path);
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::utimensat(
            CWD,
            path,
            &Timestamps { last_access: now, last_modification: now },
            AtFlags::empty(),
        )
        .map_err(|error| FsError::new("touching", path, error.into()))
    }

    /// Removes a file if it exists.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), FsError> {
        step!(self, Remove, path);
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(FsError::new("removing", path, error)),
            _ => Ok(()),
        }
    }

    /// Removes a folder with all it holds, if it exists.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<(), FsError> {
        step!(self, Remove, path);
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(FsError::new("removing", path, error)),
            _ => Ok(()),
        }
    }
}

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_ISGID: u32 = 0o2_000;

/// Whether a folder is for a group of people: its group may write into it, and what is made in it is of that group. So its
/// owner says with `chmod g+ws`.
fn is_shared(folder: &Path) -> bool {
    let said = S_ISGID | 0o020;
    fs::metadata(folder).is_ok_and(|metadata| metadata.mode() & said == said)
}

/// What tells a file from any other that had or will have its name: the number of a removed file is given again,
/// but not with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    created: SystemTime,
}

impl Identity {
    /// Of the file of this name; none if there is none, or if the file system does not know when it was made.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        Some(Self { device: metadata.dev(), inode: metadata.ino(), created: metadata.created().ok()? })
    }
}

/// Reads a file of at most `limit` bytes; none if it does not exist.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FsError> {
    Ok(read_with_metadata(path, limit)?.map(|(bytes, _)| bytes))
}

/// As [`read_bounded`], with the state of the very file that was read.
pub(crate) fn read_with_metadata(path: &Path, limit: u64) -> Result<Option<(Vec<u8>, Metadata)>, FsError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FsError::new("opening", path, error)),
    };
    let metadata = file.metadata().map_err(|error| FsError::new("reading the state of", path, error))?;
    let refuse = |error| FsError::new("reading", path, error);
    let bytes = read_open(&file, metadata.len(), limit).map_err(refuse)?;
    Ok(Some((bytes, metadata)))
}

/// The bytes of a file that says to be so long; an error of the kind `InvalidData` if they are more than `limit`.
pub(crate) fn read_open(mut file: &File, length: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length.min(limit) as usize + 1];
    // Room for one byte more: a file that is as long as it says is read by one call.
    let read = file.read(&mut bytes)?;
    bytes.truncate(read);
    if read == 0 || read as u64 != length {
        file.take(limit.saturating_add(1).saturating_sub(read as u64)).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// The names in a folder, sorted; empty if the folder does not exist. Names that are not UTF-8 are
/// left out: the store writes none.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, FsError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FsError::new("listing", path, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| FsError::new("listing", path, error))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// How a file came to its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyMethod {
    /// A clone that shares its blocks until one side is written.
    Reflink,
    /// Bytes were copied.
    Copy,
}

/// Makes `to`, which must not exist, an independent writable copy of `from`: a reflink where the file
/// system offers it, else the bytes.
///
/// # Errors
/// If either file cannot be opened, `to` exists, or there is no space.
pub fn reflink_or_copy(from: &Path, to: &Path) -> Result<CopyMethod, FsError> {
    let source = File::open(from).map_err(|error| FsError::new("opening", from, error))?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(|error| FsError::new("creating", to, error))?;
    if clone_blocks(&target, &source) {
        return Ok(CopyMethod::Reflink);
    }
    let copied = io::copy(&mut &source, &mut &target);
    if let Err(error) = copied {
        let _ = fs::remove_file(to);
        return Err(FsError::new("copying to", to, error));
    }
    Ok(CopyMethod::Copy)
}

#[cfg(target_os = "linux")]
fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

#[cfg(not(target_os = "linux"))]
fn sync_file_system(_path: &Path) -> io::Result<()> {
    rustix::fs::sync();
    Ok(())
}

#[cfg(target_os = "linux")]
fn clone_blocks(target: &File, source: &File) -> bool {
    rustix::fs::ioctl_ficlone(target, source).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn clone_blocks(_target: &File, _source: &File) -> bool {
    false
}

/// Whether `path` is relative, not empty, and made of plain names joined by `/`.
pub(crate) fn is_plain_relative(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\0', '\\'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A name that no other call, thread, process or host has made.
pub(crate) fn nonce() -> String {
    static PROCESS: OnceLock<String> = OnceLock::new();
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let process = PROCESS.get_or_init(|| uuid::Uuid::now_v7().simple().to_string());
    format!("{process}{:x}", CALLS.fetch_add(1, Ordering::Relaxed))
}
