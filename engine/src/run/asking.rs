//! Results that other machines have made: before a node runs, the remote cache is asked for its result; after it has run,
//! its result is put there.

use pipe_cache::{Digest, Record};
use pipe_mirror::{Blobs, Found};
use serde_json::json;

use super::{News, Scheduler, State, TaskId, Work};
use crate::pipeline::{NodeId, RemotePolicy};

/// Nodes that are asked for at a time; the files of each come over several connections.
const AT_A_TIME: usize = 8;

/// Whether a node is asked for.
pub(super) enum Asked {
    /// It is, or will be when others have been.
    Yes,
    /// There is nobody to ask, or the answer was no.
    No,
}

impl Scheduler<'_> {
    /// Asks for the result of a node that is about to run, once.
    pub(super) fn ask(&self, id: NodeId, digest: Digest, work: &mut Work<'_>) -> Asked {
        let Some(mirror) = self.mirror.filter(|mirror| mirror.is_on()) else { return Asked::No };
        if work.plan.forced.contains(&id) || work.asked.get(&id) == Some(&digest) {
            return Asked::No;
        }
        if work.asking >= AT_A_TIME {
            return Asked::Yes;
        }
        let (mirror, store, sender) = (mirror.clone(), self.store.clone(), work.sender.clone());
        let question = move || {
            let found = match mirror.bring(&digest, &store) {
                Found::Brought(record) => Some(record),
                Found::Nothing => None,
            };
            // The receiver is gone only when the run was aborted.
            let _ = sender.send((TaskId { node: id, shard: None }, News::Asked(digest, found)));
        };
        let thread = std::thread::Builder::new().name("asking".to_owned());
        if thread.spawn(question).is_err() {
            return Asked::No;
        }
        work.asking += 1;
        work.state[id.0] = State::Running;
        Asked::Yes
    }

    /// Takes the answer.
    pub(super) fn answered(
        &self,
        id: NodeId,
        digest: Digest,
        found: Option<Box<Record>>,
        work: &mut Work<'_>,
    ) {
        work.asking -= 1;
        work.asked.insert(id, digest);
        self.tell_if_off();
        match found {
            Some(record) => {
                work.outcome.taken += 1;
                self.hit(id, *record, "remote", work);
            }
            None => work.state[id.0] = State::Ready,
        }
    }

    /// Puts a result that was made here into the remote cache, in the background.
    pub(super) fn share(&self, id: NodeId, record: &Record, work: &Work<'_>) {
        let Some(mirror) = self.mirror.filter(|mirror| mirror.is_on() && mirror.is_writable()) else {
            return;
        };
        let is_read = !work.consumers[id.0].is_empty();
        mirror.send(record.clone(), blobs(self.pipeline.nodes[id.0].remote, is_read), self.store);
    }

    /// Says once that the remote cache is not used any more.
    pub(super) fn tell_if_off(&self) {
        if let Some(reason) = self.mirror.and_then(pipe_mirror::Mirror::why_off) {
            let detail = format!("is not used any more in this run: {reason}");
            self.events.emit("warning", json!({ "subject": "the remote cache", "detail": detail }));
        }
    }
}

/// Which files of a node go into a remote cache.
pub(crate) fn blobs(policy: RemotePolicy, is_read: bool) -> Blobs {
    match policy {
        RemotePolicy::Always => Blobs::All,
        RemotePolicy::Results if !is_read => Blobs::All,
        RemotePolicy::Results | RemotePolicy::Never => Blobs::None,
    }
}
