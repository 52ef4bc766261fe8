//! The content-addressed store of `pipe`: blobs, action records, leases, staging.
//!
//! It knows bytes, keys and digests, and nothing of stages, tables or tensors.

#![forbid(unsafe_code)]

mod content;
mod digest;
mod value;

pub use content::{part_digest, row_digest, table_digest, tree_digest};
pub use digest::{Digest, ParseDigestError};
pub use value::Value;
