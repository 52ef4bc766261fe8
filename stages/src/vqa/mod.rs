//! The text side of medical visual question answering, as the published methods MEVF (Nguyen et al.
//! 2019) and QCR (Zhan et al. 2020) have it: how answers are compared, which answers there are, and how
//! questions are cut into words and
//! which words stand together.

mod answers;
mod cooccurrence;
mod questions;
mod vocabulary;
mod words;

pub use answers::normalise;
pub use cooccurrence::{Weighting, co_occurrences, mixed_vectors};
pub use questions::{QuestionVocabulary, UnknownWord, words_of};
pub use vocabulary::{Branch, BranchVocabulary, Label, SharedVocabulary, TrainAndTestVocabulary, is_closed};
