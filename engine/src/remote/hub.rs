//! The Hugging Face hub: where it is, what a repository holds, what its refusals mean, and the files that
//! other programs on this machine have fetched from it before.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::http::{Client, Problem, Token, escape};
use super::reference::Repository;
use super::{Checksum, FetchError, RemoteFile, Watch};

/// The hub, as the environment sets it.
pub(super) struct Hub {
    /// `HF_ENDPOINT`, without a closing slash.
    endpoint: String,
    /// The folder of fetched files: `HF_HUB_CACHE`, `HF_HOME/hub`.
    cache: Option<PathBuf>,
}

/// The answer about a repository.
#[derive(Deserialize)]
struct Description {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// `false`, `"auto"` or `"manual"`.
    #[serde(default)]
    gated: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// What a repository holds.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
    /// Whether its files are given to those alone whom its authors let in.
    pub(super) gated: bool,
}

impl Listing {
    /// From what the hub answers about a repository.
    ///
    /// # Errors
    /// If it is no such answer.
    pub(super) fn read(answer: serde_json::Value) -> Result<Self, FetchError> {
        let description: Description = serde_json::from_value(answer)
            .map_err(|error| FetchError::new(format!("the hub describes it in an unknown way: {error}")))?;
        let commit = description.sha;
        if commit.len() != 40 || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(FetchError::new(format!("the hub names no commit but `{}`", commit.escape_debug())));
        }
        let file = |sibling: Sibling| {
            let (sha256, size) = sibling.lfs.map(|lfs| (lfs.sha256, lfs.size)).unwrap_or_default();
            let checksum = match sha256 {
                Some(hex) => Checksum::new("sha256", &hex),
                None => sibling.blob_id.and_then(|hex| Checksum::new("git", &hex)),
            };
            RemoteFile {
                path: sibling.rfilename,
                size: size.or(sibling.size),
                checksum,
                digest: None,
                tag: None,
            }
        };
        let gated = !matches!(description.gated, serde_json::Value::Null | serde_json::Value::Bool(false));
        Ok(Self { commit, files: description.siblings.into_iter().map(file).collect(), gated })
    }
}

