//! The files of a data set as they are published: a folder, in which a ZIP archive counts as the folder
//! that it is.
//!
//! Members of archives are found by name and never written to disk, and a member is read up to a limit that the
//! reader of the data set states, whatever size the archive claims. The list of files is sorted on disk once it is
//! long: a source of millions takes no more memory than one of thousands.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use pipe_engine::cache::{Pair, Sorted, Sorter, SpillError};
use pipe_engine::{Artifact, StageContext, StageError};

use super::archive::{Archive, Member, is_hidden};
use super::origin::is_table;

/// A file, on disk or in an archive.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// The path inside the source, with `/`.
    pub(crate) path: String,
    /// Its length, as far as that is known before it is read.
    pub(crate) bytes: u64,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(PathBuf),
    Member(Arc<Packed>, Member),
}

/// An archive of the source.
#[derive(Debug)]
struct Packed {
    archive: Archive,
    /// The folder of its members' paths that is not in their names, with its `/`.
    folder: String,
}

/// Where the row is that says something: its file, and its number in it, from 1.
pub(crate) type RowPlace = (Arc<SourceFile>, usize);

impl SourceFile {
    /// The part of the path behind the last `/`.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The file cannot be used.
    pub(crate) fn error(&self, reason: impl Into<String>) -> StageError {
        StageError::input(self.shown(), reason)
    }

    /// Where it lies, for messages.
    pub(crate) fn shown(&self) -> PathBuf {
        match &self.place {
            Place::Disk(path) => path.clone(),
            Place::Member(packed, _) => {
                let name = self.path.strip_prefix(packed.folder.as_str()).unwrap_or(&self.path);
                packed.archive.path.join(name)
            }
        }
    }

    /// The path on disk, unless the file is in an archive.
    pub(crate) fn on_disk(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            Place::Member(..) => None,
        }
    }

    /// The bytes from the first on, unpacked.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>, String> {
        match &self.place {
            Place::Disk(path) => {
                let file = File::open(path).map_err(|error| error.to_string())?;
                Ok(Box::new(file))
            }
            Place::Member(packed, member) => packed.archive.read(member),
        }
    }

    /// As [`Self::open`], unpacked once more if the name ends in `.gz`.
    pub(crate) fn open_gzip(&self) -> Result<Box<dyn Read + Send>, String> {
        let bytes = self.open()?;
        Ok(if self.path.ends_with(".gz") {
            Box::new(MultiGzDecoder::new(BufReader::new(bytes)))
        } else {
            bytes
        })
    }

    /// All bytes, if they are not more than `limit`.
    pub(crate) fn read(&self, limit: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        self.open()?.take(limit + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() as u64 > limit {
            return Err(format!("it has more than {limit} bytes"));
        }
        Ok(bytes)
    }
}

/// The files of a source, in the order of their paths.
#[derive(Debug)]
pub(crate) struct SourceFiles {
    origin: String,
    archives: Vec<Arc<Packed>>,
    /// By path what [`Written`] says of a file.
    by_path: Sorted,
    /// By the names on the way to a file, its own first, the path.
    by_name: Sorted,
    /// Tables and archives as they lie on disk, unopened: path and location.
    tables: Vec<(String, PathBuf)>,
}

impl SourceFiles {
    /// The files of an input.
    ///
    /// # Errors
    /// If an archive is damaged, encrypted, or has a member that leads out of it; or a path stands twice.
    pub(crate) fn input(context: &StageContext<'_>, port: &str) -> Result<Self, StageError> {
        Self::of(context.input(port)?, context.scratch()?)
    }

