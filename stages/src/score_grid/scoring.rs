//! From grids to scores: every method at every layer in every setting.

use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::{
    AttributionError, CutClassifier as _, Evaluator, GridScore, GridSetting, GridTarget, Inputs, Passes,
    grid_evidence, localisation,
};
use pipe_engine::{StageContext, StageError};
use serde_json::json;

use super::aggregate::Aggregates;
use super::grids::Grids;
use super::method::{Explanation, Seen, summed};
use super::network::{Cut, Networks, Place};
use super::{Params, Setting};
use crate::attribute::attribution_error;
use crate::images::count_passes;
use crate::model::{DEVICE, Model, tensor_error};
use crate::table::{Column, Table};

/// Everything that scores are made from.
pub(super) struct Scoring<'a, 'c> {
    params: &'a Params,
    networks: Networks,
    grids: Grids,
    context: &'a StageContext<'c>,
}

/// One way to explain all grids.
#[derive(Clone, Copy)]
struct Way {
    setting: Setting,
    place: Place,
    method: Explanation,
}

/// A row of the table.
struct Row {
    way: Way,
    grid: usize,
    cell: usize,
    value: Result<f32, String>,
}

/// What became of a way: of each grid and cell the evidence and its localisation, or why there is none.
type Outcome = Result<Vec<(Vec<f32>, f32)>, String>;

impl<'a, 'c> Scoring<'a, 'c> {
    /// Reads the inputs and chooses images.
    ///
    /// # Errors
    /// If an input is damaged, or inputs do not fit each other or the parameters.
    pub(super) fn read(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let networks = Networks::new(model, params.side as usize)?;
        let grids = Grids::read(params, networks.model(), context)?;
        Ok(Self { params, networks, grids, context })
    }

    fn scale(&self) -> usize {
        self.params.side as usize
    }

    /// The cells whose class is explained: every one of a whole grid; where cells are by themselves, the first and the
    /// last.
    fn cells(&self, setting: Setting) -> Vec<usize> {
        let count = self.scale() * self.scale();
        match setting {
            Setting::GridPg => (0..count).collect(),
            Setting::DiFull | Setting::DiPart => vec![0, count - 1],
        }
    }

    /// The table of all scores; maps of the first cell go into `aggregates`.
    ///
    /// # Errors
    /// If the model fails or the run is stopped.
    pub(super) fn table(&self, mut aggregates: Option<&mut Aggregates>) -> Result<Table, StageError> {
        let params = self.params;
        let ways: Vec<Way> = params
            .settings
            .iter()
            .flat_map(|setting| params.layers.iter().map(move |place| (*setting, *place)))
            .flat_map(|(setting, place)| {
                params.methods.iter().map(move |method| Way { setting, place, method: *method })
            })
            .collect();
        let mut rows = Vec::new();
        for (done, way) in ways.iter().enumerate() {
            self.context.progress(done as u64, ways.len() as u64, "ways to explain", &[]);
            let cells = self.cells(way.setting);
            let found = self.explain(*way)?;
            for grid in 0..self.grids.len() {
                for (place, cell) in cells.iter().enumerate() {
                    let value = found.as_ref().map_err(Clone::clone);
                    let value = value.map(|found| found[grid * cells.len() + place].1);
                    rows.push(Row { way: *way, grid, cell: *cell, value });
                }
            }
            if let (Some(aggregates), Ok(found)) = (aggregates.as_deref_mut(), &found) {
                let first: Vec<&(Vec<f32>, f32)> = found.iter().step_by(cells.len()).collect();
                aggregates.add([way.setting.name(), way.place.name()], way.method.name(), &first);
            }
        }
        Ok(self.tabulate(&rows))
    }

