use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use super::*;
use crate::{CollectOptions, Digest, Root, StoreError};

fn options(grace: Duration) -> CollectOptions {
    CollectOptions { grace, max_bytes: None, used: BTreeMap::new(), kept: BTreeSet::new() }
}

fn nothing() -> Result<Vec<Root>, StoreError> {
    Ok(Vec::new())
}

fn root(name: &str, keys: &[i64]) -> Root {
    Root { name: name.to_owned(), keys: keys.iter().map(|key| action(*key).digest()).collect() }
}

/// Removes what nothing keeps.
fn collect(store: &Store, roots: Vec<Root>) -> crate::Collected {
    let survey = store.survey(|| Ok(roots)).unwrap();
    let garbage = survey.garbage(&options(Duration::ZERO));
    store.collect(&survey, &garbage, Duration::from_secs(3600), false).unwrap()
}

fn has(store: &Store, key: i64) -> bool {
    store.lookup(&action(key).digest()).unwrap().is_some()
}

#[test]
fn what_a_root_keeps_stays_and_the_rest_goes_to_the_trash() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "one")]);
    commit(&store, &action(2), &[("a", "two"), ("b", "shared")]);
    commit(&store, &action(3), &[("a", "three"), ("b", "shared")]);
    let collected = collect(&store, vec![root("run", &[1, 3])]);
    assert_eq!((collected.records, collected.blobs, collected.bytes), (1, 1, 3));
    assert!(has(&store, 1) && has(&store, 3) && !has(&store, 2));
    assert!(store.record(&action(2).digest()).unwrap().is_none(), "no record outlives its blobs");
    assert_eq!(count(&store, "trash"), 1);
    // What was collected can be made again.
    commit(&store, &action(2), &[("a", "two"), ("b", "shared")]);
    assert!(has(&store, 2));
}

#[test]
fn what_is_young_stays() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "one")]);
    let survey = store.survey(nothing).unwrap();
    assert_eq!(survey.garbage(&options(Duration::from_secs(3600))), Default::default());
    assert_eq!(survey.garbage(&options(Duration::ZERO)).records.len(), 1);
}

#[test]
fn pins_and_living_leases_are_roots() {
    let (_folder, store) = store();
    for key in 1..=3 {
        commit(&store, &action(key), &[("a", &key.to_string())]);
    }
    store.pin("paper", &[action(1).digest()]).unwrap();
    let lease = store.lease(&action(2).digest(), "run").unwrap();
    assert_eq!(collect(&store, Vec::new()).records, 1);
    assert!(has(&store, 1) && has(&store, 2) && !has(&store, 3));
    drop(lease);
    assert!(store.unpin("paper").unwrap() && !store.unpin("paper").unwrap());
    assert_eq!(collect(&store, Vec::new()).records, 2);
    for bad in ["", "..", "a/b", ".hidden", "a b"] {
        assert!(matches!(store.pin(bad, &[]), Err(StoreError::PinName(_))), "{bad}");
    }
}

#[test]
fn orphans_and_old_trash_are_removed() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "one")]);
    std::fs::remove_file(store.record_path(&action(1).digest())).unwrap();
    let survey = store.survey(nothing).unwrap();
    let garbage = survey.garbage(&options(Duration::ZERO));
    assert_eq!((garbage.blobs.len(), garbage.bytes), (1, 3));
    store.collect(&survey, &garbage, Duration::from_secs(3600), false).unwrap();
    assert_eq!((count(&store, "trash"), store.usage().unwrap().blobs), (1, 0));
    std::thread::sleep(Duration::from_millis(20));
    let survey = store.survey(nothing).unwrap();
    store.collect(&survey, &Default::default(), Duration::from_millis(1), true).unwrap();
    assert_eq!(count(&store, "trash"), 0);
}

#[test]
fn a_limit_removes_the_least_recently_used_first_and_never_a_root() {
    let (_folder, store) = store();
    for key in 1..=4 {
        commit(&store, &action(key), &[("a", &format!("{key}").repeat(10))]);
    }
    let survey = store.survey(|| Ok(vec![root("run", &[1])])).unwrap();
    let mut options = options(Duration::ZERO);
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    options.used = [(2, 50), (3, 100), (4, 10)].map(|(key, age)| (action(key).digest(), ago(age))).into();
    options.max_bytes = Some(25);
    assert_eq!(survey.garbage(&options).records, [3, 2].map(|key| action(key).digest()));
    options.max_bytes = Some(40);
    assert_eq!(survey.garbage(&options).records, []);
    options.max_bytes = Some(0);
    assert_eq!(survey.garbage(&options).records, [3, 2, 4].map(|key| action(key).digest()));
}

/// A commit between the survey and the removal counts on the blob that it found.
#[test]
fn a_blob_that_was_touched_since_the_survey_stays() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "shared")]);
    let survey = store.survey(nothing).unwrap();
    let garbage = survey.garbage(&options(Duration::ZERO));
    std::thread::sleep(Duration::from_millis(20));
    commit(&store, &action(2), &[("a", "shared")]);
    let collected = store.collect(&survey, &garbage, Duration::ZERO, false).unwrap();
    assert_eq!((collected.records, collected.blobs), (1, 0));
    assert!(has(&store, 2));
}

#[test]
fn chains_lead_from_a_root_to_a_digest() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("x/y", "one")]).record;
    let survey = store.survey(|| Ok(vec![root("run 7", &[1]), root("pin p", &[1])])).unwrap();
    let places = |digest: &Digest| -> Vec<(String, String)> {
        survey.explain(digest).into_iter().map(|chain| (chain.root, chain.place)).collect()
    };
    let both = |place: &str| [("run 7", place), ("pin p", place)].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(places(&Digest::of(b"one")), both("out/x/y"));
    assert_eq!(places(&record.outputs["out"].content), both("out"));
    assert_eq!(places(&record.key), both(""));
    assert_eq!(places(&Digest::of(b"other")), []);
}
