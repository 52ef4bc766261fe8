//! Tokenisers made by the program itself: trained on texts, or put together from a vocabulary and
//! merges.

use std::collections::{BTreeSet, HashMap};

use fancy_regex::Regex;
use tokenizers::decoders::bpe::BPEDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer, TokenizerBuilder};

use super::byte_pairs::{self, WORD_END};
use super::{END, START};

/// Words, single digits, the endings of contractions, runs of anything else: CLIP's pieces.
const PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Trains a byte-level BPE of at most `vocabulary` ids, the two marks last.
pub(super) fn train<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocabulary: usize,
) -> tokenizers::Result<Tokenizer> {
    let pieces_of = Regex::new(PIECES)?;
    let mut words = BTreeSet::new();
    for text in texts {
        let text = text.to_lowercase();
        for piece in pieces_of.find_iter(&text) {
            words.insert(piece?.as_str().to_owned());
        }
    }
    if words.is_empty() {
        return Err("there is no word to train on".into());
    }
    let trained = byte_pairs::train(&words, vocabulary);
    let ids = trained.vocabulary.into_iter().zip(0u32..).collect();
    assemble(ids, trained.merges)
}

/// A tokeniser in CLIP's format; the marks are added if the vocabulary lacks them.
pub(super) fn assemble(ids: Vocab, merges: Vec<(String, String)>) -> tokenizers::Result<Tokenizer> {
    let model = BPE::builder()
        .vocab_and_merges(ids, merges)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(WORD_END.to_owned())
        .build()?;
    let normalizer = Sequence::new(vec![
        NFC.into(),
        Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
        Lowercase.into(),
    ]);
    let split = Split::new(SplitPattern::Regex(PIECES.to_owned()), SplitDelimiterBehavior::Removed, true)?;
    let pieces = PreTokenizers::new(vec![split.into(), ByteLevel::new(false, true, false).into()]);
    let inner = TokenizerBuilder::<BPE, _, _, ByteLevel, _>::new()
        .with_model(model)
        .with_normalizer(Some(normalizer))
        .with_pre_tokenizer(Some(pieces))
        .with_post_processor(Some(ByteLevel::default()))
        .with_decoder(Some(BPEDecoder::new(WORD_END.to_owned())))
        .build()?;
    let mut inner: Tokenizer = inner.into();
    inner.add_special_tokens([
        AddedToken::from(START.to_owned(), true),
        AddedToken::from(END.to_owned(), true),
    ])?;
    let ids: HashMap<&str, u32> =
        [START, END].into_iter().filter_map(|mark| Some((mark, inner.token_to_id(mark)?))).collect();
    let (Some(start), Some(end)) = (ids.get(START), ids.get(END)) else {
        return Err("the marks were not added".into());
    };
    // BERT-like processing with one mark on either side.
    inner.with_post_processor(Some(
        RobertaProcessing::new((END.to_owned(), *end), (START.to_owned(), *start))
            .trim_offsets(false)
            .add_prefix_space(false),
    ));
    Ok(inner)
}
