//! Patterns over paths: `*` and `?` within a name, `**` for any folders, `{a,b}` for either; and what a
//! source's pattern selects of a list of names.

/// How many patterns the braces of one may stand for.
const ALTERNATIVES: usize = 256;

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob {
    /// Each as the names between its slashes; a path matches if one of them does.
    alternatives: Vec<Vec<String>>,
}

/// Whether a pattern is more than the name of one file or folder.
pub(crate) fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?']) || braces(pattern).is_some()
}

/// Splits a pattern before its first name that is more than a name: the folder to look in, with its
/// closing slash or empty, and the rest.
pub(crate) fn split(pattern: &str) -> (&str, &str) {
    let wild = pattern.find(['*', '?']);
    let brace = braces(pattern).and_then(|_| pattern.find('{'));
    let special = wild.into_iter().chain(brace).min();
    let end = special.unwrap_or(pattern.len());
    pattern.split_at(pattern[..end].rfind('/').map_or(0, |slash| slash + 1))
}

impl Glob {
    /// Parses what [`split`] left.
    pub(crate) fn parse(pattern: &str) -> Result<Self, String> {
        let mut waiting = vec![pattern.to_owned()];
        let mut alternatives = Vec::new();
        while let Some(pattern) = waiting.pop() {
            let Some((open, close, choices)) = braces(&pattern) else {
                let names = pattern.split('/').filter(|name| !name.is_empty() && *name != ".");
                alternatives.push(names.map(str::to_owned).collect());
                continue;
            };
            let (head, tail) = (&pattern[..open], &pattern[close + 1..]);
            let expanded: Vec<String> =
                choices.iter().map(|choice| format!("{head}{choice}{tail}")).collect();
            waiting.extend(expanded);
            if waiting.len() + alternatives.len() > ALTERNATIVES {
                return Err(format!("its braces stand for more than {ALTERNATIVES} patterns"));
            }
        }
        if alternatives.iter().flatten().any(|name| name == "..") {
            return Err("`..` may not follow a wildcard".to_owned());
        }
        Ok(Self { alternatives })
    }

    /// Whether a path, relative to the folder that [`split`] found, matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        self.alternatives.iter().any(|pattern| matches(pattern, &names))
    }
}

/// The first innermost pair of braces with a comma between: where it opens and closes, and the choices.
fn braces(pattern: &str) -> Option<(usize, usize, Vec<&str>)> {
    let mut open = None;
    for (at, byte) in pattern.bytes().enumerate() {
        match (byte, open) {
            (b'{', _) => open = Some(at),
            (b'}', Some(start)) => {
                let inside = &pattern[start + 1..at];
                if inside.contains(',') {
                    return Some((start, at, inside.split(',').collect()));
                }
                open = None;
            }
            _ => {}
        }
    }
    None
}

/// Of files known by name, those that a source's pattern means, as (path inside the source, index of the
/// name), sorted by path: without a pattern all; one file, which is then called `source.<extension>`; all
/// of a folder; or what matches, below the folder before the first wildcard. The same files on the disk
/// give the same paths.
///
/// # Errors
/// If nothing is meant, or the pattern is none.
pub fn select(pattern: Option<&str>, names: &[&str]) -> Result<Vec<(String, usize)>, String> {
    let pattern = pattern.unwrap_or_default().trim_end_matches('/');
    let below = |root: &str, glob: Option<&Glob>| -> Vec<(String, usize)> {
        let inside =
            names.iter().enumerate().filter_map(|(index, name)| Some((name.strip_prefix(root)?, index)));
        let mut found: Vec<(String, usize)> = inside
            .filter(|(path, _)| glob.is_none_or(|glob| glob.matches(path)))
            .map(|(path, index)| (path.to_owned(), index))
            .collect();
        found.sort_unstable();
        found
    };
    let found = if is_glob(pattern) {
        let (root, rest) = split(pattern);
        below(root, Some(&Glob::parse(rest)?))
    } else if let Some(index) = names.iter().position(|name| *name == pattern) {
        vec![(single(pattern), index)]
    } else if pattern.is_empty() {
        below("", None)
    } else {
        below(&format!("{pattern}/"), None)
    };
    match (found.is_empty(), pattern) {
        (false, _) => Ok(found),
        (true, "") => Err("it holds no files".to_owned()),
        (true, pattern) if is_glob(pattern) => Err(format!("no file matches `{pattern}`")),
        (true, pattern) => Err(format!("there is no file or folder `{pattern}`")),
    }
}

