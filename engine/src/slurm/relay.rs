//! A small job that goes on with a run when all jobs have ended that were submitted, so that no process has to wait for
//! them.

use pipe_cache::Store;

use super::manifest::{Intent, Job, Manifest, VERSION, absolute_path};
use super::submission::{job_id, relay_arguments, relay_script};
use super::worker::json as bytes_of;
use super::{command, own_program, program_digest};
use crate::attempt::AttemptError;
use crate::error::StageError;
use crate::pipeline::SlurmSettings;

/// What its array is called in the place of a stage.
const STAGE: &str = "the next part of the run";

/// Submits it: this program with `arguments`, after `jobs`. The id of its job.
///
/// # Errors
/// If the store cannot be written, or the job is refused.
pub(crate) fn submit(
    store: &Store,
    run: &str,
    jobs: &[String],
    settings: &SlurmSettings,
    arguments: &[String],
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
    let log = absolute_path(&folder.path().join("logs").join("relay.%A.out"));
    let submission = relay_arguments(&name, run, jobs, &log, settings);
    let intent = Intent {
        name,
        run: run.to_owned(),
        stage: STAGE.to_owned(),
        tasks: 1,
        actions: 0,
        arguments: submission.clone(),
        time: crate::events::now(),
    };
    store.write_in_array(&folder, "intent.json", &bytes_of(&intent))?;
    let said = command::run("sbatch", &submission, &relay_script(&program, arguments))?;
    let id = job_id(&said.out).filter(|_| said.succeeded);
    let id = id.ok_or_else(|| StageError::failed(format!("`sbatch` refused: {}", said.err)))?;
    let job = Job { id: id.clone(), time: crate::events::now() };
    store.write_in_array(&folder, "job.json", &bytes_of(&job))?;
    Ok(id)
}
