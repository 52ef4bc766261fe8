//! The program `pipe`: joins the engine with the stage kinds.

use std::process::ExitCode;

fn main() -> ExitCode {
    pipe_engine::main(&pipe_stages::registry())
}
