//! The list of a source's files: sorted by path, shared when it is cloned, and in a temporary file once it is long,
//! so that a folder of any number of files has one.
//!
//! A file is written as what its path does not share with the path before it, and its length: some twenty bytes.
//! Every sixteenth path, or fewer of them where there are very many, is written whole, so that one is found without
//! reading all.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spill::{Spill, SpillError, SpillReader};

/// Files between two paths that are written whole, at first.
const BLOCK: usize = 16;
/// Blocks that are remembered at most: beyond it two become one.
const BLOCKS: usize = 1 << 16;
/// The most bytes of a number.
const NUMBER: usize = 10;

/// A file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// The path inside the source, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Where it lies.
    pub location: PathBuf,
    /// Of a frozen source: its modification time when its digest was recorded, in nanoseconds.
    pub recorded: Option<i64>,
}

/// Where the files of a source lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// Each below this folder, by its path.
    Below(PathBuf),
    /// The only one here, whatever its path is.
    At(PathBuf),
}

impl Place {
    pub(crate) fn of(&self, path: &str) -> PathBuf {
        match self {
            Self::Below(root) => root.join(path),
            Self::At(location) => location.clone(),
        }
    }
}

/// The files of a source, sorted by path.
#[derive(Clone)]
pub struct SourceFiles {
    place: Place,
    list: Arc<List>,
}

struct List {
    count: usize,
    /// Whether modification times are written too.
    has_times: bool,
    written: Spill,
    /// Where the first file of each block begins.
    starts: Vec<u64>,
    /// Files of a block.
    block: usize,
}

impl SourceFiles {
    pub(crate) fn builder(place: Place, has_times: bool) -> Builder {
        let written = Spill::new(&std::env::temp_dir(), Spill::LIMIT);
        let list = List { count: 0, has_times, written, starts: Vec::new(), block: BLOCK };
        Builder { place, list, last: String::new() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.count == 0
    }

    /// All, in the order of their paths.
    ///
    /// # Panics
    /// If the machine cannot give back what it has written into this program's own temporary file.
    pub fn iter(&self) -> impl Iterator<Item = SourceFile> + '_ {
        self.since(0)
    }

    /// The file of this path.
    ///
    /// # Panics
    /// As [`Self::iter`].
    pub fn get(&self, path: &str) -> Option<SourceFile> {
        let first = |start: &u64| self.list.reader(*start).path_of_first();
        let behind = self.list.starts.partition_point(|start| *first(start) <= *path.as_bytes());
        let mut files = self.since(behind.checked_sub(1)?).take(self.list.block);
        files.find(|file| file.path == path)
    }

    /// The same files from another place, as `moved` says of the old one.
    pub fn moved(&self, moved: impl Fn(&Path) -> PathBuf) -> Self {
        let place = match &self.place {
            Place::Below(root) => Place::Below(moved(root)),
            Place::At(location) => Place::At(moved(location)),
        };
        Self { place, list: Arc::clone(&self.list) }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn since(&self, block: usize) -> impl Iterator<Item = SourceFile> + '_ {
        let start = self.list.starts.get(block).copied().unwrap_or(self.list.written.len());
        let mut reader = self.list.reader(start);
        let mut path = String::new();
        let left = self.list.count.saturating_sub(block * self.list.block);
        (0..left).map(move |_| reader.next(&mut path, &self.place))
    }
}

impl PartialEq for SourceFiles {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place && self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for SourceFiles {}

impl List {
    fn reader(&self, start: u64) -> Reader<'_> {
        Reader { bytes: self.written.reader(start..self.written.len()), has_times: self.has_times }
    }
}

impl fmt::Debug for SourceFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

/// A list that grows.
pub(crate) struct Builder {
    place: Place,
    list: List,
    last: String,
}

impl Builder {
    /// Adds a file whose path comes behind all others; whether it does.
    ///
    /// # Errors
    /// If the list is too long for memory and cannot be written to a file.
    pub(crate) fn push(&mut self, path: &str, bytes: u64, modified: i64) -> Result<bool, SpillError> {
        let list = &mut self.list;
        if list.count > 0 && *path <= *self.last {
            return Ok(false);
        }
        let mut shared = 0;
        if list.count.is_multiple_of(list.block) {
            if list.starts.len() >= BLOCKS {
                list.starts = list.starts.iter().copied().step_by(2).collect();
                list.block *= 2;
            }
            list.starts.push(list.written.len());
        } else {
            let equal = path.bytes().zip(self.last.bytes()).take_while(|(one, other)| one == other).count();
            shared = (0..=equal).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
        }
        let rest = &path[shared..];
        let mut written = Vec::with_capacity(3 * NUMBER + rest.len() + size_of_val(&modified));
        write_number(shared as u64, &mut written);
        write_number(rest.len() as u64, &mut written);
        written.extend_from_slice(rest.as_bytes());
        write_number(bytes, &mut written);
        if list.has_times {
            written.extend_from_slice(&modified.to_le_bytes());
        }
        list.written.append(&written)?;
        list.count += 1;
        self.last.truncate(shared);
        self.last.push_str(rest);
        Ok(true)
    }

    pub(crate) fn finish(mut self) -> SourceFiles {
        self.list.written.shrink();
        SourceFiles { place: self.place, list: Arc::new(self.list) }
    }
}

/// Seven bits a byte, the lowest first; the last byte has no high bit.
fn write_number(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads what a [`Builder`] has written.
struct Reader<'a> {
    bytes: SpillReader<'a>,
    has_times: bool,
}

