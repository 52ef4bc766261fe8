//! The cleaning of captions before CLIP's tokeniser (OpenAI, open_clip): repaired characters (what
//! captions hold of the repairs of the ftfy library), HTML references, white space, lower case.

use unicode_normalization::{
    IsNormalized, UnicodeNormalization, char::canonical_combining_class, is_nfc_quick,
};

use super::aligned::Aligned;
use super::entities::{unescape, unescape_complete};
use super::mojibake;

/// Repairs, resolves references twice, and makes every run of white space one space.
pub(super) fn basic(text: &mut Aligned) {
    repair(text);
    unescape(text);
    unescape(text);
    collapse_white_space(text);
}

/// Characters as they were meant, line by line.
fn repair(text: &mut Aligned) {
    let plain = |char: &char| matches!(char, ' '..='~' | '\n' | '\t') && *char != '&';
    if text.chars().iter().all(plain) {
        return;
    }
    // References are resolved here only where no mark-up is; what they hide is repaired too. Each round
    // with an effect makes the text shorter or plainer; the number of rounds is bounded for texts made
    // to do harm.
    let marked_up = text.chars().contains(&'<');
    for _ in 0..8 {
        let before = text.clone();
        if !marked_up {
            unescape_complete(text);
        }
        mojibake::repair(text);
        text.rewrite(control_of_windows);
        text.rewrite(|rest| ligature(rest[0]).or_else(|| width(rest[0])).map(|new| (1, new)));
        text.rewrite(|rest| quote(rest[0]).map(|new| (1, new.to_owned())));
        text.rewrite(line_break);
        text.rewrite(terminal_escape);
        text.rewrite(|rest| is_control(rest[0]).then(|| (1, String::new())));
        compose(text);
        if *text == before {
            return;
        }
    }
}

/// Control characters that no text has were meant as Windows-1252.
fn control_of_windows(rest: &[char]) -> Option<(usize, String)> {
    let byte = u8::try_from(u32::from(rest[0])).ok().filter(|byte| (0x80..=0x9f).contains(byte))?;
    Some((1, mojibake::from_windows_1252(byte).to_string()))
}

/// The letters of a ligature that is only a matter of print.
fn ligature(char: char) -> Option<String> {
    let ligature = matches!(char, '\u{132}' | '\u{133}' | '\u{149}' | '\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}'
        | '\u{fb00}'..='\u{fb06}');
    ligature.then(|| char.to_string().nfkc().collect())
}

/// The ordinary form of a character of East Asian width.
fn width(char: char) -> Option<String> {
    matches!(char, '\u{3000}' | '\u{ff01}'..='\u{ffef}')
        .then(|| char.to_string().nfkc().collect::<String>())
        .filter(|new| !new.starts_with(char))
}

fn quote(char: char) -> Option<&'static str> {
    match char {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some("'"),
        '\u{201c}'..='\u{201f}' => Some("\""),
        _ => None,
    }
}

fn line_break(rest: &[char]) -> Option<(usize, String)> {
    match rest {
        ['\r', '\n', ..] => Some((2, "\n".to_owned())),
        ['\r' | '\u{85}' | '\u{2028}' | '\u{2029}', ..] => Some((1, "\n".to_owned())),
        _ => None,
    }
}

/// A colour command of a terminal.
fn terminal_escape(rest: &[char]) -> Option<(usize, String)> {
    let ['\u{1b}', '[', parameters @ ..] = rest else { return None };
    let length = parameters.iter().take_while(|char| matches!(char, '0'..='9' | ';')).count();
    parameters.get(length).filter(|char| char.is_ascii_alphabetic()).map(|_| (length + 3, String::new()))
}

/// Characters without a meaning in a text.
fn is_control(char: char) -> bool {
    matches!(char, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffc}')
}

/// Unicode's composed form (NFC). A segment that no later character combines with is composed at once.
fn compose(text: &mut Aligned) {
    if is_nfc_quick(text.chars().iter().copied()) == IsNormalized::Yes {
        return;
    }
    text.rewrite(|rest| {
        let begins = |char: char| {
            canonical_combining_class(char) == 0 && is_nfc_quick([char].into_iter()) == IsNormalized::Yes
        };
        let length = rest[1..].iter().position(|char| begins(*char)).map_or(rest.len(), |place| place + 1);
        let segment = &rest[..length];
        let composed: String = segment.iter().copied().nfc().collect();
        (!composed.chars().eq(segment.iter().copied())).then_some((length, composed))
    });
}

/// Python's `str.split` counts the separators of ASCII as white space too.
pub(super) fn is_white(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{1c}'..='\u{1f}')
}

/// Every run of white space becomes one space, none at the ends.
pub(super) fn collapse_white_space(text: &mut Aligned) {
    text.trim(is_white);
    text.rewrite(|rest| {
        let length = rest.iter().take_while(|char| is_white(**char)).count();
        (length > 0).then(|| (length, " ".to_owned()))
    });
}

/// Lower case; a capital sigma becomes a final one where it ends a word.
pub(super) fn lower(text: &mut Aligned) {
    let whole = text.text().to_lowercase();
    let mut letters = whole.chars();
    text.rewrite(|rest| {
        let new: String = letters.by_ref().take(rest[0].to_lowercase().count()).collect();
        Some((1, new))
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cleaned(text: &str) -> String {
        let mut text = Aligned::new(text);
        basic(&mut text);
        text.text()
    }

    #[test]
    fn captions_are_repaired() {
        for (text, expected) in [
            ("plain caption, 5 mm", "plain caption, 5 mm"),
            ("“curly” and ‘single’ — dash…", "\"curly\" and 'single' — dash…"),
            ("ﬁbrosis, eﬀusion", "fibrosis, effusion"),
            ("５ ｆｕｌｌ　ＡＢＣ", "5 full ABC"),
            ("a\r\nb\rc\u{2028}d\u{85}e", "a b c d…e"),
            ("\u{feff}BOM\0 \u{7}bell \u{1b}[31mred\u{1b}[0m", "BOM bell red"),
            ("e\u{301} A\u{30a} \u{212b}", "é Å Å"),
            ("&amp;amp;amp; <", "&amp; <"),
            ("&amp;amp;amp;", "&"),
            ("&rsquo;quoted&rsquo; 5&nbsp;&micro;m", "'quoted' 5 µm"),
            (" \t ", ""),
        ] {
            assert_eq!(cleaned(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_final_sigma_is_one() {
        let mut text = Aligned::new("ΑΣΟΦΟΣ İ ẞ");
        lower(&mut text);
        assert_eq!(text.text(), "ασοφος i\u{307} ß");
        assert_eq!(text.origin(5..6), 10..12);
        assert_eq!(text.origin(7..9), 13..15);
        assert_eq!(text.origin(10..11), 16..19);
    }

    proptest! {
        #[test]
        fn any_text_is_cleaned_without_a_panic(text in any::<String>()) {
            let mut aligned = Aligned::new(&text);
            basic(&mut aligned);
            lower(&mut aligned);
            let length = text.len();
            for place in 0..aligned.chars().len() {
                let origin = aligned.origin(place..place + 1);
                prop_assert!(origin.start < origin.end && origin.end <= length);
            }
        }

        #[test]
        fn composing_by_segments_is_nfc(text in "[a-eo\u{301}\u{30a}\u{323}\u{1100}-\u{1112}\u{1161}-\u{1175}\u{11a8}-\u{11c2}가-각\u{212b}]{0,12}") {
            let mut aligned = Aligned::new(&text);
            compose(&mut aligned);
            prop_assert_eq!(aligned.text(), text.nfc().collect::<String>());
        }
    }
}
