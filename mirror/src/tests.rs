use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use pipe_cache::{ActionKey, Digest, Durability, Record, RecordMeta, StagedOutput, Store, Value};

use crate::objects::{Objects, blob_path, record_path};
use crate::{Blobs, Mirror, Mode, Place, RemoteLimits, Uploaded};

struct Bench {
    folder: tempfile::TempDir,
    memory: Arc<InMemory>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), memory: Arc::new(InMemory::new()) }
    }

    fn store(&self, name: &str) -> Store {
        Store::open_with_cache(&self.folder.path().join(name), Durability::Rename, None).unwrap()
    }

    fn mirror(&self, mode: Mode) -> Mirror {
        let prefix = object_store::path::Path::from("lab/cache");
        let objects = Objects::of_bucket(Arc::clone(&self.memory), prefix, "memory".to_owned());
        Mirror::with_objects(objects, mode).unwrap()
    }

    fn at(path: &str) -> object_store::path::Path {
        object_store::path::Path::from(format!("lab/cache/{path}"))
    }

    fn overwrite(&self, path: &str, bytes: &'static [u8]) {
        futures_util::FutureExt::now_or_never(self.memory.put(&Self::at(path), bytes.into()))
            .unwrap()
            .unwrap();
    }

    fn remove(&self, path: &str) {
        futures_util::FutureExt::now_or_never(self.memory.delete(&Self::at(path))).unwrap().unwrap();
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        let got = futures_util::FutureExt::now_or_never(self.memory.get(&Self::at(path))).unwrap().ok()?;
        Some(futures_util::FutureExt::now_or_never(got.bytes()).unwrap().unwrap().to_vec())
    }
}

fn key(name: &str) -> ActionKey {
    ActionKey {
        kind: "copy".to_owned(),
        implementation: 1,
        schema_version: 1,
        params: Value::string(name),
        inputs: Vec::new(),
        shard: None,
        numerics: "none".to_owned(),
    }
}

fn make(store: &Store, name: &str, files: &[(&str, &str)]) -> Record {
    let staging = store.stage().unwrap();
    let folder = staging.output_folder("out").unwrap();
    for (file, text) in files {
        std::fs::write(folder.join(file), text).unwrap();
    }
    let output = StagedOutput { port: "out".to_owned(), artifact_type: "tree".to_owned(), parts: None };
    staging.commit(&key(name), &[output], RecordMeta::default()).unwrap().record
}

fn send(mirror: &Mirror, record: &Record, store: &Store) -> Uploaded {
    mirror.send(record.clone(), Blobs::All, store);
    mirror.finish(|| false, |_, _| ())
}

fn text(store: &Store, record: &Record, path: &str) -> String {
    let file = record.outputs["out"].files.iter().find(|file| file.path == path).unwrap();
    std::fs::read_to_string(store.blob_path(&file.blob)).unwrap()
}

#[test]
fn what_one_store_has_made_another_one_gets() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let record = make(&one, "a", &[("x.txt", "hello"), ("y.txt", "")]);
    let uploaded = send(&bench.mirror(Mode::ReadWrite), &record, &one);
    assert_eq!((uploaded.records, uploaded.blobs, uploaded.bytes), (1, 2, 5));

    let mirror = bench.mirror(Mode::Read);
    let found = mirror.bring(&record.key, &other).unwrap();
    assert!(found.has_equal_outputs(&record));
    assert_eq!(text(&other, &found, "x.txt"), "hello");
    assert!(other.lookup(&record.key).unwrap().is_some());
    assert!(mirror.bring(&Digest::of(b"unknown"), &other).is_none());
    assert!(mirror.is_on(), "what is not there is no fault");
    // A second time nothing is sent.
    let again = send(&bench.mirror(Mode::ReadWrite), &record, &one);
    assert_eq!((again.records, again.blobs), (1, 0));
    // What only reads sends nothing.
    let quiet = make(&one, "b", &[("x.txt", "quiet")]);
    assert_eq!(send(&bench.mirror(Mode::Read), &quiet, &one), Uploaded::default());
    assert!(bench.read(&record_path(&quiet.key)).is_none());
}

