//! References to outputs, `stage[axis=value,...].port`, and sources: `file:...`, `store:b3:...`, and what is
//! elsewhere.

use pipe_cache::Digest;

use crate::remote::Remote;

/// What a path begins with.
pub(crate) const FILE: &str = "file:";

/// An input as written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reference {
    /// An output of a stage.
    Output(OutputReference),
    /// Files, relative to the place that writes the path.
    File(String),
    /// Files elsewhere.
    Remote(Remote),
    /// A blob of the store.
    Blob(Digest),
}

/// `stage[selectors].port`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OutputReference {
    pub(crate) stage: String,
    /// (axis, value); the value `*` fans in.
    pub(crate) selectors: Vec<(String, String)>,
    pub(crate) port: Option<String>,
}

/// Parses a reference; the error says what is wrong and what would be right.
pub(crate) fn parse(text: &str) -> Result<Reference, (String, Option<String>)> {
    if let Some(path) = text.strip_prefix(FILE) {
        return if path.is_empty() {
            Err(("`file:` names no path".to_owned(), None))
        } else {
            Ok(Reference::File(path.to_owned()))
        };
    }
    if let Some(digest) = text.strip_prefix("store:b3:") {
        return digest
            .parse()
            .map(Reference::Blob)
            .map_err(|error: pipe_cache::ParseDigestError| (error.to_string(), None));
    }
    if let Some(remote) = Remote::parse(text) {
        return remote.map(Reference::Remote);
    }
    parse_output(text).map(Reference::Output).ok_or_else(|| {
        (
            format!("`{text}` is not a reference"),
            Some(
                "write `stage.port`, `stage[axis=value].port`, `stage[axis=*].port`, `file:PATH`, or a remote source such as `hf:owner/name@main`"
                    .to_owned(),
            ),
        )
    })
}

/// Parses `stage[axis=value,...].port`.
pub(crate) fn parse_output(text: &str) -> Option<OutputReference> {
    let stage_end = text.find(['[', '.']).unwrap_or(text.len());
    let stage = &text[..stage_end];
    let (selectors, rest) = match text[stage_end..].strip_prefix('[') {
        Some(tail) => tail.split_once(']')?,
        None => ("", &text[stage_end..]),
    };
    let selectors = selectors
        .split(',')
        .filter(|selector| !selector.trim().is_empty())
        .map(|selector| {
            let (axis, value) = selector.split_once('=')?;
            Some((axis.trim().to_owned(), value.trim().to_owned()))
        })
        .collect::<Option<Vec<_>>>()?;
    let port = match rest.strip_prefix('.') {
        Some(port) if !port.is_empty() => Some(port.to_owned()),
        None if rest.is_empty() => None,
        _ => return None,
    };
    (!stage.is_empty() && stage.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
        .then(|| OutputReference { stage: stage.to_owned(), selectors, port })
}
