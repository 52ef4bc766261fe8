//! Vectors of words, and other weights from files, that a model begins with.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read};

use candle_core::Tensor;
use pipe_engine::{Artifact, ArtifactFile, StageError};
use pipe_models::checkpoint::read_tensors;
use pipe_models::vqa::{SecondTable, WordsConfig, published};

use super::architecture::Architecture;
use super::{QuestionVocabulary, Weighting, co_occurrences, mixed_vectors};
use crate::model::{DEVICE, checkpoint_error, files, tensor_error};

/// Word tables: their sizes, and the values that they begin with.
#[derive(Debug)]
pub(crate) struct Tables {
    width: usize,
    /// What happens to the second table.
    second: SecondTable,
    /// The vectors of the words and those beside them, `[rows, width]` each.
    values: Option<[Tensor; 2]>,
}

impl Tables {
    /// Tables that begin at random.
    pub(crate) fn random(width: usize) -> Self {
        Self { width, second: SecondTable::None, values: None }
    }

    /// Their sizes for so many words.
    pub(crate) fn config(&self, words: usize, own_unknown: bool) -> WordsConfig {
        WordsConfig { words, own_unknown, width: self.width, second: self.second }
    }

    /// What a model begins with, by the names of its tensors.
    pub(crate) fn given(&self, architecture: &Architecture) -> BTreeMap<String, Tensor> {
        let Some([own, company]) = &self.values else { return BTreeMap::new() };
        let mut given = BTreeMap::new();
        if !architecture.reads_states() {
            given.insert("w_emb.emb.weight".to_owned(), own.clone());
            given.insert("w_emb.emb_.weight".to_owned(), company.clone());
        }
        if let Architecture::Qcr(_) = architecture {
            given.insert("typeatt.w_emb.emb.weight".to_owned(), own.clone());
        }
        given
    }

    /// What a classifier of question types begins with.
    pub(crate) fn given_types(&self) -> BTreeMap<String, Tensor> {
        let own = self.values.as_ref().map(|[own, _]| ("w_emb.emb.weight".to_owned(), own.clone()));
        own.into_iter().collect()
    }
}

/// No line of a file of word vectors is longer than this; GloVe's longest have 300 values.
const LONGEST_LINE: usize = 1 << 16;

/// Tables whose first holds the vectors of files for the words of the vocabulary (zeros for those that they lack),
/// and whose second mixes those of words that occur together, or without a `weighting` keeps the first as it begins. The files are a text of lines `word value value ...`, or
/// an array `.npy` of one row per word beside a `.json` list of the words.
///
/// # Errors
/// If a file is damaged or has none of the words.
pub(crate) fn word_tables<'a>(
    glove: &Artifact,
    vocabulary: &QuestionVocabulary,
    questions: impl IntoIterator<Item = &'a str>,
    weighting: Option<Weighting>,
    own_unknown: bool,
) -> Result<Tables, StageError> {
    let mut vectors = Vectors::new(vocabulary);
    let array = glove.files.iter().find(|file| file.path.ends_with(".npy"));
    let list = glove.files.iter().find(|file| file.path.ends_with(".json") && file.path.contains("words"));
    match (array, list) {
        (Some(array), Some(list)) => from_array(&array, &list, &mut vectors)?,
        _ => from_text(&glove.single_file()?, &mut vectors)?,
    }
    let Some(width) = vectors.width else {
        return Err(StageError::input("glove", "it has a vector for none of the words of the questions"));
    };
    with_company((vectors.values, width), vocabulary, questions, weighting, own_unknown)
}

/// Tables of vectors of the words of the vocabulary, `[words, width]`, and of those of their company, or without a
/// `weighting` of the same vectors, which then do not learn.
///
/// # Errors
/// Whatever the device reports.
pub(crate) fn with_company<'a>(
    (own, width): (Vec<f32>, usize),
    vocabulary: &QuestionVocabulary,
    questions: impl IntoIterator<Item = &'a str>,
    weighting: Option<Weighting>,
    own_unknown: bool,
) -> Result<Tables, StageError> {
    let (company, second) = match weighting {
        Some(weighting) => {
            let mixture = co_occurrences(questions, vocabulary, weighting);
            (mixed_vectors(&mixture, &own, width), SecondTable::Trained)
        }
        None => (own.clone(), SecondTable::Frozen),
    };
    // Padding, and the word that no training question has, are rows of zeros.
    let rows = vocabulary.words().len() + 1 + usize::from(own_unknown);
    let table = |mut values: Vec<f32>| {
        values.resize(rows * width, 0.0);
        Tensor::from_vec(values, (rows, width), &DEVICE).map_err(tensor_error)
    };
    Ok(Tables { width, second, values: Some([table(own)?, table(company)?]) })
}

/// The vectors of the words of a vocabulary, as they are found.
struct Vectors<'a> {
    places: HashMap<&'a str, usize>,
    width: Option<usize>,
    values: Vec<f32>,
}

impl<'a> Vectors<'a> {
    fn new(vocabulary: &'a QuestionVocabulary) -> Self {
        let words = vocabulary.words().iter().enumerate();
        Self {
            places: words.map(|(place, word)| (word.as_str(), place)).collect(),
            width: None,
            values: Vec::new(),
        }
    }

