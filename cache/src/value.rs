//! The canonical encoding that every key and logical digest is computed over.
//!
//! One type byte, then the payload; lengths and counts are u64, little endian.
//!
//! | byte | value | payload |
//! |---|---|---|
//! | 0 | none | |
//! | 1, 2 | false, true | |
//! | 3 | integer | i64 |
//! | 4 | float | f64 bits, -0.0 written as 0.0 |
//! | 5 | string | length, UTF-8 as it is |
//! | 6 | bytes | length, bytes |
//! | 7 | list | count, items |
//! | 8 | table | count, (key as string value, value) in bytewise key order |
//! | 9 | digest | 32 bytes |

use std::collections::BTreeMap;

use crate::Digest;

/// A value of the canonical encoding.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Absent.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer; never equal to a float of the same magnitude.
    Integer(i64),
    /// A finite float; not finite ones are refused before they come here.
    Float(f64),
    /// UTF-8 text, not normalised.
    String(String),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// An ordered list.
    List(Vec<Value>),
    /// A table; `BTreeMap<String, _>` iterates in bytewise key order.
    Table(BTreeMap<String, Value>),
    /// A digest.
    Digest(Digest),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode_into(&mut bytes);
        bytes
    }

    /// Appends the canonical bytes to `bytes`.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::None => bytes.push(0),
            Self::Bool(value) => bytes.push(1 + u8::from(*value)),
            Self::Integer(value) => {
                bytes.push(3);
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            Self::Float(value) => {
                debug_assert!(value.is_finite(), "floats are finite after validation");
                let canonical = if *value == 0.0 { 0.0 } else { *value };
                bytes.push(4);
                bytes.extend_from_slice(&canonical.to_bits().to_le_bytes());
            }
            Self::String(text) => encode_string(text, bytes),
            Self::Bytes(content) => {
                bytes.push(6);
                encode_length(content.len(), bytes);
                bytes.extend_from_slice(content);
            }
            Self::List(items) => {
                begin_list(items.len(), bytes);
                for item in items {
                    item.encode_into(bytes);
                }
            }
            Self::Table(entries) => {
                begin_table(entries.len(), bytes);
                for (key, value) in entries {
                    encode_string(key, bytes);
                    value.encode_into(bytes);
                }
            }
            Self::Digest(digest) => {
                bytes.push(9);
                bytes.extend_from_slice(digest.as_bytes());
            }
        }
    }

    /// BLAKE3 in key-derivation mode with `context`, over the canonical bytes.
    pub fn digest(&self, context: &str) -> Digest {
        digest(context, &self.encode())
    }
}

/// BLAKE3 in key-derivation mode.
pub(crate) fn digest(context: &str, bytes: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// Appends what a list of `count` items begins with; the items follow.
pub(crate) fn begin_list(count: usize, bytes: &mut Vec<u8>) {
    bytes.push(7);
    encode_length(count, bytes);
}

/// Appends what a table of `count` entries begins with; keys and values follow, sorted by key.
pub(crate) fn begin_table(count: usize, bytes: &mut Vec<u8>) {
    bytes.push(8);
    encode_length(count, bytes);
}

fn encode_length(length: usize, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&(length as u64).to_le_bytes());
}

/// Appends a string value.
pub(crate) fn encode_string(text: &str, bytes: &mut Vec<u8>) {
    bytes.push(5);
    encode_length(text.len(), bytes);
    bytes.extend_from_slice(text.as_bytes());
}
