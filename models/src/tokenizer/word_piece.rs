//! BERT's WordPiece (Devlin et al. 2019) from a `vocab.txt`.

use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// What marks a piece that continues a word.
const CONTINUATION: &str = "##";
/// A longer word is unknown.
const WORD_LIMIT: usize = 100;
const UNKNOWN: &str = "[UNK]";
const BEGIN: &str = "[CLS]";
const END: &str = "[SEP]";
const MARKS: [&str; 5] = ["[PAD]", UNKNOWN, BEGIN, END, "[MASK]"];

/// The tokeniser of a vocabulary with one piece a line, whose ids are the numbers of the lines.
pub(super) fn tokenizer(vocabulary: &str, lower_case: bool) -> Result<Tokenizer, String> {
    let ids: Vocab = vocabulary.lines().map(str::to_owned).zip(0u32..).collect();
    let id = |mark: &str| ids.get(mark).copied().ok_or_else(|| format!("it has no line `{mark}`"));
    let processor = BertProcessing::new((END.to_owned(), id(END)?), (BEGIN.to_owned(), id(BEGIN)?));
    id(UNKNOWN)?;
    let marks: Vec<AddedToken> = MARKS
        .into_iter()
        .filter(|mark| ids.contains_key(*mark))
        .map(|mark| AddedToken::from(mark.to_owned(), true))
        .collect();
    let model = WordPiece::builder()
        .vocab(ids)
        .unk_token(UNKNOWN.to_owned())
        .continuing_subword_prefix(CONTINUATION.to_owned())
        .max_input_chars_per_word(WORD_LIMIT)
        .build()
        .map_err(|error| error.to_string())?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, true, None, lower_case)))
        .map_err(|error| error.to_string())?
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_post_processor(Some(processor))
        .with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::new(CONTINUATION.to_owned(), true)));
    tokenizer.add_special_tokens(marks).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}
