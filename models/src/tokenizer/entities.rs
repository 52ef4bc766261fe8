//! HTML character references, by the rules of the HTML standard (as Python's `html.unescape`).

use std::collections::HashMap;
use std::sync::LazyLock;

use super::aligned::Aligned;

/// Names with their semicolon where they have one; old names are known without it too.
static NAMES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    entities::ENTITIES.iter().map(|entity| (&entity.entity[1..], entity.characters)).collect()
});

/// Longer than any name.
const LONGEST: usize = 32;

/// Replaces all references once.
pub(super) fn unescape(text: &mut Aligned) {
    if text.chars().contains(&'&') {
        text.rewrite(reference);
    }
}

/// As [`unescape`], but only references that end in a semicolon and are known.
pub(super) fn unescape_complete(text: &mut Aligned) {
    if text.chars().contains(&'&') {
        text.rewrite(|rest| {
            let (length, new) = reference(rest)?;
            (rest[length - 1] == ';' && !new.starts_with('&') || new == "&").then_some((length, new))
        });
    }
}

/// The reference at the front of `rest`, and what it stands for.
fn reference(rest: &[char]) -> Option<(usize, String)> {
    match rest {
        ['&', '#', 'x' | 'X', digits @ ..] => numeric(digits, 16).map(|(length, new)| (length + 3, new)),
        ['&', '#', digits @ ..] => numeric(digits, 10).map(|(length, new)| (length + 2, new)),
        ['&', name @ ..] => {
            let ends = |char: &char| matches!(char, '\t' | '\n' | '\u{c}' | ' ' | '<' | '&' | '#' | ';');
            let length = name.iter().take(LONGEST).position(ends).unwrap_or(name.len().min(LONGEST));
            let semicolon = name.get(length) == Some(&';');
            let name: String = name[..length + usize::from(semicolon)].iter().collect();
            // The longest known beginning counts.
            (2..=name.len()).rev().filter(|end| name.is_char_boundary(*end)).find_map(|end| {
                let new = NAMES.get(&name[..end])?;
                Some((name[..end].chars().count() + 1, (*new).to_owned()))
            })
        }
        _ => None,
    }
}

/// Digits and an optional semicolon.
fn numeric(digits: &[char], radix: u32) -> Option<(usize, String)> {
    let length = digits.iter().take_while(|char| char.is_digit(radix)).count();
    if length == 0 {
        return None;
    }
    let number = digits[..length].iter().fold(0u32, |number, digit| {
        number.saturating_mul(radix).saturating_add(digit.to_digit(radix).unwrap_or(0))
    });
    let new = match number {
        0 | 0xd800..=0xdfff | 0x0011_0000.. => '\u{fffd}'.to_string(),
        0xd => '\r'.to_string(),
        0x80..=0x9f => super::mojibake::from_windows_1252(number as u8).to_string(),
        // Control characters and code points that are no characters vanish.
        0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        _ if number & 0xfffe == 0xfffe => String::new(),
        _ => char::from_u32(number).map(String::from).unwrap_or_default(),
    };
    Some((length + usize::from(digits.get(length) == Some(&';')), new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unescaped(text: &str) -> String {
        let mut text = Aligned::new(text);
        unescape(&mut text);
        text.text()
    }

    #[test]
    fn references_are_resolved_as_browsers_do() {
        for (text, expected) in [
            ("AT&amp;T &lt;b&gt; &quot;q&quot;", "AT&T <b> \"q\""),
            ("&notanentity; &copy &copy; &unknown; & &;", "¬anentity; © © &unknown; & &;"),
            ("&#8804;5 &#x2264;5 &#X41 &#65x", "≤5 ≤5 A Ax"),
            ("&#0; &#128; &#x110000; &#xd800; &#1; &#xfffe;", "\u{fffd} € \u{fffd} \u{fffd}  "),
            ("&#99999999999999999999;", "\u{fffd}"),
            ("&# &#x; &#xg", "&# &#x; &#xg"),
            ("&NotEqualTilde;", "\u{2242}\u{338}"),
            ("&amp;amp;", "&amp;"),
            ("&é; &ampé", "&é; &é"),
        ] {
            assert_eq!(unescaped(text), expected, "{text}");
        }
    }

    #[test]
    fn only_complete_references_are_replaced_where_so_asked() {
        let mut text = Aligned::new("&copy &copy; &notit; &amp;");
        unescape_complete(&mut text);
        assert_eq!(text.text(), "&copy © &notit; &");
    }
}
