//! The engine of `pipe`: TOML -> plan -> schedule -> commit.
//!
//! It knows kinds, nodes, actions and artifacts, and nothing of tensors, tables or data sets.

#![forbid(unsafe_code)]

mod action;
mod attempt;
mod checkpoints;
mod cli;
mod context;
mod error;
mod events;
pub mod exit;
mod history;
mod journal;
mod kind;
pub mod language;
mod panics;
pub mod pipeline;
mod plan;
mod progress;
mod publish;
mod revision;
mod run;
mod shards;
mod why;

pub use checkpoints::{Checkpoints, Resumed};
pub use cli::main;
pub use context::{Artifact, ArtifactFile, InputArtifact, OutputWriter, StageContext, StageHost, TablePart};
pub use error::StageError;
pub use kind::{
    AnyKind, ArtifactType, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort,
    ParameterProblem, Registry, ResolvedParams, StageKind, canonical,
};
pub use pipe_cache as cache;
