//! The action key: the name of one piece of work, made of everything that may change its result.
//!
//! | in the key | why |
//! |---|---|
//! | kind | other kinds compute other things |
//! | implementation version | raised by hand when the same inputs give another result |
//! | output schema version | the same values in other columns are another result |
//! | parameters, all defaults filled in | writing a default out, or moving it, changes nothing |
//! | inputs: name and *content* digest | equal content stops the wave, whoever produced it |
//! | axes of a fan-in | only where the consumer asks for them: a report shows them |
//! | shard | for a row-wise kind, the rows instead of the whole table |
//! | numerics class | device, data type and library version change last digits |
//!
//! Not in the key, because no byte of a result depends on it: names of stages and axes, comments, file
//! names and line order, resources, retries, threads, log level, folders, host, the program itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::value::{begin_list, begin_table, digest, encode_string};
use crate::{Digest, Value};

const CONTEXT: &str = "pipe action v1";

/// One artifact of an input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyArtifact {
    /// The axis assignment of its producer, in a fan-in whose consumer asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axes: Option<BTreeMap<String, Value>>,
    /// The digest of its content.
    pub digest: Digest,
}

/// One named input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyInput {
    /// The port's name.
    pub name: String,
    /// Its artifacts, in the producers' order; empty for the principal input of a shard.
    pub artifacts: Vec<KeyArtifact>,
}

/// The components of an action key, in clear: what a record stores and what `why` compares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionKey {
    /// The kind's name.
    pub kind: String,
    /// The kind's implementation version.
    pub implementation: i64,
    /// The version of the schemas of its outputs.
    pub schema_version: i64,
    /// The parameters, a table.
    pub params: Value,
    /// The inputs, in any order.
    pub inputs: Vec<KeyInput>,
    /// The digest of the shard's rows, for an action on one shard.
    pub shard: Option<Digest>,
    /// The numerics class; `none` for kinds without floating-point arithmetic.
    pub numerics: String,
}

impl ActionKey {
    /// The canonical bytes that are hashed: those of a list of seven items.
    pub fn encode(&self) -> Vec<u8> {
        let mut inputs: Vec<&KeyInput> = self.inputs.iter().collect();
        inputs.sort_by(|left, right| left.name.as_bytes().cmp(right.name.as_bytes()));
        let mut bytes = Vec::new();
        begin_list(7, &mut bytes);
        encode_string(&self.kind, &mut bytes);
        Value::Integer(self.implementation).encode_into(&mut bytes);
        Value::Integer(self.schema_version).encode_into(&mut bytes);
        self.params.encode_into(&mut bytes);
        begin_list(inputs.len(), &mut bytes);
        for input in inputs {
            begin_list(2, &mut bytes);
            encode_string(&input.name, &mut bytes);
            begin_list(input.artifacts.len(), &mut bytes);
            for artifact in &input.artifacts {
                begin_list(2, &mut bytes);
                match &artifact.axes {
                    None => Value::None.encode_into(&mut bytes),
                    Some(axes) => {
                        begin_table(axes.len(), &mut bytes);
                        for (axis, value) in axes {
                            encode_string(axis, &mut bytes);
                            value.encode_into(&mut bytes);
                        }
                    }
                }
                Value::Digest(artifact.digest).encode_into(&mut bytes);
            }
        }
        self.shard.map_or(Value::None, Value::Digest).encode_into(&mut bytes);
        encode_string(&self.numerics, &mut bytes);
        bytes
    }

    /// The key.
    pub fn digest(&self) -> Digest {
        digest(CONTEXT, &self.encode())
    }
}
