//! A reader of the zip archives that PyTorch writes: members are stored as they are, so that each is
//! a range of the file. Only the central directory is believed, and only as far as it agrees with the
//! file.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A directory of more bytes than this belongs to no checkpoint.
const DIRECTORY_LIMIT: u64 = 64 << 20;
/// Length of the record that ends an archive, and of the longest comment after it.
const END: u64 = 22;
const COMMENT: u64 = 0xffff;

/// A member: where its record lies, and how its bytes are stored.
#[derive(Clone, Copy, Debug)]
struct Member {
    header: u64,
    length: u64,
    stored: bool,
}

/// The members of an archive by name.
#[derive(Debug)]
pub(super) struct Archive {
    members: BTreeMap<String, Member>,
    length: u64,
}

/// A range of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// Little-endian fields of a record; what is not there reads as an error.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        self.0
            .get(at..at + N)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| "the zip directory is cut off".to_owned())
    }

    fn u16(&self, at: usize) -> Result<u16, String> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, String> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, String> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

fn read(file: &File, start: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, start).map_err(|error| format!("byte {start}: {error}"))?;
    Ok(bytes)
}

impl Archive {
    /// Reads the directory of a file of `length` bytes.
    pub(super) fn open(file: &File, length: u64) -> Result<Self, String> {
        let directory = find_directory(file, length)?;
        let bytes = read(file, directory.start, directory.length as usize)?;
        let mut members = BTreeMap::new();
        let mut rest = bytes.as_slice();
        let mut total = 0u64;
        while !rest.is_empty() {
            let (name, member, size) = read_entry(rest)?;
            check_name(&name)?;
            // Members that overlap would let a small file claim many times its size.
            total = total.saturating_add(if member.stored { member.length } else { 0 });
            if total > length {
                return Err(format!("member `{name}` claims more bytes than the file has"));
            }
            if members.insert(name.clone(), member).is_some() {
                return Err(format!("it has two members `{name}`"));
            }
            rest = &rest[size..];
        }
        Ok(Self { members, length })
    }

    /// The names of all members, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.keys().map(String::as_str)
    }

    /// Where the bytes of a member lie.
    pub(super) fn range(&self, file: &File, name: &str) -> Result<Range, String> {
        let member = self.members.get(name).ok_or_else(|| format!("it has no member `{name}`"))?;
        if !member.stored {
            return Err(format!("member `{name}` is compressed or encrypted; PyTorch stores it as it is"));
        }
        if member.header.saturating_add(30) > self.length {
            return Err(format!("member `{name}` begins beyond the end of the file"));
        }
        let header = read(file, member.header, 30)?;
        let fields = Fields(&header);
        if fields.u32(0)? != 0x0403_4b50 {
            return Err(format!("member `{name}` does not begin where the directory says"));
        }
        let start = member.header + 30 + u64::from(fields.u16(26)?) + u64::from(fields.u16(28)?);
        if start.checked_add(member.length).is_none_or(|end| end > self.length) {
            return Err(format!("member `{name}` is cut off: the file is incomplete"));
        }
        Ok(Range { start, length: member.length })
    }

    /// The bytes of a member, if there are at most `limit`.
    pub(super) fn read(&self, file: &File, name: &str, limit: u64) -> Result<(u64, Vec<u8>), String> {
        let range = self.range(file, name)?;
        if range.length > limit {
            return Err(format!("member `{name}` has {} bytes; at most {limit} are expected", range.length));
        }
        Ok((range.start, read(file, range.start, range.length as usize)?))
    }
}

