//! What an export says of itself: `ro-crate-metadata.json` (RO-Crate 1.1, profile Workflow Run Crate 0.5,
//! the versions that readers know) and a page for people.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use pipe_cache::{Digest, RunFolder};
use serde_json::{Map, Value as Json, json};

use super::{Execution, Written};
use crate::difference::flat_params;
use crate::history::StoredPlan;
use crate::journal::Journal;

const SPECIFICATION: &str = "https://w3id.org/ro/crate/1.1";
const WORKFLOW_CRATE: &str = "https://w3id.org/workflowhub/workflow-ro-crate/1.0";
const PROFILES: [&str; 2] =
    ["https://w3id.org/ro/wfrun/process/0.5", "https://w3id.org/ro/wfrun/workflow/0.5"];

/// What is known of an exported run.
pub(super) struct Description<'a> {
    pub(super) run: &'a RunFolder,
    pub(super) plan: &'a StoredPlan,
    /// None if its events are not there.
    pub(super) journal: Option<&'a Journal>,
    pub(super) executions: &'a [Execution],
    /// The files of the study; the pipeline file first.
    pub(super) study: &'a [Written],
    /// The run's own files and the records.
    pub(super) kept: &'a [Written],
    /// The exported files of each output, by its folder.
    pub(super) outputs: &'a BTreeMap<String, Vec<Written>>,
}

/// The entities of a crate, each once.
#[derive(Default)]
struct Graph {
    entities: Vec<Json>,
    known: BTreeSet<String>,
}

impl Graph {
    /// Adds an entity; returns what refers to it.
    fn add(&mut self, id: &str, entity: Json) -> Json {
        if self.known.insert(id.to_owned()) {
            let mut object = Map::new();
            object.insert("@id".to_owned(), id.into());
            if let Json::Object(fields) = entity {
                for (name, value) in fields {
                    match value {
                        Json::Null => {}
                        // A list of one is written as that one.
                        Json::Array(mut items) if items.len() < 2 => {
                            object.extend(items.pop().map(|item| (name, item)));
                        }
                        value => _ = object.insert(name, value),
                    }
                }
            }
            self.entities.push(Json::Object(object));
        }
        reference(id)
    }

    fn file(&mut self, file: &Written) -> Json {
        let name = file.path.rsplit('/').next().unwrap_or(&file.path);
        let entity = json!({
            "@type": "File", "name": name, "contentSize": file.bytes.to_string(), "sha256": file.sha256,
            "encodingFormat": media_type(&file.path),
        });
        self.add(&relative(&file.path), entity)
    }
}

fn reference(id: &str) -> Json {
    json!({ "@id": id })
}

