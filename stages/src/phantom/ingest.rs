//! The stage kind `ingest.phantom`.

use pipe_engine::{
    ArtifactType, DefaultCpu, KindDescription, Numerics, OutputPort, OutputWriter, ParameterProblem,
    StageContext, StageError, StageKind,
};
use rayon::prelude::*;

use super::export::{NpzFile, with_channels};
use super::params::{Domain, Params};
use super::places::{Place, places};
use super::rows::{Drawn, Row, World};
use super::{checks, figures, tables, twins, volumes};
use crate::artifact;
use crate::ingest::splits::SPLITS;
use crate::table::{Table, TableSchema, TableWriter, WriteOptions, write};

/// Draws phantoms from a seed.
pub struct IngestPhantom;

/// Rows are drawn in blocks of this many: a run can be stopped between them, and pictures wait in memory
/// no longer than their block.
const BLOCK: usize = 512;

impl StageKind for IngestPhantom {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "ingest.phantom",
            summary: "draws images, captions, questions, labels and masks from a seed, with planted truths",
            implementation: 4,
            schema_version: 2,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::All,
            inputs: vec![],
            free_inputs: None,
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let export = params.export.map(|_| {
            OutputPort::new("export", ArtifactType::FILE, "the same in the files of a published data set")
        });
        if params.domain == Domain::Volume {
            let mut ports = vec![
                OutputPort::new("volumes", artifact::VOLUMES, "the volumes, in Hounsfield units"),
                OutputPort::new("labels", artifact::LABELS, "18 abnormalities, a bit each"),
                OutputPort::new("captions", artifact::CAPTIONS, "findings and impressions of the reports"),
                OutputPort::new(
                    "masks",
                    artifact::VOLUME_MASKS,
                    "the finding that is outlined at each voxel",
                ),
                OutputPort::new("expected", artifact::EXPECTED, "figures that the planted truths imply"),
                OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
            ];
            ports.extend(export);
            return ports;
        }
        let mut ports = vec![
            OutputPort::new("images", artifact::IMAGES, "the images, with planted truths as columns"),
            OutputPort::new("labels", artifact::LABELS, "one label per image"),
            OutputPort::new("captions", artifact::CAPTIONS, "one caption per image"),
            OutputPort::new("masks", artifact::MASKS, "expert outlines of lesions or objects"),
            OutputPort::new("expected", artifact::EXPECTED, "figures that the planted truths imply"),
            OutputPort::new("checks", artifact::CHECKS, "counts, and what splits share"),
        ];
        if params.has_questions() {
            ports.push(OutputPort::new("questions", artifact::QUESTIONS, "questions with their answers"));
        }
        if params.has_boxes() {
            ports.push(OutputPort::new("boxes", artifact::BOXES, "one box per lesion or object"));
        }
        if !params.twins.is_empty() {
            ports.push(OutputPort::new("twins", artifact::IMAGES, "counterfactuals of the test rows"));
            ports.push(OutputPort::new("twin_labels", artifact::LABELS, "what the twins show"));
        }
        ports.extend(export);
        ports
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        params.contradictions()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        if params.domain == Domain::Volume {
            return volumes::ingest(params, context);
        }
        let places = places(params);
        let world = World::new(params, &places);
        let provenance = context.provenance().to_owned();
        let images = WriteOptions { shard_rows: params.part_rows(), provenance: &provenance };
        let text = WriteOptions::text(&provenance);
        let schemas = [
            ("images", TableSchema::images(), images),
            ("masks", TableSchema::masks(), images),
            ("labels", TableSchema::labels(), text),
            ("captions", TableSchema::captions(), text),
            ("questions", TableSchema::questions(), images),
            ("boxes", TableSchema::boxes(), text),
        ];
        let mut writers = Vec::new();
        for (port, schema, options) in &schemas {
            let is_wanted = match *port {
                "questions" => params.has_questions(),
                "boxes" => params.has_boxes(),
                _ => true,
            };
            if is_wanted {
                writers.push((*port, TableWriter::new(context.output(port)?, schema, *options)));
            }
        }
        let mut export = match params.export {
            Some(_) => Some(archive(params, &places, context.output("export")?)?),
            None => None,
        };
        let mut rows: Vec<Row> = Vec::with_capacity(places.len());
        for block in places.chunks(BLOCK) {
            context.check_cancelled()?;
            let drawn: Vec<Result<(Row, Drawn), StageError>> =
                block.par_iter().map(|place| world.draw(place)).collect();
            let drawn = drawn.into_iter().collect::<Result<Vec<_>, _>>()?;
            for (port, writer) in &mut writers {
                writer.push(table(port, &world, &drawn)?)?;
            }
            if let Some(archive) = &mut export {
                for (row, Drawn { picture, .. }) in &drawn {
                    let pixels = with_channels(&picture.pixels, picture.channels, params.channels());
                    archive.push(row.place.split, &pixels, &row.label)?;
                }
            }
            rows.extend(drawn.into_iter().map(|(row, _)| row));
            context.progress(rows.len() as u64, places.len() as u64, "images", &[]);
        }
        export.map_or(Ok(()), NpzFile::finish)?;
        for (port, writer) in writers {
            writer.finish(context.output(port)?)?;
        }
        write(context.output("expected")?, &TableSchema::expected(), &figures::table(&world, &rows), text)?;
        checks::of(params, &rows).write(context.output("checks")?, &provenance)?;
        if !params.twins.is_empty() {
            let changed = twins::changed(params, &rows);
            let schemas = [TableSchema::images(), TableSchema::labels()];
            let mut images = TableWriter::new(context.output("twins")?, &schemas[0], images);
            let mut labels = TableWriter::new(context.output("twin_labels")?, &schemas[1], text);
            // Where there is no twin to draw, the tables have their columns all the same.
            for block in std::iter::once(&[][..]).chain(changed.chunks(BLOCK)) {
                context.check_cancelled()?;
                let drawn = twins::tables(params, block)?;
                images.push(drawn.0)?;
                labels.push(drawn.1)?;
            }
            images.finish(context.output("twins")?)?;
            labels.finish(context.output("twin_labels")?)?;
        }
        Ok(())
    }
}

/// MedMNIST's archive for the rows.
fn archive(params: &Params, places: &[Place], output: &OutputWriter) -> Result<NpzFile, StageError> {
    let size = params.size as usize;
    let shape = if params.channels() == 3 { vec![size, size, 3] } else { vec![size, size] };
    NpzFile::create(&output.path("phantoms.npz")?, shape, splits_of(places))
}

/// How many places each split has.
pub(super) fn splits_of(places: &[Place]) -> [usize; 3] {
    SPLITS.map(|split| places.iter().filter(|place| place.split == split).count())
}

/// The table of a port for a block of rows.
fn table(port: &str, world: &World<'_>, rows: &[(Row, Drawn)]) -> Result<Table, StageError> {
    let params = world.params;
    match port {
        "images" => tables::images(params, rows),
        "masks" => tables::masks(rows),
        "labels" => Ok(tables::labels(params, rows)),
        "boxes" => Ok(tables::boxes(rows)),
        "captions" => Ok(tables::captions(params, rows, &|place| world.places[place].id(params))),
        _ => Ok(tables::questions(params, rows)),
    }
}
