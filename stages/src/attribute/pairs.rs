//! Images and the texts that they are compared with: what is explained of an image-text model.
//!
//! The similarity `exp(logit scale) * cosine` is the logit of a head whose classes are the texts: its weights are their
//! embeddings of unit length times the scale, and it sees embeddings of unit length. So the text tower runs once
//! per text, all that explains classes explains similarities, and a probability is that of retrieval.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use pipe_engine::{ParameterProblem, StageContext, StageError};
use pipe_models::normalise;

use super::selection::{Explained, Selection};
use super::{Method, Params};
use crate::images::Pixels;
use crate::model::{DEVICE, Head, HeadDescription, HeadInput, Model, tensor_error};
use crate::table::read_columns;
use crate::target::ClassTarget;

/// `against`: what is subtracted is the mean over the captions of other images.
pub(super) const OTHERS: &str = "others";

/// A caption with the place of its image.
struct Caption {
    id: String,
    image: usize,
    /// The place of its words among the texts.
    text: usize,
}

/// What images are compared with.
pub(super) struct Pairs {
    /// Each text once.
    texts: Vec<String>,
    /// The captions, in the order of their table; none where all images are compared with one text.
    captions: Option<Vec<Caption>>,
    /// The text whose similarity is subtracted.
    against: Option<Against>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Against {
    Text(usize),
    Others,
}

/// Whether the captions of all images decide what is explained of one.
pub(super) fn needs_all(params: &Params) -> bool {
    params.against.as_deref() == Some(OTHERS) || params.method.explains_choice()
}

/// What `params` say of classes, which similarities have none of.
pub(super) fn class_parameters(params: &Params) -> Vec<ParameterProblem> {
    let default = Params::default();
    let given = [
        ("target", params.target != default.target),
        ("classes", !params.classes.is_empty()),
        ("only_correct", params.only_correct),
    ];
    let problem = |(path, _): (&str, bool)| ParameterProblem {
        path: path.to_owned(),
        message: "it is about classes, and a similarity with a text is explained".to_owned(),
        help: Some("leave it out".to_owned()),
    };
    given.into_iter().filter(|(_, is_given)| *is_given).map(problem).collect()
}

impl Pairs {
    /// What `images` are compared with: the text of `params`, or their captions; nothing where classes are
    /// explained.
    ///
    /// # Errors
    /// If the captions are damaged, or parameters and inputs do not fit.
    pub(super) fn read(
        params: &Params,
        images: &dyn Pixels,
        context: &StageContext<'_>,
    ) -> Result<Option<Self>, StageError> {
        let mut texts = Texts::default();
        let captions = match (context.optional_input("captions"), &params.text) {
            (None, None) => return Ok(None),
            (None, Some(text)) => {
                texts.place(text);
                None
            }
            (Some(artifact), None) => {
                let table = read_columns(artifact, &["caption_id", "image_id", "caption"])?;
                let places = images.places();
                // Captions of images that are not explained matter only as others.
                let most = if needs_all(params) { usize::MAX } else { limit(params) };
                let ids = table.int64("caption_id")?.iter();
                let rows = ids.zip(table.strings("image_id")?).zip(table.strings("caption")?);
                let caption = |((id, image), caption): ((&Option<i64>, &str), &str)| {
                    let image = places.get(image).copied().filter(|image| *image < most)?;
                    let id = id.map(|id| id.to_string()).unwrap_or_default();
                    Some(Caption { id, image, text: texts.place(caption) })
                };
                Some(rows.filter_map(caption).collect())
            }
            (Some(_), Some(_)) => {
                return Err(StageError::failed(
                    "the similarity with captions is explained, or that with `text`: leave out one of them",
                ));
            }
        };
        if let Some(problem) = class_parameters(params).first() {
            return Err(StageError::failed(format!("`{}`: {}", problem.path, problem.message)));
        }
        let against = match params.against.as_deref() {
            Some(OTHERS) if captions.is_none() => {
                return Err(StageError::failed(
                    "`against = \"others\"` needs the input `captions`: the mean over those of other images",
                ));
            }
            Some(OTHERS) => Some(Against::Others),
            Some(text) => Some(Against::Text(texts.place(text))),
            None => None,
        };
        Ok(Some(Self { texts: texts.all, captions, against }))
    }

    /// The head whose logits are similarities. Behind the texts stands, where the mean over others is subtracted, a
    /// class per image.
    ///
    /// # Errors
    /// If `model` reads no text or no images.
    pub(super) fn head(
        &self,
        model: &Model,
        images: usize,
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Head, StageError> {
        let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        let unit = units(model, &texts, batch, context)?;
        let width = unit.dim(1).map_err(tensor_error)?;
        let mut classes = self.texts.clone();
        let rows = match self.others() {
            Some(captions) => {
                classes.extend((0..images).map(|_| "captions of other images".to_owned()));
                let units: Vec<Vec<f32>> = unit.to_vec2().map_err(tensor_error)?;
                let means = means_of_others(captions, &units, images, width);
                Tensor::from_vec(means, (images, width), &DEVICE)
                    .and_then(|means| Tensor::cat(&[&unit, &means], 0))
                    .map_err(tensor_error)?
            }
            None => unit,
        };
        head_of(model, classes, &rows)
    }

    /// The captions, where the mean over those of other images is subtracted.
    fn others(&self) -> Option<&[Caption]> {
        self.captions.as_deref().filter(|_| self.against == Some(Against::Others))
    }

    /// Why a method is not defined, if so.
    fn undefined(&self, method: Method) -> Option<&'static str> {
        let has_choice =
            self.captions.is_some() && self.texts.len() > 1 && self.against != Some(Against::Others);
        match method {
            _ if method.explains_choice() && !has_choice => Some(
                "the method explains a probability or a lead: that of a caption among those of all images, of which \
                 there are none here, or whose mean is subtracted",
            ),
            Method::DeepLift => Some("DeepLIFT has no rule for an embedding that is brought to unit length"),
            _ => None,
        }
    }