impl Description<'_> {
    /// The metadata document.
    pub(super) fn metadata(&self) -> Json {
        let mut graph = Graph::default();
        let conforms: Vec<Json> = PROFILES
            .into_iter()
            .chain([WORKFLOW_CRATE])
            .map(|profile| {
                let version = profile.rsplit('/').next().unwrap_or_default();
                let name = profile.rsplit('/').nth(1).unwrap_or_default();
                graph.add(profile, json!({ "@type": "CreativeWork", "name": name, "version": version }))
            })
            .collect();
        let engine = graph.add(
            "#pipe",
            json!({
                "@type": "SoftwareApplication", "name": "pipe", "softwareVersion": self.version(),
            }),
        );
        let language = graph.add(
            "#pipeline-toml",
            json!({
                "@type": "ComputerLanguage", "name": "pipe pipeline file (TOML)", "url": "https://toml.io/",
            }),
        );
        let study: Vec<Json> = self.study.iter().map(|file| graph.file(file)).collect();
        let kept: Vec<Json> = self.kept.iter().map(|file| graph.file(file)).collect();
        let read_me = graph.add(
            "README.md",
            json!({ "@type": "File", "name": "README.md", "encodingFormat": "text/markdown", "about": { "@id": "./" } }),
        );
        let results = self.results(&mut graph);
        let actions = self.actions(&mut graph, &results, &engine);
        let whole = self.whole_run(&mut graph, &study, &results, &engine);
        let licence = graph.add("#licence", json!({
            "@type": "CreativeWork", "name": "Not stated",
            "description": "The terms of the data sets and models that the study reads apply to what was made of them.",
        }));
        let mut parts = study.clone();
        parts.extend(results.values().cloned());
        parts.extend(kept);
        parts.push(read_me);
        let mut mentions = vec![whole];
        mentions.extend(actions);
        if let Some(pipeline) = graph
            .entities
            .iter_mut()
            .find(|entity| Some(&entity["@id"]) == study.first().map(|file| &file["@id"]))
        {
            pipeline["@type"] = json!(["File", "SoftwareSourceCode", "ComputationalWorkflow"]);
            pipeline["name"] = self.plan.pipeline.clone().into();
            pipeline["programmingLanguage"] = language;
            if let Some(digest) = self.journal.and_then(|journal| journal.began["digest"].as_str()) {
                pipeline["version"] = format!("b3:{digest}").into();
            }
            if study.len() > 1 {
                pipeline["hasPart"] = Json::Array(study[1..].to_vec());
            }
        }
        let mut root = json!({
            "@id": "./", "@type": "Dataset", "name": self.title(), "description": self.summary(),
            "datePublished": self.ended(), "license": licence, "conformsTo": conforms,
            "hasPart": parts, "mentions": mentions,
        });
        if let Some(pipeline) = study.first() {
            root["mainEntity"] = pipeline.clone();
        }
        let descriptor = json!({
            "@id": "ro-crate-metadata.json", "@type": "CreativeWork", "about": { "@id": "./" },
            "conformsTo": [{ "@id": SPECIFICATION }, { "@id": WORKFLOW_CRATE }],
        });
        graph.entities.splice(0..0, [descriptor, root]);
        json!({
            "@context": [format!("{SPECIFICATION}/context"), "https://w3id.org/ro/terms/workflow-run/context"],
            "@graph": graph.entities,
        })
    }

    /// One data set per exported output, by its folder.
    fn results(&self, graph: &mut Graph) -> BTreeMap<String, Json> {
        let mut results = BTreeMap::new();
        for execution in self.executions {
            let outputs = execution.record.iter().flat_map(|record| &record.outputs);
            for (port, output) in outputs {
                let folder = execution.folder(port);
                let Some(files) = self.outputs.get(&folder) else { continue };
                let parts: Vec<Json> = files.iter().map(|file| graph.file(file)).collect();
                let rows = output.rows.map_or(String::new(), |rows| format!(", {rows} rows"));
                let entity = json!({
                    "@type": "Dataset", "name": format!("{}.{port}", execution.name),
                    "description": format!("{}{rows}", output.artifact_type),
                    "identifier": format!("b3:{}", output.content), "hasPart": parts,
                });
                let id = format!("{}/", relative(&folder));
                results.insert(folder, graph.add(&id, entity));
            }
        }
        results
    }

    /// One action per node that was made or failed.
    fn actions(&self, graph: &mut Graph, results: &BTreeMap<String, Json>, engine: &Json) -> Vec<Json> {
        let mut made: BTreeMap<Digest, (String, String)> = BTreeMap::new();
        for execution in self.executions {
            for (port, output) in execution.record.iter().flat_map(|record| &record.outputs) {
                let name = format!("{}.{port}", execution.name);
                made.entry(output.content).or_insert_with(|| (execution.folder(port), name));
            }
        }
        let mut actions = Vec::new();
        for execution in self.executions {
            let id = format!("#node/{}", encoded(&execution.name));
            let Some(record) = &execution.record else {
                let Some(failure) = &execution.failure else { continue };
                // No record says of what kind it was: what executed it is the instrument.
                let action = self.journal.and_then(|journal| journal.actions.get(&execution.name));
                let time = |time: &String| (!time.is_empty()).then(|| time.clone());
                let entity = json!({
                    "@type": "CreateAction", "name": execution.name, "error": failure, "instrument": engine,
                    "actionStatus": { "@id": "http://schema.org/FailedActionStatus" },
                    "startTime": action.and_then(|action| time(&action.began)),
                    "endTime": action.and_then(|action| time(&action.since)),
                });
                actions.push(graph.add(&id, entity));
                continue;
            };
            let Some(components) = record.components() else { continue };
            let version = format!("{}.{}", components.implementation, components.schema_version);
            let instrument = graph.add(
                &format!("#kind/{}-{version}", encoded(&components.kind)),
                json!({
                    "@type": "SoftwareApplication", "name": components.kind, "softwareVersion": version,
                }),
            );
            let mut objects = Vec::new();
            for (name, value) in flat_params(&components.params) {
                let entity = json!({ "@type": "PropertyValue", "name": name, "value": value });
                objects.push(graph.add(&format!("{id}/{}", encoded(&name)), entity));
            }
            for (input, artifact) in components
                .inputs
                .iter()
                .flat_map(|input| input.artifacts.iter().map(move |artifact| (input, artifact)))
            {
                let digest = artifact.digest;
                objects.push(match made.get(&digest).map(|(folder, name)| (results.get(folder), name)) {
                    Some((Some(result), _)) => result.clone(),
                    Some((None, name)) => graph.add(&format!("#artifact/{digest}"), json!({
                        "@type": "CreativeWork", "name": name, "identifier": format!("b3:{digest}"),
                    })),
                    None => graph.add(&format!("#source/{digest}"), json!({
                        "@type": "CreativeWork", "name": format!("source `{}` of {}", input.name, execution.name),
                        "identifier": format!("b3:{digest}"),
                    })),
                });
            }
            let own: Vec<Json> = record
                .outputs
                .keys()
                .filter_map(|port| results.get(&execution.folder(port)).cloned())
                .collect();
            let end = &record.meta.created;
            let entity = json!({
                "@type": "CreateAction", "name": execution.name, "instrument": instrument,
                "object": objects, "result": own, "startTime": before(end, record.meta.duration_seconds), "endTime": end,
                "description": format!("action key {}, made in run {}", execution.key, record.meta.run),
                "actionStatus": { "@id": "http://schema.org/CompletedActionStatus" },
            });
            actions.push(graph.add(&id, entity));
        }
        actions
    }

    /// The run as one execution of the study.
    fn whole_run(
        &self,
        graph: &mut Graph,
        study: &[Json],
        results: &BTreeMap<String, Json>,
        engine: &Json,
    ) -> Json {
        let failed = self.journal.is_some_and(|journal| journal.status() != "ok");
        let status = if failed { "FailedActionStatus" } else { "CompletedActionStatus" };
        let profiles = self.plan.profiles.iter().map(|profile| ("profile".to_owned(), profile.clone()));
        let overrides = self.journal.map(|journal| &journal.began["overrides"]);
        let set = ["var", "set"].into_iter().flat_map(|kind| {
            let values = overrides.and_then(|overrides| overrides[kind].as_array()).into_iter().flatten();
            values
                .filter_map(|value| value.as_str())
                .filter_map(|value| value.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        let objects: Vec<Json> = profiles
            .chain(set)
            .enumerate()
            .map(|(place, (name, value))| {
                graph.add(
                    &format!("#option/{place}"),
                    json!({ "@type": "PropertyValue", "name": name, "value": value }),
                )
            })
            .collect();
        let entity = json!({
            "@type": "CreateAction", "name": format!("run {}", self.run.id()), "instrument": study.first(),
            "object": objects, "result": results.values().collect::<Vec<_>>(),
            "startTime": self.began(), "endTime": self.ended(), "description": format!("executed by pipe {}", self.version()),
            "actionStatus": { "@id": format!("http://schema.org/{status}") }, "softwareRequirements": engine,
        });
        graph.add(&format!("#run/{}", self.run.id()), entity)
    }

    fn title(&self) -> String {
        format!("Results of the study {}", self.plan.pipeline)
    }

    fn summary(&self) -> String {
        let made = self.executions.iter().filter(|execution| execution.record.is_some()).count();
        format!(
            "{made} of {} results of run {}, which began on {}.",
            self.executions.len(),
            self.run.id(),
            self.began()
        )
    }

    fn version(&self) -> &str {
        self.journal.and_then(|journal| journal.began["versions"]["pipe"].as_str()).unwrap_or("unknown")
    }

    fn began(&self) -> String {
        let written = self.journal.map(|journal| journal.time().to_owned());
        let of_id = || {
            self.run
                .began()
                .and_then(|began| Timestamp::try_from(began).ok())
                .map(|began| format!("{began:.3}"))
        };
        written.or_else(of_id).unwrap_or_default()
    }

    /// When the run ended, or when it began if it did not.
    fn ended(&self) -> String {
        let end =
            self.journal.and_then(|journal| journal.finished.as_ref()?["ts"].as_str().map(str::to_owned));
        end.unwrap_or_else(|| self.began())
    }

    /// `README.md`.
    pub(super) fn read_me(&self) -> String {
        let mut text = format!("# {}\n\n{}\n\n", self.title(), self.summary());
        text.push_str("| folder | content |\n| --- | --- |\n");
        text.push_str("| `results/` | what the nodes made: `stage/port/axis=value/...` |\n");
        text.push_str("| `study/` | the pipeline file and what it includes; `resolved.json`: each node with all its parameters and the digests of its inputs |\n");
        text.push_str("| `records/` | of each node what it was made of, by action key |\n");
        if self.kept.iter().any(|file| file.path.starts_with("run/")) {
            text.push_str("| `run/` | plan, events and logs of the run |\n");
        }
        text.push_str("| `ro-crate-metadata.json` | all of this for machines: a Workflow Run RO-Crate |\n\n");
        if let Some(pipeline) = self.study.first() {
            text.push_str(&format!(
                "Made with pipe {}. To make it again:\n\n    pipe run {}",
                self.version(),
                quoted(&pipeline.path)
            ));
            for profile in &self.plan.profiles {
                text.push_str(&format!(" --profile {}", quoted(profile)));
            }
            for kind in ["var", "set"] {
                let values = self
                    .journal
                    .and_then(|journal| journal.began["overrides"][kind].as_array())
                    .into_iter()
                    .flatten();
                for value in values.filter_map(Json::as_str) {
                    text.push_str(&format!(" --{kind} {}", quoted(value)));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// The time that lies `seconds` before `time`.
fn before(time: &str, seconds: f64) -> Option<String> {
    let time: Timestamp = time.parse().ok()?;
    let earlier = time.checked_sub(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()?;
    Some(format!("{earlier:.3}"))
}

/// For a shell, and for a page.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./=-:,@".contains(&byte);
    if text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''").replace('\n', " "))
    }
}

/// A path as a relative reference (RFC 3986).
fn relative(path: &str) -> String {
    path.split('/').map(encoded).collect::<Vec<String>>().join("/")
}

/// Percent-encoded but for what any part of a path may hold.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~=,".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn media_type(path: &str) -> Option<&'static str> {
    let types = [
        ("parquet", "application/vnd.apache.parquet"),
        ("arrow", "application/vnd.apache.arrow.file"),
        ("json", "application/json"),
        ("jsonl", "application/jsonl"),
        ("html", "text/html"),
        ("csv", "text/csv"),
        ("md", "text/markdown"),
        ("txt", "text/plain"),
        ("log", "text/plain"),
        ("toml", "application/toml"),
        ("safetensors", "application/octet-stream"),
        ("png", "image/png"),
        ("jpg", "image/jpeg"),
        ("zip", "application/zip"),
    ];
    let extension = path.rsplit_once('.')?.1;
    types.into_iter().find(|(name, _)| *name == extension).map(|(_, media_type)| media_type)
}
