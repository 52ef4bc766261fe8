//! Records of JSON files whose types are not what they should be: numbers for texts, texts for numbers.

use pipe_engine::StageError;
use serde_json::{Map, Value};

use super::rejects::Rejects;
use super::source::SourceFile;

/// A longer file is none of a data set that is read whole.
const FILE_LIMIT: u64 = 256 << 20;

/// One object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Record(Map<String, Value>);

/// The objects of a file that is one array, with their numbers, from 1; what is no object is rejected.
pub(crate) fn records(file: &SourceFile, rejects: &mut Rejects) -> Result<Vec<(usize, Record)>, StageError> {
    let values = match parse(file).map_err(|reason| file.error(reason))? {
        Value::Array(values) => values,
        other => {
            return Err(file.error(format!("it holds {}; a list of records is expected", name_of(&other))));
        }
    };
    let mut records = Vec::with_capacity(values.len());
    for (number, value) in (1..).zip(values) {
        match Record::of(value) {
            Ok(record) => records.push((number, record)),
            Err(reason) => rejects.add(file, Some(number), None, reason),
        }
    }
    Ok(records)
}

/// The value of a file; the reason if it holds none.
pub(crate) fn parse(file: &SourceFile) -> Result<Value, String> {
    let bytes = file.read(FILE_LIMIT)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    // The parser bounds how deep values nest.
    serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))
}

/// A line of JSON Lines; the reason if it holds no object.
pub(crate) fn record(line: &[u8]) -> Result<Record, String> {
    let value = serde_json::from_slice(line).map_err(|error| format!("it is no JSON: {error}"))?;
    Record::of(value)
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

impl Record {
    fn of(value: Value) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            other => Err(format!("it is {}; a table of fields is expected", name_of(&other))),
        }
    }

    /// A list of objects; what is none is left out.
    pub(crate) fn records(&self, key: &str) -> Vec<Self> {
        let items = self.0.get(key).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|item| Self::of(item.clone()).ok()).collect()
    }

    /// Whether there is such a field.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key)?.as_f64()
    }

    /// A text, or a number as decimal text.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// As [`Self::text`], where `NULL` and nothing mean that there is none.
    pub(crate) fn some_text(&self, key: &str) -> Option<String> {
        self.text(key).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty() && text != "NULL")
    }

    /// A whole number, perhaps written as a text.
    pub(crate) fn integer(&self, key: &str) -> Option<i64> {
        match self.0.get(key)? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let items = self.0.get(key)?.as_array()?;
        items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    }
}
