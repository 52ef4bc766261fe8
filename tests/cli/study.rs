//! A study in a folder of its own, and the program run on it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tempfile::TempDir;

/// Two branches: pairs, a tokeniser, random weights, training and embedding; and shapes that nothing
/// else reads.
pub(crate) const SMALL: &str = r#"# A study for tests.
[pipeline]
name = "small"
format = 1

[vars]
size = 28

[stage.pairs]
kind = "ingest.phantom"
params = { seed = 3, size = "${size}", train = 24, test = 12 }

[stage.vocabulary]
kind = "tokenizer"
inputs = { text = "pairs.captions" }
params = { vocab_size = 512 }

[stage.initial]
kind = "checkpoint"
inputs = { tokenizer = "vocabulary" }
params = { init = "random", image_size = "${size}", patch = 7, context = 32, projection = 8, vision = { width = 16, layers = 1 }, text = { width = 16, layers = 1 } }

[stage.trained]
kind = "finetune.contrastive"
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "initial" }
params = { epochs = 2, batch = 8, lr = 1e-3 }

[stage.embedded]
kind = "embed"
matrix = { model = [{ id = "initial", weights = "initial" }, { id = "trained", weights = "trained.checkpoint" }] }
inputs = { images = "pairs.images", captions = "pairs.captions", checkpoint = "${model.weights}" }
params = { splits = ["test"] }

[stage.retrieved]
kind = "evaluate.retrieve"
matrix = "@embedded"
inputs = { images = "embedded.images", texts = "embedded.texts" }

[stage.shapes]
kind = "ingest.phantom"
params = { domain = "general", task = "shape", seed = 3, size = "${size}", train = 8, test = 4 }
"#;

/// The nodes of [`SMALL`].
pub(crate) const SMALL_NODES: usize = 9;

/// A folder with `study.toml`.
pub(crate) struct Study {
    folder: TempDir,
}

/// What the program answered.
pub(crate) struct Answer {
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Study {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("pipe-cli-").tempdir().expect("a folder for the study");
        let study = Self { folder };
        study.write(text);
        study
    }

    /// [`SMALL`], after a run of it: a copy of one that was run once.
    pub(crate) fn finished() -> Self {
        static ONCE: OnceLock<Study> = OnceLock::new();
        let once = ONCE.get_or_init(|| {
            let study = Self::new(SMALL);
            let answer = study.run(&[]);
            assert_eq!(answer.code, Some(0), "{}", answer.stderr);
            assert_eq!(answer.started().len(), SMALL_NODES);
            study
        });
        let copy = Self::new(SMALL);
        let copied = Command::new("cp").arg("-a").arg(once.path("").join(".")).arg(copy.path("")).status();
        assert!(copied.expect("cp starts").success());
        copy
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub(crate) fn write(&self, text: &str) {
        self.write_file("study.toml", text);
    }

    pub(crate) fn write_file(&self, relative: &str, text: impl AsRef<[u8]>) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("folders can be made");
        std::fs::write(path, text).expect("the file can be written");
    }

    /// Rewrites the file; fails if `old` is not in it.
    pub(crate) fn edit(&self, old: &str, new: &str) {
        let text = std::fs::read_to_string(self.path("study.toml")).expect("the study can be read");
        assert!(text.contains(old), "the study has no `{old}`");
        self.write(&text.replace(old, new));
    }

