//! The image that each image is compared with.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;

use super::{Baseline, Params};
use crate::images::{ImageSet, Pixels};
use crate::mean_image::MeanImages;
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::read;

/// Standard deviation of the blur for an image of 224 pixels (Fong and Vedaldi 2017).
const BLUR_SIGMA_AT_224: f64 = 10.0;

/// What the baselines of a set of images are taken from.
pub(super) enum Baselines {
    /// They need nothing but the image.
    Plain { black: Vec<f32>, side: usize },
    /// The mean image of each image's site.
    Means { means: MeanImages, side: usize },
    /// The twins, and which of them is that of each image.
    Twins { twins: Box<ImageSet>, places: Vec<Option<usize>> },
}

impl Baselines {
    /// Those that need nothing but the images.
    pub(super) fn plain(images: &dyn Pixels) -> Self {
        let side = images.map_shape().last().copied().unwrap_or_default();
        Self::Plain { black: images.black(), side }
    }

    /// Reads what `params.baseline` needs.
    ///
    /// # Errors
    /// If an input that it needs is missing or damaged.
    pub(super) fn read(
        params: &Params,
        model: &Model,
        images: &dyn Pixels,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let needs_flat = matches!(params.baseline, Baseline::Mean | Baseline::Twin);
        if !params.method.has_baseline() || !needs_flat {
            return Ok(Self::plain(images));
        }
        if images.map_shape().len() > 2 {
            let message =
                format!("baseline `{}` is one of flat images; these are volumes", params.baseline.name());
            return Err(StageError::failed(message));
        }
        let preprocessor = model.preprocessor()?;
        match params.baseline {
            Baseline::Mean => {
                let own = context.input("images")?;
                let artifact = context.optional_input("reference").unwrap_or(own);
                let means = MeanImages::read(artifact, own, images.ids(), preprocessor, context)?;
                Ok(Self::Means { means, side: preprocessor.side })
            }
            _ => {
                let artifact = context.optional_input("twins").ok_or_else(|| {
                    StageError::failed(
                        "baseline `twin` needs the input `twins`: a table of counterfactual images",
                    )
                })?;
                twins(artifact, images, preprocessor, context)
            }
        }
    }

    /// Whether `image` has a baseline; why not, if it has none.
    pub(super) fn check(&self, image: usize) -> Result<(), String> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Means { means, .. } => means.of(image).map(|_| ()),
            Self::Twins { places, .. } => match places[image] {
                Some(_) => Ok(()),
                None => Err("the image has no lesion-free twin".to_owned()),
            },
        }
    }

    /// The baselines of these images, which pass [`Self::check`].
    pub(super) fn of(
        &self,
        params: &Params,
        images: &[usize],
    ) -> Result<pipe_attribution::Baseline, StageError> {
        use pipe_attribution::Baseline as Of;
        match self {
            Self::Plain { black, side } => Ok(match params.baseline {
                Baseline::Black => Of::PerChannel(black.clone()),
                Baseline::Constant => Of::Constant(params.constant as f32),
                Baseline::Blur => {
                    Of::Blur(params.blur_sigma.unwrap_or(BLUR_SIGMA_AT_224 * *side as f64 / 224.0))
                }
                Baseline::Zero | Baseline::Mean | Baseline::Twin => Of::Zero,
            }),
            Self::Means { means, side } => {
                let mut values = Vec::with_capacity(images.len() * side * side * 3);
                for image in images {
                    values.extend_from_slice(means.of(*image).map_err(StageError::failed)?);
                }
                let tensor = Tensor::from_vec(values, (images.len(), 3, *side, *side), &DEVICE);
                Ok(Of::Tensor(tensor.map_err(tensor_error)?))
            }
            Self::Twins { twins, places } => {
                let rows: Option<Vec<usize>> = images.iter().map(|image| places[*image]).collect();
                let missing = || StageError::failed("an image without a twin was to be compared with it");
                Ok(Of::Tensor(twins.batch(&rows.ok_or_else(missing)?)?))
            }
        }
    }
}

/// The lesion-free twins. A table that says what its twins change (`truth_twin`) may hold others.
fn twins(
    artifact: &Artifact,
    images: &dyn Pixels,
    preprocessor: &Preprocessor,
    context: &StageContext<'_>,
) -> Result<Baselines, StageError> {
    let table = read(artifact)?;
    let kinds = match table.column("truth_twin") {
        Some(_) => Some(table.utf8("truth_twin")?),
        None => None,
    };
    let lesion = |row: &usize| kinds.is_none_or(|kinds| kinds[*row].as_deref() == Some("lesion"));
    let table = table.select(&(0..table.rows()).filter(lesion).collect::<Vec<_>>());
    let by_original: BTreeMap<&str, usize> =
        table.strings("twin_of")?.into_iter().enumerate().map(|(row, id)| (id, row)).collect();
    let places = images.ids().iter().map(|id| by_original.get(id.as_str()).copied()).collect();
    let twins = Box::new(ImageSet::from_table(&table, preprocessor, context)?);
    Ok(Baselines::Twins { twins, places })
}
