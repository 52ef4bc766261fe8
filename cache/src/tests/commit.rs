use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{CommitOutcome, Digest, StoreError, table_digest, tree_digest};

#[test]
fn a_committed_action_is_a_hit_with_its_components_in_clear() {
    let (_folder, store) = store();
    let key = action(1);
    let committed = commit(&store, &key, &[("b/c.txt", ""), ("a.txt", "hello")]);
    assert_eq!(committed.outcome, CommitOutcome::Created);
    let record = store.lookup(&key.digest()).unwrap().unwrap();
    assert_eq!(record, committed.record);
    assert_eq!(record.components(), Some(&key));
    let output = &record.outputs["out"];
    assert_eq!(output.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a.txt", "b/c.txt"]);
    let expected = [("a.txt", 5, Digest::of(b"hello")), ("b/c.txt", 0, Digest::of(b""))];
    assert_eq!(output.content, tree_digest(expected));
    assert_eq!(output.bytes(), 5);
    let mode = std::fs::metadata(store.blob_path(&Digest::of(b"hello"))).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
}

#[test]
fn a_record_has_one_line_per_field_in_sorted_order() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "1")]);
    let text = std::fs::read_to_string(store.record_path(&action(1).digest())).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert_eq!(names, ["components", "digest", "format", "key", "meta", "outputs"]);
}

#[test]
fn staging_is_gone_after_the_commit_and_after_the_process() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "1")]);
    let staging = store.stage().unwrap();
    let abandoned = staging.folder().to_owned();
    drop(staging);
    assert!(!abandoned.exists());
    let tmp = store.root().join("tmp");
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 1, "the session's own folder");
    drop(store);
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
}

/// Folders are used again, under other names: a straggler of the first attempt writes into none of the second.
#[test]
fn a_committed_attempts_folder_serves_the_next_one_as_if_it_were_new() {
    let (_folder, store) = store();
    let ports = |staging: &crate::Staging| std::fs::read_dir(staging.folder()).unwrap().count();
    let staging = staged(&store, &[("a", "1")]).unwrap();
    let before = staging.folder().to_owned();
    staging.commit(&action(1), &[tree()], RecordMeta::default()).unwrap();
    let next = store.stage().unwrap();
    assert_ne!(next.folder(), before);
    assert!(std::fs::write(before.join("out-out").join("late"), "x").is_err());
    assert_eq!(ports(&next), 1, "the empty folder of the port came along");
    let port = next.output_folder("out").unwrap();
    assert_eq!(std::fs::read_dir(&port).unwrap().count(), 0);
    // What was not committed, or has anything left in it, is removed.
    drop(next);
    let staging = staged(&store, &[("a", "2")]).unwrap();
    std::fs::create_dir(staging.scratch()).unwrap();
    std::fs::write(staging.scratch().join("left"), "x").unwrap();
    let before = staging.folder().to_owned();
    staging.commit(&action(2), &[tree()], RecordMeta::default()).unwrap();
    assert!(!before.exists());
    assert_eq!(ports(&store.stage().unwrap()), 0);
}

#[test]
fn the_same_outputs_twice_are_a_success_and_the_first_record_stands() {
    let (_folder, store) = store();
    let first = commit(&store, &action(1), &[("a", "1")]);
    let second = commit(&store, &action(1), &[("a", "1")]);
    assert_eq!(second.outcome, CommitOutcome::Equal);
    assert_eq!(first.record, second.record);
}

#[test]
fn other_outputs_under_the_same_key_are_reported_and_the_first_record_wins() {
    let (_folder, store) = store();
    let first = commit(&store, &action(1), &[("a", "1")]);
    let second = commit(&store, &action(1), &[("a", "2")]);
    let CommitOutcome::Nondeterministic { attempted } = second.outcome else { panic!("{second:?}") };
    assert_eq!(second.record, first.record);
    assert_ne!(attempted["out"].content, first.record.outputs["out"].content);
    assert_eq!(store.lookup(&action(1).digest()).unwrap().unwrap(), first.record);
}

#[test]
fn two_actions_with_equal_bytes_share_one_blob() {
    let (_folder, store) = store();
    commit(&store, &action(1), &[("a", "same")]);
    commit(&store, &action(2), &[("b", "same"), ("c", "same")]);
    assert_eq!(count(&store, "cas"), 1);
}

#[test]
fn a_table_is_named_by_its_rows_and_not_by_its_bytes() {
    let (_folder, store) = store();
    let parts = |digest| vec![PartRecord { path: "part-00000.parquet".to_owned(), rows: 3, digest }];
    let contents: Vec<Digest> = ["one encoding", "another"]
        .iter()
        .zip(1..)
        .map(|(bytes, n)| {
            let staging = store.stage().unwrap();
            std::fs::write(staging.output_folder("out").unwrap().join("part-00000.parquet"), bytes).unwrap();
            let output = table(parts(Digest::of(b"rows")));
            let record = staging.commit(&action(n), &[output], RecordMeta::default()).unwrap().record;
            assert_eq!(record.outputs["out"].rows, Some(3));
            record.outputs["out"].content
        })
        .collect();
    assert_eq!(contents, [table_digest(&[Digest::of(b"rows")]); 2]);
}

