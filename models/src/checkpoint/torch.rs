//! What `torch.save` and `torch.jit.save` write: where the storages lie, and which calls in the pickle
//! stand for tensors.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::archive::{Archive, Range};
use super::numpy;
use super::pickle::{self, Id, Pickle, Value};
use super::state_dict::collect;
use super::stored::{Element, RANK_LIMIT, Storage, StoredTensor};

/// A pickle describes tensors; it is short even for the largest models.
const PICKLE_LIMIT: u64 = 64 << 20;
/// The first value of the stream that `torch.save` wrote before version 1.6.
const LEGACY_MAGIC: &[u8] = &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_PROTOCOL: u64 = 1001;

/// Tensors by name, in the order of the file.
pub(super) type Listing = Vec<(String, StoredTensor)>;

/// Lists the tensors of a zip archive.
pub(super) fn list_archive(file: &File, length: u64) -> Result<Listing, String> {
    let archive = Archive::open(file, length)?;
    let folder = archive
        .names()
        .find_map(|name| name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/')))
        .ok_or("it is a zip archive, but not one of PyTorch: it has no member `<folder>/data.pkl`")?
        .to_owned();
    let order = format!("{folder}/byteorder");
    if archive.names().any(|name| name == order) && archive.read(file, &order, 16)?.1 != b"little" {
        return Err("its numbers are big endian".to_owned());
    }
    let (base, bytes) = archive.read(file, &format!("{folder}/data.pkl"), PICKLE_LIMIT)?;
    let pickle = pickle::run(&bytes, 0, is_known)?;
    let mut storages = Storages::new();
    for (key, element) in referenced(&pickle)? {
        let range = archive.range(file, &format!("{folder}/data/{key}"));
        let storage = range.map(|Range { start, length }| Storage {
            element,
            start,
            elements: length / element.bytes(),
        });
        storages.insert(key, storage);
    }
    collect(&pickle, &|id| tensor(&pickle, id, base, &storages))
}

/// Lists the tensors of a stream of pickles: the format of `torch.save` before version 1.6, or one
/// pickle of NumPy arrays.
pub(super) fn list_stream(file: &File, length: u64) -> Result<Listing, String> {
    let mut bytes = vec![0; length.min(PICKLE_LIMIT) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|error| error.to_string())?;
    let first = pickle::run(&bytes, 0, is_known)?;
    if !matches!(first.value(first.root), Value::Long(value) if *value == LEGACY_MAGIC) {
        return collect(&first, &|id| tensor(&first, id, 0, &Storages::new()));
    }
    let protocol = pickle::run(&bytes, first.end, is_known)?;
    if protocol.count(protocol.root) != Some(LEGACY_PROTOCOL) {
        return Err(format!("its protocol is not {LEGACY_PROTOCOL}"));
    }
    let system = pickle::run(&bytes, protocol.end, is_known)?;
    if let Value::Dict(entries) = system.value(system.root)
        && entries.iter().any(|(key, value)| {
            system.text(*key) == Some("little_endian") && matches!(system.value(*value), Value::Bool(false))
        })
    {
        return Err("its numbers are big endian".to_owned());
    }
    let pickle = pickle::run(&bytes, system.end, is_known)?;
    let keys = pickle::run(&bytes, pickle.end, is_known)?;
    let storages = legacy_storages(file, length, &pickle, &keys)?;
    collect(&pickle, &|id| tensor(&pickle, id, 0, &storages))
}

/// The storages after the pickles: for each key, in the order of the list, the number of elements and
/// the elements.
fn legacy_storages<'a>(
    file: &File,
    length: u64,
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
) -> Result<Storages<'a>, String> {
    let elements = referenced(pickle)?;
    let Value::List(list) = keys.value(keys.root) else {
        return Err("the list of its storages is missing".to_owned());
    };
    let mut at = keys.end as u64;
    let mut storages = Storages::new();
    for key in list {
        let key = keys.text(*key).ok_or("the key of a storage is no text")?;
        let element = *elements.get(key).ok_or_else(|| format!("storage `{key}` belongs to no tensor"))?;
        let mut count = [0; 8];
        if file.read_exact_at(&mut count, at).is_err() {
            storages.insert(key, Err(format!("storage `{key}` is missing: the file is incomplete")));
            break;
        }
        let elements = u64::from_le_bytes(count);
        let start = at + 8;
        let end = elements.checked_mul(element.bytes()).and_then(|bytes| start.checked_add(bytes));
        let Some(end) = end.filter(|end| *end <= length) else {
            let reason = format!("storage `{key}` claims {elements} elements: the file is incomplete");
            storages.insert(key, Err(reason));
            break;
        };
        storages.insert(key, Ok(Storage { element, start, elements }));
        at = end;
    }
    Ok(storages)
}

