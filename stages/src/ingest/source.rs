//! The files of a data set as they are published: a folder, in which a ZIP archive counts as the folder
//! that it is.
//!
//! An archive is untrusted. Its members are found by name and never written to disk; a member whose name
//! leads out of the archive, or that stands twice, is refused with the whole archive; a member is read up
//! to a limit that the reader of the data set states, whatever size the archive claims.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::DeflateDecoder;
use flate2::{Crc, bufread::MultiGzDecoder};
use pipe_engine::{Artifact, StageError};
use zip::{CompressionMethod, ZipArchive};

use super::origin::is_table;

/// More members than this are in no published data set.
const MEMBER_LIMIT: usize = 20_000_000;

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
    Member { archive: Arc<Archive>, start: u64, compressed: u64, deflated: bool, checksum: u32 },
}

/// An open archive. Millions of members share one.
#[derive(Debug)]
struct Archive {
    path: PathBuf,
    /// The folder of its members' paths that is not in their names, with its `/`.
    folder: String,
    file: Arc<File>,
}

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
            Place::Member { archive, .. } => {
                let name = self.path.strip_prefix(archive.folder.as_str()).unwrap_or(&self.path);
                archive.path.join(name)
            }
        }
    }

    /// The path on disk, unless the file is in an archive.
    pub(crate) fn on_disk(&self) -> Option<&Path> {
        match &self.place {
            Place::Disk(path) => Some(path),
            Place::Member { .. } => None,
        }
    }

    /// The bytes from the first on, unpacked.
    pub(crate) fn open(&self) -> Result<Box<dyn Read + Send>, String> {
        match &self.place {
            Place::Disk(path) => {
                let file = File::open(path).map_err(|error| error.to_string())?;
                Ok(Box::new(file))
            }
            Place::Member { archive, start, compressed, deflated, checksum } => {
                let section =
                    Section { file: Arc::clone(&archive.file), position: *start, length: start + compressed };
                let bytes: Box<dyn Read + Send> = if *deflated {
                    Box::new(DeflateDecoder::new(BufReader::new(section)))
                } else {
                    Box::new(section)
                };
                Ok(Box::new(Checked { bytes, crc: Crc::new(), expected: *checksum }))
            }
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
#[derive(Clone, Debug)]
pub(crate) struct SourceFiles {
    origin: String,
    files: Vec<SourceFile>,
    /// The places of files, in the order of their names.
    by_name: Vec<u32>,
    /// Tables and archives as they lie on disk, unopened: path and location.
    tables: Vec<(String, PathBuf)>,
}

impl SourceFiles {
    /// The files of an input. Hidden files, which some archives are full of, are left out.
    ///
    /// # Errors
    /// If an archive is damaged, encrypted, or has a member that leads out of it.
    pub(crate) fn of(artifact: &Artifact) -> Result<Self, StageError> {
        let origin = artifact.origin.clone().unwrap_or_else(|| "source".to_owned());
        let origin = origin.strip_prefix("file:").unwrap_or(&origin).to_owned();
        let mut files = Vec::with_capacity(artifact.files.len());
        let mut tables = Vec::new();
        for file in &artifact.files {
            if is_hidden(&file.path) {
                continue;
            }
            if is_table(&file.path) {
                tables.push((file.path.clone(), file.location.clone()));
            }
            if file.path.to_lowercase().ends_with(".zip") {
                let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                members(&file.location, folder, &mut files)?;
            } else {
                files.push(SourceFile {
                    path: file.path.clone(),
                    bytes: file.bytes,
                    place: Place::Disk(file.location.clone()),
                });
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].path == pair[1].path) {
            let reason = format!("`{}` is there too: which of the two is meant?", pair[0].shown().display());
            return Err(pair[1].error(reason));
        }
        let count = u32::try_from(files.len())
            .map_err(|_| StageError::input(&origin, format!("it has {} files", files.len())))?;
        let mut by_name: Vec<u32> = (0..count).collect();
        by_name.sort_by_key(|place| files[*place as usize].name());
        tables.sort_unstable();
        Ok(Self { origin, files, by_name, tables })
    }

    /// All files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter()
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
    pub(crate) fn exactly(&self, path: &str) -> Option<&SourceFile> {
        let place = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        Some(&self.files[place])
    }

    /// The files of this name, in the order of their paths.
    pub(crate) fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a SourceFile> + use<'a> {
        let file = |place: &u32| &self.files[*place as usize];
        let first = self.by_name.partition_point(|place| file(place).name() < name);
        let count = self.by_name[first..].partition_point(|place| file(place).name() == name);
        self.by_name[first..first + count].iter().map(|place| &self.files[*place as usize])
    }

    /// The file whose path ends in `path`, whole names; the one that lies highest, if there are several.
    pub(crate) fn ending(&self, path: &str) -> Option<&SourceFile> {
        let name = path.rsplit('/').next()?;
        let whole = |file: &&SourceFile| {
            file.path.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        };
        self.named(name).filter(whole).min_by_key(|file| file.path.matches('/').count())
    }

    /// As [`Self::ending`]; an error that says what is missing otherwise.
    pub(crate) fn needed(&self, path: &str) -> Result<&SourceFile, StageError> {
        self.ending(path).ok_or_else(|| self.error(format!("it has no file `{path}`")))
    }

    /// The files that lie in a folder of this name, not below it.
    pub(crate) fn within<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a SourceFile> {
        self.files.iter().filter(move |file| {
            let mut parts = file.path.rsplit('/');
            parts.next();
            parts.next() == Some(folder)
        })
    }
}

/// Whether a file or one of its folders is hidden, or what macOS adds to archives.
fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.') || part == "__MACOSX")
}

