//! Ids against open_clip and transformers.

use pipe_models::Tokenizer;
use pipe_models::tokenizer::Cleaning;

use crate::harness;

fn ids(case: &serde_json::Value, key: &str) -> Vec<u32> {
    case[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn cases(path: &std::path::Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// open_clip's ids from the text as it came, cleaning included.
#[test]
fn clip_bpe() {
    let Some(folder) = harness::topic("models/clip-bpe") else { return };
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&text).unwrap().with_cleaning(Cleaning::OpenClip).unwrap();
    let cases = cases(&folder.join("clip_bpe_cases.jsonl"));
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(case, "ids77");
        let encoded = tokenizer.encode(text, expected.len(), 0).unwrap();
        assert_eq!(encoded.ids, expected, "{text:?}");
        assert_eq!(encoded.truncated, case["truncated"].as_bool().unwrap(), "{text:?}");
        // Where the towers read the text: the first of the greatest ids, also of a text with an end mark of its own.
        let greatest = encoded.ids.iter().max().unwrap();
        let read = encoded.ids.iter().position(|id| id == greatest).unwrap() as u64;
        assert_eq!(read, case["eot_index"].as_u64().unwrap(), "{text:?}");
        // The same without a limit.
        let whole = ids(case, "ids");
        let encoded = tokenizer.encode(text, whole.len() + 2, 0).unwrap();
        assert_eq!(encoded.ids[1..=whole.len()], whole, "{text:?}");
    }
    println!("golden clip-bpe/clip_bpe_cases.jsonl {} cases equal", cases.len());
    assert!(!cases.is_empty());
}

/// The library's own way: equal to open_clip's wherever the case says that cleaning alone differs.
#[test]
fn clip_bpe_as_stored() {
    let Some(folder) = harness::topic("models/clip-bpe") else { return };
    let text = std::fs::read_to_string(folder.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_json(&text).unwrap();
    let mut compared = 0;
    for case in cases(&folder.join("clip_bpe_cases.jsonl")) {
        let text = match case["tokenizer_json_matches_after"].as_str().unwrap() {
            "tokenizer_json_alone" => &case["text"],
            "other" => continue,
            _ => &case["cleaned"],
        };
        let expected = ids(&case, "ids77");
        let encoded = tokenizer.encode(text.as_str().unwrap(), expected.len(), 0).unwrap();
        assert_eq!(encoded.ids, expected, "{text}");
        compared += 1;
    }
    println!("golden clip-bpe/tokenizer.json {compared} cases equal as stored");
    assert!(compared > 0);
}

#[test]
fn bert_word_pieces() {
    let Some(folder) = harness::topic("models/bert-wordpiece-tiny") else { return };
    let config = harness::json(&folder.join("tokenizer_config.json"));
    let vocabulary = std::fs::read_to_string(folder.join("vocab.txt")).unwrap();
    let tokenizer =
        Tokenizer::from_vocabulary(&vocabulary, config["do_lower_case"].as_bool().unwrap()).unwrap();
    // A tokeniser that is written and read again is the same.
    let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
    let cases = cases(&folder.join("cases.jsonl"));
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(case, "input_ids");
        let mask = ids(case, "attention_mask");
        for tokenizer in [&tokenizer, &again] {
            let encoded = tokenizer.encode(text, expected.len(), 0).unwrap();
            assert_eq!(encoded.ids, expected, "{text:?}");
            assert_eq!(encoded.length as u32, mask.iter().sum::<u32>(), "{text:?}");
            let tokens: Vec<String> = encoded.ids[1..].iter().map(|id| tokenizer.token(*id)).collect();
            for (index, token) in case["tokens"].as_array().unwrap().iter().enumerate() {
                if index + 2 < encoded.length {
                    assert_eq!(tokens[index], token.as_str().unwrap(), "{text:?}");
                }
            }
        }
    }
    println!("golden bert-wordpiece-tiny/cases.jsonl {} cases equal", cases.len());
    assert!(!cases.is_empty());
}
