//! ZIP archives, whose list of members is read in its order and not kept: they may have millions.
//!
//! An archive is untrusted. One with a member whose name leads out of it, with a symbolic link or an encrypted member
//! is refused as a whole; what a member says of its place is checked against the file when it is listed, and again
//! when it is opened.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use pipe_engine::StageError;

/// More members than this are in no published data set.
const MEMBER_LIMIT: u64 = 20_000_000;

/// An open archive. Its members share it.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    file: Arc<File>,
    directory: Directory,
}

/// A file in an archive.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Where its own header begins in the file.
    pub(super) header: u64,
    pub(super) compressed: u64,
    pub(super) bytes: u64,
    pub(super) checksum: u32,
    pub(super) is_deflated: bool,
}

/// Where the list of members is.
#[derive(Debug)]
struct Directory {
    start: u64,
    end: u64,
    members: u64,
    /// Bytes in front of the archive, which its own figures do not count.
    before: u64,
}

/// Bytes of the records of an archive without their texts, and what they begin with.
const END: (usize, u32) = (22, 0x0605_4b50);
const LOCATOR: (usize, u32) = (20, 0x0706_4b50);
const LONG_END: (usize, u32) = (56, 0x0606_4b50);
const ENTRY: (usize, u32) = (46, 0x0201_4b50);
const HEADER: (usize, u32) = (30, 0x0403_4b50);

impl Archive {
    /// Opens an archive and finds its list.
    ///
    /// # Errors
    /// If it is none, or a part of one.
    pub(super) fn open(path: &Path) -> Result<Self, StageError> {
        let damaged = |reason: String| StageError::input(path, reason);
        let file = File::open(path).map_err(|error| damaged(error.to_string()))?;
        let length = file.metadata().map_err(|error| damaged(error.to_string()))?.len();
        let directory = Directory::find(&file, length)
            .map_err(|reason| damaged(format!("it is no ZIP archive, or a truncated one: {reason}")))?;
        if directory.members > MEMBER_LIMIT {
            return Err(damaged(format!(
                "it has {} members; at most {MEMBER_LIMIT} are read",
                directory.members
            )));
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), directory })
    }

    /// Gives each file to `take`, with its name. Folders and hidden files are left out.
    ///
    /// # Errors
    /// If the list is damaged, or names a member that is not to be trusted.
    pub(super) fn each(
        &self,
        mut take: impl FnMut(&str, Member) -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        let damaged = |reason: String| StageError::input(&self.path, reason);
        let Directory { start, end, members, before } = self.directory;
        let mut list =
            BufReader::with_capacity(1 << 16, Section { file: Arc::clone(&self.file), position: start, end });
        let mut texts = Vec::new();
        for number in 1..=members {
            let cut = |error: std::io::Error| damaged(format!("member {number}: its entry is cut: {error}"));
            let mut entry = [0; ENTRY.0];
            list.read_exact(&mut entry).map_err(cut)?;
            if u32_at(&entry, 0) != ENTRY.1 {
                return Err(damaged(format!("member {number}: its entry is none of a ZIP archive")));
            }
            let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(&entry, at)));
            texts.resize(name + extra + comment, 0);
            list.read_exact(&mut texts).map_err(cut)?;
            let (name, rest) = texts.split_at(name);
            let name = &*name_of(name);
            if name.ends_with('/') || (stays_inside(name) && is_hidden(name)) {
                continue;
            }
            let refused = |reason: &str| damaged(format!("member `{}`: {reason}", name.escape_debug()));
            if !stays_inside(name) {
                return Err(refused("its name leads out of the archive"));
            }
            // The upper half of these attributes is the mode of Unix.
            if u32_at(&entry, 38) >> 16 & 0o170_000 == 0o120_000 {
                return Err(refused("it is a symbolic link"));
            }
            if u16_at(&entry, 8) & 1 != 0 {
                return Err(refused("it is encrypted"));
            }
            let is_deflated = match u16_at(&entry, 10) {
                0 => false,
                8 => true,
                method => return Err(refused(&format!("it is packed by method {method}; deflate is read"))),
            };
            let [bytes, compressed, offset] = sizes(&entry, &rest[..extra])
                .ok_or_else(|| refused("its entry lacks a size that it says is there"))?;
            let header = before.checked_add(offset);
            let least =
                header.and_then(|header| header.checked_add(HEADER.0 as u64)?.checked_add(compressed));
            let (Some(header), Some(_)) = (header, least.filter(|least| *least <= start)) else {
                return Err(refused("it reaches beyond the end of the archive"));
            };
            let checksum = u32_at(&entry, 16);
            take(name, Member { header, compressed, bytes, checksum, is_deflated })?;
        }
        Ok(())
    }

    /// The bytes of a member from the first on, unpacked; its checksum is compared at the end.
    pub(super) fn read(&self, member: &Member) -> Result<Box<dyn Read + Send>, String> {
        let mut header = [0; HEADER.0];
        self.file.read_exact_at(&mut header, member.header).map_err(|error| error.to_string())?;
        if u32_at(&header, 0) != HEADER.1 {
            return Err("it is not where the archive says".to_owned());
        }
        let texts = u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
        let position = member.header + HEADER.0 as u64 + texts;
        let end = position + member.compressed;
        if end > self.directory.start {
            return Err("it reaches beyond the end of the archive".to_owned());
        }
        let section = Section { file: Arc::clone(&self.file), position, end };
        let bytes: Box<dyn Read + Send> = if member.is_deflated {
            Box::new(DeflateDecoder::new(BufReader::new(section)))
        } else {
            Box::new(section)
        };
        Ok(Box::new(Checked { bytes, crc: Crc::new(), expected: member.checksum }))
    }
}

