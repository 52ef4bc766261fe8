//! What `sbatch` is told: its arguments and its script.

use std::path::Path;

use super::manifest::Ask;
use crate::pipeline::SlurmSettings;

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
    pub(crate) log: &'a Path,
}

/// The arguments.
pub(crate) fn arguments(array: &Array<'_>, settings: &SlurmSettings) -> Vec<String> {
    let Array { name, run, tasks, ask, log } = array;
    let mut arguments = vec![
        "--parsable".to_owned(),
        format!("--job-name={name}"),
        format!("--comment={run}"),
        format!("--output={}", log.display()),
        "--open-mode=append".to_owned(),
        exported(settings, &[]),
        "--requeue".to_owned(),
        format!("--signal=B:USR1@{}", ask.margin(settings.time_margin)),
        format!("--array=0-{}%{}", tasks - 1, settings.max_tasks),
    ];
    arguments.extend(ask.cpu.map(|cpu| format!("--cpus-per-task={cpu}")));
    arguments.extend(ask.memory.map(|bytes| format!("--mem={}M", bytes.div_ceil(1 << 20))));
    // Whoever writes `--gpus-per-task` counts them so.
    let says_gpus = settings.extra_args.iter().any(|argument| argument.starts_with("--gpus"));
    if ask.gpu > 0 && !says_gpus {
        arguments.push(format!("--gres=gpu:{}", ask.gpu));
    }
    arguments.extend(ask.limit().map(|seconds| format!("--time={}", seconds / 60)));
    let names = SlurmSettings::NAMES.into_iter();
    arguments.extend(names.filter_map(|name| Some(format!("--{name}={}", name_of(name, ask, settings)?))));
    arguments.extend(settings.extra_args.iter().cloned());
    arguments
}

/// The variables that a job is given.
fn exported(settings: &SlurmSettings, further: &[&str]) -> String {
    let known = EXPORTED.iter().chain(further).copied().filter(|name| std::env::var_os(name).is_some());
    let names: Vec<&str> = known.chain(settings.export.iter().map(String::as_str)).collect();
    format!("--export={}", names.join(","))
}

/// The arguments of a job that goes on with a run when `jobs` have ended.
pub(crate) fn relay_arguments(
    name: &str,
    run: &str,
    jobs: &[String],
    log: &Path,
    settings: &SlurmSettings,
) -> Vec<String> {
    let mut arguments = vec![
        "--parsable".to_owned(),
        format!("--job-name={name}"),
        format!("--comment={run}"),
        format!("--output={}", log.display()),
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

/// What a job asks for by name: what its stage says, else what all jobs ask for.
fn name_of<'a>(name: &str, ask: &'a Ask, settings: &'a SlurmSettings) -> Option<&'a String> {
    ask.names.get(name).or_else(|| settings.names.get(name))
}

/// The script: the worker is the batch process itself, so that it gets the signals.
pub(crate) fn script(program: &Path, store: &Path, array: &str, settings: &SlurmSettings) -> String {
    // A login shell knows modules; without a line of the user's it would only take time.
    let (shell, setup) = match settings.setup.as_str() {
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
        let mut settings = SlurmSettings {
            names: [("partition".to_owned(), "cpu".to_owned()), ("qos".to_owned(), "low".to_owned())].into(),
            extra_args: vec!["--exclusive".to_owned()],
            export: vec!["SEED".to_owned()],
            ..SlurmSettings::default()
        };
        let ask = Ask {
            cpu: Some(8),
            memory: Some((1 << 30) + 1),
            gpu: 2,
            time: Some(3601),
            names: [("partition".to_owned(), "gpu".to_owned())].into(),
        };
        let array = Array { name: "pipe-x", run: "run-id", tasks: 9, ask: &ask, log: Path::new("/s/%a.out") };
        let found = arguments(&array, &settings);
        for expected in [
            "--parsable",
            "--job-name=pipe-x",
            "--comment=run-id",
            "--output=/s/%a.out",
            "--requeue",
            "--signal=B:USR1@180",
            "--array=0-8%64",
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
        settings.extra_args = vec!["--gpus-per-task=2".to_owned()];
        assert!(!arguments(&array, &settings).iter().any(|argument| argument.starts_with("--gres")));
        let bare = Ask { cpu: None, memory: None, gpu: 0, time: None, names: Default::default() };
        let found = arguments(&Array { ask: &bare, ..array }, &SlurmSettings::default());
        for absent in ["--cpus-per-task", "--mem", "--gres", "--time", "--partition"] {
            assert!(!found.iter().any(|argument| argument.starts_with(absent)), "{absent} in {found:?}");
        }
    }

    #[test]
    fn short_tasks_lose_no_more_than_a_quarter() {
        let ask = |time| Ask { cpu: None, memory: None, gpu: 0, time, names: Default::default() };
        assert_eq!(
            (ask(Some(1)).limit(), ask(Some(61)).limit(), ask(None).limit()),
            (Some(60), Some(120), None)
        );
        assert_eq!(
            (ask(Some(1)).margin(180), ask(Some(7200)).margin(180), ask(None).margin(180)),
            (15, 180, 180)
        );
    }

    #[test]
    fn scripts_and_answers() {
        let settings = SlurmSettings { setup: "module load cuda".to_owned(), ..SlurmSettings::default() };
        assert_eq!(
            script(Path::new("/a b/it's"), Path::new("/s"), "r-1", &settings),
            "#!/bin/bash -l\nmodule load cuda\nexec '/a b/it'\\''s' worker --store '/s' --batch r-1\n"
        );
        let jobs = ["7".to_owned(), "9".to_owned()];
        let relay = relay_arguments("pipe-r", "run", &jobs, Path::new("/l"), &settings);
        assert!(relay.contains(&"--dependency=afterany:7:9".to_owned()), "{relay:?}");
        let words = ["run".to_owned(), "a b.toml".to_owned()];
        assert_eq!(relay_script(Path::new("/p"), &words), "#!/bin/bash\nexec '/p' 'run' 'a b.toml'\n");
        assert_eq!(job_id("12").as_deref(), Some("12"));
        assert_eq!(job_id("a notice\n12;north\n").as_deref(), Some("12"));
        assert_eq!(job_id("no"), None);
    }
}