#[test]
fn damaged_and_missing_files_are_misses_and_are_mended_by_who_makes_them_again() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let record = make(&one, "a", &[("x.txt", "hello"), ("y.txt", "world")]);
    send(&bench.mirror(Mode::ReadWrite), &record, &one);
    let [x, y] = [0, 1].map(|place| blob_path(&record.outputs["out"].files[place].blob));

    for damage in [Some(&b"hellO"[..]), Some(b"hell"), Some(b"hello and more"), None] {
        match damage {
            Some(bytes) => bench.overwrite(&x, bytes),
            None => bench.remove(&x),
        }
        let mirror = bench.mirror(Mode::ReadWrite);
        assert!(mirror.bring(&record.key, &other).is_none(), "{damage:?}");
        assert!(mirror.is_on());
        assert!(other.lookup(&record.key).unwrap().is_none());
        // The same action made here is the same bytes, and they replace what stood there.
        let uploaded = send(&mirror, &record, &one);
        assert_eq!((uploaded.blobs, uploaded.differing.len()), (1, 0), "{damage:?}");
        assert_eq!(bench.read(&x).unwrap(), b"hello");
        assert_eq!(bench.read(&y).unwrap(), b"world");
    }
    bench.mirror(Mode::Read).bring(&record.key, &other).unwrap();
}

#[test]
fn a_record_that_says_something_else_is_none_and_is_replaced() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let record = make(&one, "a", &[("x.txt", "hello")]);
    let stranger = make(&one, "b", &[("x.txt", "stranger")]);
    let path = record_path(&record.key);
    for text in ["", "{}", "\u{0}", &stranger.to_text(), &record.to_text().replace("x.txt", "../x")] {
        bench.overwrite(&path, text.to_owned().leak().as_bytes());
        let mirror = bench.mirror(Mode::ReadWrite);
        assert!(mirror.bring(&record.key, &other).is_none(), "{text}");
        send(&mirror, &record, &one);
        assert_eq!(bench.read(&path).unwrap(), record.to_text().as_bytes());
    }
}

#[test]
fn who_is_first_stands_and_other_outputs_are_kept_beside() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let first = make(&one, "a", &[("x.txt", "first")]);
    let second = make(&other, "a", &[("x.txt", "second")]);
    assert_eq!(first.key, second.key);
    send(&bench.mirror(Mode::ReadWrite), &first, &one);
    let uploaded = send(&bench.mirror(Mode::ReadWrite), &second, &other);
    assert_eq!(uploaded.differing, [first.key]);
    assert_eq!(bench.read(&record_path(&first.key)).unwrap(), first.to_text().as_bytes());
    let beside = crate::objects::alternative_path(&first.key, &Digest::of(second.to_text().as_bytes()));
    assert_eq!(bench.read(&beside).unwrap(), second.to_text().as_bytes());
    // Who has a result keeps it, whatever stands on the mirror.
    let kept = bench.mirror(Mode::Read).bring(&first.key, &other).unwrap();
    assert_eq!(text(&other, &kept, "x.txt"), "second");
}

#[test]
fn records_go_without_files_where_these_may_not_leave() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let record = make(&one, "a", &[("x.txt", "under licence")]);
    let mirror = bench.mirror(Mode::ReadWrite);
    mirror.send(record.clone(), Blobs::None, &one);
    assert_eq!(mirror.finish(|| false, |_, _| ()).blobs, 0);
    assert!(bench.read(&blob_path(&record.outputs["out"].files[0].blob)).is_none());
    assert!(bench.mirror(Mode::Read).bring(&record.key, &other).is_none());
}

