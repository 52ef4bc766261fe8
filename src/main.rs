//! The program `pipe`: joins the engine with the stage kinds.

use std::process::ExitCode;

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the program: no thread has been started.
    unsafe { pipe_stages::process::prepare() };
    pipe_engine::main(&pipe_stages::registry())
}
