//! The JSON Schema of pipeline files, for completion and checks in editors.

use serde_json::{Map, Value as Json, json};

use crate::error::FailureClass;
use crate::kind::Registry;

/// The draft-07 schema of a pipeline file with the kinds of `registry`.
///
/// A parameter or input may be a template (`"${...}"`) wherever its own type is wanted.
pub fn schema(registry: &Registry) -> Json {
    let names: Vec<&str> = registry.iter().map(|(name, _)| name).collect();
    let mut rules = Vec::new();
    for (name, kind) in registry.iter() {
        let description = kind.describe();
        let mut params = kind.schema();
        if let Some(table) = params.as_object_mut() {
            table.remove("$schema");
            table.remove("title");
            table.remove("required");
            if let Some(properties) = table.get_mut("properties").and_then(Json::as_object_mut) {
                templates_within(properties);
            }
        }
        let mut inputs = serde_json::Map::new();
        for port in &description.inputs {
            inputs.insert(port.name.to_owned(), reference(port.summary, port.many));
        }
        let additional = match &description.free_inputs {
            Some(port) => reference(port.summary, port.many),
            None => Json::Bool(false),
        };
        rules.push(json!({
            "if": { "required": ["kind"], "properties": { "kind": { "const": name } } },
            "then": { "properties": {
                "kind": { "description": description.summary },
                "params": or_template(params),
                "inputs": or_template(
                    json!({ "type": "object", "properties": inputs, "additionalProperties": additional })
                ),
            } },
        }));
    }
    let mut resources = of_jobs();
    resources.extend([
        ("cpu".to_owned(), count("cores")),
        ("gpu".to_owned(), or_template(json!({ "type": "integer", "minimum": 0 }))),
        (
            "mem".to_owned(),
            json!({ "type": ["string", "integer"], "description": "bytes, or such as \"16GiB\"" }),
        ),
        (
            "time".to_owned(),
            json!({ "type": ["string", "integer"], "description": "seconds, or such as \"4h\"" }),
        ),
    ]);
    let axis_value = json!({ "type": ["string", "integer", "boolean", "object"] });
    let assignments = json!({ "type": "array", "items": { "type": "object" } });
    let stage = json!({
        "type": "object",
        "required": ["kind"],
        "additionalProperties": false,
        "properties": {
            "kind": { "anyOf": [{ "enum": names }, template()], "description": "what the stage does" },
            "doc": { "type": "string", "description": "one sentence for people; never in a key" },
            "matrix": {
                "description": "axes: lists of values, or \"@stage\" for that stage's values; or \"@stage\" for all its assignments",
                "anyOf": [
                    { "type": "string" },
                    { "type": "object", "additionalProperties": {
                        "anyOf": [{ "type": "string" }, { "type": "array", "items": axis_value }] } },
                ],
            },
            "include": or_template(assignments.clone()),
            "exclude": or_template(assignments),
            "inputs": { "description": "a reference, or files, for each input of the kind" },
            "params": { "description": "parameters of the kind" },
            "retry": or_template(json!({ "type": "object", "additionalProperties": false,
                "description": "when a failed action is tried again; never in a key", "properties": {
                "max": or_template(json!({ "type": "integer", "minimum": 0, "maximum": 100, "default": 0 })),
                "backoff": { "type": "string", "description": "before the first time, such as \"30s\"; then twice as long each time" },
                "on": or_template(json!({ "type": "array", "items": { "enum": FailureClass::ALL.map(FailureClass::name) } })) } })),
            "checkpoint": or_template(json!({ "type": "object", "additionalProperties": false,
                "description": "when a long action keeps its state; never in a key", "properties": {
                "every": { "type": ["string", "integer"], "description": "a duration such as \"10min\", or a number of steps" },
                "keep": or_template(json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 2 })),
                "retain": or_template(json!({ "type": "boolean", "default": false })) } })),
            "frozen": or_template(json!({ "type": "array", "items": { "type": "string" },
                "description": "inputs of the form `file:PATH` that never change: they are looked at once, and then by `pipe verify --sources`" })),
            "remote": or_template(json!({ "enum": crate::pipeline::RemotePolicy::ALL.map(crate::pipeline::RemotePolicy::name), "default": "always",
                "description": "which files go into the remote cache: all, those that no other stage reads, or none; never in a key" })),
            "isolate": or_template(json!({ "type": "boolean", "default": false,
                "description": "run in a process of its own; never in a key" })),
            "resources": or_template(json!({ "type": "object",
                "additionalProperties": or_template(json!({ "type": "integer", "minimum": 0, "description": "a token that `[executor.local]` defines" })),
                "properties": resources })),
        },
        "allOf": rules,
    });
    let slurm = json!({ "type": "object", "additionalProperties": false,
        "description": "how jobs of a cluster are submitted; of a stage, what it says itself under `resources` goes first; never in a key",
        "properties": of_jobs() });
    let executor = json!({ "type": "object", "additionalProperties": false, "properties": {
        "use": { "enum": ["local", "slurm"], "description": "where actions run; by default \"local\"; `pipe run --executor` says otherwise" },
        "slurm": slurm,
        "local": { "type": "object", "additionalProperties": false,
            "description": "how much there is for all actions that run at one time; never in a key", "properties": {
            "cpu": or_template(json!({ "type": "integer", "minimum": 1, "description": "cores; by default all" })),
            "mem": { "type": ["string", "integer"], "description": "bytes, or such as \"64GiB\"; by default 80 % of the memory, or the limit of the control group" },
            "gpu": or_template(json!({ "type": "integer", "minimum": 0, "description": "GPUs; by default all that are visible" })),
            "tokens": { "type": "object", "description": "further things of which there are only so many",
                "propertyNames": { "pattern": "^[a-z][a-z0-9_]*$" },
                "additionalProperties": or_template(json!({ "type": "integer", "minimum": 0 })) } } } } });
    let remote = json!({ "type": "object", "additionalProperties": false,
        "description": "where results are kept for other machines too; never in a key", "properties": {
        "url": { "type": "string", "description": "`s3://BUCKET/PREFIX`, or `file:///FOLDER`; the environment variable PIPE_REMOTE says it too" },
        "endpoint": { "type": "string", "description": "the server of the bucket, where it is not Amazon's, such as \"https://s3.example.org\"" },
        "mode": or_template(json!({ "enum": crate::pipeline::RemoteMode::ALL.map(crate::pipeline::RemoteMode::name), "default": "read",
            "description": "whether results are taken from it, and put there too" })) } });
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A study of `pipe`",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "pipeline": { "type": "object", "required": ["name", "format"], "additionalProperties": false, "properties": {
                "name": { "type": "string", "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$" },
                "format": { "const": 1 },
                "doc": { "type": "string" },
                "include": { "type": "array", "items": { "type": "string" } } } },
            "vars": { "type": "object" },
            "stage": { "type": "object", "additionalProperties": stage },
            "executor": executor.clone(),
            "remote": remote.clone(),
            "profile": { "type": "object", "additionalProperties": {
                "type": "object", "additionalProperties": false,
                "properties": { "vars": { "type": "object" }, "set": { "type": "object" }, "executor": executor, "remote": remote } } },
        },
    })
}

