//! What runs after an edit: what depends on it, and nothing else; and that `plan` and `why` know before.

use crate::study::{Answer, SMALL, SMALL_NODES, Study, text};

/// What depends on the training.
const TRAINING: [&str; 3] = ["embedded[model=trained]", "retrieved[model=trained]", "trained"];

/// The value of a variable that a program is given is a part of what it reads.
#[test]
fn another_value_of_a_passed_variable_is_another_result() {
    let study = Study::new(
        "[pipeline]\nname = \"doses\"\nformat = 1\n\n[stage.said]\nkind = \"command\"\nparams = { argv = [\"sh\", \"-c\", \"echo $DOSE > said.txt\"], outputs = [\"said.txt\"], env = [\"DOSE\"], untracked_env = [\"TOKEN\"] }\n",
    );
    let run = |dose: &str, token: &str| {
        let mut command = study.command(&["run", "study.toml", "--json"]);
        let answer = Answer::of(&command.env("DOSE", dose).env("TOKEN", token).output().expect("it starts"));
        let said =
            std::fs::read_to_string(study.path("results/doses/said/out/said.txt")).expect("it is published");
        (answer.expect(0).started().len(), said)
    };
    assert_eq!(run("3", "a"), (1, "3\n".to_owned()));
    assert_eq!(run("4", "a"), (1, "4\n".to_owned()));
    assert_eq!(run("4", "b"), (0, "4\n".to_owned()));
    assert_eq!(run("3", "b"), (0, "3\n".to_owned()));
    let why = Answer::of(
        &study.command(&["why", "study.toml", "said"]).env("DOSE", "5").output().expect("it starts"),
    );
    assert!(why.expect(0).stdout.contains("`value of DOSE`"));
}

#[test]
fn a_second_run_executes_nothing() {
    let study = Study::finished();
    let plan = study.json("plan", &["--check"]);
    assert_eq!((plan["hit"].as_u64(), plan["run"].as_u64()), (Some(SMALL_NODES as u64), Some(0)));
    study.pipe(&["plan", "study.toml", "--check"]).expect(0);
    let second = study.run(&[]).expect(0);
    assert_eq!(second.started(), [] as [&str; 0]);
    assert_eq!(second.events_of("planned")[0]["counts"]["hit"], SMALL_NODES);
}