impl Directory {
    /// Reads the end of an archive, of either of its two forms.
    fn find(file: &File, length: u64) -> Result<Self, String> {
        let read =
            |at: u64, bytes: &mut [u8]| file.read_exact_at(bytes, at).map_err(|error| error.to_string());
        // A comment of at most 65,535 bytes may stand behind the end.
        let mut tail = vec![0; length.min(END.0 as u64 + 0xffff) as usize];
        let first = length - tail.len() as u64;
        read(first, &mut tail)?;
        let is_end = |at: &usize| {
            let end = &tail[*at..];
            u32_at(end, 0) == END.1 && END.0 + usize::from(u16_at(end, 20)) <= end.len()
        };
        let last = tail.len().checked_sub(END.0).ok_or("it has no end")?;
        let at = (0..=last).rev().find(is_end).ok_or("it has no end")?;
        let (end, record) = (first + at as u64, &tail[at..]);
        let mut members = u64::from(u16_at(record, 10));
        let (mut size, mut offset) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
        let mut found = end;
        if let Some(place) = end.checked_sub(LOCATOR.0 as u64) {
            let mut locator = [0; LOCATOR.0];
            read(place, &mut locator)?;
            if u32_at(&locator, 0) == LOCATOR.1 {
                // Where it says, or right before it if there are bytes in front of the archive.
                let mut long = [0; LONG_END.0];
                let places = [Some(u64_at(&locator, 8)), place.checked_sub(LONG_END.0 as u64)];
                let is_long = |at: &u64| read(*at, &mut long).is_ok() && u32_at(&long, 0) == LONG_END.1;
                found = places.into_iter().flatten().find(is_long).ok_or("its long end is missing")?;
                (members, size, offset) = (u64_at(&long, 32), u64_at(&long, 40), u64_at(&long, 48));
            }
        }
        let start = found.checked_sub(size).ok_or("its list is longer than the file")?;
        let before = start.checked_sub(offset).ok_or("its list is not where it says")?;
        Ok(Self { start, end: found, members, before })
    }
}

/// How long a member is, unpacked and packed, and where its header is. What does not fit an entry's own fields
/// stands behind its name.
fn sizes(entry: &[u8], mut extra: &[u8]) -> Option<[u64; 3]> {
    let mut sizes = [24, 20, 42].map(|at| u64::from(u32_at(entry, at)));
    let is_long = |size: &u64| *size == u64::from(u32::MAX);
    if !sizes.iter().any(is_long) {
        return Some(sizes);
    }
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let mut field = extra.get(4..4 + length)?;
        if kind == 1 {
            for size in sizes.iter_mut().filter(|size| is_long(size)) {
                (field.len() >= 8).then_some(())?;
                *size = u64_at(field, 0);
                field = &field[8..];
            }
            return Some(sizes);
        }
        extra = &extra[4 + length..];
    }
    None
}

/// Numbers, low byte first. Records are at least as long as their fixed part.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The characters behind the 128 of ASCII in the code page of names that are not UTF-8 (IBM 437).
const CODE_PAGE: &str = "\
    ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
    └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The name of a member. Many programs write UTF-8 without saying so; what is none is of the code page.
fn name_of(bytes: &[u8]) -> Cow<'_, str> {
    let Err(_) = std::str::from_utf8(bytes) else { return String::from_utf8_lossy(bytes) };
    let character = |byte: &u8| match byte.checked_sub(128) {
        None => char::from(*byte),
        Some(place) => CODE_PAGE.chars().nth(place.into()).unwrap_or(char::REPLACEMENT_CHARACTER),
    };
    Cow::Owned(bytes.iter().map(character).collect())
}

