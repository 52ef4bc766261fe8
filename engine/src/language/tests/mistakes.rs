//! Every code has an example that fails, with the text that is marked.

use super::{Study, helps};

/// Loads `text` and compares codes and marked texts.
#[track_caller]
fn check(text: &str, expected: &[(&str, &str)]) -> Vec<super::Diagnostic> {
    Study::new(text).expect(expected)
}

#[test]
fn e001_syntax() {
    check("[stage.a]\nkind = \"make\"\nparams = { size = = }\n", &[("E001", "")]);
    check("[stage.a]\nkind = make\n", &[("E001", "make")]);
    check("[stage.a\nkind = \"make\"\n[stage.b]\nkind = \"mak\"\n", &[("E001", ""), ("E002", "\"mak\"")]);
    // Nothing is marked where something is missing: the place itself.
    for (text, before) in [
        ("[stage.a]\nkind = \"make\"\nparams = { size = = }\n", "params = { size = "),
        ("[stage.a\nkind = \"make\"\n", "[stage.a"),
    ] {
        let study = Study::new(text);
        let found = study.load();
        let label = found.diagnostics[0].primary.clone().unwrap();
        let text = &found.sources[label.file].text;
        assert_eq!(label.span.start, text.find(before).unwrap() + before.len(), "{text}");
    }
}

#[test]
fn e002_unknown_names() {
    let found = check("[stage.a]\nkind = \"mak\"\n", &[("E002", "\"mak\"")]);
    assert!(helps(&found[0], "did you mean `make`?"));
    let found = check("[stage.a]\nkind = \"make\"\nparams = { sise = 4 }\n", &[("E002", "sise")]);
    assert!(helps(&found[0], "did you mean `size`?"));
    let found = check("[stage.a]\nkind = \"make\"\nparams = { head = { wide = 4 } }\n", &[("E002", "wide")]);
    assert!(helps(&found[0], "known are `depth`"));
    check("[stage.a]\nkind = \"make\"\nparms = {}\n", &[("E002", "parms")]);
    check("[stages.a]\nkind = \"make\"\n", &[("E002", "stages")]);
    check("[stage.a]\nkind = \"make\"\nresources = { cpus = 4 }\n", &[("E002", "cpus")]);
    check("[stage.a]\nkind = \"make\"\ninputs = { sorce = \"file:a\" }\n", &[("E002", "sorce")]);
    check("[stage.a]\nkind = \"make\"\nparams = { name = \"${sise}\" }\n", &[("E002", "\"${sise}\"")]);
    check(
        "[vars]\nd = { x = 1 }\n[stage.a]\nkind = \"make\"\nparams = { size = \"${d.y}\" }\n",
        &[("E002", "\"${d.y}\"")],
    );
    check("[stage.a]\nkind = \"make\"\nparams = { name = \"a${b\" }\n", &[("E002", "\"a${b\"")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\nexclude = [{ n = 1 }]\n", &[("E002", "n")]);
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"free\"\ninputs = { x = \"a[n=1,m=2].rows\" }\n",
        &[("E002", "\"a[n=1,m=2].rows\"")],
    );
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"free\"\ninputs = { x = \"a[m=3].rows\" }\n",
        &[("E002", "\"a[m=3].rows\"")],
    );
}

#[test]
fn e002_what_comes_later() {
    check("[executor.moon]\nphase = \"x\"\n[stage.a]\nkind = \"make\"\n", &[("E002", "moon")]);
}

#[test]
fn e002_names_of_remote_sources() {
    for (text, help) in [
        ("hf:owner/name", "write `hf:owner/name@main`"),
        ("hf:name@main", "hf:owner/name@revision"),
        ("zenodo:breast.npz", "zenodo:RECORD/FILE"),
        ("https://a.org/x#md5=12", "#sha256="),
        ("http://a.org/x", "use `https:`"),
    ] {
        let stage = format!("[stage.a]\nkind = \"make\"\ninputs = {{ source = \"{text}\" }}\n");
        let found = check(&stage, &[("E002", &format!("\"{text}\""))]);
        assert!(helps(&found[0], help), "{text}: {found:?}");
    }
}

