//! What people and machines read: published results, and what the commands print.

use std::io::Read;
use std::process::Stdio;

use crate::study::{Answer, SMALL, SMALL_NODES, Study};

/// The published files, without the list of them.
fn published(study: &Study) -> Vec<(String, Vec<u8>)> {
    study.files("results").into_iter().filter(|(name, _)| !name.ends_with(".published.json")).collect()
}

#[test]
fn results_lie_under_stage_port_and_axes() {
    let study = Study::finished();
    for path in [
        "pairs/images/part-00000.parquet",
        "vocabulary/tokenizer/tokenizer.json",
        "initial/checkpoint/model.safetensors",
        "embedded/images/model=trained/part-00000.arrow",
        "retrieved/metrics/model=initial/part-00000.parquet",
    ] {
        assert!(study.path("results/small").join(path).is_file(), "{path}");
    }
    // A profile publishes beside it.
    study.write(&format!("{SMALL}\n[profile.smoke]\nvars = {{ size = 42 }}\n"));
    study.run(&["--profile", "smoke", "pairs"]).expect(0);
    assert!(study.path("results/small@smoke/pairs/images/part-00000.parquet").is_file());
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

#[test]
fn a_model_leaves_with_what_is_known_of_it() {
    let study = Study::finished();
    let card = "[stage.card]\nkind = \"card.model\"\ninputs = { model = \"trained.checkpoint\", metrics = \"retrieved[model=*].metrics\", log = \"trained.log\" }\nparams = { name = \"Small\" }\n";
    study.write(&format!("{SMALL}\n{card}"));
    study.run(&["card"]).expect(0);
    let folder = study.path("results/small/card/folder");
    let model = study.path("results/small/trained/checkpoint/model.safetensors");
    let read = |path| std::fs::read(path).expect("it is there");
    assert!(read(folder.join("model.safetensors")) == read(model));
    let text = String::from_utf8(read(folder.join("README.md"))).expect("it is text");
    // How it was trained, on what, and what each evaluation found.
    for part in
        ["`finetune.contrastive`", "| `epochs` | `2` |", "| `captions` | `", "| model=trained | test |"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_page_shows_the_stages_above_it() {
    let study = Study::finished();
    let page = "[stage.page]\nkind = \"report\"\ninputs = { found = \"retrieved[model=*].metrics\" }\n";
    let shown = |text: &str| {
        study.write(&format!("{text}\n{page}"));
        let started = study.run(&["page"]).expect(0).started();
        let file = study.path("results/small/page/page/index.html");
        (started, std::fs::read_to_string(file).expect("the page is there"))
    };
    let (_, first) = shown(SMALL);
    let boxes = first.matches("<rect").count();
    for stage in ["pairs", "initial", "trained", "embedded", "retrieved", "page"] {
        assert!(first.contains(&format!(">{stage}</text>")), "{stage} is not drawn");
    }
    assert!(first.contains(">finetune.contrastive</text>") && first.contains(">embed \u{d7} 2</text>"));
    assert!(!first.contains(">shapes</text>"), "what it does not come from");
    // Every result above stands there with its key and what came out, and no other.
    for node in study.json("plan", &[])["nodes"].as_array().expect("nodes") {
        let (name, key) = (node["node"].as_str().expect("a name"), node["key"].as_str().expect("a key"));
        let is_above = first.contains(&format!("<th scope=\"row\">{name}</th><td><span"));
        assert_eq!(first.contains(key), is_above, "{name}");
        assert_eq!(is_above, !["shapes", "page"].contains(&name), "{name}");
        if is_above {
            for (port, output) in
                study.json("show", &[name])["nodes"][0]["outputs"].as_object().expect("outputs")
            {
                assert!(first.contains(output["digest"].as_str().expect("a digest")), "{name}.{port}");
            }
        }
    }
    // It is told in a process of its own too.
    study.write(&format!("{SMALL}\n{page}isolate = true\n"));
    let again = study.run(&["page", "--force", "page"]).expect(0);
    assert_eq!(again.events_of("reproduced")[0]["equal"], true);
    // Another name above is another picture, and nothing else is made.
    let (started, second) =
        shown(&SMALL.replace("stage.pairs", "stage.couples").replace("\"pairs.", "\"couples."));
    assert_eq!(started, ["page"]);
    assert!(second.contains(">couples</text>") && second.matches("<rect").count() == boxes);
    // What stands below or beside it is not in its picture.
    let beside = "[stage.beside]\nkind = \"ingest.phantom\"\nparams = { seed = 4 }\n";
    assert_eq!(shown(&format!("{SMALL}\n{beside}")), (Vec::new(), first));
    study.write(&format!("{SMALL}\n{page}params = {{ ancestry = [] }}\n"));
    let refused = study.pipe(&["check", "study.toml"]).expect(2);
    assert!(refused.stderr.contains("ancestry"), "nobody else tells it");
}

#[test]
fn what_is_no_longer_planned_is_removed() {
    let study = Study::finished();
    assert!(study.path("results/small/shapes").is_dir());
    let start = SMALL.find("\n[stage.shapes]").expect("it is the last stage");
    study.write(&SMALL[..start].replace("id = \"trained\"", "id = \"tuned\""));
    // A run of a part removes nothing.
    study.run(&["pairs"]).expect(0);
    assert!(study.path("results/small/shapes").is_dir());
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    assert!(!study.path("results/small/shapes").exists());
    assert!(!study.path("results/small/embedded/images/model=trained").exists());
    assert!(study.path("results/small/embedded/images/model=tuned/part-00000.arrow").is_file());
}

#[test]
fn a_run_with_nothing_to_do_restores_missing_files() {
    let study = Study::finished();
    let before = published(&study);
    std::fs::remove_file(study.path("results/small/vocabulary/tokenizer/tokenizer.json"))
        .expect("it is there");
    std::fs::remove_dir_all(study.path("results/small/retrieved")).expect("it is there");
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    assert!(published(&study) == before);
    std::fs::remove_dir_all(study.path("results")).expect("it is there");
    study.run(&[]).expect(0);
    assert!(published(&study) == before);
}

/// On request only: otherwise what is published is nobody else's.
#[test]
fn results_are_second_names_of_the_stores_files_if_wanted() {
    use std::os::unix::fs::MetadataExt as _;

    for (arguments, names) in [(&["--hard-links"][..], 2), (&[][..], 1)] {
        let study = Study::new(SMALL);
        study.run(&[&["shapes"], arguments].concat()).expect(0);
        let table = study.path("results/small/shapes/labels/part-00000.parquet");
        assert_eq!(std::fs::metadata(&table).expect("it was published").nlink(), names);
        assert_eq!(study.run(&["shapes"]).expect(0).started(), [] as [&str; 0]);
    }
}

#[test]
fn what_a_person_changed_is_kept_with_a_warning() {
    let study = Study::finished();
    let edited = "results/small/vocabulary/tokenizer/tokenizer.json";
    study.write_file(edited, "{}");
    study.write_file("results/small/notes.txt", "mine");
    study.edit("vocab_size = 512", "vocab_size = 520");
    let answer = study.run(&[]).expect(0);
    let warnings = answer.events_of("warning");
    assert!(
        warnings
            .iter()
            .any(|event| event["subject"].as_str().is_some_and(|path| path.ends_with("tokenizer.json")))
    );
    let kept = |study: &Study| std::fs::read_to_string(study.path(edited)).expect("it is there") == "{}";
    assert!(kept(&study));
    let spoken = study.pipe(&["run", "study.toml"]).expect(0);
    assert!(spoken.stderr.contains("tokenizer.json was changed by someone"), "{}", spoken.stderr);
    // Cleaning keeps it too, and what the program never wrote.
    let clean = study.pipe(&["clean", "study.toml"]).expect(0);
    assert!(clean.stdout.contains("the store is as it was"), "{}", clean.stdout);
    assert!(kept(&study));
    let left: Vec<String> = study.files("results").into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, ["small/notes.txt", "small/vocabulary/tokenizer/tokenizer.json"]);
    assert_eq!(study.planned(&[]), [], "the store is as it was");
}

#[test]
fn clean_removes_all_that_was_published() {
    let study = Study::finished();
    study.pipe(&["clean", "study.toml"]).expect(0);
    assert!(!study.path("results/small").exists());
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

#[test]
fn status_tells_what_ran_and_what_is_up_to_date() {
    let study = Study::new(SMALL);
    let before = study.pipe(&["status", "study.toml"]).expect(0);
    assert!(before.stdout.contains("nothing has run yet"), "{}", before.stdout);
    let study = Study::finished();
    let status = study.json("status", &[]);
    assert_eq!((&status["version"], &status["hit"], &status["run"]), (&1.into(), &9.into(), &0.into()));
    assert_eq!((&status["last_run"]["status"], &status["last_run"]["executed"]), (&"ok".into(), &9.into()));
    let text = study.pipe(&["status", "study.toml"]).expect(0).stdout;
    assert!(text.contains("9 up to date, 0 to run"), "{text}");
    // The stages that run now, seen from another terminal.
    let slow = Study::new(&SMALL.replace("epochs = 2", "epochs = 500"));
    let running = slow.start(&["trained"], |event| crate::study::is(event, "progress", "trained"));
    let text = slow.pipe(&["status", "study.toml"]).expect(0).stdout;
    assert!(text.contains("running  trained"), "{text}");
    assert_eq!(slow.json("status", &[])["running"][0]["node"], "trained");
    running.signal("INT");
    running.wait().expect(130);
    let text = slow.pipe(&["status", "study.toml"]).expect(0).stdout;
    assert!(!text.contains("running") && text.contains("cancelled"), "{text}");
}

#[test]
fn show_resolved_prints_every_value_with_its_origin() {
    let study = Study::finished();
    study.write(&format!(
        "{}\n[profile.smoke]\nset = {{ \"stage.trained.params.epochs\" = 1 }}\n",
        SMALL.replace("lr = 1e-3 }", "lr = 1e-3 }\nresources = { cpu = 1 }")
    ));
    let arguments =
        ["show", "study.toml", "--resolved", "--profile", "smoke", "--set", "stage.trained.params.seed=7"];
    let text = study.pipe(&arguments).expect(0).stdout;
    let of = |node: &str| -> &str {
        let start = text.find(&format!("[{node}]  # ")).unwrap_or_else(|| panic!("{node}:\n{text}"));
        text[start..].split("\n\n").next().expect("there is a first part")
    };
    let line = |node: &str, start: &str| -> &str {
        let found = of(node).lines().find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{start}:\n{}", of(node)))
    };
    for (start, origin) in [
        ("kind = \"finetune.contrastive\" ", "study.toml:24:8"),
        ("params.epochs = 1 ", "smoke profile, study.toml:45:41"),
        ("params.seed = 7 ", "`--set stage.trained.params.seed=7`"),
        ("params.lr = 0.001 ", "study.toml:26:40"),
        ("params.freeze = \"none\" ", "default"),
        ("params.optimiser.beta1 = 0.9 ", "default"),
        ("inputs.images = \"pairs.images\" ", "study.toml:25:21"),
        ("resources.cpu = 1 ", "study.toml:27:21"),
    ] {
        assert!(line("trained", start).ends_with(&format!("# {origin}")), "{}", of("trained"));
    }
    // A value from a variable shows where the variable was set.
    assert!(line("pairs", "params.size = 28 ").ends_with("# study.toml:7:8"), "{}", of("pairs"));
    // What is shown is TOML again.
    toml::from_str::<toml::Table>(&text).expect("it is TOML");
}

#[test]
fn show_tells_outputs_and_history_of_a_node() {
    let study = Study::finished();
    let text = study.pipe(&["show", "study.toml", "pairs"]).expect(0).stdout;
    assert!(text.contains("outputs.images") && text.contains("36 rows"), "{text}");
    let node = &study.json("show", &["pairs"])["nodes"][0];
    assert_eq!((&node["status"], &node["outputs"]["images"]["rows"]), (&"hit".into(), &36.into()));
    assert!(node["made"]["duration_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{node}");
    // Earlier results of the node.
    study.edit("seed = 3, size = \"${size}\", train = 24", "seed = 4, size = \"${size}\", train = 24");
    let text = study.pipe(&["show", "study.toml", "pairs"]).expect(0).stdout;
    assert!(text.starts_with("[pairs]  # run\n") && text.contains("\n# earlier: "), "{text}");
    study.edit("seed = 4", "seed = 3");
    // One port alone.
    let text = study.pipe(&["show", "study.toml", "pairs.images"]).expect(0).stdout;
    assert!(text.contains("outputs.images") && !text.contains("outputs.labels"), "{text}");
    let unknown = study.pipe(&["show", "study.toml", "pairs.image"]).expect(2);
    assert!(unknown.stderr.contains("did you mean `images`?"), "{}", unknown.stderr);
}

#[test]
fn the_graph_is_drawn_in_every_format() {
    let study = Study::new(SMALL);
    let graph =
        |arguments: &[&str]| study.pipe(&[&["graph", "study.toml"], arguments].concat()).expect(0).stdout;
    assert!(
        graph(&[]).contains("trained  <- initial, pairs\n")
            || graph(&[]).contains("trained  <- pairs, initial\n")
    );
    let dot = graph(&["--format", "dot"]);
    assert!(
        dot.starts_with("digraph") && dot.ends_with("}\n") && dot.contains("[label=\"trained\""),
        "{dot}"
    );
    assert_eq!(dot.matches(" -> ").count(), 8, "{dot}");
    let mermaid = graph(&["--format", "mermaid", "--nodes"]);
    assert!(
        mermaid.starts_with("graph LR\n") && mermaid.contains("[\"embedded[model=trained]\"]"),
        "{mermaid}"
    );
    let svg = graph(&["--format", "svg"]);
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains(">trained</text>"),
        "{svg}"
    );
    let json = study.json("graph", &["--nodes"]);
    assert_eq!(json["nodes"].as_array().map(Vec::len), Some(SMALL_NODES));
    // Where each node stands.
    study.run(&["pairs"]).expect(0);
    let dot = graph(&["--format", "dot", "--status"]);
    assert!(dot.contains("label=\"pairs\\nhit\"") && dot.contains("label=\"trained\\nmaybe\""), "{dot}");
    assert!(!study.pipe(&["graph", "study.toml", "--status"]).stdout.contains("parts"));
}

#[test]
fn the_graph_tells_in_how_many_parts_row_wise_stages_run() {
    let study = Study::finished();
    let graph =
        |arguments: &[&str]| study.pipe(&[&["graph", "study.toml"], arguments].concat()).expect(0).stdout;
    // Two nodes, each with a part of images and one of captions; the other stages have none.
    let text = graph(&["--shards"]);
    assert!(text.contains("embedded  (4 parts)") && !text.contains("pairs  ("), "{text}");
    assert!(graph(&["--shards", "--nodes"]).contains("embedded[model=trained]  (2 parts)"));
    let dot = graph(&["--shards", "--status", "--format", "dot"]);
    assert!(dot.contains("label=\"embedded\\n2 hit, 4 parts\", style=filled"), "{dot}");
    assert!(graph(&["--shards", "--format", "svg"]).contains(">4 parts</text>"));
    assert!(graph(&["--shards", "--format", "mermaid"]).contains("<br>4 parts"));
    let json = study.json("graph", &["--shards"]);
    assert_eq!(json["shards"], serde_json::json!({ "embedded": { "total": 4, "run": 0 } }));
    // Another batch size: all parts of both nodes.
    study.edit("splits = [\"test\"]", "splits = [\"test\"], batch = 3");
    let text = graph(&["--shards", "--status"]);
    assert!(text.contains("embedded  (2 run, 4 of 4 parts)"), "{text}");
}

#[test]
fn the_log_lists_runs_and_shows_events() {
    let study = Study::finished();
    study.run(&[]).expect(0);
    let log = study.pipe(&["log", "study.toml"]).expect(0).stdout;
    assert_eq!(log.lines().count(), 2, "{log}");
    let run = log.lines().next().and_then(|line| line.split(' ').next()).expect("a run");
    let events = study.pipe(&["log", "study.toml", run]).expect(0).stdout;
    assert!(events.contains("action_finished") && events.contains("trained"), "{events}");
    let events = study.json("log", &[run]);
    assert_eq!(events["events"][0]["ev"], "run_started");
    assert_eq!(study.json("log", &[])["runs"].as_array().map(Vec::len), Some(2));
}

#[test]
fn doctor_examines_machine_and_store() {
    let study = Study::finished();
    let text = study.pipe(&["doctor", "study.toml"]).expect(0).stdout;
    for subject in ["version", "processor", "memory", "device", "store", "disk", "permission"] {
        assert!(
            text.lines().any(|line| line.split_whitespace().nth(1) == Some(subject)),
            "{subject}:\n{text}"
        );
    }
    let findings = study.json("doctor", &[]);
    assert!(findings["findings"].as_array().is_some_and(|all| all.iter().all(|one| one["level"] != "error")));
}

#[test]
fn the_schema_is_a_json_schema_of_every_kind() {
    let study = Study::new(SMALL);
    let schema: serde_json::Value =
        serde_json::from_str(&study.pipe(&["schema"]).expect(0).stdout).expect("it is JSON");
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    let kinds =
        &schema["properties"]["stage"]["additionalProperties"]["properties"]["kind"]["anyOf"][0]["enum"];
    assert!(kinds.as_array().is_some_and(|kinds| kinds.contains(&"ingest.phantom".into())), "{kinds}");
}

#[test]
fn completions_know_the_commands() {
    let study = Study::new(SMALL);
    for shell in ["bash", "zsh", "fish"] {
        let script = study.pipe(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("graph"), "{shell}");
    }
}

/// A reader that goes away ends the output, not the run, and nothing is said of it.
#[test]
fn a_closed_stdout_is_quiet() {
    let study = Study::new(SMALL);
    for arguments in [
        &["run", "study.toml", "--json"][..],
        &["plan", "study.toml", "-v"],
        &["schema"],
        &["graph", "study.toml"],
        &["--help"],
    ] {
        let mut child = study
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let answer = Answer::of(&child.wait_with_output().expect("a child ends"));
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
    assert_eq!(study.planned(&[]), [], "the run was finished");
}

#[test]
fn piped_output_has_no_escape_codes_and_progress_goes_to_stderr() {
    let study = Study::new(SMALL);
    let mut answers = vec![study.pipe(&["run", "study.toml"]).expect(0)];
    assert_eq!(answers[0].stdout, "");
    assert!(answers[0].stderr.contains("       Run  trained"), "{}", answers[0].stderr);
    assert!(answers[0].stderr.contains("Finished  9 executed"), "{}", answers[0].stderr);
    answers.push(study.pipe(&["plan", "study.toml", "-v"]));
    answers.push(study.pipe(&["--help"]));
    study.edit("lr = 1e-3", "lr = true");
    answers.push(study.pipe(&["check", "study.toml"]).expect(2));
    for answer in answers {
        assert!(!answer.stdout.contains('\u{1b}') && !answer.stderr.contains('\u{1b}'));
    }
    // Unless they are asked for.
    assert!(study.pipe(&["check", "study.toml", "--color", "always"]).stderr.contains('\u{1b}'));
    let forced =
        study.command(&["check", "study.toml"]).env("CLICOLOR_FORCE", "1").output().expect("it starts");
    assert!(Answer::of(&forced).stderr.contains('\u{1b}'));
    let refused = study
        .command(&["check", "study.toml"])
        .env("CLICOLOR_FORCE", "1")
        .env("NO_COLOR", "1")
        .output()
        .expect("it starts");
    assert!(!Answer::of(&refused).stderr.contains('\u{1b}'));
}

#[test]
fn quiet_says_nothing_but_errors() {
    let study = Study::new(SMALL);
    let answer = study.pipe(&["run", "study.toml", "--quiet"]).expect(0);
    assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("", ""));
    study.edit("batch = 8", "batch = 64");
    let answer = study.pipe(&["run", "study.toml", "--quiet"]).expect(1);
    assert!(answer.stderr.contains("do not fill one batch"), "{}", answer.stderr);
    let answer = study.pipe(&["run", "study.toml", "--json"]).expect(1);
    assert!(answer.stderr.contains("do not fill one batch"), "{}", answer.stderr);
}

#[test]
fn a_run_that_did_something_leaves_a_table_of_its_stages() {
    let study = Study::new(SMALL);
    study.run(&["shapes"]).expect(0);
    let tables = || {
        let names = study.files(".pipe/runs").into_iter();
        names.filter(|(name, _)| name.ends_with("/stages.parquet")).collect::<Vec<_>>()
    };
    let first = tables();
    assert_eq!(first.len(), 1);
    assert!(first[0].1.starts_with(b"PAR1") && first[0].1.ends_with(b"PAR1"));
    study.run(&["shapes"]).expect(0);
    assert_eq!(tables(), first, "nothing ran");
}

#[test]
fn every_run_keeps_its_events() {
    let study = Study::new(SMALL);
    let answer = study.run(&["shapes"]).expect(0);
    let runs = study.files(".pipe/runs");
    let (_, stored) = runs.iter().find(|(name, _)| name.ends_with("events.jsonl")).expect("it is kept");
    assert_eq!(String::from_utf8_lossy(stored), answer.stdout);
    let events = answer.events();
    let kinds: Vec<&str> =
        events.iter().filter_map(|event| event["ev"].as_str()).filter(|kind| *kind != "progress").collect();
    assert_eq!(kinds, ["run_started", "planned", "action_started", "action_finished", "run_finished"]);
    for (sequence, event) in events.iter().enumerate() {
        assert_eq!((&event["v"], &event["seq"]), (&1.into(), &sequence.into()));
        assert!(event["ts"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24), "{event}");
    }
}

#[test]
fn help_of_each_command_fits_a_screen() {
    let study = Study::new(SMALL);
    let help = study.pipe(&["-h"]).expect(0).stdout;
    assert!(help.lines().count() <= 60, "{help}");
    let mut bytes = Vec::new();
    let mut child = study.command(&["run", "-h"]).stdout(Stdio::piped()).spawn().expect("it starts");
    child.stdout.take().expect("a pipe").read_to_end(&mut bytes).expect("help is read");
    assert!(child.wait().expect("it ends").success());
    let help = String::from_utf8(bytes).expect("help is text");
    assert!(
        help.contains("Selection:") && help.contains("Execution:") && help.contains("Examples:"),
        "{help}"
    );
}

#[test]
fn a_node_that_is_named_is_shown_with_its_figures() {
    let study = Study::finished();
    let shown = study.pipe(&["show", "study.toml", "pairs"]).expect(0);
    for line in [
        "# checks: samples[train] = 24",
        "# checks: samples[test] = 12",
        "# checks: same image[test, train] = 0",
    ] {
        assert!(shown.stdout.lines().any(|shown| shown == line), "{line}\n{}", shown.stdout);
    }
    let shown = study.json("show", &["retrieved[model=trained]"]);
    let figures = shown["nodes"][0]["figures"]["metrics"].as_object().expect("figures of the port").clone();
    assert!(figures.keys().any(|name| name.starts_with("recall@1[")), "{figures:?}");
    assert!(!study.pipe(&["show", "study.toml"]).expect(0).stdout.contains("samples"));
}

#[test]
fn a_query_joins_the_study() {
    let study = Study::finished();
    let sql = "select model, metric, value from metrics where metric like '%recall%' order by model, metric";
    let stage = |sql: &str| {
        format!(
            "{SMALL}\n[stage.ranking]\nkind = \"query\"\ninputs = {{ metrics = \"retrieved[model=*].metrics\" }}\nparams = {{ sql = \"{sql}\" }}\n"
        )
    };
    study.write(&stage(sql));
    assert_eq!(study.run(&[]).expect(0).started(), ["ranking"]);
    let file = std::fs::File::open(study.path("results/small/ranking/table/part-00000.parquet"))
        .expect("it is there");
    let reader = parquet::file::reader::SerializedFileReader::new(file).expect("it is Parquet");
    let rows: Vec<String> = reader.into_iter().map(|row| row.expect("a row").to_string()).collect();
    assert!(rows.len() >= 6 && rows[0].contains("model: \"initial\""), "{rows:?}");
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    // Another model is another row; nothing else of the study runs.
    study.write(&stage(&sql.replace("value", "value, n")));
    assert_eq!(study.run(&[]).expect(0).started(), ["ranking"]);
    study.write(&stage("select model form metrics"));
    let answer = study.pipe(&["check", "study.toml"]).expect(2);
    assert!(
        answer.stderr.contains("syntax error") && answer.stderr.contains("study.toml:"),
        "{}",
        answer.stderr
    );
    study.write(&stage("select modle from metrics"));
    let answer = study.run(&[]).expect(1);
    assert!(
        answer.stderr.contains("no such column: modle") || answer.stdout.contains("no such column: modle")
    );
}
