//! Tables: in memory as named columns, on disk as Parquet parts that are cut by content.
//!
//! A [`Table`] is what stages build and read; [`write()`] cuts it into parts, names every row by the
//! digest of its values and writes Parquet; a [`TableWriter`] does so piece by piece; [`read()`] gives the
//! columns back.

mod arrow;
mod column;
mod dictionary;
mod read;
mod schema;
mod write;

pub use column::{Column, Table};
pub(crate) use dictionary::dictionary;
pub(crate) use read::{Wanted, from_batch, header, read_each};
pub use read::{metadata, provenance, read, read_columns, read_without};
pub use schema::{Field, Kind, TableSchema};
pub use write::{TableWriter, WriteOptions, write};
pub(crate) use write::{row_digests, write_file};
