//! Whether a server lets only one of several writers create an object. Some take the condition and ignore it, others
//! hold it one after another and not at the same time.

use bytes::Bytes;
use futures_util::future::join_all;
use object_store::PutMode;

use crate::objects::{Objects, Refusal};

const KEYS: usize = 20;
const WRITERS: usize = 8;

/// Lets writers race for keys below `v1/probe/`; whether each key had one winner.
pub(crate) async fn creates_once(objects: &Objects) -> Result<bool, Refusal> {
    let nonce = format!("{}-{:x}", std::process::id(), nanoseconds());
    let path = |key: usize| format!("v1/probe/{nonce}/{key}");
    let race = |key: usize| {
        let writers = (0..WRITERS).map(move |writer| {
            let content = Bytes::from(writer.to_string());
            async move { objects.put(&path(key), content, PutMode::Create).await }
        });
        join_all(writers)
    };
    let mut is_sound = true;
    let mut failed = None;
    for won in join_all((0..KEYS).map(race)).await {
        let mut winners = 0;
        for one in won {
            match one {
                Ok(()) => winners += 1,
                Err(Refusal::Exists | Refusal::Changed) => {}
                Err(Refusal::Missing) => is_sound = false,
                Err(error @ Refusal::Failed(_)) => failed = Some(error),
            }
        }
        is_sound &= winners == 1;
    }
    for removed in join_all((0..KEYS).map(|key| async move { objects.remove(&path(key)).await })).await {
        // What stays is small, and a later collection takes it.
        drop(removed);
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(is_sound),
    }
}

fn nanoseconds() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map(|since| since.as_nanos()).unwrap_or_default()
}
