//! Prompts that say less.

use std::collections::BTreeSet;

use pipe_models::Tokenizer;
use pipe_models::random::Key;

use crate::classifier::PromptIds;

/// The texts of each class, and of independent labels those of its absence.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Texts {
    pub(super) present: PromptIds,
    pub(super) absent: Option<PromptIds>,
}

impl Texts {
    /// All texts of each class.
    fn joined(&self) -> PromptIds {
        match &self.absent {
            None => self.present.clone(),
            Some(absent) => self
                .present
                .iter()
                .zip(absent)
                .map(|(present, absent)| [&present[..], absent].concat())
                .collect(),
        }
    }
}

/// Prompts in which every token that does not occur in the prompts of all classes is replaced by a
/// random word, the same one for the same token of a class, also where the class is said to be absent.
/// `None` if the vocabulary has no words beside those of the prompts.
pub(super) fn nonsense(prompts: &Texts, tokenizer: &Tokenizer, pad: u32, key: Key) -> Option<Texts> {
    let of_class = |texts: &Vec<Vec<u32>>| texts.iter().flatten().copied().collect::<BTreeSet<u32>>();
    let classes: Vec<BTreeSet<u32>> = prompts.joined().iter().map(of_class).collect();
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
    let texts = |(class, texts): (usize, &Vec<Vec<u32>>)| -> Vec<Vec<u32>> {
        texts.iter().map(|text| text.iter().map(|id| replace(class, *id)).collect()).collect()
    };
    let replaced = |prompts: &PromptIds| prompts.iter().enumerate().map(texts).collect();
    Some(Texts { present: replaced(&prompts.present), absent: prompts.absent.as_ref().map(replaced) })
}

/// The prompts of all classes as those of one.
pub(super) fn uninformative(prompts: &Texts) -> Texts {
    let one = |prompts: &PromptIds| vec![prompts.concat()];
    Texts { present: one(&prompts.present), absent: prompts.absent.as_ref().map(one) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_tells_classes_apart_is_replaced() {
        let texts = ["the chest with a nodule", "the chest with an effusion", "liver kidney femur spleen"];
        let tokenizer = Tokenizer::train(texts, 1024).unwrap();
        let encode = |text: &str| tokenizer.encode(text, 9, 0).unwrap().ids;
        let prompts = Texts { present: vec![vec![encode(texts[0])], vec![encode(texts[1])]], absent: None };
        let changed = nonsense(&prompts, &tokenizer, 0, Key(1)).unwrap();
        let words = |ids: &[u32]| ids.iter().map(|id| tokenizer.token(*id)).collect::<Vec<_>>();
        let (before, after) = (words(&prompts.present[0][0]), words(&changed.present[0][0]));
        assert_eq!(before[..4], after[..4]);
        assert!(["liver", "kidney", "femur", "spleen"].contains(&after[5].as_str()), "{after:?}");
        assert_eq!(before[6..], after[6..], "the end mark and the padding stay");
        assert_eq!(changed, nonsense(&prompts, &tokenizer, 0, Key(1)).unwrap());
        assert_eq!(uninformative(&prompts).present[0].len(), 2);
    }

    #[test]
    fn what_is_absent_has_the_same_nonsense_name() {
        let texts =
            ["a nodule is there", "a nodule is not there", "an effusion is not there", "liver femur spleen"];
        let tokenizer = Tokenizer::train(texts, 1024).unwrap();
        let encode = |text: &str| vec![tokenizer.encode(text, 9, 0).unwrap().ids];
        let prompts = Texts {
            present: vec![encode("a nodule is there"), encode("an effusion is there")],
            absent: Some(vec![encode("a nodule is not there"), encode("an effusion is not there")]),
        };
        let changed = nonsense(&prompts, &tokenizer, 0, Key(1)).unwrap();
        let words = |ids: &[u32]| ids.iter().map(|id| tokenizer.token(*id)).collect::<Vec<_>>();
        let present = words(&changed.present[0][0]);
        let absent = words(&changed.absent.as_ref().unwrap()[0][0]);
        assert_ne!(present[2], words(&prompts.present[0][0])[2]);
        assert_eq!(present[..4], absent[..4], "the same word for the same label");
        // What tells presence from absence is in the texts of every class.
        assert_eq!(absent[4..], words(&prompts.absent.as_ref().unwrap()[0][0])[4..]);
        assert_eq!(uninformative(&prompts).absent.unwrap()[0].len(), 2);
    }
}
