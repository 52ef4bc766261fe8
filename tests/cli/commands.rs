//! The kind `command`: programs of one's own as stages.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::study::{Study, is};

/// A study of stages that are given.
fn study(stages: &str) -> Study {
    Study::new(&format!("[pipeline]\nname = \"own\"\nformat = 1\n\n{stages}"))
}

/// One stage `step` that runs a shell script and writes `out.txt`.
fn script(text: &str) -> Study {
    let study = study(
        "[stage.step]\nkind = \"command\"\ninputs = { script = \"file:step.sh\" }\n\
         params = { argv = [\"sh\", \"in/script\"], outputs = [\"out.txt\"] }\n",
    );
    study.write_file("step.sh", text);
    study
}

fn read(study: &Study, path: &str) -> String {
    std::fs::read_to_string(study.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Whether a process is there and was not ended.
fn exists(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let began = Instant::now();
    while !what() {
        assert!(began.elapsed() < Duration::from_secs(60), "it did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const CHAIN: &str = r#"
[stage.first]
kind = "command"
inputs = { text = "file:text.txt", more = "file:more" }
params = { argv = ["sh", "-c", "cat in/text in/text.txt in/more/*.txt > joined.txt; echo $1 >> joined.txt", "sh", "a b; echo c"], outputs = ["joined.txt"] }

[stage.second]
kind = "command"
inputs = { first = "first" }
params = { argv = ["sh", "-c", "mkdir -p parts/deep; head -n 1 in/first > head.txt; cp in/first.txt parts/deep/copy.txt; ln -s copy.txt parts/deep/link.txt; echo left > other"], outputs = { head = "head.txt", parts = "parts/" } }

[stage.third]
kind = "command"
inputs = { head = "second.head", parts = "second.parts" }
params = { argv = ["sh", "-c", "cat in/head in/parts/parts/deep/link.txt > all"], outputs = ["all"] }
"#;

#[test]
fn programs_join_a_study() {
    let study = study(CHAIN);
    study.write_file("text.txt", "one\n");
    study.write_file("more/a.txt", "two\n");
    study.write_file("more/b.txt", "three\n");
    let run = study.run(&[]).expect(0);
    assert_eq!(run.started(), ["first", "second", "third"]);
    study.assert_clean();
    // No shell has read the arguments, and only what was declared is there.
    assert_eq!(read(&study, "results/own/first/out/joined.txt"), "one\none\ntwo\nthree\na b; echo c\n");
    assert_eq!(read(&study, "results/own/second/head/head.txt"), "one\n");
    let parts: Vec<String> =
        study.files("results/own/second/parts").into_iter().map(|(name, _)| name).collect();
    assert_eq!(parts, ["parts/deep/copy.txt", "parts/deep/link.txt"]);
    assert!(read(&study, "results/own/third/out/all").ends_with("a b; echo c\n"));
    // Hashed like every other stage: nothing to do, an edit runs what it changes, and an equal result stops.
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    study.edit("echo left > other", "echo right > other");
    assert_eq!(study.run(&[]).expect(0).started(), ["second"]);
    study.edit("[stage.third]", "[stage.last]");
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    study.write_file("more/b.txt", "four\n");
    assert_eq!(study.run(&[]).expect(0).started(), ["first", "last", "second"]);
    study.write_file("more/b.txt", "three\n");
    assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    let why = study.pipe(&["run", "study.toml", "--reproduce"]).expect(0);
    assert!(!why.stderr.contains("differ"), "{}", why.stderr);
}

#[test]
fn lists_are_folders_named_by_their_axes() {
    let study = study(
        "[vars]\nnames = [\"x\", \"y\"]\n\
         [stage.make]\nkind = \"command\"\nmatrix = { name = \"${names}\" }\n\
         params = { argv = [\"sh\", \"-c\", \"echo ${name} > out.txt\"], outputs = [\"out.txt\"] }\n\
         [stage.join]\nkind = \"command\"\ninputs = { all = \"make[name=*]\", one = \"make[name=y]\" }\n\
         params = { argv = [\"sh\", \"-c\", \"(ls in/all; cat in/all/*.txt in/one) > out.txt\"], outputs = [\"out.txt\"] }\n",
    );
    study.run(&[]).expect(0);
    assert_eq!(
        read(&study, "results/own/join/out/out.txt"),
        "name=x\nname=x.txt\nname=y\nname=y.txt\nx\ny\ny\n"
    );
    // Of one member too: the number of values does not change what a program finds.
    study.run(&["--var", "names=[\"y\"]"]).expect(0);
    assert_eq!(read(&study, "results/own/join/out/out.txt"), "name=y\nname=y.txt\ny\ny\n");
}

#[test]
fn the_environment_is_what_is_listed() {
    let study = study(
        "[stage.step]\nkind = \"command\"\nresources = { cpu = 1 }\n\
         params = { argv = [\"sh\", \"-c\", \"env | sort > out.txt; ls -A $HOME $TMPDIR >> out.txt\"], outputs = [\"out.txt\"], env = [\"GIVEN\", \"ABSENT\", \"SET=a=b\"] }\n",
    );
    let mut command = study.command(&["run", "study.toml", "--quiet"]);
    command.env("GIVEN", "from outside").env("SECRET", "hidden").env_remove("ABSENT");
    assert!(command.status().expect("the program starts").success());
    let text = read(&study, "results/own/step/out/out.txt");
    for line in
        ["GIVEN=from outside", "SET=a=b", "OMP_NUM_THREADS=1", "LANG=C.UTF-8", "CUDA_VISIBLE_DEVICES="]
    {
        assert!(text.lines().any(|one| one == line), "{line}: {text}");
    }
    assert!(!text.contains("SECRET") && !text.contains("ABSENT"), "{text}");
    assert!(text.contains("HOME=") && text.contains("PATH="), "{text}");
}

#[test]
fn failures_are_told_with_their_class_and_leave_nothing() {
    for (name, text, code, words) in [
        (
            "an exit code",
            "echo what went wrong >&2; exit 3",
            1,
            "`sh` ended with exit code 3\n    what went wrong",
        ),
        ("no output", "echo x > other.txt", 1, "did not write its output `out.txt`"),
        (
            "a link out",
            "ln -s /etc/hostname out.txt",
            1,
            "lies outside the working folder: it leads to `/etc/hostname`",
        ),
        ("a link to an input", "ln -s in/script out.txt", 1, "lies outside the working folder"),
        ("a link to nothing", "ln -s nowhere out.txt", 1, "is a link to nothing"),
        ("a folder", "mkdir out.txt", 1, "`out.txt` is a folder; declare it as `out.txt/`"),
        ("a pipe", "mkfifo out.txt", 1, "is neither a file nor a folder"),
        ("a signal", "kill -SEGV $$", 1, "`sh` was ended by signal 11"),
    ] {
        let study = script(text);
        let answer = study.pipe(&["run", "study.toml"]).expect(code);
        assert!(answer.stderr.contains("error: `step` failed"), "{name}: {}", answer.stderr);
        assert!(answer.stderr.contains(words), "{name}: {}", answer.stderr);
        assert!(study.records().is_empty(), "{name}");
        study.assert_clean();
    }
    let study = script("echo said; echo more >&2; echo x > out.txt");
    study.edit("\"sh\"", "\"no-such-program\"");
    let answer = study.pipe(&["run", "study.toml"]).expect(1);
    assert!(answer.stderr.contains("there is no program `no-such-program`"), "{}", answer.stderr);
    study.edit("\"no-such-program\"", "\"sh\"");
    study.run(&[]).expect(0);
    let log = study.pipe(&["log", "study.toml", "step"]).expect(0);
    assert!(log.stdout.contains("said\nmore\n"), "{}", log.stdout);
}

#[test]
fn failures_are_retried_by_class() {
    for (class, text, resources) in [
        ("timeout", "sleep 100", "time = \"1s\""),
        ("signal", "kill -ABRT $$", "cpu = 1"),
        ("error", "exit 1", "cpu = 1"),
        ("oom", "x=0123456789abcdef; while :; do x=$x$x; sleep 0.05; done", "mem = \"24MiB\""),
    ] {
        let study = script(text);
        let study_text = std::fs::read_to_string(study.path("study.toml")).expect("it is there");
        study.write(&format!(
            "{study_text}resources = {{ {resources} }}\nretry = {{ max = 1, backoff = \"0s\", on = [\"{class}\"] }}\n"
        ));
        let answer = study.run(&[]).expect(1);
        let retries = answer.events_of("retry");
        assert_eq!((retries.len(), &retries[0]["class"]), (1, &class.into()), "{text}");
        assert_eq!(answer.started().len(), 2, "{class}");
        study.assert_clean();
    }
}

#[test]
fn a_program_ends_with_its_run() {
    let endless = "sleep 1000 & echo $! > pid.txt; cp pid.txt \"$OUT\"; wait";
    for signal in ["TERM", "KILL"] {
        let study = script(endless);
        let pid = study.path("pid");
        let mut text = std::fs::read_to_string(study.path("study.toml")).expect("it is there");
        text = text.replace("outputs =", &format!("env = [\"OUT={}\"], outputs =", pid.display()));
        study.write(&text);
        let running = study.start(&[], |event| is(event, "action_started", "step"));
        let child = || std::fs::read_to_string(&pid).unwrap_or_default().trim().to_owned();
        wait_for(|| !child().is_empty());
        assert!(exists(&child()), "{signal}");
        running.signal(signal);
        let answer = running.wait();
        assert_eq!(answer.code, if signal == "TERM" { Some(143) } else { None }, "{}", answer.stderr);
        wait_for(|| !exists(&child()));
        // Nothing has to be unlocked: the next run simply works.
        study.write_file("step.sh", "echo done > out.txt");
        study.run(&[]).expect(0);
        study.assert_clean();
    }
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    for (params, code, marked) in [
        ("{ outputs = [\"a\"] }", "E010", "step"),
        ("{ argv = [\"cat\"] }", "E010", "step"),
        ("{ argv = [], outputs = [\"a\"] }", "E003", "[]"),
        ("{ argv = [\"cat\", 1], outputs = [\"a\"] }", "E003", "1"),
        ("{ argv = \"cat\", outputs = [\"a\"] }", "E003", "\"cat\""),
        ("{ argv = [\"cat\"], outputs = [\"../a\"] }", "E003", "[\"../a\"]"),
        ("{ argv = [\"cat\"], outputs = { a = \"in/a\" } }", "E003", "\"in/a\""),
        ("{ argv = [\"cat\"], outputs = [\"a\"], env = [\"=1\"] }", "E003", "[\"=1\"]"),
        ("{ argv = [\"cat\"], outputs = [\"a\"], shell = true }", "E002", "shell"),
    ] {
        let study = study(&format!(
            "[stage.step]\nkind = \"command\"\nparams = {params}\n[stage.after]\nkind = \"command\"\n\
             params = {{ argv = [\"cat\"], outputs = [\"b\"] }}\n"
        ));
        study.pipe(&["check", "study.toml", "--json"]).expect(2);
        let found = study.json("check", &[]);
        let diagnostics = found["diagnostics"].as_array().expect("a list");
        assert_eq!(diagnostics.len(), 1, "{params}: {found}");
        let one = &diagnostics[0];
        let text = std::fs::read_to_string(study.path("study.toml")).expect("it is there");
        let number = |end: &str, key: &str| one[end][key].as_u64().expect("a number") as usize;
        let line = text.lines().nth(number("start", "line") - 1).expect("a line of the file");
        let span = &line[number("start", "column") - 1..number("end", "column") - 1];
        assert_eq!((one["code"].as_str(), span), (Some(code), marked), "{params}: {found}");
    }
    // Ports depend on parameters.
    let study = study(
        "[stage.step]\nkind = \"command\"\nparams = { argv = [\"cat\"], outputs = { a = \"a\" } }\n\
         [stage.after]\nkind = \"command\"\ninputs = { x = \"step.b\" }\nparams = { argv = [\"cat\"], outputs = [\"b\"] }\n",
    );
    let found = study.json("check", &[]);
    assert_eq!(found["diagnostics"][0]["code"], "E005", "{found}");
}

#[test]
fn a_python_step_reads_what_another_wrote() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED a step in Python: there is no `python3`");
        return;
    }
    let study = study(
        "[stage.numbers]\nkind = \"command\"\nparams = { argv = [\"sh\", \"-c\", \"seq 10 > numbers.txt\"], outputs = [\"numbers.txt\"] }\n\
         [stage.sum]\nkind = \"command\"\ninputs = { step = \"file:sum.py\", numbers = \"numbers\" }\n\
         params = { argv = [\"python3\", \"in/step.py\", \"in/numbers\", \"sum.txt\"], outputs = [\"sum.txt\"] }\n",
    );
    study.write_file(
        "sum.py",
        "import sys\nwith open(sys.argv[1]) as lines, open(sys.argv[2], 'w') as out:\n    print(sum(map(int, lines)), file=out)\n",
    );
    study.run(&[]).expect(0);
    assert_eq!(read(&study, "results/own/sum/out/sum.txt"), "55\n");
}
