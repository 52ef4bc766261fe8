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
