//! Writes the formats of PyTorch in their smallest form, also wrongly.

/// A member of a zip archive.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) method: u16,
    /// What the directory claims instead of the true length.
    pub(super) claimed: Option<u64>,
}

impl Member {
    pub(super) fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.to_owned(), bytes: bytes.into(), method: 0, claimed: None }
    }
}

/// A zip archive; `wide` writes sizes and the directory's place as zip64.
pub(super) fn zip(members: &[Member], wide: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for member in members {
        let header = file.len() as u64;
        let length = member.claimed.unwrap_or(member.bytes.len() as u64);
        let wide = wide || length > u64::from(u32::MAX);
        let short = |value: u64| if wide { u32::MAX } else { value as u32 };
        let extra: Vec<u8> = if wide {
            let mut extra = vec![1, 0, 24, 0];
            for value in [length, length, header] {
                extra.extend(value.to_le_bytes());
            }
            extra
        } else {
            Vec::new()
        };
        let name = member.name.as_bytes();
        // Local header: its padding differs from the directory's, as PyTorch aligns storages.
        file.extend(0x0403_4b50u32.to_le_bytes());
        file.extend([0; 4]);
        file.extend(member.method.to_le_bytes());
        file.extend([0; 16]);
        file.extend((name.len() as u16).to_le_bytes());
        file.extend(5u16.to_le_bytes());
        file.extend(name);
        file.extend(b"FB\x01\x00Z");
        file.extend(&member.bytes);

        directory.extend(0x0201_4b50u32.to_le_bytes());
        directory.extend([0; 6]);
        directory.extend(member.method.to_le_bytes());
        directory.extend([0; 8]);
        directory.extend(short(length).to_le_bytes());
        directory.extend(short(length).to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(short(header).to_le_bytes());
        directory.extend(name);
        directory.extend(&extra);
    }
    let (start, length) = (file.len() as u64, directory.len() as u64);
    file.extend(directory);
    let record = file.len() as u64;
    if wide {
        file.extend(0x0606_4b50u32.to_le_bytes());
        file.extend(44u64.to_le_bytes());
        file.extend([0; 28]);
        file.extend(length.to_le_bytes());
        file.extend(start.to_le_bytes());
        file.extend(0x0706_4b50u32.to_le_bytes());
        file.extend([0; 4]);
        file.extend(record.to_le_bytes());
        file.extend(1u32.to_le_bytes());
    }
    file.extend(0x0605_4b50u32.to_le_bytes());
    file.extend([0; 8]);
    file.extend((if wide { u32::MAX } else { length as u32 }).to_le_bytes());
    file.extend((if wide { u32::MAX } else { start as u32 }).to_le_bytes());
    file.extend([0; 2]);
    file
}

/// A pickle in the making.
pub(super) struct Pickle(pub(super) Vec<u8>);

impl Pickle {
    pub(super) fn new() -> Self {
        Self(b"\x80\x02".to_vec())
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    pub(super) fn ints(self, values: &[u64]) -> Self {
        let open = self.raw(b"(");
        values.iter().fold(open, |pickle, value| pickle.short(*value)).raw(b"t")
    }

    /// An integer of at most 63 bits.
    pub(super) fn short(self, value: u64) -> Self {
        self.raw(&[0x8a, 8]).raw(&value.to_le_bytes())
    }

    /// A tensor of storage `key`.
    pub(super) fn tensor(self, class: &str, key: &str, elements: u64, view: (u64, &[u64], &[u64])) -> Self {
        let (offset, shape, strides) = view;
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .raw(format!("ctorch\n{class}\n").as_bytes())
            .text(key)
            .text("cuda:0")
            .short(elements)
            .raw(b"tQ")
            .short(offset)
            .ints(shape)
            .ints(strides)
            .raw(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// A dictionary of what `entries` push, by key.
    pub(super) fn dict(self, entries: &[(&str, &dyn Fn(Self) -> Self)]) -> Self {
        let open = self.raw(b"}(");
        entries.iter().fold(open, |pickle, (key, value)| value(pickle.text(key))).raw(b"u")
    }

    pub(super) fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// The members of an archive of one pickle and its storages.
pub(super) fn members(pickle: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Vec<Member> {
    let mut members =
        vec![Member::new("archive/data.pkl", pickle), Member::new("archive/byteorder", *b"little")];
    for (key, bytes) in storages {
        members.push(Member::new(&format!("archive/data/{key}"), bytes.clone()));
    }
    members.push(Member::new("archive/version", *b"3\n"));
    members
}

/// The stream that `torch.save` wrote before version 1.6.
pub(super) fn legacy(pickle: Vec<u8>, storages: &[(&str, u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    bytes.extend(Pickle::new().dict(&[("little_endian", &|pickle| pickle.raw(b"\x88"))]).end());
    bytes.extend(pickle);
    let keys = storages.iter().fold(Pickle::new().raw(b"]("), |keys, (key, ..)| keys.text(key));
    bytes.extend(keys.raw(b"e").end());
    for (_, count, data) in storages {
        bytes.extend(count.to_le_bytes());
        bytes.extend(data);
    }
    bytes
}

/// Numbers as bytes.
pub(super) fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}
