//! Encoded images on their way into a table: stored as found, decoded once to know that they can be.

use std::collections::VecDeque;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use pipe_engine::cache::Digest;
use pipe_engine::{OutputWriter, StageContext, StageError};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checks::Checks;
use super::rejects::Rejects;
use super::seen::{Seen, key, text_key};
use super::sheets::{Sheets, tile};
use super::source::{RowPlace, SourceFile};
use super::splits::{SPLITS, place};
use super::tally::Tally;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// A longer file is no image of a study.
const FILE_LIMIT: u64 = 128 << 20;
/// An image beyond this side is refused before it is decoded.
const SIDE_LIMIT: u32 = 1 << 15;
/// So is one that takes more memory than this, and images that are decoded at once take no more together.
const DECODE_LIMIT: u64 = 256 << 20;
/// Files that are read at once have so many bytes together, or are one.
const BLOCK_BYTES: u64 = 64 << 20;

/// The formats that are read, for people.
pub(crate) const READ: &str = "PNG, JPEG, TIFF, BMP, GIF and WebP";

/// What becomes of rows whose image is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MissingImages {
    /// Each of its rows is rejected.
    #[default]
    Reject,
    /// Rows stay without an image: for stages that read text alone.
    Keep,
}

/// An image on its way into the table.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) id: String,
    pub(crate) split: &'static str,
    /// The published name.
    pub(crate) path: String,
    pub(crate) content: Content,
    pub(crate) modality: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) licence: Option<String>,
    pub(crate) group: Option<String>,
    /// The file and the row in it, from 1, that name the image.
    pub(crate) named_by: Option<RowPlace>,
}

/// Where the bytes of an image are.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// In a file.
    File(Arc<SourceFile>),
    /// In a cell of a table.
    Bytes(Arc<[u8]>),
}

/// What is remembered of the images that were stored.
#[derive(Debug)]
pub(crate) struct StoredImages {
    seen: Seen,
    /// By split, how many have a height, width and number of channels.
    shapes: [Tally<[u32; 3]>; SPLITS.len()],
    sheets: Sheets,
}

impl StoredImages {
    fn new(scratch: &Path) -> Self {
        Self {
            seen: Seen::new(&["same file", "same image", "same group"], scratch),
            shapes: Default::default(),
            sheets: Sheets::default(),
        }
    }

    fn add(&mut self, picture: &Picture, decoded: &Decoded) -> Result<(), StageError> {
        let keys =
            [Some(key(&decoded.digest)), Some(key(&decoded.pixels)), picture.group.as_deref().map(text_key)];
        self.seen.add(&picture.id, picture.split, &keys)?;
        self.shapes[place(picture.split)].add(decoded.shape, 1);
        if let Some(tile) = &decoded.tile {
            self.sheets.add(picture.split, tile.clone());
        }
        Ok(())
    }

    /// The first images of each split.
    pub(crate) fn sheets(&self) -> &Sheets {
        &self.sheets
    }

