//! Sheets of a gallery's pictures for print: a row per sample, a column for each thing that is shown of it.

use image::imageops::{FilterType, overlay, resize};
use image::{Rgb, RgbImage};

use super::picture::png;

/// Pixels of a cell along a side.
const CELL: u32 = 256;
/// White pixels around each cell.
const MARGIN: u32 = 8;
/// Rows of a sheet; what follows stands on the next one.
pub(super) const ROWS: usize = 8;

/// A picture in a cell.
struct Tile {
    column: String,
    /// What it shows, in words.
    shows: String,
    picture: RgbImage,
}

/// The pictures of one gallery, sample by sample.
pub(crate) struct Sheet {
    name: String,
    rows: Vec<(String, Vec<Tile>)>,
}

impl Sheet {
    /// An empty one; `name` begins the names of its files.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rows: Vec::new() }
    }

    /// Whether no row was begun.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Begins the row of a sample.
    pub(crate) fn row(&mut self, sample: &str) {
        self.rows.push((sample.to_owned(), Vec::new()));
    }

    /// Adds a picture to the row that was begun last. Columns of one name stand below each other.
    pub(crate) fn add(&mut self, column: &str, shows: &str, picture: &RgbImage) {
        let Some((_, tiles)) = self.rows.last_mut() else { return };
        let is_same =
            |name: &str| name == column || name.strip_prefix(column).is_some_and(|end| end.starts_with(" #"));
        let before = tiles.iter().filter(|tile| is_same(&tile.column)).count();
        let column = if before == 0 { column.to_owned() } else { format!("{column} #{}", before + 1) };
        tiles.push(Tile { column, shows: shows.to_owned(), picture: picture.clone() });
    }

    /// Sheets of [`ROWS`] rows as PNG files in `folder`, and one table that says what stands where, as (relative path,
    /// bytes).
    pub(crate) fn into_files(self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let mut columns: Vec<&str> = Vec::new();
        for tile in self.rows.iter().flat_map(|(_, tiles)| tiles) {
            if !columns.contains(&tile.column.as_str()) {
                columns.push(&tile.column);
            }
        }
        let mut files = Vec::new();
        let mut table = "file,row,column,sample,heading,shows\n".to_owned();
        for (number, rows) in self.rows.chunks(ROWS).enumerate().filter(|_| !columns.is_empty()) {
            let path = format!("{folder}{}-{}.png", self.name, number + 1);
            let side = |cells: usize| cells as u32 * (CELL + MARGIN) + MARGIN;
            let mut sheet = RgbImage::from_pixel(side(columns.len()), side(rows.len()), Rgb([255; 3]));
            for (row, (sample, tiles)) in rows.iter().enumerate() {
                for tile in tiles {
                    let Some(column) = columns.iter().position(|name| *name == tile.column) else { continue };
                    let picture = fitted(&tile.picture);
                    let [x, y] = [(column, picture.width()), (row, picture.height())]
                        .map(|(cell, length)| i64::from(side(cell) + (CELL - length) / 2));
                    overlay(&mut sheet, &picture, x, y);
                    let place = format!("{path},{},{}", row + 1, column + 1);
                    let texts = [sample, &tile.column, &tile.shows].map(|text| quoted(text)).join(",");
                    table.push_str(&format!("{place},{texts}\n"));
                }
            }
            files.push((path, png(&sheet)));
        }
        files.push((format!("{folder}{}.csv", self.name), table.into_bytes()));
        files
    }
}

/// As large as a cell allows, without smoothing where it is enlarged: a value of a map stays a square.
fn fitted(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let longest = width.max(height).max(1);
    let side = |length: u32| (u64::from(length) * u64::from(CELL) / u64::from(longest)).max(1) as u32;
    let filter = if longest > CELL { FilterType::Triangle } else { FilterType::Nearest };
    resize(picture, side(width), side(height), filter)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_headings_stand_below_each_other() {
        let [red, blue] = [[200, 0, 0], [0, 0, 200]].map(|colour| RgbImage::from_pixel(4, 2, Rgb(colour)));
        let mut sheet = Sheet::new("maps");
        for sample in 0..ROWS + 1 {
            sheet.row(&format!("s{sample}"));
            // The first sample has no original.
            if sample > 0 {
                sheet.add("original", "the \"original\"", &red);
            }
            sheet.add("map", "a map", &blue);
            sheet.add("map", "another map", &red);
        }
        let files = sheet.into_files("sheets/");
        let names: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(names, ["sheets/maps-1.png", "sheets/maps-2.png", "sheets/maps.csv"]);
        let first = image::load_from_memory(&files[0].1).unwrap().to_rgb8();
        assert_eq!(first.dimensions(), (3 * 264 + 8, 8 * 264 + 8));
        assert_eq!(image::load_from_memory(&files[1].1).unwrap().height(), 264 + 8);
        // Columns in the order in which they first appear: map, second map, original.
        let at = |row: u32, column: u32| first.get_pixel(8 + column * 264 + 128, 8 + row * 264 + 128).0;
        assert_eq!([at(0, 0), at(0, 1), at(0, 2)], [[0, 0, 200], [200, 0, 0], [255; 3]]);
        assert_eq!([at(1, 0), at(1, 2)], [[0, 0, 200], [200, 0, 0]]);
        // Twice as wide as high: a band in the middle of the cell.
        assert_eq!(first.get_pixel(8 + 128, 8 + 32).0, [255; 3]);
        assert_eq!(first.get_pixel(8 + 1, 8 + 100).0, [0, 0, 200]);
        let table = String::from_utf8(files[2].1.clone()).unwrap();
        assert_eq!(table.lines().count(), 1 + 3 * ROWS + 2);
        assert!(table.contains("sheets/maps-2.png,1,2,\"s8\",\"map #2\",\"another map\""), "{table}");
        assert!(table.contains("\"the \"\"original\"\"\""));
    }

    #[test]
    fn nothing_shown_is_no_sheet() {
        let mut sheet = Sheet::new("maps");
        sheet.row("s");
        let files = sheet.into_files("sheets/");
        assert_eq!(files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["sheets/maps.csv"]);
    }
}
