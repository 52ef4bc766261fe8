use std::time::{Duration, SystemTime};

use super::*;
use crate::Source;
use crate::fs::Disk;
use crate::sources::Sources;

fn write(folder: &Path, path: &str, text: &str) {
    let path = folder.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn hash(folder: &Path, pattern: &str) -> Result<Source, String> {
    Sources::open(Disk::default(), None).hash(folder, pattern).map_err(|error| error.to_string())
}

fn paths(folder: &Path, pattern: &str) -> Vec<String> {
    hash(folder, pattern).unwrap().files.iter().map(|file| file.path).collect()
}

#[test]
fn a_file_is_known_by_its_content_wherever_it_lies() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "a/one.npz", "same");
    write(folder.path(), "two.npz", "same");
    write(folder.path(), "three.npz", "other");
    let one = hash(folder.path(), "a/one.npz").unwrap();
    assert_eq!(one.digest, hash(folder.path(), "two.npz").unwrap().digest);
    assert_ne!(one.digest, hash(folder.path(), "three.npz").unwrap().digest);
    let file = one.files.get("source.npz").unwrap();
    assert_eq!((file.bytes, file.location), (4, folder.path().join("a/one.npz")));
}

#[test]
fn folders_and_globs_list_sorted_relative_paths() {
    let folder = TempDir::new().unwrap();
    for path in ["d/b.png", "d/a.png", "d/e/c.png", "d/e/f/g.txt", "d/.hidden/x.png", "other/z.png"] {
        write(folder.path(), path, path);
    }
    let here = folder.path();
    assert_eq!(paths(here, "d"), [".hidden/x.png", "a.png", "b.png", "e/c.png", "e/f/g.txt"]);
    assert_eq!(paths(here, "d/*.png"), ["a.png", "b.png"]);
    assert_eq!(paths(here, "d/**/*.png"), ["a.png", "b.png", "e/c.png"]);
    assert_eq!(paths(here, "./d/**"), ["a.png", "b.png", "e/c.png", "e/f/g.txt"]);
    assert_eq!(paths(here, "*/?.png"), ["d/a.png", "d/b.png", "other/z.png"]);
    assert_eq!(paths(here, &format!("{}/d/a*", here.display())), ["a.png"]);
    for nothing in ["d/*.jpg", "missing", "d/*/../x", ""] {
        assert!(hash(here, nothing).is_err(), "{nothing}");
    }
}

#[test]
fn links_inside_the_source_are_followed_and_others_refused() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    write(here, "d/a", "text");
    write(here, "secret", "text");
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, here.join(name)).unwrap();
    link("a", "d/inside");
    assert_eq!(paths(here, "d"), ["a", "inside"]);
    link("../secret", "d/outside");
    assert!(hash(here, "d").unwrap_err().contains("leaves the source"));
    std::fs::remove_file(here.join("d/outside")).unwrap();
    link(".", "d/circle");
    assert!(hash(here, "d").unwrap_err().contains("lies in"));
    link("d/a", "named");
    assert!(hash(here, "named").is_ok(), "the source itself may be a link");
}

fn make_old(path: &Path) {
    let old = SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
}

#[test]
fn a_settled_file_is_hashed_once_and_a_young_one_each_time() {
    let folder = TempDir::new().unwrap();
    let cache = folder.path().join("cache");
    write(folder.path(), "a", "text");
    make_old(&folder.path().join("a"));
    let hashed = || {
        let sources = Sources::open(Disk::default(), Some(&cache));
        sources.hash(folder.path(), "a").unwrap();
        sources.hashed_bytes()
    };
    // Its change time is now, whatever its modification time says.
    assert_eq!([hashed(), hashed()], [4, 4]);
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!([hashed(), hashed()], [4, 0]);
    write(folder.path(), "a", "TEXT");
    make_old(&folder.path().join("a"));
    assert_eq!(hashed(), 4, "a change is seen although length and modification time are old");
}

#[test]
fn a_damaged_memory_is_forgotten() {
    let folder = TempDir::new().unwrap();
    write(folder.path(), "sources", "1 2 three\n\u{0}\n");
    write(folder.path(), "a", "text");
    let sources = Sources::open(Disk::default(), Some(folder.path()));
    assert!(sources.hash(folder.path(), "a").is_ok());
}

#[test]
fn a_frozen_source_is_what_was_recorded_until_it_is_looked_at_again() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let cache = here.join("cache");
    let sources = || Sources::open(Disk::default(), Some(&cache));
    write(here, "d/a", "text");
    write(here, "d/b", "more");
    let first = sources().hash_frozen(here, "d").unwrap();
    assert_eq!(first.digest, sources().hash(here, "d").unwrap().digest);
    assert!(first.files.iter().all(|file| file.recorded == crate::modified(&file.location)));
    // Whatever happens to it: nothing is looked at.
    std::fs::remove_file(here.join("d/b")).unwrap();
    write(here, "d/a", "other");
    let again = sources();
    assert_eq!(again.hash_frozen(here, "d").unwrap(), first);
    assert_eq!(again.hashed_bytes(), 0);
    assert_eq!(again.recorded(&here.join("d"), |_, _| {}).unwrap(), first);
    assert!(again.recorded(&here.join("e"), |_, _| {}).is_none());
    let now = again.hash_again(here, "d", |_, _| {}).unwrap();
    assert_ne!(now.digest, first.digest);
    assert_eq!(again.refreeze(here, "d").unwrap().digest, now.digest);
    assert_eq!(sources().hash_frozen(here, "d").unwrap().digest, now.digest);
    // A record that cannot be read is none.
    for record in std::fs::read_dir(cache.join("frozen")).unwrap() {
        std::fs::write(record.unwrap().path(), "{").unwrap();
    }
    assert_eq!(sources().hash_frozen(here, "d").unwrap().digest, now.digest);
    // Without a memory there is nothing to trust.
    let forgetful = Sources::without_memory();
    assert_eq!(forgetful.hash_frozen(here, "d").unwrap().digest, now.digest);
    assert!(forgetful.recorded(&here.join("d"), |_, _| {}).is_none());
}

/// Even a file that keeps its times is read.
#[test]
fn looking_again_reads_what_is_remembered() {
    let folder = TempDir::new().unwrap();
    let cache = folder.path().join("cache");
    write(folder.path(), "a", "text");
    std::thread::sleep(Duration::from_millis(2100));
    let sources = Sources::open(Disk::default(), Some(&cache));
    sources.hash(folder.path(), "a").unwrap();
    sources.hash(folder.path(), "a").unwrap();
    assert_eq!(sources.hashed_bytes(), 4);
    sources.hash_again(folder.path(), "a", |_, _| {}).unwrap();
    assert_eq!(sources.hashed_bytes(), 8);
}
