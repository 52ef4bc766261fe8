//! What one store has made, another one takes from the remote cache: here a folder, whose files can be damaged.

use std::path::PathBuf;

use super::{World, stage};

/// A study whose remote cache lies beside its store.
fn study(world: &World, stages: &str) {
    let url = format!("file://{}", world.path("far").display());
    world.write(&format!("[remote]\nurl = \"{url}\"\nmode = \"read-write\"\n{stages}"));
}

fn three(never: &str) -> String {
    [
        stage("a", "text = \"x\"", ""),
        format!("{}{never}", stage("b", "text = \"y\"", "i = \"a\"")),
        stage("c", "text = \"z\"", "i = \"b\""),
    ]
    .concat()
}

fn forget(world: &World) {
    std::fs::remove_dir_all(world.path(".pipe")).unwrap();
    std::fs::remove_dir_all(world.path("results")).unwrap();
}

fn text(world: &World, node: &str) -> String {
    std::fs::read_to_string(world.path(&format!("results/w/{node}/out/text.txt"))).unwrap()
}

/// The objects of one sort, `cas` or `ac`.
fn objects(world: &World, sort: &str) -> Vec<PathBuf> {
    let Ok(folders) = std::fs::read_dir(world.path("far/v1").join(sort)) else { return Vec::new() };
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths
}

fn blob_of(world: &World, content: &str) -> PathBuf {
    let is = |path: &PathBuf| std::fs::read_to_string(path).unwrap() == content;
    objects(world, "cas").into_iter().find(is).unwrap()
}

#[test]
fn an_empty_store_takes_everything_and_runs_nothing() {
    let world = World::new("");
    study(&world, &three(""));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((objects(&world, "cas").len(), objects(&world, "ac").len()), (3, 3));
    forget(&world);
    assert_eq!(world.pipe("run", &["--remote", "read"]), 0);
    assert_eq!(world.started(), [""; 0]);
    let hits = world.of("action_hit");
    assert!(hits.len() == 3 && hits.iter().all(|hit| hit["source"] == "remote"), "{hits:?}");
    assert_eq!(world.of("run_finished")[0]["counts"]["taken"], 3);
    assert_eq!(["a", "b", "c"].map(|node| text(&world, node)), ["x", "yx", "zyx"]);
    assert_eq!(world.pipe("verify", &[]), 0);
    // Now they are here.
    assert_eq!(world.pipe("plan", &["--check"]), 0);
    // Nobody is asked where nobody shall be.
    for arguments in [["--remote", "off"].as_slice(), &["--offline"]] {
        forget(&world);
        assert_eq!(world.pipe("run", arguments), 0);
        assert_eq!(world.started(), ["a", "b", "c"]);
    }
}

#[test]
fn what_is_damaged_or_gone_there_is_made_again_and_mended() {
    for damage in ["flip", "cut", "remove"] {
        let world = World::new("");
        study(&world, &three(""));
        assert_eq!(world.pipe("run", &[]), 0);
        let blob = blob_of(&world, "yx");
        match damage {
            "flip" => std::fs::write(&blob, "yX").unwrap(),
            "cut" => std::fs::write(&blob, "y").unwrap(),
            _ => std::fs::remove_file(&blob).unwrap(),
        }
        forget(&world);
        assert_eq!(world.pipe("run", &[]), 0, "{damage}");
        assert_eq!(world.started(), ["b"], "{damage}");
        assert_eq!(text(&world, "c"), "zyx");
        assert_eq!(world.of("warning").len(), 0);
        assert_eq!(std::fs::read_to_string(&blob).unwrap(), "yx", "{damage}");
        forget(&world);
        assert_eq!(world.pipe("run", &[]), 0);
        assert_eq!(world.started(), [""; 0], "{damage}");
    }
}

#[test]
fn what_may_not_leave_does_not() {
    let world = World::new("");
    study(&world, &three("remote = \"never\"\n"));
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!((objects(&world, "cas").len(), objects(&world, "ac").len()), (2, 3));
    forget(&world);
    assert_eq!(world.pipe("run", &[]), 0);
    assert_eq!(world.started(), ["b"]);
    // `results`: what another stage reads stays here, the last one goes.
    let world = World::new("");
    let stages = three("remote = \"results\"\n")
        .replace("inputs = { i = \"b\" }", "inputs = { i = \"b\" }\nremote = \"results\"");
    study(&world, &stages);
    assert_eq!(world.pipe("run", &[]), 0);
    let mut kept: Vec<String> =
        objects(&world, "cas").iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    kept.sort();
    assert_eq!(kept, ["x", "zyx"]);
}