#[test]
fn a_table_with_a_file_that_is_no_part_is_refused() {
    let (_folder, store) = store();
    let staging = store.stage().unwrap();
    std::fs::write(staging.output_folder("out").unwrap().join("stray"), "x").unwrap();
    let error = staging.commit(&action(1), &[table(vec![])], RecordMeta::default()).unwrap_err();
    assert!(matches!(error, StoreError::Output { .. }), "{error}");
    assert!(store.lookup(&action(1).digest()).unwrap().is_none());
}

#[test]
fn a_link_among_the_outputs_is_refused() {
    let (_folder, store) = store();
    let staging = store.stage().unwrap();
    std::os::unix::fs::symlink("/etc/passwd", staging.output_folder("out").unwrap().join("a")).unwrap();
    let error = staging.commit(&action(1), &[tree()], RecordMeta::default()).unwrap_err();
    assert!(error.to_string().contains("link"), "{error}");
}

#[test]
fn an_output_with_a_second_name_cannot_change_the_blob_later() {
    let (folder, store) = store();
    let mine = folder.path().join("mine");
    std::fs::write(&mine, "stored").unwrap();
    let staging = store.stage().unwrap();
    std::fs::hard_link(&mine, staging.output_folder("out").unwrap().join("a")).unwrap();
    staging.commit(&action(1), &[tree()], RecordMeta::default()).unwrap();
    std::fs::write(&mine, "edited").unwrap();
    assert_eq!(std::fs::read(store.blob_path(&Digest::of(b"stored"))).unwrap(), b"stored");
}

#[test]
fn ports_are_plain_names() {
    let (_folder, store) = store();
    let staging = store.stage().unwrap();
    for port in ["", "..", "a/b", "/etc"] {
        assert!(staging.output_folder(port).is_err(), "{port}");
    }
}

#[test]
fn two_processes_that_open_a_new_store_agree_on_its_id() {
    let folder = TempDir::new().unwrap();
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| open(folder.path()).uuid().to_owned())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_store_of_another_version_and_a_strangers_folder_are_refused() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("thesis.docx"), "mine").unwrap();
    let refused = |path: &Path| {
        let error = Store::open_with_cache(path, Durability::Rename, None).unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(folder.path()).contains("thesis.docx"));
    assert!(!folder.path().join("cas").exists());
    std::fs::write(folder.path().join("FORMAT"), "pipe-store 2\n").unwrap();
    assert!(refused(folder.path()).contains("pipe-store 2"));
    std::fs::write(folder.path().join("FORMAT"), "pipe-store 1\n../../x\n").unwrap();
    refused(folder.path());
}

#[test]
fn looking_for_a_store_makes_none() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store");
    assert!(Store::open_existing(&path, Durability::Rename).unwrap().is_none());
    assert!(!path.exists());
    let uuid = open(folder.path()).uuid().to_owned();
    assert_eq!(Store::open_existing(&path, Durability::Rename).unwrap().unwrap().uuid(), uuid);
}

#[test]
fn runs_sort_by_time_and_their_logs_stay_inside() {
    let (_folder, store) = store();
    let first = store.new_run().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2));
    let second = store.new_run().unwrap();
    let ids: Vec<String> = store.runs().unwrap().iter().map(|run| run.id().to_owned()).collect();
    assert_eq!(ids, [first.id(), second.id()]);
    let hostile = format!("x[a=../../../etc/{}]", "é".repeat(300));
    let log = first.log(&hostile, 1);
    assert_eq!(log.parent().unwrap(), first.path().join("logs"));
    assert!(log.file_name().unwrap().len() < 255);
    for id in ["..", "", "nothing", "/etc"] {
        assert!(store.run(id).is_err(), "{id}");
    }
}

/// The modes of all that lies below a folder, by relative path.
fn modes(root: &std::path::Path) -> Vec<(String, u32, bool)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            found.push((name, metadata.permissions().mode() & 0o7777, metadata.is_dir()));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

/// Whatever the umask of each: the folder says that it is a group's, and all below it follows.
#[test]
fn what_lies_in_a_shared_store_is_its_groups() {
    let shared = |mode: u32| {
        let folder = TempDir::new().unwrap();
        let root = folder.path().join("store");
        std::fs::create_dir(&root).unwrap();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(mode)).unwrap();
        let store = open(folder.path());
        commit(&store, &action(1), &[("a.txt", "one"), ("b/c.txt", "two")]);
        let run = store.new_run().unwrap();
        store.write_atomic(&run.path().join("plan.json"), b"{}").unwrap();
        let lease = store.lease(&action(2).digest(), "run").unwrap();
        assert!(matches!(lease, crate::LeaseAttempt::Acquired(_)));
        (modes(&root), folder)
    };
    let (found, _folder) = shared(0o2775);
    assert!(found.len() > 15, "{found:?}");
    for (name, mode, is_folder) in &found {
        // Two levels of staging are made by who writes outputs, and go with their process.
        if name.starts_with("tmp/") && name.contains("/b") {
            continue;
        }
        match is_folder {
            true => assert_eq!(mode & 0o2070, 0o2070, "{name}: {mode:o}"),
            // What is in the store is never written again; all else may be replaced by whoever comes.
            false if mode & 0o222 == 0 => assert_eq!(*mode, 0o444, "{name}"),
            false => assert_eq!(mode & 0o060, 0o060, "{name}: {mode:o}"),
        }
    }
    // Elsewhere the umask says.
    for mode in [0o2755, 0o775] {
        let (found, _folder) = shared(mode);
        assert!(found.iter().all(|(_, mode, _)| mode & 0o020 == 0), "{found:?}");
    }
}
