//! Weights in every format that is read, changed at random: tensors come of it, or an error that names the file.

use pipe_fuzz::fuzz;

use super::*;

fn tensors() -> BTreeMap<String, Tensor> {
    let tensor = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    [
        ("a.weight", tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2])),
        ("b", tensor(&[5.0], &[1])),
        ("empty", tensor(&[], &[0, 3])),
    ]
    .into_iter()
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .collect()
}

fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    write_tensors(&path, &tensors()).unwrap();
    std::fs::read(path).unwrap()
}

fn survives(bytes: &[u8]) {
    match read(bytes) {
        // What is read is as large as it says.
        Ok(tensors) => {
            let count: usize = tensors.values().map(Tensor::elem_count).sum();
            assert!(count <= bytes.len(), "{count} elements of {} bytes", bytes.len());
        }
        Err(error) => assert!(error.to_string().contains("weights.pt"), "{error}"),
    }
}

#[test]
fn fuzz_checkpoints() {
    let pickle = Pickle::new()
        .dict(&[("weight", &|pickle: Pickle| pickle.tensor("FloatStorage", "0", 2, (0, &[2], &[1])))])
        .end();
    let storages = [("0", f32s([1.0, 2.0]))];
    let seeds = [
        state_dict(&tensors()),
        zip(&members(pickle.clone(), &storages), true),
        legacy(pickle.clone(), &[("0", 2, f32s([1.0, 2.0]))]),
        safetensors(),
        pickle,
    ];
    let words: [&[u8]; 10] = [
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"cos\nsystem\n",
        b"\x80\x02",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"\x8a\x08",
        b"\"data_offsets\":[",
        b"\"dtype\":\"F64\"",
    ];
    fuzz("checkpoints", &seeds, &words, survives);
}
