//! Records of JSON files whose types are not what they should be: numbers for texts, texts for numbers.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pipe_engine::StageError;
use serde_json::{Map, Value};

/// A longer file is none of a data set that is read whole.
const FILE_LIMIT: u64 = 256 << 20;

/// One object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Record(Map<String, Value>);

/// The objects of a file that is one array.
pub(crate) fn records(path: &Path) -> Result<Vec<Record>, StageError> {
    let values = match parse(path)? {
        Value::Array(values) => values,
        other => {
            let reason = format!("it holds {}; a list of records is expected", name_of(&other));
            return Err(StageError::input(path, reason));
        }
    };
    let record = |(index, value)| match value {
        Value::Object(fields) => Ok(Record(fields)),
        other => {
            let reason =
                format!("record {} is {}; a table of fields is expected", index + 1, name_of(&other));
            Err(StageError::input(path, reason))
        }
    };
    values.into_iter().enumerate().map(record).collect()
}

/// The value of a file.
pub(crate) fn parse(path: &Path) -> Result<Value, StageError> {
    let unreadable = |error: std::io::Error| StageError::input(path, error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    if length > FILE_LIMIT {
        let reason = format!("it has {length} bytes; at most {FILE_LIMIT} are read");
        return Err(StageError::input(path, reason));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    // The parser bounds how deep values nest.
    serde_json::from_slice(text).map_err(|error| StageError::input(path, format!("it is no JSON: {error}")))
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
