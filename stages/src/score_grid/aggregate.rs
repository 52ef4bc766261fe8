//! Maps of the first cell, averaged from the best localised to the worst (AggAtt).

use std::collections::BTreeMap;

use image::{Rgb, RgbImage};
use pipe_attribution::{AGGREGATE_BINS, aggregate_scale, aggregated};
use pipe_engine::{OutputWriter, StageError};

use crate::report::{Sheet, colour};

/// The percentile of the values of all bins that is drawn at full colour.
const PERCENTILE: f64 = 99.5;

/// Sheets with a row per method and a column per bin, one for each setting and layer.
pub(super) struct Aggregates {
    /// Cells a side.
    scale: usize,
    sheets: BTreeMap<String, Sheet>,
    table: String,
}

impl Aggregates {
    pub(super) fn new(scale: usize) -> Self {
        let table =
            "setting,layer,method,from,to,maps,best_localisation,worst_localisation,scale\n".to_owned();
        Self { scale, sheets: BTreeMap::new(), table }
    }

    /// Adds the evidence of one method for the first cell of each grid, with its localisation.
    pub(super) fn add(&mut self, way: [&str; 2], method: &str, found: &[&(Vec<f32>, f32)]) {
        let (evidence, shares): (Vec<Vec<f32>>, Vec<f32>) = found.iter().map(|one| (*one).clone()).unzip();
        let all = aggregated(&evidence, &shares, &AGGREGATE_BINS);
        // A bin of few grids may be empty; its mean is no map.
        let full = |bin: &usize| all.counts[*bin] > 0;
        let bins: Vec<usize> = (0..all.counts.len()).filter(full).collect();
        let scale = aggregate_scale(bins.iter().flat_map(|bin| &all.means[*bin]), PERCENTILE);
        let name = way.join("-");
        let sheet = self.sheets.entry(name.clone()).or_insert_with(|| Sheet::new(&name));
        sheet.row(method);
        let mut first = 0;
        for bin in bins {
            let count = all.counts[bin];
            let [best, worst] = [first, first + count - 1].map(|rank| shares[all.order[rank]]);
            first += count;
            let [from, to] = [AGGREGATE_BINS[bin], AGGREGATE_BINS[bin + 1]].map(|share| share * 100.0);
            let heading = format!("{from:.0} to {to:.0} %");
            let shows = format!("mean of {count} maps, localisation {best:.3} to {worst:.3}");
            sheet.add(&heading, &shows, &picture(&all.means[bin], self.scale, scale));
            let [setting, layer] = way;
            self.table.push_str(&format!(
                "{setting},{layer},{method},{from},{to},{count},{best},{worst},{scale}\n"
            ));
        }
    }

    /// Writes the sheets, what stands where in them, and the figures of all bins.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(super) fn write(self, output: &mut OutputWriter) -> Result<(), StageError> {
        let table = ("aggregates.csv".to_owned(), self.table.into_bytes());
        for (path, bytes) in
            self.sheets.into_values().flat_map(|sheet| sheet.into_files("sheets/")).chain([table])
        {
            std::fs::write(output.path(&path)?, bytes)
                .map_err(|error| StageError::because(format!("writing `{path}`"), error))?;
        }
        Ok(())
    }
}

/// A mean of a grid of `cells` by `cells` with the first cell's border.
fn picture(mean: &[f32], cells: usize, scale: f32) -> RgbImage {
    let side = mean.len().isqrt();
    let cell = side / cells;
    RgbImage::from_fn(side as u32, side as u32, |x, y| {
        let [x, y] = [x as usize, y as usize];
        let is_border = x.max(y) == cell.saturating_sub(1) || (x.max(y) < cell && x.min(y) == 0);
        if is_border {
            return Rgb([255; 3]);
        }
        let share = if scale > 0.0 { mean[y * side + x] / scale } else { 0.0 };
        colour(f64::from(share), false)
    })
}
