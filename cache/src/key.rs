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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn input(name: &str, artifacts: &[(&[(&str, Value)], Digest)]) -> KeyInput {
        let artifact = |(axes, digest): &(&[(&str, Value)], Digest)| KeyArtifact {
            axes: (!axes.is_empty()).then(|| table(axes)),
            digest: *digest,
        };
        KeyInput { name: name.to_owned(), artifacts: artifacts.iter().map(artifact).collect() }
    }

    fn table(entries: &[(&str, Value)]) -> BTreeMap<String, Value> {
        entries.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    /// Keys that another program computed with another BLAKE3: a store stays readable as long as these hold.
    #[test]
    fn keys_are_those_of_the_format() {
        let h = |text: &str| Digest::of(text.as_bytes());
        let none: &[(&str, Value)] = &[];
        let axes = |seed| [("model", Value::string("clip")), ("seed", Value::Integer(seed))];
        let floats = |values: &[f64]| Value::List(values.iter().map(|value| Value::Float(*value)).collect());
        let shard: Vec<u8> = ["0", "1", "2"].iter().flat_map(|text| *h(text).as_bytes()).collect();
        let key = |kind: &str, versions: (i64, i64), params: Value, inputs: Vec<KeyInput>, numerics: &str| {
            ActionKey {
                kind: kind.to_owned(),
                implementation: versions.0,
                schema_version: versions.1,
                params,
                inputs,
                shard: None,
                numerics: numerics.to_owned(),
            }
        };
        let cases = [
            (
                key(
                    "tokenize",
                    (1, 1),
                    Value::Table(table(&[("max_len", Value::Integer(77)), ("lower", Value::Bool(true))])),
                    vec![input("text", &[(none, h("hello"))])],
                    "none",
                ),
                190,
                "109b73be80b7c1dde0437d7cdbaf0cc6f38f6a313b1bc1e9a353c7a63c287528",
            ),
            (
                key(
                    "train.classify",
                    (3, 1),
                    Value::Table(table(&[
                        ("lr", Value::Float(1e-5)),
                        ("epochs", Value::Integer(10)),
                        ("wd", Value::Float(-0.0)),
                        ("betas", floats(&[0.9, 0.999])),
                        ("aug", Value::Table(table(&[("flip", Value::Bool(false))]))),
                    ])),
                    vec![input("train", &[(none, h("train"))]), input("weights", &[(none, h("w"))])],
                    "cuda:sm_90;f32;tf32=0",
                ),
                391,
                "1f3790692a707c7f6f09baf49c55897d34ef0544cbb03c00194a0f34799b3164",
            ),
            (
                key(
                    "report.table",
                    (1, 2),
                    Value::Table(BTreeMap::new()),
                    vec![input("scores", &[(&axes(0), h("a")), (&axes(1), h("b"))])],
                    "none",
                ),
                313,
                "95e70d91db38b2790f2d7578f01c1670d5a97c96ffc9b182dbd53cfbac5be03c",
            ),
            (
                ActionKey {
                    shard: Some(Digest::of(&shard)),
                    ..key(
                        "embed.image",
                        (1, 1),
                        Value::Table(table(&[("batch", Value::Integer(64))])),
                        vec![input("images", &[]), input("weights", &[(none, h("w"))])],
                        "cpu;f32",
                    )
                },
                247,
                "f88b7cda913f9e8e7e5e792296237f84c7b6323de9a1c3090038e36f0900deec",
            ),
            (
                key(
                    "ingest.images",
                    (1, 1),
                    Value::Table(table(&[("text", Value::string("Größe \u{1f9e0}"))])),
                    vec![],
                    "none",
                ),
                115,
                "19a2765701781ca534b74f189a7413f04db1e2e2e32d9a7b5dc0b71f20645269",
            ),
            (
                key(
                    "compare",
                    (2, 1),
                    Value::Table(table(&[
                        ("limit", Value::None),
                        ("seeds", Value::List(vec![Value::Integer(i64::MIN), Value::Integer(i64::MAX)])),
                        ("nested", Value::List(vec![Value::List(vec![]), Value::Table(BTreeMap::new())])),
                    ])),
                    vec![
                        input("b", &[(&axes(1), h("b")), (&axes(0), h("a"))]),
                        input("a", &[(none, h("a"))]),
                    ],
                    "none",
                ),
                472,
                "5c3aa00b5198f091ea2457a5b2568d6d9bf5f84a14f603f30fb8b514c57ac8a9",
            ),
            (
                key(
                    "score",
                    (1, 1),
                    Value::Table(table(&[("one", Value::Integer(1))])),
                    vec![],
                    "cpu:x86_64:avx2;f32",
                ),
                109,
                "bac3a6de226b87a59ecb056b19fb40ba7856cea6d5b03c9361417c40007914ed",
            ),
            (
                key(
                    "score",
                    (1, 1),
                    Value::Table(table(&[("one", Value::Float(1.0))])),
                    vec![],
                    "cpu:x86_64:avx2;f32",
                ),
                109,
                "344549fe871067822e4593f37b948e78c99d70d376bf9e98aacf54a4fe76c7d4",
            ),
            (
                key(
                    "command",
                    (1, 1),
                    Value::Table(table(&[
                        ("bytes", Value::Bytes(vec![0, 255])),
                        ("digest", Value::Digest(h("x"))),
                    ])),
                    vec![input("empty", &[])],
                    "none",
                ),
                180,
                "6d0ec76476f52ec050a2cc2a2e5bc255cc4a4a8a166ea15fe1600742494434b1",
            ),
            (
                ActionKey {
                    shard: Some(h("part")),
                    ..key(
                        "attribute",
                        (4, 3),
                        Value::Table(table(&[
                            ("least", Value::Float(5e-324)),
                            ("most", Value::Float(f64::MAX)),
                        ])),
                        vec![input("images", &[]), input("model", &[(&axes(2), h("m"))])],
                        "cuda:sm_80;bf16",
                    )
                },
                330,
                "c38d1aaeaab9fc0858871f7e4331ba615ecbdd912e7b82c507e40808a0d74f67",
            ),
        ];
        for (key, bytes, digest) in cases {
            assert_eq!((key.encode().len(), key.digest().to_hex().as_str()), (bytes, digest), "{}", key.kind);
        }
    }
}
