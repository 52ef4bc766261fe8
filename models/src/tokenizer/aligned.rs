//! A text that remembers, while it is rewritten, where its characters came from.

use std::ops::Range;

/// Characters, and of each the range of bytes of the original text that it stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Aligned {
    chars: Vec<char>,
    origins: Vec<Range<usize>>,
}

impl Aligned {
    pub(super) fn new(text: &str) -> Self {
        let (chars, origins) =
            text.char_indices().map(|(place, char)| (char, place..place + char.len_utf8())).unzip();
        Self { chars, origins }
    }

    pub(super) fn chars(&self) -> &[char] {
        &self.chars
    }

    pub(super) fn text(&self) -> String {
        self.chars.iter().collect()
    }

    /// What a range of characters stands for in the original.
    pub(super) fn origin(&self, range: Range<usize>) -> Range<usize> {
        let origins = &self.origins[range];
        match (origins.first(), origins.last()) {
            (Some(first), Some(last)) => first.start..last.end.max(first.start),
            _ => 0..0,
        }
    }

    /// Goes through the text from left to right; wherever `rule` sees something to replace at the front
    /// of what is left, it says how many characters that is and what takes their place. What takes
    /// their place is not looked at again.
    pub(super) fn rewrite(&mut self, mut rule: impl FnMut(&[char]) -> Option<(usize, String)>) {
        let mut chars = Vec::with_capacity(self.chars.len());
        let mut origins = Vec::with_capacity(self.chars.len());
        let mut at = 0;
        while at < self.chars.len() {
            if let Some((length, new)) = rule(&self.chars[at..]) {
                let origin = self.origin(at..at + length);
                let before = chars.len();
                chars.extend(new.chars());
                origins.resize(origins.len() + chars.len() - before, origin);
                at += length.max(1);
            } else {
                chars.push(self.chars[at]);
                origins.push(self.origins[at].clone());
                at += 1;
            }
        }
        (self.chars, self.origins) = (chars, origins);
    }

    /// Cuts characters off at both ends.
    pub(super) fn trim(&mut self, cut: impl Fn(char) -> bool) {
        let end = self.chars.iter().rposition(|char| !cut(*char)).map_or(0, |last| last + 1);
        let start = self.chars[..end].iter().position(|char| !cut(*char)).unwrap_or(0);
        self.chars = self.chars[start..end].to_vec();
        self.origins = self.origins[start..end].to_vec();
    }

    /// Keeps only the first `length` characters.
    pub(super) fn truncate(&mut self, length: usize) {
        self.chars.truncate(length);
        self.origins.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_follow_what_is_replaced() {
        let mut text = Aligned::new("a &amp; b");
        text.rewrite(|rest| rest.starts_with(&['&', 'a', 'm', 'p', ';']).then(|| (5, "&".to_owned())));
        assert_eq!(text.text(), "a & b");
        assert_eq!(text.origin(2..3), 2..7);
        assert_eq!(text.origin(0..5), 0..9);
        text.rewrite(|rest| (rest[0] == '&').then(|| (1, "and".to_owned())));
        assert_eq!((text.text().as_str(), text.origin(3..4)), ("a and b", 2..7));
        text.rewrite(|rest| (rest[0] == 'a').then(|| (1, String::new())));
        text.trim(|char| char == ' ' || char == 'b');
        assert_eq!((text.text().as_str(), text.origin(0..2)), ("nd", 2..7));
        text.truncate(1);
        assert_eq!(text.text(), "n");
        text.trim(|_| true);
        assert_eq!((text.text().as_str(), text.origin(0..0)), ("", 0..0));
    }
}
