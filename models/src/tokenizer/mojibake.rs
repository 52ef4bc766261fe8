//! Text that was stored as UTF-8 and read as Windows-1252 or Latin-1: `cafÃ©` for `café`.
//!
//! A sequence is taken for such text if its characters, as bytes, are valid UTF-8 of more than one
//! byte. By chance that happens where an upper-case letter with an accent, or one of `à`-`ï`, stands
//! before closing punctuation; those sequences are left alone unless they begin with a letter that
//! hardly stands there otherwise but begins misread accents, signs and Greek. Other pairs of encodings
//! are not looked for.

use super::aligned::Aligned;

/// Windows-1252 between 0x80 and 0x9f; bytes that it leaves undefined are control characters.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}',
    '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Nobody misreads a text more often.
const ROUNDS: usize = 8;

/// The character of a byte.
pub(super) fn from_windows_1252(byte: u8) -> char {
    match byte {
        0x80..=0x9f => WINDOWS_1252[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

/// The byte of a character, of Windows-1252 or of Latin-1.
fn to_byte(char: char) -> Option<u8> {
    u8::try_from(u32::from(char))
        .ok()
        .or_else(|| WINDOWS_1252.iter().position(|other| *other == char).map(|place| place as u8 + 0x80))
}

/// What may follow a word that ends in an accented letter.
fn is_closing(char: char) -> bool {
    matches!(char, '‘' | '’' | '“' | '”' | '…' | '–' | '—' | '™' | '•' | '›' | '»' | '\u{a0}' | '®' | '©')
}

/// Undoes the misreading, as often as it was made.
pub(super) fn repair(text: &mut Aligned) {
    for _ in 0..ROUNDS {
        let length = text.chars().len();
        text.rewrite(misread);
        if text.chars().len() == length {
            return;
        }
    }
}

/// The misread character at the front of `rest`, and what it was.
fn misread(rest: &[char]) -> Option<(usize, String)> {
    let first = *rest.first()?;
    let length = match u32::from(first) {
        // A multiplication sign before another sign is one.
        0xc2..=0xd6 | 0xd8..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    let follow = rest.get(1..length)?;
    if length < 4
        && !matches!(first, 'Â' | 'Ã' | 'Î' | 'Ï' | 'â')
        && follow.iter().any(|char| is_closing(*char))
    {
        return None;
    }
    let mut bytes = [0; 4];
    for (byte, char) in bytes.iter_mut().zip(&rest[..length]) {
        *byte = to_byte(*char)?;
    }
    let text = std::str::from_utf8(&bytes[..length]).ok()?;
    (text.chars().count() == 1).then(|| (length, text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn repaired(text: &str) -> String {
        let mut text = Aligned::new(text);
        repair(&mut text);
        text.text()
    }

    fn misread_text(text: &str) -> String {
        text.bytes().map(from_windows_1252).collect()
    }

    #[test]
    fn misread_text_is_repaired_and_other_text_left_alone() {
        assert_eq!(repaired("cafÃ© â€œhelloâ€\u{9d}"), "café “hello”");
        assert_eq!(repaired("Î²-catenin, 5 Âµm, â‰¥ 3 mm, 37 Â°C"), "β-catenin, 5 µm, ≥ 3 mm, 37 °C");
        assert_eq!(repaired(&misread_text(&misread_text("naïve 5 µm ≥"))), "naïve 5 µm ≥");
        for text in
            ["CAFÉ”", "groß…", "à la carte", "É. coli", "naïve café", "Ångström", "MÜLLER’S", "“fiancé”"]
        {
            assert_eq!(repaired(text), text);
        }
    }

    proptest! {
        #[test]
        fn what_a_radiologist_writes_survives_being_misread(text in "[a-zA-Z0-9 .,;()éèüöäµ°±≥≤–—’“”βαμ×½]{0,40}") {
            // `è°µ` itself may be a misread character.
            prop_assume!(repaired(&text) == text);
            prop_assert_eq!(repaired(&misread_text(&text)), text);
        }

        #[test]
        fn any_text_ends(text in any::<String>()) {
            repaired(&text);
        }
    }
}
