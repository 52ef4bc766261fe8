//! The names of remote sources: `hf:owner/name@revision/path`, `zenodo:RECORD/FILE`, `https://...#sha256=...`.

use ureq::http::Uri;

use super::Checksum;

/// A remote source, as an input names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    text: String,
    place: Place,
}

/// Where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A repository of the Hugging Face hub.
    Hub(Repository),
    /// A record of Zenodo, by its number.
    Zenodo { record: String, pattern: Option<String> },
    /// One file at an address.
    Address { url: String, checksum: Option<Checksum> },
}

/// A repository of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    /// `models` or `datasets`.
    pub(crate) kind: &'static str,
    /// `owner/name`.
    pub(crate) name: String,
    /// A branch, a tag or a commit.
    pub(crate) revision: String,
    /// A file, a folder or a glob inside; all files without.
    pub(crate) pattern: Option<String>,
}

/// What a wrong name is told: message and help.
type Mistake = (String, Option<String>);

const HUB: &str = "`hf:owner/name@revision`, `hf:datasets/owner/name@revision/path`";

impl Remote {
    /// Reads the name of a remote source; none if `text` has another scheme. The error says what is wrong
    /// and what would be right.
    pub(crate) fn parse(text: &str) -> Option<Result<Self, Mistake>> {
        let place = if let Some(rest) = text.strip_prefix("hf:") {
            hub(text, rest)
        } else if let Some(rest) = text.strip_prefix("zenodo:") {
            zenodo(text, rest)
        } else if text.starts_with("https:") || text.starts_with("http:") {
            address(text)
        } else {
            return None;
        };
        let plain = if text.len() > 2048 || text.contains(char::is_control) {
            Err(("a source's name has at most 2048 bytes and no control characters".to_owned(), None))
        } else {
            Ok(())
        };
        Some(plain.and(place).map(|place| Self { text: text.to_owned(), place }))
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Of the published paths, those that are meant, as (path inside the artifact, index).
    pub(crate) fn select(&self, paths: &[&str]) -> Result<Vec<(String, usize)>, String> {
        match &self.place {
            Place::Hub(Repository { pattern, .. }) | Place::Zenodo { pattern, .. } => {
                pipe_cache::select(pattern.as_deref(), paths)
            }
            // Its only file, called as a local one would be.
            Place::Address { .. } => pipe_cache::select(paths.first().copied(), paths),
        }
    }
}

/// `owner/name@revision` with perhaps a path; a revision with slashes is `refs/pr/N`, `refs/convert/NAME` or
/// written with `%2F`.
fn hub(text: &str, rest: &str) -> Result<Place, Mistake> {
    let wrong = |what: &str| Err((format!("`{text}` {what}"), Some(format!("write {HUB}"))));
    let (kind, rest) = match rest.strip_prefix("datasets/") {
        Some(rest) => ("datasets", rest),
        None => ("models", rest.strip_prefix("models/").unwrap_or(rest)),
    };
    let Some((name, rest)) = rest.split_once('@') else {
        return Err((
            format!("`{text}` names no revision"),
            Some(format!(
                "write `{text}@main` for what `main` is when it is first read; the lock file keeps the commit"
            )),
        ));
    };
    let is_name = |name: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=96).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
    };
    let mut names = name.split('/');
    let (owner, repository) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
    if !is_name(owner) || !is_name(repository) || names.next().is_some() {
        return wrong("names no repository of the hub");
    }
    let reference = ["refs/pr/", "refs/convert/"].iter().find(|prefix| rest.starts_with(**prefix));
    let from = reference.map_or(0, |prefix| prefix.len());
    let end = rest[from..].find('/').map_or(rest.len(), |slash| from + slash);
    let (revision, path) = (rest[..end].replace("%2F", "/"), rest[end..].trim_start_matches('/'));
    let is_revision = !revision.is_empty()
        && revision.len() <= 255
        && revision.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte))
        && !revision.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if !is_revision {
        return wrong("names no revision");
    }
    Ok(Place::Hub(Repository { kind, name: name.to_owned(), revision, pattern: pattern(text, path)? }))
}

