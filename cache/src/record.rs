//! The record of an action: the stored fact that this key produced these artifacts.
//!
//! JSON with sorted keys, one line per top-level field, so that two records compare line by line. The
//! line `digest` is the digest of all other lines. Whatever does not read back consistently is no
//! record: the action is a miss.
//!
//! What the key was made of is most of the text and is wanted only by who asks why something runs. So it stays
//! text until then; a plan with nothing to do reads of each record what it needs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::fs::is_plain_relative;
use crate::{ActionKey, Digest, table_digest, tree_digest};

const FORMAT: u32 = 1;
const SELF_DIGEST: &str = "pipe record v1";

/// A stored result.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The action key.
    pub key: Digest,
    components: Components,
    /// The artifacts by port.
    pub outputs: BTreeMap<String, OutputRecord>,
    /// For a row-wise node: the keys of the actions on its parts, each once. Their records are what the
    /// next run starts from when some rows have changed, so they live as long as this one.
    pub shards: Vec<Digest>,
    /// How it came about; in no key.
    pub meta: RecordMeta,
}

/// What a key was made of: as text until it is wanted.
#[derive(Clone, Debug)]
struct Components {
    text: String,
    read: OnceLock<Option<ActionKey>>,
}

impl Components {
    fn of(key: &ActionKey) -> Self {
        let text = json(serde_json::to_value(key)).to_string();
        Self { text, read: OnceLock::from(Some(key.clone())) }
    }
}

impl PartialEq for Components {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputRecord {
    /// Its type, such as `table<images>`.
    #[serde(rename = "type")]
    pub artifact_type: String,
    /// The digest of its content: what keys downstream are made of.
    pub content: Digest,
    /// The number of rows of a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The parts of a table, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<PartRecord>>,
    /// Its files, sorted by path.
    pub files: Vec<FileRecord>,
}

impl OutputRecord {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The table of the parts of `outputs`, in order, whose blobs stay where they are. None if one of them
    /// is no table or names files that are not its parts.
    pub fn concatenation<'a>(
        artifact_type: &str,
        outputs: impl IntoIterator<Item = &'a Self>,
    ) -> Option<Self> {
        let mut pieces = Vec::new();
        for output in outputs {
            for part in output.parts.as_ref()? {
                pieces.push((part, output.files.iter().find(|file| file.path == part.path)?));
            }
        }
        // File names sort in the order of the parts, however many there are.
        let width = pieces.len().saturating_sub(1).to_string().len().max(5);
        let mut all = Self {
            artifact_type: artifact_type.to_owned(),
            content: Digest::of(b""),
            rows: Some(pieces.iter().map(|(part, _)| part.rows).fold(0, u64::saturating_add)),
            parts: None,
            files: Vec::with_capacity(pieces.len()),
        };
        let mut parts = Vec::with_capacity(pieces.len());
        for (index, (part, file)) in pieces.into_iter().enumerate() {
            let extension =
                file.path.rsplit('/').next()?.split_once('.').map_or("", |(_, extension)| extension);
            let dot = if extension.is_empty() { "" } else { "." };
            let path = format!("part-{index:0width$}{dot}{extension}");
            parts.push(PartRecord { path: path.clone(), ..part.clone() });
            all.files.push(FileRecord { path, ..file.clone() });
        }
        all.parts = Some(parts);
        all.content = all.content_digest();
        Some(all)
    }

    /// The content digest that follows from the parts or files.
    pub(crate) fn content_digest(&self) -> Digest {
        match &self.parts {
            Some(parts) => table_digest(&parts.iter().map(|part| part.digest).collect::<Vec<_>>()),
            None => tree_digest(self.files.iter().map(|file| (file.path.as_str(), file.bytes, file.blob))),
        }
    }

    fn is_consistent(&self) -> bool {
        let paths_are_safe = self.files.iter().all(|file| is_plain_relative(&file.path));
        let sorted = self.files.is_sorted_by(|left, right| left.path < right.path);
        let parts_have_files = || {
            self.parts.as_ref().is_none_or(|parts| {
                let is_there =
                    |path: &str| self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok();
                self.rows == Some(parts.iter().map(|part| part.rows).fold(0, u64::saturating_add))
                    && parts.len() == self.files.len()
                    && parts.iter().all(|part| is_there(&part.path))
            })
        };
        paths_are_safe && sorted && parts_have_files() && self.content == self.content_digest()
    }
}

/// One part of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(String, u64, Digest)", into = "(String, u64, Digest)")]
pub struct PartRecord {
    /// The file, relative to the artifact.
    pub path: String,
    /// Its number of rows.
    pub rows: u64,
    /// The digest of its rows.
    pub digest: Digest,
}

impl From<(String, u64, Digest)> for PartRecord {
    fn from((path, rows, digest): (String, u64, Digest)) -> Self {
        Self { path, rows, digest }
    }
}

impl From<PartRecord> for (String, u64, Digest) {
    fn from(part: PartRecord) -> Self {
        (part.path, part.rows, part.digest)
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "(String, u64, Digest)", into = "(String, u64, Digest)")]
pub struct FileRecord {
    /// The path inside the artifact, with `/`.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The blob that holds it.
    pub blob: Digest,
}

impl From<(String, u64, Digest)> for FileRecord {
    fn from((path, bytes, blob): (String, u64, Digest)) -> Self {
        Self { path, bytes, blob }
    }
}

