//! The commit under death and power loss at each of its operations.

use std::sync::Arc;

use super::*;
use crate::faults::Faults;
use crate::fs::Disk;
use crate::{Reading, SharedOutputs, Verify};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Loss {
    Program,
    PowerWithNames,
    Power,
}

/// Files whose blobs lie in several folders, one of them shared with an earlier action.
const FILES: [(&str, &str); 3] = [("a", "one"), ("b/c", "two"), ("d", "shared")];

/// The store that dies, under a durability.
fn doomed(folder: &Path, durability: Durability) -> (Arc<Faults>, Store) {
    let faults = Arc::new(Faults::default());
    let mut disk = Disk::new(durability);
    disk.faults = Some(Arc::clone(&faults));
    let store = Store::open_on(disk, &folder.join("store"), None).unwrap();
    commit(&store, &action(0), &[("d", "shared")]);
    (faults, store)
}

/// Makes all sessions and leases look as if this process had died.
fn bury(root: &Path) {
    let mut owners: Vec<_> = std::fs::read_dir(root.join("tmp"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("owner.json"))
        .collect();
    owners.extend(std::fs::read_dir(root.join("lease")).unwrap().map(|entry| entry.unwrap().path()));
    for path in owners {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        std::fs::write(path, text.replace("\"boot\":\"", "\"boot\":\"earlier ")).unwrap();
    }
}

/// How a result is committed.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    /// Alone.
    Alone,
    /// With what else finishes at this time, and a flush at the end.
    Together,
}

impl Way {
    fn commit(self, store: &Store, key: &ActionKey) -> Result<(), crate::StoreError> {
        let lease = store.lease(&key.digest(), "run")?;
        if self == Self::Alone {
            return try_commit(store, key, &FILES).map(|_| ());
        }
        let committed = staged(store, &FILES)?.commit_soon(
            key,
            &[tree()],
            SharedOutputs::default(),
            RecordMeta::default(),
        );
        if let crate::LeaseAttempt::Acquired(lease) = lease {
            store.release(lease);
        }
        let late = store.flush();
        committed?;
        late.into_iter().try_for_each(|(_, outcome)| outcome.map(|_| ()))
    }
}

/// Dies at change number `n` of a commit; whether the commit ended before that.
fn dies_at(n: u64, way: Way, durability: Durability, loss: Loss) -> bool {
    let folder = TempDir::new().unwrap();
    let (faults, store) = doomed(folder.path(), durability);
    let key = action(1);
    faults.die_after(n);
    let committed = way.commit(&store, &key).is_ok();
    let root = store.root().to_owned();
    drop(store);
    if loss != Loss::Program {
        faults.lose_power(&root, loss == Loss::Power);
    }
    bury(&root);

    let store = Store::open_with_cache(&root, Durability::Full, None).unwrap();
    let found = store.verify(None, false, |_, _| {}).unwrap();
    if durability == Durability::Full {
        assert!(found.damaged_records.is_empty() && found.affected.is_empty(), "{found:?}");
    }
    let sound = |key: &ActionKey| {
        store.lookup(&key.digest()).unwrap().is_some_and(|record| {
            matches!(store.read(&record.outputs["out"], Verify::Always).unwrap(), Reading::Files(_))
        })
    };
    if durability == Durability::Full {
        assert_eq!(count(&store, "lease"), 0, "dead leases are swept");
        assert!(sound(&action(0)), "what was committed before stays");
        assert!(!committed || sound(&key), "a commit that returned is there");
        if let Some(record) = store.record(&key.digest()).unwrap() {
            assert!(sound(&key), "a record never stands without its blobs: {record:?}");
        }
    }
    // The verification above found what is damaged; the next run makes it whole.
    let again = commit(&store, &key, &FILES);
    assert!(sound(&key));
    assert_eq!(again.record.outputs["out"].files.len(), 3);
    committed
}

fn sweep(durability: Durability, loss: Loss) {
    for way in [Way::Alone, Way::Together] {
        let mut deaths = 0;
        while !dies_at(deaths, way, durability, loss) {
            deaths += 1;
            assert!(deaths < 200, "the commit never ends");
        }
        assert!(deaths > 10, "only {deaths} changes were seen");
    }
}

#[test]
fn a_commit_survives_the_death_of_the_program_at_every_operation() {
    sweep(Durability::Full, Loss::Program);
}

#[test]
fn a_commit_survives_a_power_loss_that_empties_unflushed_files() {
    sweep(Durability::Full, Loss::PowerWithNames);
}

#[test]
fn a_commit_survives_a_power_loss_that_forgets_unflushed_names() {
    sweep(Durability::Full, Loss::Power);
}

#[test]
fn without_flushing_a_power_loss_is_found_and_repaired() {
    sweep(Durability::Rename, Loss::PowerWithNames);
}

