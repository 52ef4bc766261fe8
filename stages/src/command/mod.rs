//! The stage kind `command`: any program, with declared inputs and outputs.
//!
//! The program runs in an empty folder of its own, without a shell, and sees what it is given: its arguments,
//! the inputs under `in/`, the environment that is listed. What it declares as outputs is taken from that
//! folder when it has ended well; everything else it leaves there is thrown away.

mod folder;

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::process::Command as Process;
use std::time::Duration;

use pipe_engine::cache::Digest;
use pipe_engine::{
    ArtifactType, DefaultCpu, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem, PortAxes,
    Program, StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use folder::WorkingFolder;

/// How long a program has to end by itself when its action is to stop.
const GRACE: Duration = Duration::from_secs(10);

/// The port of a command whose outputs have no names.
const PORT: &str = "out";

/// Parameters of `command`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = require)]
pub struct Params {
    /// The program and its arguments; no shell reads them. A program without `/` is looked for in PATH.
    pub argv: Vec<String>,
    /// What it writes, as paths in its working folder; a path that ends in `/` is a folder. A list gives one
    /// output `out` with all of it, a table one output for each name.
    pub outputs: Outputs,
    /// Variables of the environment beside PATH: `NAME` passes one on, and another value is another result;
    /// `NAME=value` sets one.
    pub env: Vec<String>,
    /// Names of variables that are passed on and whose values are in no key, because no result depends on them:
    /// credentials, places of caches.
    pub untracked_env: Vec<String>,
}

/// What a command writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Outputs {
    /// All of it is one output.
    Paths(Vec<String>),
    /// Each is an output of its own.
    Named(BTreeMap<String, String>),
}

impl Default for Outputs {
    fn default() -> Self {
        Self::Paths(Vec::new())
    }
}

impl Outputs {
    /// (port, path), with the place of each among the parameters.
    fn all(&self) -> Vec<(&str, &str, String)> {
        match self {
            Self::Paths(paths) => {
                paths.iter().map(|path| (PORT, path.as_str(), "outputs".to_owned())).collect()
            }
            Self::Named(named) => named
                .iter()
                .map(|(port, path)| (port.as_str(), path.as_str(), format!("outputs.{port}")))
                .collect(),
        }
    }
}

/// Parameters that have no sensible default, though the rest of a mistaken study is looked at with one.
fn require(schema: &mut schemars::Schema) {
    schema.insert("required".to_owned(), serde_json::json!(["argv", "outputs"]));
    // An empty list is no default that anyone could mean.
    for name in ["argv", "outputs"] {
        if let Some(property) =
            schema.pointer_mut(&format!("/properties/{name}")).and_then(|one| one.as_object_mut())
        {
            property.remove("default");
        }
    }
}

/// The kind.
pub struct Command;

impl StageKind for Command {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        let any = InputPort::optional("", &[], "a path `in/NAME` for the program, never written to");
        KindDescription {
            name: "command",
            summary: "runs a program with declared inputs and outputs",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Exact,
            cpu: DefaultCpu::One,
            inputs: Vec::new(),
            free_inputs: Some(InputPort { many: true, axes: PortAxes::OfLists, ..any }),
        }
    }

    fn outputs(&self, params: &Params) -> Vec<OutputPort> {
        let port = |name: &str, summary| OutputPort::new(name, ArtifactType::TREE, summary);
        match &params.outputs {
            Outputs::Paths(_) => vec![port(PORT, "what the program wrote")],
            Outputs::Named(named) => named.iter().map(|(name, path)| port(name, path.as_str())).collect(),
        }
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems = Vec::new();
        let mut problem = |path: &str, message: String, help: &str| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: Some(help.to_owned()) });
        };
        if params.argv.first().is_none_or(String::is_empty) {
            problem(
                "argv",
                "it names no program".to_owned(),
                "write `argv = [\"PROGRAM\", \"ARGUMENT\", ...]`",
            );
        }
        if params.argv.iter().chain(&params.env).any(|text| text.contains('\0')) {
            problem("argv", "a NUL character cannot be passed on".to_owned(), "leave it out");
        }
        let outputs = params.outputs.all();
        if outputs.is_empty() {
            problem(
                "outputs",
                "a command without outputs has no result".to_owned(),
                "write `outputs = [\"FILE\"]`",
            );
        }
        for (index, (port, path, place)) in outputs.iter().enumerate() {
            if !is_name(port) {
                problem(place, format!("`{port}` cannot name an output"), "a name is [a-z][a-z0-9_]*");
            }
            if !is_inside(path) {
                problem(
                    place,
                    format!("`{path}` is no path in the working folder"),
                    "a path is relative, without `.` and `..`, and does not lie in `in/`",
                );
            }
            let parts =
                |path: &str| path.trim_end_matches('/').split('/').map(str::to_owned).collect::<Vec<_>>();
            let overlaps = |other: &str| {
                parts(path).starts_with(&parts(other)) || parts(other).starts_with(&parts(path))
            };
            if let Some((_, other, _)) = outputs[..index].iter().find(|(_, other, _)| overlaps(other)) {
                problem(place, format!("`{path}` and `{other}` overlap"), "each file belongs to one output");
            }
        }
        for variable in &params.env {
            if variable.split('=').next().is_none_or(str::is_empty) {
                problem("env", format!("`{variable}` names no variable"), "write `NAME` or `NAME=value`");
            }
        }
        for variable in params.untracked_env.iter().filter(|one| one.is_empty() || one.contains(['=', '\0']))
        {
            problem("untracked_env", format!("`{variable}` names no variable"), "write `NAME`");
        }
        problems
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["untracked_env"]
    }

    fn surroundings(&self, params: &Params) -> BTreeMap<String, Digest> {
        let passed = params.env.iter().filter(|variable| !variable.contains('='));
        let value = |name: &String| {
            let value = std::env::var_os(name)?;
            Some((format!("value of {name}"), Digest::of(value.as_encoded_bytes())))
        };
        passed.filter_map(value).collect()
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let Some((program, arguments)) = params.argv.split_first() else {
            return Err(StageError::failed("`argv` names no program"));
        };
        let folder = WorkingFolder::make(context)?;
        let mut command = Process::new(program);
        command.args(arguments).current_dir(folder.path()).env_clear();
        environment(&mut command, params, context, &folder);
        let program = Program {
            command,
            name: program.clone(),
            scratch: context.scratch()?,
            memory: context.memory(),
            grace: GRACE,
            listener: None,
        };
        program.run(context.host())?;
        folder.check_inputs()?;
        let mut found = Vec::new();
        for (port, path, _) in params.outputs.all() {
            found.push((port, folder.find(path)?));
        }
        for is_linked in [true, false] {
            for (port, files) in &found {
                let writer = context.output(port)?;
                for file in files.iter().filter(|file| file.is_linked == is_linked) {
                    file.take(writer)?;
                }
            }
        }
        Ok(())
    }
}

