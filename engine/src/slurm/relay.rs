//! A small job that goes on with a run when all jobs have ended that were submitted, so that no process has to wait for
//! them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pipe_cache::Store;

use super::cluster::{BACKOFF, LONGEST_BACKOFF, LOST_ANSWER, UNKNOWN};
use super::manifest::{Intent, Job, Manifest, VERSION, absolute_path};
use super::refusal::{Refusal, class};
use super::submission::{job_id, relay_arguments, relay_script};
use super::worker::json as bytes_of;
use super::{command, own_program, program_digest, queue};
use crate::attempt::AttemptError;
use crate::error::StageError;
use crate::pipeline::JobSettings;

/// What its array is called in the place of a stage.
const STAGE: &str = "the next part of the run";
/// How often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(200);

/// Submits it: this program with `arguments`, after `jobs`. The id of its job.
///
/// # Errors
/// If the store cannot be written, the job is refused, or somebody asks to `stop` before the controller has time for it.
pub(crate) fn submit(
    store: &Store,
    run: &str,
    jobs: &[String],
    settings: &JobSettings,
    arguments: &[String],
    stop: &AtomicBool,
) -> Result<String, AttemptError> {
    let program = own_program()?;
    let manifest = Manifest {
        version: VERSION,
        program: program_digest(&program)?,
        run: run.to_owned(),
        pipeline: String::new(),
        stage: STAGE.to_owned(),
        revision: None,
        is_durable: store.is_durable(),
        threads: None,
        gpus: 0,
        limit: None,
        margin: 0,
        longest: 0.0,
        nodes: Vec::new(),
        actions: Vec::new(),
        tasks: Vec::new(),
    };
    let folder = store.new_array(&format!("{run}-relay"), &bytes_of(&manifest))?;
    let name = format!("pipe-{run}-relay");
    let logs = folder.logs("relay.%A").map(|path| absolute_path(&path));
    let submission = relay_arguments(&name, run, jobs, &logs, settings);
    let intent = Intent {
        name,
        run: run.to_owned(),
        stage: STAGE.to_owned(),
        tasks: 1,
        actions: 0,
        arguments: submission.clone(),
        setup: String::new(),
        time: crate::events::now(),
    };
    store.write_in_array(&folder, "intent.json", &bytes_of(&intent))?;
    let id = accepted(&intent, &relay_script(&program, arguments), stop)?;
    let job = Job { id: id.clone(), time: crate::events::now() };
    store.write_in_array(&folder, "job.json", &bytes_of(&job))?;
    Ok(id)
}

/// Submits a job as often as it takes; its id. Nobody may be there to do it: the caller may be such a job itself.
fn accepted(intent: &Intent, script: &str, stop: &AtomicBool) -> Result<String, StageError> {
    let (mut backoff, mut unknown) = (BACKOFF, 0);
    loop {
        let said = command::run("sbatch", &intent.arguments, script)?;
        if let Some(id) = job_id(&said.out).filter(|_| said.succeeded) {
            return Ok(id);
        }
        let is_passing = match class(&said.err) {
            Refusal::Transient | Refusal::Quota => true,
            Refusal::Unknown => {
                unknown += 1;
                unknown < UNKNOWN
            }
            Refusal::Permanent(_) | Refusal::Size => false,
        };
        if !is_passing {
            return Err(StageError::failed(format!("`sbatch` refused: {}", said.err)));
        }
        // Though the answer was lost, it may have been accepted.
        let pause = if said.err.contains("timed out") { LOST_ANSWER.max(backoff) } else { backoff };
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if stop.load(Ordering::Relaxed) {
                return Err(StageError::failed(format!("`sbatch` refused so far: {}", said.err)));
            }
            std::thread::sleep(TICK);
        }
        let listed = queue::look(&[&intent.name])?.unwrap_or_default();
        if let Some(one) = listed.into_iter().find(|one| one.name == intent.name && one.is_live()) {
            return Ok(one.job);
        }
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}
