//! Encoded images on their way into a table: stored as found, decoded once to know that they can be.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageReader, Limits};
use pipe_engine::cache::Digest;
use pipe_engine::{StageContext, StageError};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checks::Checks;
use super::rejects::Rejects;
use super::splits::SPLITS;
use crate::table::{Column, Table, TableSchema, TableWriter, WriteOptions};

/// A longer file is no image of a study.
const FILE_LIMIT: u64 = 256 << 20;
/// An image beyond this side is refused before it is decoded.
const SIDE_LIMIT: u32 = 1 << 15;
/// So is one that takes more memory than this.
const DECODE_LIMIT: u64 = 512 << 20;
/// Images that are read and decoded at once.
const BLOCK: usize = 64;

/// What becomes of rows whose image is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MissingImages {
    /// The image is rejected, and its rows are left out.
    #[default]
    Reject,
    /// Rows stay without an image: for stages that read text alone.
    Keep,
}

/// An image that is there as a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Picture {
    pub(crate) id: String,
    pub(crate) split: &'static str,
    /// The published name.
    pub(crate) path: String,
    pub(crate) location: PathBuf,
    pub(crate) modality: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) licence: Option<String>,
    pub(crate) group: Option<String>,
    /// The row of the file that names it, from 1.
    pub(crate) row: Option<usize>,
}

/// An image that was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) split: &'static str,
    pub(crate) group: Option<String>,
    /// The digest of its bytes.
    pub(crate) digest: Digest,
    /// The digest of its pixels: two files may show one picture.
    pub(crate) pixels: Digest,
    /// Height, width, channels.
    pub(crate) shape: [u32; 3],
}

/// The bytes of a file, and what they decode to.
struct Decoded {
    bytes: Vec<u8>,
    digest: Digest,
    pixels: Digest,
    shape: [u32; 3],
}

/// Reads the file of an image; the reason if it cannot be used.
fn read(location: &Path) -> Result<Decoded, String> {
    let bytes = read_bytes(location)?;
    let (shape, pixels) = decode(&bytes)?;
    Ok(Decoded { digest: Digest::of(&bytes), bytes, pixels, shape })
}

fn read_bytes(location: &Path) -> Result<Vec<u8>, String> {
    let file = File::open(location).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length > FILE_LIMIT {
        return Err(format!("it has {length} bytes; at most {FILE_LIMIT} are read"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// An image of one channel.
pub(crate) struct Grey {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) pixels: Vec<u8>,
}

/// The pixels of a file that has to be grey, with eight bits: a mask.
pub(crate) fn grey_pixels(location: &Path) -> Result<Grey, String> {
    match open(&read_bytes(location)?)? {
        DynamicImage::ImageLuma8(image) => Ok(Grey {
            width: image.width() as usize,
            height: image.height() as usize,
            pixels: image.into_raw(),
        }),
        other => Err(format!("its pixels are {:?}; eight bits of grey are expected", other.color())),
    }
}

/// Decodes an image within limits.
fn open(bytes: &[u8]) -> Result<DynamicImage, String> {
    let error = |error: &dyn std::fmt::Display| format!("it cannot be decoded: {error}");
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| error(&e))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_LIMIT);
    limits.max_image_height = Some(SIDE_LIMIT);
    limits.max_alloc = Some(DECODE_LIMIT);
    reader.limits(limits);
    reader.decode().map_err(|e| error(&e))
}

/// Height, width and channels of an encoded image, with the digest of its pixels; the reason if it is none.
fn decode(bytes: &[u8]) -> Result<([u32; 3], Digest), String> {
    let image = open(bytes)?;
    if image.width() == 0 || image.height() == 0 {
        return Err("it has no pixels".to_owned());
    }
    let channels = if image.color().has_color() { 3 } else { 1 };
    let shape = [image.height(), image.width(), channels];
    let mut described: Vec<u8> = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
    described.extend(image.as_bytes());
    Ok((shape, Digest::of(&described)))
}

/// Writes the images that can be read to the output `images`, in the given order; the others are
/// rejected with the row that names them in `file`.
pub(crate) fn write_images(
    pictures: &[Picture],
    file: &str,
    metadata: &[(&str, String)],
    shard_rows: usize,
    rejects: &mut Rejects,
    context: &mut StageContext<'_>,
) -> Result<Vec<Stored>, StageError> {
    let provenance = context.provenance().to_owned();
    let schema = TableSchema::images();
    let options = WriteOptions { shard_rows, provenance: &provenance };
    let mut writer = TableWriter::new(context.output("images")?, &schema, options);
    writer.push(&table(Vec::new(), metadata))?;
    let mut stored = Vec::with_capacity(pictures.len());
    for (index, block) in pictures.chunks(BLOCK).enumerate() {
        context.check_cancelled()?;
        let read: Vec<Result<Decoded, String>> =
            block.par_iter().map(|picture| read(&picture.location)).collect();
        let mut rows = Vec::with_capacity(block.len());
        for (picture, decoded) in block.iter().zip(read) {
            match decoded {
                Ok(decoded) => {
                    stored.push(Stored {
                        id: picture.id.clone(),
                        split: picture.split,
                        group: picture.group.clone(),
                        digest: decoded.digest,
                        pixels: decoded.pixels,
                        shape: decoded.shape,
                    });
                    rows.push((picture, decoded));
                }
                Err(reason) => match picture.row {
                    Some(row) => {
                        rejects.add(
                            file,
                            Some(row),
                            Some(&picture.id),
                            format!("`{}`: {reason}", picture.path),
                        );
                    }
                    None => rejects.add(&picture.path, None, Some(&picture.id), reason),
                },
            }
        }
        writer.push(&table(rows, metadata))?;
        context.progress((index * BLOCK + block.len()) as u64, pictures.len() as u64, "images", &[]);
    }
    writer.finish(context.output("images")?)?;
    Ok(stored)
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
    let table = table.with("image", Column::Image(image.collect()));
    metadata.iter().fold(table, |table, (key, value)| table.with_metadata(key, value.clone()))
}

/// Counts images and their shapes, and finds those that stand twice, as files, as pixels and by group.
pub(crate) fn check_images(checks: &mut Checks, stored: &[Stored]) {
    let splits: Vec<&str> =
        SPLITS.into_iter().filter(|split| stored.iter().any(|image| image.split == *split)).collect();
    for split in &splits {
        let images: Vec<&Stored> = stored.iter().filter(|image| image.split == *split).collect();
        checks.count("images", split, None, images.len() as u64);
        let mut shapes: std::collections::BTreeMap<[u32; 3], u64> = Default::default();
        for image in &images {
            *shapes.entry(image.shape).or_default() += 1;
        }
        for ([height, width, channels], count) in shapes {
            checks.count("shape", split, Some(format!("{height} x {width} x {channels}")), count);
        }
    }
    let rows: Vec<(&str, &str, Digest)> =
        stored.iter().map(|image| (image.split, image.id.as_str(), image.digest)).collect();
    checks.duplicates("same file", &splits, &rows);
    let rows: Vec<(&str, &str, Digest)> =
        stored.iter().map(|image| (image.split, image.id.as_str(), image.pixels)).collect();
    checks.duplicates("same image", &splits, &rows);
    let rows: Vec<(&str, &str, &str)> = stored
        .iter()
        .filter_map(|image| Some((image.split, image.id.as_str(), image.group.as_deref()?)))
        .collect();
    if !rows.is_empty() {
        checks.duplicates("same group", &splits, &rows);
    }
}
