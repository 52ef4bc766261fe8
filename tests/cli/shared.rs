//! A store that several accounts of a group share.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const STUDY: &str = r#"[pipeline]
name = "lab"
format = 1

[stage.copy]
kind = "command"
inputs = { data = "file:data.txt" }
params = { argv = ["sh", "-c", "umask 077; mkdir -p deep/er; cat in/data > deep/er/all.txt"], outputs = ["deep/"] }

[stage.again]
kind = "command"
inputs = { data = "copy" }
params = { argv = ["sh", "-c", "cat in/data/deep/er/all.txt ${who} > all.txt"], outputs = ["all.txt"] }

[vars]
who = "in/data/deep/er/all.txt"
"#;

/// Accounts and a group that nobody else has.
const ACCOUNTS: [u32; 2] = [64_101, 64_102];
const GROUP: u32 = 64_100;

fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

/// One makes it, the other goes on, collects garbage, and runs what the first one began and did not end; with umasks that
/// give a group nothing to write and one that gives it nothing at all.
#[test]
fn accounts_of_a_group_work_on_one_store() {
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|text| !text.contains("\nUid:\t0\t0\t")) {
        println!("SKIPPED: only root can run programs as several accounts");
        return;
    }
    let lab = TempDir::new().expect("a folder");
    allow(lab.path(), 0o755);
    let program = lab.path().join("pipe");
    std::fs::copy(env!("CARGO_BIN_EXE_pipe"), &program).expect("it can be copied");
    let store = lab.path().join("store");
    std::fs::create_dir(&store).expect("it is new");
    std::os::unix::fs::chown(&store, None, Some(GROUP)).expect("root may");
    allow(&store, 0o2775);
    let pipe = |account: u32, umask: &str, arguments: &str| {
        let home = lab.path().join(account.to_string());
        if !home.exists() {
            std::fs::create_dir(&home).expect("it is new");
            std::fs::write(home.join("study.toml"), STUDY).expect("it can be written");
            std::fs::write(home.join("data.txt"), "one\n").expect("it can be written");
            std::os::unix::fs::chown(&home, Some(account), Some(account)).expect("root may");
        }
        let line = format!("umask {umask}; exec {} {arguments}", program.display());
        // Their first group is their own; the lab is another one.
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={account}"),
            &format!("--regid={account}"),
            &format!("--groups={GROUP}"),
        ]);
        command.args(["sh", "-c", &line]).current_dir(&home).process_group(0);
        command.env("PIPE_STORE", &store).env("XDG_CACHE_HOME", home.join("cache")).env("HOME", &home);
        let output = command.output().expect("Debian has setpriv in util-linux");
        let text =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{account}, {umask}, {arguments}: {text}");
        text
    };
    for umask in ["022", "077"] {
        for account in ACCOUNTS {
            pipe(account, umask, "run study.toml --quiet");
            pipe(account, umask, "plan study.toml --check");
            pipe(account, umask, "verify study.toml");
        }
        let [first, second] = ACCOUNTS;
        pipe(second, umask, "run study.toml --quiet --var who=in/data/deep/er/../er/all.txt --force copy");
        // What the other account left is garbage to this one.
        pipe(first, umask, "gc study.toml --apply --now --grace 0s --keep-runs 1");
        pipe(second, umask, "gc study.toml --apply --now --grace 0s --keep-runs 1");
        pipe(first, umask, "verify study.toml");
    }
}
