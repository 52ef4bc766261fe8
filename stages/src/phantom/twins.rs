//! Twins: test rows of which one factor is changed, and nothing else.

use pipe_engine::StageError;
use rayon::prelude::*;

use super::acquisition::acquire;
use super::factors::{Factors, Subject};
use super::params::{Params, Twin};
use super::places::TEST;
use super::rows::{Drawn, Row, acquisition};
use super::tables::{ImageRow, image_columns};
use crate::table::{Column, Table};

/// A row with the factors of its twin.
pub(super) struct Changed<'a> {
    row: &'a Row,
    twin: Twin,
    factors: Factors,
}

/// The twins that the parameters ask for.
pub(super) fn changed<'a>(params: &Params, rows: &'a [Row]) -> Vec<Changed<'a>> {
    let mut all = Vec::new();
    for twin in &params.twins {
        for row in rows.iter().filter(|row| row.place.split == TEST) {
            let Some(factors) = row.source.factors() else { continue };
            let factors = match twin {
                Twin::Lesion if factors.subject.is_normal() => continue,
                Twin::Lesion => Factors { lesion: false, ..factors.clone() },
                Twin::Marker => Factors { marker: !factors.marker, ..factors.clone() },
                Twin::Device => Factors { device_b: !factors.device_b, ..factors.clone() },
                Twin::Side => {
                    let Some(left) = factors.subject.left else { continue };
                    let subject = Subject { left: Some(!left), ..factors.subject.clone() };
                    Factors { subject, ..factors.clone() }
                }
            };
            all.push(Changed { row, twin: *twin, factors });
        }
    }
    all
}

/// Draws a block of twins.
pub(super) fn table(params: &Params, block: &[Changed<'_>]) -> Result<Table, StageError> {
    let draw =
        |one: &Changed<'_>| Drawn::new(acquire(&one.factors, params.size as usize, acquisition(params)));
    let drawn: Vec<Result<Drawn, StageError>> = block.par_iter().map(draw).collect();
    let drawn = drawn.into_iter().collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<ImageRow<'_>> = block
        .iter()
        .zip(&drawn)
        .map(|(one, drawn)| ImageRow {
            id: format!("{}/{}-twin", one.row.id, name(one.twin)),
            split: one.row.place.split,
            group: &one.row.group,
            drawn,
            factors: Some(&one.factors),
        })
        .collect();
    Ok(image_columns(params, &rows)?
        .with("twin_of", Column::texts(block.iter().map(|one| one.row.id.clone())))
        .with("truth_twin", Column::texts(block.iter().map(|one| name(one.twin)))))
}

fn name(twin: Twin) -> &'static str {
    match twin {
        Twin::Lesion => "lesion",
        Twin::Marker => "marker",
        Twin::Device => "device",
        Twin::Side => "side",
    }
}