#[test]
fn e003_types_and_ranges() {
    let found = check("[stage.a]\nkind = \"make\"\nparams = { size = 200 }\n", &[("E003", "200")]);
    assert!(helps(&found[0], "at least 1 and at most 100; the default is 10"));
    let found = check("[stage.a]\nkind = \"make\"\nparams = { mode = \"slo\" }\n", &[("E003", "\"slo\"")]);
    assert!(helps(&found[0], "did you mean `slow`?"));
    assert!(helps(&found[0], "one of \"fast\", \"slow\"; the default is \"fast\""));
    check("[stage.a]\nkind = \"make\"\nparams = { size = true }\n", &[("E003", "true")]);
    check("[stage.a]\nkind = \"make\"\nparams = { size = 4.0 }\n", &[("E003", "4.0")]);
    check("[stage.a]\nkind = \"make\"\nparams = { lr = \"fast\" }\n", &[("E003", "\"fast\"")]);
    check("[stage.a]\nkind = \"make\"\nparams = { weights = [1, \"x\"] }\n", &[("E003", "\"x\"")]);
    check("[stage.a]\nkind = \"make\"\nparams = { limit = \"x\" }\n", &[("E003", "\"x\"")]);
    check("[stage.a]\nkind = \"make\"\nparams = 4\n", &[("E003", "4")]);
    check("[stage.a]\nkind = \"make\"\nparams = { lr = nan }\n", &[("E003", "nan")]);
    check("[stage.a]\nkind = \"make\"\nparams = { lr = 2026-01-01 }\n", &[("E003", "2026-01-01")]);
    check("[stage.a]\nkind = \"make\"\nresources = { mem = \"lots\" }\n", &[("E003", "\"lots\"")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = 3 }\n", &[("E003", "3")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [1.5] }\n", &[("E003", "1.5")]);
    check(
        "[vars]\nl = [1]\n[stage.a]\nkind = \"make\"\nparams = { name = \"x${l}\" }\n",
        &[("E003", "\"x${l}\"")],
    );
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a[m=*].rows\" }\n",
        &[("E003", "\"a[m=*].rows\"")],
    );
}

#[test]
fn frozen_sources_are_inputs() {
    let stage = |frozen: &str| {
        format!("[stage.a]\nkind = \"make\"\ninputs = {{ source = \"file:a.csv\" }}\nfrozen = {frozen}\n")
    };
    check(&stage("[\"file:a.csv\"]"), &[]);
    check(&stage("\"file:a.csv\""), &[("E003", "\"file:a.csv\"")]);
    check(&stage("[\"a.csv\"]"), &[("E003", "\"a.csv\"")]);
    check(&stage("[1]"), &[("E003", "1")]);
    let found = check(&stage("[\"file:b.csv\"]"), &[("E002", "\"file:b.csv\"")]);
    assert!(helps(&found[0], "did you mean `file:a.csv`?"));
}

#[test]
fn isolate_is_a_boolean() {
    check("[stage.a]\nkind = \"make\"\nisolate = true\n", &[]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [true, false] }\nisolate = \"${m}\"\n", &[]);
    check("[stage.a]\nkind = \"make\"\nisolate = 1\n", &[("E003", "1")]);
    check("[stage.a]\nkind = \"make\"\nisolate = \"${x}\"\n", &[("E002", "\"${x}\"")]);
}

