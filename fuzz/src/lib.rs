//! Hostile bytes for readers of files: seeds that are valid, changed at random, and nothing may panic.
//!
//! A target is an ordinary test that calls [`fuzz`]. In the test suite it takes a fraction of a second; a campaign
//! is the same tests with more time:
//!
//! ```sh
//! PIPE_FUZZ_SECONDS=60 cargo test --release --workspace fuzz -- --nocapture --test-threads 2
//! ```
//!
//! `PIPE_FUZZ_SEED` makes other choices. What made a reader panic is written into a file whose name the failure tells.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Executions in the test suite.
const FEW: u64 = 2000;

/// No changed input is longer.
const LONGEST: usize = 1 << 16;

/// Numbers at which arithmetic goes wrong.
const INTERESTING: [u64; 16] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 60,
    i64::MAX as u64,
    u64::MAX,
];

/// A small generator of random numbers (SplitMix64): the same choices on every machine.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Calls `target` with each of `seeds`, and with many inputs that are made of them by changes at random; `words` are
/// put in here and there: what the format has for key words.
///
/// # Panics
/// If `target` panics with one of them; the input is kept in a file.
pub fn fuzz(name: &str, seeds: &[Vec<u8>], words: &[&[u8]], target: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let time = number("PIPE_FUZZ_SECONDS").map(Duration::from_secs);
    let seed = number("PIPE_FUZZ_SEED").unwrap_or(1);
    let mut choices =
        Choices(seed ^ name.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(byte)));
    let began = Instant::now();
    let mut count = 0;
    for input in seeds {
        run(name, input, &target);
        count += 1;
    }
    let mut input = Vec::new();
    loop {
        let is_over = match time {
            // Looking at the clock takes longer than many an execution.
            Some(time) => count % 64 == 0 && began.elapsed() >= time,
            None => count >= FEW,
        };
        if is_over {
            break;
        }
        input.clear();
        if let Some(seed) = seeds.get(choices.below(seeds.len().max(1))) {
            input.extend_from_slice(seed);
        }
        for _ in 0..=choices.below(6) {
            change(&mut input, seeds, words, &mut choices);
        }
        input.truncate(LONGEST);
        run(name, &input, &target);
        count += 1;
    }
    println!("fuzz {name}: {count} executions in {:.1} s", began.elapsed().as_secs_f64());
}

fn run(name: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        let path = keep(name, input);
        panic!("`{name}` panicked; its input is `{}`", path.display());
    }
}

fn keep(name: &str, input: &[u8]) -> PathBuf {
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = std::env::temp_dir().join(format!("pipe-fuzz-{}-{hash:016x}", name.replace(['/', ' '], "-")));
    // A file that cannot be written is not what the test is about.
    let _ = std::fs::write(&path, input);
    path
}

/// One change.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&[u8]], choices: &mut Choices) {
    let length = input.len();
    if length == 0 {
        let byte = choices.next() as u8;
        input.push(byte);
        return;
    }
    let place = choices.below(length);
    match choices.below(12) {
        0 => input[place] ^= 1 << choices.below(8),
        1 => input[place] = choices.next() as u8,
        2 => input[place] = INTERESTING[choices.below(INTERESTING.len())] as u8,
        3 => {
            // A number of some width, in either order of bytes.
            let value = INTERESTING[choices.below(INTERESTING.len())];
            let width = [2, 4, 8][choices.below(3)].min(length - place);
            let bytes = match choices.below(2) {
                0 => value.to_le_bytes(),
                _ => (value << (8 * (8 - width))).to_be_bytes(),
            };
            input[place..place + width].copy_from_slice(&bytes[..width]);
        }
        4 => input.truncate(place),
        5 => {
            let end = place + choices.below((length - place).min(64)) + 1;
            input.drain(place..end);
        }
        6 => {
            // The same piece twice, or very often.
            let end = place + choices.below((length - place).min(64)) + 1;
            let piece = input[place..end].to_vec();
            let times = if choices.below(20) == 0 { 200 } else { 1 };
            for _ in 0..times {
                input.splice(place..place, piece.iter().copied());
            }
        }
        7 if !seeds.is_empty() => {
            // The end of another seed.
            let other = &seeds[choices.below(seeds.len())];
            let from = choices.below(other.len() + 1);
            input.truncate(place);
            input.extend_from_slice(&other[from..]);
        }
        8 if !words.is_empty() => {
            let word = words[choices.below(words.len())];
            match choices.below(2) {
                0 => _ = input.splice(place..place, word.iter().copied()),
                _ => {
                    let end = (place + word.len()).min(length);
                    input.splice(place..end, word.iter().copied());
                }
            }
        }
        9 => {
            // A digit becomes another one, or many: numbers in text.
            if let Some(digit) = input[place..].iter().position(u8::is_ascii_digit) {
                let digits: &[u8] =
                    [&b"0"[..], b"9", b"-1", b"1e400", b"99999999999999999999"][choices.below(5)];
                input.splice(place + digit..=place + digit, digits.iter().copied());
            }
        }
        10 => {
            let other = choices.below(length);
            input.swap(place, other);
        }
        _ => {
            let byte = [0, b' ', b'"', b'\'', b'\\', b'/', b'\n', b'{', b'[', 0xff, 0xc3][choices.below(11)];
            input.insert(place, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fuzz;

    #[test]
    fn what_panics_is_found_and_kept() {
        let seeds = [b"header=12;".to_vec()];
        let found = std::panic::catch_unwind(|| {
            fuzz("a test of the fuzzer", &seeds, &[b"boom"], |bytes| {
                assert!(!bytes.windows(4).any(|piece| piece == b"boom"));
            });
        });
        let message = *found.unwrap_err().downcast::<String>().unwrap();
        let path = message.split('`').nth(3).unwrap();
        assert!(std::fs::read(path).unwrap().windows(4).any(|piece| piece == b"boom"));
        std::fs::remove_file(path).unwrap();
        fuzz("nothing panics", &seeds, &[], |bytes| assert!(bytes.len() <= super::LONGEST));
    }
}