    /// Counts images and their shapes, and finds those that stand twice, as files, as pixels and by group.
    pub(crate) fn check(&self, checks: &mut Checks) -> Result<(), StageError> {
        for split in self.seen.splits() {
            checks.count("images", split, None, self.seen.count(split));
            let shapes = &self.shapes[place(split)];
            for ([height, width, channels], count) in shapes.iter() {
                checks.count("shape", split, Some(format!("{height} x {width} x {channels}")), count);
            }
            if shapes.others() > 0 {
                checks.count("shape", split, Some("others".to_owned()), shapes.others());
            }
        }
        self.seen.check(checks)
    }
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// The bytes of a file, and how many bytes its pixels have.
struct Encoded {
    bytes: Vec<u8>,
    decoded: u64,
}

/// Reads an image without decoding it; the reason if it cannot be used.
fn read(content: &Content) -> Result<Encoded, String> {
    let bytes = match content {
        Content::File(file) => file.read(FILE_LIMIT)?,
        Content::Bytes(bytes) => bytes.to_vec(),
    };
    let decoded = reader(&bytes)?.into_decoder().map_err(undecodable)?.total_bytes();
    Ok(Encoded { bytes, decoded })
}

/// The bytes of a file, and what they decode to.
struct Decoded {
    bytes: Vec<u8>,
    digest: Digest,
    pixels: Digest,
    shape: [u32; 3],
    /// For the contact sheet.
    tile: Option<RgbImage>,
}

/// Decodes an image; the reason if it cannot be used.
fn decode(encoded: Encoded, wants_tile: bool) -> Result<Decoded, String> {
    let bytes = encoded.bytes;
    let image = open(&bytes)?;
    let (shape, pixels) = describe(&image);
    let tile = wants_tile.then(|| tile(&image));
    Ok(Decoded { digest: Digest::of(&bytes), bytes, pixels, shape, tile })
}

/// How many of these sizes, from the first, are together within a limit; the first is taken in any case.
fn fitting(sizes: impl Iterator<Item = u64>, limit: u64) -> usize {
    let mut sum = 0u64;
    let within = sizes.take_while(|size| {
        sum = sum.saturating_add(*size);
        sum <= limit
    });
    within.count().max(1)
}

/// An image of one channel.
pub(crate) struct Grey {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<u8>,
}

/// The pixels of a file that has to be grey, with eight bits: a mask.
pub(crate) fn grey_pixels(file: &SourceFile) -> Result<Grey, String> {
    match open(&file.read(FILE_LIMIT)?)? {
        DynamicImage::ImageLuma8(image) => Ok(Grey {
            width: image.width() as usize,
            height: image.height() as usize,
            pixels: image.into_raw(),
        }),
        other => Err(format!("its pixels are {:?}; eight bits of grey are expected", other.color())),
    }
}

fn undecodable(error: impl std::fmt::Display) -> String {
    format!("it cannot be decoded: {error}")
}

/// The reader of an image, with limits.
fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, String> {
    if is_cut_jpeg(bytes) {
        return Err(undecodable("the file ends in the middle"));
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(undecodable)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_LIMIT);
    limits.max_image_height = Some(SIDE_LIMIT);
    limits.max_alloc = Some(DECODE_LIMIT);
    reader.limits(limits);
    Ok(reader)
}

/// Decodes an image within limits; one without pixels is none.
fn open(bytes: &[u8]) -> Result<DynamicImage, String> {
    let image = reader(bytes)?.decode().map_err(undecodable)?;
    if image.width() == 0 || image.height() == 0 {
        return Err(undecodable("it has no pixels"));
    }
    if matches!(image, DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_)) {
        return Err(undecodable("its samples are floats; those of 8 and 16 bits are read"));
    }
    Ok(image)
}

/// Whether a JPEG file has a beginning, but no end. The decoder fills what is missing with grey, without a
/// word.
fn is_cut_jpeg(bytes: &[u8]) -> bool {
    let mut rest = match bytes.strip_prefix(b"\xff\xd8") {
        Some(rest) => rest,
        None => return false,
    };
    // Segments of a marker, a length and that many bytes, until the pixels begin.
    loop {
        match rest {
            [0xff, 0xff, ..] => rest = &rest[1..],
            [0xff, 0xda, pixels @ ..] => return !pixels.windows(2).any(|pair| pair == [0xff, 0xd9]),
            [0xff, 0x01 | 0xd0..=0xd8, after @ ..] => rest = after,
            [0xff, _, high, low, ..] => {
                let length = 2 + usize::from(u16::from_be_bytes([*high, *low]));
                match rest.get(length..) {
                    Some(after) => rest = after,
                    None => return true,
                }
            }
            // Something else between segments is for the decoder to judge.
            _ => return rest.len() < 4,
        }
    }
}

/// Height, width and channels of an image, and the digest of its pixels.
fn describe(image: &DynamicImage) -> ([u32; 3], Digest) {
    let channels = if image.color().has_color() { 3 } else { 1 };
    let shape = [image.height(), image.width(), channels];
    let sizes: Vec<u8> = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
    (shape, Digest::of_parts([&sizes[..], image.as_bytes()]))
}

