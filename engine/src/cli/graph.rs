//! `pipe graph`: the study as text, Graphviz, Mermaid or a picture.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::arguments::{Arguments, GraphArguments, GraphFormat};
use super::study::Study;
use super::{CliError, print, print_json};
use crate::action::{producers, topological};
use crate::drawing::{self, Colours, Drawn};
use crate::kind::Registry;
use crate::pipeline::Pipeline;
use crate::plan::{Plan, ShardCount, Wanted};

/// How a stage or a node stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Standing {
    Hit,
    Maybe,
    Run,
}

impl Standing {
    /// A light colour, dark text on which is easy to read.
    fn colour(self) -> &'static str {
        match self {
            Self::Hit => "#d5ecd4",
            Self::Maybe => "#eeeeee",
            Self::Run => "#fbdcb4",
        }
    }
}

/// A stage or a node.
struct Vertex {
    name: String,
    /// With `--status`: the gravest standing of its nodes.
    standing: Option<Standing>,
    /// With `--status` and `--shards`: a second line.
    words: Option<String>,
    /// With `--shards`: the parts of its row-wise nodes, where they are known.
    shards: Option<ShardCount>,
}

/// What is drawn, in topological order.
struct Graph {
    vertices: Vec<Vertex>,
    edges: BTreeSet<(usize, usize)>,
}

pub(crate) fn graph(
    arguments: &Arguments,
    graph: &GraphArguments,
    registry: &Registry,
) -> Result<u8, CliError> {
    let study = Study::load(arguments, &graph.pipeline, registry)?;
    let plan = if graph.status || graph.shards {
        let store = study.open_existing()?;
        Some(study.plan(store.as_ref(), &Wanted::default(), registry.numerics())?.0)
    } else {
        None
    };
    let drawn = Graph::of(&study.pipeline, graph, plan.as_ref());
    if arguments.global.json {
        return print_json(&drawn.json());
    }
    print(&match graph.format {
        GraphFormat::Text => drawn.text(),
        GraphFormat::Dot => drawn.dot(),
        GraphFormat::Mermaid => drawn.mermaid(),
        GraphFormat::Svg => drawn.svg(),
    })
}

impl Graph {
    fn of(pipeline: &Pipeline, arguments: &GraphArguments, plan: Option<&Plan>) -> Self {
        let mut vertices: Vec<Vertex> = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut standings: Vec<BTreeMap<Standing, usize>> = Vec::new();
        let mut edges = BTreeSet::new();
        let label = |index: usize| {
            let node = &pipeline.nodes[index];
            if arguments.nodes { node.name.as_str() } else { node.stage.as_str() }
        };
        for id in topological(pipeline) {
            let name = label(id.0);
            let consumer = *places.entry(name).or_insert_with(|| {
                vertices.push(Vertex { name: name.to_owned(), standing: None, words: None, shards: None });
                standings.push(BTreeMap::new());
                vertices.len() - 1
            });
            if let Some(plan) = plan {
                let standing = match plan.words(id).0 {
                    "hit" => Standing::Hit,
                    "run" => Standing::Run,
                    _ => Standing::Maybe,
                };
                *standings[consumer].entry(standing).or_default() += 1;
                if let Some(count) = plan.shard_count(id).filter(|_| arguments.shards) {
                    let all = vertices[consumer].shards.get_or_insert(ShardCount { total: 0, run: 0 });
                    all.total += count.total;
                    all.run += count.run;
                }
            }
            for producer in producers(&pipeline.nodes[id.0]) {
                // Producers come first in this order.
                if let Some(producer) = places.get(label(producer.0)) {
                    edges.insert((*producer, consumer));
                }
            }
        }
        for (one, standings) in vertices.iter_mut().zip(&standings) {
            let total: usize = standings.values().sum();
            let word = |standing: &Standing| match standing {
                Standing::Hit => "hit",
                Standing::Maybe => "maybe",
                Standing::Run => "run",
            };
            let words: Vec<String> = standings
                .iter()
                .map(|(standing, count)| match total {
                    1 => word(standing).to_owned(),
                    _ => format!("{count} {}", word(standing)),
                })
                .collect();
            one.standing = standings.keys().max().copied().filter(|_| arguments.status);
            let status = one.standing.map(|_| words.join(", "));
            // Where nothing runs, or was not asked for, the number says enough.
            let shards = one.shards.map(|shards| match shards.run {
                run if run > 0 && arguments.status => shards.words(),
                _ => format!("{} parts", shards.total),
            });
            let lines: Vec<String> = status.into_iter().chain(shards).collect();
            one.words = Some(lines.join(", ")).filter(|words| !words.is_empty());
        }
        Self { vertices, edges }
    }

