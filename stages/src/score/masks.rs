//! Expert masks in the geometry of the maps.

use std::collections::BTreeMap;

use pipe_attribution::metrics::Mask;
use pipe_engine::{Artifact, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::{Picture, ResizeError, Samples};

use crate::table::read_columns;

/// The mask of each image that has one: all its masks of the chosen regions (of any, if none is chosen)
/// together, resized and cropped as the image is.
///
/// # Errors
/// If the table or one of its pictures is damaged.
pub(super) fn read(
    artifact: &Artifact,
    regions: &[String],
    preprocessor: &Preprocessor,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<BTreeMap<String, Mask>, StageError> {
    let table = read_columns(artifact, &["image_id", "region", "mask"])?;
    let ids = table.strings("image_id")?;
    let names = match table.column("region") {
        Some(_) => table.utf8("region")?.to_vec(),
        None => vec![None; ids.len()],
    };
    let side = preprocessor.side;
    let mut inside: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for (row, picture) in table.images("mask")?.iter().enumerate() {
        let id = ids[row];
        let chosen = regions.is_empty() || names[row].as_ref().is_some_and(|name| regions.contains(name));
        if !chosen || !wanted(id) {
            continue;
        }
        let (bytes, path) = picture.as_ref().ok_or_else(|| StageError::input(id, "the row has no mask"))?;
        let error = |error: &dyn std::fmt::Display| StageError::input(path, format!("{error} (row {id})"));
        let picture = Picture::decode(bytes).map_err(|problem| error(&problem))?;
        let square = square(&picture, preprocessor).map_err(|problem| error(&problem))?;
        let pixels = inside.entry(id.to_owned()).or_insert_with(|| vec![false; side * side]);
        for (pixel, value) in pixels.iter_mut().zip(square) {
            *pixel |= value;
        }
    }
    let mask = |inside| Mask::new(inside, side).expect("squares have whole rows");
    Ok(inside.into_iter().map(|(id, inside)| (id, mask(inside))).collect())
}

/// What is not 0 is inside; after resizing, what is more than half inside.
fn square(picture: &Picture, preprocessor: &Preprocessor) -> Result<Vec<bool>, ResizeError> {
    let binary = picture
        .to_rgb(preprocessor.window)
        .chunks_exact(3)
        .map(|pixel| if pixel.iter().any(|value| *value != 0) { 255 } else { 0 })
        .collect();
    let binary = Picture::new(picture.width(), picture.height(), Samples::Grey(binary))
        .expect("as many pixels as the picture has");
    let square = preprocessor.square(&binary)?;
    Ok(square.chunks_exact(3).map(|pixel| pixel[0] > 127).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_follows_its_image() {
        // Eight rows of twelve: the middle square is kept, and halved.
        let pixels = (0..96).flat_map(|index| {
            let (row, column) = (index / 12, index % 12);
            [u8::from((2..6).contains(&row) && (2..6).contains(&column)); 3]
        });
        let picture = Picture::new(12, 8, Samples::Rgb(pixels.collect())).unwrap();
        let mask = square(&picture, &Preprocessor::clip(4)).unwrap();
        let expected: Vec<bool> =
            (0..16).map(|index| (1..3).contains(&(index / 4)) && index % 4 < 2).collect();
        assert_eq!(mask, expected);
        let whole = square(&picture, &Preprocessor::clip(8)).unwrap();
        assert_eq!(whole.iter().filter(|inside| **inside).count(), 16);
    }
}
