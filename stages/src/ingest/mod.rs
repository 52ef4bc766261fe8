//! Stage kinds that read data sets as they are published and write the tables of the study.

pub(crate) mod checks;
mod checksum;
mod csv;
mod images;
mod json;
mod medmnist;
mod npz;
mod pictures;
mod questions;
mod rejects;
mod slake;
mod splits;
mod vqa_rad;

pub use images::IngestImages;
pub use medmnist::IngestMedmnist;
pub use slake::IngestSlake;
pub use vqa_rad::IngestVqaRad;
