//! The mean training image: what an image looks like when there is nothing remarkable in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;

use crate::images::ImageSet;
use crate::table::read_columns;

/// Modality and region: images of different sites have no common mean.
type Site = (Option<String>, Option<String>);

/// The mean training image of each site, and the site of each image of a set.
#[derive(Clone)]
pub(crate) struct MeanImages {
    /// Values `[3, side, side]` in the normalised space.
    means: Arc<BTreeMap<Site, Vec<f32>>>,
    sites: Vec<Site>,
}

impl MeanImages {
    /// The means of the split `train` of `reference`, for the images `ids` of `images`.
    ///
    /// # Errors
    /// If a table is damaged, or `reference` has no training images.
    pub(crate) fn read(
        reference: &Artifact,
        images: &Artifact,
        ids: &[String],
        preprocessor: &Preprocessor,
        context: &StageContext<'_>,
    ) -> Result<Self, StageError> {
        let means = Arc::new(means(reference, preprocessor, context)?);
        Ok(Self { means, sites: sites(images, ids)? })
    }

    /// The mean image of the site of `image`, its place among the ids.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn of(&self, image: usize) -> Result<&[f32], String> {
        let name = |part: &Option<String>| part.clone().unwrap_or_else(|| "unknown".to_owned());
        let (modality, region) = &self.sites[image];
        self.means.get(&self.sites[image]).map(Vec::as_slice).ok_or_else(|| {
            format!(
                "no training image has modality {} and region {}, so there is no mean image",
                name(modality),
                name(region)
            )
        })
    }
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

/// The mean training image of each site, in the normalised space.
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
    let mut rows_of: BTreeMap<Site, Vec<usize>> = BTreeMap::new();
    for (row, site) in sites(artifact, &train.ids)?.into_iter().enumerate() {
        rows_of.entry(site).or_default().push(row);
    }
    Ok(rows_of.into_iter().filter_map(|(site, rows)| Some((site, mean_image(&train, &rows)?))).collect())
}

/// The mean of some images, `[3, side, side]` in the normalised space; `None` if there are none. Sums are
/// whole numbers, so they are exact.
pub(crate) fn mean_image(images: &ImageSet, rows: &[usize]) -> Option<Vec<f32>> {
    let preprocessor = images.preprocessor();
    let plane = preprocessor.side * preprocessor.side;
    let mut sums = vec![0u64; 3 * plane];
    for row in rows {
        sums.iter_mut().zip(images.square(*row)).for_each(|(sum, value)| *sum += u64::from(*value));
    }
    let value = |(channel, pixel): (usize, usize)| {
        let mean = sums[pixel * 3 + channel] as f64 / rows.len() as f64 / 255.0;
        ((mean - preprocessor.mean[channel]) / preprocessor.std[channel]) as f32
    };
    let places = (0..3).flat_map(|channel| (0..plane).map(move |pixel| (channel, pixel)));
    (!rows.is_empty()).then(|| places.map(value).collect())
}