    /// Takes the vector of a word of the vocabulary; tells what is wrong with it.
    fn put(&mut self, place: usize, vector: &[f32]) -> Result<(), String> {
        let width = *self.width.get_or_insert(vector.len());
        if vector.len() != width || width == 0 {
            return Err(format!("it has {} values instead of {width}", vector.len()));
        }
        if vector.iter().any(|value| !value.is_finite()) {
            return Err("a value is no number".to_owned());
        }
        self.values.resize(self.places.len() * width, 0.0);
        self.values[place * width..(place + 1) * width].copy_from_slice(vector);
        Ok(())
    }
}

fn from_text(file: &ArtifactFile, vectors: &mut Vectors<'_>) -> Result<(), StageError> {
    let error = |reason: String| StageError::input(&file.path, reason);
    let damaged = |line: usize, reason: &str| {
        error(format!("line {line}: {reason}; `word value value ...` is expected"))
    };
    let opened = std::fs::File::open(&file.location).map_err(|problem| error(problem.to_string()))?;
    let mut reader = BufReader::new(opened);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut reader)
            .take(LONGEST_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(|problem| error(problem.to_string()))?;
        if read == 0 {
            break;
        }
        if read > LONGEST_LINE {
            return Err(damaged(number, &format!("it is longer than {LONGEST_LINE} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|_| damaged(number, "it is not UTF-8"))?;
        let mut fields = text.trim_end().split(' ');
        let Some(place) = fields.next().and_then(|word| vectors.places.get(word).copied()) else { continue };
        let values: Option<Vec<f32>> = fields.map(|field| field.parse().ok()).collect();
        let values = values.ok_or_else(|| damaged(number, "a value is no number"))?;
        vectors.put(place, &values).map_err(|reason| damaged(number, &reason))?;
    }
    Ok(())
}

fn from_array(
    array: &ArtifactFile,
    list: &ArtifactFile,
    vectors: &mut Vectors<'_>,
) -> Result<(), StageError> {
    let damaged = |reason: String| StageError::input(&array.path, reason);
    let bytes =
        std::fs::read(&list.location).map_err(|error| StageError::input(&list.path, error.to_string()))?;
    let words: Vec<String> = serde_json::from_slice(&bytes)
        .map_err(|error| StageError::input(&list.path, format!("it is no list of words: {error}")))?;
    let opened = std::fs::File::open(&array.location).map_err(|error| damaged(error.to_string()))?;
    let file = npyz::NpyFile::new(BufReader::new(opened)).map_err(|error| damaged(error.to_string()))?;
    let shape = file.shape().to_vec();
    let [rows, width] = shape[..] else {
        return Err(damaged(format!("its shape is {shape:?}; a row per word is expected")));
    };
    if rows != words.len() as u64 || file.order() != npyz::Order::C {
        return Err(damaged(format!("it has {rows} rows, and `{}` lists {} words", list.path, words.len())));
    }
    // The header may promise more than there is.
    if rows.saturating_mul(width).saturating_mul(4) > array.bytes {
        return Err(damaged(format!("its shape is {shape:?}, and it has {} bytes", array.bytes)));
    }
    let values: Vec<f32> = file.into_vec().map_err(|error| damaged(error.to_string()))?;
    for (word, vector) in words.iter().zip(values.chunks_exact((width as usize).max(1))) {
        if let Some(place) = vectors.places.get(word.as_str()).copied() {
            vectors.put(place, vector).map_err(|reason| damaged(format!("`{word}`: {reason}")))?;
        }
    }
    Ok(())
}

/// The file of a meta-learned network that `pretrain.meta` writes.
pub(crate) const META_WEIGHTS: &str = "meta.safetensors";
/// The file of an auto-encoder that `pretrain.autoencoder` writes.
pub(crate) const AUTOENCODER_WEIGHTS: &str = "autoencoder.safetensors";

/// The weights of the small image networks in a folder or file, published or learned here, by the names of the tensors
/// of `architecture`; what it has no place for is left out.
///
/// # Errors
/// If there are none, or a file is damaged.
pub(crate) fn known_weights(
    source: &Artifact,
    architecture: &Architecture,
) -> Result<BTreeMap<String, Tensor>, StageError> {
    let [meta, autoencoder] = architecture.image_names();
    let image = architecture.image();
    let own = |path: &str, name: &str| -> Result<BTreeMap<String, Tensor>, StageError> {
        let tensors = read_tensors(&files(source), path, &DEVICE).map_err(checkpoint_error)?;
        Ok(tensors.into_iter().map(|(own, tensor)| (format!("{name}.{own}"), tensor)).collect())
    };
    let mut found = BTreeMap::new();
    let mut known = false;
    for file in &source.files {
        let (path, location) = (file.path.as_str(), &file.location);
        let is_meta = path.ends_with(".weights") || path == META_WEIGHTS;
        let is_autoencoder = path.ends_with(".pth") || path == AUTOENCODER_WEIGHTS;
        known |= is_meta || is_autoencoder;
        if is_meta && image.meta.is_some() {
            found.extend(match path == META_WEIGHTS {
                true => own(path, meta)?,
                false => published::meta_cnn_weights(location, meta).map_err(checkpoint_error)?,
            });
        }
        if is_autoencoder && image.autoencoder.is_some() {
            found.extend(match path == AUTOENCODER_WEIGHTS {
                true => own(path, autoencoder)?,
                false => published::autoencoder_weights(location, autoencoder).map_err(checkpoint_error)?,
            });
        }
    }
    if !known {
        let reason = format!(
            "it has none of `pretrained_ae.pth`, `pretrained_maml.weights`, `{AUTOENCODER_WEIGHTS}` and `{META_WEIGHTS}`"
        );
        return Err(StageError::input("weights", reason));
    }
    Ok(found)
}
