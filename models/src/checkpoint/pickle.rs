//! A pickle is a program; this machine runs the part of it that builds plain data. It knows numbers,
//! texts, tuples, lists and dictionaries; a class or function is only a name, a call of one only a
//! record of the name and its arguments, and a name that the caller does not know is refused. Nothing
//! is ever executed.
//!
//! Values live in one list and refer to each other by number, so that a value changed after it was
//! remembered is seen changed by everyone, shared values stay shared, and the memory is proportional
//! to the length of the pickle.

use std::collections::HashMap;

/// More values than any state dict has (about thirty per tensor).
const VALUE_LIMIT: usize = 1 << 22;

/// A value's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Id(u32);

/// A value of a pickle.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits: little endian, two's complement.
    Long(&'a [u8]),
    /// A floating-point number; nothing that describes a tensor is one.
    Float,
    Text(&'a str),
    /// Bytes, and where they begin in the pickle's buffer.
    Bytes(usize, &'a [u8]),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// The name of a class or function.
    Global(&'a str, &'a str),
    /// A call that was not made, and the state that was to be set on its result.
    Call {
        function: Id,
        arguments: Id,
        state: Option<Id>,
    },
    /// Something outside the pickle.
    Persistent(Id),
}

/// The result of running a pickle.
#[derive(Debug)]
pub(super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    pub(super) root: Id,
    /// The byte after the pickle in the buffer.
    pub(super) end: usize,
}

impl<'a> Pickle<'a> {
    pub(super) fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// All values, in the order in which they were made.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value<'a>> {
        self.values.iter()
    }

    /// The items of a tuple.
    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(items) = self.value(id) { Some(items) } else { None }
    }

    pub(super) fn text(&self, id: Id) -> Option<&'a str> {
        if let Value::Text(text) = self.value(id) { Some(text) } else { None }
    }

    /// A non-negative integer.
    pub(super) fn count(&self, id: Id) -> Option<u64> {
        if let Value::Int(value) = self.value(id) { u64::try_from(*value).ok() } else { None }
    }

    /// Module and name of a global.
    pub(super) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        if let Value::Global(module, name) = self.value(id) { Some((module, name)) } else { None }
    }
}

/// Runs the pickle that begins at byte `start` of `buffer`. `known` says which classes and functions
/// (module, name) may occur.
pub(super) fn run<'a>(
    buffer: &'a [u8],
    start: usize,
    known: fn(&str, &str) -> bool,
) -> Result<Pickle<'a>, String> {
    let mut machine = Machine {
        buffer,
        at: start,
        known,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let place = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Pickle { values: machine.values, root, end: machine.at }),
            Err(reason) => return Err(format!("the pickle is not usable at byte {place}: {reason}")),
        }
    }
}