/// The storages of a file by key, as far as it has them.
type Storages<'a> = HashMap<&'a str, Result<Storage, String>>;

/// The element types of all storages that a pickle refers to, by key.
fn referenced<'a>(pickle: &Pickle<'a>) -> Result<HashMap<&'a str, Element>, String> {
    let mut elements = HashMap::new();
    for value in pickle.values() {
        if let Value::Persistent(reference) = value {
            let reference = StorageReference::read(pickle, *reference)?;
            elements.insert(reference.key, reference.element);
        }
    }
    Ok(elements)
}

/// The classes and functions of a state dict. None is ever called.
fn is_known(module: &str, name: &str) -> bool {
    match module {
        "collections" => name == "OrderedDict",
        "torch" => element_of(name).is_some() || name == "Size" || name == "device" || is_dtype(name),
        "torch._utils" => {
            matches!(name, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_parameter")
        }
        "torch.jit._pickle" => matches!(
            name,
            "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag"
        ),
        _ => module == "__torch__" || module.starts_with("__torch__.") || numpy::is_known(module, name),
    }
}

fn is_dtype(name: &str) -> bool {
    matches!(
        name,
        "bool"
            | "uint8"
            | "int8"
            | "int16"
            | "int32"
            | "int64"
            | "float16"
            | "bfloat16"
            | "float32"
            | "float64"
    )
}

/// The element type of a storage class.
fn element_of(class: &str) -> Option<Element> {
    Some(match class {
        "FloatStorage" => Element::F32,
        "HalfStorage" => Element::F16,
        "BFloat16Storage" => Element::Bf16,
        "DoubleStorage" => Element::F64,
        "LongStorage" => Element::I64,
        "IntStorage" => Element::I32,
        "ShortStorage" => Element::I16,
        "CharStorage" => Element::I8,
        "ByteStorage" => Element::U8,
        "BoolStorage" => Element::Bool,
        _ => return None,
    })
}

/// The reference to a storage: `("storage", class, key, device, elements)`, in legacy streams with a
/// sixth item `None` or `(key, offset, elements)` for a part of the storage.
struct StorageReference<'a> {
    element: Element,
    key: &'a str,
    elements: u64,
    /// First element and number of elements of the part.
    part: Option<(u64, u64)>,
}

impl<'a> StorageReference<'a> {
    fn read(pickle: &Pickle<'a>, id: Id) -> Result<Self, String> {
        let error = || "the reference to a storage has another form than PyTorch gives it".to_owned();
        let items = pickle.tuple(id).ok_or_else(error)?;
        let (tag, class, key, elements, part) = match *items {
            [tag, class, key, _, elements] => (tag, class, key, elements, None),
            [tag, class, key, _, elements, part] => (tag, class, key, elements, Some(part)),
            _ => return Err(error()),
        };
        if pickle.text(tag) != Some("storage") {
            return Err(error());
        }
        let element = pickle
            .global(class)
            .filter(|(module, _)| *module == "torch")
            .and_then(|(_, class)| element_of(class))
            .ok_or_else(error)?;
        let part = match part.map(|part| (part, pickle.value(part))) {
            None | Some((_, Value::None)) => None,
            Some((part, _)) => match pickle.tuple(part) {
                Some(&[_, offset, elements]) => {
                    Some((pickle.count(offset).ok_or_else(error)?, pickle.count(elements).ok_or_else(error)?))
                }
                _ => return Err(error()),
            },
        };
        Ok(Self {
            element,
            key: pickle.text(key).ok_or_else(error)?,
            elements: pickle.count(elements).ok_or_else(error)?,
            part,
        })
    }

