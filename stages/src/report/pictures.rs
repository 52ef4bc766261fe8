//! Where pictures go: into the page up to a limit, beside it afterwards.

use image::RgbImage;

use super::picture::{base64, png};

/// The pictures of a page.
pub(super) struct Pictures {
    left: u64,
    files: Vec<(String, Vec<u8>)>,
}

impl Pictures {
    /// Pictures of which at most `limit` bytes are embedded.
    pub(super) fn new(limit: u64) -> Self {
        Self { left: limit, files: Vec::new() }
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

    /// The pictures that did not fit, as (relative path, bytes).
    pub(super) fn into_files(self) -> Vec<(String, Vec<u8>)> {
        self.files
    }
}