    /// A row per caption of each image, or per image, in the order of the images; at most `limit` images.
    pub(super) fn select(&self, params: &Params, images: usize) -> Selection {
        let mut by_image: BTreeMap<usize, Vec<&Caption>> = BTreeMap::new();
        for caption in self.captions.iter().flatten() {
            by_image.entry(caption.image).or_default().push(caption);
        }
        let has_others = |image: usize| {
            let own = by_image.get(&image).map_or(0, Vec::len);
            self.others().is_none_or(|captions| captions.len() > own)
        };
        let row = |image: usize, caption: Option<String>, text: usize| {
            let against = self.against.map(|against| match against {
                Against::Text(text) => text,
                Against::Others => self.texts.len() + image,
            });
            let target = match self.undefined(params.method) {
                Some(reason) => Err(reason.to_owned()),
                None if against == Some(text) => {
                    Err("the text is the one that it would be measured against".to_owned())
                }
                None if !has_others(image) => {
                    Err("there is no caption of another image to measure against".to_owned())
                }
                None => Ok(ClassTarget { class: text, against }),
            };
            Explained { image, caption, class: Some(text), target, correct: None }
        };
        let mut selection = Selection::default();
        for image in (0..images).take(limit(params)) {
            selection.images += 1;
            match (&self.captions, by_image.get(&image)) {
                (None, _) => selection.rows.push(row(image, None, 0)),
                (Some(_), Some(captions)) => selection.rows.extend(
                    captions.iter().map(|caption| row(image, Some(caption.id.clone()), caption.text)),
                ),
                (Some(_), None) => selection.rows.push(Explained {
                    image,
                    caption: None,
                    class: None,
                    target: Err("the image has no caption".to_owned()),
                    correct: None,
                }),
            }
        }
        selection
    }
}

/// The head whose logits are the similarities with these texts.
///
/// # Errors
/// If `model` reads no text or no images.
pub(crate) fn similarity_head(
    model: &Model,
    texts: &[&str],
    batch: i64,
    context: &StageContext<'_>,
) -> Result<Head, StageError> {
    let units = units(model, texts, batch, context)?;
    head_of(model, texts.iter().map(|text| (*text).to_owned()).collect(), &units)
}

/// Embeddings of unit length, `[texts, width]`.
fn units(
    model: &Model,
    texts: &[&str],
    batch: i64,
    context: &StageContext<'_>,
) -> Result<Tensor, StageError> {
    let width = model.dual_encoder()?.text_tower().embedding_width();
    let embeddings = model.embed_texts(texts, batch, context)?;
    Tensor::from_vec(embeddings, (texts.len(), width), &DEVICE)
        .and_then(|embeddings| normalise(&embeddings))
        .map_err(tensor_error)
}

/// The head of classes whose embeddings these are.
fn head_of(model: &Model, classes: Vec<String>, rows: &Tensor) -> Result<Head, StageError> {
    let towers = model.dual_encoder()?;
    let scaled = || {
        let scale = towers.logit_scale().to_device(&DEVICE)?.to_dtype(DType::F32)?.exp()?;
        let bias = Tensor::zeros(rows.dim(0)?, DType::F32, &DEVICE)?;
        Ok((rows.broadcast_mul(&scale)?, bias))
    };
    let (weight, bias) = scaled().map_err(tensor_error)?;
    let description = HeadDescription { classes, task: "multi-class".to_owned() };
    Ok(Head { input: HeadInput::Unit, description, weight, bias })
}

/// Texts, each once.
#[derive(Default)]
struct Texts {
    all: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Texts {
    /// The place of a text, which is added if it is new.
    fn place(&mut self, text: &str) -> usize {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.all.len();
        self.all.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }
}

/// The greatest number of images.
fn limit(params: &Params) -> usize {
    params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize)
}

/// For each image the mean of the rows of `units` of all captions but its own; 0 where there are no others.
fn means_of_others(captions: &[Caption], units: &[Vec<f32>], images: usize, width: usize) -> Vec<f32> {
    let mut all = vec![0.0f64; width];
    let mut own = vec![(0usize, vec![0.0f64; width]); images];
    for caption in captions {
        let (count, sum) = &mut own[caption.image];
        *count += 1;
        for (place, value) in units[caption.text].iter().enumerate() {
            all[place] += f64::from(*value);
            sum[place] += f64::from(*value);
        }
    }
    let mean = |(count, sum): &(usize, Vec<f64>)| -> Vec<f32> {
        let others = captions.len() - count;
        let value = |(all, own): (&f64, &f64)| ((all - own) / others.max(1) as f64) as f32;
        all.iter().zip(sum).map(value).collect()
    };
    own.iter().flat_map(mean).collect()
}
