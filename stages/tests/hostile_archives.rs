//! A damaged or hostile archive is an error: never a panic, and never memory by a size that it claims. One of many
//! members takes no more memory than one of few.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;
use pipe_engine::StageError;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use testing::{run_on, source, tree};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

#[path = "../src/testing.rs"]
#[expect(dead_code, reason = "this test needs a part of what the unit tests need")]
mod testing;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Tests that measure memory run one after another.
static ALONE: Mutex<()> = Mutex::new(());

/// What reading a file of a few kilobytes may take: the buffers of the reader and of the table's writer.
const BOUND: f32 = 64.0;

/// A small valid file, its members stored or deflated.
fn valid(method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for split in ["train", "val", "test"] {
        for (name, shape, length) in [("images", "(3, 28, 28)", 3 * 784), ("labels", "(3, 1)", 3)] {
            let options = SimpleFileOptions::default().compression_method(method);
            archive.start_file(format!("{split}_{name}.npy"), options).unwrap();
            let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
            archive.write_all(b"\x93NUMPY\x01\x00\x76\x00").unwrap();
            archive.write_all(format!("{text:<117}\n").as_bytes()).unwrap();
            let data: Vec<u8> =
                (0..length).map(|index| (index % if length == 3 { 2 } else { 251 }) as u8).collect();
            archive.write_all(&data).unwrap();
        }
    }
    archive.finish().unwrap().into_inner()
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Mutation {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
    /// A number of four bytes becomes a very great one.
    Claim(prop::sample::Index),
    /// Digits of a header become others.
    Digits(prop::sample::Index, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use prop::sample::Index;
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        1 => any::<Index>().prop_map(Mutation::Cut),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        2 => any::<Index>().prop_map(Mutation::Claim),
        3 => (any::<Index>(), b'0'..=b'9').prop_map(|(at, digit)| Mutation::Digits(at, digit)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Set(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Mutation::Repeat(from, to) => {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.extend(piece);
        }
        Mutation::Claim(at) => {
            let at = at.index(bytes.len());
            for byte in bytes.iter_mut().skip(at).take(4) {
                *byte = 0xfe;
            }
        }
        Mutation::Digits(at, digit) => {
            let places: Vec<usize> =
                (1..bytes.len()).filter(|place| bytes[*place].is_ascii_digit()).collect();
            if !places.is_empty() {
                let place = places[at.index(places.len())];
                bytes[place - 1] = *digit;
                bytes[place] = *digit;
            }
        }
    }
}

#[test]
fn no_mutation_panics_or_takes_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let registry = pipe_stages::registry();
    let kind = registry.get("ingest.medmnist").unwrap();
    let params = serde_json::json!({ "dataset": "breastmnist", "allow_partial": true });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.npz");
    let files = [valid(CompressionMethod::Stored), valid(CompressionMethod::Deflated)];
    for bytes in &files {
        std::fs::write(&file, bytes).unwrap();
        let made = run_on(1, kind.as_ref(), &params, &[("source", &source(&file))]);
        assert!(made.is_ok(), "{:?}", made.err());
    }
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (0..files.len(), prop::collection::vec(mutation(), 1..6));
    let result = runner.run(&strategy, |(which, mutations)| {
        let mut bytes = files[which].clone();
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        std::fs::write(&file, &bytes).unwrap();
        let artifact = source(&file);
        let before = PEAK.current_usage_as_mb();
        PEAK.reset_peak_usage();
        let made = run_on(1, kind.as_ref(), &params, &[("source", &artifact)]);
        let peak = PEAK.peak_usage_as_mb() - before;
        prop_assert!(peak < BOUND, "{} MB for {} bytes", peak, bytes.len());
        if let Err(error) = made {
            prop_assert!(matches!(error, StageError::InputData { .. }), "{:?}", error);
        }
        Ok(())
    });
    result.unwrap();
}

/// A deflated member of zeros claims as many rows as it has: what is read is bounded by a block.
#[test]
fn a_bomb_is_refused_before_it_is_unpacked() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bomb.npz");
    let mut archive = ZipWriter::new(std::fs::File::create(&file).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    archive.start_file("train_images.npy", options).unwrap();
    let rows = 400_000u64;
    let text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 28, 28), }}");
    archive.write_all(b"\x93NUMPY\x01\x00\x76\x00").unwrap();
    archive.write_all(format!("{text:<117}\n").as_bytes()).unwrap();
    let zeros = vec![0; 784 * 1000];
    for _ in 0..rows / 1000 {
        archive.write_all(&zeros).unwrap();
    }
    archive.finish().unwrap();
    let registry = pipe_stages::registry();
    let kind = registry.get("ingest.medmnist").unwrap();
    let params = serde_json::json!({ "dataset": "breastmnist" });
    let error = run_on(1, kind.as_ref(), &params, &[("source", &source(&file))]).err().unwrap();
    assert!(error.to_string().contains("400000 samples, 546 are published"), "{error}");
}

/// Listed in memory, so many members would take 100 MB.
#[test]
fn many_members_are_listed_in_bounded_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let file = std::io::BufWriter::new(std::fs::File::create(folder.path().join("images.zip")).unwrap());
    let mut archive = ZipWriter::new(file);
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for number in 0..300_000u64 {
        // No order that a list may rely on.
        let name = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        archive.start_file(format!("images/PMC{name:020}_Fig1.jpg"), options).unwrap();
    }
    archive.finish().unwrap();
    let line = |number: u64| {
        let name = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        serde_json::json!({ "image": format!("PMC{name:020}_Fig1.jpg"), "caption": "one" }).to_string()
    };
    let lines = [line(0), line(299_999), line(300_000)].join("\n");
    std::fs::write(folder.path().join("train.jsonl"), lines).unwrap();
    let registry = pipe_stages::registry();
    let kind = registry.get("ingest.pmc").unwrap();
    let source = tree(folder.path(), "file");
    let before = PEAK.current_usage_as_mb();
    PEAK.reset_peak_usage();
    let error =
        run_on(1, kind.as_ref(), &serde_json::json!({ "max_rejects": 2 }), &[("source", &source)]).err();
    let peak = PEAK.peak_usage_as_mb() - before;
    assert!(peak < BOUND, "{peak} MB");
    // Two images are there and empty, the third is not there.
    let error = error.unwrap().to_string();
    assert!(error.contains("there is no image `PMC") && error.contains("max_rejects = 3"), "{error}");
}
