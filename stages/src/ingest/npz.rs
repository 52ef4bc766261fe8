//! NumPy archives: arrays of integers by name, read in order, never more than asked for.
//!
//! An archive is untrusted. Nothing is allocated by a size that it merely claims: headers are bounded,
//! shapes are compared with what their archive says is there, and elements are read in the pieces that
//! the caller asks for. Pickled (object) arrays are refused, not read.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};
use pipe_engine::StageError;
use zip::ZipArchive;
use zip::read::ZipFile;
use zip::result::ZipError;

/// NumPy itself refuses headers that are longer than this.
const HEADER_LIMIT: usize = 10_000;
/// Brackets inside each other in a header: a shape has two. The parser of the library recurses.
const NESTING_LIMIT: usize = 8;
/// Bytes that are asked of the archive at once.
const PIECE: u64 = 1 << 16;

/// An array that cannot be used.
fn damaged(file: &Path, member: &str, reason: impl std::fmt::Display) -> StageError {
    StageError::input(file, format!("member `{member}`: {reason}"))
}

/// An open archive.
pub(crate) struct Npz {
    file: PathBuf,
    archive: ZipArchive<BufReader<File>>,
}

impl Npz {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    /// If it cannot be read, or is no ZIP archive or the beginning of one.
    pub(crate) fn open(file: &Path) -> Result<Self, StageError> {
        let opened = File::open(file).map_err(|problem| StageError::input(file, problem.to_string()))?;
        let archive = ZipArchive::new(BufReader::new(opened)).map_err(|problem| {
            let reason = zip_reason(&problem);
            StageError::input(file, format!("it is no NumPy archive (.npz), or a truncated one: {reason}"))
        })?;
        Ok(Self { file: file.to_owned(), archive })
    }

    /// The names of the arrays, without `.npy`.
    pub(crate) fn names(&self) -> Vec<String> {
        self.archive
            .file_names_raw()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .map(|name| name.strip_suffix(".npy").map_or(name.clone(), str::to_owned))
            .collect()
    }

    /// The array of this name, its header read.
    ///
    /// # Errors
    /// If there is none, it is encrypted or compressed by another method than deflate, its header is
    /// damaged, it holds anything but integers in C order, or its shape does not fit its length.
    pub(crate) fn array(&mut self, name: &str) -> Result<Array<'_>, StageError> {
        let names = self.names();
        let member = format!("{name}.npy");
        let file = self.file.clone();
        let error = |reason: String| damaged(&file, &member, reason);
        let mut reader = self.archive.by_name(&member).map_err(|problem| match problem {
            ZipError::FileNotFound => error(format!("there is no such array; there are {}", shown(&names))),
            problem => error(zip_reason(&problem)),
        })?;
        let claimed = reader.size();
        let (header, length) = read_header(&mut reader).map_err(&error)?;
        let element = Element::of(&header.dtype()).map_err(&error)?;
        if header.order() == Order::Fortran {
            return Err(error("it is in Fortran order; C order is expected".to_owned()));
        }
        let shape = header.shape().to_vec();
        let elements = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let bytes = elements
            .and_then(|elements| elements.checked_mul(element.bytes as u64))
            .and_then(|bytes| bytes.checked_add(length as u64));
        if bytes != Some(claimed) {
            let wanted = bytes.map_or("more than can be counted".to_owned(), |bytes| bytes.to_string());
            return Err(error(format!(
                "its shape {shape:?} takes {wanted} bytes with the header, the archive says that it has {claimed}"
            )));
        }
        let unread = claimed - length as u64;
        Ok(Array { shape, element, unread, reader, file, member })
    }
}

/// The first names, for a message.
fn shown(names: &[String]) -> String {
    let listed: Vec<String> = names.iter().take(12).map(|name| format!("`{name}`")).collect();
    match names.len() {
        0 => "none".to_owned(),
        count if count > listed.len() => format!("{} and {} more", listed.join(", "), count - listed.len()),
        _ => listed.join(", "),
    }
}

fn zip_reason(error: &ZipError) -> String {
    match error {
        ZipError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends in the middle".to_owned()
        }
        error => error.to_string(),
    }
}

