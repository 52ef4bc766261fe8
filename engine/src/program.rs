//! Programs that run beside this one: each in a process group of its own, which never outlives its action.
//!
//! - What a program writes goes into a file, and from there, line by line, to whoever wants it. No pipe is
//!   held, so a child that detaches itself cannot keep the action waiting.
//! - The group is asked to end (SIGTERM) when the action is to stop, and made to (SIGKILL) some time later, and
//!   in any case when the program itself has ended: what it left in the background goes with it.
//! - A *guard*, a shell that waits for the end of its input, ends the group when this process dies, however it
//!   dies: its input is a pipe that only this process holds.
//! - Memory is watched, not limited by the kernel. `RLIMIT_AS` counts address space, and so refuses what maps
//!   large files or reserves more than it touches (every tensor library); `RLIMIT_DATA` counts reservations
//!   too; a control group needs rights that few have. So the anonymous memory of the group is summed up a few
//!   times a second, and a group that has more than it asked for is ended.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::context::StageHost;
use crate::error::StageError;
use crate::machine;

/// The shortest and the longest time between two looks at a program.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// How often its memory is looked at, at most.
const MEMORY_LOOK: Duration = Duration::from_millis(100);
/// A line is cut after so many bytes.
const LINE_LIMIT: usize = 16 << 10;
/// So many bytes of what a program writes are passed on; a program that writes more is not stopped.
const PASSED_LIMIT: u64 = 64 << 20;
/// So many of the last lines are told when it fails.
const LAST_LINES: usize = 12;

/// A program to be run.
pub struct Program<'a> {
    /// What is executed, with its arguments, folder and environment. Its input is empty.
    pub command: Command,
    /// As people know it.
    pub name: String,
    /// An existing folder for what it writes.
    pub scratch: &'a Path,
    /// The anonymous memory that all its processes together may have, in bytes.
    pub memory: Option<u64>,
    /// How long it has to end by itself when it is asked to.
    pub grace: Duration,
    /// Takes the lines of its standard output; without, these go to the log like those of standard error.
    pub listener: Listener<'a>,
}

/// Takes lines.
type Listener<'a> = Option<&'a mut dyn FnMut(&str)>;

impl Program<'_> {
    /// Runs it to its end. What it writes goes to the log of `host`, which also says when it has to stop.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if it was stopped, [`StageError::OutOfMemory`], [`StageError::Signalled`],
    /// and [`StageError::Failed`] with its last words if it cannot be started or its exit code is not 0.
    pub fn run(mut self, host: &dyn StageHost) -> Result<(), StageError> {
        let kills = machine::memory_kills(Path::new("/"));
        let mut log = Tail::create(&self.scratch.join("stderr"))?;
        let mut answers = match self.listener {
            Some(_) => Some(Tail::create(&self.scratch.join("stdout"))?),
            None => None,
        };
        let writes = |tail: &Tail| tail.writer().map(Stdio::from);
        self.command.stdin(Stdio::null()).process_group(0);
        self.command.stderr(writes(&log)?).stdout(writes(answers.as_ref().unwrap_or(&log))?);
        let group = match self.command.spawn() {
            Ok(child) => Group::guard(child)?,
            Err(error) => return Err(self.not_started(error)),
        };
        let mut last = Vec::new();
        let mut pass =
            |log: &mut Tail, answers: &mut Option<Tail>, listener: &mut Listener<'_>, ended: bool| {
                log.lines(ended, |line| {
                    host.log(line);
                    if last.len() == LAST_LINES {
                        last.remove(0);
                    }
                    last.push(line.to_owned());
                })?;
                match (answers.as_mut(), listener.as_mut()) {
                    (Some(answers), Some(listener)) => answers.lines(ended, |line| listener(line)),
                    _ => Ok(()),
                }
            };
        let mut watch = Watch { looked: Instant::now(), rest: MEMORY_LOOK };
        let mut pause = SHORTEST_LOOK;
        let mut asked: Option<Instant> = None;
        let mut excess = None;
        let mut peak = 0;
        while !group.has_ended()? {
            if asked.is_none() && host.cancelled() {
                asked = Some(Instant::now());
                group.signal(Signal::TERM);
            }
            if asked.is_some_and(|since| since.elapsed() >= self.grace) {
                group.signal(Signal::KILL);
            }
            if let Some(bytes) = watch.memory(group.pid) {
                peak = bytes.max(peak);
                if self.memory.is_some_and(|limit| bytes > limit) {
                    excess = Some(bytes);
                    group.signal(Signal::KILL);
                }
            }
            pass(&mut log, &mut answers, &mut self.listener, false)?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_LOOK);
        }
        let number = group.pid.as_raw_nonzero().get();
        host.spent(machine::process_time(Path::new("/"), number).unwrap_or_default(), peak);
        let status = group.end()?;
        pass(&mut log, &mut answers, &mut self.listener, true)?;
        if asked.is_some() {
            return Err(StageError::Cancelled);
        }
        if let (Some(bytes), Some(limit)) = (excess, self.memory) {
            let message = format!("`{}` had {bytes} bytes, `resources.mem` allows {limit}", self.name);
            return Err(StageError::OutOfMemory(message));
        }
        if status.signal() == Some(9) && machine::memory_kills(Path::new("/")) > kills {
            let message = format!("the system ended `{}` because memory ran out", self.name);
            return Err(StageError::OutOfMemory(message));
        }
        self.verdict(status, &last)
    }

    fn not_started(&self, error: std::io::Error) -> StageError {
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                StageError::failed(format!("there is no program `{}`", self.name))
            }
            std::io::ErrorKind::PermissionDenied => {
                StageError::failed(format!("`{}` may not be executed", self.name))
            }
            _ => StageError::environment(format!("starting `{}`", self.name), error),
        }
    }

    fn verdict(&self, status: ExitStatus, last: &[String]) -> Result<(), StageError> {
        if status.success() {
            return Ok(());
        }
        if let Some(signal) = status.signal() {
            return Err(StageError::Signalled { program: self.name.clone(), signal });
        }
        let code = status.code().unwrap_or(-1);
        let said: String = last.iter().map(|line| format!("\n    {line}")).collect();
        Err(StageError::failed(format!("`{}` ended with exit code {code}{said}", self.name)))
    }
}

