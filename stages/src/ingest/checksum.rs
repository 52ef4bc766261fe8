//! MD5 of files: how publishers name their downloads. It tells files apart, it proves nothing.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use md5::{Digest, Md5};
use pipe_engine::StageError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens when a file is not the published one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// A warning; the tables say so too.
    #[default]
    Warn,
    /// The stage fails.
    Require,
}

/// The MD5 of a file as lower-case hexadecimal digits.
pub(crate) fn md5_of(path: &Path) -> Result<String, StageError> {
    let unreadable = |error: std::io::Error| StageError::input(path, error.to_string());
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hasher = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
