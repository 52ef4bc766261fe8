//! CLIP's byte-pair encoding as OpenAI's and open_clip's code has it (Radford et al. 2021): cleaned
//! text, pieces by a pattern, pairs merged by rank.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use fancy_regex::Regex;
use serde_json::Value as Json;

use super::aligned::Aligned;
use super::byte_pairs::{WORD_END, byte_characters};
use super::clean;

/// Characters of a cleaned text that are looked at: many times what the longest context holds.
const LENGTH_LIMIT: usize = 1 << 14;
/// open_clip's spelling of the marks in a text.
const MARKS: [&str; 2] = ["<start_of_text>", "<end_of_text>"];

/// Marks, the endings of contractions, words, single digits, runs of anything else.
static PIECES: LazyLock<Regex> = LazyLock::new(|| {
    let pattern =
        r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    Regex::new(pattern).expect("the pattern is a regular expression")
});

/// A vocabulary and its merges.
#[derive(Clone, Debug)]
pub(super) struct ClipEncoder {
    /// Per byte: the id of its character within a word, and at the end of one.
    bytes: Vec<[u32; 2]>,
    /// Rank and merged id of each pair of neighbours.
    merges: HashMap<(u32, u32), (u32, u32)>,
    marks: [u32; 2],
}

/// An id, and the bytes of the original text that it stands for.
pub(super) type Piece = (u32, Range<usize>);

impl ClipEncoder {
    /// Reads the model of a `tokenizer.json`; `None` if it is of another kind than CLIP's.
    pub(super) fn from_model(model: &Json, marks: [u32; 2]) -> Result<Option<Self>, String> {
        if model["type"] != "BPE" || model["end_of_word_suffix"] != WORD_END {
            return Ok(None);
        }
        let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array())
        else {
            return Err("its model has no `vocab` or no `merges`".to_owned());
        };
        let id = |piece: &str| -> Result<u32, String> {
            vocabulary
                .get(piece)
                .and_then(Json::as_u64)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| format!("its vocabulary has no piece `{piece}`"))
        };
        let bytes = byte_characters()
            .iter()
            .map(|char| Ok([id(&char.to_string())?, id(&format!("{char}{WORD_END}"))?]))
            .collect::<Result<_, String>>()?;
        let mut ranks = HashMap::with_capacity(merges.len());
        for (rank, merge) in merges.iter().enumerate() {
            let pair = match (merge.as_str().and_then(|text| text.split_once(' ')), merge.as_array()) {
                (Some(pair), _) => pair,
                (_, Some(items)) if items.len() == 2 => {
                    (items[0].as_str().unwrap_or_default(), items[1].as_str().unwrap_or_default())
                }
                _ => return Err(format!("its merge {rank} is {merge}; two pieces are expected")),
            };
            let merged = id(&format!("{}{}", pair.0, pair.1))?;
            ranks.entry((id(pair.0)?, id(pair.1)?)).or_insert((rank as u32, merged));
        }
        Ok(Some(Self { bytes, merges: ranks, marks }))
    }

    /// The pieces of a text, without begin and end.
    pub(super) fn encode(&self, text: &mut Aligned) -> Result<Vec<Piece>, String> {
        clean::basic(text);
        clean::lower(text);
        text.truncate(LENGTH_LIMIT);
        let cleaned = text.text();
        let mut pieces = Vec::new();
        // Characters and bytes before the piece.
        let (mut chars, mut bytes) = (0, 0);
        for found in PIECES.find_iter(&cleaned) {
            let found = found.map_err(|error| error.to_string())?;
            chars += cleaned[bytes..found.start()].chars().count();
            bytes = found.start();
            self.encode_piece(found.as_str(), chars, text, &mut pieces);
        }
        Ok(pieces)
    }

    /// One piece, which begins at character `place` of the cleaned text.
    fn encode_piece(&self, piece: &str, place: usize, text: &Aligned, pieces: &mut Vec<Piece>) {
        let length = piece.chars().count();
        if let Some(mark) = MARKS.iter().position(|mark| *mark == piece) {
            pieces.push((self.marks[mark], text.origin(place..place + length)));
            return;
        }
        // The ids so far, and the first byte of each.
        let mut ids: Vec<u32> = piece.bytes().map(|byte| self.bytes[usize::from(byte)][0]).collect();
        let mut starts: Vec<usize> = (0..ids.len()).collect();
        if let (Some(id), Some(byte)) = (ids.last_mut(), piece.bytes().last()) {
            *id = self.bytes[usize::from(byte)][1];
        }
        while let Some(&(rank, merged)) =
            ids.windows(2).filter_map(|pair| self.merges.get(&(pair[0], pair[1]))).min()
        {
            let mut kept = 0;
            let mut at = 0;
            while at < ids.len() {
                let pair = ids.get(at + 1).and_then(|next| self.merges.get(&(ids[at], *next)));
                let step = if pair.is_some_and(|(other, _)| *other == rank) {
                    ids[kept] = merged;
                    2
                } else {
                    ids[kept] = ids[at];
                    1
                };
                starts[kept] = starts[at];
                kept += 1;
                at += step;
            }
            ids.truncate(kept);
            starts.truncate(kept);
        }
        // A piece that ends within a character stands for the whole character.
        let char_of: Vec<usize> =
            piece.chars().enumerate().flat_map(|(index, char)| vec![index; char.len_utf8()]).collect();
        let ends = starts[1..].iter().copied().chain([piece.len()]);
        for ((id, start), end) in ids.iter().zip(&starts).zip(ends) {
            let origin = text.origin(place + char_of[*start]..place + char_of[end - 1] + 1);
            pieces.push((*id, origin));
        }
    }
}
