//! The formats as they are, and as nobody should write them.

mod fuzz;
mod hostile;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use self::writer::{Member, Pickle, f32s, legacy, members, zip};
use super::{CheckpointError, TensorFile, check_finite, write_tensors};

/// `torch.save` of a state dict of floats, as [`TensorFile`] reads it.
pub(crate) fn state_dict(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut pickle = Pickle::new().raw(b"}(");
    let mut storages = Vec::new();
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        let shape: Vec<u64> = tensor.dims().iter().map(|size| *size as u64).collect();
        let mut strides = vec![1u64; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        let count = tensor.elem_count() as u64;
        let key = index.to_string();
        pickle = pickle.text(name).tensor("FloatStorage", &key, count, (0, &shape, &strides));
        storages.push((key, f32s(floats(tensor))));
    }
    let storages: Vec<(&str, Vec<u8>)> =
        storages.iter().map(|(key, bytes)| (key.as_str(), bytes.clone())).collect();
    zip(&members(pickle.raw(b"u").end(), &storages), false)
}

/// A file that is removed at the end of the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(bytes: &[u8]) -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("pipe-checkpoint-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn read(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
    let file = Temporary::new(bytes);
    TensorFile::open(&file.0, "weights.pt")?.read(&Device::Cpu, |_| true)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The message of the error that reading ends with.
fn refusal(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok(tensors) => panic!("read {} tensors", tensors.len()),
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("weights.pt"), "{message}");
            message
        }
    }
}

#[test]
fn every_element_type() {
    let bytes = |values: &[&[u8]]| values.concat();
    let types: [(&str, Vec<u8>, DType, [f32; 2]); 10] = [
        ("FloatStorage", f32s([1.5, -2.0]), DType::F32, [1.5, -2.0]),
        ("DoubleStorage", bytes(&[&1.5f64.to_le_bytes(), &(-2.0f64).to_le_bytes()]), DType::F64, [1.5, -2.0]),
        (
            "HalfStorage",
            bytes(&[&f16::from_f32(1.5).to_le_bytes(), &f16::from_f32(-2.0).to_le_bytes()]),
            DType::F32,
            [1.5, -2.0],
        ),
        (
            "BFloat16Storage",
            bytes(&[&bf16::from_f32(1.5).to_le_bytes(), &bf16::from_f32(-2.0).to_le_bytes()]),
            DType::F32,
            [1.5, -2.0],
        ),
        ("LongStorage", bytes(&[&7i64.to_le_bytes(), &(-8i64).to_le_bytes()]), DType::I64, [7.0, -8.0]),
        ("IntStorage", bytes(&[&7i32.to_le_bytes(), &(-8i32).to_le_bytes()]), DType::I32, [7.0, -8.0]),
        ("ShortStorage", bytes(&[&7i16.to_le_bytes(), &(-8i16).to_le_bytes()]), DType::I16, [7.0, -8.0]),
        ("CharStorage", vec![7, 0xf8], DType::I16, [7.0, -8.0]),
        ("ByteStorage", vec![7, 248], DType::U8, [7.0, 248.0]),
        ("BoolStorage", vec![0, 1], DType::U8, [0.0, 1.0]),
    ];
    for (class, data, dtype, expected) in types {
        let pickle =
            Pickle::new().dict(&[("x", &|pickle| pickle.tensor(class, "0", 2, (0, &[2], &[1])))]).end();
        for wide in [false, true] {
            let tensors = read(&zip(&members(pickle.clone(), &[("0", data.clone())]), wide)).unwrap();
            assert_eq!(tensors["x"].dtype(), dtype, "{class}");
            assert_eq!(floats(&tensors["x"]), expected, "{class}");
        }
        let tensors = read(&legacy(pickle, &[("0", 2, data)])).unwrap();
        assert_eq!(floats(&tensors["x"]), expected, "{class}");
    }
}