#[test]
fn remote_caches_are_checked() {
    let stage = "[stage.a]\nkind = \"make\"\nremote = \"never\"\n";
    let remote = |text: &str| format!("[remote]\n{text}\n{stage}");
    check(
        &remote("url = \"s3://bucket/x\"\nendpoint = \"https://s3.example.org\"\nmode = \"read-write\""),
        &[],
    );
    check(&format!("[profile.lab.remote]\nurl = \"s3://bucket/x\"\n{stage}"), &[]);
    check(&remote("url = \"s4://bucket/x\""), &[("E003", "\"s4://bucket/x\"")]);
    check(&remote("url = \"s3://me:secret@bucket/x\""), &[("E003", "\"s3://me:secret@bucket/x\"")]);
    check(&remote("url = \"s3://b/x\"\nmode = \"write\""), &[("E003", "\"write\"")]);
    check(&remote("url = \"s3://b/x\"\nendpoint = \"s3.org\""), &[("E003", "\"s3.org\"")]);
    check(&remote("mode = \"read\""), &[("E010", "mode")]);
    check(&remote("url = \"s3://b/x\"\nbucket = \"b\""), &[("E002", "bucket")]);
    check("[stage.a]\nkind = \"make\"\nremote = \"sometimes\"\n", &[("E003", "\"sometimes\"")]);
}

#[test]
fn checkpoints_are_checked() {
    let stage = |checkpoint: &str| format!("[stage.a]\nkind = \"make\"\ncheckpoint = {checkpoint}\n");
    check(&stage("{ every = \"10min\", keep = 2, retain = true }"), &[]);
    check(&stage("{ every = 500 }"), &[]);
    check(&stage("{ every = 0 }"), &[("E003", "0")]);
    check(&stage("{ every = \"often\" }"), &[("E003", "\"often\"")]);
    check(&stage("{ keep = 0 }"), &[("E003", "0")]);
    check(&stage("{ retain = 1 }"), &[("E003", "1")]);
    let found = check(&stage("{ evry = 2 }"), &[("E002", "evry")]);
    assert!(helps(&found[0], "did you mean `every`?"));
}

#[test]
fn retries_are_checked() {
    let stage = |retry: &str| format!("[stage.a]\nkind = \"make\"\nretry = {retry}\n");
    check(&stage("{ max = -1 }"), &[("E003", "-1")]);
    check(&stage("{ max = \"often\" }"), &[("E003", "\"often\"")]);
    check(&stage("{ backoff = 30 }"), &[("E003", "30")]);
    check(&stage("{ on = \"io\" }"), &[("E003", "\"io\"")]);
    let found = check(&stage("{ on = [\"oom\", \"ooo\"] }"), &[("E003", "\"ooo\"")]);
    assert!(helps(&found[0], "did you mean `oom`?"));
    let found = check(&stage("{ mac = 2 }"), &[("E002", "mac")]);
    assert!(helps(&found[0], "did you mean `max`?"));
    check(&stage("2"), &[("E003", "2")]);
}

#[test]
fn e003_what_only_the_kind_knows() {
    let found = check("[stage.a]\nkind = \"make\"\nparams = { size = 7 }\n", &[("E003", "7")]);
    assert!(helps(&found[0], "take an even one"));
}

#[test]
fn e003_what_is_too_large() {
    let doubles: String = (1..40).map(|i| format!("b{i} = \"${{b{0}}}${{b{0}}}\"\n", i - 1)).collect();
    let text = format!(
        "[vars]\nb0 = \"0123456789abcdef\"\n{doubles}[stage.x]\nkind = \"make\"\nparams = {{ name = \"${{b39}}\" }}\n"
    );
    check(&text, &[("E003", "\"${b17}${b17}\"")]);
    let axes: String = (0..6)
        .map(|i| format!("a{i} = [{}], ", (0..50).map(|value| format!("{value}, ")).collect::<String>()))
        .collect();
    let matrix = format!("{{ {} }}", axes.trim_end_matches(", "));
    check(&format!("[stage.a]\nkind = \"make\"\nmatrix = {matrix}\n"), &[("E003", &matrix)]);
}

#[test]
fn e004_unknown_stage() {
    let found = check(
        "[stage.make]\nkind = \"make\"\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"mkae.rows\" }\n",
        &[("E004", "\"mkae.rows\"")],
    );
    assert!(helps(&found[0], "did you mean `make`?"));
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = \"@b\" }\n", &[("E004", "\"@b\"")]);
}