/// `RECORD/FILE`.
fn zenodo(text: &str, rest: &str) -> Result<Place, Mistake> {
    let (record, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !(1..=12).contains(&record.len()) || !record.bytes().all(|byte| byte.is_ascii_digit()) {
        let help = "write `zenodo:RECORD/FILE`; the number of the record ends the address of its page";
        return Err((format!("`{text}` names no record of Zenodo"), Some(help.to_owned())));
    }
    Ok(Place::Zenodo { record: record.to_owned(), pattern: pattern(text, path)? })
}

fn pattern(text: &str, path: &str) -> Result<Option<String>, Mistake> {
    let path = path.trim_end_matches('/');
    if path.split('/').any(|name| name == "." || name == "..") || path.contains(['\\', '\0']) {
        return Err((format!("`{text}` has a path that leaves its source"), None));
    }
    Ok((!path.is_empty()).then(|| path.to_owned()))
}

/// An address, with perhaps a checksum behind `#`.
fn address(text: &str) -> Result<Place, Mistake> {
    let (url, fragment) = text.split_once('#').map_or((text, None), |(url, fragment)| (url, Some(fragment)));
    let wrong = |what: &str, help: &str| Err((format!("`{text}` {what}"), Some(help.to_owned())));
    let checksum = match fragment {
        None => None,
        Some(fragment) => {
            let checksum = fragment.split_once('=').and_then(|(name, hex)| {
                // What git calls a file is no checksum that anybody publishes of an address.
                Checksum::new(name, hex).filter(|_| name != "git")
            });
            if checksum.is_none() {
                return wrong(
                    "has no checksum behind `#`",
                    "write `#sha256=` or `#md5=` and its hexadecimal digits",
                );
            }
            checksum
        }
    };
    let parsed: Option<Uri> = url.parse().ok();
    let scheme = parsed.as_ref().and_then(Uri::scheme_str).unwrap_or_default();
    let host = parsed.as_ref().and_then(Uri::host).unwrap_or_default();
    if !matches!(scheme, "http" | "https") || host.is_empty() {
        return wrong("is no address", "write `https://host/path`");
    }
    if parsed.as_ref().and_then(Uri::authority).is_some_and(|authority| authority.as_str().contains('@')) {
        return wrong("holds a name or a password", "a pipeline file is no place for secrets");
    }
    let is_local = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
    if scheme == "http" && !is_local && checksum.is_none() {
        let help = "use `https:`, or give the checksum: `#sha256=...`";
        return wrong("can be changed by anybody on the way", help);
    }
    Ok(Place::Address { url: url.to_owned(), checksum })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(text: &str) -> Place {
        Remote::parse(text).unwrap().unwrap().place
    }

    fn repository(text: &str) -> (&'static str, String, String, Option<String>) {
        let Place::Hub(Repository { kind, name, revision, pattern }) = place(text) else { panic!("{text}") };
        (kind, name, revision, pattern)
    }

    #[test]
    fn names_say_where_a_source_lies() {
        let at = |kind, name: &str, revision: &str, pattern: Option<&str>| {
            (kind, name.to_owned(), revision.to_owned(), pattern.map(str::to_owned))
        };
        assert_eq!(repository("hf:o/n@main"), at("models", "o/n", "main", None));
        assert_eq!(repository("hf:models/o/n@v1.0/"), at("models", "o/n", "v1.0", None));
        assert_eq!(repository("hf:datasets/o/n@main/a/*.pt"), at("datasets", "o/n", "main", Some("a/*.pt")));
        assert_eq!(repository("hf:o/n@refs/pr/5/x"), at("models", "o/n", "refs/pr/5", Some("x")));
        assert_eq!(repository("hf:o/n@a%2Fb/x"), at("models", "o/n", "a/b", Some("x")));
        let zenodo = |record: &str, pattern: Option<&str>| Place::Zenodo {
            record: record.to_owned(),
            pattern: pattern.map(str::to_owned),
        };
        assert_eq!(place("zenodo:10519652/breastmnist.npz"), zenodo("10519652", Some("breastmnist.npz")));
        assert_eq!(place("zenodo:10519652"), zenodo("10519652", None));
        let md5 = "b1946ac92492d2347c6235b4d2611184";
        let Place::Address { url, checksum } = place(&format!("https://a.org/x.zip?v=1#md5={md5}")) else {
            panic!("an address")
        };
        assert_eq!((url.as_str(), checksum), ("https://a.org/x.zip?v=1", Checksum::new("md5", md5)));
        place(&format!("http://a.org/x#md5={md5}"));
        place("http://127.0.0.1:80/x");
        for other in ["file:x", "stage.port", "store:b3:00"] {
            assert!(Remote::parse(other).is_none());
        }
    }

    #[test]
    fn wrong_names_are_told_what_would_be_right() {
        for (text, expected) in [
            ("hf:o/n", "names no revision"),
            ("hf:o/n@", "names no revision"),
            ("hf:o/n@a%2F..%2Fb", "names no revision"),
            ("hf:n@main", "no repository"),
            ("hf:a/b/c@main", "no repository"),
            ("hf:../b@main", "no repository"),
            ("hf:o/n@main/../x", "leaves its source"),
            ("zenodo:x/y", "no record"),
            ("zenodo:/y", "no record"),
            ("zenodo:1/../y", "leaves its source"),
            ("https:", "no address"),
            ("https:///x", "no address"),
            ("https://me:secret@a.org/x", "password"),
            ("https://a.org/x#frag", "no checksum"),
            ("https://a.org/x#sha256=12", "no checksum"),
            ("http://a.org/x", "on the way"),
        ] {
            let (message, _) = Remote::parse(text).unwrap().expect_err(text);
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gets_an_answer(text in "(hf:|zenodo:|https:|http:)?[a-z0-9@/#%.:\\[\\]{}= ä-]{0,40}") {
            if let Some(Ok(remote)) = Remote::parse(&text) {
                prop_assert_eq!(remote.text(), text);
            }
        }
    }
}