impl From<FileRecord> for (String, u64, Digest) {
    fn from(file: FileRecord) -> Self {
        (file.path, file.bytes, file.blob)
    }
}

/// How a record came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordMeta {
    /// When, RFC 3339 in UTC.
    pub created: String,
    /// The run.
    pub run: String,
    /// The host.
    pub host: String,
    /// Wall time of the action, in seconds of the monotonic clock.
    pub duration_seconds: f64,
    /// Processor time, in seconds, where it was measured.
    pub cpu_seconds: Option<f64>,
    /// The greatest resident memory of the process while it ran, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// The device, such as `cpu`.
    pub device: Option<String>,
    /// The git revision of the project, if it has one.
    pub revision: Option<String>,
    /// What the kind counted, such as `forward_passes`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
}

impl Record {
    /// The record of an action.
    pub(crate) fn new(
        key: &ActionKey,
        outputs: BTreeMap<String, OutputRecord>,
        shards: Vec<Digest>,
        meta: RecordMeta,
    ) -> Self {
        Self { key: key.digest(), components: Components::of(key), outputs, shards, meta }
    }

    /// What the key was made of; none if what stands there does not give the key.
    pub fn components(&self) -> Option<&ActionKey> {
        let read = || {
            let components: Option<ActionKey> = serde_json::from_str(&self.components.text).ok();
            components.filter(|components| components.digest() == self.key)
        };
        self.components.read.get_or_init(read).as_ref()
    }

    /// The text that is stored.
    pub fn to_text(&self) -> String {
        let line = |name: &str, value: &dyn std::fmt::Display| format!("\"{name}\": {value}");
        let mut lines = vec![
            line("components", &self.components.text),
            line("format", &FORMAT),
            line("key", &json(serde_json::to_value(self.key))),
            line("meta", &json(serde_json::to_value(&self.meta))),
            line("outputs", &json(serde_json::to_value(&self.outputs))),
        ];
        if !self.shards.is_empty() {
            lines.push(line("shards", &json(serde_json::to_value(&self.shards))));
        }
        let digest = self_digest(lines.iter().map(String::as_str));
        lines.insert(1, line("digest", &json(serde_json::to_value(digest))));
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }

    /// Reads a stored text back; none if it is damaged or does not agree with itself.
    pub fn from_text(text: &str) -> Option<Self> {
        let body = text.strip_prefix("{\n")?.strip_suffix("\n}\n")?;
        let mut hashed = blake3::Hasher::new_derive_key(SELF_DIGEST);
        let mut fields: [(&str, Option<&str>); 7] =
            ["components", "digest", "format", "key", "meta", "outputs", "shards"].map(|name| (name, None));
        for line in body.split('\n').map(|line| line.strip_suffix(',').unwrap_or(line)) {
            let (name, value) = line.strip_prefix('"')?.split_once("\": ")?;
            if let Some((_, field)) = fields.iter_mut().find(|(known, _)| *known == name) {
                *field = Some(value);
            }
            if name != "digest" {
                hashed.update(line.as_bytes());
                hashed.update(b"\n");
            }
        }
        let [components, digest, format, key, meta, outputs, shards] = fields.map(|(_, value)| value);
        let digest: Digest = serde_json::from_str(digest?).ok()?;
        let format: u32 = serde_json::from_str(format?).ok()?;
        if format != FORMAT || digest != Digest::from(hashed.finalize()) {
            return None;
        }
        let record = Self {
            key: serde_json::from_str(key?).ok()?,
            components: Components { text: components?.to_owned(), read: OnceLock::new() },
            outputs: serde_json::from_str(outputs?).ok()?,
            shards: shards.map_or(Some(Vec::new()), |shards| serde_json::from_str(shards).ok())?,
            meta: serde_json::from_str(meta?).ok()?,
        };
        record.outputs.values().all(OutputRecord::is_consistent).then_some(record)
    }

    /// Whether both hold the same artifacts, whatever their encoding.
    pub fn has_equal_outputs(&self, other: &Self) -> bool {
        let contents = |record: &Self| -> Vec<(String, String, Digest)> {
            let outputs = record.outputs.iter();
            outputs.map(|(port, o)| (port.clone(), o.artifact_type.clone(), o.content)).collect()
        };
        contents(self) == contents(other)
    }
}

fn json(value: Result<serde_json::Value, serde_json::Error>) -> serde_json::Value {
    value.expect("records hold strings, integers and finite floats only")
}

/// The text with the digest that its other lines have: as somebody would write it who means harm.
#[cfg(test)]
pub(crate) fn reseal(text: &str) -> String {
    let Some(body) = text.strip_prefix("{\n").and_then(|text| text.strip_suffix("\n}\n")) else {
        return text.to_owned();
    };
    let lines = || body.split('\n').map(|line| line.strip_suffix(',').unwrap_or(line));
    let others = || lines().filter(|line| !line.starts_with("\"digest\": "));
    let digest = format!("\"digest\": {}", json(serde_json::to_value(self_digest(others()))));
    let sealed: Vec<&str> = others().chain([digest.as_str()]).collect();
    format!("{{\n{}\n}}\n", sealed.join(",\n"))
}

fn self_digest<'a>(lines: impl Iterator<Item = &'a str>) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(SELF_DIGEST);
    for line in lines {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.finalize().into()
}
