//! Image-caption pairs, and the gradient of a contrastive loss over a batch of them, whole or in pieces; perhaps with
//! the loss of masked words.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use pipe_engine::{StageContext, StageError};
use pipe_models::ops::linear;
use pipe_models::pmc_clip::masked_word_share;
use pipe_models::train::loss::{self, Hinge};
use pipe_models::train::{Dropout, add_gradients};
use pipe_models::{DualEncoder, MaybeProbe, normalise};

use super::class_loss::pieces;
use super::contrastive::{Objective, Params};
use super::masked_words::Hidden;
use crate::images::Pixels;
use crate::model::{DEVICE, Model, tensor_error};
use crate::texts::TextSet;

/// Captions as ids, each with the place of its image.
pub(super) struct Pairs {
    /// (image row, ids, caption class): captions of equal ids share a class.
    pub(super) rows: Vec<(usize, Vec<u32>, usize)>,
}

impl Pairs {
    /// The captions of `splits` and their images.
    ///
    /// # Errors
    /// If a caption's image is not there.
    pub(super) fn read(
        model: &Model,
        images: &dyn Pixels,
        context: &StageContext<'_>,
        splits: &[&str],
    ) -> Result<Self, StageError> {
        let texts = TextSet::read(context.input("captions")?, splits, model)?;
        let places = images.places();
        let mut classes: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        let mut rows = Vec::with_capacity(texts.len());
        for (id, ids) in texts.image_ids.iter().zip(texts.ids) {
            let image = places.get(id.as_str()).ok_or_else(|| {
                StageError::input("captions", format!("they name the image `{id}`, which is not there"))
            })?;
            let next = classes.len();
            let class = *classes.entry(ids.clone()).or_insert(next);
            rows.push((*image, ids, class));
        }
        Ok(Self { rows })
    }

    /// The loss of a batch, and its gradient. Pixels are read piece by piece.
    pub(super) fn gradients(
        &self,
        params: &Params,
        model: &Model,
        images: &dyn Pixels,
        batch: Batch<'_>,
    ) -> Result<(f64, GradStore), StageError> {
        let Batch { rows, hidden, step } = batch;
        let towers = model.dual_encoder()?;
        let excluded = self.no_negatives(rows);
        let asked: usize = hidden.into_iter().flatten().map(Hidden::asked).sum();
        let embed = |piece: Range<usize>, with_words: bool| {
            let own = &rows[piece.clone()];
            let pixels = images.batch(&own.iter().map(|row| self.rows[*row].0).collect::<Vec<_>>())?;
            // Pieces of a step drop other values, and the same in both passes.
            let dropout = Dropout::new(params.seed as u64, step * rows.len() as u64 + piece.start as u64);
            let dropout: MaybeProbe<'_> = params.dropout.then_some(&dropout as _);
            let mixed = |x: &Tensor| params.compute().mixed(x);
            let compute = || {
                // No image tower drops anything, and without a probe it takes its fast path.
                let image = towers.image_tower().embed_images(&mixed(&pixels)?, None)?;
                let tower = towers.text_tower();
                let Some(hidden) = hidden else {
                    let ids = matrix(own.iter().map(|row| self.rows[*row].1.as_slice()))?;
                    let ids = ids.narrow(1, 0, tower.seen_columns(&ids)?)?;
                    let states =
                        tower.hidden_states(&mixed(&tower.token_embeddings(&ids)?)?, &ids, dropout)?;
                    let text = tower.embed_hidden_states(&states, &ids, dropout)?;
                    return Ok(Embedded { image, text, words: None });
                };
                let hidden = &hidden[piece];
                let ids = matrix(hidden.iter().map(|caption| caption.ids.as_slice()))?;
                let states = tower.hidden_states(&mixed(&tower.token_embeddings(&ids)?)?, &ids, dropout)?;
                let text = tower.embed_hidden_states(&states, &ids, dropout)?;
                let words = match model.network.as_word_predictor() {
                    Some(predictor) if with_words => {
                        let labels = matrix(hidden.iter().map(|caption| caption.labels.as_slice()))?;
                        let words = predictor.word_log_probabilities(&states, &image, None)?;
                        Some((masked_word_share(&words, &labels, asked)? * params.mlm)?)
                    }
                    _ => None,
                };
                Ok(Embedded { image, text, words })
            };
            compute().map_err(tensor_error)
        };
        let loss = |image: &Tensor, text: &Tensor| {
            let loss = loss(params, towers, image, text, &excluded)?;
            if hidden.is_some() { loss * (1.0 - params.mlm) } else { Ok(loss) }
        };
        if params.pieces > 1 {
            return in_pieces(params.pieces as usize, rows.len(), model.network.variables(), embed, loss);
        }
        let Embedded { image, text, words } = embed(0..rows.len(), true)?;
        let compute = || {
            let loss = loss(&image, &text)?;
            let loss = words.map_or(Ok(loss.clone()), |words| loss + words)?;
            Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?))
        };
        compute().map_err(tensor_error)
    }

    /// Places (image, caption) of a batch that are no negatives: the caption is one that the model cannot tell
    /// from the image's own, or belongs to the same image.
    fn no_negatives(&self, rows: &[usize]) -> Vec<(usize, usize)> {
        let mut excluded = Vec::new();
        for (i, a) in rows.iter().enumerate() {
            for (j, b) in rows.iter().enumerate() {
                let (a, b) = (&self.rows[*a], &self.rows[*b]);
                if i != j && (a.2 == b.2 || a.0 == b.0) {
                    excluded.push((i, j));
                }
            }
        }
        excluded
    }
}

