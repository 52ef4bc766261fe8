//! What is known of each id of a source, in bounded memory however many ids there are: a hash table with open
//! addressing, in a temporary file once it is long.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use pipe_engine::StageError;
use pipe_engine::cache::SpillError;

/// A key and its number; the key 0 stands for none.
type Slot = [u64; 2];

/// Bytes of a slot.
const SLOT: usize = size_of::<Slot>();
/// Slots that are read and written at once.
const PAGE: usize = 256;
/// Slots of a new table, as a power of two.
const FIRST: u32 = 8;
/// Slots of a table in memory at most, as a power of two: 16 MiB.
const IN_MEMORY: u32 = 20;

/// Keys of ids (of [`super::seen::text_key`], none is 0) with a number each.
#[derive(Debug)]
pub(crate) struct Numbered {
    scratch: PathBuf,
    in_memory: u32,
    count: u64,
    table: Table,
}

impl Numbered {
    /// Nothing yet; a file will lie in `scratch`.
    pub(crate) fn new(scratch: &Path) -> Self {
        Self::bounded(scratch, IN_MEMORY)
    }

    fn bounded(scratch: &Path, in_memory: u32) -> Self {
        let table = Table { bits: FIRST, slots: Slots::Memory(vec![[0, 0]; 1 << FIRST]) };
        Self { scratch: scratch.to_owned(), in_memory, count: 0, table }
    }

    /// The number of a key, if it is there.
    pub(crate) fn get(&mut self, key: u64) -> Result<Option<u64>, StageError> {
        let place = self.table.place(key).map_err(|error| self.failed(error))?;
        let [found, number] = self.table.slots.get(place).map_err(|error| self.failed(error))?;
        Ok((found == key).then_some(number))
    }

    /// Gives a key a number, in the place of the one that it had.
    pub(crate) fn set(&mut self, key: u64, number: u64) -> Result<(), StageError> {
        self.put(key, number).map_err(|error| self.failed(error))
    }

    fn put(&mut self, key: u64, number: u64) -> std::io::Result<()> {
        // Beyond three quarters most searches would be long.
        if self.count + 1 > (3 << self.table.bits) / 4 {
            self.table = self.table.doubled(&self.scratch, self.in_memory)?;
        }
        let place = self.table.place(key)?;
        let [found, _] = self.table.slots.get(place)?;
        self.table.slots.set(place, [key, number])?;
        self.count += u64::from(found != key);
        Ok(())
    }

    fn failed(&self, source: std::io::Error) -> StageError {
        SpillError { folder: self.scratch.clone(), source }.into()
    }
}

/// Slots by the first bits of their keys.
#[derive(Debug)]
struct Table {
    bits: u32,
    slots: Slots,
}

impl Table {
    /// Where a key stands, or would stand.
    fn place(&mut self, key: u64) -> std::io::Result<u64> {
        let last = (1 << self.bits) - 1;
        let mut place = key >> (64 - self.bits);
        while ![0, key].contains(&self.slots.get(place)?[0]) {
            place = (place + 1) & last;
        }
        Ok(place)
    }

    /// The same in twice the slots. Keys keep their order, so the file is written from its beginning to its end.
    fn doubled(&mut self, scratch: &Path, in_memory: u32) -> std::io::Result<Self> {
        let bits = self.bits + 1;
        let slots = match bits > in_memory {
            true => Slots::File(Box::new(Paged::new(scratch, 1 << bits)?)),
            false => Slots::Memory(vec![[0, 0]; 1 << bits]),
        };
        let mut doubled = Self { bits, slots };
        for place in 0..1 << self.bits {
            let slot = self.slots.get(place)?;
            if slot[0] != 0 {
                let place = doubled.place(slot[0])?;
                doubled.slots.set(place, slot)?;
            }
        }
        Ok(doubled)
    }
}

#[derive(Debug)]
enum Slots {
    Memory(Vec<Slot>),
    File(Box<Paged>),
}

