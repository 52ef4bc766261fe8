//! The arrows of `ARCHITECTURE.md`, held against what Cargo resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

/// What each room may name in its manifest, among the rooms of this workspace.
const ARROWS: [(&str, &[&str]); 8] = [
    ("pipe", &["pipe-engine", "pipe-stages"]),
    ("pipe-stages", &["pipe-engine", "pipe-models", "pipe-attribution"]),
    ("pipe-attribution", &["pipe-models"]),
    ("pipe-models", &[]),
    ("pipe-engine", &["pipe-cache", "pipe-mirror"]),
    ("pipe-mirror", &["pipe-cache"]),
    ("pipe-cache", &[]),
    ("pipe-fuzz", &[]),
];

/// Libraries that know tensors and tables.
const OF_OTHER_ROOMS: [&str; 5] = ["candle", "arrow", "parquet", "polars", "datafusion"];

/// The crates that a build contains: tests of a crate may use more.
struct Graph {
    /// Package id to name.
    names: BTreeMap<String, String>,
    /// Of each package: its name, its licence and where it comes from; none for rooms of this workspace.
    origins: Vec<(String, String, Option<String>)>,
    /// Package id to the ids that its normal and build dependencies resolve to.
    needs: BTreeMap<String, Vec<String>>,
}

impl Graph {
    /// Asks Cargo, for the platform of this machine and without a network.
    fn resolve() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let ask = |arguments: &[&str]| {
            let output = Command::new(&cargo)
                .args(arguments)
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .output()
                .expect("cargo starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("cargo writes UTF-8")
        };
        let version = ask(&["-vV"]);
        let host =
            version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
        let text =
            ask(&["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]);
        let metadata: Json = serde_json::from_str(&text).expect("cargo metadata is JSON");
        let id = |value: &Json| value.as_str().expect("ids are strings").to_owned();
        let list = |value: &Json| value.as_array().expect("a list").clone();
        let names =
            list(&metadata["packages"]).iter().map(|one| (id(&one["id"]), id(&one["name"]))).collect();
        let text_of = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let origins = list(&metadata["packages"]);
        let origins = origins.iter().map(|one| {
            (id(&one["name"]), text_of(&one["license"]), one["source"].as_str().map(str::to_owned))
        });
        let origins = origins.collect();
        let built =
            |dependency: &Json| list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev");
        let needs = list(&metadata["resolve"]["nodes"])
            .iter()
            .map(|node| {
                let needs = list(&node["deps"]);
                (id(&node["id"]), needs.iter().filter(|one| built(one)).map(|one| id(&one["pkg"])).collect())
            })
            .collect();
        Self { names, origins, needs }
    }

    fn id(&self, name: &str) -> &str {
        let found = self.names.iter().find(|(_, known)| *known == name);
        found.map(|(id, _)| id.as_str()).unwrap_or_else(|| panic!("the workspace has no crate `{name}`"))
    }

    /// The names of what a crate depends on directly.
    fn direct(&self, name: &str) -> BTreeSet<&str> {
        self.needs[self.id(name)].iter().map(|id| self.names[id].as_str()).collect()
    }

    /// The names of everything below a crate.
    fn below(&self, name: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut waiting = vec![self.id(name)];
        while let Some(id) = waiting.pop() {
            for need in &self.needs[id] {
                if seen.insert(need.as_str()) {
                    waiting.push(need);
                }
            }
        }
        seen.into_iter().map(|id| self.names[id].as_str()).collect()
    }
}

/// Whether a licence expression (SPDX, or with `/` for `OR`, as it was once written) may be fulfilled by these licences.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    // The places of an operator outside of brackets cut it.
    let cut = |operator: &str| {
        let (mut pieces, mut depth, mut start) = (Vec::new(), 0, 0);
        for (place, character) in expression.char_indices() {
            depth += i32::from(character == '(') - i32::from(character == ')');
            if depth == 0 && place >= start && expression[place..].starts_with(operator) {
                pieces.push(&expression[start..place]);
                start = place + operator.len();
            }
        }
        pieces.push(&expression[start..]);
        pieces
    };
    for (operator, needs_all) in [("/", false), (" OR ", false), (" AND ", true)] {
        let pieces = cut(operator);
        if pieces.len() > 1 {
            let is_allowed = |piece: &&str| is_allowed(piece.trim(), allowed);
            return if needs_all { pieces.iter().all(is_allowed) } else { pieces.iter().any(is_allowed) };
        }
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.contains(expression),
    }
}

#[test]
fn licences_are_read_as_they_are_meant() {
    let allowed = ["MIT", "Apache-2.0"].into();
    for (expression, fine) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("", false),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR Apache-2.0", true),
        ("MIT AND GPL-3.0", false),
        ("MIT AND GPL-3.0 OR Apache-2.0", true),
        ("MIT AND (GPL-3.0 OR Apache-2.0)", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), fine, "{expression}");
    }
}

