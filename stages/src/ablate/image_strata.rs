//! The strata of the images of a retrieval pool.

use std::collections::BTreeMap;

use pipe_engine::{StageContext, StageError};

use super::Params;
use super::condition::Refused;
use super::strata::Strata;
use crate::retrieval::Pool;
use crate::table::read_columns;

/// The column of strata, unless another one is named.
const MODALITY: &str = "modality";

/// The strata of images.
pub(super) struct ImageStrata {
    /// Of the pool's images.
    pub(super) pool: Strata,
    /// The stratum's number by image id, in all splits.
    pub(super) by_id: BTreeMap<String, usize>,
    /// Strata of all splits.
    pub(super) count: usize,
}

impl ImageStrata {
    /// The strata that a column of the images table makes.
    pub(super) fn read(
        params: &Params,
        context: &StageContext<'_>,
        pool: &Pool,
    ) -> Result<Result<Self, Refused>, StageError> {
        let column = params.stratum.as_deref().unwrap_or(MODALITY);
        let Some(images) = context.optional_input("images") else {
            return Ok(Err("the input `images`, whose columns are strata, was left out".to_owned()));
        };
        let table = read_columns(images, &["image_id", column])?;
        if table.column(column).is_none() && params.stratum.is_none() {
            return Ok(Err("the images table has no column `modality`".to_owned()));
        }
        let ids = table.strings("image_id")?;
        let values = table.as_text(column)?;
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        for value in values.iter().flatten() {
            let next = numbers.len();
            numbers.entry(value).or_insert(next);
        }
        let by_id: BTreeMap<String, usize> = ids
            .iter()
            .zip(&values)
            .filter_map(|(id, value)| Some(((*id).to_owned(), *numbers.get(value.as_deref()?)?)))
            .collect();
        let of_pool: Vec<Option<String>> =
            pool.images.ids.iter().map(|id| by_id.get(id).map(usize::to_string)).collect();
        let strata = Strata::by_value(&of_pool);
        if strata.count() < 2 {
            return Ok(Err(format!("the column `{column}` makes one stratum of the whole pool")));
        }
        Ok(Ok(Self { pool: strata, count: numbers.len(), by_id }))
    }
}