    /// The files of an artifact. Hidden files, which some archives are full of, are left out. What is too long for
    /// memory goes to files in `scratch`.
    ///
    /// # Errors
    /// As [`Self::input`].
    pub(crate) fn of(artifact: &Artifact, scratch: &Path) -> Result<Self, StageError> {
        let origin = artifact.origin.clone().unwrap_or_else(|| "source".to_owned());
        let origin = origin.strip_prefix("file:").unwrap_or(&origin).to_owned();
        let (mut by_path, mut by_name) = (Sorter::new(scratch), Sorter::new(scratch));
        let mut add = |path: &str, written: Written<'_>| {
            by_path.push(path.as_bytes(), &written.bytes())?;
            Ok::<_, StageError>(by_name.push(&names(path), path.as_bytes())?)
        };
        let (mut archives, mut tables) = (Vec::new(), Vec::new());
        for file in artifact.files.iter().filter(|file| !is_hidden(&file.path)) {
            if is_table(&file.path) {
                tables.push((file.path.clone(), file.location.clone()));
            }
            if !file.path.to_lowercase().ends_with(".zip") {
                add(&file.path, Written::Disk(file.bytes, &file.location))?;
                continue;
            }
            let folder = file.path.rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
            let packed =
                Packed { archive: Archive::open(&file.location)?, folder: folder.unwrap_or_default() };
            let number = archives.len() as u32;
            packed.archive.each(|name, member| {
                add(&format!("{}{name}", packed.folder), Written::Member(number, member))
            })?;
            archives.push(Arc::new(packed));
        }
        tables.sort_unstable();
        let (by_path, by_name) = (by_path.finish()?, by_name.finish()?);
        let files = Self { origin, archives, by_path, by_name, tables };
        files.check()?;
        Ok(files)
    }

    /// Finds a path that stands twice.
    fn check(&self) -> Result<(), StageError> {
        let mut before: Option<Pair> = None;
        for pair in self.by_path.iter() {
            let pair = pair?;
            if let Some(twin) = before.replace(pair.clone()).filter(|before| before.0 == pair.0) {
                let (one, other) = (self.file(twin)?, self.file(pair)?);
                let reason = format!("`{}` is there too: which of the two is meant?", one.shown().display());
                return Err(other.error(reason));
            }
        }
        Ok(())
    }

    /// A file as it is written in the list.
    fn file(&self, (path, written): Pair) -> Result<Arc<SourceFile>, StageError> {
        let damaged = || StageError::failed("the list of files is damaged".to_owned());
        let path = String::from_utf8(path).map_err(|_| damaged())?;
        let (bytes, place) = match Written::read(&written).ok_or_else(damaged)? {
            Written::Disk(bytes, location) => (bytes, Place::Disk(location.to_owned())),
            Written::Member(number, member) => {
                let packed = self.archives.get(number as usize).ok_or_else(damaged)?;
                (member.bytes, Place::Member(Arc::clone(packed), member))
            }
        };
        Ok(Arc::new(SourceFile { path, bytes, place }))
    }

    /// All files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Arc<SourceFile>, StageError>> {
        self.by_path.iter().map(|pair| self.file(pair?))
    }

    /// The files whose path a filter accepts.
    pub(crate) fn filtered(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = Result<Arc<SourceFile>, StageError>> {
        let is_wanted = move |pair: &Result<Pair, SpillError>| {
            // An error is none to be left out.
            pair.as_ref().map_or(true, |(path, _)| std::str::from_utf8(path).is_ok_and(&wanted))
        };
        self.by_path.iter().filter(is_wanted).map(|pair| self.file(pair?))
    }

    /// Tables and archives as they lie on disk, unopened, in the order of their paths: path and location.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &(String, PathBuf)> {
        self.tables.iter()
    }

    /// The source cannot be used.
    pub(crate) fn error(&self, reason: impl Into<String>) -> StageError {
        StageError::input(&self.origin, reason)
    }

    /// The file of exactly this path. What is asked for comes from data: a path that leads out of the
    /// source is none of its files.
    pub(crate) fn exactly(&self, path: &str) -> Result<Option<Arc<SourceFile>>, StageError> {
        // Of those that begin so, a file itself comes before what is longer.
        let Some(first) = self.by_path.beginning(path.as_bytes()).next().transpose()? else {
            return Ok(None);
        };
        if first.0 != path.as_bytes() {
            return Ok(None);
        }
        self.file(first).map(Some)
    }

    /// The files whose path ends in `path`, whole names, in the order of their paths.
    pub(crate) fn all_ending(&self, path: &str) -> Result<Vec<Arc<SourceFile>>, StageError> {
        let end = names(path);
        let paths = self.by_name.beginning(&end).map(|pair| Ok(pair?.1));
        let mut paths = paths.collect::<Result<Vec<_>, StageError>>()?;
        paths.sort_unstable();
        let files = paths.into_iter().map(|path| self.exactly(&String::from_utf8_lossy(&path)));
        Ok(files.collect::<Result<Vec<_>, StageError>>()?.into_iter().flatten().collect())
    }

    /// The file whose path ends in `path`, whole names; the one that lies highest, if there are several.
    pub(crate) fn ending(&self, path: &str) -> Result<Option<Arc<SourceFile>>, StageError> {
        let end = names(path);
        let mut highest: Option<(usize, Vec<u8>)> = None;
        for pair in self.by_name.beginning(&end) {
            let (names, path) = pair?;
            let found = (names.iter().filter(|byte| **byte == 0).count(), path);
            if highest.as_ref().is_none_or(|known| found < *known) {
                highest = Some(found);
            }
        }
        match highest {
            Some((_, path)) => self.exactly(&String::from_utf8_lossy(&path)),
            None => Ok(None),
        }
    }

    /// As [`Self::ending`]; an error that says what is missing otherwise.
    pub(crate) fn needed(&self, path: &str) -> Result<Arc<SourceFile>, StageError> {
        self.ending(path)?.ok_or_else(|| self.error(format!("it has no file `{path}`")))
    }

    /// The files that lie in a folder of this name, not below it.
    pub(crate) fn within(&self, folder: &str) -> impl Iterator<Item = Result<Arc<SourceFile>, StageError>> {
        self.filtered(move |path| path.rsplit('/').nth(1) == Some(folder))
    }
}

