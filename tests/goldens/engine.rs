//! Keys and digests: the canonical encoding against values from two other encoders.

use std::collections::BTreeMap;

use pipe_cache::{
    ActionKey, Digest, KeyArtifact, KeyInput, Value, part_digest, row_digest, table_digest, tree_digest,
};
use serde_json::Value as Json;

use crate::harness;

/// The notation of `goldens/engine/README.md`.
fn parse(json: &Json) -> Value {
    match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::String(text) => Value::string(text),
        Json::Array(items) => Value::List(items.iter().map(parse).collect()),
        Json::Object(entries) => {
            let (tag, content) = entries.iter().next().expect("a tagged value");
            let text = content.as_str().unwrap_or_default();
            match tag.as_str() {
                "int" => Value::Integer(content.as_i64().expect("an integer")),
                "float" => Value::Float(text.parse().expect("a float")),
                "bytes" => Value::Bytes(unhex(text)),
                "digest" => Value::Digest(text.parse().expect("a digest")),
                "table" => {
                    let entries = content.as_object().expect("a table");
                    Value::Table(entries.iter().map(|(key, value)| (key.clone(), parse(value))).collect())
                }
                other => panic!("unknown tag `{other}`"),
            }
        }
        Json::Number(number) => panic!("the bare number {number} is not in the notation"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The components of an action key, read back out of the list that is hashed.
fn action(value: &Value) -> ActionKey {
    let Value::List(items) = value else { panic!("an action key is a list") };
    let [kind, implementation, schema_version, params, inputs, shard, numerics] = items.as_slice() else {
        panic!("an action key has seven items")
    };
    let Value::List(inputs) = inputs else { panic!("the inputs are a list") };
    ActionKey {
        kind: string(kind),
        implementation: integer(implementation),
        schema_version: integer(schema_version),
        params: params.clone(),
        // Backwards: sorting by name is the key's own business.
        inputs: inputs.iter().rev().map(input).collect(),
        shard: match shard {
            Value::None => None,
            other => Some(digest(other)),
        },
        numerics: string(numerics),
    }
}

fn input(value: &Value) -> KeyInput {
    let Value::List(items) = value else { panic!("an input is a list") };
    let [name, Value::List(artifacts)] = items.as_slice() else { panic!("an input is name and artifacts") };
    let artifacts = artifacts.iter().map(|artifact| {
        let Value::List(items) = artifact else { panic!("an artifact is a list") };
        let axes = match &items[0] {
            Value::None => None,
            Value::Table(axes) => Some(axes.clone()),
            other => panic!("axes are a table, not {other:?}"),
        };
        KeyArtifact { axes, digest: digest(&items[1]) }
    });
    KeyInput { name: string(name), artifacts: artifacts.collect() }
}

fn string(value: &Value) -> String {
    let Value::String(text) = value else { panic!("{value:?} is not a string") };
    text.clone()
}

fn integer(value: &Value) -> i64 {
    let Value::Integer(number) = value else { panic!("{value:?} is not an integer") };
    *number
}

fn digest(value: &Value) -> Digest {
    let Value::Digest(digest) = value else { panic!("{value:?} is not a digest") };
    *digest
}

#[test]
fn keys_and_digests_equal_the_goldens() {
    let Some(folder) = harness::topic("engine") else { return };
    let cases = harness::json(&folder.join("keys.json"));
    for (index, case) in cases.as_array().expect("a list of cases").iter().enumerate() {
        let value = parse(&case["value"]);
        let context = case["context"].as_str().expect("a context");
        let encoding = value.encode();
        assert_eq!(encoding.len() as u64, case["bytes"], "case {index}: length");
        assert_eq!(hex(&encoding), case["encoding_hex"], "case {index}: encoding");
        let digest = value.digest(context);
        assert_eq!(digest.to_hex(), case["digest"], "case {index}: digest");
        let mut name = format!("{index}");
        if context == "pipe action v1" {
            let key = action(&value);
            assert_eq!(key.digest(), digest, "case {index}: the key from its components");
            let clear = serde_json::to_string(&key).expect("components in clear");
            let back: ActionKey = serde_json::from_str(&clear).expect("components read back");
            assert_eq!(back.digest(), digest, "case {index}: the key from its components in clear");
            name = format!("{index}.{}", key.kind);
        }
        println!("golden engine/keys.json#{name} rel=0.000e0");
    }
    println!("UNCOMPARED engine/keys.json inputs=[\"context\", \"value\"] unused=[]");
}

/// The four digests that `decisions.md` states.
#[test]
fn content_digests_equal_those_of_the_decisions() {
    let tree = tree_digest([("b/c.txt", 0, Digest::of(b"")), ("a.txt", 5, Digest::of(b"hello"))]);
    let row = row_digest(BTreeMap::from([
        ("id".to_owned(), Value::string("r1")),
        ("label".to_owned(), Value::Integer(3)),
        ("text".to_owned(), Value::None),
    ]));
    let part = part_digest("image_rows", 1, &[row]);
    let table = table_digest(&[part]);
    let expected = [
        ("tree", tree, "e9bcde1380faa930f13c9720198b623b1da1e52516e9fc12ce1a29b312a7218e"),
        ("row", row, "ce89d932c5aabfde8d449abdb96a797d41b3f4833d6ec2cd8d952c40a6a2c178"),
        ("part", part, "c9e790ef47b1d1d3b4d7eabfe6cf552430c5edbae2ede3952589a5121123af12"),
        ("table", table, "0202ab501e1b65de160fdb76e3335083170121297ec33f0a21d04c15c4918e5e"),
    ];
    for (name, ours, golden) in expected {
        assert_eq!(ours.to_hex(), golden, "{name}");
        println!("golden engine/decisions.md#{name} rel=0.000e0");
    }
}
