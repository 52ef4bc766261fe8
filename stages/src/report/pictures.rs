//! Where pictures go: into the page up to a limit, beside it afterwards.

use image::RgbImage;

use super::picture::{base64, png};
use super::sheet::Sheet;

/// The pictures of a page.
pub(super) struct Pictures {
    left: u64,
    files: Vec<(String, Vec<u8>)>,
    /// Where galleries collect their pictures for print, if they do.
    sheets: Option<Vec<Sheets>>,
}

/// The sheets of one gallery.
struct Sheets {
    /// A row per sample.
    pictures: Sheet,
    /// Of volumes: a row per explanation, a column per slice.
    strips: Sheet,
}

impl Pictures {
    /// Pictures of which at most `limit` bytes are embedded.
    pub(super) fn new(limit: u64) -> Self {
        Self { left: limit, files: Vec::new(), sheets: None }
    }

    /// The same, with sheets of what galleries show if `wanted`.
    #[must_use]
    pub(super) fn with_sheets(self, wanted: bool) -> Self {
        Self { sheets: wanted.then(Vec::new), ..self }
    }

    /// Begins the sheet of a gallery; whether there are any.
    pub(super) fn begin_sheet(&mut self, name: &str) -> bool {
        if let Some(sheets) = &mut self.sheets {
            let strips = Sheet::new(&format!("{name}-slices"));
            sheets.push(Sheets { pictures: Sheet::new(name), strips });
        }
        self.sheets.is_some()
    }

    fn sheet(&mut self) -> Option<&mut Sheets> {
        self.sheets.as_mut().and_then(|sheets| sheets.last_mut())
    }

    /// Begins the row of a sample on the sheet.
    pub(super) fn begin_row(&mut self, sample: &str) {
        if let Some(sheet) = self.sheet() {
            sheet.pictures.row(sample);
        }
    }

    /// Begins the row of a strip on the sheet of strips.
    pub(super) fn begin_strip(&mut self, name: &str) {
        if let Some(sheet) = self.sheet() {
            sheet.strips.row(name);
        }
    }

    /// Adds a slice to the strip that was begun last: on its sheet alone.
    pub(super) fn on_strip(&mut self, heading: &str, shows: &str, picture: &RgbImage) {
        if let Some(sheet) = self.sheet() {
            sheet.strips.add(heading, shows, picture);
        }
    }

    /// As [`Self::source`], of a picture that stands on the sheet too: in the column `heading`, and what it shows.
    pub(super) fn on_sheet(&mut self, heading: &str, shows: &str, picture: &RgbImage) -> String {
        if let Some(sheet) = self.sheet() {
            sheet.pictures.add(heading, shows, picture);
        }
        self.source(picture)
    }

    /// What to write into `src`.
    pub(super) fn source(&mut self, picture: &RgbImage) -> String {
        let bytes = png(picture);
        let length = bytes.len().div_ceil(3) as u64 * 4;
        if length <= self.left {
            self.left -= length;
            return format!("data:image/png;base64,{}", base64(&bytes));
        }
        let name = format!("pictures/{:05}.png", self.files.len());
        self.files.push((name.clone(), bytes));
        name
    }

    /// The pictures that did not fit, and the sheets, which go to `folder`, as (relative path, bytes).
    pub(super) fn into_files(self, folder: &str) -> Vec<(String, Vec<u8>)> {
        let sheets = self.sheets.into_iter().flatten().flat_map(|Sheets { pictures, strips }| {
            let strips = Some(strips).filter(|strips| !strips.is_empty());
            pictures
                .into_files(folder)
                .into_iter()
                .chain(strips.into_iter().flat_map(|strips| strips.into_files(folder)))
        });
        self.files.into_iter().chain(sheets).collect()
    }
}
