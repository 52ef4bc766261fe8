//! What the engine knows of a stage kind: one small trait.
//!
//! A kind states facts (name, version, typed ports), has a plain struct of parameters, and one
//! function that runs. Everything generic (schema, defaults, canonical parameters) follows from the
//! struct; the engine itself sees the object-safe [`AnyKind`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pipe_cache::{Digest, Value};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::answers::ResultTables;
use crate::artifact::Artifact;
use crate::context::StageContext;
use crate::error::StageError;
use crate::export::SheetDrawer;
use crate::reproduce::FileComparison;

/// The type of an artifact, such as `table<images>` or `checkpoint`. The engine only compares it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ArtifactType(pub &'static str);

impl ArtifactType {
    /// Files from outside the study, named by `file:...`.
    pub const FILE: Self = Self("file");
    /// Any tree of files.
    pub const TREE: Self = Self("tree");
}

/// How the rows of an input enter the rows of the outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InputClass {
    /// Row i of the output depends on row i of this input, on parameters and on the inputs of the classes
    /// below, and on nothing else: no other row, no position. Each part is an action of its own, and the
    /// output is the table of what these gave.
    Map,
    /// The same, but what the parts gave are partial results, which [`StageKind::merge`] joins in the order
    /// of the parts.
    Reduce,
    /// The whole input is read.
    Whole,
    /// Of this input a row of the `Map` or `Reduce` input reads only the rows that it names:
    /// [`StageKind::lookup`] says which these are.
    Lookup,
}

/// Of which producers the axis assignments are part of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortAxes {
    /// Of none.
    Ignored,
    /// Of the members of a fan-in or a list; a single artifact has none.
    OfLists,
    /// Of all.
    Always,
}

/// An input port.
#[derive(Clone, Debug)]
pub struct InputPort {
    /// The name under `inputs` in TOML.
    pub name: &'static str,
    /// One sentence for `pipe schema` and for errors.
    pub summary: &'static str,
    /// The types it accepts; empty: any.
    pub accepts: &'static [ArtifactType],
    /// Whether the stage cannot run without it.
    pub required: bool,
    /// Whether a fan-in (`stage[axis=*].port`) or a list of references is accepted.
    pub many: bool,
    /// Which axis assignments are part of the input, and so of the key: a stage sees no others.
    pub axes: PortAxes,
    /// How rows flow.
    pub class: InputClass,
}

impl InputPort {
    /// A required input that is read whole.
    pub const fn required(
        name: &'static str,
        accepts: &'static [ArtifactType],
        summary: &'static str,
    ) -> Self {
        let (axes, class) = (PortAxes::Ignored, InputClass::Whole);
        Self { name, summary, accepts, required: true, many: false, axes, class }
    }

    /// An input that may be left out.
    pub const fn optional(
        name: &'static str,
        accepts: &'static [ArtifactType],
        summary: &'static str,
    ) -> Self {
        Self { required: false, ..Self::required(name, accepts, summary) }
    }

    /// The same port with another class.
    #[must_use]
    pub const fn class(self, class: InputClass) -> Self {
        Self { class, ..self }
    }

    /// An input that takes one or many artifacts, with their axis assignments as metadata.
    pub const fn fan_in(name: &'static str, accepts: &'static [ArtifactType], summary: &'static str) -> Self {
        Self { many: true, axes: PortAxes::Always, ..Self::required(name, accepts, summary) }
    }
}

/// An output port: one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputPort {
    /// The name after the dot in a reference.
    pub name: String,
    /// The type of the artifact.
    pub artifact: ArtifactType,
    /// One sentence.
    pub summary: String,
    /// Of several inputs of class `Map` or `Reduce`, the one whose rows it is made from.
    pub follows: Option<&'static str>,
}

impl OutputPort {
    /// An output port.
    pub fn new(name: impl Into<String>, artifact: ArtifactType, summary: impl Into<String>) -> Self {
        Self { name: name.into(), artifact, summary: summary.into(), follows: None }
    }

    /// The same port, made from the rows of this input alone.
    #[must_use]
    pub fn following(self, input: &'static str) -> Self {
        Self { follows: Some(input), ..self }
    }
}

/// Whether a kind's result may depend on the floating-point environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numerics {
    /// Exact arithmetic only: results are the same on every machine.
    Exact,
    /// Tensor arithmetic: the numerics class of the device enters the key.
    Tensor,
}

