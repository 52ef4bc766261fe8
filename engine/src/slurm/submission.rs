//! What `sbatch` is told: its arguments and its script.

use std::path::{Path, PathBuf};

use super::manifest::Ask;
use crate::pipeline::JobSettings;

/// Variables of the environment that jobs are given. Others, such as `CUDA_VISIBLE_DEVICES` of this process, would change
/// what they do.
const EXPORTED: [&str; 16] = [
    "HOME",
    "USER",
    "LOGNAME",
    "PATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TERM",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "SSL_CERT_FILE",
    "MODULEPATH",
    "MODULESHOME",
];

/// An array that is submitted.
#[derive(Clone, Debug)]
pub(crate) struct Array<'a> {
    pub(crate) name: &'a str,
    pub(crate) run: &'a str,
    pub(crate) tasks: usize,
    pub(crate) ask: &'a Ask,
    /// Where standard output and standard error go.
    pub(crate) logs: &'a [PathBuf; 2],
}

/// The arguments.
pub(crate) fn arguments(array: &Array<'_>) -> Vec<String> {
    let Array { name, run, tasks, ask, logs } = array;
    let jobs = &ask.jobs;
    let mut arguments = vec![
        "--parsable".to_owned(),
        format!("--job-name={name}"),
        format!("--comment={run}"),
        format!("--output={}", logs[0].display()),
        format!("--error={}", logs[1].display()),
        "--open-mode=append".to_owned(),
        exported(jobs, &[]),
        "--requeue".to_owned(),
        format!("--signal=B:USR1@{}", ask.margin()),
        format!("--array=0-{}%{}", tasks - 1, jobs.max_tasks),
    ];
    arguments.extend(ask.cpu.map(|cpu| format!("--cpus-per-task={cpu}")));
    arguments.extend(ask.memory.map(|bytes| format!("--mem={}M", bytes.div_ceil(1 << 20))));
    // Whoever writes `--gpus-per-task` counts them so.
    let says_gpus = jobs.extra_args.iter().any(|argument| argument.starts_with("--gpus"));
    if ask.gpu > 0 && !says_gpus {
        arguments.push(format!("--gres=gpu:{}", ask.gpu));
    }
    arguments.extend(ask.limit().map(|seconds| format!("--time={}", seconds / 60)));
    arguments.extend(jobs.names.iter().map(|(name, value)| format!("--{name}={value}")));
    arguments.extend(jobs.extra_args.iter().cloned());
    arguments
}

/// The variables that a job is given.
fn exported(settings: &JobSettings, further: &[&str]) -> String {
    let known = EXPORTED.iter().chain(further).copied().filter(|name| std::env::var_os(name).is_some());
    let names: Vec<&str> = known.chain(settings.export.iter().map(String::as_str)).collect();
    format!("--export={}", names.join(","))
}

/// The arguments of a job that goes on with a run when `jobs` have ended.
pub(crate) fn relay_arguments(
    name: &str,
    run: &str,
    jobs: &[String],
    logs: &[PathBuf; 2],
    settings: &JobSettings,
) -> Vec<String> {
    let mut arguments = vec![
        "--parsable".to_owned(),
        format!("--job-name={name}"),
        format!("--comment={run}"),
        format!("--output={}", logs[0].display()),
        format!("--error={}", logs[1].display()),
        "--open-mode=append".to_owned(),
        exported(settings, &["PIPE_STORE", "PIPE_RESULTS"]),
        "--requeue".to_owned(),
        "--cpus-per-task=1".to_owned(),
        format!("--dependency=afterany:{}", jobs.join(":")),
    ];
    arguments.extend(settings.names.iter().map(|(name, value)| format!("--{name}={value}")));
    arguments
}

/// Its script: this program once more, with these arguments.
pub(crate) fn relay_script(program: &Path, arguments: &[String]) -> String {
    let words: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!("#!/bin/bash\nexec {} {}\n", quoted(&program.to_string_lossy()), words.join(" "))
}

