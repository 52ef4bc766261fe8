//! All stage kinds of the program, one line each.

use pipe_engine::Registry;

/// The registry with every kind.
pub fn registry() -> Registry {
    Registry::new().with(crate::phantom::IngestPhantom).with(crate::report::Report)
}
