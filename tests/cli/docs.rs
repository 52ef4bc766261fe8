//! The guide says what is so: its commands run, its flags exist, its TOML is TOML, its links lead somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::study::{Answer, Study};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the guide with their texts, and the README.
fn pages() -> Vec<(PathBuf, String)> {
    let folder = std::fs::read_dir(root().join("docs")).expect("the guide is there");
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.push(root().join("README.md"));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("pages are UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The blocks of a page in this language.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    page.split(&begin).skip(1).map(|rest| rest.split("\n```").next().unwrap_or(rest)).collect()
}

/// A line as a shell would cut it, with quotes and comments, and nothing else.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut is_word) = (String::new(), None, false);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (Some(_), inner) => word.push(inner),
            (None, '"' | '\'') => (quote, is_word) = (Some(character), true),
            (None, ' ') => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            (None, '#') if !is_word => break,
            (None, other) => {
                word.push(other);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    words
}

/// Fewer images than as written: that a command works is all that is asked here.
fn shrink(study: &Study, folder: &str) {
    let path = Path::new(folder).join("study.toml");
    let text = std::fs::read_to_string(study.path("").join(&path)).expect("`pipe init` wrote it");
    let small = text.replace("train = 800", "train = 80").replace("test = 400", "test = 40");
    study.write_file(path.to_str().expect("it is ASCII"), small);
}

/// Each line of the block is in the answer, in this order; `...` are any lines.
fn compare(page: &str, command: &str, answer: &Answer, expected: &[&str]) {
    let code = expected
        .iter()
        .find_map(|line| line.strip_prefix("? "))
        .map_or(0, |code| code.parse().expect("a number"));
    assert_eq!(answer.code, Some(code), "{page}: {command}\n{}\n{}", answer.stdout, answer.stderr);
    let mut lines = answer.stdout.lines();
    for wanted in expected.iter().filter(|line| **line != "..." && !line.starts_with("? ")) {
        assert!(
            lines.any(|line| line == *wanted),
            "{page}: {command}\nhas no line\n{wanted}\nin\n{}",
            answer.stdout
        );
    }
}

#[test]
fn commands_of_the_guide_do_what_it_says() {
    let mut commands = 0;
    for (path, page) in pages() {
        let study = Study::new("");
        std::fs::remove_file(study.path("study.toml")).expect("it is there");
        let mut folder = String::new();
        for block in blocks(&page, "console") {
            let lines: Vec<&str> = block.lines().collect();
            let starts: Vec<usize> =
                (0..lines.len()).filter(|place| lines[*place].starts_with("$ ")).collect();
            for (number, start) in starts.iter().enumerate() {
                let end = starts.get(number + 1).copied().unwrap_or(lines.len());
                let command = &lines[*start][2..];
                let words = words(command);
                let arguments: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
                match words[0].as_str() {
                    "cd" => folder = arguments[0].to_owned(),
                    "pipe" => {
                        let mut process = study.command(&arguments);
                        process.current_dir(study.path(&folder));
                        let answer = Answer::of(&process.output().expect("the program starts"));
                        compare(&path.display().to_string(), command, &answer, &lines[start + 1..end]);
                        if arguments[0] == "init" {
                            shrink(&study, arguments.get(1).unwrap_or(&"."));
                        }
                        commands += 1;
                    }
                    other => panic!("{}: `{other}` is not run here", path.display()),
                }
            }
        }
    }
    assert!(commands > 8, "{commands} commands");
}

#[test]
fn commands_and_flags_of_the_guide_exist() {
    let study = Study::new("");
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut checked = BTreeSet::new();
    for (path, page) in pages() {
        let lines = blocks(&page, "sh").into_iter().chain(blocks(&page, "console")).flat_map(str::lines);
        // And what stands in a sentence.
        let quoted = page.split('`').filter(|text| text.starts_with("pipe ") && !text.contains('\n'));
        for line in lines.chain(quoted) {
            let line = line.trim_start_matches("$ ").replace("cargo run --release -- ", "pipe ");
            let words = words(line.split(" && ").next().unwrap_or_default());
            if words.first().is_none_or(|word| word != "pipe") {
                continue;
            }
            let Some(command) = words.get(1).filter(|word| word.chars().all(|one| one.is_ascii_lowercase()))
            else {
                continue;
            };
            let help = helps.entry(command.clone()).or_insert_with(|| {
                let answer = study.pipe(&[command, "--help"]);
                assert_eq!(
                    answer.code,
                    Some(0),
                    "{}: there is no command `{command}`: {line}",
                    path.display()
                );
                answer.stdout
            });
            for word in words.iter().skip(2).filter(|word| word.starts_with("--") && word.len() > 2) {
                let flag = word.split('=').next().unwrap_or(word);
                assert!(help.contains(flag), "{}: `{command}` has no `{flag}`", path.display());
                checked.insert((command.clone(), flag.to_owned()));
            }
        }
    }
    assert!(checked.len() > 20, "{checked:?}");
}

