//! Canonical values in clear: as JSON that a person reads in a record and that reads back exactly.
//!
//! Numbers with a point or an exponent are floats, all others integers. What JSON lacks is an object of
//! one key: `{"$digest": hex}`, `{"$bytes": hex}`; a table with a key that begins with `$` is wrapped in
//! `{"$table": ...}`.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value as Json};

use crate::Value;

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_json(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_json(Json::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::None => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Integer(value) => Json::from(*value),
        Value::Float(value) => Json::from(*value),
        Value::String(text) => Json::String(text.clone()),
        Value::Bytes(bytes) => tagged("$bytes", Json::String(hex(bytes))),
        Value::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Table(entries) => {
            let table = entries.iter().map(|(key, value)| (key.clone(), to_json(value))).collect();
            if entries.keys().any(|key| key.starts_with('$')) {
                tagged("$table", Json::Object(table))
            } else {
                Json::Object(table)
            }
        }
        Value::Digest(digest) => tagged("$digest", Json::String(digest.to_hex())),
    }
}

fn tagged(tag: &str, content: Json) -> Json {
    Json::Object(Map::from_iter([(tag.to_owned(), content)]))
}

fn from_json(json: Json) -> Result<Value, String> {
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) if float.is_finite() && !number.is_u64() => Value::Float(float),
            _ => return Err(format!("number {number} is outside the range")),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::List(items.into_iter().map(from_json).collect::<Result<_, _>>()?),
        Json::Object(entries) => match single(&entries) {
            Some(("$bytes", Json::String(text))) => {
                Value::Bytes(unhex(text).ok_or_else(|| format!("`{text}` is not hexadecimal"))?)
            }
            Some(("$digest", Json::String(text))) => {
                Value::Digest(text.parse().map_err(|error: crate::ParseDigestError| error.to_string())?)
            }
            Some(("$table", Json::Object(inner))) => table(inner.clone())?,
            _ => table(entries)?,
        },
    })
}

fn table(entries: Map<String, Json>) -> Result<Value, String> {
    let entries: Result<BTreeMap<_, _>, String> =
        entries.into_iter().map(|(key, value)| Ok((key, from_json(value)?))).collect();
    Ok(Value::Table(entries?))
}

fn single(entries: &Map<String, Json>) -> Option<(&str, &Json)> {
    let mut entries = entries.iter();
    let (key, value) = entries.next()?;
    entries.next().is_none().then_some((key.as_str(), value))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| digit.to_digit(16).map(|n| n as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Integer),
            prop::num::f64::NORMAL.prop_map(Value::Float),
            "\\PC{0,8}".prop_map(Value::String),
            prop::collection::vec(any::<u8>(), 0..9).prop_map(Value::Bytes),
            any::<[u8; 32]>().prop_map(|bytes| Value::Digest(Digest::from_bytes(bytes))),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::btree_map("[$a-z]{0,3}|\\$bytes|\\$table", inner, 0..4)
                    .prop_map(Value::Table),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_in_clear_reads_back_exactly(value in values()) {
            let text = serde_json::to_string(&value).unwrap();
            let back: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back.encode(), value.encode());
        }
    }

    #[test]
    fn whole_floats_stay_floats() {
        let text = serde_json::to_string(&Value::Float(1.0)).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Float(1.0));
    }

    #[test]
    fn integers_beyond_i64_are_refused() {
        assert!(serde_json::from_str::<Value>("18446744073709551615").is_err());
    }
}
