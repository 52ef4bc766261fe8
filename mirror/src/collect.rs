//! What nothing needs on a mirror, by the records that stand there.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use pipe_cache::Digest;

use crate::objects::{Listed, Objects, Refusal, age};

/// Records that are read, and objects that are removed, at a time.
const AT_A_TIME: usize = 16;

/// What is kept whatever needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteLimits {
    /// Records that nobody used for longer go; none goes without it. Use renews a record once a day.
    pub older_than: Option<Duration>,
    /// Younger files stay: their record may be on its way.
    pub grace: Duration,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self { older_than: None, grace: Duration::from_secs(24 * 3600) }
    }
}

/// Objects that can go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteGarbage {
    /// Paths of records.
    pub records: Vec<String>,
    /// Paths of files that no remaining record needs, and what probes left.
    pub blobs: Vec<String>,
    /// Marks of uploads that nobody goes on with, of which parts are kept there; of so many bytes as only the server knows.
    pub uploads: Vec<String>,
    /// The bytes of records and files.
    pub bytes: u64,
}

pub(crate) async fn garbage(objects: &Objects, limits: &RemoteLimits) -> Result<RemoteGarbage, String> {
    let list = async |folder: &str| objects.list(folder).await.map_err(words);
    let records = list("v1/ac").await?;
    let is_old = |one: &Listed| limits.older_than.is_some_and(|limit| age(one.modified) > limit);
    let (old, kept): (Vec<Listed>, Vec<Listed>) = records.into_iter().partition(is_old);
    let reads = kept.iter().map(|one| async move {
        match objects.short(&one.path).await {
            Ok(found) => Ok(found.record()),
            Err(Refusal::Missing) => Ok(None),
            Err(refusal) => Err(words(refusal)),
        }
    });
    let mut reads = futures_util::stream::iter(reads).buffer_unordered(AT_A_TIME);
    let mut needed: BTreeSet<Digest> = BTreeSet::new();
    while let Some(read) = reads.next().await {
        let files =
            read?.into_iter().flat_map(|record| record.outputs.into_values()).flat_map(|one| one.files);
        needed.extend(files.map(|file| file.blob));
    }
    drop(reads);
    let blobs = list("v1/cas").await?.into_iter().filter(|one| {
        let digest = one.path.rsplit('/').next().and_then(|name| name.parse::<Digest>().ok());
        age(one.modified) > limits.grace && digest.is_none_or(|digest| !needed.contains(&digest))
    });
    let probes = list("v1/probe").await?.into_iter().filter(|one| age(one.modified) > limits.grace);
    let blobs: Vec<Listed> = blobs.chain(probes).collect();
    let uploads = objects.abandoned_uploads(limits.grace).await.map_err(words)?;
    Ok(RemoteGarbage {
        uploads: uploads.into_iter().map(|one| one.path).collect(),
        bytes: old.iter().chain(&blobs).map(|one| one.bytes).sum(),
        records: old.into_iter().map(|one| one.path).collect(),
        blobs: blobs.into_iter().map(|one| one.path).collect(),
    })
}

pub(crate) async fn remove(objects: &Objects, garbage: &RemoteGarbage) -> Result<(), String> {
    // A file without a record is nobody's; a record without its files is a promise.
    for paths in [&garbage.records, &garbage.blobs] {
        let removals = paths.iter().map(|path| async move { objects.remove(path).await });
        let mut removals = futures_util::stream::iter(removals).buffer_unordered(AT_A_TIME);
        while let Some(removed) = removals.next().await {
            removed.map_err(words)?;
        }
    }
    for mark in &garbage.uploads {
        objects.end_upload(mark).await.map_err(words)?;
    }
    Ok(())
}

fn words(refusal: Refusal) -> String {
    match refusal {
        Refusal::Failed(reason) => reason,
        Refusal::Missing => "it is not there".to_owned(),
        Refusal::Exists | Refusal::Changed => "something else stands there".to_owned(),
    }
}
