//! Jobs of earlier runs that still go on: their actions are not submitted again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use pipe_cache::ArrayFolder;

use super::super::manifest::{Intent, Job, Manifest, VERSION};
use super::super::queue;
use super::super::worker::json as bytes_of;
use super::{Array, Cluster, State};
use crate::error::StageError;

/// So many arrays may still go on.
const RECENT: usize = 256;

impl Cluster {
    /// Looks for them, until the queue has told of them.
    pub(super) fn find_jobs(&mut self) -> Result<(), StageError> {
        let arrays = self.around.store.arrays();
        let read = |folder: &ArrayFolder| -> Option<Intent> {
            let is_over = folder.read("cancelled").is_some();
            (!is_over).then(|| serde_json::from_slice(&folder.read("intent.json")?).ok())?
        };
        let known: Vec<(ArrayFolder, Intent)> = arrays
            .into_iter()
            .rev()
            .take(RECENT)
            .filter_map(|folder| read(&folder).map(|intent| (folder, intent)))
            .collect();
        let names: Vec<&str> = known.iter().map(|(_, intent)| intent.name.as_str()).collect();
        // Also without a name: that there is no `squeue` is to be known before anything is written.
        let listed = queue::look(if names.is_empty() { &["pipe"] } else { &names })?;
        let Some(listed) = listed else {
            self.note_answer(false, Instant::now());
            return Ok(());
        };
        self.has_looked_back = true;
        let mut live: BTreeMap<&str, (&str, BTreeSet<usize>)> = BTreeMap::new();
        for one in listed.iter().filter(|one| one.is_live()) {
            live.entry(&one.name).or_insert_with(|| (&one.job, BTreeSet::new())).1.insert(one.task);
        }
        for (folder, intent) in known {
            let Some((job, tasks)) = live.get(intent.name.as_str()) else { continue };
            let manifest = folder.manifest().ok().flatten();
            let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
            let is_ours =
                |manifest: &Manifest| manifest.version == VERSION && manifest.program == self.digest;
            let Some(manifest) = manifest.filter(is_ours) else { continue };
            // Who submitted it was killed before it was told the number.
            if folder.read("job.json").is_none() {
                let job = Job { id: (*job).to_owned(), time: crate::events::now() };
                let _ = self.around.store.write_in_array(&folder, "job.json", &bytes_of(&job));
            }
            // What failed there is to be tried again, not to be waited for.
            let over: BTreeSet<String> = folder.names("ended").into_iter().collect();
            for task in tasks {
                for index in manifest.tasks.get(*task).into_iter().flatten() {
                    let Some(action) = manifest.actions.get(*index) else { continue };
                    let digest = action.key.digest();
                    if !over.contains(&format!("{digest}.json")) {
                        self.adoptable.insert(digest, (folder.id().to_owned(), *task));
                    }
                }
            }
            let array = Array::new(folder.clone(), intent, manifest.tasks.len(), State::Accepted);
            self.arrays.insert(folder.id().to_owned(), Array { ended: over, ..array });
        }
        Ok(())
    }
}

impl Array {
    pub(super) fn new(folder: ArrayFolder, intent: Intent, tasks: usize, state: State) -> Self {
        Self {
            folder,
            intent,
            tasks,
            state,
            ended: BTreeSet::new(),
            exits: BTreeMap::new(),
            events: BTreeMap::new(),
            given: BTreeMap::new(),
            unanswered: None,
            refused: 0,
            over: BTreeMap::new(),
        }
    }
}
