//! Questions about an image, with a planted language prior.

use super::factors::{Knobs, Subject, subjects};
use super::params::{Params, Prior, PriorRule, PriorTest};
use super::stream::{Stream, key};
use super::topics::{Case, Topic, topics, worded};

/// A question with its answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    pub(super) topic: Topic,
    pub(super) case: Case,
    /// Whether its wording is one that gives an answer away.
    pub(super) leaky: bool,
    pub(super) text: String,
    /// The same question in other words.
    pub(super) paraphrase: Option<String>,
}

impl Question {
    pub(super) fn answer(&self) -> &'static str {
        self.topic.grammar().answers[self.case.answer]
    }

    /// What one has to look at to be sure of the answer.
    pub(super) fn needs(&self) -> &'static str {
        match (self.leaky, self.topic.needs_both()) {
            (true, _) => "question",
            (false, true) => "both",
            (false, false) => "image",
        }
    }
}

/// How questions are worded in a split.
#[derive(Clone, Debug)]
pub(super) struct Language {
    /// Share of telling wordings, by topic.
    leaky: [f64; Topic::ALL.len()],
    /// For each topic and answer, the answer whose telling wording is used for it.
    tells: Vec<Vec<usize>>,
    paraphrase: bool,
}

impl Language {
    /// The language of training, or that of validation and test.
    pub(super) fn new(params: &Params, knobs: &Knobs, training: bool) -> Self {
        let (prior, anti) = match &params.prior_test {
            _ if training => (params.prior.clone(), false),
            PriorTest::Rule(rule) => (params.prior.clone(), *rule == PriorRule::Anti),
            PriorTest::Same(share) => (Prior::Same(*share), false),
            PriorTest::ByType(shares) => (Prior::ByType(*shares), false),
        };
        let possible = possible_answers(knobs);
        let tells = Topic::ALL.into_iter().zip(possible).map(|(topic, possible)| {
            let mut tells: Vec<usize> = (0..topic.grammar().answers.len()).collect();
            if anti {
                // Each answer takes the tell of the next one that can occur.
                for (place, answer) in possible.iter().enumerate() {
                    tells[*answer] = possible[(place + 1) % possible.len()];
                }
            }
            tells
        });
        Self {
            leaky: Topic::ALL.map(|topic| prior.of(topic)),
            tells: tells.collect(),
            paraphrase: params.paraphrase,
        }
    }

    /// Share of telling wordings among the questions of a topic.
    pub(super) fn leaky(&self, topic: Topic) -> f64 {
        self.leaky[topic as usize]
    }

    /// Whether the telling wording of an answer tells the truth.
    pub(super) fn is_honest(&self, topic: Topic, answer: usize) -> bool {
        self.tells[topic as usize][answer] == answer
    }

    /// Question number `k` about an image.
    pub(super) fn ask(&self, subject: &Subject, seed: u64, (patient, image): (u64, u64), k: u64) -> Question {
        let mut stream = Stream::new(key(seed, "medical", "question", &[patient, image, k]));
        let topics = topics(subject);
        let weights: Vec<f64> = topics.iter().map(|(_, weight)| *weight).collect();
        let topic = topics[stream.weighted(&weights)].0;
        let cases = topic.cases(subject);
        let shares: Vec<f64> = cases.iter().map(|case| case.probability).collect();
        let case = cases[stream.weighted(&shares)];
        let leaky = stream.chance(self.leaky(topic));
        let grammar = topic.grammar();
        let neutral = stream.below(grammar.neutral.len() as u64) as usize;
        let other = 1 + stream.below(grammar.neutral.len() as u64 - 1) as usize;
        let (text, paraphrase) = if leaky {
            let tell = worded(grammar.tells[self.tells[topic as usize][case.answer]], &case);
            let again = format!("in this image, {tell}");
            (tell, again)
        } else {
            let again = grammar.neutral[(neutral + other) % grammar.neutral.len()];
            (worded(grammar.neutral[neutral], &case), worded(again, &case))
        };
        Question { topic, case, leaky, text, paraphrase: self.paraphrase.then_some(paraphrase) }
    }
}

/// The answers of each topic that the generator can give.
fn possible_answers(knobs: &Knobs) -> Vec<Vec<usize>> {
    let subjects = subjects(knobs);
    let possible = |topic: Topic| {
        let mut answers: Vec<usize> =
            subjects.iter().flat_map(|(subject, _)| topic.cases(subject)).map(|case| case.answer).collect();
        answers.sort_unstable();
        answers.dedup();
        answers
    };
    Topic::ALL.into_iter().map(possible).collect()
}
