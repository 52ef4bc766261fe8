use super::*;
use crate::{CommitOutcome, Durability, LeaseAttempt, SharedOutputs};

/// A store that flushes, and an independent handle on it, as another process has it.
fn two() -> (TempDir, Store, Store) {
    let folder = TempDir::new().unwrap();
    let open = || Store::open_with_cache(&folder.path().join("store"), Durability::Full, None).unwrap();
    let stores = (open(), open());
    (folder, stores.0, stores.1)
}

fn soon(store: &Store, key: &ActionKey, text: &str) -> Committed {
    staged(store, &[("a", text)])
        .unwrap()
        .commit_soon(key, &[tree()], SharedOutputs::default(), RecordMeta::default())
        .unwrap()
}

#[test]
fn what_waits_is_seen_by_its_process_and_by_others_after_the_flush() {
    let (_folder, store, other) = two();
    let key = action(1).digest();
    let LeaseAttempt::Acquired(lease) = store.lease(&key, "run").unwrap() else { panic!("it is free") };
    assert_eq!(soon(&store, &action(1), "one").outcome, CommitOutcome::Created);
    store.release(lease);
    assert!(store.lookup(&key).unwrap().is_some() && store.record(&key).unwrap().is_some());
    // Whoever does not see it yet sees that someone works on it.
    if other.lookup(&key).unwrap().is_none() {
        assert!(matches!(other.lease(&key, "run").unwrap(), LeaseAttempt::Busy(Some(_))) || has(&other));
    }
    assert!(store.flush().is_empty());
    assert!(has(&other));
    assert_eq!((count(&store, "lease"), count(&store, "quarantine")), (0, 0));
    assert!(store.flush().is_empty(), "there is nothing to flush");
}

fn has(store: &Store) -> bool {
    store.lookup(&action(1).digest()).unwrap().is_some()
}

#[test]
fn many_commits_take_few_flushes() {
    let folder = TempDir::new().unwrap();
    let faults = std::sync::Arc::new(crate::faults::Faults::default());
    let mut disk = crate::fs::Disk::new(Durability::Full);
    disk.faults = Some(std::sync::Arc::clone(&faults));
    let store = Store::open_on(disk, &folder.path().join("store"), None).unwrap();
    let before = faults.flushes();
    for n in 0..100 {
        soon(&store, &action(n), &n.to_string());
    }
    assert!(store.flush().is_empty());
    let flushes = faults.flushes() - before;
    assert!(flushes <= 20, "{flushes} flushes");
    assert!((0..100).all(|n| store.lookup(&action(n).digest()).unwrap().is_some()));
}

#[test]
fn another_result_that_stands_is_told_at_once() {
    let (_folder, store, _) = two();
    commit(&store, &action(1), &[("a", "one")]);
    assert_eq!(soon(&store, &action(1), "one").outcome, CommitOutcome::Equal);
    assert!(matches!(soon(&store, &action(1), "two").outcome, CommitOutcome::Nondeterministic { .. }));
    assert!(store.flush().is_empty());
}

#[test]
fn another_process_that_was_first_is_told_by_the_flush() {
    let (_folder, store, other) = two();
    soon(&store, &action(1), "one");
    // Whichever is linked first stands, and one of the two is told.
    let theirs = commit(&other, &action(1), &[("a", "two")]).outcome;
    let late = store.flush();
    match theirs {
        CommitOutcome::Created => {
            assert!(
                matches!(late[..], [(key, Ok(CommitOutcome::Nondeterministic { .. }))] if key == action(1).digest())
            );
        }
        _ => assert!(late.is_empty()),
    }
}

#[test]
fn a_flush_that_fails_makes_no_record() {
    let folder = TempDir::new().unwrap();
    let faults = std::sync::Arc::new(crate::faults::Faults::default());
    let mut disk = crate::fs::Disk::new(Durability::Full);
    disk.faults = Some(std::sync::Arc::clone(&faults));
    let store = Store::open_on(disk, &folder.path().join("store"), None).unwrap();
    soon(&store, &action(1), "one");
    faults.die_after(0);
    let late = store.flush();
    // Unless the thread was faster than the fault.
    if !has(&store) {
        assert!(late.iter().any(|(_, outcome)| outcome.is_err()));
    }
}
