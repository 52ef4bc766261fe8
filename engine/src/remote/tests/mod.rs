//! Resolving and fetching, against a server of this machine.

mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pipe_cache::{Digest, Durability, Store, Verify};
use proptest::prelude::*;
use tempfile::TempDir;

use super::lock::PinnedFile;
use super::*;
use server::{Fault, Repository, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server, a store, and a client with settings of its own.
struct World {
    server: Server,
    folder: TempDir,
    store: Store,
    token: Option<&'static str>,
    offline: bool,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open_with_cache(&folder.path().join("store"), Durability::Rename, None).unwrap();
        Self { server: Server::start(), folder, store, token: None, offline: false }
    }

    /// With a repository of two small files and a large one.
    fn with_repository(name: &str) -> Self {
        let world = Self::new();
        world.server.set(|server| _ = server.repositories.insert(name.to_owned(), repository()));
        world
    }

    fn fetcher(&self) -> Fetcher {
        let home = self.path("home");
        let variable = |name: &str| match name {
            "HF_ENDPOINT" | "ZENODO_ENDPOINT" => Some(self.server.url.clone()),
            "HF_HOME" => Some(home.to_str().unwrap().to_owned()),
            "HF_TOKEN" => self.token.map(str::to_owned),
            _ => None,
        };
        Fetcher::new(variable, self.offline)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn remote(&self, text: &str) -> Remote {
        Remote::parse(&text.replace("{url}", &self.server.url)).unwrap().unwrap()
    }

    fn resolve(&self, text: &str) -> Result<Resolved, FetchError> {
        self.fetcher().resolve(&self.remote(text), &Watch::silent())
    }

    fn fetch(&self, text: &str, resolved: &Resolved) -> Result<Vec<PinnedFile>, String> {
        self.fetch_watched(text, resolved, &Watch::silent())
    }

    fn fetch_watched(
        &self,
        text: &str,
        resolved: &Resolved,
        watch: &Watch<'_>,
    ) -> Result<Vec<PinnedFile>, String> {
        let revision = resolved.revision.as_deref();
        let fetched = self.fetcher().fetch(&self.store, &self.remote(text), revision, &resolved.files, watch);
        fetched.map_err(|failed| {
            failed.iter().map(|(path, error)| format!("{path}: {error}")).collect::<Vec<_>>().join("\n")
        })
    }

    /// Resolves and fetches; the contents by published path.
    fn contents(&self, text: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let resolved = self.resolve(text).map_err(|error| error.to_string())?;
        let files = self.fetch(text, &resolved)?;
        Ok(files.into_iter().map(|file| (file.path.clone(), self.content(&file))).collect())
    }

    fn content(&self, file: &PinnedFile) -> Vec<u8> {
        assert_eq!(self.store.verify_blob(&file.digest, file.size, Verify::Always).unwrap(), None);
        std::fs::read(self.store.blob_path(&file.digest)).unwrap()
    }

    /// No download is under way.
    fn assert_nothing_left(&self) {
        let left = std::fs::read_dir(self.path("store/tmp/downloads")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "downloads are left");
    }
}

/// 300,000 bytes that do not repeat.
fn large() -> Vec<u8> {
    (0..75_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    checksum("sha256", bytes)
}

fn checksum(algorithm: &str, bytes: &[u8]) -> String {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, bytes).unwrap();
    let digits = if algorithm == "md5" { 32 } else { 64 };
    let any = Checksum::new(algorithm, &"0".repeat(digits)).unwrap();
    any.of_file(&path).unwrap().to_string().split_once(':').unwrap().1.to_owned()
}

fn repository() -> Repository {
    let large = large();
    let lfs = format!(
        ", \"lfs\": {{\"sha256\": \"{}\", \"size\": {}, \"pointerSize\": 130}}",
        sha256(&large),
        large.len()
    );
    // git hash-object of "{}"
    let git = ", \"blobId\": \"9e26dfeeb6e641a33dae4961196235bdb965b21b\"".to_owned();
    Repository {
        commit: COMMIT.to_owned(),
        files: vec![
            ("config.json".to_owned(), b"{}".to_vec(), git),
            ("folder/a b.txt".to_owned(), b"text".to_vec(), String::new()),
            ("model.bin".to_owned(), large, lfs),
        ],
        gate: None,
    }
}

#[test]
fn a_repository_is_resolved_to_a_commit_and_fetched_from_there() {
    let world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main").unwrap();
    assert_eq!(resolved.revision.as_deref(), Some(COMMIT));
    let sizes: Vec<_> = resolved.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
    assert_eq!(sizes, [("config.json", Some(2)), ("folder/a b.txt", Some(4)), ("model.bin", Some(300_000))]);
    let files = world.fetch("hf:o/n@main", &resolved).unwrap();
    assert_eq!(world.content(&files[0]), b"{}");
    assert_eq!(world.content(&files[1]), b"text");
    assert_eq!(world.content(&files[2]), large());
    assert_eq!(
        files[0].checksum.as_ref().unwrap().to_string(),
        "git:9e26dfeeb6e641a33dae4961196235bdb965b21b"
    );
    world.assert_nothing_left();
    // A pattern fetches no more than it selects.
    world.server.requests();
    assert_eq!(world.contents("hf:o/n@main/*.json").unwrap(), [("config.json".to_owned(), b"{}".to_vec())]);
    assert_eq!(world.server.requests().len(), 2);
    // A data set has addresses of its own.
    world.server.set(|server| _ = server.repositories.insert("datasets/o/d".to_owned(), repository()));
    let found = world.contents(&format!("hf:datasets/o/d@{COMMIT}/folder")).unwrap();
    assert_eq!(found, [("folder/a b.txt".to_owned(), b"text".to_vec())]);
}

#[test]
fn a_record_of_zenodo_is_checked_by_its_checksums() {
    let world = World::new();
    let md5 = checksum("md5", b"an array");
    world.server.set(|server| {
        server.records.insert(
            "12".to_owned(),
            format!(
                "{{\"id\": 12, \"doi\": \"x\", \"files\": [{{\"key\": \"x.npz\", \"size\": 8, \"checksum\": \"md5:{md5}\"}}]}}"
            ),
        );
        server.files.insert("/zenodo/12/x.npz".to_owned(), b"an array".to_vec());
    });
    let resolved = world.resolve("zenodo:12/x.npz").unwrap();
    assert_eq!(resolved.revision.as_deref(), Some("12"));
    let files = world.fetch("zenodo:12/x.npz", &resolved).unwrap();
    assert_eq!(files[0].checksum.as_ref().unwrap().to_string(), format!("md5:{md5}"));
    assert_eq!(world.content(&files[0]), b"an array");
    let error = world.contents("zenodo:13/x.npz").unwrap_err();
    assert!(error.contains("no record 13"), "{error}");
    let error = world.contents("zenodo:12/y.npz").unwrap_err();
    assert!(error.contains("no file or folder `y.npz`"), "{error}");
    // Published as one thing, served as another of the same length.
    let other = World {
        store: Store::open_with_cache(&world.path("other"), Durability::Rename, None).unwrap(),
        ..world
    };
    other.server.set(|server| _ = server.files.insert("/zenodo/12/x.npz".to_owned(), b"an Array".to_vec()));
    let error = other.contents("zenodo:12/x.npz").unwrap_err();
    assert!(error.contains(&format!("published as md5:{md5}")), "{error}");
    assert!(!other.store.has_blob(&Digest::of(b"an Array"), 8));
}

#[test]
fn an_address_is_followed_and_checked() {
    let world = World::new();
    world.server.set(|server| _ = server.files.insert("/files/data.bin".to_owned(), large()));
    let found = world.contents("{url}/moved").unwrap();
    assert_eq!(found, [("moved".to_owned(), large())]);
    let right = format!("{{url}}/files/data.bin#sha256={}", sha256(&large()));
    assert_eq!(world.contents(&right).unwrap()[0].1, large());
    let wrong = format!("{{url}}/files/data.bin#sha256={}", sha256(b"other"));
    let error = world.contents(&wrong).unwrap_err();
    assert!(error.contains(&sha256(b"other")) && error.contains(&sha256(&large())), "{error}");
    let error = world.contents("{url}/files/none.bin").unwrap_err();
    assert!(error.contains("404"), "{error}");
    world.assert_nothing_left();
}

#[test]
fn a_broken_connection_is_gone_on_with() {
    let world = World::with_repository("models/o/n");
    world.server.set(|server| {
        server.faults =
            [Fault::Break(100_000), Fault::Status(503, Some(0)), Fault::Break(0), Fault::Break(50_000)]
                .into();
    });
    assert_eq!(world.contents("hf:o/n@main/model.bin").unwrap()[0].1, large());
    let ranges: Vec<_> = world.server.requests();
    let ranges: Vec<_> =
        ranges.iter().filter(|one| one.at_storage).map(|one| one.headers.get("range").cloned()).collect();
    let from = |bytes: u32| Some(format!("bytes={bytes}-"));
    assert_eq!(ranges, [None, from(100_000), from(100_000), from(100_000), from(150_000)]);
    world.assert_nothing_left();
}

#[test]
fn the_next_run_goes_on_where_one_was_stopped() {
    let world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main/model.bin").unwrap();
    world.server.set(|server| server.faults = [Fault::Break(120_000)].into());
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Watch::new(Arc::clone(&stop), 300_000, |news| {
        if matches!(news, News::Retry(..)) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    let error = world.fetch_watched("hf:o/n@main/model.bin", &resolved, &watch).unwrap_err();
    assert!(error.contains("cancelled"), "{error}");
    drop(watch);
    world.server.requests();
    let files = world.fetch("hf:o/n@main/model.bin", &resolved).unwrap();
    assert_eq!(world.content(&files[0]), large());
    let requests = world.server.requests();
    assert!(requests.iter().all(|one| one.headers["range"] == "bytes=120000-"), "{requests:?}");
}

#[test]
fn a_server_that_knows_no_parts_sends_the_whole_again() {
    let world = World::with_repository("models/o/n");
    world.server.set(|server| {
        server.ignores_ranges = true;
        server.faults = [Fault::Break(100_000), Fault::Break(200_000)].into();
    });
    assert_eq!(world.contents("hf:o/n@main/model.bin").unwrap()[0].1, large());
}

#[test]
fn what_was_begun_with_other_bytes_is_begun_again() {
    let world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main/model.bin").unwrap();
    // The first 100,000 bytes that came were wrong, as a proxy or a disk may make them.
    let mut wrong = large();
    wrong[5] ^= 1;
    let stop = Arc::new(AtomicBool::new(false));
    let watch = Watch::new(Arc::clone(&stop), 300_000, |news| {
        if matches!(news, News::Retry(..)) {
            stop.store(true, Ordering::Relaxed);
        }
    });
    world.server.set(|server| {
        server.faults = [Fault::Break(100_000)].into();
        server.repositories.get_mut("models/o/n").unwrap().files[2].1 = wrong;
    });
    world.fetch_watched("hf:o/n@main/model.bin", &resolved, &watch).unwrap_err();
    drop(watch);
    world.server.set(|server| server.repositories.get_mut("models/o/n").unwrap().files[2].1 = large());
    let files = world.fetch("hf:o/n@main/model.bin", &resolved).unwrap();
    assert_eq!(world.content(&files[0]), large());
}

#[test]
fn wrong_lengths_and_contents_are_never_accepted() {
    let world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main").unwrap();
    let serve = |index: usize, content: &[u8]| {
        world.server.set(|server| {
            server.repositories.get_mut("models/o/n").unwrap().files[index].1 = content.to_vec();
        });
    };
    serve(0, b"[]");
    serve(1, b"longer text");
    serve(2, &large()[..299_999]);
    let error = world.fetch("hf:o/n@main", &resolved).unwrap_err();
    for expected in [
        "config.json: it is published as git:9e26dfeeb6e641a33dae4961196235bdb965b21b",
        "folder/a b.txt: it is published with 4 bytes, and the server has 11",
        "model.bin: it is published with 300000 bytes, and the server has 299999",
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(std::fs::read_dir(world.path("store/cas")).unwrap().count(), 0, "nothing was stored");
}

#[test]
fn content_that_differs_from_the_lock_is_an_error_with_both_digests() {
    let world = World::with_repository("models/o/n");
    let mut resolved = world.resolve("hf:o/n@main/folder/a b.txt").unwrap();
    resolved.files[0].digest = Some(Digest::of(b"what it was"));
    let failed = world
        .fetcher()
        .fetch(&world.store, &world.remote("hf:o/n@main"), Some(COMMIT), &resolved.files, &Watch::silent())
        .unwrap_err();
    let (_, FetchError::Source { reason, help }) = &failed[0] else { panic!("{failed:?}") };
    for digest in [Digest::of(b"what it was"), Digest::of(b"text")] {
        assert!(reason.contains(&digest.to_hex()), "{reason}");
    }
    assert!(help.as_ref().unwrap().contains("remove the entry of `hf:o/n@main`"), "{help:?}");
    world.assert_nothing_left();
}

#[test]
fn refusals_say_what_to_do() {
    let mut world = World::with_repository("models/o/n");
    let refused = |world: &World, text: &str| match world.resolve(text) {
        Err(FetchError::Source { reason, help }) => format!("{reason} | {}", help.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    assert!(refused(&world, "hf:o/x@main").contains("has no `o/x`, or it is private"));
    assert!(refused(&world, "hf:o/n@v2").contains("`o/n` has no revision `v2`"));
    let text = refused(&world, "hf:o/n@main/modle.bin");
    assert!(text.contains("no file or folder `modle.bin`") && text.contains("`model.bin`"), "{text}");
    world.server.set(|server| {
        server.repositories.get_mut("models/o/n").unwrap().gate = Some("right".to_owned());
    });
    let text = refused(&world, "hf:o/n@main");
    assert!(text.contains("gated") && text.contains("HF_TOKEN") && text.contains("/o/n"), "{text}");
    world.token = Some("wrong");
    let text = refused(&world, "hf:o/n@main");
    assert!(text.contains("not granted") && text.contains("ask for access"), "{text}");
    world.token = Some("right");
    assert_eq!(world.contents("hf:o/n@main").unwrap().len(), 3);
    // The host that holds the large files never sees the token.
    let requests = world.server.requests();
    let (storage, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|one| one.at_storage);
    assert!(!storage.is_empty() && storage.iter().all(|one| !one.headers.contains_key("authorization")));
    assert!(hub.last().unwrap().headers.contains_key("authorization"));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in ["../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", ".", "new\nline", ""] {
        let world = World::with_repository("models/o/n");
        world.server.set(|server| {
            server.repositories.get_mut("models/o/n").unwrap().files[1].0 = name.to_owned();
        });
        let error = world.contents("hf:o/n@main").unwrap_err();
        assert!(error.contains("which is refused"), "{name:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
    let world = World::with_repository("models/o/n");
    world.server.set(|server| {
        server.repositories.get_mut("models/o/n").unwrap().files[1].0 = "model.bin".to_owned();
    });
    assert!(world.contents("hf:o/n@main").unwrap_err().contains("two files"));
}

#[test]
fn files_that_other_programs_fetched_are_used() {
    let mut world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main").unwrap();
    let snapshot = world.path("home/hub/models--o--n/snapshots").join(COMMIT);
    std::fs::create_dir_all(snapshot.join("folder")).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    std::fs::write(snapshot.join("folder/a b.txt"), "text").unwrap();
    // Damaged there: fetched.
    std::fs::write(snapshot.join("model.bin"), &large()[1..]).unwrap();
    world.server.requests();
    let files = world.fetch("hf:o/n@main", &resolved).unwrap();
    assert_eq!(world.content(&files[2]), large());
    let paths: Vec<String> = world.server.requests().into_iter().map(|request| request.path).collect();
    assert!(paths.iter().all(|path| path.contains("model.bin")), "{paths:?}");
    // Without a network what is there will do.
    world.store = Store::open_with_cache(&world.path("other"), Durability::Rename, None).unwrap();
    world.offline = true;
    let error = world.fetch("hf:o/n@main", &resolved).unwrap_err();
    assert_eq!(error, "model.bin: it is not in the store, and `--offline` forbids to fetch it");
    assert!(world.server.requests().is_empty());
    assert!(world.store.has_blob(&Digest::of(b"{}"), 2));
}

#[test]
fn failures_that_do_not_pass_end() {
    let world = World::with_repository("models/o/n");
    let resolved = world.resolve("hf:o/n@main/config.json").unwrap();
    world.server.set(|server| server.faults = vec![Fault::Status(503, Some(0)); 5].into());
    let error = world.fetch("hf:o/n@main/config.json", &resolved).unwrap_err();
    assert!(error.contains("503") && error.contains("5 times"), "{error}");
    world.server.set(|server| server.faults = [Fault::Status(429, Some(100_000))].into());
    let error = world.fetch("hf:o/n@main/config.json", &resolved).unwrap_err();
    assert!(error.contains("429") && error.contains("wait for 100000 s"), "{error}");
    // More bytes than were announced cannot come over HTTP, other bytes can.
    world.server.set(|server| server.faults = vec![Fault::Content(b"[]".to_vec()); 1].into());
    let error = world.fetch("hf:o/n@main/config.json", &resolved).unwrap_err();
    assert!(error.contains("published as git:"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Wherever connections break, the file is whole in the end.
    #[test]
    fn any_breaks_are_survived(breaks in proptest::collection::vec(1usize..120_000, 0..4)) {
        let world = World::with_repository("models/o/n");
        world.server.set(|server| server.faults = breaks.iter().map(|at| Fault::Break(*at)).collect());
        prop_assert_eq!(&world.contents("hf:o/n@main/model.bin").unwrap()[0].1, &large());
    }
}
