use super::*;
use crate::Digest;

#[test]
fn damage_is_told_and_repaired_only_when_asked() {
    let (_folder, store) = store();
    for key in 1..=4 {
        commit(&store, &action(key), &[("a", &format!("text {key}"))]);
    }
    let verify = |repair| store.verify(None, repair, |_, _| {}).unwrap();
    let sound = verify(false);
    assert!(sound.is_sound());
    assert_eq!((sound.records, sound.blobs, sound.bytes), (4, 4, 24));
    rot(&store.blob_path(&Digest::of(b"text 1")), b"Text 1");
    std::fs::remove_file(store.blob_path(&Digest::of(b"text 2"))).unwrap();
    damage(&store.record_path(&action(3).digest()), b"{}");
    let expected = |found: &crate::Verification| {
        assert_eq!(found.damaged_records, [action(3).digest()]);
        let damaged: Vec<Digest> = found.damaged_blobs.keys().copied().collect();
        let mut blobs = [Digest::of(b"text 1"), Digest::of(b"text 2")];
        blobs.sort();
        assert_eq!(damaged, blobs);
        let mut affected = [1, 2].map(|key| action(key).digest());
        affected.sort();
        assert_eq!(found.affected, affected);
    };
    expected(&verify(false));
    expected(&verify(false));
    assert_eq!(count(&store, "quarantine"), 0, "looking changes nothing");
    expected(&verify(true));
    // One blob, the damaged record, and the two that need what is lost.
    assert_eq!(count(&store, "quarantine"), 4);
    assert!(verify(false).is_sound());
    for key in 1..=3 {
        assert!(store.lookup(&action(key).digest()).unwrap().is_none(), "a damaged result is a miss");
        commit(&store, &action(key), &[("a", &format!("text {key}"))]);
    }
    assert!(verify(false).is_sound());
    let some = store.verify(Some(&[action(4).digest()]), false, |_, _| {}).unwrap();
    assert_eq!((some.records, some.blobs), (1, 1));
}