/// What the only file of a source is called, whatever its name is: `source.<extension>`.
pub(crate) fn single(name: &str) -> String {
    let extension = std::path::Path::new(name).extension().and_then(|extension| extension.to_str());
    extension.map_or("source".to_owned(), |extension| format!("source.{extension}"))
}

/// Whether a path matches; `**` stands for any number of names, also none. Names that begin with a dot
/// match only where the pattern shows the dot.
fn matches(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|taken| {
            let (passed, left) = path.split_at(taken);
            let visible = passed.iter().all(|name| !name.starts_with('.'));
            // A closing `**` stands for every file below.
            visible && if rest.is_empty() { left.is_empty() && taken > 0 } else { matches(rest, left) }
        }),
        Some((first, rest)) => path.split_first().is_some_and(|(name, others)| {
            (!name.starts_with('.') || first.starts_with('.'))
                && name_matches(first, name)
                && matches(rest, others)
        }),
    }
}

/// Whether a name matches `*` and `?`. Greedy with one place to return to, so that no pattern takes more
/// than length times length steps.
fn name_matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut read, mut retry) = (0, 0, None);
    while read < name.len() {
        match pattern.get(at) {
            Some('*') => {
                retry = Some((at, read));
                at += 1;
            }
            Some(&expected) if expected == '?' || expected == name[read] => {
                at += 1;
                read += 1;
            }
            _ => {
                let Some((star, from)) = retry else { return false };
                retry = Some((star, from + 1));
                at = star + 1;
                read = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|&left| left == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 6] =
        [".gitattributes", "config.json", "model.bin", "tokenizer.json", "w/a/model.pt", "w/b.pt"];

    fn selected(pattern: &str) -> Vec<(String, &'static str)> {
        let pattern = Some(pattern).filter(|pattern| !pattern.is_empty());
        select(pattern, &NAMES).unwrap().into_iter().map(|(path, index)| (path, NAMES[index])).collect()
    }

    fn paths(pattern: &str) -> Vec<String> {
        selected(pattern).into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_pattern_selects_as_it_would_on_the_disk() {
        assert_eq!(paths(""), NAMES);
        assert_eq!(selected("model.bin"), [("source.bin".to_owned(), "model.bin")]);
        assert_eq!(selected("w/a/model.pt"), [("source.pt".to_owned(), "w/a/model.pt")]);
        assert_eq!(paths("w"), ["a/model.pt", "b.pt"]);
        assert_eq!(paths("w/"), ["a/model.pt", "b.pt"]);
        assert_eq!(paths("*.json"), ["config.json", "tokenizer.json"]);
        assert_eq!(paths("w/**/*.pt"), ["a/model.pt", "b.pt"]);
        assert_eq!(paths("{config,tokenizer}.json"), ["config.json", "tokenizer.json"]);
        assert_eq!(paths("{*.json,model.{bin,safetensors}}"), ["config.json", "model.bin", "tokenizer.json"]);
        assert_eq!(paths("w/{a/*,b.pt}"), ["a/model.pt", "b.pt"]);
        for nothing in ["x", "model", "w/c", "*.txt", "a/../*", "{a,b}/../config.json"] {
            assert!(select(Some(nothing), &NAMES).is_err(), "{nothing}");
        }
        let bomb = "{a,b}".repeat(40);
        assert!(select(Some(&bomb), &NAMES).unwrap_err().contains("256 patterns"));
    }

    #[test]
    fn a_brace_without_a_choice_is_a_brace() {
        assert_eq!(split("x/{a/y,b/{c,d}}"), ("x/", "{a/y,b/{c,d}}"));
        assert!(!is_glob("{x}/}a{"));
        assert_eq!(split("a/b{c,d}/e"), ("a/", "b{c,d}/e"));
        assert_eq!(split("a/b/*.txt"), ("a/b/", "*.txt"));
        assert_eq!(split("/a/b"), ("/a/", "b"));
    }

    proptest! {
        /// Whatever is written, nothing panics, and what is selected exists once.
        #[test]
        fn any_pattern_gets_an_answer(pattern in "[a-z.*?{},/]{0,24}") {
            if let Ok(found) = select(Some(&pattern), &NAMES) {
                let mut indices: Vec<usize> = found.iter().map(|(_, index)| *index).collect();
                indices.sort_unstable();
                indices.dedup();
                prop_assert_eq!(indices.len(), found.len());
                prop_assert!(!found.is_empty());
            }
        }
    }
}