#[test]
fn toml_in_the_guide_is_toml() {
    for (path, page) in pages() {
        for block in blocks(&page, "toml") {
            let parsed = block.parse::<toml::Table>();
            assert!(parsed.is_ok(), "{}:\n{block}\n{}", path.display(), parsed.expect_err("it is wrong"));
        }
    }
}

#[test]
fn links_of_the_guide_lead_somewhere() {
    let pages = pages();
    let index =
        &pages.iter().find(|(path, _)| path.ends_with("docs/README.md")).expect("there is an index").1;
    for (path, page) in &pages {
        let folder = path.parent().expect("it lies in a folder");
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains([' ', '`', '\n']) {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(target.exists(), "{}: `{link}` leads nowhere", path.display());
            if let Some(anchor) = anchor {
                let text = std::fs::read_to_string(&target).expect("it is a page");
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let slug = |line: &str| -> String {
                    let line = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
                    line.chars().filter(|one| one.is_alphanumeric() || "-_".contains(*one)).collect()
                };
                assert!(
                    headings.map(slug).any(|slug| slug == anchor),
                    "{}: `{link}` has no heading",
                    path.display()
                );
            }
        }
        let name = path.file_name().and_then(|name| name.to_str()).expect("names are UTF-8");
        let is_listed = name == "README.md" || index.contains(&format!("({name})"));
        assert!(is_listed, "the index does not name `{name}`");
    }
}

/// Kinds, inputs and parameters that the guide names are those of the program. Its examples are parts of
/// studies, so what they refer to need not be there.
#[test]
fn stages_of_the_guide_are_those_of_the_program() {
    let mut stages = 0;
    for (path, page) in pages() {
        for block in blocks(&page, "toml")
            .into_iter()
            .filter(|block| block.contains("[stage.") && !block.contains("# ..."))
        {
            let head = if block.contains("[pipeline]") {
                ""
            } else {
                "[pipeline]\nname = \"guide\"\nformat = 1\n\n"
            };
            let study = Study::new(&format!("{head}{block}\n"));
            let answer = study.json("check", &[]);
            for one in answer["diagnostics"].as_array().into_iter().flatten() {
                let (code, message) =
                    (one["code"].as_str().unwrap_or(""), one["message"].as_str().unwrap_or(""));
                let elsewhere = ["variable", "axis", "`${"].iter().any(|word| message.contains(word));
                let is_wrong = ["E001", "E002", "E003", "E009"].contains(&code) && !elsewhere;
                assert!(!is_wrong, "{}:\n{block}\n{code}: {message}", path.display());
            }
            stages += 1;
        }
    }
    assert!(stages > 15, "{stages}");
}

/// The first column of the tables of a page, where `is_code` takes it.
fn codes_of(page: &str, is_code: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let page = std::fs::read_to_string(root().join("docs").join(page)).expect("the page is there");
    let first = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
    first.map(|(code, _)| code.to_owned()).filter(|code| is_code(code)).collect()
}

/// A letter and three digits.
fn is_diagnostic(code: &str) -> bool {
    code.len() == 4 && code.starts_with(['E', 'W']) && code[1..].bytes().all(|byte| byte.is_ascii_digit())
}

/// Every code that a diagnostic may have is explained, and no other one.
#[test]
fn every_code_of_a_refusal_has_its_line_in_the_guide() {
    let mut used = BTreeSet::new();
    let mut folders = vec![root().join("engine/src"), root().join("stages/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("it is a folder") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(path).expect("sources are UTF-8");
                let quoted = text.split('"').filter(|text| text.is_ascii());
                used.extend(quoted.filter(|text| is_diagnostic(text)).map(str::to_owned));
            }
        }
    }
    assert!(used.len() > 20, "{used:?}");
    assert_eq!(codes_of("pipeline-language.md", is_diagnostic), used);
}

/// The exit codes of `--help` are those of the guide.
#[test]
fn every_exit_code_has_its_line_in_the_guide() {
    let help = Study::new("").pipe(&["--help"]).expect(0).stdout;
    let table = help.split("Exit codes:").nth(1).expect("there is a table");
    let first = |text: &str| text.split_whitespace().next().map(str::to_owned);
    let told: BTreeSet<String> = table
        .split(['\n', ';'])
        .filter_map(first)
        .filter(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    assert!(told.len() >= 9, "{told:?}");
    let is_number = |code: &str| !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_digit());
    assert_eq!(codes_of("pipeline-language.md", is_number), told);
}

/// The program that the page on kinds shows is the one that is compiled.
#[test]
fn the_example_of_a_kind_is_the_one_that_is_compiled() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("it is there");
    let (page, example) = (read("docs/stage-kinds.md"), read("engine/examples/word_counts.rs"));
    let shown = blocks(&page, "rust");
    assert_eq!(shown.len(), 1);
    assert!(example.trim_end().ends_with(shown[0]), "docs/stage-kinds.md shows another program");
}