/// What a kind promises of its results when it runs twice under one key.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Determinism {
    /// Equal content.
    Bitwise,
    /// Equal numbers but for rounding, in each column and tensor: apart by at most `absolute`, or by at most `relative` of
    /// the greater one. Everything that is no floating-point number is equal.
    Tolerance {
        /// In the unit of the values.
        absolute: f64,
        /// As a share.
        relative: f64,
    },
    /// Nothing: what reads it may differ from run to run too, and `--reproduce` leaves it out.
    None,
}

/// The default of `resources.cpu`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DefaultCpu {
    /// One core.
    One,
    /// All cores of the machine.
    All,
}

/// The facts of a kind.
#[derive(Clone, Debug)]
pub struct KindDescription {
    /// The name in TOML, such as `finetune.classify`.
    pub name: &'static str,
    /// One sentence a newcomer understands.
    pub summary: &'static str,
    /// Raised by hand whenever results change.
    pub implementation: i64,
    /// The version of the schemas of the outputs.
    pub schema_version: i64,
    /// Whether the numerics class enters the key.
    pub numerics: Numerics,
    /// The default of `resources.cpu`.
    pub cpu: DefaultCpu,
    /// The input ports, in the order in which help shows them.
    pub inputs: Vec<InputPort>,
    /// A port for inputs whose names the user chooses (`report`, `command`); its `name` is unused.
    pub free_inputs: Option<InputPort>,
}

/// A mistake in the parameters that their types cannot express.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterProblem {
    /// The parameter, as a dotted path (`head.kind`).
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// A stage kind: what a stage reads, computes and writes.
pub trait StageKind: Send + Sync + 'static {
    /// The parameters: a plain struct, `#[serde(deny_unknown_fields)]`, with defaults.
    /// Use `i64`, `f64`, `bool`, `String`, unit enums, `Vec`, `Option` and nested structs of these.
    type Params: Serialize + DeserializeOwned + JsonSchema;

    /// The facts.
    fn describe(&self) -> KindDescription;

    /// The output ports under these parameters.
    fn outputs(&self, params: &Self::Params) -> Vec<OutputPort>;

    /// What is wrong with the parameters beyond their types; nothing by default.
    fn check(&self, _params: &Self::Params) -> Vec<ParameterProblem> {
        Vec::new()
    }

    /// Parameters that are left out of the key when they equal their default, as (name, default):
    /// lets a kind grow a parameter without invalidating what exists.
    fn key_neutral(&self) -> &'static [&'static str] {
        &[]
    }

    /// Parameters that are never in the key, by name: all that they change of a result, [`Self::numerics`]
    /// says.
    fn outside_key(&self) -> &'static [&'static str] {
        &[]
    }

    /// What results depend on beside parameters and inputs, as a digest by a name that no parameter has: it
    /// enters the key with the parameters. Nothing by default.
    fn surroundings(&self, _params: &Self::Params) -> BTreeMap<String, Digest> {
        BTreeMap::new()
    }

    /// Whether it shows how its inputs came about: then [`StageContext::ancestry`] tells, and the key holds that too, so
    /// it runs whenever a stage above was made anew, though with an equal result. `false` by default.
    fn shows_ancestry(&self) -> bool {
        false
    }

    /// The numerics class of results with these parameters, where they choose it (the device, the data
    /// type); by default that of the program. It counts for kinds of [`Numerics::Tensor`] only.
    fn numerics(&self, _params: &Self::Params) -> Option<String> {
        None
    }

    /// Takes the devices that an action was given, by their slots, where the parameters leave the choice. A kind that
    /// computes on them has to.
    fn take_devices(&self, _params: &mut Self::Params, _gpus: &[usize]) {}

    /// What it promises of its results; equal content by default.
    fn determinism(&self) -> Determinism {
        Determinism::Bitwise
    }

    /// Whether the kind is row-wise with these parameters and inputs (`has` says which are given), if it has
    /// an input of class `Map` or `Reduce`: with "the first hundred rows" it is not, and then runs once on
    /// whole inputs.
    fn is_row_wise(&self, _params: &Self::Params, _has: &dyn Fn(&str) -> bool) -> bool {
        true
    }

    /// A digest per part of `principal` (an input of class `Map` or `Reduce`) of everything that its rows
    /// read of the `Lookup` input `input`; these digests enter the keys of the parts instead of the whole
    /// input. `None`, if rows name what they read by its content, so that nothing is left to be said.
    ///
    /// # Errors
    /// If an artifact is damaged.
    fn lookup(
        &self,
        _params: &Self::Params,
        _principal: (&str, &[Artifact]),
        _input: (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        Ok(None)
    }

    /// Joins what the parts of a `Reduce` input gave: [`StageContext::partials`] has it by output port, in
    /// the order of the parts. The inputs that are read whole are there too. Sums are to be f64 and taken
    /// in that order.
    ///
    /// # Errors
    /// See [`StageError`].
    fn merge(&self, _params: &Self::Params, _context: &mut StageContext<'_>) -> Result<(), StageError> {
        Err(StageError::failed("this kind does not say how its partial results are merged"))
    }

    /// Does the work. On a part of an input of class `Map` or `Reduce`, that input holds this part alone,
    /// other inputs of these classes are missing, and only the outputs that follow it are written, as
    /// tables. Reads inputs from and writes outputs to `context`, nothing else: no clock, no
    /// environment, no network, no other file.
    ///
    /// # Errors
    /// See [`StageError`].
    fn run(&self, params: &Self::Params, context: &mut StageContext<'_>) -> Result<(), StageError>;
}

/// Parameters after defaults were filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedParams {
    /// As JSON, all defaults present: what `show` prints and what [`AnyKind::run`] takes back.
    pub json: serde_json::Value,
    /// The canonical form that enters the key (key-neutral defaults, and what is never in it, left out).
    pub canonical: Value,
    /// The numerics class that they choose; see [`StageKind::numerics`].
    pub numerics: Option<String>,
}

