//! Facts of the build, for `pipe --version`.
//!
//! The revision is only known where somebody says it (`PIPE_REVISION`): a build that looked at the repository
//! would have to be made again after every commit.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=PIPE_REVISION");
    let revision = std::env::var("PIPE_REVISION").unwrap_or_default();
    let revision: String = revision.chars().filter(char::is_ascii_alphanumeric).collect();
    let revision = if revision.is_empty() { "not recorded".to_owned() } else { revision };
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
    let compiler = Command::new(variable("RUSTC")).arg("--version").output();
    let compiler = compiler.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    let compiler = compiler.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned());
    let features = ["cuda", "cudnn", "metal", "mkl", "accelerate"];
    let is_on = |name: &&str| std::env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase())).is_some();
    let features: Vec<&str> = features.into_iter().filter(is_on).collect();
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    println!("cargo::rustc-env=PIPE_BUILD_REVISION={revision}");
    println!("cargo::rustc-env=PIPE_BUILD_TARGET={}", variable("TARGET"));
    println!("cargo::rustc-env=PIPE_BUILD_PROFILE={}", variable("PROFILE"));
    println!("cargo::rustc-env=PIPE_BUILD_COMPILER={compiler}");
    println!("cargo::rustc-env=PIPE_BUILD_FEATURES={features}");
}
