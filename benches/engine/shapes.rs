//! The program with two kinds that do next to nothing, so that what is measured is the engine: `copy`
//! concatenates its inputs in this process, `cat` lets a child process do it, as other tools do.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};

use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, Registry, StageContext,
    StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A line that makes the outputs of all stages differ.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct Params {
    line: String,
}

/// Whether a child process does the work.
struct Concatenate {
    name: &'static str,
    with_child: bool,
}

impl StageKind for Concatenate {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: self.name,
            summary: "concatenates its inputs and a line",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort {
                many: true,
                ..InputPort::optional("", &[], "what is concatenated")
            }),
        }
    }

    fn outputs(&self, _: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("out", ArtifactType::TREE, "the text")]
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let inputs = context.all_inputs().flat_map(|(_, artifacts)| artifacts);
        let paths: Vec<_> =
            inputs.flat_map(|input| &input.artifact.files).map(|file| file.location.clone()).collect();
        let path = context.output("out")?.path("out.txt")?;
        let failed = |error| StageError::environment("concatenating", error);
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        if self.with_child {
            let output = Stdio::from(file.try_clone().map_err(failed)?);
            let status = Command::new("cat").args(&paths).stdin(Stdio::null()).stdout(output).status();
            if !status.map_err(failed)?.success() {
                return Err(StageError::failed("`cat` failed"));
            }
        } else {
            for path in &paths {
                std::io::copy(&mut std::fs::File::open(path).map_err(failed)?, &mut file).map_err(failed)?;
            }
        }
        writeln!(file, "{}", params.line).map_err(failed)
    }
}

fn main() -> ExitCode {
    let kind = |name, with_child| Concatenate { name, with_child };
    pipe_engine::main(&Registry::new().with(kind("copy", false)).with(kind("cat", true)))
}
