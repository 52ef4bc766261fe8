//! Contact sheets: the first images of each split on one page, so that a person sees what was read.

use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage, imageops};
use pipe_engine::{OutputWriter, StageError};

use super::splits::{SPLITS, place};
use crate::png;

/// Images on a sheet, in rows of eight.
const TILES: usize = 40;
const COLUMNS: usize = 8;
/// Pixels of a tile's side, and between two.
const SIDE: u32 = 112;
const GAP: u32 = 4;

/// The tiles of each split.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sheets {
    tiles: [Vec<RgbImage>; 3],
}

/// An image of the size of a tile, its proportions kept, on black. Small ones are enlarged without
/// smoothing: their pixels are what there is to see.
pub(crate) fn tile(image: &DynamicImage) -> RgbImage {
    let (width, height) = (image.width().max(1), image.height().max(1));
    let longer = width.max(height);
    let scaled = |side: u32| ((u64::from(side) * u64::from(SIDE)) / u64::from(longer)).max(1) as u32;
    let (width, height) = (scaled(width), scaled(height));
    let small = match longer < SIDE {
        true => enlarged(&image.to_rgb8(), width, height),
        false => image.thumbnail_exact(width, height).to_rgb8(),
    };
    let mut tile = RgbImage::new(SIDE, SIDE);
    let (left, top) = ((SIDE - width) / 2, (SIDE - height) / 2);
    imageops::replace(&mut tile, &small, i64::from(left), i64::from(top));
    tile
}

/// An image of another size, of the pixels in which those of that size have their centres.
fn enlarged(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let source = |place: u32, size: u32, wanted: u32| {
        let centre = (place as f32 + 0.5) * (size as f32 / wanted as f32);
        (centre as u32).min(size - 1)
    };
    RgbImage::from_fn(width, height, |x, y| {
        *image.get_pixel(source(x, image.width(), width), source(y, image.height(), height))
    })
}

/// The middle slice of a volume `[slices, rows, columns]`, values from `low` to `high` as black to white.
pub(crate) fn middle_slice(
    shape: [usize; 3],
    value: impl Fn(usize) -> f64,
    low: f64,
    high: f64,
) -> DynamicImage {
    let [slices, rows, columns] = shape;
    let first = slices / 2 * rows * columns;
    let grey = |x: u32, y: u32| {
        let share = (value(first + y as usize * columns + x as usize) - low) / (high - low);
        Luma([(share.clamp(0.0, 1.0) * 255.0).round() as u8])
    };
    DynamicImage::ImageLuma8(GrayImage::from_fn(columns as u32, rows as u32, grey))
}

impl Sheets {
    /// Whether the sheet of a split has room.
    pub(crate) fn has_room(&self, split: &str) -> bool {
        self.tiles.get(place(split)).is_some_and(|tiles| tiles.len() < TILES)
    }

    /// Puts a tile on the sheet of a split, if there is room.
    pub(crate) fn add(&mut self, split: &str, tile: RgbImage) {
        if self.has_room(split) {
            self.tiles[place(split)].push(tile);
        }
    }

    /// Writes `train.png` and so on, for each split that has images; if none has, one black tile as
    /// `none.png`.
    pub(crate) fn write(&self, output: &mut OutputWriter) -> Result<(), StageError> {
        if self.tiles.iter().all(Vec::is_empty) {
            return write_sheet(output, "none", &[RgbImage::new(SIDE, SIDE)]);
        }
        for (split, tiles) in SPLITS.into_iter().zip(&self.tiles) {
            if !tiles.is_empty() {
                write_sheet(output, split, tiles)?;
            }
        }
        Ok(())
    }
}

fn write_sheet(output: &mut OutputWriter, name: &str, tiles: &[RgbImage]) -> Result<(), StageError> {
    let rows = tiles.len().div_ceil(COLUMNS) as u32;
    let columns = tiles.len().min(COLUMNS) as u32;
    let length = |tiles: u32| tiles * (SIDE + GAP) + GAP;
    let mut sheet = RgbImage::from_pixel(length(columns), length(rows), Rgb([40, 40, 40]));
    for (index, tile) in tiles.iter().enumerate() {
        let at = |index: usize| i64::from(GAP) + index as i64 * i64::from(SIDE + GAP);
        imageops::replace(&mut sheet, tile, at(index % COLUMNS), at(index / COLUMNS));
    }
    let (width, height) = (sheet.width() as usize, sheet.height() as usize);
    let bytes = png::encode(&sheet, width, height, 3)?;
    let path = output.path(&format!("{name}.png"))?;
    std::fs::write(&path, bytes)
        .map_err(|error| StageError::environment(format!("writing `{}`", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_has_the_first_images_in_order() {
        let mut sheets = Sheets::default();
        for value in 0..60u8 {
            let image = DynamicImage::ImageLuma8(GrayImage::from_pixel(20, 10, Luma([value + 100])));
            sheets.add("val", tile(&image));
        }
        assert!(!sheets.has_room("val") && sheets.has_room("test"));
        let folder = tempfile::tempdir().unwrap();
        sheets.write(&mut OutputWriter::new(folder.path().to_owned())).unwrap();
        let names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["val.png"]);
        let sheet = image::open(folder.path().join("val.png")).unwrap().into_rgb8();
        assert_eq!(sheet.dimensions(), (8 * 116 + 4, 5 * 116 + 4));
        // The middle of the tenth tile, and the black above an image that is wider than high.
        assert_eq!(sheet.get_pixel(4 + 116 + 56, 4 + 116 + 56).0, [109; 3]);
        assert_eq!(sheet.get_pixel(4 + 116 + 56, 4 + 116 + 5).0, [0; 3]);
    }

    /// The sheets of earlier versions were made so, and results hold their digests.
    #[test]
    fn small_images_are_enlarged_as_the_library_does() {
        for side in 1..SIDE {
            let image =
                RgbImage::from_fn(side, side.div_ceil(3), |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]));
            let (width, height) = (SIDE, SIDE * side.div_ceil(3) / side);
            let expected = imageops::resize(&image, width, height, imageops::FilterType::Nearest);
            assert!(enlarged(&image, width, height) == expected, "{side}");
        }
    }

    #[test]
    fn there_is_a_sheet_where_there_is_no_image() {
        let folder = tempfile::tempdir().unwrap();
        Sheets::default().write(&mut OutputWriter::new(folder.path().to_owned())).unwrap();
        assert!(folder.path().join("none.png").is_file());
    }

    #[test]
    fn images_of_extreme_shape_have_a_tile() {
        for (width, height) in [(1, 1), (3000, 1), (1, 3000), (112, 112)] {
            assert_eq!(tile(&DynamicImage::new_luma8(width, height)).dimensions(), (SIDE, SIDE));
        }
    }

    #[test]
    fn the_middle_slice_is_a_window_of_values() {
        let values: Vec<f64> = (0..24).map(f64::from).collect();
        let slice = middle_slice([3, 2, 4], |place| values[place], 8.0, 15.0).into_luma8();
        assert_eq!(slice.dimensions(), (4, 2));
        assert_eq!((slice.get_pixel(0, 0).0, slice.get_pixel(3, 1).0), ([0], [255]));
    }
}