/// The process group of a program, with its guard. Dropping it ends both.
struct Group {
    child: Child,
    pid: Pid,
    guard: Option<Child>,
    is_reaped: bool,
}

impl Group {
    /// Takes a child that leads a group of its own.
    fn guard(child: Child) -> Result<Self, StageError> {
        let failed = |error| StageError::environment("starting the guard of a program", error);
        let pid = Pid::from_child(&child);
        let mut group = Self { child, pid, guard: None, is_reaped: false };
        let guard = Command::new("/bin/sh")
            .args(["-c", "read line; kill -s KILL -- \"-$0\"", &pid.as_raw_nonzero().to_string()])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        group.guard = Some(guard.map_err(failed)?);
        Ok(group)
    }

    /// Whether the program has ended; its process id stays taken until [`Self::end`].
    fn has_ended(&self) -> Result<bool, StageError> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::Pid(self.pid), options);
        match status {
            Ok(status) => Ok(status.is_some()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(StageError::environment("waiting for a program", error.into())),
        }
    }

    /// Sends a signal to all processes of the group.
    fn signal(&self, signal: Signal) {
        // Without the program's own process, the number may name another group.
        if !self.is_reaped {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Ends what the program left behind, and takes its status.
    fn end(mut self) -> Result<ExitStatus, StageError> {
        self.signal(Signal::KILL);
        self.dismiss();
        self.is_reaped = true;
        self.child.wait().map_err(|error| StageError::environment("waiting for a program", error))
    }

    /// Ends the guard, before the group's number can be given to others.
    fn dismiss(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.signal(Signal::KILL);
            self.dismiss();
            let _ = self.child.wait();
        }
    }
}

/// The memory of a group, looked at now and then.
struct Watch {
    looked: Instant,
    rest: Duration,
}

impl Watch {
    /// The anonymous memory of all processes of a group, in bytes, if it is time to look.
    fn memory(&mut self, group: Pid) -> Option<u64> {
        if self.looked.elapsed() < self.rest {
            return None;
        }
        let began = Instant::now();
        let bytes = machine::group_memory(Path::new("/"), group.as_raw_nonzero().get());
        self.looked = Instant::now();
        // On a machine with very many processes looking takes a while.
        self.rest = MEMORY_LOOK.max(began.elapsed() * 20);
        Some(bytes)
    }
}

/// A file that a program writes, read line by line while it grows.
struct Tail {
    path: PathBuf,
    file: File,
    pending: Vec<u8>,
    passed: u64,
}

