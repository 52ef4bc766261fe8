//! The image that each image is compared with.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;

use super::{Baseline, Method, Params};
use crate::images::ImageSet;
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::{read, read_columns};

/// Standard deviation of the blur for an image of 224 pixels (Fong and Vedaldi 2017).
const BLUR_SIGMA_AT_224: f64 = 10.0;

/// Modality and region: images of different sites have no common mean.
type Site = (Option<String>, Option<String>);

/// What the baselines of a set of images are taken from.
pub(super) enum Baselines {
    /// They need nothing but the image.
    Plain { black: [f32; 3], side: usize },
    /// The mean of each site, and the site of each image.
    Means { means: BTreeMap<Site, Vec<f32>>, sites: Vec<Site>, side: usize },
    /// The twins, and which of them is that of each image.
    Twins { twins: ImageSet, places: Vec<Option<usize>> },
}

impl Baselines {
    /// Reads what `params.baseline` needs.
    ///
    /// # Errors
    /// If an input that it needs is missing or damaged.
    pub(super) fn read(
        params: &Params,
        model: &Model,
        images: &ImageSet,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let preprocessor = &model.preprocessor;
        match params.baseline {
            Baseline::Mean if params.method != Method::Gradient => {
                let own = context.input("images")?;
                let artifact = context.optional_input("reference").unwrap_or(own);
                let sites = sites(own, &images.ids)?;
                Ok(Self::Means {
                    means: means(artifact, preprocessor, context)?,
                    sites,
                    side: preprocessor.side,
                })
            }
            Baseline::Twin if params.method != Method::Gradient => {
                let artifact = context.optional_input("twins").ok_or_else(|| {
                    StageError::failed(
                        "baseline `twin` needs the input `twins`: a table of counterfactual images",
                    )
                })?;
                twins(artifact, images, preprocessor, context)
            }
            _ => Ok(Self::Plain { black: preprocessor.black(), side: preprocessor.side }),
        }
    }

    /// Whether `image` has a baseline; why not, if it has none.
    pub(super) fn check(&self, image: usize) -> Result<(), String> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Means { means, sites, .. } => match means.contains_key(&sites[image]) {
                true => Ok(()),
                false => {
                    let name = |part: &Option<String>| part.clone().unwrap_or_else(|| "unknown".to_owned());
                    let (modality, region) = &sites[image];
                    Err(format!(
                        "no training image has modality {} and region {}, so there is no mean image",
                        name(modality),
                        name(region)
                    ))
                }
            },
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
                Baseline::Black => Of::PerChannel(black.to_vec()),
                Baseline::Constant => Of::Constant(params.constant as f32),
                Baseline::Blur => {
                    Of::Blur(params.blur_sigma.unwrap_or(BLUR_SIGMA_AT_224 * *side as f64 / 224.0))
                }
                Baseline::Zero | Baseline::Mean | Baseline::Twin => Of::Zero,
            }),
            Self::Means { means, sites, side } => {
                let mut values = Vec::with_capacity(images.len() * side * side * 3);
                for image in images {
                    let mean = means.get(&sites[*image]);
                    values.extend_from_slice(mean.ok_or_else(|| missing("mean image"))?);
                }
                let tensor = Tensor::from_vec(values, (images.len(), 3, *side, *side), &DEVICE);
                Ok(Of::Tensor(tensor.map_err(tensor_error)?))
            }
            Self::Twins { twins, places } => {
                let rows: Option<Vec<usize>> = images.iter().map(|image| places[*image]).collect();
                Ok(Of::Tensor(twins.batch(&rows.ok_or_else(|| missing("twin"))?)?))
            }
        }
    }
}

fn missing(what: &str) -> StageError {
    StageError::failed(format!("an image without a {what} was to be compared with it"))
}

/// The site of each image.
fn sites(artifact: &Artifact, ids: &[String]) -> Result<Vec<Site>, StageError> {
    let table = read_columns(artifact, &["image_id", "modality", "region"])?;
    let values = |name: &str| match table.column(name) {
        Some(_) => Ok(table.utf8(name)?.to_vec()),
        None => Ok::<_, StageError>(vec![None; table.rows()]),
    };
    let (modalities, regions) = (values("modality")?, values("region")?);
    let by_id: BTreeMap<&str, usize> =
        table.strings("image_id")?.into_iter().enumerate().map(|(row, id)| (id, row)).collect();
    Ok(ids
        .iter()
        .map(|id| match by_id.get(id.as_str()) {
            Some(row) => (modalities[*row].clone(), regions[*row].clone()),
            None => (None, None),
        })
        .collect())
}

/// The mean training image of each site, in the normalised space. Sums are whole numbers, so they are
/// exact.
fn means(
    artifact: &Artifact,
    preprocessor: &Preprocessor,
    context: &StageContext<'_>,
) -> Result<BTreeMap<Site, Vec<f32>>, StageError> {
    let train = ImageSet::read(artifact, &["train"], preprocessor, context)?;
    if train.len() == 0 {
        let reason = "it has no images of split `train`, whose mean is the baseline";
        return Err(StageError::input("reference", reason));
    }
    let mut sums: BTreeMap<Site, (u64, Vec<u64>)> = BTreeMap::new();
    for (row, site) in sites(artifact, &train.ids)?.into_iter().enumerate() {
        let square = train.square(row);
        let (count, sum) = sums.entry(site).or_insert_with(|| (0, vec![0; square.len()]));
        *count += 1;
        sum.iter_mut().zip(square).for_each(|(sum, value)| *sum += u64::from(*value));
    }
    let plane = preprocessor.side * preprocessor.side;
    let normalised = |(count, sum): (u64, Vec<u64>)| {
        let value = |channel: usize, pixel: usize| {
            let mean = sum[pixel * 3 + channel] as f64 / count as f64 / 255.0;
            ((mean - preprocessor.mean[channel]) / preprocessor.std[channel]) as f32
        };
        (0..3)
            .flat_map(|channel| (0..plane).map(move |pixel| (channel, pixel)))
            .map(|(c, p)| value(c, p))
            .collect()
    };
    Ok(sums.into_iter().map(|(site, sum)| (site, normalised(sum))).collect())
}

/// The lesion-free twins. A table that says what its twins change (`truth_twin`) may hold others.
fn twins(
    artifact: &Artifact,
    images: &ImageSet,
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
    let places = images.ids.iter().map(|id| by_original.get(id.as_str()).copied()).collect();
    Ok(Baselines::Twins { twins: ImageSet::from_table(&table, preprocessor, context)?, places })
}