impl Reader<'_> {
    /// The next bytes, which stay the next: `count` of them or more, fewer only at the end.
    fn peek(&mut self, count: usize) -> &[u8] {
        // A file without a name that this process made: nobody else can take it away or shorten it.
        self.bytes.peek(count).expect("the list of a source's files can be read back")
    }

    fn number(&mut self) -> u64 {
        let bytes = self.peek(NUMBER);
        let length = bytes.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        let bits = |number, (place, byte): (usize, &u8)| number | u64::from(byte & 0x7f) << (7 * place);
        let number = bytes[..length].iter().enumerate().fold(0, bits);
        self.bytes.skip(length);
        number
    }

    /// The path of the first file of a block.
    fn path_of_first(mut self) -> Vec<u8> {
        let _shared = self.number();
        let length = self.number() as usize;
        self.peek(length)[..length].to_vec()
    }

    /// The next file; `path` is that of the file before.
    fn next(&mut self, path: &mut String, place: &Place) -> SourceFile {
        let shared = self.number() as usize;
        let length = self.number() as usize;
        path.truncate(shared);
        // Cut between characters when it was written.
        path.push_str(&String::from_utf8_lossy(&self.peek(length)[..length]));
        self.bytes.skip(length);
        let bytes = self.number();
        let mut recorded = None;
        if self.has_times {
            recorded = self.peek(8).first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
            self.bytes.skip(8);
        }
        SourceFile { path: path.clone(), bytes, location: place.of(path), recorded }
    }
}

/// As place and a list of (path, bytes): another process reads its inputs so.
impl Serialize for SourceFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let files = Listed(self);
        (&self.place, files).serialize(serializer)
    }
}

struct Listed<'a>(&'a SourceFiles);

impl Serialize for Listed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|file| (file.path, file.bytes)))
    }
}

impl<'de> Deserialize<'de> for SourceFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, Read(files)) = Deserialize::deserialize(deserializer)?;
        Ok(Self { place, ..files })
    }
}

struct Read(SourceFiles);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;

        impl<'de> Visitor<'de> for Files {
            type Value = Read;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("files sorted by path")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<Read, A::Error> {
                let mut builder = SourceFiles::builder(Place::Below(PathBuf::new()), false);
                while let Some((path, bytes)) = files.next_element::<(String, u64)>()? {
                    if !builder.push(&path, bytes, 0).map_err(A::Error::custom)? {
                        return Err(A::Error::custom(format!("`{path}` is not in order")));
                    }
                }
                Ok(Read(builder.finish()))
            }
        }

        deserializer.deserialize_seq(Files)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(files: &[(String, u64, i64)], has_times: bool) -> SourceFiles {
        let mut builder = SourceFiles::builder(Place::Below("/data".into()), has_times);
        for (path, bytes, modified) in files {
            assert!(builder.push(path, *bytes, *modified).unwrap());
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn a_list_gives_back_what_it_was_given(
            files in prop::collection::btree_map("[aé/b]{1,9}", (any::<u64>(), any::<i64>()), 0..60),
            has_times: bool,
            other in "[aé/b]{0,9}",
        ) {
            let files: Vec<_> = files.into_iter().map(|(path, (bytes, time))| (path, bytes, time)).collect();
            let list = list(&files, has_times);
            prop_assert_eq!((list.len(), list.is_empty()), (files.len(), files.is_empty()));
            let expected: Vec<_> = files
                .iter()
                .map(|(path, bytes, time)| SourceFile {
                    path: path.clone(),
                    bytes: *bytes,
                    location: Path::new("/data").join(path),
                    recorded: has_times.then_some(*time),
                })
                .collect();
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), expected.clone());
            for file in &expected {
                let found = list.get(&file.path);
                prop_assert_eq!(found.as_ref(), Some(file));
            }
            prop_assert_eq!(list.get(&other).is_some(), files.iter().any(|file| file.0 == other));
            let text = serde_json::to_string(&list).unwrap();
            let read: SourceFiles = serde_json::from_str(&text).unwrap();
            let plain = |file: SourceFile| SourceFile { recorded: None, ..file };
            prop_assert!(read.iter().eq(expected.into_iter().map(plain)));
        }
    }

    #[test]
    fn what_is_out_of_order_is_refused() {
        let mut builder = SourceFiles::builder(Place::Below("/".into()), false);
        let mut pushed = |path| builder.push(path, 1, 0).unwrap();
        assert!(pushed("b"));
        assert!(!pushed("b") && !pushed("a") && pushed("b/a"));
        for text in ["[]", r#"[{"Below":"/"},[["b",1],["a",1]]]"#, r#"[{"Below":"/"},[["b",-1]]]"#] {
            assert!(serde_json::from_str::<SourceFiles>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_list_moves_as_a_whole() {
        let one = list(&[("a/b".to_owned(), 3, 0)], false);
        let moved = one.moved(|root| Path::new("/other").join(root.strip_prefix("/").unwrap()));
        assert_eq!(moved.get("a/b").unwrap().location, Path::new("/other/data/a/b"));
        assert_eq!(one.get("a/b").unwrap().location, Path::new("/data/a/b"));
    }

    #[test]
    fn a_long_list_lies_in_a_file() {
        let path = |number: u32| format!("images/PMC{:07}/figure-{}.jpg", number / 4, number % 4);
        let files: Vec<_> = (0..1_300_000).map(|number| (path(number), 40_000, 0)).collect();
        let list = list(&files, false);
        let written = list.list.written.len();
        assert!(written < 23 * files.len() as u64 && written > Spill::LIMIT as u64, "{written}");
        assert!(list.list.starts.len() <= BLOCKS && list.list.block > BLOCK);
        for (number, file) in list.iter().enumerate() {
            assert_eq!(file.path, files[number].0);
        }
        for number in (0..files.len()).step_by(10_007) {
            assert_eq!(list.get(&files[number].0).unwrap().path, files[number].0);
        }
        assert!(list.get("images/PMC0000000/figure-4.jpg").is_none());
    }
}
