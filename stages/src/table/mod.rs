//! Tables: in memory as named columns, on disk as Parquet parts that are cut by content.
//!
//! A [`Table`] is what stages build and read; [`write()`] cuts it into parts, names every row by the
//! digest of its values and writes Parquet; [`read()`] gives the columns back.

mod arrow;
mod column;
mod read;
mod schema;
mod write;

pub use column::{Column, Table};
pub(crate) use read::append;
pub use read::{metadata, read, read_columns};
pub use schema::{Field, Kind, TableSchema};
pub use write::{WriteOptions, write};
