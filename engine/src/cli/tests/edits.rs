//! Random studies under random edits: whatever was edited and taken back, the results are those of a clean
//! build, nothing outside of what depends on an edit runs, and nothing at all after a return.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use super::World;

/// Random numbers of the test: SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn line(&mut self) -> String {
        format!("{}{}", char::from(b'a' + self.below(9) as u8), self.below(1000))
    }
}

#[derive(Clone)]
struct Stage {
    kind: &'static str,
    /// Port and what it reads: `file:...` or a port of an earlier stage.
    inputs: Vec<(&'static str, String)>,
    text: u64,
    first: Option<usize>,
    target: usize,
}

/// A study with its source files.
#[derive(Clone)]
struct Study {
    files: BTreeMap<String, Vec<String>>,
    stages: Vec<Stage>,
}

impl Study {
    fn random(random: &mut Random, size: usize) -> Self {
        let mut files = BTreeMap::new();
        for file in 0..=random.below(3) {
            let rows = (0..random.below(120)).map(|_| random.line()).collect();
            files.insert(format!("f{file}.txt"), rows);
        }
        let mut study = Self { files, stages: Vec::new() };
        // Ports that give tables, and ports that give anything.
        let (mut tables, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for index in 0..size {
            let pick = |from: &[String], random: &mut Random| from[random.below(from.len())].clone();
            let kind = if tables.is_empty() {
                "lines"
            } else {
                ["lines", "append", "append", "find", "count", "two"][random.below(6)]
            };
            let (inputs, ports) = match kind {
                "lines" => {
                    let file = format!("file:f{}.txt", random.below(study.files.len()));
                    (vec![("source", file)], vec!["rows"])
                }
                "append" => {
                    let mut inputs = vec![("rows", pick(&tables, random))];
                    if random.below(3) == 0 {
                        inputs.push(("with", pick(&all, random)));
                    }
                    (inputs, vec!["rows"])
                }
                "find" => {
                    (vec![("rows", pick(&tables, random)), ("names", pick(&tables, random))], vec!["rows"])
                }
                "count" => (vec![("rows", pick(&tables, random))], vec!["out"]),
                _ => (
                    vec![("left", pick(&tables, random)), ("right", pick(&tables, random))],
                    vec!["left", "right"],
                ),
            };
            let first = (kind == "append" && random.below(4) == 0).then(|| random.below(30));
            study.stages.push(Stage {
                kind,
                inputs,
                text: random.bits() % 4,
                first,
                target: 4 << random.below(3),
            });
            for port in ports {
                let port_name = format!("s{index}.{port}");
                if port != "out" {
                    tables.push(port_name.clone());
                }
                all.push(port_name);
            }
        }
        study
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        for (index, stage) in self.stages.iter().enumerate() {
            let inputs: Vec<String> =
                stage.inputs.iter().map(|(port, from)| format!("{port} = \"{from}\"")).collect();
            let first = stage.first.map(|first| format!(", first = {first}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "[stage.s{index}]\nkind = \"{}\"\ninputs = {{ {} }}\nparams = {{ text = \"-{}\", target = {}{first} }}",
                stage.kind,
                inputs.join(", "),
                stage.text,
                stage.target,
            );
        }
        text
    }

    /// Writes it down for the program.
    fn write(&self, world: &World) {
        world.write(&self.toml());
        for (name, rows) in &self.files {
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            std::fs::write(world.path(name), text).unwrap();
        }
    }

    /// One random edit; returns the stages that read it at once.
    fn edit(&mut self, random: &mut Random) -> BTreeSet<usize> {
        let names: Vec<String> = self.files.keys().cloned().collect();
        let name = names[random.below(names.len())].clone();
        let rows = self.files.get_mut(&name).unwrap();
        let place = random.below(rows.len() + 1);
        let readers = |stages: &[Stage]| {
            let reads = |stage: &Stage| stage.inputs.iter().any(|(_, from)| *from == format!("file:{name}"));
            (0..stages.len()).filter(|index| reads(&stages[*index])).collect()
        };
        match random.below(6) {
            0 => rows.insert(place, random.line()),
            1 if place < rows.len() => _ = rows.remove(place),
            2 if place < rows.len() => rows[place] = random.line(),
            3 => rows.extend((0..20).map(|_| random.line())),
            _ => {
                let stage = random.below(self.stages.len());
                self.stages[stage].text = random.bits() % 4;
                return [stage].into();
            }
        }
        readers(&self.stages)
    }

    /// The stages and everything that depends on them, by name.
    fn cone(&self, mut stages: BTreeSet<usize>) -> BTreeSet<String> {
        for (index, stage) in self.stages.iter().enumerate() {
            let reads = |from: &str| {
                let producer = from.strip_prefix('s').and_then(|rest| rest.split_once('.'));
                producer
                    .and_then(|(number, _)| number.parse().ok())
                    .is_some_and(|one: usize| stages.contains(&one))
            };
            if stage.inputs.iter().any(|(_, from)| reads(from)) {
                stages.insert(index);
            }
        }
        stages.into_iter().map(|index| format!("s{index}")).collect()
    }
}

/// The published files below a folder, without the list of them.
fn results(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in std::fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with(".published.json") {
                let relative = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
                found.insert(relative, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn edits_and_returns_give_what_a_clean_build_gives() {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(4u64);
    for case in 0..cases {
        let mut random = Random(case);
        let size = 1 + random.below(if case % 4 == 0 { 50 } else { 15 });
        let mut study = Study::random(&mut random, size);
        let world = World::new("");
        let mut built = Vec::new();
        let mut changed: BTreeSet<usize> = (0..size).collect();
        for round in 0..6 {
            study.write(&world);
            assert_eq!(world.pipe("run", &[]), 0, "case {case}, round {round}\n{}", study.toml());
            let started: BTreeSet<String> = world.started().into_iter().collect();
            let cone = study.cone(changed);
            assert!(started.is_subset(&cone), "case {case}, round {round}: {started:?} of {cone:?}");
            let clean = World::new("");
            study.write(&clean);
            assert_eq!(clean.pipe("run", &[]), 0);
            let (here, there) = (results(&world.path("results/w")), results(&clean.path("results/w")));
            assert!(
                here == there,
                "case {case}, round {round}: {:?}\n{}",
                differences(&here, &there),
                study.toml()
            );
            built.push(study.clone());
            // Back to what was built before.
            if round == 3 {
                let before = built[random.below(built.len())].clone();
                before.write(&world);
                assert_eq!(world.pipe("run", &[]), 0);
                assert!(world.started().is_empty(), "case {case}: {:?} ran after a return", world.started());
                study.write(&world);
                assert_eq!(world.pipe("run", &[]), 0);
                assert!(world.started().is_empty(), "case {case}: {:?} ran after a return", world.started());
            }
            changed = (0..1 + random.below(3)).flat_map(|_| study.edit(&mut random)).collect();
        }
    }
}

#[test]
fn random_evictions_change_no_result() {
    for case in 100..103 {
        let mut random = Random(case);
        let size = 2 + random.below(14);
        let mut study = Study::random(&mut random, size);
        let world = World::new("");
        study.write(&world);
        assert_eq!(world.pipe("run", &[]), 0);
        let mut expected = BTreeMap::new();
        for round in 0..6 {
            for _ in 0..1 + random.below(3) {
                let node = format!("s{}", random.below(size));
                assert_eq!(world.pipe("gc", &["--evict", &node, "--apply", "--now"]), 0);
            }
            assert_eq!(world.pipe("run", &[]), 0);
            assert!(world.started().is_empty(), "case {case}, round {round}: {:?}", world.started());
            study.edit(&mut random);
            study.write(&world);
            assert_eq!(world.pipe("run", &[]), 0, "case {case}, round {round}\n{}", study.toml());
            // Each once: nothing is made in vain on the way.
            let mut started = world.started();
            started.dedup();
            assert_eq!(started, world.started(), "case {case}, round {round}");
            assert_eq!(world.pipe("plan", &["--check"]), 0);
            let clean = World::new("");
            study.write(&clean);
            assert_eq!(clean.pipe("run", &[]), 0);
            expected = results(&clean.path("results/w"));
            // Nothing wrong stands there; what nobody read may be missing.
            let here = results(&world.path("results/w"));
            let wrong = here.iter().find(|(name, content)| expected.get(*name) != Some(content));
            assert!(
                wrong.is_none(),
                "case {case}, round {round}: {:?}\n{}",
                wrong.map(|one| one.0),
                study.toml()
            );
        }
        assert_eq!(world.pipe("verify", &[]), 0);
        assert_eq!(world.pipe("run", &["--force", "*"]), 0);
        assert!(results(&world.path("results/w")) == expected, "case {case}");
    }
}

fn differences(here: &BTreeMap<String, Vec<u8>>, there: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
    names.into_iter().filter(|name| here.get(*name) != there.get(*name)).cloned().collect()
}

/// What `why` tells of a change whose cause has run already: how much of the table is new, and the first cause.
#[test]
fn why_follows_a_change_to_its_source() {
    let study = |text: &str| {
        format!(
            "[stage.rows]\nkind = \"lines\"\ninputs = {{ source = \"file:rows.txt\" }}\n\
             [stage.long]\nkind = \"append\"\ninputs = {{ rows = \"rows\" }}\nparams = {{ text = \"{text}\" }}\n\
             [stage.longer]\nkind = \"append\"\ninputs = {{ rows = \"long\" }}\nparams = {{ text = \".\" }}\n"
        )
    };
    let world = World::new(&study("!"));
    let rows = |count: usize| -> String { (0..count).map(|row| format!("row {row}\n")).collect() };
    std::fs::write(world.path("rows.txt"), rows(100)).unwrap();
    assert_eq!(world.pipe("run", &[]), 0);
    let account = |node: &str| -> Vec<String> {
        let answer = world.answer("why", &[node, "--json"]);
        let causes = answer["nodes"][0]["root_causes"].as_array().unwrap().clone();
        assert_eq!(causes.len(), 1, "{causes:?}");
        serde_json::from_value(causes[0]["account"].clone()).unwrap()
    };
    std::fs::write(world.path("rows.txt"), rows(103)).unwrap();
    assert_eq!(world.pipe("run", &["rows"]), 0);
    let told = account("long");
    assert!(told[0].ends_with("new (+3 rows)") && told[0].contains(" of "), "{told:?}");
    assert_eq!(told[1..], ["`rows`: input `source` changed: `rows.txt` has another content"]);
    assert_eq!(world.pipe("run", &["long"]), 0);
    let told = account("longer");
    assert_eq!(told[1], "`long`: input `rows` changed: `rows` gave another result");
    assert_eq!(told[2..], ["`rows`: input `source` changed: `rows.txt` has another content"]);
    assert_eq!(world.pipe("run", &[]), 0);
    world.write(&study("?"));
    assert_eq!(world.pipe("run", &["long"]), 0);
    let told = account("longer");
    assert!(told[0].contains(" parts are new"), "{told:?}");
    assert!(told[1].starts_with("`long`: param `text` \"!\" -> \"?\" ("), "{told:?}");
}