/// Parts, transposes and empty tensors of one storage, in both containers.
#[test]
fn views_of_a_shared_storage() {
    let pickle = Pickle::new()
        .dict(&[
            ("whole", &|pickle| pickle.tensor("FloatStorage", "a", 6, (0, &[2, 3], &[3, 1]))),
            ("transposed", &|pickle| pickle.tensor("FloatStorage", "a", 6, (0, &[3, 2], &[1, 3]))),
            ("part", &|pickle| pickle.tensor("FloatStorage", "a", 6, (1, &[2], &[2]))),
            ("scalar", &|pickle| pickle.tensor("FloatStorage", "a", 6, (5, &[], &[]))),
            ("none", &|pickle| pickle.tensor("FloatStorage", "a", 6, (0, &[8, 0, 2], &[8, 8, 1]))),
            ("empty", &|pickle| pickle.tensor("FloatStorage", "b", 0, (0, &[0], &[1]))),
            // An axis of length 1 may have any stride.
            ("row", &|pickle| pickle.tensor("FloatStorage", "a", 6, (0, &[1, 6], &[99, 1]))),
        ])
        .end();
    let data = f32s((0..6).map(|value| value as f32));
    let zipped = zip(&members(pickle.clone(), &[("a", data.clone()), ("b", vec![])]), false);
    for bytes in [zipped, legacy(pickle, &[("a", 6, data), ("b", 0, vec![])])] {
        let tensors = read(&bytes).unwrap();
        assert_eq!(tensors["whole"].to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
        assert_eq!(tensors["transposed"].to_vec2::<f32>().unwrap(), [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]);
        assert_eq!(floats(&tensors["part"]), [1.0, 3.0]);
        assert_eq!((tensors["scalar"].rank(), floats(&tensors["scalar"])), (0, vec![5.0]));
        assert_eq!(tensors["none"].dims(), [8, 0, 2]);
        assert_eq!(tensors["empty"].dims(), [0]);
        assert_eq!(tensors["row"].dims(), [1, 6]);
    }
}

/// What training programs wrap around a state dict is taken off.
#[test]
fn weights_are_found_in_their_wrappers() {
    let one = |pickle: Pickle| pickle.tensor("FloatStorage", "0", 1, (0, &[1], &[1]));
    let names = |pickle: Pickle| -> Vec<String> {
        read(&zip(&members(pickle.end(), &[("0", f32s([1.0]))]), false)).unwrap().into_keys().collect()
    };
    assert_eq!(names(Pickle::new().dict(&[("a.b", &one)])), ["a.b"]);
    // A trainer's dictionary; the optimiser's tensors are no weights.
    let wrapped = Pickle::new().dict(&[
        ("epoch", &|pickle| pickle.short(3)),
        ("state_dict", &|pickle| pickle.dict(&[("module.a", &one), ("module.b.c", &one)])),
        ("optimizer", &|pickle| pickle.dict(&[("state", &one)])),
    ]);
    assert_eq!(names(wrapped), ["a", "b.c"]);
    let wrapped = Pickle::new()
        .dict(&[("model", &|pickle| pickle.dict(&[("module.a", &one), ("other.b", &one)])), ("optim", &one)]);
    assert_eq!(names(wrapped), ["module.a", "other.b"]);
    // Two state dicts beside each other.
    let nested = Pickle::new().dict(&[
        ("image", &|pickle| pickle.dict(&[("w", &one)])),
        ("text", &|pickle| pickle.dict(&[("w", &one)])),
    ]);
    assert_eq!(names(nested), ["image.w", "text.w"]);
    assert_eq!(names(one(Pickle::new())), [""], "a bare tensor");
    // A parameter around a tensor.
    let parameter = one(Pickle::new().raw(b"ctorch._utils\n_rebuild_parameter\n("))
        .raw(b"\x88ccollections\nOrderedDict\n)RtR");
    assert_eq!(names(parameter), [""]);
    // A TorchScript module: attributes are its names.
    let module = |pickle: Pickle, inner: &dyn Fn(Pickle) -> Pickle| {
        inner(pickle.raw(b"c__torch__.some\nModule\n)\x81")).raw(b"b")
    };
    let script = module(Pickle::new(), &|pickle| {
        pickle.dict(&[
            ("training", &|pickle| pickle.raw(b"\x88")),
            ("visual", &|pickle| module(pickle, &|pickle| pickle.dict(&[("proj", &one)]))),
        ])
    });
    assert_eq!(names(script), ["visual.proj"]);
}

/// A storage of a legacy stream may be a part of another one.
#[test]
fn legacy_parts_of_storages() {
    let pickle = Pickle::new()
        .raw(b"}")
        .text("x")
        .raw(b"ctorch._utils\n_rebuild_tensor\n((")
        .text("storage")
        .raw(b"ctorch\nFloatStorage\n")
        .text("root")
        .text("cpu")
        .short(6)
        .raw(b"(")
        .text("part")
        .short(2)
        .short(3)
        .raw(b"ttQ")
        .short(1)
        .ints(&[2])
        .ints(&[1])
        .raw(b"tRs")
        .end();
    let data = f32s((0..6).map(|value| value as f32));
    assert_eq!(floats(&read(&legacy(pickle, &[("root", 6, data)])).unwrap()["x"]), [3.0, 4.0]);
}

/// `pickle.dump` of `{"w": array}` by Python 3, protocol 3, both memory orders.
#[test]
fn numpy_arrays() {
    let array = |fortran: bool| {
        move |pickle: Pickle| {
            pickle
                .raw(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
                .ints(&[0])
                .raw(b"C\x01b\x87R(K\x01")
                .ints(&[2, 3])
                .raw(b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R(K\x03X\x01\x00\x00\x00<NNNtb")
                .raw(if fortran { b"\x88" } else { b"\x89" })
                .raw(b"B\x18\x00\x00\x00")
                .raw(&f32s((0..6).map(|value| value as f32)))
                .raw(b"tb")
        }
    };
    let tensors = read(&Pickle::new().dict(&[("c", &array(false)), ("f", &array(true))]).end()).unwrap();
    assert_eq!(tensors["c"].to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert_eq!(tensors["f"].to_vec2::<f32>().unwrap(), [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]);
}

#[test]
fn safetensors_survive_a_round_trip() {
    let file = Temporary::new(b"");
    let tensors: BTreeMap<String, Tensor> = [
        ("w".to_owned(), Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap()),
        ("none".to_owned(), Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap()),
        ("ids".to_owned(), Tensor::arange(0i64, 3, &Device::Cpu).unwrap()),
    ]
    .into();
    write_tensors(&file.0, &tensors).unwrap();
    let listed = TensorFile::open(&file.0, "x").unwrap();
    let shapes: Vec<_> = listed.shapes().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    assert_eq!(
        shapes,
        [("ids".to_owned(), vec![3]), ("none".to_owned(), vec![0, 4]), ("w".to_owned(), vec![2, 3])]
    );
    let read = listed.read(&Device::Cpu, |name| name != "ids").unwrap();
    assert_eq!(read.keys().collect::<Vec<_>>(), ["none", "w"]);
    assert_eq!(floats(&read["w"]), floats(&tensors["w"]));
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let tensor = |value: f32| Tensor::new(&[0.5, value, -0.0], &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([
        ("fine".to_owned(), tensor(f32::MAX)),
        ("bad".to_owned(), tensor(f32::NAN)),
        ("endless".to_owned(), tensor(f32::NEG_INFINITY)),
    ]);
    let message = check_finite("model.safetensors", &tensors).unwrap_err().to_string();
    assert!(
        message.contains("`bad`") && message.contains("`endless`") && !message.contains("fine"),
        "{message}"
    );
    let good = BTreeMap::from([("fine".to_owned(), tensor(1.0))]);
    check_finite("model.safetensors", &good).unwrap();
}

/// Archives of any name length and directory size are read (a zip library that is otherwise good
/// refuses some of them).
#[test]
fn archives_with_folders_of_any_name() {
    for length in 1..60 {
        let folder = "x".repeat(length);
        let pickle = Pickle::new().tensor("FloatStorage", "0", 1, (0, &[1], &[1])).end();
        let members = [
            Member::new(&format!("{folder}/data.pkl"), pickle),
            Member::new(&format!("{folder}/data/0"), f32s([2.0])),
            Member::new(&format!("{folder}/.data/serialization_id"), vec![b'0'; 40]),
        ];
        assert_eq!(floats(&read(&zip(&members, false)).unwrap()[""]), [2.0]);
    }
}