#[test]
fn garbage_is_what_no_record_needs() {
    let bench = Bench::new();
    let one = bench.store("one");
    let record = make(&one, "a", &[("x.txt", "needed")]);
    let mirror = bench.mirror(Mode::ReadWrite);
    send(&mirror, &record, &one);
    let stray = blob_path(&Digest::of(b"stray"));
    bench.overwrite(&stray, b"stray");
    let young = RemoteLimits::default();
    assert!(mirror.garbage(&young).unwrap().blobs.is_empty(), "its record may be on its way");
    let limits = RemoteLimits { older_than: None, grace: std::time::Duration::ZERO };
    std::thread::sleep(std::time::Duration::from_millis(5));
    let garbage = mirror.garbage(&limits).unwrap();
    assert_eq!(
        (garbage.records.len(), garbage.blobs.as_slice(), garbage.bytes),
        (0, &[stray.clone()][..], 5)
    );
    mirror.collect(&garbage).unwrap();
    assert!(bench.read(&stray).is_none());
    let limits = RemoteLimits { older_than: Some(std::time::Duration::ZERO), ..limits };
    let all = mirror.garbage(&limits).unwrap();
    assert_eq!((all.records.len(), all.blobs.len()), (1, 1));
    mirror.collect(&all).unwrap();
    assert!(bench.read(&record_path(&record.key)).is_none());
}

#[test]
fn a_server_that_is_not_there_is_told_once_and_fails_nothing() {
    let bench = Bench::new();
    let store = bench.store("one");
    let record = make(&store, "a", &[("x.txt", "hello")]);
    // Nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let place = Place::parse("s3://bucket/x", Some(&endpoint)).unwrap();
    let mirror = Mirror::open(&place, Mode::ReadWrite).unwrap();
    assert!(mirror.bring(&record.key, &store).is_none());
    assert!(!mirror.is_on());
    assert!(mirror.why_off().unwrap().contains("s3://bucket/x"));
    assert!(mirror.why_off().is_none());
    assert_eq!(send(&mirror, &record, &store), Uploaded::default());
}

#[test]
fn who_does_not_wait_leaves_the_rest() {
    let bench = Bench::new();
    let one = bench.store("one");
    let records: Vec<Record> = (0..20).map(|n| make(&one, &n.to_string(), &[("x.txt", "hello")])).collect();
    for waits in [true, false] {
        let mirror = bench.mirror(Mode::ReadWrite);
        for record in &records {
            mirror.send(record.clone(), Blobs::All, &one);
        }
        if waits {
            mirror.finish(|| true, |_, _| ());
        }
        drop(mirror);
    }
    let uploaded = records.iter().map(|record| send(&bench.mirror(Mode::ReadWrite), record, &one).records);
    assert_eq!(uploaded.sum::<u64>(), 20);
}

#[test]
fn a_folder_is_a_mirror_too() {
    let bench = Bench::new();
    let (one, other) = (bench.store("one"), bench.store("other"));
    let folder = url::Url::from_file_path(bench.folder.path().join("shared folder")).unwrap();
    let place = Place::parse(folder.as_str(), None).unwrap();
    let record = make(&one, "a", &[("x.txt", "hello")]);
    let mirror = Mirror::open(&place, Mode::ReadWrite).unwrap();
    assert_eq!(send(&mirror, &record, &one).records, 1);
    assert!(Path::new(&bench.folder.path().join("shared folder").join(record_path(&record.key))).exists());
    Mirror::open(&place, Mode::Read).unwrap().bring(&record.key, &other).unwrap();
}

#[test]
fn addresses_without_a_place_or_with_secrets_are_refused() {
    for (text, part) in [
        ("bucket/x", "no address"),
        ("s3:///x", "s3://BUCKET"),
        ("ftp://x/y", "s3://BUCKET"),
        ("s3://me:secret@bucket/x", "never in an address"),
    ] {
        let error = Place::parse(text, None).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{error}");
    }
}
