use super::*;
use crate::{Digest, LeaseAttempt};

fn is_acquired(attempt: &LeaseAttempt) -> bool {
    matches!(attempt, LeaseAttempt::Acquired(_))
}

#[test]
fn one_has_the_lease_the_other_learns_who() {
    let (folder, store) = store();
    let other = open(folder.path());
    let key = Digest::of(b"key");
    let held = store.lease(&key, "run 1").unwrap();
    assert!(is_acquired(&held));
    let LeaseAttempt::Busy(Some(holder)) = other.lease(&key, "run 2").unwrap() else { panic!("not busy") };
    assert_eq!(holder.run, "run 1");
    assert_eq!(&holder.owner, store.owner());
    assert_eq!(store.leases().unwrap(), [(key, holder)]);
    drop(held);
    assert!(is_acquired(&other.lease(&key, "run 2").unwrap()));
    assert_eq!(count(&store, "lease"), 0);
}

/// A file that was a lease becomes the next one; nothing of what it said before is left.
#[test]
fn a_lease_file_is_used_again_whole() {
    let (_folder, store) = store();
    let (first, second) = (Digest::of(b"first"), Digest::of(b"second"));
    let held = store.lease(&first, &"a long name of a run ".repeat(20)).unwrap();
    drop(held);
    let held = store.lease(&second, "run").unwrap();
    let LeaseAttempt::Acquired(lease) = &held else { panic!("not acquired") };
    assert_eq!(store.leases().unwrap(), [(second, lease.info().clone())]);
    // Who finds it taken gives the file back that was written for it.
    assert!(matches!(store.lease(&second, "another run").unwrap(), LeaseAttempt::Busy(Some(_))));
    drop(held);
    assert!(is_acquired(&store.lease(&second, "r").unwrap()));
    assert_eq!(count(&store, "lease"), 0);
}

/// A lease file as a process left it that has died.
fn leave_dead(store: &Store, key: &Digest) {
    let held = store.lease(key, "dead run").unwrap();
    let path = store.root().join("lease").join(format!("{key}.json"));
    let text = std::fs::read_to_string(&path).unwrap();
    drop(held);
    std::fs::write(&path, text.replace("\"started\":", "\"started\":1")).unwrap();
}

#[test]
fn a_dead_owners_lease_is_taken_over_by_exactly_one() {
    let (_folder, store) = store();
    let key = Digest::of(b"key");
    leave_dead(&store, &key);
    let held = store.lease(&Digest::of(b"held"), "run").unwrap();
    assert_eq!((store.leases().unwrap().len(), store.living_leases().unwrap().len()), (2, 1));
    drop(held);
    for _ in 0..20 {
        leave_dead(&store, &key);
        let attempts: Vec<LeaseAttempt> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| store.lease(&key, "run").unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(attempts.iter().filter(|attempt| is_acquired(attempt)).count(), 1);
    }
}

#[test]
fn an_unreadable_lease_is_busy_until_it_is_old() {
    let (_folder, store) = store();
    let key = Digest::of(b"key");
    let path = store.root().join("lease").join(format!("{key}.json"));
    std::fs::write(&path, "torn").unwrap();
    assert!(matches!(store.lease(&key, "run").unwrap(), LeaseAttempt::Busy(None)));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(301);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert!(is_acquired(&store.lease(&key, "run").unwrap()));
}

/// A lease is written before it gets its name, and is not flushed: a power loss may empty it.
#[test]
fn a_blank_lease_is_of_a_dead_owner() {
    let (_folder, store) = store();
    for blank in [&b""[..], &[0; 300]] {
        let key = Digest::of(blank);
        std::fs::write(store.root().join("lease").join(format!("{key}.json")), blank).unwrap();
        assert!(is_acquired(&store.lease(&key, "run").unwrap()));
    }
}

#[test]
fn releasing_leaves_a_lease_that_was_taken_over() {
    let (_folder, store) = store();
    let key = Digest::of(b"key");
    let held = store.lease(&key, "slow run").unwrap();
    let path = store.root().join("lease").join(format!("{key}.json"));
    std::fs::remove_file(&path).unwrap();
    let newer = store.lease(&key, "next run").unwrap();
    drop(held);
    assert!(path.exists());
    drop(newer);
    assert!(!path.exists());
}