#[test]
fn e005_unknown_output() {
    let found = check(
        "[stage.a]\nkind = \"make\"\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a.row\" }\n",
        &[("E005", "\"a.row\"")],
    );
    assert!(helps(&found[0], "did you mean `rows`?") && helps(&found[0], "`rows`, `labels`"));
    // Left out where there are two.
    check(
        "[stage.a]\nkind = \"make\"\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a\" }\n",
        &[("E005", "\"a\"")],
    );
}

#[test]
fn e006_cycles() {
    check(
        "[stage.a]\nkind = \"free\"\ninputs = { x = \"c\" }\n[stage.b]\nkind = \"free\"\ninputs = { x = \"a\" }\n[stage.c]\nkind = \"free\"\ninputs = { x = \"b\" }\n",
        &[("E006", "\"a\" + \"b\" + \"c\"")],
    );
    check("[stage.a]\nkind = \"free\"\ninputs = { x = \"a\" }\n", &[("E006", "\"a\"")]);
    check(
        "[vars]\nx = \"${y}\"\ny = \"${x}\"\n[stage.a]\nkind = \"make\"\nparams = { size = \"${x}\" }\n",
        &[("E006", "\"${y}\" + \"${x}\"")],
    );
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = \"@b\" }\n[stage.b]\nkind = \"make\"\nmatrix = { m = \"@a\" }\n",
        &[("E006", "\"@b\" + \"@a\"")],
    );
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [{ id = \"x\", f = \"${m.f}\" }] }\nparams = { name = \"${m.f}\" }\n",
        &[("E006", "\"${m.f}\"")],
    );
}

#[test]
fn e007_duplicates() {
    check("[stage.a]\nkind = \"make\"\nkind = \"make\"\n", &[("E007", "kind + kind")]);
    check("[stage.a]\nkind = \"make\"\n[stage.a]\ndoc = \"x\"\n", &[("E007", "a + a")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [\"x\", 1, \"x\"] }\n", &[("E007", "\"x\" + \"x\"")]);
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1] }\ninclude = [{ m = 1 }]\n",
        &[("E007", "{ m = 1 } + 1")],
    );
    Study::new("[pipeline]\nname = \"t\"\nformat = 1\ninclude = [\"b.toml\"]\n[stage.a]\nkind = \"make\"\n")
        .file("b.toml", "[stage.a]\nkind = \"make\"\n")
        .expect(&[("E007", "a + a")]);
    Study::new(
        "[pipeline]\nname = \"t\"\nformat = 1\ninclude = [\"b.toml\"]\n[vars]\nv = 2\n[stage.a]\nkind = \"make\"\nparams = { size = \"${v}\" }\n[profile.p]\nvars = { v = 4 }\n",
    )
    .file("b.toml", "[profile.p]\nvars = { v = 6 }\n")
    .expect(&[("E007", "v + v")]);
}

#[test]
fn e008_axes_that_are_not_given() {
    let found = check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a.rows\" }\n",
        &[("E008", "\"a.rows\"")],
    );
    assert!(helps(&found[0], "`a[m=VALUE]`") && helps(&found[0], "`a[m=*]`") && helps(&found[0], "\"@a\""));
    // The consumer has a node that the producer excludes.
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\nexclude = [{ m = 2 }]\n[stage.b]\nkind = \"train.linear\"\nmatrix = { m = [1, 2] }\ninputs = { rows = \"a.rows\" }\n",
        &[("E008", "\"a.rows\"")],
    );
}

#[test]
fn e009_types() {
    let found = check(
        "[stage.a]\nkind = \"make\"\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a.labels\" }\n",
        &[("E009", "\"a.labels\" + a")],
    );
    assert!(found[0].message.contains("takes `table<rows>`, but `a.labels` is `table<labels>`"));
    assert!(helps(&found[0], "`a.rows` would fit"));
    check(
        "[stage.a]\nkind = \"ports\"\nmatrix = { m = [{ id = \"x\", p = [\"a\"] }, { id = \"y\", p = [\"b\"] }] }\nparams = { names = \"${m.p}\" }\n",
        &[("E009", "a")],
    );
    check(
        "[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"file:rows.csv\" }\n",
        &[("E009", "\"file:rows.csv\"")],
    );
}

