//! Results that other machines have made: before a node runs, the remote cache is asked for its result; after it has run,
//! its result is put there.

use pipe_cache::{Digest, Record};
use pipe_mirror::{Blobs, Mirror};
use serde_json::json;

use super::{News, Scheduler, State, TaskId, Work};
use crate::events::EventLog;
use crate::pipeline::{NodeId, RemotePolicy};

/// Nodes that are asked for at a time; the files of each come over several connections.
const AT_A_TIME: usize = 8;

impl Scheduler<'_> {
    /// Asks for the result of a node that is about to run, once. Whether it is asked for, or will be when others have been;
    /// else there is nobody to ask, or the answer was no.
    pub(super) fn ask(&self, id: NodeId, digest: Digest, work: &mut Work<'_>) -> bool {
        let Some(mirror) = self.mirror.filter(|mirror| mirror.is_on()) else { return false };
        if work.plan.forced.contains(&id) || work.asked.get(&id) == Some(&digest) {
            return false;
        }
        if work.asking >= AT_A_TIME {
            return true;
        }
        // Of what nobody asked for, and nobody reads yet, it is enough to know the digests.
        let is_enough = !work.plan.is_asked(id) && !work.demanded.contains(&id);
        let (mirror, store, sender) = (mirror.clone(), self.store.clone(), work.sender.clone());
        let question = move || {
            let found = match is_enough {
                true => mirror.bring_record(&digest, &store),
                false => mirror.bring(&digest, &store),
            };
            let found = found.map(Box::new);
            // The receiver is gone only when the run was aborted.
            let _ = sender.send((TaskId { node: id, shard: None }, News::Asked(digest, found)));
        };
        let thread = std::thread::Builder::new().name("asking".to_owned());
        if thread.spawn(question).is_err() {
            return false;
        }
        work.asking += 1;
        work.state[id.0] = State::Running;
        true
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
        tell_if_off(self.mirror, &self.events);
        match found {
            Some(record) => {
                work.outcome.taken += 1;
                self.hit(id, *record, "remote", work);
                // The files may have come with another result.
                let has_files = matches!(self.store.lookup(&digest), Ok(Some(_)));
                if !has_files {
                    work.plan.evicted.insert(id);
                }
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
}

/// Says once that the remote cache is not used any more.
pub(crate) fn tell_if_off(mirror: Option<&Mirror>, events: &EventLog) {
    if let Some(reason) = mirror.and_then(Mirror::why_off) {
        let detail = format!("is not used any more in this run: {reason}");
        events.emit("warning", json!({ "subject": "the remote cache", "detail": detail }));
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
