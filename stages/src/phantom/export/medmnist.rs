//! MedMNIST's archive of six arrays: images and labels of three splits.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use pipe_engine::StageError;
use zip::ZipWriter;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;

use super::failed;
use crate::ingest::splits::{SPLITS, place};

/// An archive that is being written: samples in the order of splits, labels behind them.
pub(in crate::phantom) struct NpzFile {
    path: PathBuf,
    zip: ZipWriter<BufWriter<File>>,
    /// The shape of a sample; colours stand last.
    shape: Vec<usize>,
    /// Samples of each split.
    counts: [usize; 3],
    /// How many splits were begun.
    begun: usize,
    labels: [Vec<u8>; 3],
}

impl NpzFile {
    /// An archive of as many samples of each split as `counts` says.
    pub(in crate::phantom) fn create(
        path: &Path,
        shape: Vec<usize>,
        counts: [usize; 3],
    ) -> Result<Self, StageError> {
        let file = File::create(path).map_err(failed(path))?;
        let zip = ZipWriter::new(BufWriter::new(file));
        Ok(Self { path: path.to_owned(), zip, shape, counts, begun: 0, labels: Default::default() })
    }

    /// Adds a sample; those of a split stand together, and splits in their order.
    pub(in crate::phantom) fn push(
        &mut self,
        split: &str,
        sample: &[u8],
        label: &[i64],
    ) -> Result<(), StageError> {
        self.begin(place(split) + 1)?;
        self.zip.write_all(sample).map_err(failed(&self.path))?;
        self.labels[place(split)].extend(label.iter().map(|class| *class as u8));
        Ok(())
    }

    /// Begins the arrays of images up to a split.
    fn begin(&mut self, splits: usize) -> Result<(), StageError> {
        while self.begun < splits {
            let shape = std::iter::once(self.counts[self.begun]).chain(self.shape.iter().copied());
            self.start(&format!("{}_images", SPLITS[self.begun]), &shape.collect::<Vec<_>>())?;
            self.begun += 1;
        }
        Ok(())
    }

    /// Begins an array of bytes.
    fn start(&mut self, name: &str, shape: &[usize]) -> Result<(), StageError> {
        let options = SimpleFileOptions::default().large_file(true);
        let begun = self.zip.start_file(format!("{name}.npy"), options);
        begun.map_err(ZipError::into).map_err(failed(&self.path))?;
        self.zip.write_all(&header(shape)).map_err(failed(&self.path))
    }

    /// Writes the labels.
    pub(in crate::phantom) fn finish(mut self) -> Result<(), StageError> {
        self.begin(SPLITS.len())?;
        let width = self.labels.iter().zip(self.counts).find(|(_, count)| *count > 0);
        let width = width.map_or(1, |(labels, count)| labels.len() / count);
        for (split, labels) in std::mem::take(&mut self.labels).iter().enumerate() {
            self.start(&format!("{}_labels", SPLITS[split]), &[self.counts[split], width])?;
            self.zip.write_all(labels).map_err(failed(&self.path))?;
        }
        let mut file = self.zip.finish().map_err(ZipError::into).map_err(failed(&self.path))?;
        file.flush().map_err(failed(&self.path))
    }
}

/// The header of an array of bytes in C order, padded to 64 bytes (NPY format 1.0).
fn header(shape: &[usize]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}", sizes.join(", "));
    let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
    text.push_str(&" ".repeat(length - 1 - text.len()));
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.into_bytes());
    bytes
}

/// Hounsfield units from -1000 to 1000 as 256 greys.
pub(in crate::phantom) fn grey_of(units: i16) -> u8 {
    let share = (f64::from(units) + 1000.0) / 2000.0;
    (255.0 * share.clamp(0.0, 1.0) + 0.5).floor() as u8
}

/// The pixels of a picture with as many channels as the archive has.
pub(in crate::phantom) fn with_channels(pixels: &[u8], has: usize, wanted: usize) -> Cow<'_, [u8]> {
    if has == wanted {
        return Cow::Borrowed(pixels);
    }
    Cow::Owned(pixels.iter().flat_map(|pixel| std::iter::repeat_n(*pixel, wanted)).collect())
}
