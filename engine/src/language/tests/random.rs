//! Arbitrary text never ends in a panic, neither in the loader nor in what shows its mistakes.

use proptest::prelude::*;

use super::Study;
use crate::language::{render_json, render_text};

/// Words of the language in any order: they get further than arbitrary characters.
const WORDS: [&str; 48] = [
    "[pipeline]\n",
    "name = ",
    "\"t\"\n",
    "format = 1\n",
    "include = [\"*.toml\"]\n",
    "[vars]\n",
    "x = ",
    "y = ",
    "[stage.a]\n",
    "[stage.b]\n",
    "[stage.\"é\"]\n",
    "[profile.p]\n",
    "[executor]\n",
    "kind = ",
    "\"make\"\n",
    "\"train.linear\"\n",
    "\"gather\"\n",
    "\"free\"\n",
    "matrix = ",
    "params = ",
    "inputs = ",
    "resources = ",
    "exclude = ",
    "set = ",
    "{ m = [1, 2] }\n",
    "{ m = \"@a\" }\n",
    "{ m = \"@b\" }\n",
    "\"@b\"\n",
    "{ m = \"${x}\" }\n",
    "{ size = \"${m}\" }\n",
    "{ rows = \"a.rows\" }\n",
    "{ models = \"b[m=*]\" }\n",
    "{ x = [\"a[m=1]\", \"b\"] }\n",
    "\"${x}${y}\"\n",
    "\"${y.a[0]}\"\n",
    "\"$${${x}\"\n",
    "[{ m = 1 }]\n",
    "[{ id = \"é\", f = \"${m.f}\" }]\n",
    "{ \"stage.a.params.size\" = 3 }\n",
    "{ cpu = 3, mem = \"1GiB\" }\n",
    "\"\"\"\n",
    "1e400\n",
    "-9223372036854775809\n",
    "[[stage]]\n",
    "{",
    "]",
    "é\u{0}\n",
    "\r\n",
];

fn survives(text: &str, set: &str) {
    let study = Study::new(text).profile("p").var(set).set(set);
    let loaded = study.load();
    assert_eq!(loaded.pipeline.is_some(), !loaded.has_errors());
    let _ = render_text(&loaded.diagnostics, &loaded.sources, false);
    let _ = render_json(&loaded.diagnostics, &loaded.sources);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}", set in "\\PC{0,40}") {
        survives(&text, &set);
    }

    #[test]
    fn any_words_are_survived(
        words in proptest::collection::vec(proptest::sample::select(&WORDS[..]), 0..40),
        set in "(stage\\.)?[ab](\\[m=[12*]\\])?\\.params\\.(size|lr|head\\.x)=(1|\\$\\{x\\}|\\{\\}|)",
    ) {
        survives(&words.concat(), &set);
    }
}

#[test]
fn deep_nesting_is_a_mistake_and_no_crash() {
    for text in [
        format!("[vars]\nx = {}{}\n", "[".repeat(50_000), "]".repeat(50_000)),
        format!("[vars]\nx = {}1{}\n", "{ a = ".repeat(50_000), " }".repeat(50_000)),
        format!("[vars]\n{}x = 1\n", "a.".repeat(50_000)),
        format!("[{}x]\n", "a.".repeat(50_000)),
    ] {
        let loaded = Study::new(&text).load();
        assert!(loaded.has_errors());
        let _ = render_text(&loaded.diagnostics, &loaded.sources, false);
    }
    let lists: String = (1..5_000).map(|i| format!("v{i} = [\"${{v{}}}\"]\n", i - 1)).collect();
    let loaded = Study::new(&format!("[vars]\nv0 = 1\n{lists}")).load();
    assert!(loaded.diagnostics.iter().any(|one| one.code == "E003"));
}
