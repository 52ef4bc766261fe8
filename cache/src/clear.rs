//! Canonical values in clear: as JSON that a person reads in a record and that reads back exactly.
//!
//! Numbers with a point or an exponent are floats, all others integers. What JSON lacks is an object of
//! one key: `{"$digest": hex}`, `{"$bytes": hex}`; a table with a key that begins with `$` is wrapped in
//! `{"$table": ...}`.

use std::collections::BTreeMap;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
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
        deserializer.deserialize_any(Clear)
    }
}

/// Reads a value in clear.
struct Clear;

impl<'de> Visitor<'de> for Clear {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        let integer = i64::try_from(value);
        integer.map(Value::Integer).map_err(|_| E::custom(format!("number {value} is outside the range")))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() {
            Ok(Value::Float(value))
        } else {
            Err(E::custom(format!("number {value} is outside the range")))
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::string(text))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == "$table" {
                // What it holds is taken as it stands, tags and all.
                let Verbatim(value) = entries.next_value()?;
                if table.is_empty() && matches!(value, Value::Table(_)) {
                    return match entries.next_key::<String>()? {
                        None => Ok(value),
                        Some(_) => Err(A::Error::custom("`$table` stands alone")),
                    };
                }
                table.insert(key, value);
            } else {
                table.insert(key, entries.next_value()?);
            }
        }
        untag(table).map_err(A::Error::custom)
    }
}

/// A value whose outermost table is no tag.
struct Verbatim(Value);

impl<'de> Deserialize<'de> for Verbatim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut table = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry()? {
                    table.insert(key, value);
                }
                Ok(Value::Table(table))
            }
        }

        deserializer.deserialize_map(Entries).map(Self)
    }
}

/// What an object of one key that begins with `$` stands for.
fn untag(table: BTreeMap<String, Value>) -> Result<Value, String> {
    Ok(match table.first_key_value() {
        Some((tag, Value::String(text))) if table.len() == 1 && tag == "$bytes" => {
            Value::Bytes(unhex(text).ok_or_else(|| format!("`{text}` is not hexadecimal"))?)
        }
        Some((tag, Value::String(text))) if table.len() == 1 && tag == "$digest" => {
            Value::Digest(text.parse().map_err(|error: crate::ParseDigestError| error.to_string())?)
        }
        _ => Value::Table(table),
    })
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