impl Hub {
    /// As `variable` sets it, with the token of `HF_TOKEN` or of the file that `hf auth login` writes.
    pub(super) fn new(variable: impl Fn(&str) -> Option<String>) -> (Self, Option<Token>) {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let home = set("HF_HOME").map(PathBuf::from).or_else(|| {
            let base = set("XDG_CACHE_HOME").map(PathBuf::from);
            Some(base.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?.join("huggingface"))
        });
        let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("token")));
        let secret = set("HF_TOKEN").or_else(|| std::fs::read_to_string(file?).ok());
        let token = secret.and_then(|secret| Token::new(&endpoint, &secret));
        let cache = set("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home?.join("hub")));
        (Self { endpoint, cache }, token)
    }

    /// The page that people see.
    fn page(&self, repository: &Repository) -> String {
        let kind = if repository.kind == "datasets" { "datasets/" } else { "" };
        format!("{}/{kind}{}", self.endpoint, repository.name)
    }

    /// Where a file is fetched.
    pub(super) fn url(&self, repository: &Repository, commit: &str, path: &str) -> String {
        format!("{}/resolve/{}/{}", self.page(repository), escape(commit, ""), escape(path, "/"))
    }

    /// Where other programs keep a file of a commit.
    pub(super) fn cached(&self, repository: &Repository, commit: &str, path: &str) -> Option<PathBuf> {
        let folder = format!("{}--{}", repository.kind, repository.name.replace('/', "--"));
        let plain = commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let file = self.cache.as_ref()?.join(folder).join("snapshots").join(commit).join(Path::new(path));
        (plain && file.is_file()).then_some(file)
    }

    /// Asks what a repository holds at its revision.
    pub(super) fn list(
        &self,
        client: &Client,
        repository: &Repository,
        watch: &Watch<'_>,
    ) -> Result<Listing, FetchError> {
        let Repository { kind, name, revision, .. } = repository;
        let endpoint = &self.endpoint;
        let url = format!("{endpoint}/api/{kind}/{name}/revision/{}?blobs=true", escape(revision, ""));
        let answer =
            client.json(&url, watch).map_err(|problem| self.refusal(client, repository, None, problem))?;
        Listing::read(answer)
    }

    /// What a refusal means, and what to do.
    pub(super) fn refusal(
        &self,
        client: &Client,
        repository: &Repository,
        path: Option<&str>,
        problem: Problem,
    ) -> FetchError {
        let (status, code) = match problem {
            Problem::Refused { status, code } => (status, code),
            other => return other.into(),
        };
        let page = self.page(repository);
        let Repository { name, revision, .. } = repository;
        let login = "set HF_TOKEN to a token of your account, or run `hf auth login`";
        match (status, code.as_deref()) {
            (401 | 403, Some("GatedRepo")) | (403, _) if client.has_token() => {
                FetchError::new(format!("access to `{name}` is not granted to the account of the token")).help(
                    format!(
                        "ask for access at {page}; a fine-grained token also needs the permission to read gated repositories"
                    ),
                )
            }
            (401 | 403, Some("GatedRepo")) | (403, _) => {
                FetchError::new(format!("`{name}` is gated: its authors grant access"))
                    .help(format!("accept the conditions at {page}, then {login}"))
            }
            (401, _) if client.has_token() => FetchError::new(format!(
                "the hub has no `{name}`, or the token is not valid for it"
            ))
            .help(format!("see {page}, and whether HF_TOKEN is still valid")),
            (401, _) => FetchError::new(format!("the hub has no `{name}`, or it is private"))
                .help(format!("see {page}; for a private repository {login}")),
            (404, Some("RevisionNotFound")) => {
                FetchError::new(format!("`{name}` has no revision `{revision}`"))
                    .help(format!("see {page}/tree/main"))
            }
            (404, _) if path.is_some() => {
                let path = path.unwrap_or_default().escape_debug();
                FetchError::new(format!("`{name}` has no file `{path}` any more"))
            }
            (404, _) => FetchError::new(format!("the hub has no `{name}` with a revision `{revision}`"))
                .help(format!("see {page}; a data set is named `hf:datasets/owner/name@revision`")),
            (status, _) => FetchError::new(format!("the hub answered {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where_the_hub_and_its_files_are() {
        let folder = tempfile::TempDir::new().unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        std::fs::write(folder.path().join("token"), "from_file\n").unwrap();
        let repository =
            Repository { kind: "models", name: "o/n".to_owned(), revision: "main".to_owned(), pattern: None };
        let snapshot = folder.path().join("hub/models--o--n/snapshots/abc/a");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(snapshot.join("b.txt"), "x").unwrap();
        let (hub, token) = Hub::new(|name| (name == "HF_HOME").then(|| home.clone()));
        assert!(token.is_some());
        assert_eq!(hub.url(&repository, "abc", "a/b c"), "https://huggingface.co/o/n/resolve/abc/a/b%20c");
        assert_eq!(hub.cached(&repository, "abc", "a/b.txt"), Some(snapshot.join("b.txt")));
        assert_eq!(hub.cached(&repository, "abc", "a/c.txt"), None);
        assert_eq!(hub.cached(&repository, "../abc", "a/b.txt"), None);
        let (hub, token) =
            Hub::new(|name| (name == "HF_ENDPOINT").then(|| "https://mirror.org/hf/".to_owned()));
        assert!(token.is_none() && hub.cache.is_none());
        let repository = Repository { kind: "datasets", ..repository };
        assert_eq!(hub.url(&repository, "abc", "x"), "https://mirror.org/hf/datasets/o/n/resolve/abc/x");
    }
}
