//! Stage kinds that read data sets as they are published and write the tables of the study.

mod archive;
mod asked;
mod captions;
pub(crate) mod checks;
mod checksum;
mod csv;
mod ct_rate;
#[cfg(test)]
mod fuzz;
mod huggingface;
mod images;
mod json;
mod kept;
mod lines;
mod medmnist;
mod nifti;
mod npz;
mod numbered;
mod origin;
mod parquet;
mod pictures;
mod pmc;
mod questions;
mod rejects;
mod roco;
pub(crate) mod seen;
mod sheets;
mod slake;
mod source;
pub(crate) mod splits;
mod tally;
#[cfg(test)]
mod testing;
mod vqa_rad;

pub use ct_rate::IngestCtRate;
pub(crate) use ct_rate::LABELS as ABNORMALITIES;
pub use huggingface::IngestHuggingFace;
pub use images::IngestImages;
pub use medmnist::IngestMedmnist;
pub use pmc::IngestPmc;
pub(crate) use questions::exact;
pub use roco::IngestRoco;
pub use slake::IngestSlake;
pub use vqa_rad::IngestVqaRad;

/// Different labels that a data set can have: a column with more of them says what an image is called, not what it is.
const MOST_CLASSES: usize = 1 << 16;
