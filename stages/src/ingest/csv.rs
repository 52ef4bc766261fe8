//! Delimited text with a header (RFC 4180), row by row, in bounded memory.

use std::io::{BufRead, BufReader, Read};

use csv_core::ReadRecordResult;
use pipe_engine::StageError;

use super::source::SourceFile;

/// A longer row is none, but a quotation mark that is never closed.
const ROW_LIMIT: usize = 16 << 20;
const FIELD_LIMIT: usize = 1 << 16;

/// An open file, its header read.
pub(crate) struct CsvFile<'a> {
    file: &'a SourceFile,
    input: BufReader<Box<dyn Read + Send>>,
    parser: csv_core::Reader,
    header: Vec<String>,
    /// The row that was read last, from 1: the header.
    row: usize,
    output: Vec<u8>,
    ends: Vec<usize>,
    read: u64,
}

/// A row of as many fields as the header has.
pub(crate) struct CsvRow {
    /// Its number, from 1: the header.
    pub(crate) number: usize,
    fields: Vec<String>,
}

impl CsvRow {
    /// A field, trimmed; nothing if it is empty.
    pub(crate) fn field(&self, column: usize) -> Option<&str> {
        self.fields.get(column).map(|field| field.trim()).filter(|field| !field.is_empty())
    }
}

/// A row that cannot be used.
pub(crate) struct BadRow {
    pub(crate) number: usize,
    pub(crate) reason: String,
}

impl<'a> CsvFile<'a> {
    /// Opens a file and reads its header.
    pub(crate) fn open(file: &'a SourceFile, delimiter: u8) -> Result<Self, StageError> {
        let input = file.open_gzip().map_err(|reason| file.error(reason))?;
        let parser = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let mut csv = Self {
            file,
            input: BufReader::new(input),
            parser,
            header: Vec::new(),
            row: 0,
            output: vec![0; 1 << 12],
            ends: vec![0; 1 << 6],
            read: 0,
        };
        let header = csv.record()?.ok_or_else(|| file.error("it is empty"))?;
        csv.header = header.map_err(|bad| file.error(format!("row 1: {}", bad.reason)))?.fields;
        Ok(csv)
    }

    /// The names of the columns.
    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// How many bytes were read.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// The place of a column.
    pub(crate) fn column(&self, name: &str) -> Result<usize, StageError> {
        self.header.iter().position(|header| header.trim() == name).ok_or_else(|| {
            let known = self.header.join(", ");
            self.file.error(format!("it has no column `{name}`; its columns are {known}"))
        })
    }

    /// The next row; `None` behind the last. A bad row does not end the file.
    pub(crate) fn next_row(&mut self) -> Result<Option<Result<CsvRow, BadRow>>, StageError> {
        let Some(row) = self.record()? else { return Ok(None) };
        Ok(Some(row.and_then(|row| {
            if row.fields.len() == self.header.len() {
                return Ok(row);
            }
            let reason = format!(
                "it has {} fields, the header {}; a field with the delimiter needs quotes",
                row.fields.len(),
                self.header.len()
            );
            Err(BadRow { number: row.number, reason })
        })))
    }

