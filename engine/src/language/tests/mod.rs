//! Tests of the language: a registry of small kinds, and a way to name a mistake by its text.

mod fuzz;
mod mistakes;
mod random;
mod studies;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Diagnostic, LoadOptions, Loaded, load};
use crate::context::StageContext;
use crate::error::StageError;
use crate::kind::{
    ArtifactType, DefaultCpu, Determinism, InputPort, KindDescription, Numerics, OutputPort,
    ParameterProblem, Registry, StageKind,
};
use crate::pipeline::Limits;

const ROWS: ArtifactType = ArtifactType("table<rows>");
const LABELS: ArtifactType = ArtifactType("table<labels>");
const MODEL: ArtifactType = ArtifactType("model");

fn describe(name: &'static str, inputs: Vec<InputPort>, free_inputs: Option<InputPort>) -> KindDescription {
    KindDescription {
        name,
        summary: "a kind of the tests",
        implementation: 1,
        schema_version: 1,
        numerics: Numerics::Exact,
        cpu: DefaultCpu::One,
        inputs,
        free_inputs,
    }
}

/// Makes a kind that never runs.
macro_rules! kind {
    ($kind:ident, $params:ty, $name:literal, $inputs:expr, $free:expr, $outputs:expr, $check:expr) => {
        struct $kind;

        impl StageKind for $kind {
            type Params = $params;

            fn describe(&self) -> KindDescription {
                describe($name, $inputs, $free)
            }

            fn outputs(&self, params: &$params) -> Vec<OutputPort> {
                let outputs: fn(&$params) -> Vec<(String, ArtifactType)> = $outputs;
                outputs(params)
                    .into_iter()
                    .map(|(name, artifact)| OutputPort::new(name, artifact, ""))
                    .collect()
            }

            fn check(&self, params: &$params) -> Vec<ParameterProblem> {
                let check: fn(&$params) -> Vec<ParameterProblem> = $check;
                check(params)
            }

            fn run(&self, _: &$params, _: &mut StageContext<'_>) -> Result<(), StageError> {
                Ok(())
            }
        }
    };
}

