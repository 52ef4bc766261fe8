//! The study that ships with the program, held against the truths that its data were drawn with.
//!
//! `pipelines/thesis.toml` is run once, by the program itself, from an empty store; every test reads the
//! published tables as an analyst would. The bands are wide enough for other initial weights and orders of
//! sums, and narrow enough that a broken model, a broken mask or a leak fails.

mod bias;
mod explanations;
mod figures;
mod performance;
mod questions;
mod table;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use table::Table;

/// The published results of the study. `PIPE_STUDY_STORE` names a store to go on with, such as that of
/// an earlier run; otherwise it is a new one.
fn results() -> &'static Path {
    static RESULTS: OnceLock<PathBuf> = OnceLock::new();
    RESULTS.get_or_init(|| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("study");
        let given = std::env::var_os("PIPE_STUDY_STORE").map(PathBuf::from);
        if given.is_none() && scratch.exists() {
            std::fs::remove_dir_all(&scratch).expect("the store of an earlier run can be removed");
        }
        let results = scratch.join("results");
        let status = Command::new(env!("CARGO_BIN_EXE_pipe"))
            .args(["run", "pipelines/thesis.toml"])
            .arg("--store")
            .arg(given.unwrap_or_else(|| scratch.join("store")))
            .arg("--results")
            .arg(&results)
            .current_dir(project)
            .status()
            .expect("the program starts");
        assert!(status.success(), "the study ended with {status}");
        results.join("thesis")
    })
}

/// The table of a node's port: `stage/port/axis=value/...`.
fn published(stage_and_port: &str, axes: &[(&str, &str)]) -> Table {
    let mut folder = results().join(stage_and_port);
    for (axis, value) in axes {
        folder.push(format!("{axis}={value}"));
    }
    Table::read(&folder)
}
