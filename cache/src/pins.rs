//! Pins: results that a person wants kept, by a name of their own.

use crate::Digest;
use crate::fs::{FsError, list, read_bounded};
use crate::store::{Store, StoreError};
use crate::survey::Root;

const PIN_LIMIT: u64 = 64 << 20;

impl Store {
    /// Keeps the results of `keys` under `name`, beside what that name keeps already.
    ///
    /// # Errors
    /// If the name is not made of letters, digits, `_`, `-` and `.`, or the pin cannot be written.
    pub fn pin(&self, name: &str, keys: &[Digest]) -> Result<(), StoreError> {
        check(name)?;
        let path = self.folder("pins").join(name);
        let mut all = self.pin_keys(name)?.unwrap_or_default();
        all.extend(keys);
        all.sort_unstable();
        all.dedup();
        let text: String = all.iter().map(|key| format!("{key}\n")).collect();
        Ok(self.shared.disk.write_atomic(&path, text.as_bytes())?)
    }

    /// Lets go of what `name` keeps; whether there was such a pin.
    ///
    /// # Errors
    /// If the pin cannot be removed.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        check(name)?;
        let known = self.pin_keys(name)?.is_some();
        self.shared.disk.remove_file(&self.folder("pins").join(name))?;
        Ok(known)
    }

    /// All pins, sorted by name.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn pins(&self) -> Result<Vec<Root>, StoreError> {
        let mut pins = Vec::new();
        for name in list(&self.folder("pins"))? {
            if let Some(keys) = self.pin_keys(&name)? {
                pins.push(Root { name: format!("pin {name}"), keys });
            }
        }
        Ok(pins)
    }

    fn pin_keys(&self, name: &str) -> Result<Option<Vec<Digest>>, FsError> {
        let bytes = read_bounded(&self.folder("pins").join(name), PIN_LIMIT)?;
        // A line that is no key keeps nothing; the others still count.
        let keys = |bytes: Vec<u8>| {
            String::from_utf8_lossy(&bytes).lines().filter_map(|line| line.trim().parse().ok()).collect()
        };
        Ok(bytes.map(keys))
    }
}

fn check(name: &str) -> Result<(), StoreError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(plain) {
        Ok(())
    } else {
        Err(StoreError::PinName(name.to_owned()))
    }
}
