//! Files made to do harm, damaged files, and files of other programs.

use proptest::prelude::*;

use super::*;

/// The most that this process ever had in memory, in bytes; `None` where the system does not say.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

fn tensor(pickle: Pickle) -> Pickle {
    pickle.tensor("FloatStorage", "0", 2, (0, &[2], &[1]))
}

fn plain() -> Vec<u8> {
    Pickle::new().dict(&[("weight", &tensor)]).end()
}

#[test]
fn a_pickle_that_calls_a_program_is_refused_by_name() {
    let call = |pickle: Pickle| pickle.raw(b"cos\nsystem\n").text("touch /tmp/pwned").raw(b"\x85R");
    let pickle = Pickle::new().dict(&[("weight", &tensor), ("x", &call)]).end();
    for bytes in [
        zip(&members(pickle.clone(), &[("0", f32s([1.0, 2.0]))]), false),
        legacy(pickle.clone(), &[("0", 2, f32s([1.0, 2.0]))]),
        pickle,
    ] {
        let message = refusal(&bytes);
        assert!(
            message.contains("`os.system`") && message.contains("nothing of it was executed"),
            "{message}"
        );
    }
    for (module, name) in [
        ("builtins", "eval"),
        ("posix", "system"),
        ("torch.hub", "load"),
        ("torch", "load"),
        ("numpy", "load"),
    ] {
        let pickle = Pickle::new().raw(format!("c{module}\n{name}\n.").as_bytes());
        assert!(refusal(&pickle.0).contains(&format!("`{module}.{name}`")));
    }
}

