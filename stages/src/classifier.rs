//! A model as a classifier: with its head, or zero-shot by prompts.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_engine::{ParameterProblem, StageContext, StageError};
use pipe_models::normalise;

use crate::features::Features;
use crate::images::batches;
use crate::labels::Labels;
use crate::model::{DEVICE, HeadDescription, Model, tensor_error};

/// The texts of each class, by its name.
pub(crate) type Prompts = BTreeMap<String, Vec<String>>;

/// What is wrong with the texts of classes and of their absence.
pub(crate) fn check_prompts(prompts: &Prompts, absent: &Prompts) -> Vec<ParameterProblem> {
    let mut problems = check_texts("prompts", prompts);
    problems.extend(check_texts("absent", absent));
    if prompts.is_empty() && !absent.is_empty() {
        problems.push(ParameterProblem {
            path: "absent".to_owned(),
            message: "it is set against `prompts`, of which there are none".to_owned(),
            help: None,
        });
    }
    problems
}

/// A class without texts is a mistake.
fn check_texts(name: &str, prompts: &Prompts) -> Vec<ParameterProblem> {
    let empty = prompts.iter().filter(|(_, texts)| texts.is_empty());
    empty
        .map(|(class, _)| ParameterProblem {
            path: format!("{name}.{class}"),
            message: "a class needs at least one text".to_owned(),
            help: None,
        })
        .collect()
}

/// What turns embeddings of images into class logits.
pub(crate) struct Classifier<'a> {
    pub(crate) model: &'a Model,
    pub(crate) description: HeadDescription,
    /// Zero-shot: a unit vector per class, `[classes, width]`.
    prototypes: Option<Tensor>,
    /// The same of texts that say that a class is not there.
    absent: Option<Tensor>,
}

impl<'a> Classifier<'a> {
    /// The checkpoint's head; zero-shot if there are prompts.
    pub(crate) fn new(model: &'a Model, labels: &Labels, prompts: &Prompts) -> Result<Self, StageError> {
        let description = labels.description.clone();
        if !prompts.is_empty() {
            let prototypes = prototypes(model, &encode_prompts(model, &description.classes, prompts)?)?;
            return Ok(Self { model, description, prototypes: Some(prototypes), absent: None });
        }
        let own = &model.head()?.description;
        if own.classes != description.classes {
            let reason =
                format!("its classes are {:?}, those of the labels {:?}", own.classes, description.classes);
            return Err(StageError::input("head.json", reason));
        }
        Ok(Self { model, description: own.clone(), prototypes: None, absent: None })
    }

    /// The same, each class set against texts that say that it is not there: its logit is the difference, so
    /// that its probability is the softmax over both (CT-CLIP's zero-shot detection).
    ///
    /// # Errors
    /// If independent labels are zero-shot without such texts: a cosine alone is no probability, as it has nothing
    /// to be greater than. If there are such texts for classes that exclude each other.
    pub(crate) fn against(mut self, absent: &Prompts) -> Result<Self, StageError> {
        if absent.is_empty() {
            if self.is_zero_shot() && self.description.is_multi_label() {
                let class = self.description.classes.first().map_or("label", String::as_str);
                return Err(StageError::failed(format!(
                    "the labels are independent of each other, so `prompts` alone give no probabilities: write \
                     beside them `absent`, the texts that say of each label that it is not there, as `absent = {{ \
                     \"{class}\" = [\"{class} is not present.\"], ... }}`"
                )));
            }
            return Ok(self);
        }
        if !self.description.is_multi_label() {
            let message = "`absent` is for independent labels; these classes exclude each other";
            return Err(StageError::failed(message));
        }
        let ids = encode_prompts(self.model, &self.description.classes, absent)?;
        self.absent = Some(prototypes(self.model, &ids)?);
        Ok(self)
    }

    /// Whether classes are described by prompts.
    pub(crate) fn is_zero_shot(&self) -> bool {
        self.prototypes.is_some()
    }

