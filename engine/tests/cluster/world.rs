//! A cluster for the tests, and studies that run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tempfile::TempDir;

/// Longer than this nothing here takes.
const PATIENCE: Duration = Duration::from_secs(100);

/// The daemons of Slurm; they end with it.
pub(crate) struct Cluster {
    folder: TempDir,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster").join(name)
}

impl Cluster {
    /// Starts them; why that is not possible here.
    pub(crate) fn start() -> Result<Self, String> {
        for program in ["munged", "slurmctld", "slurmd", "sbatch", "squeue"] {
            let found = std::env::var_os("PATH").is_some_and(|path| {
                std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
            });
            if !found {
                return Err(format!("there is no `{program}` (Debian: slurm-wlm, munge)"));
            }
        }
        if !rustix::process::geteuid().is_root() {
            return Err("only root can start jobs as their users".to_owned());
        }
        let cluster = Self { folder: TempDir::new().map_err(|error| error.to_string())? };
        let port = 20000 + std::process::id() % 10000;
        let up = Command::new(script("slurm-up.sh"))
            .arg(cluster.folder.path().join("slurm"))
            .env("PIPE_SLURM_PORT", port.to_string())
            .status();
        match up {
            Ok(status) if status.success() => Ok(cluster),
            _ => panic!("Slurm is installed and does not start"),
        }
    }

    /// Its configuration file: by it commands find it.
    pub(crate) fn name(&self) -> String {
        self.folder.path().join("slurm/slurm.conf").to_string_lossy().into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(script("slurm-down.sh")).arg(self.folder.path().join("slurm")).status();
    }
}

/// A study with a store, results, and marks of what came to its end.
pub(crate) struct World {
    folder: TempDir,
    cluster: String,
    has_fake: bool,
}

/// What a command wrote.
pub(crate) struct Said {
    code: Option<i32>,
    text: String,
}