#[test]
fn sizes_that_are_not_there_are_refused() {
    let huge = 1u64 << 60;
    let dict = |class: &str, elements: u64, view: (u64, &[u64], &[u64])| {
        Pickle::new().dict(&[("weight", &|pickle| pickle.tensor(class, "0", elements, view))]).end()
    };
    let data = || f32s([1.0, 2.0]);
    for pickle in [
        dict("FloatStorage", huge, (0, &[huge], &[1])),
        dict("FloatStorage", 2, (0, &[huge], &[1])),
        dict("FloatStorage", 2, (0, &[huge], &[0])),
        dict("FloatStorage", 2, (0, &[1 << 40, 1 << 40], &[0, 0])),
        dict("FloatStorage", 2, (huge, &[1], &[1])),
        dict("FloatStorage", 2, (0, &[2], &[huge])),
        dict("DoubleStorage", 2, (0, &[2], &[1])),
        dict("FloatStorage", 2, (0, &[1; 17], &[1; 17])),
    ] {
        let message = refusal(&zip(&members(pickle.clone(), &[("0", data())]), false));
        assert!(message.contains("tensor `weight`"), "{message}");
        let count = if pickle.windows(6).any(|part| part == b"Double") { 1 } else { 2 };
        let message = refusal(&legacy(pickle, &[("0", count, data())]));
        assert!(message.contains("tensor `weight`"), "{message}");
    }
    let message = refusal(&legacy(plain(), &[("0", huge, data())]));
    assert!(message.contains("tensor `weight`") && message.contains("incomplete"), "{message}");

    let header =
        format!(r#"{{"weight":{{"dtype":"F32","shape":[{huge}],"data_offsets":[0,{}]}}}}"#, huge * 4);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    refusal(&bytes);
    let mut bytes = huge.to_le_bytes().to_vec();
    bytes.extend(b"{}");
    refusal(&bytes);
}

#[test]
fn archives_made_to_harm_are_refused() {
    let with = |member: Member| {
        let mut members = members(plain(), &[("0", f32s([1.0, 2.0]))]);
        members.push(member);
        refusal(&zip(&members, false))
    };
    for name in ["/etc/passwd", "../../x", "archive/../../x", "C:/x", "\\x", "archive\\..\\x"] {
        let message = with(Member::new(name, *b"x"));
        assert!(message.contains("leads out of the archive"), "{message}");
    }
    assert!(with(Member::new("archive/data.pkl", *b"x")).contains("two members"));
    // A member that claims a length it does not have, in 32 and in 64 bits.
    for claimed in [1 << 31, 1 << 60] {
        let message = with(Member { claimed: Some(claimed), ..Member::new("archive/data/9", *b"x") });
        assert!(message.contains("more bytes than the file has"), "{message}");
    }
    // A bomb has to be compressed; what is needed may not be.
    let mut bomb = members(plain(), &[("0", f32s([1.0, 2.0]))]);
    for (index, what) in [(0, "data.pkl"), (2, "data/0")] {
        bomb[index].method = 8;
        let message = refusal(&zip(&bomb, false));
        assert!(message.contains(what) && message.contains("compressed"), "{message}");
        bomb[index].method = 0;
    }
    let mut missing = members(plain(), &[]);
    assert!(refusal(&zip(&missing, false)).contains("archive/data/0"));
    missing[0].name = "x/y/data.pkl".to_owned();
    assert!(refusal(&zip(&missing, false)).contains("not one of PyTorch"));
    let mut foreign = members(plain(), &[("0", f32s([1.0, 2.0]))]);
    foreign[1].bytes = b"big".to_vec();
    assert!(refusal(&zip(&foreign, false)).contains("big endian"));
}

/// Values that refer to each other, or to one value many times, do not make the reader endless.
#[test]
fn values_that_contain_themselves_are_refused() {
    let members = |pickle: Vec<u8>| zip(&members(pickle, &[("0", f32s([1.0, 2.0]))]), false);
    refusal(&members(Pickle::new().raw(b"}q\x00").text("x").raw(b"h\x00s").end()));
    // Each of forty dictionaries holds the one before it twice: 2^40 paths.
    let doubled = (0..40u8).fold(tensor(Pickle::new()).raw(b"q\x00"), |pickle, level| {
        pickle.raw(b"}(").text("a").raw(&[b'h', level]).text("b").raw(&[b'h', level]).raw(&[
            b'u',
            b'q',
            level + 1,
        ])
    });
    assert!(refusal(&members(doubled.end())).contains("repeated too often"));
    let deep = (0..100).fold(Pickle::new(), |pickle, _| pickle.raw(b"}").text("a"));
    let deep = (0..100).fold(tensor(deep), |pickle, _| pickle.raw(b"s"));
    assert!(refusal(&members(deep.end())).contains("nested too deep"));
    // A parameter of itself, a tensor whose arguments are itself.
    refusal(&members(Pickle::new().raw(b"ctorch._utils\n_rebuild_parameter\n]q\x00h\x00a\x85R").end()));
    let long = "x".repeat(2000);
    assert!(refusal(&members(Pickle::new().dict(&[(long.as_str(), &tensor)]).end())).contains("name"));
}

/// Many overlapping views of a storage would take many times the file.
#[test]
fn views_that_multiply_the_file_are_refused() {
    let open = Pickle::new().raw(b"}(");
    let pickle = (0..200u64).fold(open, |pickle, index| {
        pickle.text(&index.to_string()).tensor("FloatStorage", "0", 100_000, (index, &[99_000], &[1]))
    });
    let bytes = zip(&members(pickle.raw(b"u").end(), &[("0", vec![0; 400_000])]), false);
    assert!(refusal(&bytes).contains("would take"));
}

#[test]
fn files_of_other_programs_are_refused() {
    for bytes in [
        b"".as_slice(),
        b"P",
        b"PK\x03\x04",
        b"hello world, no weights here",
        b"\x89PNG\r\n\x1a\n0000",
        b"\x80",
    ] {
        refusal(bytes);
    }
    assert!(refusal(&Pickle::new().raw(b"}").end()).contains("no tensor"));
}

/// A whole file, damaged in any way, is read or refused, without a panic and within its own size.
fn damage(bytes: &[u8], changes: &[(usize, u8)], cut: usize) {
    let mut bytes = bytes.to_vec();
    for (place, value) in changes {
        let place = place % bytes.len();
        bytes[place] = *value;
    }
    bytes.truncate(bytes.len() - cut % bytes.len());
    let before = peak_memory();
    let _ = read(&bytes);
    if let (Some(before), Some(after)) = (before, peak_memory()) {
        // The kernel's figure is not exact: it may even fall a little.
        let more = after.saturating_sub(before);
        assert!(more < 256 << 20, "reading {} bytes took {more} more", bytes.len());
    }
}

fn samples() -> Vec<Vec<u8>> {
    let data = || f32s([1.0, 2.0]);
    let mut safetensors =
        b"\x40\0\0\0\0\0\0\0{\"weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}".to_vec();
    let header = safetensors.len() - 8;
    safetensors[0] = header as u8;
    safetensors.extend(data());
    vec![
        zip(&members(plain(), &[("0", data())]), false),
        zip(&members(plain(), &[("0", data())]), true),
        legacy(plain(), &[("0", 2, data())]),
        safetensors,
    ]
}

#[test]
fn undamaged_samples_are_read() {
    for bytes in samples() {
        assert_eq!(floats(&read(&bytes).unwrap()["weight"]), [1.0, 2.0]);
    }
}

/// A file that ends anywhere before its end is never taken for a whole one.
#[test]
fn every_truncation_is_noticed() {
    for bytes in samples() {
        for length in 0..bytes.len() {
            refusal(&bytes[..length]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_end_without_a_panic(
        sample in 0usize..4,
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..6),
        cut in proptest::option::weighted(0.2, any::<usize>()),
    ) {
        damage(&samples()[sample], &changes, cut.unwrap_or(0));
    }

    #[test]
    fn random_files_end_without_a_panic(
        start in proptest::sample::select(vec![b"PK\x03\x04".to_vec(), b"\x80\x02".to_vec(), vec![9, 0, 0, 0, 0, 0, 0, 0, b'{'], vec![]]),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        damage(&[start, bytes, vec![0]].concat(), &[], 0);
    }
}
