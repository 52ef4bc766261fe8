//! Visual question answering against the code of MEVF, QCR and PubMedCLIP.

mod fusion;
mod images;
mod mixture;
mod models;
mod questions;
mod support;
mod text;
mod training;

/// The type of a question by its class in the files.
const QUESTION_TYPES: [pipe_models::vqa::QuestionType; 2] = pipe_models::vqa::QuestionType::ALL;
