//! Twins: test rows of which one factor is changed, and nothing else.

use pipe_engine::StageError;
use rayon::prelude::*;

use super::acquisition::acquire;
use super::factors::{Factors, Subject};
use super::labels::noisy;
use super::params::{Params, Twin};
use super::places::TEST;
use super::rows::{Area, Drawn, Row, acquisition, truth};
use super::tables::{ImageRow, LabelRow, image_columns, label_columns};
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

/// Draws a block of twins: their images and their labels. Labels are those of what the twin shows, with
/// the noise of its row.
pub(super) fn tables(params: &Params, block: &[Changed<'_>]) -> Result<(Table, Table), StageError> {
    let draw = |one: &Changed<'_>| {
        let picture = acquire(&one.factors, params.size as usize, acquisition(params));
        let truth = truth(params, &one.factors, Area::of(&picture));
        Ok((Drawn::new(picture)?, truth))
    };
    let drawn: Vec<Result<(Drawn, Vec<i64>), StageError>> = block.par_iter().map(draw).collect();
    let drawn = drawn.into_iter().collect::<Result<Vec<_>, _>>()?;
    let id = |one: &Changed<'_>| format!("{}/{}-twin", one.row.id, name(one.twin));
    let images: Vec<ImageRow<'_>> = block
        .iter()
        .zip(&drawn)
        .map(|(one, (drawn, _))| ImageRow {
            id: id(one),
            split: one.row.place.split,
            group: &one.row.group,
            drawn,
            factors: Some(&one.factors),
        })
        .collect();
    let labels: Vec<LabelRow<'_>> = block
        .iter()
        .zip(&drawn)
        .map(|(one, (_, truth))| LabelRow {
            id: id(one),
            split: one.row.place.split,
            truth: truth.clone(),
            label: noisy(params, truth, &one.row.place),
        })
        .collect();
    let named = |table: Table| {
        table
            .with("twin_of", Column::texts(block.iter().map(|one| one.row.id.clone())))
            .with("truth_twin", Column::texts(block.iter().map(|one| name(one.twin))))
    };
    Ok((named(image_columns(params, &images)?), named(label_columns(params, &labels))))
}

fn name(twin: Twin) -> &'static str {
    match twin {
        Twin::Lesion => "lesion",
        Twin::Marker => "marker",
        Twin::Device => "device",
        Twin::Side => "side",
    }
}
