//! A run read back from its events: what it did, and what it does if it still goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use pipe_cache::{Owner, RunFolder};
use serde_json::{Map, Value as Json};

/// The state of one action of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Action {
    /// `running`, `waiting`, `hit`, or the status with which it ended.
    pub(crate) state: String,
    pub(crate) key: String,
    /// When it came into this state, RFC 3339.
    pub(crate) since: String,
    /// When its last attempt began, RFC 3339; empty if none did.
    pub(crate) began: String,
    /// Done, total and unit.
    pub(crate) progress: Option<(u64, u64, String)>,
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    pub(crate) run: String,
    /// `run_started`.
    pub(crate) began: Json,
    /// `run_finished`, if it did.
    pub(crate) finished: Option<Json>,
    /// By node.
    pub(crate) actions: BTreeMap<String, Action>,
    /// Whether its process lives, as far as this one can see.
    pub(crate) alive: bool,
}

/// The events of a run, in order. A line that is torn or damaged is left out.
pub(crate) fn events(run: &RunFolder) -> Vec<Json> {
    let text = std::fs::read(run.events()).unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Json>(line).ok()).filter(Json::is_object).collect()
}

impl Journal {
    /// Reads a run; none if it has no events.
    pub(crate) fn read(run: &RunFolder) -> Option<Self> {
        let mut events = events(run).into_iter();
        let began = events.next().filter(|event| event["ev"] == "run_started")?;
        let mut journal =
            Self { run: run.id().to_owned(), began, finished: None, actions: BTreeMap::new(), alive: false };
        for event in events {
            journal.take(event);
        }
        journal.alive = journal.finished.is_none() && journal.is_alive(run);
        Some(journal)
    }

    fn take(&mut self, event: Json) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        if event["shard"].is_string() {
            // The events of a part: its node has events of its own.
            return;
        }
        let state = match event["ev"].as_str().unwrap_or_default() {
            "run_finished" => {
                self.finished = Some(event);
                return;
            }
            "progress" => {
                if let Some(action) = self.actions.get_mut(&text("node")) {
                    let number = |key: &str| event[key].as_u64().unwrap_or(0);
                    action.progress = Some((number("done"), number("total"), text("unit")));
                }
                return;
            }
            "action_started" => "running".to_owned(),
            "waiting" => "waiting".to_owned(),
            "retry" => "delayed".to_owned(),
            "action_hit" => "hit".to_owned(),
            "action_finished" => text("status"),
            _ => return,
        };
        let action = self.actions.entry(text("node")).or_default();
        let began = if state == "running" { text("ts") } else { std::mem::take(&mut action.began) };
        *action = Action { state, key: text("key"), since: text("ts"), began, progress: None };
    }

    fn is_alive(&self, run: &RunFolder) -> bool {
        // Another host's process cannot be observed: its events are its sign of life.
        let silence = std::fs::metadata(run.events())
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok())
            .unwrap_or(Duration::ZERO);
        serde_json::from_value::<Owner>(self.began["owner"].clone())
            .is_ok_and(|owner| !owner.is_dead(&Owner::current(), silence))
    }

    /// `ok`, `failed`, `cancelled`, `running`, or `not finished`.
    pub(crate) fn status(&self) -> &str {
        match &self.finished {
            Some(finished) => finished["status"].as_str().unwrap_or("?"),
            None if self.alive => "running",
            None => "not finished",
        }
    }

    /// The pipeline's name.
    pub(crate) fn pipeline(&self) -> &str {
        self.began["pipeline"].as_str().unwrap_or_default()
    }

    /// When it began, RFC 3339.
    pub(crate) fn time(&self) -> &str {
        self.began["ts"].as_str().unwrap_or("?")
    }

    /// One object for `--json`.
    pub(crate) fn json(&self) -> Json {
        let mut json = Map::new();
        json.insert("run".to_owned(), self.run.clone().into());
        json.insert("status".to_owned(), self.status().into());
        for key in ["ts", "pipeline", "profile", "overrides", "argv", "host"] {
            json.insert(key.to_owned(), self.began[key].clone());
        }
        for key in ["executed", "failed", "blocked", "repaired", "wall"] {
            json.insert(key.to_owned(), self.finished.as_ref().map_or(Json::Null, |end| end[key].clone()));
        }
        Json::Object(json)
    }
}

#[cfg(test)]
mod tests {
    use pipe_cache::{Durability, Store};

    use super::*;

    #[test]
    fn fuzz_events() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_cache(folder.path(), Durability::Rename, None).unwrap();
        let run = store.new_run().unwrap();
        let owner = serde_json::to_string(&Owner::current()).unwrap();
        let text = format!(
            "{{\"ev\":\"run_started\",\"ts\":\"2026-01-01T00:00:00Z\",\"pipeline\":\"p\",\"owner\":{owner}}}\n\
             {{\"ev\":\"action_started\",\"node\":\"a\",\"key\":\"k\",\"ts\":\"t\"}}\n\
             {{\"ev\":\"progress\",\"node\":\"a\",\"done\":1,\"total\":2,\"unit\":\"rows\"}}\n\
             {{\"ev\":\"action_finished\",\"node\":\"a\",\"status\":\"ok\"}}\n\
             {{\"ev\":\"run_finished\",\"status\":\"ok\",\"executed\":1}}\n"
        );
        let words: [&[u8]; 6] = [b"\n", b"null", b"{}", b"\"ev\":\"progress\"", b"\"shard\":\"s\"", b"-1"];
        pipe_fuzz::fuzz("events", &[text.into_bytes()], &words, |bytes| {
            std::fs::write(run.events(), bytes).unwrap();
            let Some(journal) = Journal::read(&run) else { return };
            assert_eq!(journal.json()["status"], journal.status());
            let _ = (journal.pipeline(), journal.time());
        });
    }
}