/// The object-safe side of [`StageKind`]: what the engine uses.
pub trait AnyKind: Send + Sync {
    /// The facts.
    fn describe(&self) -> KindDescription;
    /// The JSON Schema of the parameters (draft-07).
    fn schema(&self) -> serde_json::Value;
    /// Parses parameters and fills in defaults.
    ///
    /// # Errors
    /// Problems that the schema could not show.
    fn resolve(&self, params: &serde_json::Value) -> Result<ResolvedParams, Vec<ParameterProblem>>;
    /// The output ports under resolved parameters.
    fn outputs(&self, resolved: &ResolvedParams) -> Vec<OutputPort>;
    /// Whether it shows how its inputs came about; see [`StageKind::shows_ancestry`].
    fn shows_ancestry(&self) -> bool;
    /// What it promises of its results.
    fn determinism(&self) -> Determinism;
    /// Whether the kind is row-wise; see [`StageKind::is_row_wise`].
    fn is_row_wise(&self, resolved: &ResolvedParams, has: &dyn Fn(&str) -> bool) -> bool;
    /// What parts read of a `Lookup` input; see [`StageKind::lookup`].
    ///
    /// # Errors
    /// See [`StageError`].
    fn lookup(
        &self,
        resolved: &ResolvedParams,
        principal: (&str, &[Artifact]),
        input: (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError>;
    /// Joins partial results; see [`StageKind::merge`].
    ///
    /// # Errors
    /// See [`StageError`].
    fn merge(&self, resolved: &ResolvedParams, context: &mut StageContext<'_>) -> Result<(), StageError>;
    /// Runs under resolved parameters.
    ///
    /// # Errors
    /// See [`StageError`].
    fn run(&self, resolved: &ResolvedParams, context: &mut StageContext<'_>) -> Result<(), StageError>;
}

/// Parameters as the kind's own type again.
fn typed<P: DeserializeOwned>(resolved: &ResolvedParams) -> Result<P, StageError> {
    P::deserialize(&resolved.json)
        .map_err(|error| StageError::failed(format!("parameters cannot be read back: {error}")))
}

impl<K: StageKind> AnyKind for K {
    fn describe(&self) -> KindDescription {
        StageKind::describe(self)
    }

    fn schema(&self) -> serde_json::Value {
        let generator = schemars::generate::SchemaSettings::draft07()
            .with(|settings| settings.inline_subschemas = true)
            .into_generator();
        generator.into_root_schema_for::<K::Params>().to_value()
    }

    fn resolve(&self, params: &serde_json::Value) -> Result<ResolvedParams, Vec<ParameterProblem>> {
        let problem = |error: serde_json::Error| {
            vec![ParameterProblem { path: String::new(), message: error.to_string(), help: None }]
        };
        let typed = K::Params::deserialize(params).map_err(problem)?;
        let problems = StageKind::check(self, &typed);
        if !problems.is_empty() {
            return Err(problems);
        }
        let json = serde_json::to_value(&typed).map_err(problem)?;
        let (outside, neutral) = (StageKind::outside_key(self), StageKind::key_neutral(self));
        let defaults = if neutral.is_empty() {
            None
        } else {
            let defaults = K::Params::deserialize(serde_json::json!({})).ok();
            defaults.and_then(|defaults| serde_json::to_value(defaults).ok())
        };
        let in_key = |(name, value): &(&String, &serde_json::Value)| {
            let is_default = || defaults.as_ref().and_then(|defaults| defaults.get(*name)) == Some(value);
            let is_left_out = outside.contains(&name.as_str());
            !is_left_out && (!neutral.contains(&name.as_str()) || !is_default())
        };
        let canonical = match &json {
            serde_json::Value::Object(entries) => {
                let entries =
                    entries.iter().filter(in_key).map(|(name, value)| (name.clone(), canonical(value)));
                let around = StageKind::surroundings(self, &typed);
                let around = around.into_iter().map(|(name, digest)| (name, Value::String(digest.to_hex())));
                Value::Table(entries.chain(around).collect())
            }
            other => canonical(other),
        };
        Ok(ResolvedParams { canonical, numerics: StageKind::numerics(self, &typed), json })
    }

    fn outputs(&self, resolved: &ResolvedParams) -> Vec<OutputPort> {
        match K::Params::deserialize(&resolved.json) {
            Ok(params) => StageKind::outputs(self, &params),
            Err(_) => Vec::new(),
        }
    }

    fn shows_ancestry(&self) -> bool {
        StageKind::shows_ancestry(self)
    }

    fn determinism(&self) -> Determinism {
        StageKind::determinism(self)
    }

    fn run(&self, resolved: &ResolvedParams, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut params = typed(resolved)?;
        StageKind::take_devices(self, &mut params, context.gpus());
        StageKind::run(self, &params, context)
    }

    fn is_row_wise(&self, resolved: &ResolvedParams, has: &dyn Fn(&str) -> bool) -> bool {
        typed(resolved).is_ok_and(|params| StageKind::is_row_wise(self, &params, has))
    }

    fn lookup(
        &self,
        resolved: &ResolvedParams,
        principal: (&str, &[Artifact]),
        input: (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        StageKind::lookup(self, &typed(resolved)?, principal, input)
    }

    fn merge(&self, resolved: &ResolvedParams, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let mut params = typed(resolved)?;
        StageKind::take_devices(self, &mut params, context.gpus());
        StageKind::merge(self, &params, context)
    }
}

/// The canonical form of a JSON value: whole numbers as integers, all others as floats.
pub fn canonical(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None => Value::Float(number.as_f64().unwrap_or(f64::MAX)),
        },
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(items) => Value::List(items.iter().map(canonical).collect()),
        serde_json::Value::Object(entries) => {
            Value::Table(entries.iter().map(|(key, value)| (key.clone(), canonical(value))).collect())
        }
    }
}

/// The figures of an artifact by their names, such as `auroc[split=test]`.
pub type Figures = BTreeMap<String, f64>;

/// Reads the figures of an artifact.
///
/// # Errors
/// If it is damaged.
pub type FigureReader = fn(&Artifact) -> Result<Figures, StageError>;

/// The kinds that a program offers.
#[derive(Clone)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Arc<dyn AnyKind>>,
    /// By type of artifact.
    figures: BTreeMap<&'static str, FigureReader>,
    /// Types of artifacts that tell of no single sample.
    aggregates: BTreeSet<&'static str>,
    numerics: String,
    templates: Vec<Template>,
    devices: fn() -> String,
    tables: Option<ResultTables>,
    sheets: Option<SheetDrawer>,
    comparison: Option<FileComparison>,
    version: &'static str,
}

/// A study to begin with, for `pipe init`.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// What `--template` calls it.
    pub name: &'static str,
    /// What it asks, in a few words.
    pub summary: &'static str,
    /// The pipeline file.
    pub text: &'static str,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            kinds: BTreeMap::new(),
            figures: BTreeMap::new(),
            aggregates: BTreeSet::new(),
            numerics: "cpu;f32".to_owned(),
            templates: Vec::new(),
            devices: || "cpu".to_owned(),
            tables: None,
            sheets: None,
            comparison: None,
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl Registry {
    /// A registry without kinds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind under the name it describes itself with.
    ///
    /// # Panics
    /// If the name is taken: two kinds of one name are a programming error.
    #[must_use]
    pub fn with(mut self, kind: impl StageKind) -> Self {
        let name = StageKind::describe(&kind).name;
        let previous = self.kinds.insert(name, Arc::new(kind));
        assert!(previous.is_none(), "kind `{name}` is registered twice");
        self
    }

    /// Adds a study to begin with; the first is the default.
    #[must_use]
    pub fn with_template(mut self, template: Template) -> Self {
        self.templates.push(template);
        self
    }

    /// The studies to begin with.
    pub fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// Says that no row of artifacts of these types is about a single sample, so that they may be handed on where
    /// samples are private.
    #[must_use]
    pub fn with_aggregates(mut self, types: &[ArtifactType]) -> Self {
        self.aggregates.extend(types.iter().map(|one| one.0));
        self
    }

    /// Whether artifacts of a type tell of no single sample.
    pub(crate) fn is_aggregate(&self, artifact_type: &str) -> bool {
        self.aggregates.contains(artifact_type)
    }

    /// Says how the figures of artifacts of this type are read: what `pipe diff` compares. The engine knows
    /// no tables, and a reader works for whatever is in a store already.
    #[must_use]
    pub fn with_figures(mut self, artifact: ArtifactType, reader: FigureReader) -> Self {
        self.figures.insert(artifact.0, reader);
        self
    }

    /// Says how the values of two files are compared: what `pipe run --reproduce` tells of a result that came out
    /// differently.
    #[must_use]
    pub fn with_comparison(mut self, comparison: FileComparison) -> Self {
        self.comparison = Some(comparison);
        self
    }

    /// How the values of two files are compared, if the engine was told.
    pub(crate) fn comparison(&self) -> Option<FileComparison> {
        self.comparison
    }

    /// The reader of figures for artifacts of this type.
    pub fn figures(&self, artifact_type: &str) -> Option<FigureReader> {
        self.figures.get(artifact_type).copied()
    }

    /// Sets the numerics class of this machine: what enters the key of kinds with tensor arithmetic.
    #[must_use]
    pub fn with_numerics(mut self, class: impl Into<String>) -> Self {
        self.numerics = class.into();
        self
    }

    /// Sets how this machine's devices are found, for people.
    #[must_use]
    pub fn with_devices(mut self, find: fn() -> String) -> Self {
        self.devices = find;
        self
    }

    /// Sets what `--version` says: the version, and facts of the build on further lines.
    #[must_use]
    pub fn with_version(mut self, version: &'static str) -> Self {
        self.version = version;
        self
    }

    /// What `--version` says.
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// Says how results are read as tables: what `pipe query` and `pipe report` ask.
    #[must_use]
    pub fn with_tables(mut self, tables: ResultTables) -> Self {
        self.tables = Some(tables);
        self
    }

    /// Says how results are drawn: what `pipe export --sheets` asks.
    #[must_use]
    pub fn with_sheets(mut self, draw: SheetDrawer) -> Self {
        self.sheets = Some(draw);
        self
    }

    /// How results are drawn, if this program says so.
    pub fn sheets(&self) -> Option<SheetDrawer> {
        self.sheets
    }

    /// How results are read as tables, if this program says so.
    pub fn tables(&self) -> Option<ResultTables> {
        self.tables
    }

    /// The devices of this machine, and why there are no others.
    pub fn devices(&self) -> String {
        (self.devices)()
    }

    /// The numerics class of this machine.
    pub fn numerics(&self) -> &str {
        &self.numerics
    }

    /// The kind of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn AnyKind>> {
        self.kinds.get(name)
    }

    /// All kinds, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Arc<dyn AnyKind>)> {
        self.kinds.iter().map(|(name, kind)| (*name, kind))
    }
}