/// The parser draws a picture below its first line.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Magic, version, length and text of a header; returns how many bytes they take.
fn read_header(reader: &mut impl Read) -> Result<(NpyHeader, usize), String> {
    let ends = |error: std::io::Error| format!("its header cannot be read: {error}");
    let mut bytes = vec![0; 10];
    reader.read_exact(&mut bytes).map_err(ends)?;
    if &bytes[..6] != b"\x93NUMPY" {
        return Err("it does not begin as a NumPy array does".to_owned());
    }
    let length = match bytes[6] {
        1 => usize::from(u16::from_le_bytes([bytes[8], bytes[9]])),
        2 | 3 => {
            let mut rest = [0; 2];
            reader.read_exact(&mut rest).map_err(ends)?;
            bytes.extend(rest);
            u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize
        }
        version => return Err(format!("it has the format version {version}; 1 to 3 are known")),
    };
    if length > HEADER_LIMIT {
        return Err(format!("its header claims {length} bytes; at most {HEADER_LIMIT} are expected"));
    }
    let start = bytes.len();
    bytes.resize(start + length, 0);
    reader.read_exact(&mut bytes[start..]).map_err(ends)?;
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in &bytes[start..] {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest > NESTING_LIMIT {
        return Err(format!("its header nests {deepest} brackets"));
    }
    let header = NpyHeader::from_reader(Cursor::new(&bytes))
        .map_err(|error| format!("its header is damaged: {}", first_line(&error.to_string())))?;
    Ok((header, bytes.len()))
}

/// The type of the elements: an integer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Element {
    bytes: usize,
    signed: bool,
    big_endian: bool,
}

impl Element {
    fn of(dtype: &DType) -> Result<Self, String> {
        let shown = dtype.descr();
        if dtype.uses_pickled_array() {
            return Err(format!(
                "it holds Python objects ({shown}), which are pickled; a pickle runs code, so it is not read"
            ));
        }
        let wrong = || format!("its elements are {shown}; integers are expected");
        let DType::Plain(plain) = dtype else { return Err(wrong()) };
        let signed = match plain.type_char() {
            TypeChar::Int => true,
            TypeChar::Uint => false,
            _ => return Err(wrong()),
        };
        let bytes = plain.num_bytes().filter(|bytes| [1, 2, 4, 8].contains(bytes)).ok_or_else(wrong)?;
        Ok(Self { bytes, signed, big_endian: plain.endianness() == Endianness::Big })
    }

    /// The value of `bytes`, if an `i64` can hold it.
    fn value(self, bytes: &[u8]) -> Option<i64> {
        let mut wide = [0; 8];
        for (index, byte) in bytes.iter().enumerate() {
            wide[if self.big_endian { self.bytes - 1 - index } else { index }] = *byte;
        }
        let value = u64::from_le_bytes(wide);
        if self.signed {
            let unused = 64 - 8 * self.bytes as u32;
            Some((value << unused) as i64 >> unused)
        } else {
            i64::try_from(value).ok()
        }
    }
}

/// An array whose elements are read in order.
pub(crate) struct Array<'a> {
    shape: Vec<u64>,
    element: Element,
    /// Bytes of elements that are still to come.
    unread: u64,
    reader: ZipFile<'a, BufReader<File>>,
    file: PathBuf,
    member: String,
}

impl Array<'_> {
    /// The size of each axis.
    pub(crate) fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Whether elements are unsigned bytes.
    pub(crate) fn is_u8(&self) -> bool {
        self.element.bytes == 1 && !self.element.signed
    }

    /// An error about this array.
    pub(crate) fn error(&self, reason: impl std::fmt::Display) -> StageError {
        damaged(&self.file, &self.member, reason)
    }

    /// The next `count` bytes of elements, as they stand there. Behind the last one the archive's
    /// checksum is compared.
    ///
    /// # Errors
    /// If the archive holds fewer, or its data or checksum are damaged.
    pub(crate) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, StageError> {
        if count > self.unread {
            return Err(self.error(format!("{count} bytes are wanted, {} are left", self.unread)));
        }
        // The vector grows with what is there: a claimed size allocates nothing by itself.
        let mut bytes = Vec::with_capacity(count.min(PIECE) as usize);
        while (bytes.len() as u64) < count {
            let piece = (count - bytes.len() as u64).min(PIECE);
            let read = self.reader.by_ref().take(piece).read_to_end(&mut bytes);
            let read = read.map_err(|problem| self.error(format!("its data are damaged: {problem}")))?;
            if read == 0 {
                let missing = self.unread - bytes.len() as u64;
                return Err(self.error(format!("it is truncated: {missing} bytes are missing")));
            }
        }
        self.unread -= count;
        if self.unread == 0 {
            let mut one = [0];
            match self.reader.read(&mut one) {
                Ok(0) => {}
                Ok(_) => return Err(self.error("it has more data than its shape takes")),
                Err(problem) => return Err(self.error(format!("its data are damaged: {problem}"))),
            }
        }
        Ok(bytes)
    }

    /// The next `count` elements.
    ///
    /// # Errors
    /// As [`Self::bytes`], or if an element is beyond what an `i64` holds.
    pub(crate) fn integers(&mut self, count: u64) -> Result<Vec<i64>, StageError> {
        let length = count
            .checked_mul(self.element.bytes as u64)
            .ok_or_else(|| self.error(format!("{count} elements are wanted")))?;
        let bytes = self.bytes(length)?;
        let values = bytes.chunks_exact(self.element.bytes).map(|bytes| self.element.value(bytes));
        values.collect::<Option<Vec<i64>>>().ok_or_else(|| self.error("an element is greater than 2^63 - 1"))
    }
}