#[test]
fn e010_missing() {
    check("[stage.a]\nkind = \"strict\"\n", &[("E010", "a")]);
    check("[stage.a]\nkind = \"train.linear\"\n", &[("E010", "a")]);
    check("[stage.a]\ndoc = \"x\"\n", &[("E010", "a")]);
    check("[pipeline]\nname = \"t\"\n[stage.a]\nkind = \"make\"\n", &[("E010", "pipeline")]);
    check("", &[("E010", "")]);
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1], n = [1] }\ninclude = [{ m = 2 }]\n",
        &[("E010", "{ m = 2 }")],
    );
    check("[stage.b]\nkind = \"gather\"\ninputs = { models = [] }\n", &[("E010", "[]")]);
}

#[test]
fn e011_includes() {
    let text = |include: &str| {
        format!("[pipeline]\nname = \"t\"\nformat = 1\ninclude = [{include}]\n[stage.a]\nkind = \"make\"\n")
    };
    Study::new(&text("\"no.toml\"")).expect(&[("E011", "\"no.toml\"")]);
    Study::new(&text("\"parts/*.toml\"")).expect(&[("E011", "\"parts/*.toml\"")]);
    Study::new(&text("\"pipeline.toml\"")).expect(&[("E011", "\"pipeline.toml\"")]);
    Study::new(&text("\"b.toml\", \"*b.toml\""))
        .file("b.toml", "")
        .expect(&[("E011", "\"*b.toml\" + \"b.toml\"")]);
    // What the missing file may define is no mistake of its own.
    let uses = |include: &str| format!("{}params = {{ size = \"${{size}}\" }}\n", text(include));
    Study::new(&uses("\"no.toml\"")).expect(&[("E011", "\"no.toml\"")]);
    Study::new(&uses("\"b.toml\"")).file("b.toml", "").expect(&[("E002", "\"${size}\"")]);
    let missing = super::load(std::path::Path::new("/nowhere.toml"), &Default::default(), &super::registry());
    assert_eq!(missing.diagnostics[0].code, "E011");
}

#[test]
fn e013_resources() {
    let found = check("[stage.a]\nkind = \"make\"\nresources = { gpu = 1 }\n", &[("E013", "1")]);
    assert!(helps(&found[0], "cpu = 8, gpu = 0, mem = 1073741824"));
    check("[stage.a]\nkind = \"make\"\nresources = { mem = \"2GiB\" }\n", &[("E013", "\"2GiB\"")]);
    // A limit that the study sets itself is shown beside what exceeds it.
    let study = |executor: &str, resources: &str| {
        format!("[executor.local]\n{executor}\n[stage.a]\nkind = \"make\"\nresources = {{ {resources} }}\n")
    };
    check(&study("gpu = 2", "gpu = 2"), &[]);
    check(&study("gpu = 2", "gpu = 3"), &[("E013", "3 + 2")]);
    check(&study("mem = \"4GiB\"", "mem = \"2GiB\""), &[]);
    check(&study("mem = \"1KiB\"", "mem = 2048"), &[("E013", "2048 + \"1KiB\"")]);
    check(&study("cpu = 2", "cpu = 3"), &[("W105", "3 + 2")]);
    let found =
        check(&study("tokens = { licence = 1, disk = 4 }", "licence = 2, disk = 4"), &[("E013", "2 + 1")]);
    assert!(helps(&found[0], "disk = 4, io = 8, licence = 1"));
}

