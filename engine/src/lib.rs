//! The engine of `pipe`: TOML -> plan -> schedule -> commit.
//!
//! It knows kinds, nodes, actions and artifacts, and nothing of tensors, tables or data sets.

#![forbid(unsafe_code)]

mod action;
mod ancestry;
mod answers;
mod artifact;
mod attempt;
mod brief;
mod checkpoints;
mod cli;
mod context;
mod difference;
pub mod drawing;
mod error;
mod estimate;
mod events;
pub mod exit;
mod export;
mod handover;
mod history;
mod host;
mod interim;
mod isolate;
mod journal;
mod kind;
pub mod language;
mod machine;
mod panics;
pub mod pipeline;
mod plan;
mod program;
mod progress;
mod publish;
mod read_ahead;
mod remote;
mod reproduce;
mod revision;
mod roots;
mod run;
mod shards;
mod slurm;
mod stage_table;
mod why;
mod workers;

pub use ancestry::{Ancestor, AncestorResult};
pub use answers::{
    Answer, Cell, Figure, Grid, GridRequest, QueryError, ResultTables, Runs, StudyResult, StudyTables,
    TableSummary,
};
pub use artifact::{Artifact, ArtifactFile, ArtifactFiles, InputArtifact};
pub use checkpoints::{Checkpoints, Resumed};
pub use cli::main;
pub use context::{OutputWriter, StageContext, StageHost, TablePart};
pub use error::{FailureClass, StageError};
pub use export::{Pictured, SheetDrawer};
pub use kind::{
    AnyKind, ArtifactType, DefaultCpu, Determinism, FigureReader, Figures, InputClass, InputPort,
    KindDescription, Numerics, OutputPort, ParameterProblem, PortAxes, Registry, ResolvedParams, StageKind,
    Template, canonical,
};
pub use pipe_cache as cache;
pub use program::Program;
pub use remote::Remote;
pub use reproduce::{FileComparison, ValueDifference};
