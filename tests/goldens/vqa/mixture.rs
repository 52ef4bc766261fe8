//! The mixture of co-occurring words.

use candle_core::{Device, Tensor};
use pipe_stages::vqa::{QuestionVocabulary, UnknownWord, Weighting, co_occurrences, mixed_vectors};

use crate::harness::{self, Golden};

#[test]
fn co_occurring_words() {
    let Some(folder) = harness::topic("vqa") else { return };
    let pairs = harness::json(&folder.join("answers.json"));
    let train: Vec<&str> = pairs["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pair| pair["split"] == "train")
        .map(|pair| pair["question"].as_str().unwrap())
        .collect();
    let vocabulary = QuestionVocabulary::new(train.iter().copied(), UnknownWord::LastWord);
    let golden = Golden::open(&folder, "tfidf.safetensors");
    let glove = golden.input("glove");
    let (words, width) = glove.dims2().unwrap();
    assert_eq!(words, vocabulary.words().len());
    let vectors = glove.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, weighting) in [("reference", Weighting::Reference), ("intended", Weighting::Intended)] {
        let mixture = co_occurrences(train.iter().copied(), &vocabulary, weighting);
        let mixed = mixed_vectors(&mixture, &vectors, width);
        let mixture = Tensor::from_vec(mixture, (words, words), &Device::Cpu).unwrap();
        golden.compare(&format!("tfidf_{name}"), &mixture, 1e-6);
        let mixed = Tensor::from_vec(mixed, (words, width), &Device::Cpu).unwrap();
        golden.compare(&format!("emb2_{name}"), &mixed, 1e-6);
    }
    golden.finish();
}
