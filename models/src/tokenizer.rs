//! Tokenisers in the format of `tokenizer.json`: loading, encoding to a fixed length, and training a
//! small byte-level BPE in CLIP's style.

use std::collections::{BTreeSet, HashMap};

use fancy_regex::Regex;
use tokenizers::decoders::bpe::BPEDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

use crate::byte_pairs::{self, WORD_END};
use crate::checkpoint::CheckpointError;

/// The mark of the beginning of a text.
pub const START: &str = "<|startoftext|>";
/// The mark of its end, whose hidden state is pooled.
pub const END: &str = "<|endoftext|>";
/// Words, single digits, the endings of contractions, runs of anything else: CLIP's pieces.
const PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// Texts are captions and questions; what is longer is cut before it costs anything.
const TEXT_LIMIT: usize = 1 << 16;

/// A tokeniser.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
}

/// A text as ids.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Encoded {
    /// The ids, begin and end marks included, padded to the context length.
    pub ids: Vec<u32>,
    /// How many of them are not padding.
    pub length: usize,
    /// Where each id that is not padding stands in the text: first byte and the byte behind the last;
    /// marks are empty.
    pub offsets: Vec<[usize; 2]>,
    /// Whether the text was cut.
    pub truncated: bool,
}

fn error(reason: impl std::fmt::Display) -> CheckpointError {
    CheckpointError::new("tokenizer.json", reason.to_string())
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// If it is no tokeniser, or has no end mark.
    pub fn from_json(text: &str) -> Result<Self, CheckpointError> {
        let inner: tokenizers::Tokenizer = text.parse().map_err(error)?;
        Self::new(inner)
    }

    fn new(mut inner: tokenizers::Tokenizer) -> Result<Self, CheckpointError> {
        inner.with_truncation(None).map_err(error)?;
        inner.with_padding(None);
        // A mark that stands in a caption is text: captions come from the net.
        inner.set_encode_special_tokens(true);
        let end = [END, "[SEP]"].iter().find_map(|mark| inner.token_to_id(mark));
        let end = end.ok_or_else(|| error(format!("it has no end mark (`{END}` or `[SEP]`)")))?;
        Ok(Self { inner, end })
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of the end mark.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The id of the begin mark, if there is one.
    pub fn start(&self) -> Option<u32> {
        [START, "[CLS]"].iter().find_map(|mark| self.inner.token_to_id(mark))
    }

    /// Encodes `text` to exactly `context` ids: begin mark, pieces, end mark, then `pad`. A text that is
    /// too long is cut and keeps its end mark.
    ///
    /// # Errors
    /// If the tokeniser refuses the text.
    pub fn encode(&self, text: &str, context: usize, pad: u32) -> Result<Encoded, CheckpointError> {
        let mut cut = text.len().min(TEXT_LIMIT);
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        let encoding = self.inner.encode(&text[..cut], true).map_err(error)?;
        let mut ids = encoding.get_ids().to_vec();
        let mut offsets: Vec<[usize; 2]> =
            encoding.get_offsets().iter().map(|(start, end)| [*start, *end]).collect();
        let truncated = ids.len() > context;
        if truncated {
            ids.truncate(context);
            offsets.truncate(context);
            if let (Some(id), Some(offset)) = (ids.last_mut(), offsets.last_mut()) {
                (*id, *offset) = (self.end, [0, 0]);
            }
        }
        let length = ids.len();
        ids.resize(context, pad);
        Ok(Encoded { ids, length, offsets, truncated })
    }

    /// The text of each id, for tables and figures.
    pub fn token(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default().replace("</w>", "")
    }

    /// The ids of the tokens that are whole words of at least three letters, ascending.
    pub fn words(&self) -> Vec<u32> {
        let vocabulary = self.inner.get_vocab(false);
        // CLIP's words end in a mark, and so do their last pieces; the pieces of BERT's that do not start
        // a word begin with one.
        let marked = vocabulary.keys().any(|token| token.ends_with(WORD_END));
        let mut words: Vec<(String, u32)> = vocabulary
            .iter()
            .filter_map(|(token, id)| {
                let word = if marked { token.strip_suffix(WORD_END)? } else { token.as_str() };
                let is_word = word.chars().count() >= 3 && word.chars().all(char::is_alphabetic);
                is_word.then(|| (word.chars().rev().collect(), *id))
            })
            .collect();
        // Backwards, what another word ends in stands right before it.
        words.sort_unstable();
        let is_ending = |place: usize| {
            marked && words.get(place + 1).is_some_and(|next| next.0.starts_with(words[place].0.as_str()))
        };
        let mut ids: Vec<u32> =
            (0..words.len()).filter(|place| !is_ending(*place)).map(|place| words[place].1).collect();
        ids.sort_unstable();
        ids
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String, CheckpointError> {
        self.inner.to_string(true).map_err(error)
    }

    /// Trains a byte-level BPE of at most `vocabulary` ids on `texts`, in CLIP's format: lower case,
    /// words end in `</w>`, the two marks last. Each different word counts once, so that the result
    /// depends on the language and not on how often a caption stands in a table; training is
    /// deterministic.
    ///
    /// # Errors
    /// If the texts hold no word.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocabulary: usize,
    ) -> Result<Self, CheckpointError> {
        let normalizer = Sequence::new(vec![
            NFC.into(),
            Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ")
                .map_err(error)?
                .into(),
            Lowercase.into(),
        ]);
        let split = Split::new(SplitPattern::Regex(PIECES.to_owned()), SplitDelimiterBehavior::Removed, true)
            .map_err(error)?;
        let pieces = PreTokenizers::new(vec![split.into(), ByteLevel::new(false, true, false).into()]);
        let pieces_of = Regex::new(PIECES).map_err(error)?;
        let mut words = BTreeSet::new();
        for text in texts {
            let text = text.to_lowercase();
            for piece in pieces_of.find_iter(&text) {
                words.insert(piece.map_err(error)?.as_str().to_owned());
            }
        }
        if words.is_empty() {
            return Err(error("there is no word to train on"));
        }
        let trained = byte_pairs::train(&words, vocabulary);
        let ids: Vocab = trained.vocabulary.into_iter().zip(0u32..).collect();
        let model = BPE::builder()
            .vocab_and_merges(ids, trained.merges)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix(WORD_END.to_owned())
            .build()
            .map_err(error)?;
        let inner = TokenizerBuilder::<BPE, _, _, ByteLevel, _>::new()
            .with_model(model)
            .with_normalizer(Some(normalizer))
            .with_pre_tokenizer(Some(pieces))
            .with_post_processor(Some(ByteLevel::default()))
            .with_decoder(Some(BPEDecoder::new(WORD_END.to_owned())))
            .build()
            .map_err(error)?;
        let mut inner: tokenizers::Tokenizer = inner.into();
        inner
            .add_special_tokens([
                AddedToken::from(START.to_owned(), true),
                AddedToken::from(END.to_owned(), true),
            ])
            .map_err(error)?;
        let ids: HashMap<&str, u32> =
            [START, END].into_iter().filter_map(|mark| Some((mark, inner.token_to_id(mark)?))).collect();
        let (Some(start), Some(end)) = (ids.get(START), ids.get(END)) else {
            return Err(error("the marks were not added"));
        };
        // BERT-like processing with one mark on either side.
        inner.with_post_processor(Some(
            RobertaProcessing::new((END.to_owned(), *end), (START.to_owned(), *start))
                .trim_offsets(false)
                .add_prefix_space(false),
        ));
        Self::new(inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_whole_words_and_survives_a_round_trip() {
        let texts = ["frontal x-ray of the chest with a nodule", "ct slice of the abdomen with two cysts"];
        let tokenizer = Tokenizer::train(texts, 1024).unwrap();
        assert!(tokenizer.vocabulary() <= 1024 + 2);
        let again = Tokenizer::from_json(&tokenizer.to_json().unwrap()).unwrap();
        let encoded = tokenizer.encode("CT  slice of the chest", 8, 0).unwrap();
        assert_eq!(encoded, again.encode("CT  slice of the chest", 8, 0).unwrap());
        // Case and space make no other ids, but words stand where they stand.
        assert_eq!(encoded.ids, again.encode("ct slice of the chest", 8, 0).unwrap().ids);
        assert_eq!(encoded.offsets[1..3], [[0, 2], [4, 9]]);
        // start, five words of one piece each, end.
        assert_eq!(encoded.length, 7);
        assert_eq!(encoded.ids[0], tokenizer.start().unwrap());
        assert_eq!(encoded.ids[6], tokenizer.end());
        assert_eq!(encoded.ids[7], 0);
        assert_eq!(tokenizer.to_json().unwrap(), Tokenizer::train(texts, 1024).unwrap().to_json().unwrap());
    }

    #[test]
    fn words_are_whole() {
        let tokenizer = Tokenizer::train(["a small nodule on the left"], 1024).unwrap();
        let words: Vec<String> = tokenizer.words().iter().map(|id| tokenizer.token(*id)).collect();
        for word in ["small", "nodule", "the", "left"] {
            assert!(words.iter().any(|known| known == word), "{word}: {words:?}");
        }
        assert!(!words.contains(&"odule".to_owned()), "{words:?}");
    }

    #[test]
    fn a_long_text_is_cut_and_keeps_its_end() {
        let tokenizer = Tokenizer::train(["a nodule"], 600).unwrap();
        let encoded = tokenizer.encode(&"a nodule ".repeat(50), 6, 0).unwrap();
        assert!(encoded.truncated);
        assert_eq!(encoded.ids.len(), 6);
        assert_eq!(encoded.ids[5], tokenizer.end());
    }
}
