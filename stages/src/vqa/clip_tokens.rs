//! Vectors of words from the embedding table of a checkpoint's text tower, in the place of GloVe.

use candle_core::Tensor;
use pipe_engine::StageError;

use super::QuestionVocabulary;
use crate::model::{DEVICE, Model, checkpoint_error, tensor_error};
use crate::statistics::principal_components;

/// The mean length of the vectors: about that of GloVe's for the words of VQA-RAD, 6.35. Word tables of other lengths
/// would learn at another pace.
const LENGTH: f64 = 6.3;

/// A vector for each word of the vocabulary, `[words, width]` row-major, and the width: the mean of the tower's token
/// embeddings over the pieces of the word, along the first `width` principal axes of the vocabulary (all, if the tower has
/// fewer), scaled to a mean length of 6.3. A word without pieces is a row of zeros.
///
/// # Errors
/// If the checkpoint has no text tower or no tokeniser.
pub(crate) fn clip_tokens(
    encoder: &Model,
    vocabulary: &QuestionVocabulary,
    width: usize,
) -> Result<(Vec<f32>, usize), StageError> {
    let tower = encoder.text_tower()?;
    let (context, hidden) = (tower.context_length(), tower.hidden_width());
    let words = vocabulary.words();
    let mut means = Vec::with_capacity(words.len() * hidden);
    for word in words {
        let encoded = encoder.tokenizer()?.encode(word, context, tower.pad_id()).map_err(checkpoint_error)?;
        let row = || {
            let ids = Tensor::from_slice(&encoded.ids, (1, context), &DEVICE)?;
            tower.token_embeddings(&ids)?.squeeze(0)?.to_vec2::<f32>()
        };
        let rows = row().map_err(tensor_error)?;
        // Marks stand at no letters.
        let is_piece = |place: &usize| encoded.offsets[*place][0] < encoded.offsets[*place][1];
        let pieces: Vec<usize> = (0..encoded.length).filter(is_piece).collect();
        let mut mean = vec![0.0f64; hidden];
        for place in &pieces {
            mean.iter_mut().zip(&rows[*place]).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        means.extend(mean.into_iter().map(|sum| (sum / pieces.len().max(1) as f64) as f32));
    }
    let has_pieces: Vec<bool> =
        means.chunks_exact(hidden).map(|mean| mean.iter().any(|value| *value != 0.0)).collect();
    let known: Vec<f32> = means
        .chunks_exact(hidden)
        .zip(&has_pieces)
        .filter(|(_, known)| **known)
        .flat_map(|(mean, _)| mean.iter().copied())
        .collect();
    let width = width.min(hidden);
    let components = principal_components(&known, hidden, width);
    let length = |vector: &[f32]| vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let mean =
        components.chunks_exact(width).map(length).sum::<f64>() * width as f64 / components.len() as f64;
    let scale = if mean > 0.0 { LENGTH / mean } else { 1.0 };
    let mut vectors = components.chunks_exact(width);
    let scaled = has_pieces.iter().flat_map(|known| match known.then(|| vectors.next()).flatten() {
        Some(vector) => vector.iter().map(|value| (f64::from(*value) * scale) as f32).collect(),
        None => vec![0.0; width],
    });
    Ok((scaled.collect(), width))
}
