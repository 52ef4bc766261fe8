//! Image-caption pairs, and the gradient of a contrastive loss over a batch of them, whole or in pieces.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use pipe_engine::{StageContext, StageError};
use pipe_models::ops::linear;
use pipe_models::train::add_gradients;
use pipe_models::train::loss::{self, Hinge};
use pipe_models::{DualEncoder, normalise};

use super::class_loss::pieces;
use super::contrastive::{Objective, Params};
use crate::images::ImageSet;
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
        images: &ImageSet,
        context: &StageContext<'_>,
        splits: &[&str],
    ) -> std::result::Result<Self, StageError> {
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

    /// The loss of the batch `rows`, and its gradient.
    pub(super) fn gradients(
        &self,
        params: &Params,
        model: &Model,
        images: &ImageSet,
        rows: &[usize],
    ) -> std::result::Result<(f64, GradStore), StageError> {
        let image_rows: Vec<usize> = rows.iter().map(|row| self.rows[*row].0).collect();
        let ids: Vec<u32> = rows.iter().flat_map(|row| self.rows[*row].1.iter().copied()).collect();
        let pixels = images.batch(&image_rows)?;
        let towers = model.dual_encoder()?;
        let excluded = self.no_negatives(rows);
        let compute = || {
            let ids = Tensor::from_vec(ids, (rows.len(), towers.text_tower().context_length()), &DEVICE)?;
            let embed = |from: usize, count: usize| {
                let pixels = pixels.narrow(0, from, count)?;
                let ids = ids.narrow(0, from, count)?.contiguous()?;
                let image = towers.image_tower().embed_images(&pixels, None)?;
                Ok((image, towers.text_tower().embed_texts(&ids, None)?))
            };
            let loss = |image: &Tensor, text: &Tensor| loss(params, towers, image, text, &excluded);
            if params.pieces == 1 {
                let (image, text) = embed(0, rows.len())?;
                let loss = loss(&image, &text)?;
                return Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?));
            }
            in_pieces(params.pieces as usize, rows.len(), model.network.variables(), embed, loss)
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

/// The loss of embeddings `[pairs, width]`.
fn loss(
    params: &Params,
    towers: &dyn DualEncoder,
    image: &Tensor,
    text: &Tensor,
    excluded: &[(usize, usize)],
) -> Result<Tensor> {
    let kind = match params.objective {
        Objective::InfoNce => return loss::info_nce(&towers.logits(image, text)?, excluded),
        Objective::MaxHinge => Hinge::Max,
        Objective::SumHinge => Hinge::Sum,
        Objective::MeanHinge => Hinge::Mean,
    };
    let cosines = linear(&normalise(image)?, &normalise(text)?, None)?;
    loss::hinge(&cosines, params.margin, kind, excluded)
}

/// Gradient caching (Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"):
/// all embeddings first, nothing kept but their values; the loss and its gradient with respect to them; then
/// each piece once more, its embeddings' gradients given.
fn in_pieces(
    count: usize,
    rows: usize,
    variables: &BTreeMap<String, Var>,
    embed: impl Fn(usize, usize) -> Result<(Tensor, Tensor)>,
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<(f64, GradStore)> {
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    for piece in pieces(rows, count) {
        let (image, text) = embed(piece.start, piece.len())?;
        images.push(image.detach());
        texts.push(text.detach());
    }
    let image = Var::from_tensor(&Tensor::cat(&images, 0)?)?;
    let text = Var::from_tensor(&Tensor::cat(&texts, 0)?)?;
    let loss = loss(&image, &text)?;
    // What it holds of the parameters is of those outside the towers: the logit scale.
    let mut sum = loss.backward()?;
    if let (Some(of_images), Some(of_texts)) = (sum.remove(&image), sum.remove(&text)) {
        for piece in pieces(rows, count) {
            let (image, text) = embed(piece.start, piece.len())?;
            let of = |gradient: &Tensor| gradient.narrow(0, piece.start, piece.len());
            let given = ((image * of(&of_images)?)?.sum_all()? + (text * of(&of_texts)?)?.sum_all()?)?;
            sum = add_gradients(variables, sum, &given.backward()?)?;
        }
    }
    Ok((f64::from(loss.to_scalar::<f32>()?), sum))
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
        let embed = |from: usize, count: usize| {
            let image = linear(&pixels.narrow(0, from, count)?, &variables["image"], None)?.tanh()?;
            Ok((image, linear(&ids.narrow(0, from, count)?, &variables["text"], None)?.tanh()?))
        };
        let excluded = [(1, 2), (2, 1)];
        let scaled = |image: &Tensor, text: &Tensor| {
            let cosines = linear(&normalise(image)?, &normalise(text)?, None)?;
            loss::info_nce(&cosines.broadcast_mul(&variables["scale"].exp()?)?, &excluded)
        };
        let hinge = |image: &Tensor, text: &Tensor| {
            loss::hinge(&linear(&normalise(image)?, &normalise(text)?, None)?, 0.2, Hinge::Max, &excluded)
        };
        let losses: [&dyn Fn(&Tensor, &Tensor) -> Result<Tensor>; 2] = [&scaled, &hinge];
        for loss in losses {
            let (image, text) = embed(0, 7).unwrap();
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
