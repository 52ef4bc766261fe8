//! What is remembered of external files: the digest of each as it was when it was hashed, by device and inode.
//!
//! The memory is one file of records sorted by device and inode. Of it only every sixty-fourth name is held in
//! memory, so that it may know many millions of files; what is new waits until there is much of it, and is merged
//! into a new file that replaces the old one. Each record has a check of its own: a damaged one is none.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::Digest;
use crate::fs::{Disk, FsError, nonce};

/// What the file begins with.
const HEADER: &[u8; 16] = b"pipe sources 2\n\0";
/// Bytes of a record: device, inode, size, times of modification and change, digest, check.
const RECORD: usize = 80;
/// Bytes of a record before its check.
const CHECKED: usize = 72;
/// Records between two names that are held in memory.
const BLOCK: usize = 64;
/// Files that wait to be merged.
const WAITING: usize = 1 << 18;
/// A file of more records is not read: it knows mostly what is long gone.
const RECORDS: u64 = 50_000_000;

/// Device and inode.
pub(crate) type Identity = (u64, u64);

/// What was known of a file when it was hashed; times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) size: u64,
    pub(crate) modified: i64,
    pub(crate) changed: i64,
    pub(crate) digest: Digest,
}

impl Entry {
    /// Of a file with this content.
    pub(crate) fn new(metadata: &Metadata, digest: Digest) -> Self {
        let time = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: metadata.len(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
            digest,
        }
    }
}

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    disk: Disk,
    /// Where it is kept; none if it is lost in the end.
    path: Option<PathBuf>,
    stored: Option<Stored>,
    waiting: BTreeMap<Identity, Entry>,
    limit: usize,
}

impl Remembered {
    /// What `path` holds. A file that cannot be read is forgotten.
    pub(crate) fn open(disk: Disk, path: Option<PathBuf>) -> Self {
        let stored = path.as_deref().and_then(|path| Stored::open(path).ok().flatten());
        Self { disk, path, stored, waiting: BTreeMap::new(), limit: WAITING }
    }

    pub(crate) fn get(&mut self, identity: Identity) -> Option<Entry> {
        let waiting = self.waiting.get(&identity).copied();
        waiting.or_else(|| self.stored.as_mut()?.get(identity))
    }

    pub(crate) fn insert(&mut self, identity: Identity, entry: Entry) {
        if self.path.is_none() {
            return;
        }
        self.waiting.insert(identity, entry);
        if self.waiting.len() >= self.limit {
            self.save();
        }
    }

    /// Writes what is new. A failure is not reported: it costs hashing again.
    pub(crate) fn save(&mut self) {
        let Some(path) = self.path.clone().filter(|_| !self.waiting.is_empty()) else { return };
        let _ = path.parent().map(std::fs::create_dir_all);
        let aside = path.with_file_name(format!(".sources.{}", nonce()));
        if self.merge(&path, &aside).and_then(|()| self.disk.rename(&aside, &path)).is_err() {
            let _ = std::fs::remove_file(&aside);
            // Not tried again with each file.
            self.path = None;
        }
        self.waiting.clear();
        self.stored = Stored::open(&path).ok().flatten();
    }

    /// Writes what `path` holds now and what is new into `aside`.
    fn merge(&mut self, path: &Path, aside: &Path) -> Result<(), FsError> {
        let refuse = |error| FsError::new("writing", aside, error);
        let mut target = BufWriter::new(self.disk.write_passing(aside, HEADER)?);
        let mut new = std::mem::take(&mut self.waiting).into_iter().peekable();
        // Another process may have written since.
        if let Ok(Some(stored)) = Stored::open(path) {
            let mut last = None;
            for record in stored.records().map_err(refuse)? {
                let Some((identity, entry)) = record.map_err(refuse)? else { continue };
                // Damage that the check does not see must not spoil the order.
                if last.replace(identity).is_some_and(|last| last >= identity) {
                    break;
                }
                while let Some((before, entry)) = new.next_if(|(before, _)| *before < identity) {
                    target.write_all(&written(before, &entry)).map_err(refuse)?;
                }
                if new.peek().is_none_or(|(name, _)| *name != identity) {
                    target.write_all(&written(identity, &entry)).map_err(refuse)?;
                }
            }
        }
        for (identity, entry) in new {
            target.write_all(&written(identity, &entry)).map_err(refuse)?;
        }
        target.flush().map_err(refuse)
    }
}

/// The file.
#[derive(Debug)]
struct Stored {
    file: File,
    records: u64,
    /// The first name of each block.
    firsts: Vec<Identity>,
    /// The block that was read last.
    block: Option<(usize, Vec<u8>)>,
}

impl Stored {
    /// None if there is none, or it is not of this form.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len();
        let mut header = [0; HEADER.len()];
        let records = length.saturating_sub(HEADER.len() as u64) / RECORD as u64;
        if records == 0 || records > RECORDS {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        if header != *HEADER {
            return Ok(None);
        }
        let mut firsts = Vec::with_capacity(records.div_ceil(BLOCK as u64) as usize);
        let mut first = [0; 16];
        for place in (0..records).step_by(BLOCK) {
            file.read_exact_at(&mut first, start(place))?;
            firsts.push(identity(&first));
        }
        Ok(Some(Self { file, records, firsts, block: None }))
    }

