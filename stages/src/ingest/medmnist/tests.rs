use std::io::Write;
use std::path::{Path, PathBuf};

use pipe_engine::{AnyKind as _, Artifact, StageError};
use serde_json::json;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::IngestMedmnist;
use crate::ingest::npz::Npz;
use crate::table::{Table, metadata, read};
use crate::testing::{Made, data, run, run_on, source};

fn ingest(file: &Path, params: serde_json::Value) -> Result<Made, StageError> {
    run(&IngestMedmnist, &params, &[("source", &source(file))])
}

/// (value or other split, count) of the checks of one name and split.
fn checks(made: &Made, check: &str, split: &str) -> Vec<(String, i64)> {
    let table = read(&made["checks"]).unwrap();
    let (names, splits) = (table.strings("check").unwrap(), table.strings("split").unwrap());
    let (values, others) = (table.strings("value").unwrap(), table.strings("other").unwrap());
    let counts = table.int64("count").unwrap();
    (0..table.rows())
        .filter(|row| names[*row] == check && splits[*row] == split)
        .map(|row| {
            let value = if values[row].is_empty() { others[row] } else { values[row] };
            (value.to_owned(), counts[row].unwrap())
        })
        .collect()
}

fn counts(made: &Made, check: &str, split: &str) -> Vec<i64> {
    checks(made, check, split).into_iter().map(|(_, count)| count).collect()
}

fn strings<'a>(table: &'a Table, column: &str) -> Vec<&'a str> {
    table.strings(column).unwrap()
}

/// A published file of the sample data: one that was packed anew has other counts, perhaps.
fn genuine(path: &str) -> Option<PathBuf> {
    let file = data(path)?;
    let md5 = crate::ingest::checksum::md5_of(&file).unwrap();
    if super::catalogue::identify(&md5).is_none() {
        println!("SKIPPED published counts: `{}` is not as published", file.display());
        return None;
    }
    Some(file)
}

