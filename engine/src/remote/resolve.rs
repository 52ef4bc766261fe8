//! From a name to what it means now: a revision and files.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::fetch::Fetcher;
use super::http::{Problem, escape};
use super::reference::Place;
use super::{Checksum, FetchError, Remote, RemoteFile, Resolved, Watch, is_plain};

/// The answer about a record of Zenodo.
#[derive(Deserialize)]
struct Record {
    id: u64,
    #[serde(default)]
    files: Vec<RecordFile>,
}

#[derive(Deserialize)]
struct RecordFile {
    key: String,
    size: Option<u64>,
    checksum: Option<String>,
}

impl Fetcher {
    /// Asks what a source means now. Fetches none of its files, but asks whether they are given.
    ///
    /// # Errors
    /// If the server does not know it or does not give it, or its pattern selects nothing.
    pub(crate) fn resolve(&self, remote: &Remote, watch: &Watch<'_>) -> Result<Resolved, FetchError> {
        match remote.place() {
            Place::Hub(repository) => {
                let listing = self.hub.list(&self.client, repository, watch)?;
                let resolved = Resolved {
                    files: select(remote, listing.files)?,
                    revision: Some(listing.commit.clone()),
                };
                // The list is given to everybody, the files may not be: better said before the others are
                // fetched.
                if let Some(file) = resolved.files.first().filter(|_| listing.gated) {
                    let url = self.hub.url(repository, &listing.commit, &file.path);
                    self.client.head(&url, watch).map_err(|problem| {
                        self.hub.refusal(&self.client, repository, Some(&file.path), problem)
                    })?;
                }
                Ok(resolved)
            }
            Place::Zenodo { record, .. } => self.resolve_record(remote, record, watch),
            Place::Address { url, checksum } => self.resolve_address(url, checksum.clone(), watch),
        }
    }

    fn resolve_record(
        &self,
        remote: &Remote,
        record: &str,
        watch: &Watch<'_>,
    ) -> Result<Resolved, FetchError> {
        let url = format!("{}/api/records/{record}", self.zenodo);
        let answer = self.client.json(&url, watch).map_err(|problem| match problem {
            Problem::Refused { status: 404 | 410, .. } => {
                FetchError::new(format!("Zenodo has no record {record}"))
                    .help(format!("see {}/records/{record}", self.zenodo))
            }
            other => other.into(),
        })?;
        let (id, files) = record_files(answer)?;
        Ok(Resolved { files: select(remote, files)?, revision: Some(id.to_string()) })
    }

    fn resolve_address(
        &self,
        url: &str,
        checksum: Option<Checksum>,
        watch: &Watch<'_>,
    ) -> Result<Resolved, FetchError> {
        let (size, tag) = match self.client.head(url, watch) {
            Ok(answer) => {
                let tag = answer.header("etag").filter(|tag| tag.starts_with('"')).map(str::to_owned);
                // Some servers say 0 where they do not know.
                (answer.length().filter(|length| *length > 0), tag)
            }
            // Some servers only answer when they are asked for the file itself.
            Err(Problem::Refused { status: 400 | 403 | 405 | 501, .. }) => (None, None),
            Err(problem) => return Err(problem.into()),
        };
        let file = RemoteFile { path: file_name(url), size, checksum, digest: None, tag };
        Ok(Resolved { revision: None, files: vec![file] })
    }

    /// Where a file of a source is fetched.
    pub(super) fn url(&self, remote: &Remote, revision: Option<&str>, path: &str) -> String {
        match remote.place() {
            Place::Hub(repository) => {
                self.hub.url(repository, revision.unwrap_or(&repository.revision), path)
            }
            Place::Zenodo { record, .. } => {
                let record = revision.unwrap_or(record);
                format!(
                    "{}/api/records/{}/files/{}/content",
                    self.zenodo,
                    escape(record, ""),
                    escape(path, "")
                )
            }
            Place::Address { url, .. } => url.clone(),
        }
    }
}