/// The script: the worker is the batch process itself, so that it gets the signals. `setup` is a line before it.
pub(crate) fn script(program: &Path, store: &Path, array: &str, setup: &str) -> String {
    // A login shell knows modules; without a line of the user's it would only take time.
    let (shell, setup) = match setup {
        "" => ("#!/bin/bash", String::new()),
        line => ("#!/bin/bash -l", format!("{line}\n")),
    };
    let (program, store) = (quoted(&program.to_string_lossy()), quoted(&store.to_string_lossy()));
    format!("{shell}\n{setup}exec {program} worker --store {store} --batch {array}\n")
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The id of the job in the answer of `sbatch --parsable`: `12`, or `12;cluster` in a federation.
pub(crate) fn job_id(answer: &str) -> Option<String> {
    let id = answer.lines().last()?.split(';').next()?.trim();
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stage_asks_for_becomes_arguments() {
        let jobs = JobSettings {
            names: [("partition".to_owned(), "gpu".to_owned()), ("qos".to_owned(), "low".to_owned())].into(),
            extra_args: vec!["--exclusive".to_owned()],
            export: vec!["SEED".to_owned()],
            max_tasks: 7,
            ..JobSettings::default()
        };
        let logs = ["/s/%a.out", "/s/%a.err"].map(PathBuf::from);
        let mut ask = Ask { cpu: Some(8), memory: Some((1 << 30) + 1), gpu: 2, time: Some(3601), jobs };
        let array = Array { name: "pipe-x", run: "run-id", tasks: 9, ask: &ask, logs: &logs };
        let found = arguments(&array);
        for expected in [
            "--parsable",
            "--job-name=pipe-x",
            "--comment=run-id",
            "--output=/s/%a.out",
            "--error=/s/%a.err",
            "--requeue",
            "--signal=B:USR1@180",
            "--array=0-8%7",
            "--cpus-per-task=8",
            "--mem=1025M",
            "--gres=gpu:2",
            "--time=61",
            "--partition=gpu",
            "--qos=low",
            "--exclusive",
        ] {
            assert!(found.iter().any(|argument| argument == expected), "{expected} is not in {found:?}");
        }
        let export = found.iter().find_map(|argument| argument.strip_prefix("--export=")).unwrap();
        assert!(export.split(',').any(|name| name == "SEED") && !export.contains("CUDA"), "{export}");
        ask.jobs.extra_args = vec!["--gpus-per-task=2".to_owned()];
        let array = Array { name: "pipe-x", run: "run-id", tasks: 9, ask: &ask, logs: &logs };
        assert!(!arguments(&array).iter().any(|argument| argument.starts_with("--gres")));
        let bare = Ask { cpu: None, memory: None, gpu: 0, time: None, jobs: JobSettings::default() };
        let found = arguments(&Array { ask: &bare, ..array });
        for absent in ["--cpus-per-task", "--mem", "--gres", "--time", "--partition"] {
            assert!(!found.iter().any(|argument| argument.starts_with(absent)), "{absent} in {found:?}");
        }
    }

    #[test]
    fn short_tasks_lose_no_more_than_a_quarter() {
        let ask = |time| Ask { cpu: None, memory: None, gpu: 0, time, jobs: JobSettings::default() };
        assert_eq!(
            (ask(Some(1)).limit(), ask(Some(61)).limit(), ask(None).limit()),
            (Some(60), Some(120), None)
        );
        assert_eq!((ask(Some(1)).margin(), ask(Some(7200)).margin(), ask(None).margin()), (15, 180, 180));
    }

    #[test]
    fn scripts_and_answers() {
        assert_eq!(
            script(Path::new("/a b/it's"), Path::new("/s"), "r-1", "module load cuda"),
            "#!/bin/bash -l\nmodule load cuda\nexec '/a b/it'\\''s' worker --store '/s' --batch r-1\n"
        );
        let jobs = ["7".to_owned(), "9".to_owned()];
        let relay = relay_arguments(
            "pipe-r",
            "run",
            &jobs,
            &["/o", "/e"].map(PathBuf::from),
            &JobSettings::default(),
        );
        for expected in ["--dependency=afterany:7:9", "--output=/o", "--error=/e"] {
            assert!(relay.iter().any(|argument| argument == expected), "{relay:?}");
        }
        let words = ["run".to_owned(), "a b.toml".to_owned()];
        assert_eq!(relay_script(Path::new("/p"), &words), "#!/bin/bash\nexec '/p' 'run' 'a b.toml'\n");
        assert_eq!(job_id("12").as_deref(), Some("12"));
        assert_eq!(job_id("a notice\n12;north\n").as_deref(), Some("12"));
        assert_eq!(job_id("no"), None);
    }
}
