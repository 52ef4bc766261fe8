//! Stage kinds that read data sets as they are published and write the tables of the study.

pub(crate) mod checks;
mod checksum;
mod medmnist;
mod npz;

pub use medmnist::IngestMedmnist;