    fn record(&mut self) -> Result<Option<Result<CsvRow, BadRow>>, StageError> {
        let (mut written, mut fields) = (0, 0);
        loop {
            let input = self.input.fill_buf().map_err(|error| self.file.error(error.to_string()))?;
            let (result, read, wrote, ended) =
                self.parser.read_record(input, &mut self.output[written..], &mut self.ends[fields..]);
            self.input.consume(read);
            self.read += read as u64;
            written += wrote;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if self.output.len() < ROW_LIMIT => {
                    self.output.resize(2 * self.output.len(), 0);
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < FIELD_LIMIT => {
                    self.ends.resize(2 * self.ends.len(), 0);
                }
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    let reason = format!("row {} is too long: is a quotation mark not closed?", self.row + 1);
                    return Err(self.file.error(reason));
                }
                ReadRecordResult::Record => {
                    self.row += 1;
                    return Ok(Some(self.fields(fields)));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn fields(&self, count: usize) -> Result<CsvRow, BadRow> {
        let number = self.row;
        let mut start = 0;
        let mut fields = Vec::with_capacity(count);
        for end in &self.ends[..count] {
            match std::str::from_utf8(&self.output[start..*end]) {
                Ok(field) => fields.push(field.to_owned()),
                Err(_) => return Err(BadRow { number, reason: "it is no UTF-8 text".to_owned() }),
            }
            start = *end;
        }
        Ok(CsvRow { number, fields })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ingest::testing::source_file;

    fn rows(bytes: &[u8]) -> Result<Vec<Result<Vec<String>, String>>, StageError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("rows.csv"), bytes).unwrap();
        let file = source_file(&folder.path().join("rows.csv"));
        let mut csv = CsvFile::open(&file, b',')?;
        let mut rows = Vec::new();
        while let Some(row) = csv.next_row()? {
            rows.push(row.map(|row| row.fields).map_err(|bad| format!("{}: {}", bad.number, bad.reason)));
        }
        Ok(rows)
    }

    #[test]
    fn quotes_and_line_ends_are_those_of_the_standard() {
        let found = rows(b"\xef\xbb\xbfa,b\r\n\"x, \"\"y\"\"\",\"two\nlines\"\r\n1,\n").unwrap();
        let found: Vec<Vec<String>> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, [["x, \"y\"", "two\nlines"], ["1", ""]]);
    }

    #[test]
    fn a_bad_row_does_not_end_the_file() {
        let found = rows(b"a,b\n1\n2,3\n\xff,4\n5,6").unwrap();
        assert!(found[0].as_ref().unwrap_err().starts_with("2: it has 1 fields"));
        assert_eq!(found[1].as_ref().unwrap(), &["2", "3"]);
        assert!(found[2].as_ref().unwrap_err().starts_with("4: it is no UTF-8"));
        assert_eq!(found[3].as_ref().unwrap(), &["5", "6"]);
    }

    /// A file of two encodings loses the rows of the other one; one that is of another from the beginning is refused.
    #[test]
    fn other_encodings_are_found() {
        let found = rows("image,caption\na.png,déjà vu\n".as_bytes()).unwrap();
        assert_eq!(found[0].as_ref().unwrap(), &["a.png", "déjà vu"]);
        let found = rows(b"image,caption\na.png,d\xe9j\xe0 vu\nb.png,d\xc3\xa9j\xc3\xa0 vu\n").unwrap();
        assert_eq!(found[0].as_ref().unwrap_err(), "2: it is no UTF-8 text");
        assert_eq!(found[1].as_ref().unwrap(), &["b.png", "déjà vu"]);
        let utf_16: Vec<u8> = "\u{feff}a,b\n1,2\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(rows(&utf_16).unwrap_err().to_string().contains("row 1: it is no UTF-8 text"));
    }

    #[test]
    fn a_quotation_mark_that_is_never_closed_is_found() {
        let mut bytes = b"a,b\n\"1,2\n".to_vec();
        assert!(rows(&bytes).unwrap()[0].is_err());
        bytes.resize(20 << 20, b'x');
        assert!(rows(&bytes).unwrap_err().to_string().contains("row 2 is too long"));
        assert!(rows(b"").unwrap_err().to_string().contains("it is empty"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_is_written_is_read(table in prop::collection::vec(prop::collection::vec("[a-z,\"\n\r é]{0,8}", 3), 0..12)) {
            let quoted = |row: &Vec<String>| {
                row.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect::<Vec<_>>().join(",")
            };
            let text = std::iter::once("a,b,c".to_owned()).chain(table.iter().map(quoted)).collect::<Vec<_>>().join("\n");
            let found: Vec<Vec<String>> = rows(text.as_bytes()).unwrap().into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(found, table);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = rows(&bytes);
        }
    }
}