/// `deny.toml` is for `cargo deny`; its licences and registries hold without it too.
#[test]
fn what_is_compiled_comes_from_where_it_may_under_licences_that_may_be_passed_on() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let text = std::fs::read_to_string(path).expect("deny.toml can be read");
    let rules: toml::Table = toml::from_str(&text).expect("deny.toml is TOML");
    let texts = |table: &str, key: &str| -> Vec<String> {
        let list = rules[table][key].as_array().expect("a list");
        list.iter().map(|text| text.as_str().expect("a text").to_owned()).collect()
    };
    let licences = texts("licenses", "allow");
    let allowed: BTreeSet<&str> = licences.iter().map(String::as_str).collect();
    let graph = Graph::resolve();
    assert!(graph.origins.len() > 200, "{}", graph.origins.len());
    for (name, licence, source) in &graph.origins {
        assert!(is_allowed(licence, &allowed), "`{name}` is under `{licence}`");
        assert!(source.as_ref().is_none_or(|source| source.starts_with("registry+")), "`{name}`: {source:?}");
    }
    let registries: BTreeSet<&String> =
        graph.origins.iter().filter_map(|(_, _, source)| source.as_ref()).collect();
    assert_eq!(registries.len(), 1, "{registries:?}");
    // Each that is allowed is somebody's: what is not needed is taken out.
    for licence in &licences {
        let is_used = graph.origins.iter().any(|(_, expression, _)| expression.contains(licence.as_str()));
        assert!(is_used, "nothing is under `{licence}`");
    }
}

#[test]
fn arrows_point_down_only() {
    let graph = Graph::resolve();
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    for (room, allowed) in ARROWS {
        let named: BTreeSet<&str> = graph.direct(room).intersection(&rooms).copied().collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        assert!(named.is_subset(&allowed), "`{room}` names {named:?}, and may name {allowed:?}");
    }
}

#[test]
fn every_room_is_on_the_map() {
    let graph = Graph::resolve();
    let known: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    let rooms: BTreeSet<&str> = graph
        .names
        .values()
        .map(String::as_str)
        .filter(|name| name.split('-').next() == Some("pipe"))
        .collect();
    assert_eq!(rooms, known);
}

#[test]
fn engine_and_cache_know_no_tensor_and_no_table() {
    let graph = Graph::resolve();
    for room in ["pipe-engine", "pipe-cache"] {
        let below = graph.below(room);
        // The walk saw the whole graph: these two are deep in it.
        assert!(below.contains("blake3") && below.contains("serde_core"), "{room}: {below:?}");
        let strangers: Vec<&&str> = below
            .iter()
            .filter(|name| OF_OTHER_ROOMS.iter().any(|stranger| name.starts_with(stranger)))
            .collect();
        assert!(strangers.is_empty(), "`{room}` depends on {strangers:?}");
    }
    // The same walk finds them where they belong.
    assert!(graph.below("pipe-models").contains("candle-core"));
    assert!(graph.below("pipe-stages").contains("parquet"));
}

#[test]
fn models_and_attribution_work_without_the_engine() {
    let graph = Graph::resolve();
    for room in ["pipe-models", "pipe-attribution"] {
        let below = graph.below(room);
        for stranger in ["pipe-engine", "pipe-cache", "pipe-stages", "clap", "toml"] {
            assert!(!below.contains(stranger), "`{room}` depends on `{stranger}`");
        }
    }
}

/// Only the kernels of `models`, and the settings that the program makes before it has threads.
const UNSAFE: [&str; 3] = ["models/src/ops/", "models/src/process.rs", "src/main.rs"];

#[test]
fn unsafe_code_is_in_the_kernels_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = [
        "attribution/src",
        "cache/src",
        "engine/src",
        "fuzz/src",
        "mirror/src",
        "models/src",
        "src",
        "stages/src",
    ]
    .iter()
    .map(|folder| root.join(folder))
    .collect();
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("every room has a folder `src`") {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("sources are text");
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if code
                .into_iter()
                .any(|line| ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|one| line.contains(one)))
            {
                let relative = path.strip_prefix(root).expect("it lies below the root");
                found.insert(relative.to_string_lossy().into_owned());
            }
        }
    }
    assert!(found.contains("src/main.rs"), "the search finds what is there: {found:?}");
    let strangers: Vec<&String> =
        found.iter().filter(|path| !UNSAFE.iter().any(|allowed| path.starts_with(allowed))).collect();
    assert!(strangers.is_empty(), "unsafe code in {strangers:?}");
}
