//! The stage kind `mosaic`: grids of images of distinct classes, by which explanations are judged without any mask of
//! an expert (GridPG: Rao, Böhle and Schiele 2022, "Towards better understanding attribution methods").

mod choice;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use pipe_engine::cache::Digest;
use pipe_engine::{
    DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, StageContext, StageError, StageKind,
};
use pipe_models::Preprocessor;
use pipe_models::preprocess::Picture;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::choice::{Candidates, choose, sure};
use crate::labels::Labels;
use crate::table::{Column, Table, TableSchema, WriteOptions, read_columns, write};
use crate::{artifact, png};

/// Parameters of `mosaic`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Cells a side: as many classes as there are cells are needed.
    #[schemars(range(min = 2, max = 16))]
    pub side: i64,
    /// At most so many mosaics; each image stands in one of them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub count: i64,
    /// The split whose images are taken.
    pub split: String,
    /// With predictions: only images that all of these models classify correctly with at least this probability.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub confidence: f64,
    /// Pixels a side of a cell; the shorter side of the smallest image if there is none.
    #[schemars(range(min = 1, max = 4096))]
    pub cell: Option<i64>,
    /// Decides which images stand together, and where.
    pub seed: i64,
}

impl Default for Params {
    fn default() -> Self {
        Self { side: 2, count: 100, split: "test".to_owned(), confidence: 0.99, cell: None, seed: 0 }
    }
}

/// Puts images of distinct classes together.
pub struct Mosaic;

impl StageKind for Mosaic {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "mosaic",
            summary: "grids of images of distinct classes, with the cell of each class as a mask",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: vec![
                InputPort::required("images", &[artifact::IMAGES], "the images"),
                InputPort::required("labels", &[artifact::LABELS], "their classes"),
                InputPort {
                    required: false,
                    ..InputPort::fan_in(
                        "predictions",
                        &[artifact::PREDICTIONS],
                        "predictions of the models that will be explained",
                    )
                },
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("images", artifact::IMAGES, "each mosaic once per cell"),
            OutputPort::new("labels", artifact::LABELS, "the class of the cell"),
            OutputPort::new("masks", artifact::MASKS, "the cell"),
        ]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let labels = Labels::read(context.input("labels")?)?;
        if labels.description.is_multi_label() {
            let reason = "an image has several of these labels at once; a cell has one class";
            return Err(StageError::input("labels", reason));
        }
        let sure = sure(params.confidence, context)?;
        let candidates = Candidates::new(params, &labels, sure.as_ref());
        let chosen = choose(params, &candidates, &labels.description.classes)?;
        if chosen.len() < params.count as usize {
            context.warn(&format!("images suffice for {} mosaics of {}", chosen.len(), params.count));
        }
        let cells = Cells::read(params, &chosen, context)?;
        context.check_cancelled()?;
        let mosaics: Result<Vec<Vec<u8>>, StageError> =
            chosen.par_iter().map(|mosaic| cells.assembled(mosaic, params.side as usize)).collect();
        let mosaics = mosaics?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::text(&provenance);
        let rows = Rows { params, chosen: &chosen, cell: cells.side };
        let images = rows.images(&mosaics);
        write(
            context.output("images")?,
            &TableSchema::images(),
            &images,
            WriteOptions { shard_rows: 256, ..options },
        )?;
        let names = serde_json::to_string(&labels.description.classes)
            .map_err(|error| StageError::because("writing the names of classes", error))?;
        let table = rows
            .labels()
            .with_metadata("task", labels.description.task.clone())
            .with_metadata("label_names", names);
        write(context.output("labels")?, &TableSchema::labels(), &table, options)?;
        write(context.output("masks")?, &TableSchema::masks(), &rows.masks()?, options)
    }
}

/// An image of a mosaic, with its class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    pub(crate) id: String,
    pub(crate) class: usize,
}

/// The pixels of all chosen images.
struct Cells {
    /// `side * side * 3` values each.
    squares: BTreeMap<String, Vec<u8>>,
    side: usize,
}

