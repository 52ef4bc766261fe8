//! `pipe init`: what it writes runs, and nothing of the user's is touched.

use crate::study::Study;

#[test]
fn every_template_checks_and_runs() {
    for template in ["classify", "retrieval", "bias", "vqa", "attribution", "labels"] {
        let study = Study::new("");
        std::fs::remove_file(study.path("study.toml")).expect("it is there");
        let answer = study.pipe(&["init", "--template", template]).expect(0);
        assert!(answer.stdout.contains("pipe run study.toml"), "{}", answer.stdout);
        let ignored = std::fs::read_to_string(study.path(".gitignore")).expect("it is there");
        assert_eq!(ignored, "/.pipe/\n/results/\n");
        assert!(study.path("pipeline.schema.json").is_file());
        study.pipe(&["check", "study.toml"]).expect(0);
        // Smaller than as written: every stage runs, which is all that is asked here.
        let text = std::fs::read_to_string(study.path("study.toml")).expect("it is there");
        assert!(text.starts_with("#:schema ./pipeline.schema.json\n"));
        let mut small = text;
        for (old, new) in [
            ("train = 800", "train = 80"),
            ("train = 1500", "train = 80"),
            ("train = 1000", "train = 160"),
            ("test = 400", "test = 40"),
            ("test = 300", "test = 40"),
            ("test = 250", "test = 40"),
        ] {
            small = small.replace(old, new);
        }
        study.write(&small);
        study.run(&[]).expect(0);
        let page = study.path("results").join(template).join("report/page/index.html");
        assert!(page.is_file(), "{template}");
        assert_eq!(study.run(&[]).expect(0).started(), [] as [&str; 0]);
    }
}

#[test]
fn what_is_there_stays() {
    let study = Study::new("# mine\n");
    let answer = study.pipe(&["init"]).expect(2);
    assert!(answer.stderr.contains("`./study.toml` exists"), "{}", answer.stderr);
    assert_eq!(std::fs::read_to_string(study.path("study.toml")).expect("it is there"), "# mine\n");
    let answer = study.pipe(&["init", "other", "--template", "clasify"]).expect(2);
    assert!(answer.stderr.contains("did you mean `classify`"), "{}", answer.stderr);
    assert!(!study.path("other").exists());
    study.write_file("other/.gitignore", "mine\n");
    study.pipe(&["init", "other"]).expect(0);
    assert_eq!(std::fs::read_to_string(study.path("other/.gitignore")).expect("it is there"), "mine\n");
    let answer = study.pipe(&["init", "--template", "help"]).expect(0);
    assert!(answer.stdout.contains("attribution") && answer.stdout.lines().count() == 6, "{}", answer.stdout);
}