/// The members of an archive, as files of the folder in which it lies.
fn members(archive: &Path, folder: &str, files: &mut Vec<SourceFile>) -> Result<(), StageError> {
    let damaged = |reason: String| StageError::input(archive, reason);
    let file = File::open(archive).map_err(|error| damaged(error.to_string()))?;
    let length = file.metadata().map_err(|error| damaged(error.to_string()))?.len();
    let file = Arc::new(file);
    let section = Section { file: Arc::clone(&file), position: 0, length };
    let mut zip = ZipArchive::new(BufReader::new(section))
        .map_err(|error| damaged(format!("it is no ZIP archive, or a truncated one: {error}")))?;
    let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let opened = Arc::new(Archive { path: archive.to_owned(), folder, file });
    if zip.len() > MEMBER_LIMIT {
        return Err(damaged(format!("it has {} members; at most {MEMBER_LIMIT} are read", zip.len())));
    }
    files.reserve_exact(zip.len());
    for index in 0..zip.len() {
        let member =
            zip.by_index_raw(index).map_err(|error| damaged(format!("member {}: {error}", index + 1)))?;
        let name = String::from_utf8(member.name_raw().to_vec())
            .map_err(|_| damaged(format!("the name of member {} is no UTF-8 text", index + 1)))?;
        if member.is_dir() || is_hidden_member(&name) {
            continue;
        }
        let refused = |reason: &str| damaged(format!("member `{}`: {reason}", name.escape_debug()));
        if !stays_inside(&name) {
            return Err(refused("its name leads out of the archive"));
        }
        if member.is_symlink() {
            return Err(refused("it is a symbolic link"));
        }
        if member.encrypted() {
            return Err(refused("it is encrypted"));
        }
        let deflated = match member.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            method => return Err(refused(&format!("it is packed by {method}; deflate is read"))),
        };
        let (compressed, bytes, checksum) = (member.compressed_size(), member.size(), member.crc32());
        let Some(start) = member.data_start() else { return Err(refused("it has no beginning")) };
        if start.checked_add(compressed).is_none_or(|end| end > length) {
            return Err(refused("it reaches beyond the end of the archive"));
        }
        let mut path = format!("{}{name}", opened.folder);
        path.shrink_to_fit();
        let place = Place::Member { archive: Arc::clone(&opened), start, compressed, deflated, checksum };
        files.push(SourceFile { path, bytes, place });
    }
    Ok(())
}

/// Hidden names that do not lead out of the archive, which is not for this function to forgive.
fn is_hidden_member(name: &str) -> bool {
    stays_inside(name) && is_hidden(name)
}

/// Whether a name is a plain relative path.
fn stays_inside(name: &str) -> bool {
    !name.contains(['\\', '\0']) && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A part of a file, with a place of its own: several may be read at once.
struct Section {
    file: Arc<File>,
    position: u64,
    /// Where the part ends in the file.
    length: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.length.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..left], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = place.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

/// Compares the checksum at the end.
struct Checked {
    bytes: Box<dyn Read + Send>,
    crc: Crc,
    expected: u32,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        self.crc.update(&buffer[..read]);
        if read == 0 && !buffer.is_empty() && self.crc.sum() != self.expected {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "its checksum is not that of the archive",
            ));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

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
        let folder = tempfile::tempdir().unwrap().keep();
        std::fs::create_dir_all(folder.join("data")).unwrap();
        std::fs::write(folder.join("data/images.zip"), bytes).unwrap();
        std::fs::write(folder.join("rows.csv"), "a,b").unwrap();
        let files = SourceFiles::of(&tree(&folder, "file"));
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
            let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
            assert_eq!(paths, ["data/a/one.txt", "data/two.txt", "rows.csv"]);
            assert_eq!(files.ending("one.txt").unwrap().read(1 << 20).unwrap(), text);
            assert_eq!(files.exactly("data/two.txt").unwrap().read(1).unwrap(), b"2");
            assert!(files.exactly("two.txt").is_none());
            assert!(files.ending("wo.txt").is_none());
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
        let mut listed = tree(folder.path(), "file");
        let paths = |artifact: &Artifact| -> Vec<String> {
            SourceFiles::of(artifact).unwrap().iter().map(|file| file.path.clone()).collect()
        };
        let sorted = paths(&listed);
        assert_eq!(sorted, ["0.txt", "a.txt", "b.txt", "c.txt"]);
        listed.files.reverse();
        assert_eq!(paths(&listed), sorted);
    }

    #[test]
    fn a_bomb_is_read_up_to_the_limit() {
        let zeros = vec![0; 64 << 20];
        let bytes = archive(&[("bomb.png", &zeros)], CompressionMethod::Deflated);
        assert!(bytes.len() < 1 << 20);
        let files = files(&bytes).unwrap();
        let reason = files.ending("bomb.png").unwrap().read(1 << 20).unwrap_err();
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
        let reason = files(&flipped).unwrap().ending("one.txt").unwrap().read(1 << 20).unwrap_err();
        assert!(reason.contains("checksum"), "{reason}");
    }

    #[test]
    fn a_path_that_stands_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.zip"), archive(&[("x", b"1")], CompressionMethod::Stored))
            .unwrap();
        std::fs::write(folder.path().join("b.zip"), archive(&[("x", b"2")], CompressionMethod::Stored))
            .unwrap();
        let error = SourceFiles::of(&tree(folder.path(), "file")).unwrap_err().to_string();
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
                    let _ = file.read(1 << 16);
                }
            }
        }
    }
}
