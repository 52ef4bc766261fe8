//! Models of visual question answering.
