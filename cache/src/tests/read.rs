use super::*;
use crate::{CommitOutcome, Digest, Reading, Record, Verify};

#[test]
fn a_flipped_bit_is_found_quarantined_and_repaired() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "hello")]).record;
    let blob = store.blob_path(&Digest::of(b"hello"));
    rot(&blob, b"hellp");
    assert!(store.lookup(&record.key).unwrap().is_some(), "nothing shows it to a plan");
    let Reading::Damaged(damages) = store.read(&record.outputs["out"], Verify::Once).unwrap() else {
        panic!("the flipped bit was not seen")
    };
    assert_eq!(std::fs::read(damages[0].quarantined.as_ref().unwrap()).unwrap(), b"hellp");
    assert!(store.lookup(&record.key).unwrap().is_none(), "records that name it are misses");
    let again = commit(&store, &action(1), &[("a", "hello")]);
    assert_eq!(again.outcome, CommitOutcome::Equal);
    assert!(matches!(store.read(&record.outputs["out"], Verify::Always).unwrap(), Reading::Files(_)));
}

#[test]
fn a_damaged_blob_is_replaced_when_it_is_produced_again_even_unread() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "hello")]);
    let blob = store.blob_path(&Digest::of(b"hello"));
    for bad in [&b"hellp"[..], b"", b"much longer than it was"] {
        damage(&blob, bad);
        commit(&store, &action(1), &[("a", "hello")]);
        assert_eq!(std::fs::read(&blob).unwrap(), b"hello");
    }
    assert_eq!(count(&store, "quarantine"), 3);
}

#[test]
fn a_short_blob_is_a_miss_already_for_the_plan() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "hello")]).record;
    damage(&store.blob_path(&Digest::of(b"hello")), b"");
    assert!(store.lookup(&record.key).unwrap().is_none());
    assert!(store.record(&record.key).unwrap().is_some(), "the record itself is sound");
}

#[test]
fn a_blob_that_was_written_to_after_its_record_is_hashed_by_the_plan() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "hello")]).record;
    let blob = store.blob_path(&Digest::of(b"hello"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    damage(&blob, b"hellp");
    assert!(store.lookup(&record.key).unwrap().is_none());
    damage(&blob, b"hello");
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&store.record_path(&record.key));
    assert!(store.lookup(&record.key).unwrap().is_some());
    let after = written(&store.record_path(&record.key));
    assert!(after > before, "it is hashed once");
    assert!(store.lookup(&record.key).unwrap().is_some());
    assert_eq!(written(&store.record_path(&record.key)), after);
}

#[test]
fn a_missing_blob_is_damage_without_quarantine() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "hello")]).record;
    std::fs::remove_file(store.blob_path(&Digest::of(b"hello"))).unwrap();
    let Reading::Damaged(damages) = store.read(&record.outputs["out"], Verify::Size).unwrap() else {
        panic!("the blob is missing")
    };
    assert_eq!(damages[0].quarantined, None);
}

#[test]
fn any_flipped_bit_in_a_record_is_a_miss_and_a_new_commit_repairs_it() {
    let (_folder, store) = store();
    let key = action(1);
    commit(&store, &key, &[("a", "hello")]);
    let path = store.record_path(&key.digest());
    let sound = std::fs::read(&path).unwrap();
    for position in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[position] ^= 1;
        let text = String::from_utf8(bytes.clone()).unwrap_or_default();
        assert_eq!(Record::from_text(&text), None, "bit 0 of byte {position}: {text}");
    }
    for bad in [&b""[..], b"{", b"null", b"\xff\xfe", &sound[..sound.len() - 2]] {
        damage(&path, bad);
        assert!(store.record(&key.digest()).unwrap().is_none());
        assert_eq!(commit(&store, &key, &[("a", "hello")]).outcome, CommitOutcome::Repaired);
        assert!(store.lookup(&key.digest()).unwrap().is_some());
    }
}

#[test]
fn a_record_under_another_key_is_a_miss() {
    let (_folder, store) = store();
    let record = commit(&store, &action(1), &[("a", "hello")]).record;
    let other = store.record_path(&action(2).digest());
    std::fs::create_dir_all(other.parent().unwrap()).unwrap();
    std::fs::copy(store.record_path(&record.key), &other).unwrap();
    assert!(store.lookup(&action(2).digest()).unwrap().is_none());
}

#[test]
fn a_record_with_a_path_that_leaves_the_artifact_is_a_miss() {
    let (_folder, store) = store();
    let mut record = commit(&store, &action(1), &[("a", "hello")]).record;
    let output = record.outputs.get_mut("out").unwrap();
    output.files[0].path = "../../etc/passwd".to_owned();
    output.content = output.content_digest();
    assert_eq!(Record::from_text(&record.to_text()), None);
}

#[test]
fn a_record_reads_back_as_it_was() {
    let (_folder, store) = store();
    let mut record = commit(&store, &action(1), &[("a", "hello")]).record;
    record.meta.duration_seconds = 0.1;
    record.meta.run = "a\nb\"digest\": ".to_owned();
    record.meta.peak_memory_bytes = Some(u64::MAX);
    let read = Record::from_text(&record.to_text()).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.components(), Some(&action(1)));
}

/// Nobody would say then why something runs; what the record gives is sound all the same.
#[test]
fn components_of_another_key_are_none() {
    let (_folder, store) = store();
    let mut record = commit(&store, &action(1), &[("a", "hello")]).record;
    record.key = action(2).digest();
    let read = Record::from_text(&record.to_text()).unwrap();
    assert_eq!(read.components(), None);
}
