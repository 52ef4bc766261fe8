//! Position embeddings of an image tower for images of another size than the weights were trained on.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::ModelConfig;
use crate::checkpoint::CheckpointError;
use crate::clip::OpenAiImage;
use crate::preprocess::{Filter, real_weights};

/// Pixels of the cell of CLIP's ResNet that has a position.
const RESNET_CELL: usize = 32;

/// The table of positions of an image tower, and the pixels of a cell that has one.
fn table(config: &ModelConfig) -> Option<(&'static str, usize)> {
    match config {
        ModelConfig::Clip(config) => {
            Some(("vision_model.embeddings.position_embedding.weight", config.vision.patch))
        }
        ModelConfig::OpenAiClip(config) => Some(match &config.image {
            OpenAiImage::Transformer(vision) => ("visual.positional_embedding", vision.patch),
            OpenAiImage::ResNet { .. } => ("visual.attnpool.positional_embedding", RESNET_CELL),
        }),
        ModelConfig::BiomedClip(config) => Some(("visual.trunk.pos_embed", config.vision.patch)),
        ModelConfig::PmcClip(_) => Some(("visual.attnpool.positional_embedding", RESNET_CELL)),
        ModelConfig::TimmVit(config) => Some(("pos_embed", config.patch)),
        ModelConfig::CtClip(_) | ModelConfig::Bert(_) | ModelConfig::ResNet(_) => None,
    }
}

/// Brings the positions of a grid to that of images of `side` pixels, as open_clip and timm do it: bicubic (a = -0.5),
/// antialiased where the grid shrinks. What stands before the grid (a class token, the mean of attention pooling) stays.
/// A table that is no square grid is left to who builds the model.
///
/// # Errors
/// If the tensor cannot be read.
pub(crate) fn fit(
    config: &ModelConfig,
    side: usize,
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<(), CheckpointError> {
    let Some((name, cell)) = table(config) else { return Ok(()) };
    let Some(table) = tensors.get(name) else { return Ok(()) };
    let to = side / cell.max(1);
    let (device, shape) = (table.device().clone(), table.dims().to_vec());
    let (Some(&width), Some(rows)) = (shape.last(), shape.len().checked_sub(2).map(|axis| shape[axis]))
    else {
        return Ok(());
    };
    let from = (rows.saturating_sub(1) as f64).sqrt().round() as usize;
    if from * from + 1 != rows || table.elem_count() != rows * width || to == 0 || from == to {
        return Ok(());
    }
    let wrong = |error: candle_core::Error| CheckpointError::in_weights(format!("`{name}`: {error}"));
    let table = table.to_device(&Device::Cpu).and_then(|table| table.to_dtype(DType::F32));
    let values: Vec<f32> = table.and_then(|table| table.flatten_all()?.to_vec1()).map_err(wrong)?;
    let (first, grid) = values.split_at(width);
    let resized = [first, &resize(grid, from, to, width)[..]].concat();
    let mut shape = shape;
    let axis = shape.len() - 2;
    shape[axis] = to * to + 1;
    let resized = Tensor::from_vec(resized, shape, &device).map_err(wrong)?;
    tensors.insert(name.to_owned(), resized);
    Ok(())
}

/// A grid of `from * from` vectors of `width` values, as one of `to * to`.
fn resize(grid: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    let axis: Vec<(usize, Vec<f64>)> =
        (0..to).map(|index| real_weights(from, to, index, Filter::Bicubic)).collect();
    let mut resized = Vec::with_capacity(to * to * width);
    for (top, down) in &axis {
        for (left, across) in &axis {
            for channel in 0..width {
                let mut sum = 0.0;
                for (row, vertical) in (*top..).zip(down) {
                    for (column, horizontal) in (*left..).zip(across) {
                        let value = grid[(row * from + column) * width + channel];
                        sum += vertical * horizontal * f64::from(value);
                    }
                }
                resized.push(sum as f32);
            }
        }
    }
    resized
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of PyTorch's `interpolate` (`mode = "bicubic", antialias = True, align_corners = False`).
    #[test]
    fn grids_are_resized_as_pytorch_does() {
        let grid = [1.0, -2.0, 0.5, 3.0, 0.25, -1.0, 0.0, 2.0, 4.0];
        let smaller = [0.691_947_16, -0.720_045, 1.223_175, 1.954_929_4];
        let larger = [
            1.076_895_6,
            -0.334_412_84,
            -2.169_811_2,
            -0.498_098_6,
            0.823_246_54,
            2.071_67,
            0.693_208_46,
            -1.289_179_1,
            -0.754_413_37,
            -0.171_571_54,
            3.207_547,
            2.091_418,
            0.25,
            -0.684_701_5,
            -1.094_339_6,
            1.115_741_5,
            1.231_858_1,
            1.486_940_4,
            1.951_785_4,
            2.231_344,
            -0.404_414_2,
            0.500_281_6,
            2.132_075_3,
            3.695_438,
            4.546_813_5,
        ];
        for (to, expected) in [(2, &smaller[..]), (5, &larger[..])] {
            let found = resize(&grid, 3, to, 1);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 2e-6, "{found} should be {expected}");
            }
        }
        // Channels do not mix.
        let two: Vec<f32> = grid.iter().flat_map(|value| [*value, 2.0 * value]).collect();
        let both = resize(&two, 3, 5, 2);
        let first = resize(&grid, 3, 5, 1);
        assert!(both.chunks(2).zip(&first).all(|(pair, one)| pair[0] == *one && pair[1] == 2.0 * one));
    }
}