#[test]
fn breastmnist_has_the_published_counts() {
    let Some(file) = genuine("medmnist/breastmnist.npz") else { return };
    let made = ingest(&file, json!({ "dataset": "breastmnist", "md5": "require" })).unwrap();
    assert!(made.warnings.is_empty(), "{:?}", made.warnings);
    for (split, samples, classes) in
        [("train", 546, [147, 399]), ("val", 78, [21, 57]), ("test", 156, [42, 114])]
    {
        assert_eq!(counts(&made, "samples", split), [samples]);
        assert_eq!(counts(&made, "published samples", split), [samples]);
        assert_eq!(counts(&made, "class", split), classes);
        assert_eq!(checks(&made, "shape", split), [("28 x 28 x 1".to_owned(), samples)]);
    }
    // One image of the test split is that of a training image, to the byte.
    let test: Vec<(String, i64)> = checks(&made, "same image", "test");
    assert!(test.contains(&("train".to_owned(), 1)), "{test:?}");
    let images = read(&made["images"]).unwrap();
    assert_eq!(images.rows(), 780);
    let ids = strings(&images, "image_id");
    assert_eq!(
        (ids[0], ids[546], ids[779]),
        ("breastmnist/train/0", "breastmnist/val/0", "breastmnist/test/155")
    );
    let labels = metadata(&made["labels"]).unwrap();
    assert_eq!(labels["task"], "binary-class");
    assert_eq!(labels["label_names"], r#"["malignant","normal, benign"]"#);
    assert_eq!(labels["source_is_published"], "true");
    assert_eq!(labels["source_md5"], r#"{"breastmnist.npz":"750601b1f35ba3300ea97c75c52ff8f6"}"#);
}

/// A file of 28 pixels enlarged to 224 is not the file of 224 pixels: both sizes are told apart.
#[test]
fn size_and_enlargement_are_two_things() {
    let Some(file) = data("medmnist/fixture-retinamnist.npz") else { return };
    let params = |more: serde_json::Value| {
        let mut params = json!({ "dataset": "retinamnist", "allow_partial": true });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    let plain = ingest(&file, params(json!({ "size": 28 }))).unwrap();
    let enlarged = ingest(&file, params(json!({ "size": 28, "resize_to": 224 }))).unwrap();
    let table = read(&enlarged["images"]).unwrap();
    assert_eq!((table.metadata["size"].as_str(), table.metadata["resized_to"].as_str()), ("28", "224"));
    let decode = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8();
    let before = read(&plain["images"]).unwrap();
    for (small, large) in before.images("image").unwrap().iter().zip(table.images("image").unwrap()) {
        let (small, large) = (decode(&small.as_ref().unwrap().0), decode(&large.as_ref().unwrap().0));
        assert_eq!(large.dimensions(), (224, 224));
        assert!(large.enumerate_pixels().all(|(x, y, pixel)| pixel == small.get_pixel(x / 8, y / 8)));
    }
    // Pillow's nearest neighbour of a row of three pixels, enlarged to seven.
    let pixels: Vec<u8> = (0..9).collect();
    assert_eq!(super::nearest(&pixels, 3, 7, 1)[..7], [0, 0, 1, 1, 1, 2, 2]);
    let error = ingest(&file, params(json!({ "size": 224 }))).err().unwrap().to_string();
    assert!(error.contains("a side of 28, and `size` is 224"), "{error}");
    let problems =
        IngestMedmnist.resolve(&json!({ "dataset": "organmnist3d", "size": 128, "resize_to": 64 }));
    assert_eq!(problems.err().unwrap().len(), 2);
}

#[test]
fn adrenalmnist3d_has_the_published_counts() {
    let Some(file) = genuine("medmnist/adrenalmnist3d.npz") else { return };
    let made = ingest(&file, json!({ "dataset": "adrenalmnist3d", "md5": "require" })).unwrap();
    for (split, samples, classes) in
        [("train", 1188, [929, 259]), ("val", 98, [76, 22]), ("test", 298, [229, 69])]
    {
        assert_eq!(counts(&made, "samples", split), [samples]);
        assert_eq!(counts(&made, "class", split), classes);
        assert_eq!(checks(&made, "shape", split), [("28 x 28 x 28".to_owned(), samples)]);
        let shared: i64 = checks(&made, "same image", split).iter().map(|(_, count)| count).sum();
        println!("{split}: {:?}", checks(&made, "same image", split));
        if split == "test" {
            assert_eq!(shared, 0);
        }
    }
    let volumes = read(&made["volumes"]).unwrap();
    let Some(crate::table::Column::Binary(voxels)) = volumes.column("voxels") else { panic!("no voxels") };
    assert!(voxels.iter().flatten().all(|voxels| voxels.len() == 21_952));
    assert!(voxels.iter().flatten().flatten().all(|value| [0, 255].contains(value)));
    assert!(made["volumes"].files.len() > 50, "{} parts", made["volumes"].files.len());
}

/// The invented sets in published layouts: fourteen bits, colour, 64 pixels stored, cubes.
#[test]
fn every_layout_is_read_to_the_pixel() {
    for (flag, file, task, side) in [
        ("chestmnist", "fixture-chestmnist.npz", "multi-label, binary-class", 28),
        ("retinamnist", "fixture-retinamnist.npz", "ordinal-regression", 28),
        ("octmnist", "fixture-octmnist_64.npz", "multi-class", 64),
        ("nodulemnist3d", "fixture-nodulemnist3d.npz", "binary-class", 28),
    ] {
        let Some(file) = data(&format!("medmnist/{file}")) else { return };
        let complete = ingest(&file, json!({ "dataset": flag })).err().unwrap().to_string();
        assert!(complete.contains("are published; `allow_partial = true`"), "{complete}");
        let params = json!({ "dataset": flag, "allow_partial": true });
        let made = ingest(&file, params).unwrap();
        assert!(made.warnings[0].contains("which is not that of the published"), "{:?}", made.warnings);
        let labels = read(&made["labels"]).unwrap();
        assert_eq!(labels.metadata["task"], task);
        assert_eq!(labels.metadata["size"], side.to_string());
        assert_eq!(labels.metadata["source_is_published"], "false");
        let port = if flag.ends_with("3d") { "volumes" } else { "images" };
        let table = read(&made[port]).unwrap();
        assert_eq!(strings(&table, "image_id"), strings(&labels, "image_id"));
        let mut npz = Npz::open(&file).unwrap();
        let mut row = 0;
        for split in ["train", "val", "test"] {
            let mut array = npz.array(&format!("{split}_images")).unwrap();
            let shape = array.shape().to_vec();
            let length = shape[1..].iter().product::<u64>();
            for _ in 0..shape[0] {
                let raw = array.bytes(length).unwrap();
                let stored = if port == "volumes" {
                    let Some(crate::table::Column::Binary(voxels)) = table.column("voxels") else { panic!() };
                    voxels[row].clone().unwrap()
                } else {
                    let (png, path) = table.images("image").unwrap()[row].clone().unwrap();
                    assert_eq!(path, format!("{}.png", strings(&table, "image_id")[row].replace('/', "-")));
                    image::load_from_memory(&png).unwrap().into_bytes()
                };
                assert_eq!(raw, stored);
                row += 1;
            }
            drop(array);
            let mut array = npz.array(&format!("{split}_labels")).unwrap();
            let width = array.shape()[1];
            let published = array.integers(shape[0] * width).unwrap();
            let first = row - shape[0] as usize;
            let ours: Vec<i64> =
                labels.list_int64("label").unwrap()[first..row].iter().flatten().flatten().copied().collect();
            assert_eq!(ours, published);
        }
        assert_eq!(row, table.rows());
    }
}

#[test]
fn the_number_of_threads_and_the_place_of_the_file_change_nothing() {
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "a.npz", CompressionMethod::Deflated, &members(40));
    let elsewhere = folder.path().join("b.npz");
    std::fs::copy(&file, &elsewhere).unwrap();
    let params = json!({ "dataset": "breastmnist", "allow_partial": true, "shard_rows": 16 });
    let digests = |threads, file: &Path| {
        let made = run_on(threads, &IngestMedmnist, &params, &[("source", &source(file))]).unwrap();
        made.artifacts.values().map(|artifact| artifact.digest).collect::<Vec<_>>()
    };
    assert_eq!(digests(1, &file), digests(3, &elsewhere));
}

#[test]
fn splits_and_limit_choose_rows_from_the_front() {
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "a.npz", CompressionMethod::Stored, &members(9));
    let params =
        json!({ "dataset": "breastmnist", "allow_partial": true, "splits": ["test", "train"], "limit": 2 });
    let made = ingest(&file, params).unwrap();
    let images = read(&made["images"]).unwrap();
    let wanted = ["breastmnist/train/0", "breastmnist/train/1", "breastmnist/test/0", "breastmnist/test/1"];
    assert_eq!(strings(&images, "image_id"), wanted);
    assert_eq!(strings(&read(&made["labels"]).unwrap(), "image_id"), wanted);
    assert_eq!(counts(&made, "samples", "train"), [2]);
}

/// Copies in the wild have labels without a second axis, and other integers.
#[test]
fn repacked_labels_are_taken_and_the_file_is_named_as_not_published() {
    let folder = TempDir::new().unwrap();
    let mut all = members(5);
    for split in ["train", "val", "test"] {
        let labels: Vec<u8> = (0..5i64).flat_map(|row| (row % 2).to_be_bytes()).collect();
        replace(&mut all, &format!("{split}_labels"), npy(">i8", "(5,)", &labels));
    }
    let file = write(&folder, "a.npz", CompressionMethod::Deflated, &all);
    let made = ingest(&file, json!({ "dataset": "breastmnist", "allow_partial": true })).unwrap();
    let labels = read(&made["labels"]).unwrap();
    let first: Vec<_> = labels.list_int64("label").unwrap()[..3].iter().flatten().collect();
    assert_eq!(first, [&[0], &[1], &[0]]);
    assert_eq!(labels.metadata["source_is_published"], "false");
    assert_eq!(made.warnings.len(), 1);
}

#[test]
fn images_that_splits_share_are_counted() {
    let folder = TempDir::new().unwrap();
    let mut all = members(4);
    // Validation image 2 is training image 1, twice.
    let train = all.iter().find(|(name, _)| name == "train_images").unwrap().1.clone();
    let start = train.len() - 4 * 784;
    let val = all.iter_mut().find(|(name, _)| name == "val_images").unwrap();
    for row in [2, 3] {
        val.1[start + row * 784..start + (row + 1) * 784]
            .copy_from_slice(&train[start + 784..start + 2 * 784]);
    }
    let file = write(&folder, "a.npz", CompressionMethod::Stored, &all);
    let made = ingest(&file, json!({ "dataset": "breastmnist", "allow_partial": true })).unwrap();
    assert_eq!(checks(&made, "same image", "val"), [("val".to_owned(), 1), ("train".to_owned(), 2)]);
    assert_eq!(counts(&made, "same image", "test"), [0, 0, 0]);
    let table = read(&made["checks"]).unwrap();
    let Some(crate::table::Column::ListUtf8(examples)) = table.column("examples") else { panic!() };
    assert!(
        examples.iter().flatten().flatten().any(|pair| pair == "breastmnist/val/2 = breastmnist/train/1")
    );
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name_and_the_array() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, members: &[(String, Vec<u8>)]| {
        write(&folder, name, CompressionMethod::Deflated, members)
    };
    let partial = json!({ "dataset": "breastmnist", "allow_partial": true });
    let with = |name: &str, array: Vec<u8>| {
        let mut all = members(6);
        replace(&mut all, name, array);
        write("case.npz", &all)
    };
    let refused = |file: &Path, params: &serde_json::Value, member: &str, reason: &str| {
        let error = ingest(file, params.clone()).err().unwrap_or_else(|| panic!("{reason} was accepted"));
        let StageError::InputData { path, reason: found } = &error else { panic!("{error:?}") };
        assert_eq!(path, file);
        assert!(
            found.contains(member) && found.contains(reason),
            "`{found}` should say `{member}` and `{reason}`"
        );
    };

    let missing = folder.path().join("nowhere.npz");
    let artifact = Artifact {
        files: pipe_engine::ArtifactFile { path: "source.npz".into(), bytes: 0, location: missing.clone() }
            .into(),
        ..source(&write("good.npz", &members(6)))
    };
    let error = run(&IngestMedmnist, &partial, &[("source", &artifact)]).err().unwrap();
    assert!(matches!(&error, StageError::InputData { path, .. } if *path == missing), "{error:?}");

    let text = folder.path().join("text.npz");
    std::fs::write(&text, "not an archive").unwrap();
    refused(&text, &partial, "", "no NumPy archive");
    let whole = std::fs::read(write("good.npz", &members(6))).unwrap();
    let cut = folder.path().join("cut.npz");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refused(&cut, &partial, "", "truncated");

    let mut fewer = members(6);
    fewer.retain(|(name, _)| name != "val_labels");
    refused(
        &write("case.npz", &fewer),
        &partial,
        "val_labels.npy",
        "no such array; there are `train_images`",
    );
    let images = vec![7; 6 * 784];
    refused(
        &with("train_images", b"nonsense nonsense".to_vec()),
        &partial,
        "train_images.npy",
        "does not begin",
    );
    refused(&with("train_images", npy("|O", "(6, 28, 28)", &images)), &partial, "train_images.npy", "pickle");
    refused(
        &with("train_images", npy("<f4", "(6, 14, 14)", &images)),
        &partial,
        "train_images.npy",
        "integers are",
    );
    refused(
        &with("train_images", npy("<i2", "(6, 14, 28)", &images)),
        &partial,
        "train_images.npy",
        "unsigned bytes",
    );
    refused(
        &with("train_images", npy("|u1", "(3, 56, 28)", &images)),
        &partial,
        "train_images.npy",
        "[3, 56, 28]",
    );
    refused(
        &with("train_images", npy("|u1", "(2, 28, 28, 3)", &images)),
        &partial,
        "train_images.npy",
        "S, S]",
    );
    refused(&with("train_images", npy("|u1", "(7, 28, 28)", &images)), &partial, "train_images.npy", "takes");
    let many = "(9223372036854775807, 9223372036854775807, 28)";
    refused(&with("train_images", npy("|u1", many, &images)), &partial, "train_images.npy", "takes");
    refused(&with("train_images", npy_fortran(&images)), &partial, "train_images.npy", "Fortran");
    refused(&with("train_images", nested()), &partial, "train_images.npy", "brackets");
    refused(
        &with("val_labels", npy("|u1", "(5, 1)", &[0; 5])),
        &partial,
        "val_labels.npy",
        "there are 6 images",
    );
    refused(&with("val_labels", npy("|u1", "(6, 14)", &[0; 84])), &partial, "val_labels.npy", "binary-class");
    refused(
        &with("test_labels", npy("|u1", "(6, 1)", &[0, 1, 2, 0, 0, 0])),
        &partial,
        "test_labels.npy",
        "row 2",
    );
    refused(
        &with("test_labels", npy("|i1", "(6, 1)", &[0, 1, 255, 0, 0, 0])),
        &partial,
        "test_labels.npy",
        "[-1]",
    );
    let multi_label = json!({ "dataset": "chestmnist", "allow_partial": true });
    refused(&write("good.npz", &members(6)), &multi_label, "train_labels.npy", "[6, 14] is expected");
    let volume = json!({ "dataset": "nodulemnist3d", "allow_partial": true });
    refused(&write("good.npz", &members(6)), &volume, "train_images.npy", "S, S, S]");
    let whole = json!({ "dataset": "breastmnist" });
    refused(&write("good.npz", &members(6)), &whole, "train_images.npy", "546 are published");
    let genuine = json!({ "dataset": "breastmnist", "allow_partial": true, "md5": "require" });
    refused(&write("good.npz", &members(6)), &genuine, "", "not that of the published `breastmnist.npz`");
}

#[test]
fn another_published_set_is_not_taken_for_the_wanted_one() {
    let Some(file) = genuine("medmnist/breastmnist.npz") else { return };
    let error =
        ingest(&file, json!({ "dataset": "octmnist", "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("it is the published `breastmnist.npz`, but `dataset` is `octmnist`"), "{error}");
}

#[test]
fn damaged_data_are_found_by_the_checksum() {
    let folder = TempDir::new().unwrap();
    let file = write(&folder, "a.npz", CompressionMethod::Stored, &members(6));
    let mut bytes = std::fs::read(&file).unwrap();
    // In the middle of the first image.
    let place = 600;
    bytes[place] ^= 0x40;
    std::fs::write(&file, bytes).unwrap();
    let error =
        ingest(&file, json!({ "dataset": "breastmnist", "allow_partial": true })).err().unwrap().to_string();
    assert!(error.contains("its data are damaged"), "{error}");
}

/// Six arrays of `rows` grey images of 28 x 28, all different, with labels 0 and 1.
fn members(rows: usize) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (number, split) in ["train", "val", "test"].into_iter().enumerate() {
        let pixels: Vec<u8> = (0..rows * 784)
            .map(|index| ((index * 31 + index / 784 * 7 + number * 101) % 251) as u8)
            .collect();
        let labels: Vec<u8> = (0..rows).map(|row| (row % 2) as u8).collect();
        all.push((format!("{split}_images"), npy("|u1", &format!("({rows}, 28, 28)"), &pixels)));
        all.push((format!("{split}_labels"), npy("|u1", &format!("({rows}, 1)"), &labels)));
    }
    all
}

fn replace(members: &mut [(String, Vec<u8>)], name: &str, array: Vec<u8>) {
    members.iter_mut().find(|(known, _)| known == name).unwrap().1 = array;
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    header(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"), data)
}

fn npy_fortran(data: &[u8]) -> Vec<u8> {
    header("{'descr': '|u1', 'fortran_order': True, 'shape': (6, 28, 28), }", data)
}

/// A header that would make a recursive parser overflow its stack.
fn nested() -> Vec<u8> {
    header(&format!("{{'descr': {}, 'shape': ()}}", "[".repeat(4000)), &[])
}

fn header(text: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    let length = (text.len() + 11).next_multiple_of(64) - 10;
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.resize(10 + length - 1, b' ');
    bytes.push(b'\n');
    bytes.extend(data);
    bytes
}

fn write(folder: &TempDir, name: &str, method: CompressionMethod, members: &[(String, Vec<u8>)]) -> PathBuf {
    let path = folder.path().join(name);
    let mut archive = ZipWriter::new(std::fs::File::create(&path).unwrap());
    for (member, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(format!("{member}.npy"), options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
    path
}
