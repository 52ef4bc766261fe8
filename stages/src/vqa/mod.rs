//! Medical visual question answering, as the published methods MEVF (Nguyen et al. 2019) and QCR (Zhan et al. 2020)
//! have it. Text: how answers are compared, which answers there are, how questions are cut into words, and which words
//! stand together. Models: what they are made of, what they are shown, and how their answers are scored.

mod answerer;
mod answers;
mod architecture;
mod clip_tokens;
mod cooccurrence;
mod design;
mod examples;
mod questions;
mod scoring;
mod senses;
mod tables;
#[cfg(test)]
mod tests;
mod vocabulary;
mod words;

pub(crate) use answerer::{Answerer, Description, ENCODER, Matching, copy_encoder};
pub use answers::normalise;
pub(crate) use architecture::moved;
pub(crate) use clip_tokens::clip_tokens;
pub use cooccurrence::{Weighting, co_occurrences, mixed_vectors};
pub(crate) use design::{AnswerSource, Design, Fusing, Method, Reading, answer_list};
pub(crate) use examples::{Asked, Examples, TRAINING_TWIN, asked, question_types};
pub use questions::{QuestionVocabulary, UnknownWord, placed_words, words_of};
pub(crate) use scoring::{Answered, MATCHING, Scoring, TASK, given};
pub(crate) use senses::{
    Modality, QUESTION_LENGTH, Readings, Sights, VisualTokens, annotated, batch, features, preprocessing,
};
pub(crate) use tables::{
    AUTOENCODER_WEIGHTS, META_WEIGHTS, Tables, known_weights, with_company, word_tables,
};
pub use vocabulary::{Branch, BranchVocabulary, Label, SharedVocabulary, TrainAndTestVocabulary, is_closed};