#[test]
fn forced_nodes_run_and_other_outputs_are_told() {
    let world = World::new("");
    study(&world, &stage("moody", "does = \"differ\"", ""));
    assert_eq!(world.pipe("run", &[]), 0);
    forget(&world);
    assert_eq!(world.pipe("run", &["--force", "moody"]), 0);
    assert_eq!(world.started(), ["moody"]);
    assert_eq!(world.of("nondeterminism").len(), 1);
    assert_eq!((objects(&world, "ac").len(), objects(&world, "cas").len()), (1, 2));
}

#[test]
fn parts_of_a_table_are_taken_one_by_one() {
    const STAGES: &str = "[stage.table]\nkind = \"lines\"\ninputs = { source = \"file:table.txt\" }\n\
                          [stage.more]\nkind = \"append\"\ninputs = { rows = \"table\" }\nparams = { text = \"!\" }\n";
    let mut lines: Vec<String> = (0..60).map(|line| format!("line {line}")).collect();
    let world = World::new("");
    let write = |lines: &[String]| std::fs::write(world.path("table.txt"), lines.join("\n")).unwrap();
    write(&lines);
    study(&world, STAGES);
    assert_eq!(world.pipe("run", &[]), 0);
    let parts = world.of("run_finished")[0]["shards"].as_u64().unwrap();
    assert!(parts > 6, "{parts}");
    forget(&world);
    lines[30] = "another line".to_owned();
    write(&lines);
    assert_eq!(world.pipe("run", &[]), 0);
    let run = world.of("run_finished")[0]["shards"].as_u64().unwrap();
    assert!((1..=2).contains(&run), "{run} of {parts}");
    let taken = world.of("action_hit").into_iter().filter(|hit| hit["source"] == "remote").count() as u64;
    assert!(taken + 2 >= parts, "{taken}");
}

/// The texts of all results that are in the store.
fn stored(world: &World) -> Vec<String> {
    let folders = std::fs::read_dir(world.path(".pipe/cas")).unwrap();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let mut texts: Vec<String> =
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    texts.sort();
    texts
}

/// Of what is asked for by name, and of what something reads; of all else the records are enough.
#[test]
fn files_come_when_somebody_reads_them() {
    let world = World::new("");
    study(&world, &three(""));
    assert_eq!(world.pipe("run", &[]), 0);
    forget(&world);
    assert_eq!(world.pipe("run", &["c"]), 0);
    assert_eq!((world.started(), stored(&world)), (vec![], vec!["zyx".to_owned()]));
    assert_eq!(text(&world, "c"), "zyx");
    assert_eq!(world.pipe("plan", &["--check"]), 0, "all is known");
    assert_eq!(world.pipe("verify", &[]), 0, "nothing is damaged");
    // Another reader: what it reads comes, and what that was made of does not.
    let changed = three("").replace("text = \"z\"", "text = \"Z\"");
    study(&world, &changed);
    assert_eq!(world.pipe("run", &["c"]), 0);
    assert_eq!((world.started(), text(&world, "c")), (vec!["c".to_owned()], "Zyx".to_owned()));
    assert_eq!(stored(&world), ["Zyx", "yx", "zyx"]);
    // By name it comes; and with everything what is here is published.
    assert_eq!(world.pipe("run", &["a"]), 0);
    assert_eq!((world.started(), text(&world, "a")), (vec![], "x".to_owned()));
    assert_eq!(world.pipe("run", &["--remote", "off"]), 0);
    assert_eq!((world.started(), text(&world, "b")), (vec![], "yx".to_owned()));
}

#[test]
fn files_that_do_not_come_are_made_again_from_what_does() {
    for all in [false, true] {
        let world = World::new("");
        study(&world, &three(""));
        assert_eq!(world.pipe("run", &[]), 0);
        std::fs::remove_file(blob_of(&world, "yx")).unwrap();
        if all {
            std::fs::remove_file(blob_of(&world, "x")).unwrap();
        }
        forget(&world);
        assert_eq!(world.pipe("run", &["c"]), 0);
        assert_eq!(world.started(), [""; 0], "nobody reads what is gone there");
        for stages in [
            three("").replace("text = \"z\"", "text = \"Z\""),
            three("").replace("text = \"z\"", "text = \"ZZ\""),
        ] {
            study(&world, &stages);
            assert_eq!(world.pipe("run", &["c"]), 0);
            let made = text(&world, "c");
            assert!(made == "Zyx" || made == "ZZyx", "{made}");
        }
        let mut runs = world.started_by_all();
        runs.dedup();
        let expected = if all { ["a", "b", "c"].as_slice() } else { &["b", "c"] };
        assert_eq!(runs, expected);
        assert_eq!(world.started(), ["c"], "what was made again is here");
        // What came from here has mended the remote cache.
        forget(&world);
        study(&world, &three(""));
        assert_eq!(world.pipe("run", &["b"]), 0);
        assert_eq!((world.started(), text(&world, "b")), (vec![], "yx".to_owned()));
    }
}