#[test]
fn executors_are_checked() {
    let with = |section: &str, expected: &[(&str, &str)]| {
        check(&format!("{section}\n[stage.a]\nkind = \"make\"\n"), expected)
    };
    with("[executor.local]\ncpu = 2\nmem = \"4GiB\"\ngpu = 0\ntokens = { licence = 0 }", &[]);
    with("[vars]\ncores = 4\n[executor.local]\ncpu = \"${cores}\"", &[]);
    with("[executor]\nlocal = 4", &[("E003", "4")]);
    with("[executor.local]\ncpu = 0", &[("E003", "0")]);
    with("[executor.local]\nmem = \"lots\"", &[("E003", "\"lots\"")]);
    with("[executor.local]\ngpu = 0.5", &[("E003", "0.5")]);
    with(
        "[executor]\nuse = \"slurm\"\n[executor.slurm]\npartition = \"gpu\"\nextra_args = [\"--exclusive\"]\nexport = [\"SEED\"]\n\
         setup = \"module load cuda\"\nmax_tasks = 8\nmax_submitted = 100\ntask_target = \"40min\"\nsubmit_rate = \"30/min\"\n\
         poll = 5\ntime_margin = \"60s\"",
        &[],
    );
    with("[executor]\nuse = \"moon\"", &[("E003", "\"moon\"")]);
    with("[executor.slurm]\npartitions = \"x\"", &[("E002", "partitions")]);
    for (key, wrong) in [
        ("partition", "\"-p\""),
        ("extra_args", "\"--exclusive\""),
        ("extra_args", "[\"--array=0-5\"]"),
        ("extra_args", "[\"-e\", \"here\"]"),
        ("export", "[\"a b\"]"),
        ("setup", "5"),
        ("max_tasks", "0"),
        ("max_submitted", "-1"),
        ("task_target", "\"soon\""),
        ("submit_rate", "\"0/s\""),
        ("submit_rate", "\"1/moon\""),
        ("poll", "0"),
        ("time_margin", "\"\""),
    ] {
        with(&format!("[executor.slurm]\n{key} = {wrong}"), &[("E003", wrong)]);
    }
    with("[executor.local]\ntokens = [\"licence\"]", &[("E003", "[\"licence\"]")]);
    with("[executor.local]\ntokens = { licence = -1 }", &[("E003", "-1")]);
    with("[executor.local]\ntokens = { mem = 1 }", &[("E015", "mem")]);
    with("[executor.local]\ntokens = { A = 1 }", &[("E015", "A")]);
    let found = with("[executor.local]\ncpus = 2", &[("E002", "cpus")]);
    assert!(helps(&found[0], "did you mean `cpu`?"));
    let found = with("[profile.p.executor.local]\ntoken = { a = 1 }", &[("E002", "token")]);
    assert!(helps(&found[0], "did you mean `tokens`?"));
    // A token that nothing defines.
    let found = check(
        "[executor.local]\ntokens = { licence = 1 }\n[stage.a]\nkind = \"make\"\nresources = { license = 1 }\n",
        &[("E002", "license")],
    );
    assert!(helps(&found[0], "did you mean `licence`?") && helps(&found[0], "tokens = { license = 1 }"));
    check(
        "[executor.local]\ntokens = { licence = 1 }\n[stage.a]\nkind = \"make\"\nresources = { licence = \"1\" }\n",
        &[("E003", "\"1\"")],
    );
}

/// What a profile that was not chosen sets is looked at too, by `pipe check`.
#[test]
fn profiles_that_were_not_chosen_are_tried() {
    let text = "[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\n[profile.good]\nset = { \"stage.a[m=1].params.size\" = 4 }\n\
                [profile.bad]\nset = { \"stage.a.params.sise\" = 4, \"stage.a[m=3].params.size\" = 4 }\n";
    let study = Study::new(text);
    let mut loaded = study.load();
    assert!(loaded.diagnostics.is_empty());
    study.try_profiles(&mut loaded);
    let told: Vec<(&str, &str)> =
        loaded.diagnostics.iter().map(|one| (one.code, one.message.as_str())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told.iter().all(|(code, message)| *code == "W101" && message.starts_with("profile `bad`: ")),
        "{told:?}"
    );
    assert!(!loaded.has_errors());
}