/// The pairs of a step.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    /// Places in [`Pairs::rows`].
    pub(super) rows: &'a [usize],
    /// Their captions with words masked, if these are to be predicted too: then both losses are of captions with masks, as
    /// in the original.
    pub(super) hidden: Option<&'a [Hidden]>,
    /// The number of the step, which decides what is dropped.
    pub(super) step: u64,
}

/// The loss of embeddings `[pairs, width]`.
fn loss(
    params: &Params,
    towers: &dyn DualEncoder,
    image: &Tensor,
    text: &Tensor,
    excluded: &[(usize, usize)],
) -> candle_core::Result<Tensor> {
    let kind = match params.objective {
        Objective::InfoNce => return loss::info_nce(&towers.logits(image, text)?, excluded),
        Objective::MaxHinge => Hinge::Max,
        Objective::SumHinge => Hinge::Sum,
        Objective::MeanHinge => Hinge::Mean,
    };
    let cosines = linear(&normalise(image)?, &normalise(text)?, None)?;
    loss::hinge(&cosines, params.margin, kind, excluded)
}

/// What the towers make of a piece of a batch.
struct Embedded {
    /// `[piece, width]`.
    image: Tensor,
    text: Tensor,
    /// What the piece adds to the loss of masked words, weighed.
    words: Option<Tensor>,
}

/// Rows of ids of one length.
fn matrix<'a>(rows: impl ExactSizeIterator<Item = &'a [u32]>) -> candle_core::Result<Tensor> {
    let count = rows.len();
    let values: Vec<u32> = rows.flatten().copied().collect();
    let width = values.len() / count.max(1);
    Tensor::from_vec(values, (count, width), &DEVICE)
}