/// The number and the files of a record, from what Zenodo answers about it.
fn record_files(answer: serde_json::Value) -> Result<(u64, Vec<RemoteFile>), FetchError> {
    let answer: Record = serde_json::from_value(answer)
        .map_err(|error| FetchError::new(format!("Zenodo describes it in an unknown way: {error}")))?;
    let files = answer.files.into_iter().map(|file| RemoteFile {
        checksum: file.checksum.as_deref().and_then(Checksum::parse),
        path: file.key,
        size: file.size,
        digest: None,
        tag: None,
    });
    Ok((answer.id, files.collect()))
}

/// The last name of an address, without what is unusual in a file name.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let name = path.splitn(4, '/').nth(3).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let plain = |character: &char| character.is_ascii_alphanumeric() || "-_.".contains(*character);
    let name: String = name.chars().filter(plain).take(200).collect();
    if is_plain(&name) { name } else { "file".to_owned() }
}

/// The files that a source means. What a publisher calls a file is not to be trusted.
fn select(remote: &Remote, mut files: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, FetchError> {
    if let Some(file) = files.iter().find(|file| !is_plain(&file.path)) {
        let name = file.path.chars().take(200).collect::<String>();
        return Err(FetchError::new(format!(
            "it has a file called `{}`, which is refused: a name may not lead out of its folder",
            name.escape_debug()
        )));
    }
    let mut seen = BTreeSet::new();
    if let Some(file) = files.iter().find(|file| !seen.insert(file.path.as_str())) {
        return Err(FetchError::new(format!("it has two files called `{}`", file.path)));
    }
    let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let meant: BTreeSet<usize> = remote
        .select(&paths)
        .map_err(|reason| {
            let shown: Vec<&str> = paths.iter().copied().take(12).collect();
            let more = if paths.len() > shown.len() { ", ..." } else { "" };
            FetchError::new(reason).help(format!("it has `{}`{more}", shown.join("`, `")))
        })?
        .into_iter()
        .map(|(_, index)| index)
        .collect();
    let mut index = 0;
    files.retain(|_| {
        index += 1;
        meant.contains(&(index - 1))
    });
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::hub::Listing;
    use super::*;

    #[test]
    fn an_address_ends_in_a_file_name() {
        for (url, expected) in [
            ("https://a.org/x/y.tar.gz?z=/q", "y.tar.gz"),
            ("https://a.org/x/", "file"),
            ("https://a.org", "file"),
            ("https://a.org/..", "file"),
            ("https://a.org/a%2Fb*.pt", "a2Fb.pt"),
        ] {
            assert_eq!(file_name(url), expected, "{url}");
        }
    }

    /// Whatever a server answers, no file of it leads out of its folder.
    #[test]
    fn fuzz_answers() {
        let hub = r#"{"sha": "0123456789012345678901234567890123456789", "gated": "auto", "siblings": [
            {"rfilename": "a/model.safetensors", "size": 3, "lfs": {"sha256": "ab", "size": 3}},
            {"rfilename": "config.json", "blobId": "0123456789012345678901234567890123456789"}]}"#;
        let zenodo = r#"{"id": 12, "files": [{"key": "set.npz", "size": 4, "checksum": "md5:b1946ac92492d2347c6235b4d2611184"}]}"#;
        let remotes = ["hf:o/n@main", "hf:o/n@main/**/*.json", "zenodo:12/set.npz", "zenodo:12"];
        let remotes: Vec<Remote> = remotes.into_iter().filter_map(Remote::parse).flatten().collect();
        assert!(!remotes.is_empty());
        let words: [&[u8]; 6] = [b"../", b"\\u0000", b"null", b"-1", b"1e400", b"\"rfilename\":"];
        let seeds = [hub.as_bytes().to_vec(), zenodo.as_bytes().to_vec()];
        pipe_fuzz::fuzz("answers", &seeds, &words, |bytes| {
            let Ok(answer) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
            let listed = Listing::read(answer.clone()).map(|listing| listing.files);
            let recorded = record_files(answer).map(|(_, files)| files);
            for files in [listed, recorded].into_iter().flatten() {
                for remote in &remotes {
                    for file in select(remote, files.clone()).into_iter().flatten() {
                        assert!(is_plain(&file.path), "{}", file.path);
                    }
                }
            }
        });
    }
}