    /// The name of how it classifies.
    pub(crate) fn protocol(&self) -> &'static str {
        if self.is_zero_shot() { "zero-shot" } else { "head" }
    }

    /// Embeddings `[batch, width]` of preprocessed pixels.
    pub(crate) fn embed(&self, pixels: &Tensor) -> Result<Tensor, StageError> {
        self.model.image_tower()?.embed_images(pixels, None).map_err(tensor_error)
    }

    /// Class logits `[batch, classes]` of embeddings.
    pub(crate) fn logits(&self, embeddings: &Tensor) -> Result<Tensor, StageError> {
        match &self.prototypes {
            Some(prototypes) => zero_shot_against(self.model, embeddings, prototypes, self.absent.as_ref()),
            None => self.model.head()?.logits(embeddings).map_err(tensor_error),
        }
    }

    /// Class logits of all images of a set.
    pub(crate) fn classify(
        &self,
        images: &Features,
        batch: i64,
        context: &StageContext<'_>,
    ) -> Result<Vec<Vec<f32>>, StageError> {
        let all: Vec<usize> = (0..images.ids().len()).collect();
        let width = self.model.image_tower()?.embedding_width();
        let values = images.embed(self.model, &all, batch, context)?;
        images.log(all.len(), context);
        let mut logits = Vec::with_capacity(all.len());
        for rows in batches(&all, images.at_a_time(batch)) {
            let own = &values[rows[0] * width..(rows[0] + rows.len()) * width];
            let embeddings = Tensor::from_slice(own, (rows.len(), width), &DEVICE).map_err(tensor_error)?;
            logits.extend(to_rows(&self.logits(&embeddings)?)?);
        }
        Ok(logits)
    }
}

/// A matrix as rows.
pub(crate) fn to_rows(matrix: &Tensor) -> Result<Vec<Vec<f32>>, StageError> {
    matrix.to_vec2::<f32>().map_err(tensor_error)
}

/// The texts of each class as ids of the context's length.
pub(crate) type PromptIds = Vec<Vec<Vec<u32>>>;

/// The prompts of each class as ids, in class order.
///
/// # Errors
/// If a class has no prompts or a name is no class.
pub(crate) fn encode_prompts(
    model: &Model,
    classes: &[String],
    prompts: &Prompts,
) -> Result<PromptIds, StageError> {
    let unknown: Vec<&String> = prompts.keys().filter(|class| !classes.contains(class)).collect();
    if !unknown.is_empty() {
        let message =
            format!("prompts are given for {unknown:?}, which are no classes; those are {classes:?}");
        return Err(StageError::failed(message));
    }
    let of_class = |class: &String| -> Result<Vec<Vec<u32>>, StageError> {
        let texts = prompts.get(class);
        let texts = texts.ok_or_else(|| StageError::failed(format!("class `{class}` has no prompts")))?;
        texts.iter().map(|prompt| model.encode(prompt)).collect()
    };
    classes.iter().map(of_class).collect()
}

/// One unit vector per class, `[classes, width]`: the embeddings of its texts, normalised, averaged and
/// normalised again (the CLIP repository's prompt ensembles).
pub(crate) fn prototypes(model: &Model, prompts: &PromptIds) -> Result<Tensor, StageError> {
    let tower = model.text_tower()?;
    let mean = |texts: &Vec<Vec<u32>>| -> candle_core::Result<Tensor> {
        let ids = Tensor::from_vec(texts.concat(), (texts.len(), tower.context_length()), &DEVICE)?;
        let embeddings = normalise(&tower.embed_texts(&ids, None)?)?;
        normalise(&embeddings.mean_keepdim(0)?)
    };
    let rows = prompts.iter().map(mean).collect::<candle_core::Result<Vec<Tensor>>>();
    rows.and_then(|rows| Tensor::cat(&rows, 0)).map_err(tensor_error)
}

/// Class logits of embeddings by class vectors: exp(scale) times the cosine.
pub(crate) fn zero_shot(
    model: &Model,
    embeddings: &Tensor,
    prototypes: &Tensor,
) -> Result<Tensor, StageError> {
    model.dual_encoder()?.logits(embeddings, prototypes).map_err(tensor_error)
}

/// As [`zero_shot`], less the logits by the vectors of the classes' absence, if there are any.
pub(crate) fn zero_shot_against(
    model: &Model,
    embeddings: &Tensor,
    prototypes: &Tensor,
    absent: Option<&Tensor>,
) -> Result<Tensor, StageError> {
    let present = zero_shot(model, embeddings, prototypes)?;
    match absent {
        Some(absent) => (present - zero_shot(model, embeddings, absent)?).map_err(tensor_error),
        None => Ok(present),
    }
}