/// The schema of what is written here.
const SCHEMA: &TableSchema = &TableSchema::images();

/// Writes images block by block, so that no more than a few blocks wait in memory.
pub(crate) struct ImageWriter<'a> {
    writer: TableWriter<'a>,
    metadata: &'a [(&'a str, String)],
    stored: StoredImages,
    /// Of the files of images that were read.
    bytes: u64,
}

impl<'a> ImageWriter<'a> {
    /// Images that are read and decoded at once.
    pub(crate) const BLOCK: usize = 64;

    /// A writer of the output `images`. Every file of the table has the entries of `metadata`.
    pub(crate) fn new(
        context: &mut StageContext<'_>,
        options: WriteOptions<'a>,
        metadata: &'a [(&'a str, String)],
    ) -> Result<Self, StageError> {
        let mut writer = TableWriter::new(context.output("images")?, SCHEMA, options);
        writer.push(table(Vec::new(), metadata))?;
        Ok(Self { writer, metadata, stored: StoredImages::new(context.scratch()?), bytes: 0 })
    }

    /// Writes the images that can be decoded, in the given order, and says of each whether it could; the
    /// others are rejected.
    pub(crate) fn push(
        &mut self,
        mut pictures: &[Picture],
        rejects: &mut Rejects,
    ) -> Result<Vec<bool>, StageError> {
        let mut kept = Vec::with_capacity(pictures.len());
        while !pictures.is_empty() {
            let sizes = pictures.iter().map(|picture| picture.content.bytes());
            let (block, rest) = pictures.split_at(fitting(sizes, BLOCK_BYTES));
            kept.extend(self.push_block(block, rejects)?);
            pictures = rest;
        }
        Ok(kept)
    }

    fn push_block(&mut self, pictures: &[Picture], rejects: &mut Rejects) -> Result<Vec<bool>, StageError> {
        let sheets = &self.stored.sheets;
        let wants: Vec<bool> = pictures.iter().map(|picture| sheets.has_room(picture.split)).collect();
        let mut encoded: VecDeque<Result<Encoded, String>> =
            pictures.par_iter().map(|picture| read(&picture.content)).collect::<Vec<_>>().into();
        let mut read: Vec<Result<Decoded, String>> = Vec::with_capacity(pictures.len());
        while !encoded.is_empty() {
            // Many small images are decoded at once, and large ones one at a time.
            let sizes = encoded.iter().map(|one| one.as_ref().map_or(0, |one| one.decoded));
            let together: Vec<_> = encoded.drain(..fitting(sizes, DECODE_LIMIT)).collect();
            let wants = &wants[read.len()..];
            let decoded = together.into_par_iter().zip(wants).map(|(one, wants)| decode(one?, *wants));
            read.par_extend(decoded);
        }
        let mut rows = Vec::with_capacity(pictures.len());
        let mut kept = Vec::with_capacity(pictures.len());
        for (picture, decoded) in pictures.iter().zip(read) {
            kept.push(decoded.is_ok());
            self.bytes += picture.content.bytes();
            let id = Some(picture.id.as_str());
            match (decoded, &picture.named_by, &picture.content) {
                (Ok(decoded), ..) => {
                    self.stored.add(picture, &decoded)?;
                    rows.push((picture, decoded));
                }
                (Err(reason), Some((file, row)), _) => {
                    rejects.add(file, Some(*row), id, format!("`{}`: {reason}", picture.path));
                }
                (Err(reason), None, Content::File(file)) => rejects.add(file, None, id, reason),
                (Err(reason), None, Content::Bytes(_)) => {
                    return Err(StageError::failed(format!("`{}`: {reason}", picture.path)));
                }
            }
        }
        self.writer.push(table(rows, self.metadata))?;
        Ok(kept)
    }

    /// How many megabytes of images were read, for the progress.
    pub(crate) fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6
    }

    /// Writes the rest.
    pub(crate) fn finish(self, output: &mut OutputWriter) -> Result<StoredImages, StageError> {
        self.writer.finish(output)?;
        Ok(self.stored)
    }
}