impl Tail {
    fn create(path: &Path) -> Result<Self, StageError> {
        let failed = |error| StageError::environment(format!("writing `{}`", path.display()), error);
        File::create(path).map_err(failed)?;
        let file = File::open(path).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file, pending: Vec::new(), passed: 0 })
    }

    /// The file as the program has it: what several processes write does not overlap.
    fn writer(&self) -> Result<File, StageError> {
        let opened = File::options().append(true).open(&self.path);
        opened.map_err(|error| StageError::environment(format!("writing `{}`", self.path.display()), error))
    }

    /// Hands over the lines that are new. One without an end waits for it until all `has_ended`; of a long
    /// one only the beginning is kept.
    fn lines(&mut self, has_ended: bool, mut take: impl FnMut(&str)) -> Result<(), StageError> {
        let mut buffer = [0; 16 << 10];
        loop {
            let read = match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let doing = format!("reading `{}`", self.path.display());
                    return Err(StageError::environment(doing, error));
                }
            };
            let before = self.passed;
            self.passed += read as u64;
            if before < PASSED_LIMIT && self.passed >= PASSED_LIMIT {
                take("(the rest of what it writes is left out)");
            }
            if self.passed >= PASSED_LIMIT {
                continue;
            }
            for byte in &buffer[..read] {
                match byte {
                    b'\n' => {
                        take(String::from_utf8_lossy(&self.pending).trim_end_matches('\r'));
                        self.pending.clear();
                    }
                    byte if self.pending.len() < LINE_LIMIT => self.pending.push(*byte),
                    _ => {}
                }
            }
        }
        if has_ended && !self.pending.is_empty() {
            take(&String::from_utf8_lossy(&std::mem::take(&mut self.pending)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Default)]
    struct Quiet {
        lines: Mutex<Vec<String>>,
        stop: AtomicBool,
    }

    impl StageHost for Quiet {
        fn progress(&self, _: u64, _: u64, _: &str, _: &[(&str, f64)]) {}
        fn log(&self, line: &str) {
            self.lines.lock().unwrap().push(line.to_owned());
        }
        fn warn(&self, _: &str) {}
        fn cancelled(&self) -> bool {
            self.stop.load(Ordering::Relaxed)
        }
    }

    /// Runs a shell script.
    fn sh(script: &str, memory: Option<u64>, host: &Quiet) -> Result<(), StageError> {
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(scratch.path());
        let (name, grace) = ("sh".to_owned(), Duration::from_millis(300));
        Program { command, name, scratch: scratch.path(), memory, grace, listener: None }.run(host)
    }

    fn exists(pid: &str) -> bool {
        // A process that was ended and that nobody waits for is no process any more.
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    fn wait_for(what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(20), "it did not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_it_writes_is_passed_on_in_order() {
        let host = Quiet::default();
        sh("echo one; echo two >&2; printf 'three\\r\\nfour'", None, &host).unwrap();
        assert_eq!(*host.lines.lock().unwrap(), ["one", "two", "three", "four"]);
        let mut answers = Vec::new();
        let scratch = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo out; echo err >&2"]);
        let host = Quiet::default();
        let mut listener = |line: &str| answers.push(line.to_owned());
        let (name, grace) = ("sh".to_owned(), Duration::ZERO);
        let program = Program {
            command,
            name,
            scratch: scratch.path(),
            memory: None,
            grace,
            listener: Some(&mut listener),
        };
        program.run(&host).unwrap();
        assert_eq!((answers, host.lines.lock().unwrap().clone()), (vec!["out".into()], vec!["err".into()]));
    }

    #[test]
    fn failures_have_classes_and_last_words() {
        let host = Quiet::default();
        let failed = sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do echo line $i; done; exit 3", None, &host);
        let text = failed.unwrap_err().to_string();
        assert!(text.starts_with("`sh` ended with exit code 3\n    line 2\n"), "{text}");
        assert!(text.ends_with("\n    line 13"), "{text}");
        let signalled = sh("kill -SEGV $$", None, &host).unwrap_err();
        assert!(matches!(signalled, StageError::Signalled { signal: 11, .. }), "{signalled}");
        let scratch = tempfile::tempdir().unwrap();
        let command = Command::new("no-such-program");
        let (name, grace) = ("no-such-program".to_owned(), Duration::ZERO);
        let program = Program { command, name, scratch: scratch.path(), memory: None, grace, listener: None };
        let text = program.run(&host).unwrap_err().to_string();
        assert_eq!(text, "there is no program `no-such-program`");
    }

    #[test]
    fn its_whole_group_ends_with_it_and_when_it_is_cancelled() {
        let host = Quiet::default();
        sh("sleep 100 & echo $!", None, &host).unwrap();
        let left = host.lines.lock().unwrap()[0].clone();
        wait_for(|| !exists(&left));
        // One that does not listen is made to end.
        let host = Quiet::default();
        std::thread::scope(|scope| {
            let run =
                scope.spawn(|| sh("trap '' TERM; sleep 100 & echo $!; wait; wait; sleep 100", None, &host));
            wait_for(|| !host.lines.lock().unwrap().is_empty());
            host.stop.store(true, Ordering::Relaxed);
            assert!(matches!(run.join().unwrap(), Err(StageError::Cancelled)));
        });
        let child = host.lines.lock().unwrap()[0].clone();
        wait_for(|| !exists(&child));
    }

    #[test]
    fn more_memory_than_it_asked_for_ends_it() {
        let host = Quiet::default();
        // The shell holds a string of a megabyte that doubles.
        let script = "x=0123456789abcdef; while :; do x=$x$x; sleep 0.05; done";
        let error = sh(script, Some(24 << 20), &host).unwrap_err();
        assert!(matches!(error, StageError::OutOfMemory(_)), "{error}");
        assert!(sh("sleep 0.3", Some(24 << 20), &host).is_ok());
    }
}