fn template() -> Json {
    json!({ "type": "string", "pattern": "\\$\\{" })
}

/// Lets a template stand for each of some properties, and for every value inside them.
fn templates_within(properties: &mut serde_json::Map<String, Json>) {
    for property in properties.values_mut() {
        *property = or_template(with_templates_inside(property.take()));
    }
}

/// The same schema, with templates allowed for its fields and items, at any depth. Alternatives are left for
/// their surroundings to widen.
fn with_templates_inside(schema: Json) -> Json {
    let Json::Object(mut table) = schema else { return schema };
    if let Some(fields) = table.get_mut("properties").and_then(Json::as_object_mut) {
        templates_within(fields);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(of) = table.get_mut(keyword).filter(|of| of.is_object()) {
            *of = or_template(with_templates_inside(of.take()));
        }
    }
    for keyword in ["anyOf", "oneOf", "allOf"] {
        for alternative in table.get_mut(keyword).and_then(Json::as_array_mut).into_iter().flatten() {
            *alternative = with_templates_inside(alternative.take());
        }
    }
    Json::Object(table)
}

fn duration(description: &str) -> Json {
    json!({ "type": ["string", "integer"], "description": description })
}

fn count(description: &str) -> Json {
    or_template(json!({ "type": "integer", "minimum": 1, "description": description }))
}

/// What the section of a cluster and the `resources` of a stage say of jobs.
fn of_jobs() -> Map<String, Json> {
    let name = |description: &str| json!({ "type": "string", "description": description });
    let list = |description: &str| {
        or_template(json!({ "type": "array", "items": { "type": "string" }, "description": description }))
    };
    let option = "the option of `sbatch`, of jobs on a cluster";
    [
        ("partition", name(option)),
        ("account", name(option)),
        ("qos", name(option)),
        ("constraint", name(option)),
        ("reservation", name(option)),
        ("extra_args", list("further arguments of `sbatch`")),
        ("export", list("further variables of the environment that jobs are given")),
        ("setup", name("a line for the shell before the work, such as \"module load cuda\"")),
        ("max_tasks", count("tasks of an array that run at one time; by default 64")),
        ("task_target", duration("planned length of a task; by default \"40min\"")),
        (
            "time_margin",
            duration("before the end of its time a task stops its work; by default \"180s\", at most a quarter of the time"),
        ),
        ("max_submitted", count("tasks in the queue at any time, of a stage or of all; by default 500")),
        (
            "submit_rate",
            json!({ "type": ["string", "number"],
                "description": "submissions of a stage or of all, such as \"1/s\" (the default) or \"30/min\"; five at once" }),
        ),
        (
            "poll",
            duration("between two looks at the queue, the least of what stages say whose jobs are there; by default \"20s\", and up to 120 s while nothing changes"),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The same schema, or a template. Keywords count only for values of their type, so that most schemas
/// need no `anyOf`: editors then show what is wrong at the value, and not around it.
fn or_template(schema: Json) -> Json {
    let Json::Object(mut table) = schema else { return schema };
    let types: Vec<Json> = match table.get("type") {
        Some(Json::String(name)) => vec![name.as_str().into()],
        Some(Json::Array(names)) => names.clone(),
        _ => Vec::new(),
    };
    if types.is_empty() || table.contains_key("enum") || table.contains_key("pattern") {
        return json!({ "anyOf": [table, template()] });
    }
    if !types.contains(&"string".into()) {
        let types: Json = types.into_iter().chain(["string".into()]).collect();
        table.insert("type".to_owned(), types);
        table.insert("pattern".to_owned(), "\\$\\{".into());
    }
    Json::Object(table)
}

fn reference(summary: &str, many: bool) -> Json {
    let one = json!({ "type": "string", "description": summary });
    if many {
        json!({ "anyOf": [one, { "type": "array", "items": one }], "description": summary })
    } else {
        one
    }
}
