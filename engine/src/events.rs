//! Everything that happens, as JSON Lines: the one stream behind progress, logs and `--json`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value as Json};

use crate::progress::Display;

/// The event log of one run. Each event is one `write`, so a torn line can only be the last.
pub(crate) struct EventLog {
    run: String,
    state: Mutex<State>,
}

struct State {
    file: File,
    sequence: u64,
    display: Display,
    echo: bool,
}

impl EventLog {
    pub(crate) fn create(path: &Path, run: &str, display: Display, echo: bool) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { run: run.to_owned(), state: Mutex::new(State { file, sequence: 0, display, echo }) })
    }

    /// Writes one event and shows it. A full disk does not stop the run here: the store will say so.
    pub(crate) fn emit(&self, event: &str, fields: Json) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = Map::new();
        line.insert("v".to_owned(), 1.into());
        line.insert("ts".to_owned(), now().into());
        line.insert("run".to_owned(), self.run.clone().into());
        line.insert("seq".to_owned(), state.sequence.into());
        line.insert("ev".to_owned(), event.into());
        if let Json::Object(fields) = fields {
            line.extend(fields);
        }
        state.sequence += 1;
        let line = Json::Object(line);
        let mut text = line.to_string();
        text.push('\n');
        let _ = state.file.write_all(text.as_bytes());
        if state.echo {
            // A reader that went away ends the echo, not the run.
            state.echo = std::io::stdout().write_all(text.as_bytes()).is_ok();
        }
        state.display.show(event, &line);
    }
}

/// Now, RFC 3339 in UTC with milliseconds. For people and logs; never part of a result.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{:.3}", now)
}