    /// The program with arguments, in the study's folder and with nothing of this machine's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipe"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("PIPE_STORE")
            .env_remove("PIPE_RESULTS")
            .env_remove("CLICOLOR_FORCE")
            .env("XDG_CACHE_HOME", self.path("cache"))
            .stdin(Stdio::null());
        command
    }

    /// Runs `pipe ARGUMENTS`.
    pub(crate) fn pipe(&self, arguments: &[&str]) -> Answer {
        Answer::of(&self.command(arguments).output().expect("the program starts"))
    }

    /// Runs `pipe run study.toml --json ARGUMENTS`.
    pub(crate) fn run(&self, arguments: &[&str]) -> Answer {
        self.pipe(&[&["run", "study.toml", "--json"], arguments].concat())
    }

    /// Runs `pipe COMMAND study.toml --json ARGUMENTS` and reads its one object.
    pub(crate) fn json(&self, command: &str, arguments: &[&str]) -> Json {
        let answer = self.pipe(&[&[command, "study.toml", "--json"], arguments].concat());
        serde_json::from_str(&answer.stdout)
            .unwrap_or_else(|error| panic!("{command}: {error}\n{}\n{}", answer.stdout, answer.stderr))
    }

    /// What `plan` says of each node, as (node, status), hits left out.
    pub(crate) fn planned(&self, arguments: &[&str]) -> Vec<(String, String)> {
        let plan = self.json("plan", arguments);
        let nodes = plan["nodes"].as_array().expect("a list of nodes");
        let text = |node: &Json, key: &str| node[key].as_str().expect("a string").to_owned();
        let pairs = nodes.iter().map(|node| (text(node, "node"), text(node, "status")));
        pairs.filter(|(_, status)| status != "hit").collect()
    }

    /// Starts `pipe run study.toml --json ARGUMENTS` and waits for an event that `wanted` accepts.
    pub(crate) fn start(&self, arguments: &[&str], wanted: impl Fn(&Json) -> bool) -> Running {
        let mut child = self
            .command(&[&["run", "study.toml", "--json"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut running = Running { child, lines, seen: String::new() };
        loop {
            let mut line = String::new();
            let read = running.lines.read_line(&mut line).expect("events are text");
            assert!(read > 0, "the run ended before the event came:\n{}", running.seen);
            running.seen.push_str(&line);
            if wanted(&serde_json::from_str(&line).expect("events are JSON")) {
                return running;
            }
        }
    }

    /// All files below a folder, as (path, content), sorted.
    pub(crate) fn files(&self, relative: &str) -> Vec<(String, Vec<u8>)> {
        let root = self.path(relative);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries {
                let path = entry.expect("a folder can be listed").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name =
                        path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                    found.push((name, std::fs::read(&path).expect("files can be read")));
                }
            }
        }
        found.sort();
        found
    }

    /// The names of the records in the store.
    pub(crate) fn records(&self) -> BTreeSet<String> {
        self.files(".pipe/ac").into_iter().map(|(name, _)| name).collect()
    }

    /// What an undisturbed store has nothing in: staging, leases and quarantine.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        for folder in ["tmp", "lease", "quarantine"] {
            let left: Vec<String> =
                self.files(&format!(".pipe/{folder}")).into_iter().map(|(name, _)| name).collect();
            assert!(left.is_empty(), "`{folder}` holds {left:?}");
        }
    }
}

impl Answer {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone()).expect("results are UTF-8"),
            stderr: String::from_utf8(output.stderr.clone()).expect("messages are UTF-8"),
        }
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The events of a run with `--json`.
    pub(crate) fn events(&self) -> Vec<Json> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        self.stdout.lines().map(parse).collect()
    }

    /// The events of one kind.
    pub(crate) fn events_of(&self, kind: &str) -> Vec<Json> {
        self.events().into_iter().filter(|event| event["ev"] == kind).collect()
    }

    /// The nodes that were executed, sorted; not their parts.
    pub(crate) fn started(&self) -> Vec<String> {
        let name = |event: Json| event["node"].as_str().expect("a name").to_owned();
        let started = self.events_of("action_started").into_iter();
        let mut nodes: Vec<String> = started.filter(|event| event["shard"].is_null()).map(name).collect();
        nodes.sort();
        nodes
    }

    /// The content digests of the results of a run, by node and port.
    pub(crate) fn digests(&self) -> Vec<(String, String, String)> {
        let mut digests = Vec::new();
        for event in self.events_of("action_finished").iter().filter(|event| event["shard"].is_null()) {
            for output in event["outputs"].as_array().expect("outputs") {
                let text = |value: &Json| value.as_str().expect("a string").to_owned();
                digests.push((text(&event["node"]), text(&output["port"]), text(&output["digest"])));
            }
        }
        digests.sort();
        digests
    }
}

/// A run that goes on.
pub(crate) struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    seen: String,
}

impl Running {
    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill starts").success());
    }

    /// Waits for the end; fails if it does not come within a minute.
    pub(crate) fn wait(mut self) -> Answer {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut rest).expect("events are text");
        while self.child.try_wait().expect("a child can be waited for").is_none() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("the run did not end:\n{}{rest}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = self.child.wait_with_output().expect("a child has ended");
        Answer { stdout: self.seen + &rest, ..Answer::of(&output) }
    }
}

/// Whether an event is of this kind and about this node.
pub(crate) fn is(event: &Json, kind: &str, node: &str) -> bool {
    event["ev"] == kind && event["node"] == node
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id starts");
    id.stdout == b"0\n"
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
