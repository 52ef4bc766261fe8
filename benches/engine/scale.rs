//! The program with kinds whose rows are keys alone, so that a table of any length is cut, planned and planned again as a
//! real one would be: `keys` draws a digest per row, `map` works on parts of such a table, `count` sums over them.

use std::process::ExitCode;

use pipe_engine::cache::{Digest, part_digest, part_ends};
use pipe_engine::{
    Artifact, ArtifactType, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort,
    OutputWriter, Registry, StageContext, StageError, StageKind, TablePart,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const KEYS: ArtifactType = ArtifactType("table<keys>");
/// Rows that are drawn at a time.
const DRAWN: u64 = 1 << 18;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// How many rows.
    rows: i64,
    /// Rows of a part.
    part: i64,
    /// The share of rows that differ from those of a table with none: the last ones, or drawn among all.
    changed: f64,
    scattered: bool,
    /// Tells stages apart.
    text: String,
}

impl Default for Params {
    fn default() -> Self {
        Self { rows: 1000, part: 16384, changed: 0.0, scattered: false, text: String::new() }
    }
}

fn description(name: &'static str, inputs: Vec<InputPort>) -> KindDescription {
    KindDescription {
        name,
        summary: "rows that are keys alone",
        implementation: 1,
        schema_version: 1,
        numerics: Numerics::Exact,
        cpu: DefaultCpu::One,
        inputs,
        free_inputs: None,
    }
}

/// Writes one part: a text in the place of what rows would hold.
fn write_part(
    output: &mut OutputWriter,
    place: usize,
    digests: &[Digest],
    text: &str,
) -> Result<TablePart, StageError> {
    let path = format!("part-{place:05}.txt");
    let digest = part_digest("keys", 1, digests);
    std::fs::write(output.path(&path)?, format!("{} {digest} {text}\n", digests.len()))
        .map_err(|error| StageError::environment("writing", error))?;
    Ok(TablePart { path, digest, rows: digests.len() as u64 })
}

struct Keys;

impl StageKind for Keys {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("keys", Vec::new())
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", KEYS, "a key per row")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let rows = params.rows as u64;
        let first_changed = (rows as f64 * (1.0 - params.changed)) as u64;
        let threshold = (params.changed * u64::MAX as f64) as u64;
        let key = |row: u64| {
            let key = Digest::of(&row.to_le_bytes());
            let mut noise = [0; 8];
            noise.copy_from_slice(&key.as_bytes()[8..16]);
            let is_changed = match params.scattered {
                true => u64::from_le_bytes(noise) < threshold,
                false => row >= first_changed,
            };
            if is_changed { Digest::of(&(!row).to_le_bytes()) } else { key }
        };
        let output = context.output("rows")?;
        let (mut parts, mut waiting) = (Vec::new(), Vec::new());
        for start in (0..rows).step_by(DRAWN as usize) {
            waiting.extend((start..rows.min(start + DRAWN)).map(key));
            let mut begin = 0;
            for end in part_ends(&waiting, params.part as usize) {
                parts.push(write_part(output, parts.len(), &waiting[begin..end], "")?);
                begin = end;
            }
            waiting.drain(..begin);
        }
        if !waiting.is_empty() {
            parts.push(write_part(output, parts.len(), &waiting, "")?);
        }
        output.set_table(parts);
        Ok(())
    }
}

fn text_of(artifact: &Artifact) -> Result<String, StageError> {
    let location = &artifact.single_file()?.location;
    std::fs::read_to_string(location).map_err(|error| StageError::input(location, error.to_string()))
}

/// The number of rows that a part says it has.
fn rows_of(text: &str) -> u64 {
    text.split(' ').next().and_then(|rows| rows.parse().ok()).unwrap_or(0)
}

struct Map;

impl StageKind for Map {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("map", vec![InputPort::required("rows", &[KEYS], "keys").class(InputClass::Map)])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", KEYS, "a key per row")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let text = text_of(context.input("rows")?)?;
        let digest = Digest::of(format!("{}{text}", params.text).as_bytes());
        let output = context.output("rows")?;
        std::fs::write(output.path("part-00000.txt")?, format!("{} {digest}\n", rows_of(&text)))
            .map_err(|error| StageError::environment("writing", error))?;
        output.set_table(vec![TablePart { path: "part-00000.txt".to_owned(), digest, rows: rows_of(&text) }]);
        Ok(())
    }
}

struct Count;

impl StageKind for Count {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("count", vec![InputPort::required("rows", &[KEYS], "keys").class(InputClass::Reduce)])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "how many rows")]
    }

    fn merge(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let texts = context.partials("out").iter().map(text_of).collect::<Result<Vec<_>, _>>()?;
        write_count(context, texts.iter().map(|text| rows_of(text.trim())).sum())
    }

    fn run(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let rows = rows_of(&text_of(context.input("rows")?)?);
        write_count(context, rows)
    }
}

fn write_count(context: &mut StageContext<'_>, rows: u64) -> Result<(), StageError> {
    std::fs::write(context.output("out")?.path("count.txt")?, rows.to_string())
        .map_err(|error| StageError::environment("writing", error))
}

fn main() -> ExitCode {
    pipe_engine::main(&Registry::new().with(Keys).with(Map).with(Count))
}