/// Whether a file or one of its folders is hidden, or what macOS adds to archives.
pub(super) fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.') || part == "__MACOSX")
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
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.end.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..left], self.position)?;
        self.position += read as u64;
        Ok(read)
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
    use super::*;

    const TEXT: &[u8] = b"some text";

    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = Crc::new();
        crc.update(bytes);
        crc.sum()
    }

    fn bytes(numbers: &[(u64, usize)]) -> Vec<u8> {
        numbers.iter().flat_map(|(number, width)| number.to_le_bytes()[..*width].to_vec()).collect()
    }

    /// An archive of one stored member whose sizes and places are all in the long form, as archives of more than 4 GiB
    /// or 65,535 members have them. `offset` is where the header is said to be.
    fn long(offset: u64) -> Vec<u8> {
        let (size, sum, unset) = (TEXT.len() as u64, u64::from(crc(TEXT)), u64::from(u32::MAX));
        let mut archive =
            bytes(&[(HEADER.1.into(), 4), (45, 2), (0, 8), (sum, 4), (size, 4), (size, 4), (5, 2), (0, 2)]);
        archive.extend([b"a.txt", TEXT].concat());
        let list = archive.len() as u64;
        archive.extend(bytes(&[
            (ENTRY.1.into(), 4),
            (45, 2),
            (45, 2),
            (0, 8),
            (sum, 4),
            (unset, 4),
            (unset, 4),
        ]));
        archive.extend(bytes(&[(5, 2), (4 + 4 + 28, 2), (0, 8), (0, 2), (unset, 4)]));
        archive.extend(b"a.txt");
        // Another field stands before the one with the sizes.
        archive.extend(bytes(&[
            (0x5455, 2),
            (4, 2),
            (0, 4),
            (1, 2),
            (24, 2),
            (size, 8),
            (size, 8),
            (offset, 8),
        ]));
        let end = archive.len() as u64;
        archive.extend(bytes(&[(LONG_END.1.into(), 4), (44, 8), (45, 2), (45, 2), (0, 8), (1, 8), (1, 8)]));
        archive.extend(bytes(&[(end - list, 8), (list, 8), (LOCATOR.1.into(), 4), (0, 4), (end, 8), (1, 4)]));
        archive.extend(bytes(&[
            (END.1.into(), 4),
            (0, 4),
            (0xffff, 2),
            (0xffff, 2),
            (unset, 4),
            (unset, 4),
            (0, 2),
        ]));
        archive
    }

    #[test]
    fn names_of_either_encoding_are_read() {
        assert_eq!(CODE_PAGE.chars().count(), 128);
        assert_eq!(name_of("d\u{e9}j\u{e0}.png".as_bytes()), "d\u{e9}j\u{e0}.png");
        assert_eq!(name_of(b"d\x82j\x85 \xe1\xff.png"), "d\u{e9}j\u{e0} \u{df}\u{a0}.png");
    }

    fn texts(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), archive).unwrap();
        let archive = Archive::open(file.path()).map_err(|error| error.to_string())?;
        let mut members = Vec::new();
        let listed = archive.each(|name, member| {
            members.push((name.to_owned(), member));
            Ok(())
        });
        listed.map_err(|error| error.to_string())?;
        members
            .into_iter()
            .map(|(name, member)| {
                let mut text = Vec::new();
                archive.read(&member)?.read_to_end(&mut text).map_err(|error| error.to_string())?;
                Ok((name, text))
            })
            .collect()
    }

    #[test]
    fn archives_beyond_four_gigabytes_are_read() {
        assert_eq!(texts(&long(0)).unwrap(), [("a.txt".to_owned(), TEXT.to_vec())]);
        // A program in front of an archive unpacks it where it runs; a comment may stand behind.
        let mut longer = [b"#!/bin/sh\n", &long(0)[..]].concat();
        let place = longer.len() - 2;
        longer[place..].copy_from_slice(&3u16.to_le_bytes());
        longer.extend(b"end");
        assert_eq!(texts(&longer).unwrap(), [("a.txt".to_owned(), TEXT.to_vec())]);
    }

    #[test]
    fn places_that_are_none_are_refused() {
        for offset in [1 << 40, u64::MAX, long(0).len() as u64 - 100] {
            let reason = texts(&long(offset)).unwrap_err();
            assert!(reason.contains("reaches beyond the end of the archive"), "{offset}: {reason}");
        }
        assert!(texts(&long(3)).unwrap_err().contains("not where the archive says"));
        let whole = long(0);
        let without_long_end = [&whole[..whole.len() - 98], &whole[whole.len() - 42..]].concat();
        assert!(texts(&without_long_end).unwrap_err().contains("long end is missing"));
        assert!(texts(&whole[20..]).unwrap_err().contains("truncated"));
        assert!(texts(b"").unwrap_err().contains("truncated"));
    }

    #[test]
    fn what_is_claimed_of_a_member_is_not_believed() {
        let mut more = long(0);
        // Two members where there is one.
        let end = more.len() - 98;
        more[end + 32] = 2;
        assert!(texts(&more).unwrap_err().contains("member 2: its entry is"));
        // An encrypted one, and one that is packed by another method.
        let entry = HEADER.0 + 5 + TEXT.len();
        for (at, value, reason) in [(8, 1, "it is encrypted"), (10, 12, "packed by method 12")] {
            let mut other = long(0);
            other[entry + at] = value;
            assert!(texts(&other).unwrap_err().contains(reason));
        }
        let mut text = long(0);
        text[HEADER.0 + 6] ^= 1;
        assert!(texts(&text).unwrap_err().contains("checksum"));
    }
}