    fn explain(&self, way: Way) -> Result<Outcome, StageError> {
        let cut = match self.networks.cut(way.place)? {
            Ok(cut) => cut,
            Err(reason) => return Ok(Err(reason)),
        };
        if way.setting == Setting::DiPart && !cut.pools_by_mean() {
            let reason = "what the model says of its last map depends on the whole of it: no part of it can be classified";
            return Ok(Err(reason.to_owned()));
        }
        let cells = self.cells(way.setting);
        let all: Vec<usize> = (0..self.grids.len()).collect();
        let mut found = Vec::with_capacity(all.len() * cells.len());
        for part in all.chunks(self.params.batch.max(1) as usize) {
            self.context.check_cancelled()?;
            match self.part(way, &cut, part, &cells)? {
                Ok(part) => found.extend(part),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(found))
    }

    /// The outcome of some grids.
    fn part(&self, way: Way, cut: &Cut<'_>, part: &[usize], cells: &[usize]) -> Result<Outcome, StageError> {
        let (scale, of_whole_cells) = (self.scale(), self.takes_whole_cells(way.setting));
        let images = self.grids.batch(part, of_whole_cells)?;
        let pixels = images.dims4().map_err(tensor_error)?.2;
        let target =
            |grid: &usize, cell: &usize| GridTarget { cell: *cell, class: self.grids.class(*grid, *cell) };
        let targets: Vec<GridTarget> =
            part.iter().flat_map(|grid| cells.iter().map(move |cell| target(grid, cell))).collect();
        let setting = match way.setting {
            Setting::GridPg => GridSetting::Whole,
            Setting::DiFull => GridSetting::CellOfImage,
            Setting::DiPart => GridSetting::CellOfMap,
        };
        let score = GridScore::new(cut, setting, scale, targets.clone()).map_err(attribution_error)?;
        let score = if way.method.explains_probability() { score.probability() } else { score };
        let once = score.inputs(&images).map_err(attribution_error)?;
        let [rows, columns] = [once.row_shape()[1], once.row_shape()[2]];
        if let Some(reason) = self.indivisible(way.setting, cut, &once)? {
            return Ok(Err(reason));
        }
        // Each grid once for each of its cells that is explained.
        let repeated: Vec<u32> =
            (0..part.len() as u32).flat_map(|grid| std::iter::repeat_n(grid, cells.len())).collect();
        let values = Tensor::new(repeated, &DEVICE).and_then(|rows| once.values().index_select(&rows, 0));
        let inputs = Inputs::new(&values.map_err(tensor_error)?).map_err(attribution_error)?;
        let seen = Seen {
            row_shape: inputs.row_shape(),
            pixels: [pixels, pixels / scale],
            is_input: way.place == Place::Input,
        };
        let method = way.method.method(self.params, &seen);
        let observer = |_: Passes| match self.context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(&score, self.params.batch.max(1) as usize).observed(&observer);
        let attribution = method.attribute(&evaluator, &inputs);
        count_passes(self.context, evaluator.passes());
        let attribution = match attribution {
            Err(AttributionError::NotApplicable(reason)) => return Ok(Err(reason)),
            other => other.map_err(attribution_error)?,
        };
        let maps = summed(&attribution).map_err(tensor_error)?;
        let judged = maps.iter().zip(&targets).map(|(map, target)| {
            let evidence = grid_evidence(map, [rows, columns], [pixels; 2]);
            let share = localisation(&evidence, [pixels; 2], scale, target.cell);
            (evidence, share)
        });
        Ok(Ok(judged.collect()))
    }

    /// Whether cells are as large as the model's images. Where each is seen by itself they always are.
    fn takes_whole_cells(&self, setting: Setting) -> bool {
        setting == Setting::DiFull || self.networks.takes_whole_cells()
    }

    /// Why the last map has no equal parts, if so.
    fn indivisible(
        &self,
        setting: Setting,
        cut: &Cut<'_>,
        inputs: &Inputs,
    ) -> Result<Option<String>, StageError> {
        if setting != Setting::DiPart || inputs.rows() == 0 {
            return Ok(None);
        }
        let map = inputs.values().narrow(0, 0, 1).and_then(|first| cut.to_last_map(&first, None));
        let side = map.and_then(|map| Ok(map.dims4()?.2)).map_err(tensor_error)?;
        let scale = self.scale();
        Ok((!side.is_multiple_of(scale))
            .then(|| format!("the last map of a grid is {side} x {side}: no {scale} x {scale} equal parts")))
    }

    fn tabulate(&self, rows: &[Row]) -> Table {
        let text = |value: &dyn Fn(&Row) -> Option<String>| Column::Utf8(rows.iter().map(value).collect());
        let share = 1.0 / (self.scale() * self.scale()) as f64;
        let classes = &self.networks.model().head.as_ref().map(|head| &head.description.classes);
        let class =
            |row: &Row| classes.and_then(|all| all.get(self.grids.class(row.grid, row.cell))).cloned();
        let parameters = |row: &Row| {
            let cell = self.grids.cell_side();
            let cell = if self.takes_whole_cells(row.way.setting) { cell } else { cell / self.scale() };
            json!({ "side": self.scale(), "cell": cell, "confidence": self.params.confidence }).to_string()
        };
        let value = |row: &Row| row.value.as_ref().ok().map(|value| f64::from(*value));
        let table = Table::new()
            .with("id", text(&|row| Some(format!("grid-{:05}/{}", row.grid, row.cell))))
            .with("method", text(&|row| Some(row.way.method.name().to_owned())))
            .with("metric", text(&|row| Some(row.way.setting.name().to_owned())))
            .with("baseline", text(&|_| None))
            .with("value", Column::Float64(rows.iter().map(value).collect()))
            .with("mask_share", Column::Float64(vec![Some(share); rows.len()]))
            .with("mode", text(&|_| Some("reference".to_owned())))
            .with(
                "reason",
                text(&|row| row.value.as_ref().err().map(|reason| format!("not_applicable: {reason}"))),
            )
            .with("target", text(&class))
            .with("score", text(&|row| Some(score_of(row.way.method).to_owned())))
            .with("better", text(&|_| Some("higher".to_owned())))
            .with("parameters", text(&|row| Some(parameters(row))))
            .with("layer", text(&|row| Some(row.way.place.name().to_owned())));
        let facts: serde_json::Map<String, serde_json::Value> = self
            .params
            .settings
            .iter()
            .map(|setting| (setting.name().to_owned(), json!({ "direction": "higher", "score": "logit" })))
            .collect();
        table
            .with_metadata("metrics", serde_json::Value::Object(facts).to_string())
            .with_metadata("axes", json!(["layer"]).to_string())
    }
}

/// What a method explains.
fn score_of(method: Explanation) -> &'static str {
    if method.explains_probability() { "probability" } else { "logit" }
}