impl Cells {
    fn read(params: &Params, chosen: &[Vec<Cell>], context: &StageContext<'_>) -> Result<Self, StageError> {
        let table = read_columns(context.input("images")?, &["image_id", "image"])?;
        let rows: BTreeMap<&str, usize> = table.strings("image_id")?.into_iter().zip(0..).collect();
        let images = table.images("image")?;
        let decode = |cell: &Cell| {
            let missing = || StageError::input("images", format!("the image `{}` is not there", cell.id));
            let row = *rows.get(cell.id.as_str()).ok_or_else(missing)?;
            let (bytes, path) = images[row].as_ref().ok_or_else(missing)?;
            let picture =
                Picture::decode(bytes).map_err(|error| StageError::input(path, error.to_string()))?;
            Ok((cell.id.clone(), picture))
        };
        let pictures: Result<Vec<(String, Picture)>, StageError> =
            chosen.par_iter().flatten().map(decode).collect();
        let pictures = pictures?;
        let smallest = pictures.iter().map(|(_, picture)| picture.width().min(picture.height())).min();
        let side = params.cell.map(|side| side as usize).or(smallest).unwrap_or(1);
        // Square as CLIP makes images square: the shorter side scaled, the middle cut out.
        let preprocessor = Preprocessor::clip(side);
        let square = |(id, picture): &(String, Picture)| {
            let square = preprocessor.square(picture);
            Ok((id.clone(), square.map_err(|error| StageError::input(id, error.to_string()))?))
        };
        let squares: Result<BTreeMap<_, _>, StageError> = pictures.par_iter().map(square).collect();
        Ok(Self { squares: squares?, side })
    }

    /// The file of a mosaic, cells row by row from the top left.
    fn assembled(&self, mosaic: &[Cell], cells: usize) -> Result<Vec<u8>, StageError> {
        let (line, width) = (self.side * 3, self.side * cells);
        let mut pixels = Vec::with_capacity(width * width * 3);
        for row in mosaic.chunks(cells) {
            for y in 0..self.side {
                for cell in row {
                    pixels.extend_from_slice(&self.squares[&cell.id][y * line..(y + 1) * line]);
                }
            }
        }
        png::encode(&pixels, width, width, 3)
    }
}

/// The rows of all tables: one per mosaic and cell.
struct Rows<'a> {
    params: &'a Params,
    chosen: &'a [Vec<Cell>],
    cell: usize,
}

impl Rows<'_> {
    /// Mosaic, place of the cell, and what it shows.
    fn each(&self) -> impl Iterator<Item = (usize, usize, &Cell)> {
        self.chosen.iter().enumerate().flat_map(|(mosaic, cells)| {
            cells.iter().enumerate().map(move |(place, cell)| (mosaic, place, cell))
        })
    }

    fn ids(&self) -> Table {
        Table::new()
            .with("image_id", Column::texts(self.each().map(|(mosaic, place, _)| id(mosaic, place))))
            .with("split", Column::texts(self.each().map(|_| self.params.split.as_str())))
    }

    fn images(&self, mosaics: &[Vec<u8>]) -> Table {
        let side = (self.cell * self.params.side as usize) as i32;
        let size = |value: i32| Column::Int32(self.each().map(|_| Some(value)).collect());
        let file = |(mosaic, _, _): (usize, usize, &Cell)| {
            Some((mosaics[mosaic].clone(), format!("mosaic-{mosaic:05}.png")))
        };
        let digests: Vec<String> = mosaics.iter().map(|bytes| Digest::of(bytes).to_hex()).collect();
        self.ids()
            .with("image", Column::Image(self.each().map(file).collect()))
            .with("width", size(side))
            .with("height", size(side))
            .with("channels", size(3))
            .with("sha", Column::texts(self.each().map(|(mosaic, _, _)| digests[mosaic].as_str())))
            .with("group_id", Column::texts(self.each().map(|(mosaic, _, _)| format!("mosaic-{mosaic:05}"))))
            .with("cell_image_id", Column::texts(self.each().map(|(_, _, cell)| cell.id.as_str())))
    }

    fn labels(&self) -> Table {
        let classes = self.each().map(|(_, _, cell)| Some(vec![cell.class as i64]));
        self.ids().with("label", Column::ListInt64(classes.collect()))
    }

    fn masks(&self) -> Result<Table, StageError> {
        let (cells, cell) = (self.params.side as usize, self.cell);
        let width = cells * cell;
        let file = |place: usize| {
            let inside = |at: usize| at / width / cell == place / cells && at % width / cell == place % cells;
            let pixels: Vec<u8> = (0..width * width).map(|at| u8::from(inside(at)) * u8::MAX).collect();
            png::encode(&pixels, width, width, 1)
        };
        let files = (0..cells * cells).map(file).collect::<Result<Vec<_>, _>>()?;
        let mask =
            |(_, place, _): (usize, usize, &Cell)| Some((files[place].clone(), format!("cell-{place}.png")));
        Ok(self
            .ids()
            .with("region", Column::texts(self.each().map(|(_, place, _)| format!("cell {place}"))))
            .with("mask", Column::Image(self.each().map(mask).collect()))
            .with("pixels", Column::Int64(self.each().map(|_| Some((cell * cell) as i64)).collect())))
    }
}

fn id(mosaic: usize, place: usize) -> String {
    format!("mosaic-{mosaic:05}/{place}")
}
