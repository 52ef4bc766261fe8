//! The list of a source's files: sorted by path, shared when it is cloned, and small enough that a folder of many
//! millions of files has one.
//!
//! A file is written as what its path does not share with the path before it, and its length: some twenty bytes.
//! Every sixteenth path is written whole, so that one is found without reading all.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Files between two paths that are written whole.
const BLOCK: usize = 16;

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
#[derive(Clone, PartialEq, Eq)]
pub struct SourceFiles(Arc<List>);

#[derive(Clone, PartialEq, Eq)]
struct List {
    place: Place,
    count: usize,
    /// Whether modification times are written too.
    has_times: bool,
    written: Vec<u8>,
    /// Where every sixteenth file begins.
    blocks: Vec<usize>,
}

impl SourceFiles {
    pub(crate) fn builder(place: Place, has_times: bool) -> Builder {
        let list = List { place, count: 0, has_times, written: Vec::new(), blocks: Vec::new() };
        Builder { list, last: String::new() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.count == 0
    }

    /// All, in the order of their paths.
    pub fn iter(&self) -> impl Iterator<Item = SourceFile> + '_ {
        self.since(0)
    }

    /// The file of this path.
    pub fn get(&self, path: &str) -> Option<SourceFile> {
        let first = |start: &usize| Reader { list: &self.0, at: *start, place: 0 }.path_of_first();
        let behind = self.0.blocks.partition_point(|start| first(start) <= path.as_bytes());
        let mut files = self.since(behind.checked_sub(1)?).take(BLOCK);
        files.find(|file| file.path == path)
    }

    /// The same files from another place, as `moved` says of the old one.
    pub fn moved(&self, moved: impl Fn(&Path) -> PathBuf) -> Self {
        let mut list = Arc::unwrap_or_clone(Arc::clone(&self.0));
        list.place = match &list.place {
            Place::Below(root) => Place::Below(moved(root)),
            Place::At(location) => Place::At(moved(location)),
        };
        Self(Arc::new(list))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.0.place
    }

    fn since(&self, block: usize) -> impl Iterator<Item = SourceFile> + '_ {
        let at = self.0.blocks.get(block).copied().unwrap_or(self.0.written.len());
        let mut reader = Reader { list: &self.0, at, place: block * BLOCK };
        let mut path = String::new();
        std::iter::from_fn(move || reader.next(&mut path))
    }
}

impl fmt::Debug for SourceFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

/// A list that grows.
#[derive(Debug)]
pub(crate) struct Builder {
    list: List,
    last: String,
}

impl fmt::Debug for List {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} files, {:?}", self.count, self.place)
    }
}

impl Builder {
    /// Adds a file whose path comes behind all others; whether it does.
    pub(crate) fn push(&mut self, path: &str, bytes: u64, modified: i64) -> bool {
        let list = &mut self.list;
        if list.count > 0 && *path <= *self.last {
            return false;
        }
        let mut shared = 0;
        if list.count.is_multiple_of(BLOCK) {
            list.blocks.push(list.written.len());
        } else {
            let equal = path.bytes().zip(self.last.bytes()).take_while(|(one, other)| one == other).count();
            shared = (0..=equal).rev().find(|at| path.is_char_boundary(*at)).unwrap_or(0);
        }
        let rest = &path[shared..];
        write_number(shared as u64, &mut list.written);
        write_number(rest.len() as u64, &mut list.written);
        list.written.extend_from_slice(rest.as_bytes());
        write_number(bytes, &mut list.written);
        if list.has_times {
            list.written.extend_from_slice(&modified.to_le_bytes());
        }
        list.count += 1;
        self.last.truncate(shared);
        self.last.push_str(rest);
        true
    }

    pub(crate) fn finish(mut self) -> SourceFiles {
        self.list.written.shrink_to_fit();
        self.list.blocks.shrink_to_fit();
        SourceFiles(Arc::new(self.list))
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
    list: &'a List,
    at: usize,
    /// The number of the file that comes next.
    place: usize,
}

impl<'a> Reader<'a> {
    fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = self.list.written[self.at];
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let bytes = &self.list.written[self.at..self.at + count];
        self.at += count;
        bytes
    }

    /// Of the first file of a block.
    fn path_of_first(mut self) -> &'a [u8] {
        let _shared = self.number();
        let length = self.number() as usize;
        self.bytes(length)
    }

    /// The next file; `path` is that of the file before.
    fn next(&mut self, path: &mut String) -> Option<SourceFile> {
        if self.place >= self.list.count {
            return None;
        }
        let shared = self.number() as usize;
        let length = self.number() as usize;
        path.truncate(shared);
        // Cut between characters when it was written.
        path.push_str(&String::from_utf8_lossy(self.bytes(length)));
        let bytes = self.number();
        let times = if self.list.has_times { 8 } else { 0 };
        let recorded = self.bytes(times).first_chunk().map(|bytes| i64::from_le_bytes(*bytes));
        self.place += 1;
        Some(SourceFile { path: path.clone(), bytes, location: self.list.place.of(path), recorded })
    }
}

/// As place and a list of (path, bytes): another process reads its inputs so.
impl Serialize for SourceFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let files = Listed(self);
        (&self.0.place, files).serialize(serializer)
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
        let (place, Read(mut list)) = Deserialize::deserialize(deserializer)?;
        list.place = place;
        Ok(Self(Arc::new(list)))
    }
}

struct Read(List);

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
                    if !builder.push(&path, bytes, 0) {
                        return Err(A::Error::custom(format!("`{path}` is not in order")));
                    }
                }
                Ok(Read(builder.list))
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
            assert!(builder.push(path, *bytes, *modified));
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
        assert!(builder.push("b", 1, 0));
        assert!(!builder.push("b", 1, 0) && !builder.push("a", 1, 0) && builder.push("b/a", 1, 0));
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
    fn a_file_takes_some_twenty_bytes() {
        let path = |number: u32| format!("images/PMC{:07}/figure-{}.jpg", number / 4, number % 4);
        let files: Vec<_> = (0..10_000).map(|number| (path(number), 40_000, 0)).collect();
        let list = list(&files, false);
        let bytes = list.0.written.len() + list.0.blocks.len() * size_of::<usize>();
        assert!(bytes < 23 * files.len(), "{bytes}");
    }
}