    fn get(&mut self, wanted: Identity) -> Option<Entry> {
        let number = self.firsts.partition_point(|first| *first <= wanted).checked_sub(1)?;
        if self.block.as_ref().is_none_or(|(read, _)| *read != number) {
            let place = (number * BLOCK) as u64;
            let mut bytes = vec![0; RECORD * BLOCK.min((self.records - place) as usize)];
            self.file.read_exact_at(&mut bytes, start(place)).ok()?;
            self.block = Some((number, bytes));
        }
        let bytes = &self.block.as_ref()?.1;
        let (records, _) = bytes.as_chunks::<RECORD>();
        let place = records.binary_search_by_key(&wanted, |record| identity(record)).ok()?;
        read(&records[place]).map(|(_, entry)| entry)
    }

    /// All records; none in the place of a damaged one.
    fn records(&self) -> io::Result<impl Iterator<Item = io::Result<Option<(Identity, Entry)>>>> {
        let mut file = BufReader::new(self.file.try_clone()?);
        let mut header = [0; HEADER.len()];
        io::Seek::rewind(&mut file)?;
        file.read_exact(&mut header)?;
        Ok((0..self.records).map(move |_| {
            let mut record = [0; RECORD];
            file.read_exact(&mut record)?;
            Ok(read(&record))
        }))
    }
}

/// Where a record begins.
fn start(place: u64) -> u64 {
    HEADER.len() as u64 + place * RECORD as u64
}

fn number(record: &[u8], place: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&record[place * 8..place * 8 + 8]);
    u64::from_le_bytes(bytes)
}

fn identity(record: &[u8]) -> Identity {
    (number(record, 0), number(record, 1))
}

fn written((device, inode): Identity, entry: &Entry) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let numbers = [device, inode, entry.size, entry.modified as u64, entry.changed as u64];
    for (place, number) in numbers.into_iter().enumerate() {
        record[place * 8..place * 8 + 8].copy_from_slice(&number.to_le_bytes());
    }
    record[40..CHECKED].copy_from_slice(entry.digest.as_bytes());
    let check = check(&record);
    record[CHECKED..].copy_from_slice(&check);
    record
}

fn check(record: &[u8; RECORD]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(&record[..CHECKED]).as_bytes()[..8]);
    check
}

fn read(record: &[u8; RECORD]) -> Option<(Identity, Entry)> {
    if record[CHECKED..] != check(record) {
        return None;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(&record[40..CHECKED]);
    let (modified, changed) = (number(record, 3) as i64, number(record, 4) as i64);
    let entry = Entry { size: number(record, 2), modified, changed, digest: Digest::from_bytes(digest) };
    Some((identity(record), entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        let digest = Digest::of(&number.to_le_bytes());
        Entry { size: number, modified: -(number as i64), changed: 7, digest }
    }

    /// Inodes in an order that is not theirs.
    fn shuffled(count: u64) -> impl Iterator<Item = u64> {
        (0..count).map(move |place| place * 7919 % count)
    }

    #[test]
    fn what_was_saved_is_remembered_however_often_it_was_merged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache/sources");
        let open = || Remembered { limit: 100, ..Remembered::open(Disk::default(), Some(path.clone())) };
        let mut memory = open();
        for inode in shuffled(1001) {
            memory.insert((inode % 2, inode), entry(inode));
        }
        // Another process has been at work meanwhile.
        let mut other = open();
        other.insert((5, 5), entry(5));
        other.save();
        memory.insert((0, 10), entry(1_000_000));
        memory.save();
        let mut memory = open();
        for inode in 0..1001 {
            let expected = if inode == 10 { entry(1_000_000) } else { entry(inode) };
            assert_eq!(memory.get((inode % 2, inode)), Some(expected), "{inode}");
            assert_eq!(memory.get((1 - inode % 2, inode)), None);
        }
        assert_eq!(memory.get((5, 5)), Some(entry(5)));
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_flipped_bit_costs_one_record_at_most_and_never_gives_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sources");
        let mut memory = Remembered::open(Disk::default(), Some(path.clone()));
        for inode in 0..200 {
            memory.insert((1, inode), entry(inode));
        }
        memory.save();
        let sound = std::fs::read(&path).unwrap();
        for place in (HEADER.len()..sound.len()).step_by(37) {
            let mut damaged = sound.clone();
            damaged[place] ^= 1 << (place % 8);
            std::fs::write(&path, damaged).unwrap();
            let mut memory = Remembered::open(Disk::default(), Some(path.clone()));
            for inode in 0..200 {
                assert!(memory.get((1, inode)).is_none_or(|found| found == entry(inode)));
            }
            memory.insert((2, 0), entry(0));
            memory.save();
            let mut memory = Remembered::open(Disk::default(), Some(path.clone()));
            let left = (0..200).filter(|inode| memory.get((1, *inode)) == Some(entry(*inode))).count();
            assert_eq!((left, memory.get((2, 0))), (199, Some(entry(0))), "{place}");
        }
        for length in [0, 5, 16, 17, 96, sound.len() - 1] {
            std::fs::write(&path, &sound[..length]).unwrap();
            let mut memory = Remembered::open(Disk::default(), Some(path.clone()));
            assert!(memory.get((1, 0)).is_none_or(|found| found == entry(0)));
        }
    }
}
