//! Hostile pipeline files: whatever they hold, they are a study or a list of mistakes that can be shown.

use pipe_fuzz::fuzz;

use super::Study;
use crate::language::{render_json, render_text};

const STUDY: &str = r#"[pipeline]
name = "t"
format = 1
doc = "é"

[vars]
seeds = [1, 2]
size = 3
models = [{ id = "a", lr = 1e-3 }, { id = "b", lr = 2e-3 }]

[stage.data]
kind = "make"
params = { size = "${size}" }

[stage.fit]
kind = "train.linear"
matrix = { model = "${models}", seed = "${seeds}" }
exclude = [{ model = "a", seed = 2 }]
inputs = { rows = "data.rows" }
params = { lr = "${model.lr}" }
resources = { cpu = 1, mem = "1GiB", time = "2h" }
retry = { max = 2, backoff = "30s", on = ["io"] }

[stage.all]
kind = "gather"
inputs = { x = "fit[model=*,seed=*].model" }

[profile.small.vars]
size = 1

[remote]
url = "s3://bucket/x"
"#;

#[test]
fn fuzz_pipelines() {
    let words: [&[u8]; 12] = [
        b"[stage.",
        b"\"${",
        b"}\"",
        b"\"@fit\"",
        b"[model=*]",
        b"file:",
        b"hf:",
        b"matrix = ",
        b"[[vars.x]]\n",
        b"include = ",
        b"\"\"\"",
        b"\xef\xbb\xbf",
    ];
    fuzz("pipelines", &[STUDY.as_bytes().to_vec()], &words, |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let study = Study::new(text);
        let loaded = study.load();
        // Whatever is wrong can be shown to people and to machines.
        let shown = render_text(&loaded.diagnostics, &loaded.sources, false);
        assert_eq!(loaded.has_errors(), loaded.pipeline.is_none(), "{shown}");
        let _ = render_json(&loaded.diagnostics, &loaded.sources);
    });
}