/// Gradient caching (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"):
/// all embeddings first, nothing kept but their values; the loss and its gradient with respect to them; then
/// each piece once more, its embeddings' gradients given. Losses of single rows join in the second pass.
fn in_pieces(
    count: usize,
    rows: usize,
    variables: &BTreeMap<String, Var>,
    embed: impl Fn(Range<usize>, bool) -> Result<Embedded, StageError>,
    loss: impl Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>,
) -> Result<(f64, GradStore), StageError> {
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for piece in pieces(rows, count) {
        let Embedded { image, text, .. } = embed(piece, false)?;
        images.push(image.detach());
        texts.push(text.detach());
    }
    let whole = |parts: &[Tensor]| Tensor::cat(parts, 0).and_then(|all| Var::from_tensor(&all));
    let image = whole(&images).map_err(tensor_error)?;
    let text = whole(&texts).map_err(tensor_error)?;
    let value = |loss: &Tensor| loss.to_scalar::<f32>().map(f64::from);
    let all = || {
        let loss = loss(&image, &text)?;
        Ok((value(&loss)?, loss.backward()?))
    };
    // What the gradient holds of the parameters is of those outside the towers: the logit scale.
    let (mut sum, mut gradients) = all().map_err(tensor_error)?;
    let (of_images, of_texts) = (gradients.remove(&image), gradients.remove(&text));
    for piece in pieces(rows, count) {
        let embedded = embed(piece.clone(), true)?;
        let own = || {
            let given = |embeddings: &Tensor, gradient: &Option<Tensor>| match gradient {
                Some(gradient) => {
                    let gradient = gradient.narrow(0, piece.start, piece.len())?;
                    (embeddings * gradient)?.sum_all().map(Some)
                }
                None => Ok(None),
            };
            let parts = [
                given(&embedded.image, &of_images)?,
                given(&embedded.text, &of_texts)?,
                embedded.words.clone(),
            ];
            let words = embedded.words.as_ref().map_or(Ok(0.0), value)?;
            let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
            match parts.is_empty() {
                true => Ok((words, None)),
                false => Ok((words, Some(Tensor::stack(&parts, 0)?.sum_all()?.backward()?))),
            }
        };
        let (words, own) = own().map_err(tensor_error)?;
        sum += words;
        if let Some(own) = own {
            gradients = add_gradients(variables, gradients, own).map_err(tensor_error)?;
        }
    }
    Ok((sum, gradients))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(rows: usize, columns: usize, seed: usize) -> Tensor {
        let value = |place: usize| ((place * 37 + seed * 11) % 23) as f32 / 11.0 - 1.0;
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_batch_in_pieces_has_the_gradient_of_the_whole() {
        let (pixels, ids) = (values(7, 5, 1), values(7, 4, 2));
        let variables: BTreeMap<String, Var> =
            [("image", values(3, 5, 3)), ("text", values(3, 4, 4)), ("scale", values(1, 1, 5))]
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Var::from_tensor(&value).unwrap()))
                .collect();
        let embed = |piece: Range<usize>, _: bool| {
            let of = |values: &Tensor, name: &str| {
                linear(&values.narrow(0, piece.start, piece.len()).unwrap(), &variables[name], None)
                    .and_then(|embeddings| embeddings.tanh())
            };
            let (image, text) = (of(&pixels, "image").unwrap(), of(&ids, "text").unwrap());
            Ok(Embedded { image, text, words: None })
        };
        let excluded = [(1, 2), (2, 1)];
        let scaled = |image: &Tensor, text: &Tensor| {
            let cosines = linear(&normalise(image)?, &normalise(text)?, None)?;
            loss::info_nce(&cosines.broadcast_mul(&variables["scale"].exp()?)?, &excluded)
        };
        let hinge = |image: &Tensor, text: &Tensor| {
            loss::hinge(&linear(&normalise(image)?, &normalise(text)?, None)?, 0.2, Hinge::Max, &excluded)
        };
        let losses: [&dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>; 2] = [&scaled, &hinge];
        for loss in losses {
            let Embedded { image, text, .. } = embed(0..7, true).unwrap();
            let whole = loss(&image, &text).unwrap();
            let gradients = whole.backward().unwrap();
            for count in [1, 2, 3, 7, 50] {
                let (value, own) = in_pieces(count, 7, &variables, embed, loss).unwrap();
                assert!((value - f64::from(whole.to_scalar::<f32>().unwrap())).abs() < 1e-6);
                for (name, variable) in &variables {
                    let (Some(expected), found) = (gradients.get(variable), own.get(variable)) else {
                        assert!(own.get(variable).is_none(), "{name}");
                        continue;
                    };
                    let greatest = |values: &Tensor| {
                        values.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
                    };
                    let error = greatest(&(expected - found.unwrap()).unwrap()) / greatest(expected);
                    assert!(error < 1e-5, "{name} in {count} pieces: {error}");
                }
            }
        }
    }
}
