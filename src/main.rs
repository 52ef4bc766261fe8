//! The program `pipe`: joins the engine with the stage kinds.

use std::process::ExitCode;

/// What `--version` says.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nrevision: ",
    env!("PIPE_BUILD_REVISION"),
    "\ntarget: ",
    env!("PIPE_BUILD_TARGET"),
    "\nprofile: ",
    env!("PIPE_BUILD_PROFILE"),
    "\ncompiler: ",
    env!("PIPE_BUILD_COMPILER"),
    "\nfeatures: ",
    env!("PIPE_BUILD_FEATURES"),
);

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the program: no thread has been started.
    unsafe { pipe_stages::process::prepare() };
    pipe_engine::main(&pipe_stages::registry().with_version(VERSION))
}