#[test]
fn one_failing_operation_costs_one_attempt_and_no_more() {
    for way in [Way::Alone, Way::Together] {
        for n in 0..200 {
            let folder = TempDir::new().unwrap();
            let (faults, store) = doomed(folder.path(), Durability::Full);
            let key = action(1);
            faults.fail_once_after(n);
            let first = way.commit(&store, &key);
            if faults.is_armed() {
                assert!(first.is_ok() && n > 10, "{way:?}: only {n} changes were seen");
                break;
            }
            if let Err(error) = way.commit(&store, &key) {
                panic!("{way:?}, change {n}: {error}, after {first:?}");
            }
            assert!(store.lookup(&key.digest()).unwrap().is_some());
            assert!(store.verify(None, false, |_, _| {}).unwrap().is_sound());
        }
    }
}

/// Keeping a checkpoint, evicting and collecting, with a death at each of their operations.
#[test]
fn upkeep_survives_the_death_of_the_program_at_every_operation() {
    for loss in [Loss::Program, Loss::PowerWithNames, Loss::Power] {
        for n in 0.. {
            assert!(n < 200, "it never ends");
            let folder = TempDir::new().unwrap();
            let (faults, store) = doomed(folder.path(), Durability::Full);
            commit(&store, &action(1), &FILES);
            commit(&store, &action(2), &[("x", "garbage"), ("d", "shared")]);
            faults.die_after(n);
            let keep = |store: &Store| -> Result<(), crate::StoreError> {
                store.checkpoints(&action(3).digest(), 2).save(7, |folder| {
                    std::fs::write(folder.join("state"), "half-way").unwrap();
                    Ok::<(), crate::StoreError>(())
                })
            };
            let upkeep = |store: &Store| -> Result<(), crate::StoreError> {
                keep(store)?;
                let keys = [0, 1].map(|key| action(key).digest()).to_vec();
                let roots = || Ok(vec![crate::Root { name: "run".to_owned(), keys: keys.clone() }]);
                let survey = store.survey(roots)?;
                let evictable = survey.evictable([action(1).digest()], &Default::default());
                assert_eq!(evictable.blobs.len(), 2, "the shared one stays");
                store.evict(&survey, &evictable, false)?;
                let survey = store.survey(roots)?;
                let options = crate::CollectOptions {
                    grace: std::time::Duration::ZERO,
                    max_bytes: None,
                    used: Default::default(),
                    kept: Default::default(),
                };
                store.collect(&survey, &survey.garbage(&options), std::time::Duration::ZERO, false)?;
                Ok(())
            };
            let done = upkeep(&store).is_ok();
            let root = store.root().to_owned();
            drop(store);
            if loss != Loss::Program {
                faults.lose_power(&root, loss == Loss::Power);
            }
            bury(&root);

            let store = Store::open_with_cache(&root, Durability::Full, None).unwrap();
            let found = store.verify(None, false, |_, _| {}).unwrap();
            assert!(found.is_sound(), "{loss:?}, change {n}: {found:?}");
            assert!(store.lookup(&action(0).digest()).unwrap().is_some());
            let key = action(1).digest();
            let known = store.lookup(&key).unwrap().or(store.evicted(&key).unwrap());
            assert!(known.is_some(), "{loss:?}, change {n}: what was evicted is known");
            let checkpoint = store.checkpoints(&action(3).digest(), 2).newest().unwrap();
            assert!(checkpoint.is_none_or(|one| one.step == 7));
            if done {
                assert!(store.lookup(&key).unwrap().is_none() && n > 20, "only {n} changes were seen");
                // Made again, it is a result like any other.
                commit(&store, &action(1), &FILES);
                assert!(store.lookup(&key).unwrap().is_some() && store.evicted(&key).unwrap().is_none());
                break;
            }
        }
    }
}

#[test]
fn a_dead_owners_staging_is_swept_and_a_living_ones_stays() {
    let (folder, store) = store();
    let staging = store.stage().unwrap();
    let other = open(folder.path());
    assert!(staging.folder().exists());
    bury(store.root());
    drop(other);
    open(folder.path());
    assert!(!staging.folder().exists());
}

#[test]
fn orphaned_blobs_are_taken_up_when_they_are_produced_again() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "x")]).record;
    std::fs::remove_file(store.record_path(&record.key)).unwrap();
    assert!(store.lookup(&record.key).unwrap().is_none());
    assert_eq!(commit(&store, &action(1), &[("a", "x")]).outcome, crate::CommitOutcome::Created);
    assert_eq!(count(&store, "quarantine"), 0);
}

#[test]
fn the_injector_counts() {
    let folder = TempDir::new().unwrap();
    let (faults, _store) = doomed(folder.path(), Durability::Full);
    assert!(faults.made() > 10);
}