/// Where the central directory lies: by the record at the end, or by the zip64 record before it.
fn find_directory(file: &File, length: u64) -> Result<Range, String> {
    let tail_start = length.saturating_sub(END + COMMENT);
    let tail = read(file, tail_start, (length - tail_start) as usize)?;
    let end = (0..tail.len().saturating_sub(END as usize - 1))
        .rev()
        .find(|&at| {
            let fields = Fields(&tail[at..]);
            fields.u32(0) == Ok(0x0605_4b50)
                && fields.u16(20).is_ok_and(|comment| at + END as usize + usize::from(comment) == tail.len())
        })
        .ok_or("the zip directory is missing: the file is incomplete")?;
    let fields = Fields(&tail[end..]);
    let mut directory = Range { start: u64::from(fields.u32(16)?), length: u64::from(fields.u32(12)?) };
    // The locator of the zip64 record stands right before the end record.
    let end = tail_start + end as u64;
    if end >= 20 {
        let locator = read(file, end - 20, 20)?;
        let locator = Fields(&locator);
        if locator.u32(0)? == 0x0706_4b50 {
            let record = locator.u64(8)?;
            if record.saturating_add(56) > end {
                return Err("the zip64 record lies beyond the end of the file".to_owned());
            }
            let record = read(file, record, 56)?;
            let record = Fields(&record);
            if record.u32(0)? != 0x0606_4b50 {
                return Err("the zip64 record is not where its locator says".to_owned());
            }
            directory = Range { start: record.u64(48)?, length: record.u64(40)? };
        }
    }
    if directory.start.checked_add(directory.length).is_none_or(|stop| stop > end)
        || directory.length > DIRECTORY_LIMIT
    {
        return Err(format!(
            "the zip directory claims {} bytes from byte {} of a file of {length}",
            directory.length, directory.start
        ));
    }
    Ok(directory)
}

/// One entry at the front of `bytes`, and its size.
fn read_entry(bytes: &[u8]) -> Result<(String, Member, usize), String> {
    let fields = Fields(bytes);
    if fields.u32(0)? != 0x0201_4b50 {
        return Err("the zip directory is damaged".to_owned());
    }
    let (flags, method) = (fields.u16(8)?, fields.u16(10)?);
    let (name, extra, comment) = (fields.u16(28)?, fields.u16(30)?, fields.u16(32)?);
    let name_end = 46 + usize::from(name);
    let extra_end = name_end + usize::from(extra);
    let size = extra_end + usize::from(comment);
    if bytes.len() < size {
        return Err("the zip directory is cut off".to_owned());
    }
    let name = std::str::from_utf8(&bytes[46..name_end])
        .map_err(|_| "a member of the archive has a name that is no UTF-8".to_owned())?;
    // Each field of 32 bits that is all ones stands, in this order, in the zip64 extra field.
    let mut wide = wide_values(&bytes[name_end..extra_end]);
    let mut value = |at: usize| match fields.u32(at)? {
        u32::MAX => wide.next().ok_or_else(|| format!("member `{name}` lacks its zip64 sizes")),
        short => Ok(u64::from(short)),
    };
    let length = value(24)?;
    let packed = value(20)?;
    let header = value(42)?;
    let stored = method == 0 && flags & 1 == 0;
    if stored && packed != length {
        return Err(format!("member `{name}` is stored in {packed} bytes but claims {length}"));
    }
    Ok((name.to_owned(), Member { header, length, stored }, size))
}

/// The values of the zip64 extra field, in its order.
fn wide_values(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut values = [].as_slice();
    while extra.len() >= 4 {
        let kind = u16::from_le_bytes([extra[0], extra[1]]);
        let length = usize::from(u16::from_le_bytes([extra[2], extra[3]]));
        let body = &extra[4..extra.len().min(4 + length)];
        if kind == 1 {
            values = body;
        }
        extra = &extra[4 + body.len()..];
    }
    values.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// No member is ever written to disk; such a name shows that the file is no checkpoint.
fn check_name(name: &str) -> Result<(), String> {
    let outside = name.starts_with(['/', '\\'])
        || name.as_bytes().get(1) == Some(&b':')
        || name.split(['/', '\\']).any(|part| part == "..")
        || name.contains('\0');
    if outside {
        return Err(format!("member `{}` has a name that leads out of the archive", name.escape_debug()));
    }
    Ok(())
}