/// Licences bind files and not digests: what reads such files makes them again, and what does not goes without.
#[test]
fn records_without_files_are_enough_for_who_reads_none() {
    let world = World::new("");
    study(&world, &three("remote = \"never\"\n"));
    assert_eq!(world.pipe("run", &[]), 0);
    forget(&world);
    assert_eq!(world.pipe("run", &["c"]), 0);
    assert_eq!((world.started(), text(&world, "c")), (vec![], "zyx".to_owned()));
    assert_eq!(
        world.pipe("run", &["b"]),
        0,
        "its files never come: they are left out, or made when they are read"
    );
    // Pulled, all that may come is there.
    let pulled = world.answer("pull", &["--json"]);
    assert_eq!(pulled["taken"].as_u64(), Some(1), "{pulled}");
    assert_eq!(stored(&world), ["x", "zyx"]);
}

/// Without the server the records still say what is up to date, and what has to be read is made here.
#[test]
fn a_server_that_went_away_costs_time_only() {
    let world = World::new("");
    study(&world, &three(""));
    assert_eq!(world.pipe("run", &[]), 0);
    forget(&world);
    assert_eq!(world.pipe("run", &["c"]), 0);
    std::fs::rename(world.path("far"), world.path("gone")).unwrap();
    study(&world, &three("").replace("text = \"z\"", "text = \"Z\""));
    assert_eq!(world.pipe("run", &["c"]), 0);
    assert_eq!(
        (world.started(), text(&world, "c")),
        (["a", "b", "c"].map(str::to_owned).to_vec(), "Zyx".to_owned())
    );
}

#[test]
fn push_and_pull_move_what_is_there() {
    let world = World::new("");
    study(&world, &three(""));
    assert_eq!(world.pipe("run", &["--remote", "off"]), 0);
    assert_eq!(objects(&world, "ac").len(), 0);
    let pushed = world.answer("push", &["--json"]);
    assert_eq!((pushed["records"].as_u64(), pushed["blobs"].as_u64()), (Some(3), Some(3)));
    let again = world.answer("push", &["--json"]);
    assert_eq!((again["records"].as_u64(), again["blobs"].as_u64()), (Some(3), Some(0)));
    forget(&world);
    let pulled = world.answer("pull", &["b", "--json"]);
    assert_eq!((pulled["taken"].as_u64(), pulled["hit"].as_u64()), (Some(2), Some(2)));
    let pulled = world.answer("pull", &["--json"]);
    assert_eq!(
        (pulled["taken"].as_u64(), pulled["hit"].as_u64(), pulled["run"].as_u64()),
        (Some(1), Some(3), Some(0))
    );
    assert_eq!(world.pipe("run", &["--remote", "off"]), 0);
    assert_eq!(world.started(), [""; 0]);
    // A file that no record needs goes; what they need stays.
    let stray = world.path("far/v1/cas/ab");
    std::fs::create_dir_all(&stray).unwrap();
    let name = pipe_cache::Digest::of(b"stray").to_hex();
    std::fs::write(stray.join(name), "stray").unwrap();
    let collected = world.answer("gc", &["--remote", "--grace", "0s", "--apply", "--json"]);
    assert_eq!((collected["blobs"].as_u64(), collected["records"].as_u64()), (Some(1), Some(0)));
    assert_eq!(objects(&world, "cas").len(), 3);
    // A study without one is told so.
    world.write(&three(""));
    assert_eq!(world.pipe("push", &[]), 2);
}

#[test]
fn a_place_that_cannot_be_used_is_told_before_anything_runs() {
    let world = World::new("");
    std::fs::write(world.path("far"), "a file").unwrap();
    study(&world, &three(""));
    assert_eq!(world.pipe("run", &[]), 2);
    assert_eq!(world.pipe("run", &["--remote", "off"]), 0);
}