/// The environment: what is listed, and what holds a program to its folder, its cores and its devices.
fn environment(command: &mut Process, params: &Params, context: &StageContext<'_>, folder: &WorkingFolder) {
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.env("HOME", folder.home()).env("TMPDIR", folder.temporary());
    command.env("LANG", "C.UTF-8");
    let threads = context.threads().to_string();
    for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"] {
        command.env(name, &threads);
    }
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    command.env("CUDA_VISIBLE_DEVICES", devices(context.gpus(), visible.as_deref()));
    for variable in params.env.iter().chain(&params.untracked_env) {
        match variable.split_once('=') {
            Some((name, value)) => _ = command.env(name, value),
            None => {
                if let Some(value) = std::env::var_os(variable) {
                    command.env(variable, value);
                }
            }
        }
    }
}

/// Slots as a program names devices: those of this process's list, if it has one.
fn devices(slots: &[usize], visible: Option<&str>) -> String {
    let names: Option<Vec<&str>> = visible.map(|list| list.split(',').map(str::trim).collect());
    let name = |slot: &usize| match &names {
        Some(names) => names.get(*slot).map_or_else(|| slot.to_string(), |name| (*name).to_owned()),
        None => slot.to_string(),
    };
    slots.iter().map(name).collect::<Vec<_>>().join(",")
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Whether a path stays in the working folder, and out of the inputs.
fn is_inside(path: &str) -> bool {
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    let mut components = Path::new(trimmed).components();
    let plain = components.clone().all(|part| matches!(part, Component::Normal(_)));
    let first = components.next().and_then(|part| part.as_os_str().to_str());
    // `a//b` and `a/.` have the components of other paths.
    let same = trimmed.split('/').all(|part| !part.is_empty() && part != ".");
    plain && same && !trimmed.contains(['\0', '\\']) && first.is_some_and(|first| first != folder::INPUTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_working_folder() {
        for good in ["a.txt", "dir/", "a/b.txt", "inner/x", "..a"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in
            ["", "/", "/etc/passwd", "../a", "a/../b", "./a", "a/./b", "a//b", "a//", "in", "in/a", "a\\b"]
        {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn devices_have_the_names_of_this_process() {
        assert_eq!(devices(&[], None), "");
        assert_eq!(devices(&[0, 2], None), "0,2");
        assert_eq!(devices(&[1], Some("4, GPU-77")), "GPU-77");
        assert_eq!(devices(&[], Some("4")), "");
    }

    #[test]
    fn mistakes_name_their_parameter() {
        let named = |pairs: &[(&str, &str)]| {
            Outputs::Named(
                pairs.iter().map(|(name, path)| ((*name).to_owned(), (*path).to_owned())).collect(),
            )
        };
        let params = |argv: &[&str], outputs: Outputs| Params {
            argv: argv.iter().map(|one| (*one).to_owned()).collect(),
            outputs,
            ..Params::default()
        };
        let places = |params: &Params| -> Vec<String> {
            Command.check(params).into_iter().map(|problem| problem.path).collect()
        };
        assert_eq!(places(&params(&["cat"], named(&[("a", "x"), ("b", "y/")]))), [] as [&str; 0]);
        assert_eq!(places(&params(&[], Outputs::default())), ["argv", "outputs"]);
        assert_eq!(
            places(&params(&["cat"], named(&[("A", "x"), ("b", "../y")]))),
            ["outputs.A", "outputs.b"]
        );
        assert_eq!(places(&params(&["cat"], named(&[("a", "x/"), ("b", "x/y")]))), ["outputs.b"]);
        assert_eq!(
            places(&Params { env: vec!["=1".to_owned()], ..params(&["a"], named(&[("a", "x")])) }),
            ["env"]
        );
    }
}