struct Machine<'a> {
    buffer: &'a [u8],
    at: usize,
    known: fn(&str, &str) -> bool,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// One instruction; the root value when the pickle ends.
    fn step(&mut self) -> Step<Option<Id>> {
        let [code] = self.fixed()?;
        match code {
            // Protocol and frames carry no data of their own.
            0x80 => drop(self.fixed::<1>()?),
            0x95 => drop(self.fixed::<8>()?),
            b'.' => return self.pop().map(Some),

            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let value = i32::from_le_bytes(self.fixed()?);
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let [value] = self.fixed()?;
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.fixed()?);
                self.push(Value::Int(value.into()))?;
            }
            0x8a => {
                let [length] = self.fixed()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = self.length4()?;
                self.long(length)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)?;
            }

            0x8c => {
                let [length] = self.fixed()?;
                self.text(length.into())?;
            }
            b'X' => {
                let length = self.length4()?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.length8()?;
                self.text(length)?;
            }
            b'C' | b'U' => {
                let [length] = self.fixed()?;
                self.bytes(length.into(), code == b'U')?;
            }
            b'B' | b'T' => {
                let length = self.length4()?;
                self.bytes(length, code == b'T')?;
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.bytes(length, false)?;
            }

            b'(' => {
                if self.marks.len() >= VALUE_LIMIT {
                    return Err(format!("it sets more than {VALUE_LIMIT} marks"));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => {
                let top = self.top()?;
                self.put(top)?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(code - 0x84))?;
                self.push(Value::Tuple(items))?;
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items))?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.since_mark()?;
                let pairs = pairs(&items)?;
                self.push(Value::Dict(pairs))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.insert(&items)?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.insert(&items)?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                match (self.value(names[0]), self.value(names[1])) {
                    (&Value::Text(module), &Value::Text(name)) => self.global(module, name)?,
                    _ => return Err("a class is named by something that is no text".to_owned()),
                }
            }
            b'R' | 0x81 => {
                let parts = self.pop_many(2)?;
                self.call(parts[0], parts[1])?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }

            b'q' => {
                let [slot] = self.fixed()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.fixed()?);
                self.remember(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = self.fixed()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.fixed()?);
                self.recall(slot)?;
            }
            _ => return Err(format!("instruction 0x{code:02x} is not part of a state dict")),
        }
        Ok(None)
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    fn value_mut(&mut self, id: Id) -> &mut Value<'a> {
        &mut self.values[id.0 as usize]
    }

    /// The next `length` bytes.
    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let bytes = self
            .at
            .checked_add(length)
            .and_then(|end| self.buffer.get(self.at..end))
            .ok_or_else(|| format!("it is cut off: {length} bytes are expected here"))?;
        self.at += length;
        Ok(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut fixed = [0; N];
        fixed.copy_from_slice(self.take(N)?);
        Ok(fixed)
    }

    fn length4(&mut self) -> Step<usize> {
        Ok(u32::from_le_bytes(self.fixed()?) as usize)
    }

    fn length8(&mut self) -> Step<usize> {
        usize::try_from(u64::from_le_bytes(self.fixed()?)).map_err(|error| error.to_string())
    }

    /// The text up to the next line end.
    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.buffer[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("it is cut off in a name")?;
        let line = std::str::from_utf8(&rest[..length]).map_err(|_| "a name is no UTF-8")?;
        self.at += length + 1;
        Ok(line)
    }

    fn add(&mut self, value: Value<'a>) -> Step<Id> {
        if self.values.len() >= VALUE_LIMIT {
            return Err(format!("it holds more than {VALUE_LIMIT} values"));
        }
        self.values.push(value);
        Ok(Id(self.values.len() as u32 - 1))
    }

    fn push(&mut self, value: Value<'a>) -> Step<()> {
        let id = self.add(value)?;
        self.put(id)
    }

    fn put(&mut self, id: Id) -> Step<()> {
        if self.stack.len() >= VALUE_LIMIT {
            return Err(format!("its stack holds more than {VALUE_LIMIT} values"));
        }
        self.stack.push(id);
        Ok(())
    }

    /// What lies above the innermost mark belongs to it.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        let top = if self.stack.len() > self.floor() { self.stack.last() } else { None };
        top.copied().ok_or_else(|| "a value is missing on the stack".to_owned())
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Step<Vec<Id>> {
        if self.stack.len() < self.floor() + count {
            return Err("a value is missing on the stack".to_owned());
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn since_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn long(&mut self, length: usize) -> Step<()> {
        let bytes = self.take(length)?;
        let value = if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|last| *last >= 0x80);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Long(bytes)
        };
        self.push(value)
    }

    fn text(&mut self, length: usize) -> Step<()> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text is no UTF-8")?;
        self.push(Value::Text(text))
    }

    /// `string`: a byte string of Python 2, which was a text or bytes.
    fn bytes(&mut self, length: usize, string: bool) -> Step<()> {
        let place = self.at;
        let bytes = self.take(length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) if string => self.push(Value::Text(text)),
            _ => self.push(Value::Bytes(place, bytes)),
        }
    }

    fn append(&mut self, items: &[Id]) -> Step<()> {
        let list = self.top()?;
        match self.value_mut(list) {
            Value::List(list) => list.extend(items),
            // Items of an object of another class are not looked at.
            Value::Call { .. } => {}
            _ => return Err("it appends to something that is no list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Step<()> {
        let added = pairs(items)?;
        let dict = self.top()?;
        match self.value_mut(dict) {
            Value::Dict(dict) => dict.extend(added),
            Value::Call { .. } => {}
            _ => return Err("it sets items of something that is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Step<()> {
        if !(self.known)(module, name) {
            return Err(format!(
                "it refers to `{}.{}`, which is not part of a state dict; nothing of it was executed",
                module.escape_debug(),
                name.escape_debug()
            ));
        }
        self.push(Value::Global(module, name))
    }

    fn call(&mut self, function: Id, arguments: Id) -> Step<()> {
        let (&Value::Global(module, name), Value::Tuple(items)) =
            (self.value(function), self.value(arguments))
        else {
            return Err("it calls something that is no class or function".to_owned());
        };
        if (module, name) != ("collections", "OrderedDict") {
            return self.push(Value::Call { function, arguments, state: None });
        }
        // An ordered dictionary is a dictionary here; Python 2 gave its pairs as an argument.
        let mut dict = Vec::new();
        if let Some(&first) = items.first() {
            let Value::List(items) = self.value(first) else {
                return Err("an ordered dictionary is made of something that is no list".to_owned());
            };
            for item in items {
                match self.value(*item) {
                    Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => {
                        dict.push((pair[0], pair[1]))
                    }
                    _ => return Err("an ordered dictionary is made of items that are no pairs".to_owned()),
                }
            }
        }
        self.push(Value::Dict(dict))
    }

    /// Sets the state of the object on top. A dictionary's attributes (`_metadata`) say nothing of its
    /// entries.
    fn build(&mut self, new: Id) -> Step<()> {
        let object = self.top()?;
        match self.value_mut(object) {
            Value::Dict(_) => {}
            Value::Call { state, .. } => *state = Some(new),
            _ => return Err("it sets the state of a plain value".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Step<()> {
        let top = self.top()?;
        if self.memo.len() >= VALUE_LIMIT {
            return Err(format!("it remembers more than {VALUE_LIMIT} values"));
        }
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = *self.memo.get(&slot).ok_or_else(|| format!("slot {slot} was never filled"))?;
        self.put(id)
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    } else {
        Err("a dictionary has a key without a value".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run_all(bytes: &[u8]) -> Result<Pickle<'_>, String> {
        run(bytes, 0, |module, _| module == "known" || module == "collections")
    }

    #[test]
    fn plain_data() {
        // {"a": [1, -2, True, None, 2.5], "b": (300, 70000, 2**40)}
        let bytes =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xff\x88NG\x40\x04\0\0\0\0\0\0e\
              X\x01\x00\x00\x00bM\x2c\x01J\x70\x11\x01\x00\x8a\x06\0\0\0\0\0\x01\x87u.";
        let pickle = run_all(bytes).unwrap();
        assert_eq!(pickle.end, bytes.len());
        let Value::Dict(pairs) = pickle.value(pickle.root) else { panic!() };
        assert_eq!(pickle.text(pairs[0].0), Some("a"));
        let Value::List(items) = pickle.value(pairs[0].1) else { panic!() };
        assert!(matches!(pickle.value(items[1]), Value::Int(-2)));
        assert!(matches!(pickle.value(items[4]), Value::Float));
        let items: Vec<_> = pickle.tuple(pairs[1].1).unwrap().iter().map(|id| pickle.count(*id)).collect();
        assert_eq!(items, [Some(300), Some(70_000), Some(1 << 40)]);
    }

    #[test]
    fn a_value_changed_after_it_was_remembered_is_seen_changed() {
        // x = []; root = (x, x); x.append(1) in between.
        let pickle = run_all(b"\x80\x02]q\x00K\x01ah\x00\x86.").unwrap();
        let items = pickle.tuple(pickle.root).unwrap();
        assert_eq!(items[0], items[1]);
        let Value::List(list) = pickle.value(items[0]) else { panic!() };
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn an_unknown_class_is_refused_by_name() {
        for bytes in [
            b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".as_slice(),
            b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        ] {
            let message = run_all(bytes).unwrap_err();
            assert!(message.contains("`os.system`"), "{message}");
        }
    }

    #[test]
    fn what_is_claimed_but_not_there_is_an_error() {
        for bytes in [
            b"".as_slice(),
            b"\x80\x02",
            b"\x80\x02X\xff\xff\xff\xffa",
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffa",
            b"\x80\x02h\x07.",
            b"\x80\x02))R.",
            b"\x80\x02K\x01K\x02s.",
            b"\x80\x02}(K\x01u.",
            b"i",
        ] {
            assert!(run_all(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = run_all(&bytes);
        }

        /// Random instructions of those that are known reach deeper than random bytes.
        #[test]
        fn any_instructions_end_without_a_panic(
            codes in proptest::collection::vec(proptest::sample::select(
                b"N\x88K\x01(012)\x85\x86t]l}daesuR\x81bQq\x00h\x00\x94cknown\nname\nccollections\nOrderedDict\n".to_vec()
            ), 0..300)
        ) {
            let _ = run_all(&codes);
        }
    }
}