/// Writes the images that can be read to the output `images`, in the given order, and says of each whether
/// it could; the others are rejected.
pub(crate) fn write_images(
    pictures: &[Picture],
    metadata: &[(&str, String)],
    shard_rows: i64,
    rejects: &mut Rejects,
    context: &mut StageContext<'_>,
) -> Result<(Vec<bool>, StoredImages), StageError> {
    let provenance = context.provenance().to_owned();
    let options = WriteOptions { shard_rows: shard_rows as usize, provenance: &provenance };
    let mut writer = ImageWriter::new(context, options, metadata)?;
    let mut kept = Vec::with_capacity(pictures.len());
    for (index, block) in pictures.chunks(ImageWriter::BLOCK).enumerate() {
        context.check_cancelled()?;
        kept.extend(writer.push(block, rejects)?);
        let done = index * ImageWriter::BLOCK + block.len();
        let figures = [("MB", writer.megabytes())];
        context.progress(done as u64, pictures.len() as u64, "images", &figures);
    }
    Ok((kept, writer.finish(context.output("images")?)?))
}

fn table(rows: Vec<(&Picture, Decoded)>, metadata: &[(&str, String)]) -> Table {
    let text = |value: &dyn Fn(&Picture) -> Option<String>| {
        Column::Utf8(rows.iter().map(|(picture, _)| value(picture)).collect())
    };
    let size = |axis: usize| {
        Column::Int32(rows.iter().map(|(_, decoded)| Some(decoded.shape[axis] as i32)).collect())
    };
    let table = Table::new()
        .with("image_id", text(&|picture| Some(picture.id.clone())))
        .with("split", text(&|picture| Some(picture.split.to_owned())))
        .with("height", size(0))
        .with("width", size(1))
        .with("channels", size(2))
        .with("sha", Column::texts(rows.iter().map(|(_, decoded)| decoded.digest.to_hex())))
        .with("modality", text(&|picture| picture.modality.clone()))
        .with("region", text(&|picture| picture.region.clone()))
        .with("licence", text(&|picture| picture.licence.clone()))
        .with("group_id", text(&|picture| picture.group.clone()));
    let image = rows.into_iter().map(|(picture, decoded)| Some((decoded.bytes, picture.path.clone())));
    table.with("image", Column::Image(image.collect())).with_all_metadata(metadata)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::png;

    /// A PNG file that claims a size; its checksums are right.
    fn claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png::encode(&[7; 12], 4, 3, 1).unwrap();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        bytes
    }

    fn jpeg() -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let pixels = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 5, y as u8 * 7, 90]));
        pixels.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    const OTHERS: [image::ImageFormat; 4] = [
        image::ImageFormat::Bmp,
        image::ImageFormat::Gif,
        image::ImageFormat::Tiff,
        image::ImageFormat::WebP,
    ];

    fn encoded(format: image::ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let pixels =
            image::RgbaImage::from_fn(40, 30, |x, y| image::Rgba([x as u8 / 8, y as u8 / 8, 90, 255]));
        DynamicImage::from(pixels).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// Shape and digest of pixels of a file.
    fn described(bytes: &[u8]) -> Result<([u32; 3], Digest), String> {
        open(bytes).map(|image| describe(&image))
    }

    #[test]
    fn sizes_are_bounded_before_pixels_are_decoded() {
        assert_eq!(described(&claiming(4, 3)).unwrap().0, [3, 4, 1]);
        for (width, height) in [(0, 3), (4, 0), (0, 0), (100_000, 100_000), (100_000, 1), (32_000, 32_000)] {
            let reason = described(&claiming(width, height)).unwrap_err();
            assert!(reason.contains("cannot be decoded"), "{width} x {height}: {reason}");
        }
    }

    #[test]
    fn images_that_are_decoded_at_once_are_bounded() {
        let small = read(&Content::Bytes(jpeg().into())).unwrap();
        assert_eq!(small.decoded, 40 * 30 * 3);
        // What a file claims counts before it is decoded, and not how long the file is.
        let claimed = read(&Content::Bytes(claiming(16_000, 10_000).into())).unwrap();
        assert_eq!(claimed.decoded, 160_000_000);
        let sizes = [claimed.decoded, claimed.decoded, small.decoded, small.decoded];
        assert_eq!(fitting(sizes.into_iter(), DECODE_LIMIT), 1);
        assert_eq!(fitting(sizes[1..].iter().copied(), DECODE_LIMIT), 3);
        assert_eq!(fitting([u64::MAX, 1].into_iter(), DECODE_LIMIT), 1);
        assert_eq!(fitting([1, u64::MAX].into_iter(), DECODE_LIMIT), 1);
    }

    #[test]
    fn other_formats_are_read_within_the_same_limits() {
        for format in OTHERS {
            let whole = encoded(format);
            assert_eq!(described(&whole).unwrap().0, [30, 40, 3], "{format:?}");
            assert_eq!(
                read(&Content::Bytes(whole.clone().into())).unwrap().decoded,
                40 * 30 * 4,
                "{format:?}"
            );
            let reason = described(&whole[..whole.len() / 2]).unwrap_err();
            assert!(reason.contains("cannot be decoded"), "{format:?}: {reason}");
        }
        // Sizes that files claim, at their places in the headers.
        let mut bmp = encoded(image::ImageFormat::Bmp);
        bmp[18..22].copy_from_slice(&100_000u32.to_le_bytes());
        let mut gif = encoded(image::ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        for claiming in [bmp, gif] {
            let reason = described(&claiming).unwrap_err();
            assert!(reason.contains("cannot be decoded"), "{reason}");
        }
        let mut float = Cursor::new(Vec::new());
        let pixels = image::Rgb32FImage::from_pixel(4, 3, image::Rgb([0.5; 3]));
        DynamicImage::from(pixels).write_to(&mut float, image::ImageFormat::Tiff).unwrap();
        assert!(described(float.get_ref()).unwrap_err().contains("samples are floats"));
    }

    /// The digest of the pixels is that of sizes and pixels as one text, which results hold.
    #[test]
    fn pixels_are_digested_where_they_are() {
        let image = open(&jpeg()).unwrap();
        let mut text: Vec<u8> = [30u32, 40, 3].iter().flat_map(|size| size.to_le_bytes()).collect();
        text.extend(image.as_bytes());
        assert_eq!(describe(&image), ([30, 40, 3], Digest::of(&text)));
    }

    #[test]
    fn a_jpeg_without_an_end_is_refused() {
        let whole = jpeg();
        assert_eq!(described(&whole).unwrap().0, [30, 40, 3]);
        for length in [2, 3, 20, whole.len() / 2, whole.len() - 2] {
            let reason = described(&whole[..length]).unwrap_err();
            assert!(reason.contains("ends in the middle"), "{length}: {reason}");
        }
        // What some cameras write behind the end does not matter.
        let mut longer = whole;
        longer.extend(b"\0\0 trailing");
        described(&longer).unwrap();
    }

    #[test]
    fn equal_pixels_in_other_files_are_equal() {
        let whole = jpeg();
        let mut other = whole[..2].to_vec();
        other.extend(b"\xff\xfe\x00\x09comment");
        other.extend(&whole[2..]);
        assert_eq!(described(&whole).unwrap(), described(&other).unwrap());
        let (grey, turned) =
            (png::encode(&[7; 12], 4, 3, 1).unwrap(), png::encode(&[7; 12], 3, 4, 1).unwrap());
        assert_ne!(described(&grey).unwrap().1, described(&turned).unwrap().1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn damaged_images_are_decoded_or_refused(at in 0usize..600, byte: u8, format in 0usize..6) {
            let mut bytes = match format {
                0 => jpeg(),
                1 => claiming(4, 3),
                other => encoded(OTHERS[other - 2]),
            };
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = described(&bytes);
        }
    }
}