    fn json(&self) -> serde_json::Value {
        let names: Vec<&str> = self.vertices.iter().map(|one| one.name.as_str()).collect();
        let edges: Vec<_> =
            self.edges.iter().map(|(from, to)| json!({ "from": names[*from], "to": names[*to] })).collect();
        let status: BTreeMap<&str, &str> = self
            .vertices
            .iter()
            .filter(|one| one.standing.is_some())
            .filter_map(|one| Some((one.name.as_str(), one.words.as_deref()?)))
            .collect();
        let shards: BTreeMap<&str, serde_json::Value> = self
            .vertices
            .iter()
            .filter_map(|one| {
                let ShardCount { total, run } = one.shards?;
                Some((one.name.as_str(), json!({ "total": total, "run": run })))
            })
            .collect();
        json!({ "version": 1, "nodes": names, "edges": edges, "status": status, "shards": shards })
    }

    fn svg(&self) -> String {
        let drawn = |one: &Vertex| Drawn {
            name: one.name.clone(),
            words: one.words.clone(),
            fill: one.standing.map(Standing::colour),
        };
        let boxes: Vec<Drawn> = self.vertices.iter().map(drawn).collect();
        drawing::svg(&boxes, &self.edges, Colours::ALONE)
    }

    fn text(&self) -> String {
        let mut from: Vec<Vec<&str>> = vec![Vec::new(); self.vertices.len()];
        for (producer, consumer) in &self.edges {
            from[*consumer].push(&self.vertices[*producer].name);
        }
        let line = |(one, from): (&Vertex, &Vec<&str>)| {
            let arrow = if from.is_empty() { String::new() } else { format!("  <- {}", from.join(", ")) };
            let status = one.words.as_ref().map(|words| format!("  ({words})")).unwrap_or_default();
            format!("{}{status}{arrow}\n", one.name)
        };
        self.vertices.iter().zip(&from).map(line).collect()
    }

    fn dot(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut text =
            String::from("digraph study {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n");
        for (index, one) in self.vertices.iter().enumerate() {
            let name = escape(&one.name);
            let words = one.words.as_ref().map(|words| format!("\\n{}", escape(words))).unwrap_or_default();
            let fill =
                one.standing.map(|standing| format!(", style=filled, fillcolor=\"{}\"", standing.colour()));
            text.push_str(&format!("  n{index} [label=\"{name}{words}\"{}];\n", fill.unwrap_or_default()));
        }
        for (from, to) in &self.edges {
            text.push_str(&format!("  n{from} -> n{to};\n"));
        }
        text.push_str("}\n");
        text
    }

    fn mermaid(&self) -> String {
        // Mermaid reads entities by name or number, with `#` for `&`.
        let escape = |text: &str| text.replace('#', "#35;").replace('"', "#quot;");
        let mut text = String::from("graph LR\n");
        for (index, one) in self.vertices.iter().enumerate() {
            let words = one.words.as_ref().map(|words| format!("<br>{words}")).unwrap_or_default();
            text.push_str(&format!("  n{index}[\"{}{words}\"]\n", escape(&one.name)));
        }
        for (from, to) in &self.edges {
            text.push_str(&format!("  n{from} --> n{to}\n"));
        }
        for (index, one) in self.vertices.iter().enumerate() {
            if let Some(standing) = one.standing {
                text.push_str(&format!("  style n{index} fill:{}\n", standing.colour()));
            }
        }
        text
    }
}