impl Said {
    /// Its text, if it ended with this code.
    pub(crate) fn expect(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}", self.text);
        self.text
    }
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "it does not come about that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl World {
    /// A study where a script plays the part of Slurm; `answers` are what `sbatch` says to the first calls: nothing where it
    /// accepts, `lost` where it does and does not say so, else why it refuses.
    pub(crate) fn with_fake_slurm(answers: &[&str], stages: &str) -> Self {
        let world = Self { has_fake: true, ..Self::new("/nowhere", stages) };
        let lines: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
        std::fs::write(world.path("answers"), lines).unwrap();
        world
    }

    /// The arguments of each call of `sbatch`.
    pub(crate) fn submissions(&self) -> Vec<String> {
        std::fs::read_to_string(self.path("calls")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The user has a job that is not of this study, as long as this process lives.
    pub(crate) fn queue_another_job(&self) {
        let line = format!("{} 99|99|N/A|other|RUNNING|None|N/A|here\n", std::process::id());
        std::fs::write(self.path("queue"), line).unwrap();
    }

    pub(crate) fn new(cluster: &str, stages: &str) -> Self {
        let world = Self { folder: TempDir::new().unwrap(), cluster: cluster.to_owned(), has_fake: false };
        world.write(stages);
        std::fs::create_dir(world.path("marks")).unwrap();
        world
    }

    /// Replaces the stages of the study.
    pub(crate) fn write(&self, stages: &str) {
        let text = format!(
            "[pipeline]\nname = \"t\"\nformat = 1\n[executor.slurm]\npoll = \"1s\"\nsubmit_rate = \"20/s\"\n\
             task_target = \"1s\"\nexport = [\"PIPE_MARKS\"]\n{stages}"
        );
        std::fs::write(self.path("study.toml"), text).unwrap();
    }

    /// The address of a folder that stores share.
    pub(crate) fn shared_folder(&self) -> String {
        format!("file://{}", self.path("shared-cache").display())
    }

    /// The store is gone, as that of another machine would be.
    pub(crate) fn forget_store(&self) {
        std::fs::remove_dir_all(self.path(".pipe")).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        std::fs::read_to_string(self.path("study.toml")).unwrap().lines().map(str::to_owned).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(arguments[0]).arg("study.toml").args(&arguments[1..]);
        command.current_dir(self.folder.path()).env("SLURM_CONF", &self.cluster);
        command.env("PIPE_MARKS", self.path("marks")).env("XDG_CACHE_HOME", self.path("cache"));
        command.env_remove("PIPE_STORE").env_remove("PIPE_RESULTS");
        if self.has_fake {
            let path = std::env::var("PATH").unwrap_or_default();
            command
                .env("PATH", format!("{}:{path}", script("fake").display()))
                .env("FAKE_SLURM", self.folder.path());
        }
        command
    }

    /// Runs a command of the program on the study.
    pub(crate) fn pipe(&self, arguments: &[&str]) -> Said {
        said(&mut self.command(arguments))
    }

    /// The same where no cluster answers.
    pub(crate) fn pipe_without_cluster(&self, arguments: &[&str]) -> Said {
        said(self.command(arguments).env("SLURM_CONF", "/nowhere"))
    }

    /// Starts a command and does not wait for it.
    pub(crate) fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn interrupt(&self, process: &Child) {
        let pid = rustix::process::Pid::from_child(process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// What a program of Slurm writes.
    pub(crate) fn slurm(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(arguments).env("SLURM_CONF", &self.cluster).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Names of arrays in the store, with the names of their jobs.
    fn names(&self) -> Vec<String> {
        let folders = std::fs::read_dir(self.path(".pipe/batches")).into_iter().flatten().flatten();
        let name = |folder: std::fs::DirEntry| -> Option<String> {
            let intent: Json =
                serde_json::from_slice(&std::fs::read(folder.path().join("intent.json")).ok()?).ok()?;
            Some(intent["name"].as_str()?.to_owned())
        };
        folders.filter_map(name).collect()
    }

    pub(crate) fn arrays(&self) -> usize {
        self.names().len()
    }

    /// The jobs of this study in the queue, as ids and states.
    pub(crate) fn queued(&self) -> Vec<(String, String)> {
        let names = self.names().join(",");
        if names.is_empty() {
            return Vec::new();
        }
        let text = self.slurm("squeue", &["-h", "-r", "-o", "%A %T", &format!("--name={names}")]);
        let pair = |line: &str| line.split_once(' ').map(|(id, state)| (id.to_owned(), state.to_owned()));
        text.lines().filter_map(pair).collect()
    }

    /// A job of this study that runs.
    pub(crate) fn running_job(&self) -> Option<String> {
        self.queued().into_iter().find(|(_, state)| state == "RUNNING").map(|(id, _)| id)
    }

    /// Events of all runs, by name.
    pub(crate) fn events(&self, name: &str) -> Vec<Json> {
        let mut runs: Vec<PathBuf> =
            std::fs::read_dir(self.path(".pipe/runs")).unwrap().map(|entry| entry.unwrap().path()).collect();
        runs.sort();
        let texts =
            runs.iter().map(|run| std::fs::read_to_string(run.join("events.jsonl")).unwrap_or_default());
        let texts: String = texts.collect();
        let events = texts.lines().filter_map(|line| serde_json::from_str::<Json>(line).ok());
        events.filter(|event| event["ev"] == name).collect()
    }

    pub(crate) fn has_result(&self, stage: &str) -> bool {
        self.path("results/t").join(stage).is_dir()
    }

    /// How often each action came to its end.
    pub(crate) fn marks(&self) -> BTreeMap<String, usize> {
        let mark = |path: PathBuf| {
            let times = std::fs::read_to_string(&path).unwrap().lines().count();
            (path.file_name().unwrap().to_string_lossy().into_owned(), times)
        };
        std::fs::read_dir(self.path("marks")).unwrap().map(|entry| mark(entry.unwrap().path())).collect()
    }

    /// So many actions came to their end, each once.
    pub(crate) fn expect_marks(&self, count: usize) {
        let marks = self.marks();
        let often: Vec<_> = marks.iter().filter(|(_, times)| **times != 1).collect();
        assert!(often.is_empty(), "{often:?} ran to their ends more than once");
        assert_eq!(marks.len(), count, "{marks:?}");
    }

    /// What was published is what a run on this machine publishes.
    pub(crate) fn expect_results_of_a_local_run(&self) {
        let local = ["run", "--executor", "local", "--quiet", "--store", "local-store", "--results", "local"];
        said(self.command(&local).env_remove("PIPE_MARKS")).expect(0);
        let (ours, theirs) = (files(&self.path("results")), files(&self.path("local")));
        assert!(!theirs.is_empty() && ours == theirs, "{:?} and {:?}", ours.keys(), theirs.keys());
    }
}

fn said(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Said { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
}

/// All files below a folder but those that hold times.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if entry.file_name() != ".published.json" {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