    /// What is referred to, if the file has it.
    fn resolve(&self, storages: &Storages<'_>) -> Result<Storage, String> {
        let Self { element, key, elements, part } = self;
        let storage = match storages.get(key) {
            Some(storage) => storage.clone()?,
            None => return Err(format!("the file has no storage `{key}`")),
        };
        if *element != storage.element {
            return Err(format!("storage `{key}` is used with two types of elements"));
        }
        if *elements > storage.elements {
            return Err(format!("storage `{key}` claims {elements} elements but has {}", storage.elements));
        }
        let Some((first, count)) = *part else { return Ok(Storage { elements: *elements, ..storage }) };
        if first.checked_add(count).is_none_or(|end| end > *elements) {
            return Err(format!("a part of storage `{key}` lies outside it"));
        }
        Ok(Storage { element: *element, start: storage.start + first * element.bytes(), elements: count })
    }
}

/// The tensor that a value stands for; `None` if it stands for something else. `base` is where the
/// pickle's buffer begins in the file.
fn tensor(
    pickle: &Pickle<'_>,
    id: Id,
    base: u64,
    storages: &Storages<'_>,
) -> Result<Option<StoredTensor>, String> {
    let mut id = id;
    // A parameter wraps a tensor, and nothing wraps a parameter.
    for _ in 0..2 {
        let Value::Call { function, arguments, .. } = pickle.value(id) else { return Ok(None) };
        let Some(arguments) = pickle.tuple(*arguments) else { return Ok(None) };
        match (pickle.global(*function), arguments) {
            (Some(("torch._utils", "_rebuild_parameter")), &[inner, ..]) => id = inner,
            (
                Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2")),
                &[place, offset, shape, strides, ..],
            ) => return rebuild(pickle, [place, offset, shape, strides], storages).map(Some),
            (Some(("torch._utils", _)), _) => {
                return Err("a tensor is described in another form than PyTorch does".to_owned());
            }
            _ => return numpy::array(pickle, id, base),
        }
    }
    Err("a parameter holds no tensor".to_owned())
}

fn rebuild(
    pickle: &Pickle<'_>,
    [place, offset, shape, strides]: [Id; 4],
    storages: &Storages<'_>,
) -> Result<StoredTensor, String> {
    let Value::Persistent(reference) = pickle.value(place) else {
        return Err("a tensor has no storage".to_owned());
    };
    let storage = StorageReference::read(pickle, *reference)?.resolve(storages)?;
    let offset = pickle.count(offset).ok_or("the offset of a tensor is no count")?;
    let shape = counts(pickle, shape).ok_or("the shape of a tensor is no list of counts")?;
    let strides = counts(pickle, strides).ok_or("the strides of a tensor are no list of counts")?;
    StoredTensor::new(storage, offset, shape.iter().map(|size| *size as usize).collect(), strides)
}

/// A short tuple of non-negative integers, also as `torch.Size`.
pub(super) fn counts(pickle: &Pickle<'_>, id: Id) -> Option<Vec<u64>> {
    let items = match pickle.value(id) {
        Value::Call { function, arguments, .. } if pickle.global(*function) == Some(("torch", "Size")) => {
            match *pickle.tuple(*arguments)? {
                [items] => items,
                _ => return None,
            }
        }
        _ => id,
    };
    let items = pickle.tuple(items).filter(|items| items.len() <= RANK_LIMIT)?;
    items.iter().map(|item| pickle.count(*item)).collect()
}
