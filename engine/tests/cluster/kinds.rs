//! Kinds that take as long as they are told, and count how often they came to their end.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use pipe_engine::cache::{Digest, part_digest};
use pipe_engine::{
    Artifact, ArtifactType, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort,
    OutputWriter, Registry, StageContext, StageError, StageKind, TablePart,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const NUMBERS: ArtifactType = ArtifactType("table<numbers>");

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// How many parts, or steps.
    count: i64,
    /// How long each takes.
    millis: u64,
    /// Tells stages apart.
    text: String,
    /// How much memory steps take, in MiB.
    megabytes: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { count: 1, millis: 0, text: String::new(), megabytes: 0 }
    }
}

pub(crate) fn registry() -> Registry {
    Registry::new().with(Numbers).with(Double).with(Total).with(Steps).with(Story)
}

fn description(name: &'static str, inputs: Vec<InputPort>) -> KindDescription {
    KindDescription {
        name,
        summary: "a kind of the tests",
        implementation: 1,
        schema_version: 1,
        numerics: Numerics::Exact,
        cpu: DefaultCpu::One,
        inputs,
        free_inputs: None,
    }
}

/// Writes down that an action came to its end.
fn mark(name: &str) -> Result<(), StageError> {
    let Some(folder) = std::env::var_os("PIPE_MARKS") else { return Ok(()) };
    let file = std::fs::File::options().create(true).append(true).open(Path::new(&folder).join(name));
    file.and_then(|mut file| file.write_all(b"x\n"))
        .map_err(|error| StageError::environment("marking", error))
}

fn write(output: &mut OutputWriter, parts: &[Vec<i64>]) -> Result<(), StageError> {
    let mut table = Vec::new();
    for (place, rows) in parts.iter().enumerate() {
        let path = format!("part-{place:05}.txt");
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(output.path(&path)?, text)
            .map_err(|error| StageError::environment("writing", error))?;
        let digests: Vec<Digest> = rows.iter().map(|row| Digest::of(row.to_string().as_bytes())).collect();
        table.push(TablePart { path, digest: part_digest("numbers", 1, &digests), rows: rows.len() as u64 });
    }
    output.set_table(table);
    Ok(())
}

fn read(artifact: &Artifact) -> Result<Vec<i64>, StageError> {
    let mut rows = Vec::new();
    for file in &artifact.files {
        let text = std::fs::read_to_string(&file.location)
            .map_err(|error| StageError::input(&file.location, error.to_string()))?;
        rows.extend(text.lines().filter_map(|line| line.parse::<i64>().ok()));
    }
    Ok(rows)
}

/// A table of as many parts as asked for, of three rows each.
struct Numbers;

impl StageKind for Numbers {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("numbers", Vec::new())
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", NUMBERS, "numbers")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let parts: Vec<Vec<i64>> = (0..params.count).map(|part| vec![part, part + 1, 7 * part]).collect();
        write(context.output("rows")?, &parts)?;
        mark(&format!("numbers{}", params.text))
    }
}

/// Each number twice as large, after a while.
struct Double;

impl StageKind for Double {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("double", vec![InputPort::required("rows", &[NUMBERS], "numbers").class(InputClass::Map)])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", NUMBERS, "numbers")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let rows: Vec<i64> = read(context.input("rows")?)?.into_iter().map(|row| 2 * row).collect();
        for _ in 0..params.millis.div_ceil(10) {
            context.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        write(context.output("rows")?, std::slice::from_ref(&rows))?;
        mark(&format!("double{}-{}", params.text, rows[1]))
    }
}

/// The sum of all numbers, merged from those of the parts.
struct Total;

impl StageKind for Total {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description(
            "total",
            vec![InputPort::required("rows", &[NUMBERS], "numbers").class(InputClass::Reduce)],
        )
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", NUMBERS, "one number")]
    }

    fn merge(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let sums: Vec<i64> =
            context.partials("rows").iter().map(read).collect::<Result<Vec<_>, _>>()?.concat();
        write(context.output("rows")?, &[vec![sums.iter().sum()]])
    }

    fn run(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let sum = read(context.input("rows")?)?.iter().sum();
        write(context.output("rows")?, &[vec![sum]])
    }
}

/// So many steps, each of which depends on the one before, as a training's do.
struct Steps;

impl StageKind for Steps {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let start = InputPort::optional("start", &[], "what the first step depends on");
        description("steps", vec![start])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "the last state")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let failed = |error| StageError::environment("keeping the state", error);
        let start = context.optional_input("start").map_or_else(String::new, |start| start.digest.to_hex());
        let (mut step, mut state) = (0, format!("{}{start}", params.text));
        if let Some(kept) = context.resume()? {
            step = kept.step;
            state = std::fs::read_to_string(kept.folder.join("state")).map_err(failed)?;
        }
        // Of zeros nothing would be taken before they are changed.
        let _memory = std::hint::black_box(vec![1_u8; params.megabytes << 20]);
        while step < params.count as u64 {
            context
                .safe_point(step, |folder| std::fs::write(folder.join("state"), &state).map_err(failed))?;
            std::thread::sleep(Duration::from_millis(params.millis));
            state = Digest::of(format!("{state}{step}").as_bytes()).to_hex();
            step += 1;
            context.progress(step, params.count as u64, "steps", &[]);
        }
        std::fs::write(context.output("out")?.path("state.txt")?, &state).map_err(failed)?;
        mark(&format!("steps{}", params.text))
    }
}

/// How what it reads came about.
struct Story;

impl StageKind for Story {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        description("story", vec![InputPort::required("rows", &[NUMBERS], "numbers")])
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "the stages above and their keys")]
    }

    fn shows_ancestry(&self) -> bool {
        true
    }

    fn run(&self, _: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let text = format!("{:#?}", context.ancestry());
        std::fs::write(context.output("out")?.path("story.txt")?, text)
            .map_err(|error| StageError::environment("writing", error))
    }
}
