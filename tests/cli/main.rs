//! End-to-end tests of the program: what a person types, what it answers, what it leaves behind.
//!
//! The studies are small enough to run in a fraction of a second; what they compute is tested elsewhere.

mod commands;
mod damage;
mod devices;
mod docs;
mod edits;
mod export;
mod failures;
mod frozen;
mod interrupts;
mod isolate;
mod manual;
mod mistakes;
mod outputs;
mod privacy;
mod processes;
mod query;
mod remote;
mod scale;
mod shards;
mod shared;
mod study;
mod templates;
mod upkeep;
mod versions;