impl Slots {
    fn get(&mut self, place: u64) -> std::io::Result<Slot> {
        match self {
            Self::Memory(slots) => Ok(slots[place as usize]),
            Self::File(file) => file.get(place),
        }
    }

    fn set(&mut self, place: u64, slot: Slot) -> std::io::Result<()> {
        match self {
            Self::Memory(slots) => slots[place as usize] = slot,
            Self::File(file) => file.set(place, slot)?,
        }
        Ok(())
    }
}

/// Slots in a file without a name, of which one page is in memory.
#[derive(Debug)]
struct Paged {
    file: File,
    number: u64,
    page: [u8; PAGE * SLOT],
    is_changed: bool,
}

impl Paged {
    /// Empty slots.
    fn new(scratch: &Path, slots: u64) -> std::io::Result<Self> {
        let file = tempfile::tempfile_in(scratch)?;
        file.set_len((slots * SLOT as u64).next_multiple_of((PAGE * SLOT) as u64))?;
        Ok(Self { file, number: 0, page: [0; PAGE * SLOT], is_changed: false })
    }

    /// The bytes of a slot, in the page, which is changed if they are to be.
    fn slot(&mut self, place: u64, is_changed: bool) -> std::io::Result<&mut [u8]> {
        let number = place / PAGE as u64;
        let start = |number: u64| number * (PAGE * SLOT) as u64;
        if number != self.number {
            if self.is_changed {
                self.file.write_all_at(&self.page, start(self.number))?;
            }
            self.is_changed = false;
            // Should reading fail, what is in the page then is no page.
            self.number = u64::MAX;
            self.file.read_exact_at(&mut self.page, start(number))?;
            self.number = number;
        }
        self.is_changed |= is_changed;
        let first = (place % PAGE as u64) as usize * SLOT;
        Ok(&mut self.page[first..first + SLOT])
    }

    fn get(&mut self, place: u64) -> std::io::Result<Slot> {
        let bytes = self.slot(place, false)?;
        let mut slot = [0; 2];
        for (number, bytes) in slot.iter_mut().zip(bytes.as_chunks().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        Ok(slot)
    }

    fn set(&mut self, place: u64, slot: Slot) -> std::io::Result<()> {
        let bytes = self.slot(place, true)?;
        for (number, bytes) in slot.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = number.to_le_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ingest::seen::text_key;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        /// As a map does, also where keys crowd at either end of the table.
        #[test]
        fn the_last_number_of_a_key_counts(
            pairs in prop::collection::vec((prop_oneof![1u64..400, (u64::MAX - 400)..=u64::MAX, 1..=u64::MAX], any::<u64>()), 0..1500),
            in_memory in 6u32..12,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut numbered = Numbered::bounded(folder.path(), in_memory);
            let mut expected = BTreeMap::new();
            for (key, number) in pairs {
                prop_assert_eq!(numbered.get(key).unwrap(), expected.get(&key).copied());
                numbered.set(key, number).unwrap();
                expected.insert(key, number);
            }
            for (key, number) in &expected {
                prop_assert_eq!(numbered.get(*key).unwrap(), Some(*number));
            }
            prop_assert_eq!(numbered.count, expected.len() as u64);
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn many_keys_lie_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let key = |id: u64| text_key(&id.to_string());
        let mut numbered = Numbered::bounded(folder.path(), 12);
        for id in 0..300_000 {
            numbered.set(key(id), id).unwrap();
            numbered.set(key(id / 2), id + 1_000_000).unwrap();
        }
        assert!(matches!(numbered.table.slots, Slots::File(_)));
        let mut number = |id| numbered.get(key(id)).unwrap();
        assert!((0..150_000).all(|id| number(id) == Some(2 * id + 1 + 1_000_000)));
        assert!((150_000..300_000).all(|id| number(id) == Some(id)));
        assert_eq!(number(300_000), None);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut numbered = Numbered::bounded(&folder.path().join("missing"), FIRST);
        let error = (1..1000).find_map(|key| numbered.set(key, 0).err()).unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