/// The names on the way to a file, its own first, each with its end: paths that end alike begin alike so.
fn names(path: &str) -> Vec<u8> {
    let mut names = Vec::with_capacity(path.len() + 1);
    for name in path.rsplit('/') {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    names
}

/// What the list of files says of one.
enum Written<'a> {
    /// Its length and where it lies.
    Disk(u64, &'a Path),
    /// The number of the archive, and the member.
    Member(u32, Member),
}

impl<'a> Written<'a> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Disk(bytes, location) => {
                [&[0], &bytes.to_le_bytes()[..], location.as_os_str().as_bytes()].concat()
            }
            Self::Member(archive, member) => {
                let mut bytes = vec![1 + u8::from(member.is_deflated)];
                bytes.extend(archive.to_le_bytes());
                bytes.extend(member.checksum.to_le_bytes());
                for number in [member.header, member.compressed, member.bytes] {
                    bytes.extend(number.to_le_bytes());
                }
                bytes
            }
        }
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        if *kind == 0 {
            let (length, location) = rest.split_first_chunk()?;
            return Some(Self::Disk(u64::from_le_bytes(*length), Path::new(OsStr::from_bytes(location))));
        }
        let (archive, rest) = rest.split_first_chunk()?;
        let (checksum, rest) = rest.split_first_chunk()?;
        let (header, rest) = rest.split_first_chunk()?;
        let (compressed, rest) = rest.split_first_chunk()?;
        let member = Member {
            header: u64::from_le_bytes(*header),
            compressed: u64::from_le_bytes(*compressed),
            bytes: u64::from_le_bytes(*rest.first_chunk()?),
            checksum: u32::from_le_bytes(*checksum),
            is_deflated: *kind == 2,
        };
        Some(Self::Member(u32::from_le_bytes(*archive), member))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::*;
    use crate::testing::tree;

    fn archive(members: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let mut zip = ZipWriter::new(&mut bytes);
        for (name, content) in members {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        bytes.into_inner()
    }

    fn files(bytes: &[u8]) -> Result<SourceFiles, StageError> {
        let (folder, scratch) = (tempfile::tempdir().unwrap().keep(), tempfile::tempdir().unwrap());
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data/images.zip"), bytes).unwrap();
        std::fs::write(folder.join("rows.csv"), "a,b").unwrap();
        let files = SourceFiles::of(&tree(&folder, "file"), scratch.path());
        // Open archives stay readable without their names.
        std::fs::remove_dir_all(folder).unwrap();
        files
    }

    #[test]
    fn an_archive_is_the_folder_that_it_is() {
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let text = b"wine ".repeat(100_000);
            let members: [(&str, &[u8]); 3] =
                [("a/one.txt", &text), ("two.txt", b"2"), ("__MACOSX/._two.txt", b"")];
            let files = files(&archive(&members, method)).unwrap();
            let paths: Vec<String> = files.iter().map(|file| file.unwrap().path.clone()).collect();
            assert_eq!(paths, ["data/a/one.txt", "data/two.txt", "rows.csv"]);
            assert_eq!(files.needed("one.txt").unwrap().read(1 << 20).unwrap(), text);
            assert_eq!(files.exactly("data/two.txt").unwrap().unwrap().read(1).unwrap(), b"2");
            assert!(files.exactly("two.txt").unwrap().is_none());
            assert!(files.ending("wo.txt").unwrap().is_none());
        }
    }

    #[test]
    fn the_order_in_which_a_folder_is_listed_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "c.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        std::fs::write(folder.path().join("z.zip"), archive(&[("0.txt", b"0")], CompressionMethod::Stored))
            .unwrap();
        let listed = tree(folder.path(), "file");
        let paths = |artifact: &Artifact| -> Vec<String> {
            let scratch = tempfile::tempdir().unwrap();
            let files = SourceFiles::of(artifact, scratch.path()).unwrap();
            files.iter().map(|file| file.unwrap().path.clone()).collect()
        };
        let sorted = paths(&listed);
        assert_eq!(sorted, ["0.txt", "a.txt", "b.txt", "c.txt"]);
    }

    #[test]
    fn a_bomb_is_read_up_to_the_limit() {
        let zeros = vec![0; 64 << 20];
        let bytes = archive(&[("bomb.png", &zeros)], CompressionMethod::Deflated);
        assert!(bytes.len() < 1 << 20);
        let files = files(&bytes).unwrap();
        let reason = files.needed("bomb.png").unwrap().read(1 << 20).unwrap_err();
        assert!(reason.contains("more than 1048576 bytes"), "{reason}");
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in ["../evil.png", "a/../../evil.png", "/etc/passwd", "a\\..\\b", "./a", "a//b"] {
            let error = files(&archive(&[(name, b"x")], CompressionMethod::Stored)).unwrap_err();
            assert!(matches!(error, StageError::InputData { .. }), "{error:?}");
            assert!(error.to_string().contains("leads out of the archive"), "{name}: {error}");
        }
    }

    #[test]
    fn a_symbolic_link_is_refused() {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let mut zip = ZipWriter::new(&mut bytes);
        zip.add_symlink("link.png", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        zip.finish().unwrap();
        let error = files(&bytes.into_inner()).unwrap_err().to_string();
        assert!(error.contains("member `link.png`: it is a symbolic link"), "{error}");
    }

    #[test]
    fn damage_is_found() {
        let text = b"some text that is long enough".repeat(50);
        let whole = archive(&[("one.txt", &text)], CompressionMethod::Stored);
        let error = files(&whole[..whole.len() - 30]).unwrap_err().to_string();
        assert!(error.contains("truncated"), "{error}");
        let mut flipped = whole;
        flipped[100] ^= 1;
        let reason = files(&flipped).unwrap().needed("one.txt").unwrap().read(1 << 20).unwrap_err();
        assert!(reason.contains("checksum"), "{reason}");
    }

    #[test]
    fn a_path_that_stands_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.zip"), archive(&[("x", b"1")], CompressionMethod::Stored))
            .unwrap();
        std::fs::write(folder.path().join("b.zip"), archive(&[("x", b"2")], CompressionMethod::Stored))
            .unwrap();
        let error = SourceFiles::of(&tree(folder.path(), "file"), folder.path()).unwrap_err().to_string();
        assert!(error.contains("which of the two"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn damaged_archives_are_read_or_refused(place in 0usize..400, byte: u8) {
            let mut bytes = archive(&[("a.txt", &[7; 100]), ("b/c.txt", &[1; 50])], CompressionMethod::Deflated);
            let length = bytes.len();
            bytes[place % length] = byte;
            if let Ok(files) = files(&bytes) {
                for file in files.iter() {
                    let _ = file.unwrap().read(1 << 16);
                }
            }
        }
    }
}