/// The same edit in the file and on the command line.
#[test]
fn one_parameter_runs_its_dependents_and_plan_and_why_say_so_beforehand() {
    for in_file in [true, false] {
        let study = Study::finished();
        let option = "stage.trained.params.lr=2e-3";
        let arguments: &[&str] = if in_file { &[] } else { &["--set", option] };
        let place = if in_file {
            study.edit("lr = 1e-3", "lr = 2e-3");
            "study.toml:26:40".to_owned()
        } else {
            format!("`--set {option}`")
        };
        let change = format!("param `lr` 0.001 -> 0.002 ({place})");

        let plan = study.json("plan", arguments);
        assert!(plan["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{plan}");
        let check = study.pipe(&[&["plan", "study.toml", "--check"], arguments].concat()).expect(6);
        assert!(check.stdout.contains(&format!("   run  trained\n          {change}\n")), "{}", check.stdout);
        let mut planned = study.planned(arguments);
        planned.sort();
        let expected = TRAINING.map(|node| (node, if node == "trained" { "run" } else { "maybe" }));
        assert_eq!(planned, expected.map(|(node, status)| (node.to_owned(), status.to_owned())));

        // The root cause of a node far below.
        let why =
            study.pipe(&[&["why", "study.toml", "retrieved[model=trained]"], arguments].concat()).expect(0);
        assert!(why.stdout.contains(&format!("trained: {change}")), "{}", why.stdout);
        let why = study.json("why", &[&["retrieved[model=trained]"], arguments].concat());
        let cause = &why["nodes"][0]["root_causes"][0];
        assert_eq!((&cause["node"], &cause["reason"]["param"]), (&"trained".into(), &"lr".into()));
        assert_eq!((&cause["reason"]["old"], &cause["reason"]["new"]), (&"0.001".into(), &"0.002".into()));
        let why =
            study.pipe(&[&["why", "study.toml", "embedded[model=initial]"], arguments].concat()).expect(0);
        assert_eq!(why.stdout, "embedded[model=initial] is up to date\n");

        // Looking changed nothing.
        assert_eq!(study.run(arguments).expect(0).started(), TRAINING);
        assert_eq!(study.run(arguments).expect(0).started(), [] as [&str; 0]);
    }
}

#[test]
fn the_old_value_is_a_hit_again() {
    let study = Study::finished();
    study.edit("lr = 1e-3", "lr = 2e-3");
    study.run(&[]).expect(0);
    study.edit("lr = 2e-3", "lr = 1e-3");
    assert_eq!(study.planned(&[]), []);
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
}

#[test]
fn a_parameter_that_is_removed_counts_as_changed() {
    let study = Study::finished();
    study.edit(", lr = 1e-3", "");
    // The default has the same value.
    assert_eq!(study.planned(&[]), []);
    study.edit("epochs = 2, ", "");
    let why = study.pipe(&["why", "study.toml", "trained"]).expect(0);
    assert!(why.stdout.contains("trained: param `epochs` 2 -> 5"), "{}", why.stdout);
}

/// Each edit changes no parameter, so nothing runs.
#[test]
fn what_changes_no_result_runs_nothing() {
    let edits: [(&str, &dyn Fn(&str) -> String); 8] = [
        ("a comment", &|text| text.replace("[vars]", "# Sizes.\n\n[vars] # of images")),
        ("a renamed stage", &|text| text.replace("trained", "tuned")),
        ("a renamed axis", &|text| {
            text.replace("matrix = { model", "matrix = { weights").replace("${model.", "${weights.")
        }),
        ("a default that is written out", &|text| {
            text.replace("lr = 1e-3", "lr = 0.001, seed = 0, freeze = \"none\", optimiser = {}")
        }),
        ("a value from a variable", &|text| {
            text.replace("epochs = 2,", "epochs = \"${rounds}\",")
                .replace("size = 28\n", "size = 28\nrounds = 2\n")
        }),
        ("resources", &|text| {
            let resources = "resources = { cpu = 1, mem = \"1GiB\", time = \"1h\" }";
            text.replace("lr = 1e-3 }", &format!("lr = 1e-3 }}\n{resources}"))
        }),
        ("a sentence", &|text| text.replace("[stage.trained]", "[stage.trained]\ndoc = \"two epochs\"")),
        ("reordered tables", &|text| {
            let (head, stages) = text.split_once("[stage.").expect("it has stages");
            let mut stages: Vec<&str> = stages.split("\n[stage.").collect();
            stages.reverse();
            format!("{head}[stage.{}\n", stages.join("\n[stage."))
        }),
    ];
    let study = Study::finished();
    for (name, edit) in edits {
        let edited = edit(SMALL);
        assert_ne!(edited, SMALL, "{name}");
        study.write(&edited);
        let answer = study.run(&[]).expect(0);
        assert_eq!(answer.started(), [] as [&str; 0], "{name}");
        assert_eq!(answer.events_of("planned")[0]["counts"]["hit"], SMALL_NODES, "{name}");
    }
    for arguments in [&["--jobs", "1"], &["--jobs", "7"]] {
        assert_eq!(study.run(arguments).expect(0).started(), [] as [&str; 0], "{arguments:?}");
    }
}

#[test]
fn another_folder_and_another_name_of_the_study_run_nothing() {
    let study = Study::finished();
    let store = study.path(".pipe");
    study.write_file("elsewhere/other.toml", SMALL.replace("\"small\"", "\"large\""));
    let arguments = ["run", "elsewhere/other.toml", "--json", "--store", text(&store)];
    assert_eq!(study.pipe(&arguments).expect(0).started(), [] as [&str; 0]);
}

/// The source has another content, the result is the same: what depends on it does not run.
#[test]
fn an_equal_result_stops_the_wave() {
    let study = Study::finished();
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([study.path("results/small/initial/checkpoint"), study.path("model")])
        .status();
    assert!(copied.expect("cp starts").success());
    let files = r#"kind = "checkpoint"
inputs = { source = "file:model" }
"#;
    let start = SMALL.find("[stage.initial]\n").expect("it has the stage") + "[stage.initial]\n".len();
    let end = start + SMALL[start..].find("\n\n").expect("another follows");
    study.write(&format!("{}{files}{}", &SMALL[..start], &SMALL[end..]));
    // Other parameters, the same model.
    assert_eq!(study.run(&[]).expect(0).started(), ["initial"]);
    study.write_file("model/NOTES.md", "downloaded on a Tuesday");
    let planned = study.planned(&[]);
    assert_eq!(planned[0], ("initial".to_owned(), "run".to_owned()));
    assert!(planned[1..].iter().all(|(_, status)| status == "maybe") && planned.len() > 1, "{planned:?}");
    let why = study.pipe(&["why", "study.toml", "retrieved[model=trained]"]).expect(0);
    assert!(why.stdout.contains("`model` has another content"), "{}", why.stdout);
    let answer = study.run(&[]).expect(0);
    assert_eq!(answer.started(), ["initial"]);
    assert_eq!(answer.events_of("action_finished")[0]["cutoff"], true);
}

#[test]
fn a_forced_node_runs_whatever_is_in_the_store() {
    let study = Study::finished();
    let answer = study.run(&["--force", "vocabulary"]).expect(0);
    assert_eq!(answer.started(), ["vocabulary"]);
    // Also where its inputs come from another forced node.
    let answer = study.run(&["--force", "vocabulary", "--force", "trained"]).expect(0);
    assert_eq!(answer.started(), ["trained", "vocabulary"]);
}

#[test]
fn targets_choose_what_runs() {
    let study = Study::new(SMALL);
    assert_eq!(study.run(&["vocabulary"]).expect(0).started(), ["pairs", "vocabulary"]);
    assert_eq!(
        study.run(&["embedded[model=initial]"]).expect(0).started(),
        ["embedded[model=initial]", "initial"]
    );
    assert_eq!(study.run(&["sha*"]).expect(0).started(), ["shapes"]);
    // The inputs of what is named alone have to be there.
    let missing = study.pipe(&["run", "study.toml", "retrieved[model=trained]", "--only"]).expect(2);
    assert!(missing.stderr.contains("embedded[model=trained]"), "{}", missing.stderr);
    assert_eq!(
        study.run(&["retrieved[model=initial]", "--only"]).expect(0).started(),
        ["retrieved[model=initial]"]
    );
    let left = study.run(&["--exclude", "trained"]).expect(0);
    assert_eq!(left.started(), [] as [&str; 0]);
    assert_eq!(study.run(&["trained", "--downstream"]).expect(0).started(), TRAINING);
    study.edit("seed = 3, size = \"${size}\", train = 24", "seed = 4, size = \"${size}\", train = 24");
    let until = study.run(&["--downstream", "pairs", "--until", "initial", "--until", "shapes"]).expect(0);
    // The words are the same, so the tokeniser is, and the wave ends there.
    assert_eq!(until.started(), ["pairs", "vocabulary"]);
    let unknown = study.pipe(&["run", "study.toml", "traned"]).expect(2);
    assert!(unknown.stderr.contains("did you mean `trained`?"), "{}", unknown.stderr);
}

#[test]
fn a_dry_run_says_what_a_run_does() {
    let study = Study::new(SMALL);
    let dry = study.pipe(&["run", "study.toml", "--dry-run"]).expect(0);
    let plan = study.pipe(&["plan", "study.toml"]).expect(0);
    assert_eq!(dry.stdout, plan.stdout);
    assert!(
        !study.path(".pipe").exists() && !study.path("results").exists(),
        "looking leaves nothing behind"
    );
}
