//! Prompts that say less.

use std::collections::BTreeSet;

use pipe_models::Tokenizer;
use pipe_models::random::Key;

use crate::classifier::PromptIds;

/// Prompts in which every token that does not occur in the prompts of all classes is replaced by a
/// random word, the same one for the same token of a class. `None` if the vocabulary has no words
/// beside those of the prompts.
pub(super) fn nonsense(prompts: &PromptIds, tokenizer: &Tokenizer, pad: u32, key: Key) -> Option<PromptIds> {
    let of_class = |texts: &Vec<Vec<u32>>| texts.iter().flatten().copied().collect::<BTreeSet<u32>>();
    let classes: Vec<BTreeSet<u32>> = prompts.iter().map(of_class).collect();
    let mut kept = classes.iter().skip(1).fold(classes.first()?.clone(), |kept, class| &kept & class);
    kept.extend([tokenizer.end(), pad]);
    kept.extend(tokenizer.start());
    let used: BTreeSet<u32> = classes.into_iter().flatten().collect();
    let words: Vec<u32> = tokenizer.words().into_iter().filter(|word| !used.contains(word)).collect();
    if words.is_empty() {
        return None;
    }
    let replace = |class: usize, id: u32| {
        let draw = key.sub(class as u64).below(u64::from(id) + 1, words.len() as u64);
        if kept.contains(&id) { id } else { words[draw as usize] }
    };
    let texts = |(class, texts): (usize, &Vec<Vec<u32>>)| {
        texts.iter().map(|text| text.iter().map(|id| replace(class, *id)).collect()).collect()
    };
    Some(prompts.iter().enumerate().map(texts).collect())
}

/// The prompts of all classes as those of one.
pub(super) fn uninformative(prompts: &PromptIds) -> PromptIds {
    vec![prompts.concat()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_classes_apart_is_replaced() {
        let texts = ["the chest with a nodule", "the chest with an effusion", "liver kidney femur spleen"];
        let tokenizer = Tokenizer::train(texts, 1024).unwrap();
        let encode = |text: &str| tokenizer.encode(text, 9, 0).unwrap().ids;
        let prompts = vec![vec![encode(texts[0])], vec![encode(texts[1])]];
        let changed = nonsense(&prompts, &tokenizer, 0, Key(1)).unwrap();
        let words = |ids: &[u32]| ids.iter().map(|id| tokenizer.token(*id)).collect::<Vec<_>>();
        let (before, after) = (words(&prompts[0][0]), words(&changed[0][0]));
        assert_eq!(before[..4], after[..4]);
        assert!(["liver", "kidney", "femur", "spleen"].contains(&after[5].as_str()), "{after:?}");
        assert_eq!(before[6..], after[6..], "the end mark and the padding stay");
        assert_eq!(changed, nonsense(&prompts, &tokenizer, 0, Key(1)).unwrap());
        assert_eq!(uninformative(&prompts)[0].len(), 2);
    }
}
