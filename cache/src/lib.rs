//! The content-addressed store of `pipe`: blobs, action records, leases, staging.
//!
//! It knows bytes, keys and digests, and nothing of stages, tables or tensors.
//!
//! ```
//! # use pipe_cache::*;
//! # let folder = std::env::temp_dir().join(format!("pipe-cache-doc-{}", std::process::id()));
//! let store = Store::open_with_cache(&folder, Durability::Full, None)?;
//! let key = ActionKey {
//!     kind: "tokenize".to_owned(),
//!     implementation: 1,
//!     schema_version: 1,
//!     params: Value::Table([("max_len".to_owned(), Value::Integer(77))].into()),
//!     inputs: vec![],
//!     shard: None,
//!     numerics: "none".to_owned(),
//! };
//! assert!(store.lookup(&key.digest())?.is_none());
//!
//! let staging = store.stage()?;
//! std::fs::write(staging.output_folder("tokens")?.join("tokens.txt"), "a b c").unwrap();
//! let output = StagedOutput { port: "tokens".to_owned(), artifact_type: "tree".to_owned(), parts: None };
//! staging.commit(&key, &[output], RecordMeta::default())?;
//!
//! let record = store.lookup(&key.digest())?.expect("it was committed");
//! assert_eq!(record.outputs["tokens"].files[0].path, "tokens.txt");
//! # drop(store);
//! # std::fs::remove_dir_all(folder).unwrap();
//! # Ok::<(), StoreError>(())
//! ```

#![forbid(unsafe_code)]

mod arrays;
mod batch;
mod checkpoint;
mod clear;
mod collect;
mod content;
mod digest;
mod downloads;
mod evict;
#[cfg(test)]
mod faults;
mod frozen;
mod fs;
mod glob;
mod key;
mod lease;
mod locate;
mod owner;
mod pins;
mod read;
mod record;
mod remembered;
mod runs;
mod session;
mod slurm;
mod sorted;
mod source_files;
mod sources;
mod spill;
mod staging;
mod store;
mod survey;
#[cfg(test)]
mod tests;
mod usage;
mod value;
mod verify;

pub use arrays::ArrayFolder;
pub use checkpoint::{Checkpoint, Checkpoints};
pub use collect::{CollectOptions, Collected, Garbage};
pub use content::{part_digest, part_ends, row_digest, table_digest, tree_digest};
pub use digest::{Digest, ParseDigestError};
pub use downloads::Partial;
pub use evict::Evictable;
pub use frozen::modified;
pub use fs::{CopyMethod, Durability, FsError, reflink_or_copy};
pub use glob::select;
pub use key::{ActionKey, KeyArtifact, KeyInput};
pub use lease::{Lease, LeaseAttempt, LeaseInfo};
pub use owner::Owner;
pub use read::{Damage, Looked, Reading, StoredFile, Verify};
pub use record::{FileRecord, OutputRecord, PartRecord, Record, RecordMeta};
pub use runs::RunFolder;
pub use slurm::{Listed, SlurmTask, ask_slurm_by};
pub use sorted::{Pair, Sorted, Sorter};
pub use source_files::{SourceFile, SourceFiles};
pub use sources::{Source, SourceError, Sources};
pub use spill::{Spill, SpillError};
pub use staging::{CommitOutcome, Committed, SharedOutputs, StagedOutput, Staging};
pub use store::{Store, StoreError, user_cache_folder};
pub use survey::{Chain, Root, Survey, SurveyedBlob, SurveyedRecord};
pub use usage::Usage;
pub use value::Value;
pub use verify::Verification;

/// The first line of a store's file `FORMAT`.
const FORMAT_LINE: &str = "pipe-store 1";