/// How thoroughly.
#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
enum Mode {
    #[default]
    Fast,
    Slow,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct Head {
    /// Layers.
    depth: i64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct MakeParams {
    /// Rows.
    #[schemars(range(min = 1, max = 100))]
    size: i64,
    /// Learning rate.
    #[schemars(range(min = 0.0))]
    lr: f64,
    name: String,
    mode: Mode,
    head: Head,
    weights: Vec<f64>,
    limit: Option<i64>,
}

impl Default for MakeParams {
    fn default() -> Self {
        Self {
            size: 10,
            lr: 0.5,
            name: String::new(),
            mode: Mode::Fast,
            head: Head::default(),
            weights: Vec::new(),
            limit: None,
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct NoParams {}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StrictParams {
    needed: i64,
    #[serde(default)]
    pace: Option<Pace>,
}

/// How thoroughly, and how often.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pace {
    mode: Mode,
    times: Vec<i64>,
}

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
struct PortsParams {
    names: Vec<String>,
}

fn even_size(params: &MakeParams) -> Vec<ParameterProblem> {
    let help = Some("take an even one".to_owned());
    let problem = ParameterProblem { path: "size".into(), message: "it is odd".into(), help };
    if params.size % 2 == 0 { Vec::new() } else { vec![problem] }
}

kind!(
    Make,
    MakeParams,
    "make",
    vec![InputPort::optional("source", &[ArtifactType::FILE], "files")],
    None,
    |_| vec![("rows".into(), ROWS), ("labels".into(), LABELS)],
    even_size
);
kind!(
    Train,
    MakeParams,
    "train.linear",
    vec![
        InputPort::required("rows", &[ROWS], "what to learn from"),
        InputPort::optional("start", &[MODEL], "where to begin"),
    ],
    None,
    |_| vec![("model".into(), MODEL)],
    |_| Vec::new()
);
kind!(
    Gather,
    NoParams,
    "gather",
    vec![InputPort::fan_in("models", &[MODEL], "models to compare")],
    None,
    |_| vec![("page".into(), ArtifactType("page"))],
    |_| Vec::new()
);
kind!(
    Free,
    NoParams,
    "free",
    vec![],
    Some(InputPort::fan_in("", &[], "anything")),
    |_| vec![("page".into(), ArtifactType("page"))],
    |_| Vec::new()
);
kind!(Strict, StrictParams, "strict", vec![], None, |_| vec![("rows".into(), ROWS)], |_| Vec::new());
kind!(
    Ports,
    PortsParams,
    "ports",
    vec![],
    None,
    |params| params.names.iter().map(|name| (name.clone(), ROWS)).collect(),
    |_| Vec::new()
);

/// A kind whose results differ from run to run.
struct Moody;

impl StageKind for Moody {
    type Params = NoParams;

    fn describe(&self) -> KindDescription {
        describe("moody", vec![], None)
    }

    fn outputs(&self, _: &NoParams) -> Vec<OutputPort> {
        vec![OutputPort::new("rows", ROWS, "")]
    }

    fn determinism(&self) -> Determinism {
        Determinism::None
    }

    fn run(&self, _: &NoParams, _: &mut StageContext<'_>) -> Result<(), StageError> {
        Ok(())
    }
}

fn registry() -> Registry {
    Registry::new().with(Moody).with(Make).with(Train).with(Gather).with(Free).with(Strict).with(Ports)
}

const HEADER: &str = "[pipeline]\nname = \"t\"\nformat = 1\n";

/// A study on disk: `pipeline.toml` and further files.
struct Study {
    folder: tempfile::TempDir,
    options: LoadOptions,
}

impl Study {
    /// The text is preceded by the `[pipeline]` section unless it has one.
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { cpu: 8, gpu: 0, memory: Some(1 << 30), tokens: Default::default() };
        let study = Self { folder, options: LoadOptions { limits: Some(limits), ..LoadOptions::default() } };
        let header = if text.contains("[pipeline]") { "" } else { HEADER };
        study.file("pipeline.toml", &format!("{header}{text}"))
    }

    fn file(self, name: &str, text: &str) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn profile(mut self, name: &str) -> Self {
        self.options.profiles.push(name.to_owned());
        self
    }

    fn var(mut self, option: &str) -> Self {
        self.options.vars.push(option.to_owned());
        self
    }

    fn set(mut self, option: &str) -> Self {
        self.options.sets.push(option.to_owned());
        self
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("pipeline.toml")
    }

    fn load(&self) -> Loaded {
        load(&self.path(), &self.options, &registry())
    }

    fn try_profiles(&self, loaded: &mut Loaded) {
        crate::language::try_profiles(&self.path(), &self.options, &registry(), loaded);
    }

    /// Loads a study that has no mistakes and no doubts.
    fn pipeline(&self) -> crate::pipeline::Pipeline {
        let loaded = self.load();
        let text = super::render_text(&loaded.diagnostics, &loaded.sources, false);
        assert!(loaded.diagnostics.is_empty(), "{text}");
        loaded.pipeline.unwrap()
    }

    /// Asserts the codes and the marked texts, in order; texts of other places follow after ` + `.
    #[track_caller]
    fn expect(&self, expected: &[(&str, &str)]) -> Vec<Diagnostic> {
        let loaded = self.load();
        let marked = |diagnostic: &Diagnostic| {
            let labels = diagnostic.primary.iter().chain(&diagnostic.secondary);
            let texts = labels.map(|label| &loaded.sources[label.file].text[label.span.clone()]);
            texts.collect::<Vec<_>>().join(" + ")
        };
        let found: Vec<(String, String)> =
            loaded.diagnostics.iter().map(|one| (one.code.to_owned(), marked(one))).collect();
        let expected: Vec<(String, String)> =
            expected.iter().map(|(code, text)| ((*code).to_owned(), (*text).to_owned())).collect();
        assert_eq!(found, expected, "\n{}", super::render_text(&loaded.diagnostics, &loaded.sources, false));
        assert_eq!(loaded.pipeline.is_some(), !loaded.has_errors());
        loaded.diagnostics
    }
}

/// Whether some help of `diagnostic` contains `text`.
fn helps(diagnostic: &Diagnostic, text: &str) -> bool {
    diagnostic.help.iter().any(|help| help.contains(text))
}
