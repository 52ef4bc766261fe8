//! The program `pipe`: joins the engine with the stage kinds.

fn main() {}
