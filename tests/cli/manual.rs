//! What the program says of itself: the version, manual pages, completions, and pages of `docs/`.

use std::path::Path;

use crate::study::Study;

#[test]
fn the_version_names_the_build() {
    let study = Study::new("");
    let long = study.pipe(&["--version"]).expect(0).stdout;
    for fact in ["pipe 0.", "revision: ", "target: ", "profile: ", "compiler: rustc ", "features: "] {
        assert!(long.contains(fact), "{long}");
    }
    assert_eq!(study.pipe(&["-V"]).expect(0).stdout.lines().count(), 1);
}

#[test]
fn every_command_has_a_page_and_completions() {
    let study = Study::new("");
    study.pipe(&["man", "pages"]).expect(0);
    let pages: Vec<String> = study.files("pages").into_iter().map(|(name, _)| name).collect();
    for page in ["pipe.1", "pipe-run.1", "pipe-query.1", "pipe-report.1", "pipe-man.1"] {
        assert!(pages.iter().any(|name| name == page), "{pages:?}");
    }
    assert!(!pages.iter().any(|name| name.contains("isolated")), "{pages:?}");
    let page = study.pipe(&["man"]).expect(0).stdout;
    assert!(page.contains(".TH pipe 1") && page.contains("Exit codes"), "{page}");
    for shell in ["bash", "zsh", "fish"] {
        let script = study.pipe(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("query") && script.contains("report"), "{shell}");
    }
}

/// Pages that the program makes are those that lie in `docs/`.
#[test]
fn generated_pages_are_current() {
    let study = Study::new("");
    for (page, arguments) in [
        ("reference.md", ["schema", "--format", "md"].as_slice()),
        ("data-dictionary.md", &["schema", "--tables"]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
        let made = study.pipe(arguments).expect(0).stdout;
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == made, "docs/{page} is not current: `pipe {} > docs/{page}`", arguments.join(" "));
    }
}