#[test]
fn a_cluster_is_chosen_by_a_profile_and_has_what_this_machine_has_not() {
    let text = "[executor.slurm]\npartition = \"cpu\"\n[profile.big.executor]\nuse = \"slurm\"\n\
                [profile.big.executor.slurm]\nmax_tasks = 9\n[stage.a]\nkind = \"make\"\n\
                resources = { gpu = 99, partition = \"gpu\" }\n";
    check(text, &[("E013", "99")]);
    let pipeline = Study::new(text).profile("big").pipeline();
    let executor = &pipeline.executor;
    assert_eq!(executor.place, crate::pipeline::Place::Slurm);
    assert_eq!((executor.slurm.names["partition"].as_str(), executor.slurm.max_tasks), ("cpu", 9));
    let jobs = &pipeline.nodes[0].resources.jobs;
    assert_eq!((jobs.names["partition"].as_str(), jobs.max_tasks), ("gpu", 9));
    let stage = |resources: &str, wrong: &[(&str, &str)]| {
        check(&format!("[stage.a]\nkind = \"make\"\nresources = {{ {resources} }}\n"), wrong)
    };
    stage("qos = 5", &[("E003", "5")]);
    let all = "extra_args = [\"--exclusive\"], export = [\"SEED\"], setup = \"module load cuda\", max_tasks = 2, \
               task_target = \"5min\", time_margin = 60, max_submitted = 3, submit_rate = \"2/min\", poll = 5";
    stage(all, &[]);
    stage("extra_args = [\"--wrap=x\"]", &[("E003", "[\"--wrap=x\"]")]);
    stage("task_target = \"soon\"", &[("E003", "\"soon\"")]);
    stage("submit_rate = 1e-300", &[("E003", "1e-300")]);
    stage("submit_rate = 1e300", &[("E003", "1e300")]);
}

#[test]
fn executors_of_several_files_and_profiles() {
    let study = || {
        Study::new(
            "[pipeline]\nname = \"t\"\nformat = 1\ninclude = [\"site.toml\"]\n[executor.local]\ncpu = 2\n\
             [profile.big.executor.local]\ncpu = 4\ntokens = { licence = 3 }\n\
             [stage.a]\nkind = \"make\"\nresources = { cpu = 2, licence = 1 }\n",
        )
    };
    let site = "[executor.local]\ngpu = 1\ntokens = { licence = 1 }\n";
    let limits = study().file("site.toml", site).pipeline().executor.limits;
    assert_eq!((limits.cpu, limits.gpu, limits.tokens["licence"]), (2, 1, 1));
    let limits = study().file("site.toml", site).profile("big").pipeline().executor.limits;
    assert_eq!((limits.cpu, limits.gpu, limits.tokens["licence"]), (4, 1, 3));
    let twice = "[executor.local]\ncpu = 1\ntokens = { licence = 1 }\n";
    study().file("site.toml", twice).expect(&[("E007", "cpu + cpu")]);
}

#[test]
fn e014_folders() {
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [\"x\", \"X\"] }\n", &[("E014", "a + a")]);
}

