use super::*;
use crate::Digest;

#[test]
fn what_was_begun_is_gone_on_with_by_the_next_process() {
    let (folder, store) = store();
    let mut partial = store.partial("https://a/b 1").unwrap().unwrap();
    partial.append(b"half ").unwrap();
    drop(partial);
    drop(store);
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(24 * 3600);
    std::fs::File::open(folder.path().join("store/tmp/downloads")).unwrap().set_modified(then).unwrap();
    let store = open(folder.path());
    assert_eq!(store.partial("https://a/b 2").unwrap().unwrap().bytes(), 0, "another download");
    let mut partial = store.partial("https://a/b 1").unwrap().unwrap();
    assert_eq!(partial.bytes(), 5);
    partial.append(b"and half").unwrap();
    let digest = partial.digest().unwrap();
    assert_eq!(digest, Digest::of(b"half and half"));
    let path = partial.path().to_owned();
    partial.store(digest).unwrap();
    assert!(!path.exists() && store.has_blob(&digest, 13) && !store.has_blob(&digest, 12));
    assert_eq!(store.verify_blob(&digest, 13, crate::Verify::Always).unwrap(), None);
    // Again, with the blob there already.
    let mut partial = store.partial("https://a/b 1").unwrap().unwrap();
    assert_eq!(partial.bytes(), 0);
    partial.append(b"half and half").unwrap();
    let path = partial.path().to_owned();
    partial.store(digest).unwrap();
    assert!(!path.exists() && store.has_blob(&digest, 13));
}

#[test]
fn one_process_at_a_time_writes_a_download() {
    let (_folder, store) = store();
    let mut partial = store.partial("x").unwrap().unwrap();
    assert!(store.partial("x").unwrap().is_none());
    partial.append(b"wrong").unwrap();
    partial.clear().unwrap();
    partial.append(b"right").unwrap();
    assert_eq!(std::fs::read(partial.path()).unwrap(), b"right");
    partial.discard().unwrap();
    assert_eq!(store.partial("x").unwrap().unwrap().bytes(), 0);
}

#[test]
fn what_nobody_goes_on_with_is_removed_after_two_weeks() {
    let (folder, store) = store();
    let path = store.partial("old").unwrap().unwrap().path().to_owned();
    let young = store.partial("young").unwrap().unwrap().path().to_owned();
    let then = std::time::SystemTime::now() - std::time::Duration::from_secs(15 * 24 * 3600);
    std::fs::File::options().append(true).open(&path).unwrap().set_modified(then).unwrap();
    open(folder.path());
    assert!(!path.exists() && young.exists());
}