#[test]
fn e015_names() {
    check("[stage.A]\nkind = \"make\"\n", &[("E015", "A")]);
    check("[vars]\nx-y = 1\n", &[("E015", "x-y"), ("W101", "x-y")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { \"x y\" = [1] }\n", &[("E015", "\"x y\"")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [\"a/b\"] }\n", &[("E015", "\"a/b\"")]);
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [\"*\"] }\n", &[("E015", "\"*\"")]);
    check("[pipeline]\nname = \"../x\"\nformat = 1\n[stage.a]\nkind = \"make\"\n", &[("E015", "\"../x\"")]);
    check("[stage.a]\nkind = \"make\"\n[profile.\"../x\"]\n", &[("E015", "\"../x\"")]);
}

#[test]
fn e016_empty() {
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1] }\nexclude = [{ m = 1 }]\n",
        &[("E016", "{ m = [1] }")],
    );
    check(
        "[stage.a]\nkind = \"make\"\nmatrix = { m = [1] }\nexclude = [{ m = 2 }]\n",
        &[("E016", "{ m = 2 }")],
    );
    check("[stage.a]\nkind = \"make\"\nmatrix = { m = [] }\n", &[("E016", "[]")]);
}

#[test]
fn e017_format() {
    let found = check("[pipeline]\nname = \"t\"\nformat = 2\n[stage.a]\nkind = \"make\"\n", &[("E017", "2")]);
    assert!(helps(&found[0], "format = 1"));
}

#[test]
fn w101_unused() {
    check("[vars]\nx = 1\n[stage.a]\nkind = \"make\"\n", &[("W101", "x")]);
    check(
        "[stage.a]\nkind = \"make\"\n[profile.p]\nvars = { x = 1 }\nset = { \"stage.b.params.size\" = 2 }\n",
        &[("W101", "x"), ("W101", "\"stage.b.params.size\"")],
    );
}

#[test]
fn w102_overrides_that_change_nothing() {
    let study =
        "[vars]\nv = 4\n[stage.a]\nkind = \"make\"\nmatrix = { m = [1, 2] }\nparams = { size = \"${v}\" }\n";
    for (option, code) in [
        ("stage.a.params.size=4", "W102"),
        ("stage.a.params.lr=0.5", "W102"),
        ("stage.a.params.sise=4", "E002"),
        ("stage.b.params.size=4", "E002"),
        ("stage.a[m=3].params.size=4", "E002"),
        ("stage.a[n=3].params.size=4", "E002"),
        ("stage.a.kind=x", "E002"),
        ("a.params.size=4", "E002"),
        ("stage.a", "E002"),
    ] {
        let found = Study::new(study).set(option).expect(&[(code, "")]);
        assert!(found[0].message.contains(option), "{}", found[0].message);
    }
    Study::new(study).var("v=4").expect(&[("W102", "")]);
    Study::new(study).var("w=4").expect(&[("E002", "")]);
    Study::new(study).profile("p").expect(&[("E002", "")]);
}

#[test]
fn w103_numbers_in_quotes() {
    check("[stage.a]\nkind = \"make\"\nparams = { lr = \"1e-3\" }\n", &[("W103", "\"1e-3\"")]);
    check(
        "[stage.a]\nkind = \"make\"\nparams = { size = \"200\" }\n",
        &[("E003", "\"200\""), ("W103", "\"200\"")],
    );
}

#[test]
fn w104_results_that_differ_from_run_to_run() {
    let found = check(
        "[stage.a]\nkind = \"moody\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"train.linear\"\nmatrix = \"@a\"\ninputs = { rows = \"a\" }\n",
        &[("W104", "\"a\" + a")],
    );
    assert!(found[0].message.contains("kind `moody` is not deterministic"));
}

#[test]
fn w105_more_cores_than_there_are() {
    check("[stage.a]\nkind = \"make\"\nresources = { cpu = 64 }\n", &[("W105", "64")]);
}

#[test]
fn all_mistakes_at_once_and_in_order() {
    check(
        "[vars]\nunused = 1\n[stage.a]\nkind = \"make\"\nparams = { sise = 4, lr = true }\n[stage.b]\nkind = \"train.linear\"\ninputs = { rows = \"a.nothing\" }\n[stage.c]\nkind = \"nothing\"\n",
        &[
            ("W101", "unused"),
            ("E002", "sise"),
            ("E003", "true"),
            ("E005", "\"a.nothing\""),
            ("E002", "\"nothing\""),
        ],
    );
}

/// One mistake does not follow from another.
#[test]
fn mistakes_do_not_cascade() {
    check(
        "[stage.a]\nkind = \"nothing\"\nmatrix = { m = [1, 2] }\n[stage.b]\nkind = \"train.linear\"\nmatrix = { m = \"@a\" }\ninputs = { rows = \"a.rows\" }\nparams = { size = \"${no}\" }\n",
        &[("E002", "\"nothing\""), ("E002", "\"${no}\"")],
    );
}
