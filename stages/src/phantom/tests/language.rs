//! Questions, captions and labels, and the figures that follow from them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::phantom::captions::{caption, facts};
use crate::phantom::expected::Expected;
use crate::phantom::factors::subjects;
use crate::phantom::language_prior::{LanguagePrior, image_only, lookup};
use crate::phantom::questions::{Language, Question};
use crate::phantom::rows::knobs;
use crate::phantom::sites::FINDINGS;
use crate::phantom::topics::{Topic, topics, worded};
use crate::phantom::{Kappa, Prior, PriorRule, PriorTest, Style, Weights};

/// Questions of many patients, without drawing any image.
fn ask(params: &Params, training: bool, patients: std::ops::Range<u64>) -> Vec<Question> {
    let knobs = knobs(params, training);
    let language = Language::new(params, &knobs, training);
    patients
        .flat_map(|patient| {
            let subject = crate::phantom::factors::Factors::draw(&knobs, patient, 0).subject;
            let ask = |k| language.ask(&subject, params.seed as u64, (patient, 0), k);
            (0..params.questions_in(training)).map(ask).collect::<Vec<_>>()
        })
        .collect()
}

fn asking(questions: i64) -> Params {
    Params { questions, ..Params::default() }
}

fn question_only(params: &Params, questions: &[Question]) -> Vec<Expected> {
    let knobs = knobs(params, false);
    let [training, test] = [true, false].map(|training| Language::new(params, &knobs, training));
    let prior = LanguagePrior::new(&knobs, &training, &test);
    prior.question_only("test", &questions.iter().collect::<Vec<_>>())
}

fn value(figures: &[Expected], subset: &str) -> f64 {
    figures.iter().find(|one| one.subset == subset).unwrap_or_else(|| panic!("no figure of {subset}")).value
}

fn looked_up(training: &[Question], test: &[Question]) -> f64 {
    fn texts(questions: &[Question]) -> Vec<(&str, &'static str)> {
        questions.iter().map(|one| (one.text.as_str(), one.answer())).collect()
    }
    lookup("test", &texts(training), &texts(test))[0].value
}

/// Every wording of a closed question that names a finding is answered yes and no equally often, and so is
/// every image: neither alone says anything. Exactly, by the generator's own probabilities.
#[test]
fn closed_questions_are_balanced_per_wording_and_finding_and_per_image() {
    for weights in [Weights::All, Weights::Thesis, Weights::Chest] {
        for findings_per_image in [1, 2] {
            let task = Task::Findings;
            let params = Params { weights, findings_per_image, task, p_normal: 0.3, ..asking(2) };
            let mut by_wording: BTreeMap<(Topic, Option<usize>, Option<bool>), [f64; 2]> = BTreeMap::new();
            let mut total = 0.0;
            for (subject, probability) in subjects(&knobs(&params, false)) {
                total += probability;
                let topics = topics(&subject);
                assert!((topics.iter().map(|(_, weight)| weight).sum::<f64>() - 1.0).abs() < 1e-12);
                for (topic, weight) in topics {
                    let cases = topic.cases(&subject);
                    assert!((cases.iter().map(|case| case.probability).sum::<f64>() - 1.0).abs() < 1e-12);
                    if !topic.needs_both() {
                        continue;
                    }
                    let of_image = cases.iter().filter(|case| case.answer == 0).map(|case| case.probability);
                    assert!((of_image.sum::<f64>() - 0.5).abs() < 1e-12, "{subject:?}");
                    for case in cases {
                        by_wording.entry((topic, case.finding, case.left)).or_default()[case.answer] +=
                            probability * weight * case.probability;
                    }
                }
            }
            assert!((total - 1.0).abs() < 1e-12, "probabilities of subjects sum to {total}");
            assert!(by_wording.len() >= 4);
            for (wording, [yes, no]) in by_wording {
                assert!((yes / (yes + no) - 0.5).abs() < 1e-9, "{wording:?}: {yes} yes, {no} no");
            }
        }
    }
}

/// The same of rows as they are drawn, by the words that stand in the table.
#[test]
fn drawn_closed_questions_are_balanced_per_wording() {
    let questions = ask(&asking(4), true, 0..12_000);
    let mut counts: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for question in questions.iter().filter(|one| one.needs() == "both") {
        counts.entry(&question.text).or_default()[question.case.answer] += 1.0;
    }
    assert!(counts.len() > 40, "{} wordings", counts.len());
    for (wording, [yes, no]) in counts {
        let n = yes + no;
        let off = (yes / n - 0.5).abs() / (0.5 / n.sqrt());
        // The greatest of fifty fair coins stays below four standard errors.
        assert!(off < 4.0, "{wording}: {yes} yes, {no} no");
    }
}

#[test]
fn a_drawn_question_is_one_of_its_types_and_tells_are_distinct() {
    let mut tells = BTreeSet::new();
    let mut neutral = BTreeSet::new();
    for topic in Topic::ALL {
        let grammar = topic.grammar();
        assert_eq!(grammar.answers.len(), grammar.tells.len(), "{}", grammar.name);
        assert!((2..=3).contains(&grammar.neutral.len()), "{}", grammar.name);
        assert!(grammar.tells.iter().all(|tell| tells.insert(*tell)), "{}", grammar.name);
        assert!(grammar.neutral.iter().all(|wording| neutral.insert(*wording)), "{}", grammar.name);
    }
    assert!(tells.is_disjoint(&neutral));
    let sum: f64 = Topic::ALL.iter().map(|topic| topic.grammar().weight).sum();
    assert!((sum - 1.0).abs() < 1e-12);
    let params = Params { paraphrase: true, weights: Weights::All, ..asking(3) };
    for question in ask(&params, true, 0..3000) {
        let again = question.paraphrase.as_deref().unwrap();
        assert_ne!(again, question.text);
        for text in [again, &question.text] {
            assert!(!text.contains(['{', '}']), "{text}");
            assert!(text.ends_with('?') && text.split(' ').count() <= 12, "{text}");
        }
        let tell = worded(question.topic.grammar().tells[question.case.answer], &question.case);
        assert_eq!(question.leaky, question.text == tell);
        assert_eq!(question.leaky, again.ends_with(&tell));
    }
}

/// The closed form, the prototype's figures, and what a lookup reaches, agree.
#[test]
fn what_questions_give_away_is_known() {
    let params = Params { questions_test: Some(3), ..asking(2) };
    let training = ask(&params, true, 0..3000);
    let test = ask(&params, false, 200_000..201_000);
    let figures = question_only(&params, &test);
    let overall = value(&figures, "all");
    assert!((overall - 0.592).abs() < 0.015, "A_Q is {overall}, the prototype's .592");
    let prototype = [
        ("modality", 0.52),
        ("plane", 0.65),
        ("organ", 0.52),
        ("abnormality", 0.50),
        ("presence", 0.70),
        ("side", 0.65),
        ("side check", 0.50),
        ("size", 0.65),
        ("count", 0.65),
    ];
    for (name, expected) in prototype {
        let ours = value(&figures, &format!("type={name}"));
        assert!((ours - expected).abs() < 0.05, "{name}: {ours}, the prototype's {expected}");
    }
    assert_eq!(value(&figures, "needs=question"), 1.0);
    assert!((value(&figures, "needs=both") - 0.5).abs() < 1e-9);
    // A lookup that has seen very many questions reaches the closed form; with few, a little less.
    let reached = looked_up(&training, &test);
    assert!(reached > overall - 0.05 && reached < overall + 0.02, "{reached} against {overall}");
    let many = ask(&asking(4), true, 0..30_000);
    let test = ask(&asking(4), false, 200_000..220_000);
    let (reached, overall) = (looked_up(&many, &test), value(&question_only(&params, &test), "all"));
    assert!((reached - overall).abs() < 0.006, "{reached} against {overall}");
}

#[test]
fn what_images_give_away_is_known() {
    let params = asking(3);
    let knobs = knobs(&params, false);
    let language = Language::new(&params, &knobs, false);
    let rows: Vec<_> = (200_000..201_000)
        .map(|patient| {
            let subject = crate::phantom::factors::Factors::draw(&knobs, patient, 0).subject;
            let ask = |k| language.ask(&subject, 2026, (patient, 0), k);
            (subject.clone(), (0..3).map(ask).collect::<Vec<_>>())
        })
        .collect();
    let subjects: Vec<_> = rows.iter().map(|(subject, questions)| (subject, questions.as_slice())).collect();
    let figures = image_only("test", &language, &subjects);
    let overall = value(&figures, "all");
    assert!((overall - 0.245).abs() < 0.02, "{overall}, the prototype's .245");
    assert!((value(&figures, "needs=both") - 0.5).abs() < 1e-9);
}

#[test]
fn permuted_tells_mislead_and_leave_the_rest_alone() {
    let anti = Params { prior_test: PriorTest::Rule(PriorRule::Anti), ..asking(3) };
    let same = ask(&asking(3), false, 200_000..201_000);
    let test = ask(&anti, false, 200_000..201_000);
    for (same, test) in same.iter().zip(&test) {
        assert_eq!((same.leaky, same.case), (test.leaky, test.case));
        assert_eq!(same.text != test.text, test.leaky, "{} became {}", same.text, test.text);
    }
    let figures = question_only(&anti, &test);
    // The mean of (1 - lambda) m; the prototype's was .32.
    assert!((value(&figures, "all") - 0.32).abs() < 0.02, "{}", value(&figures, "all"));
    assert_eq!(value(&figures, "needs=question"), 0.0);
    let reached = looked_up(&ask(&asking(2), true, 0..3000), &test);
    assert!((reached - value(&figures, "all")).abs() < 0.04, "{reached}");
    // Where only one answer can be right, its tell stays.
    let chest = Params { weights: Weights::Chest, ..anti };
    let test = ask(&chest, false, 200_000..200_300);
    assert_eq!(value(&question_only(&chest, &test), "type=modality"), 1.0);
    assert!(test.iter().all(|one| one.text != "what is filled with fluid?"), "chests have no cysts");
}

#[test]
fn the_strength_of_the_prior_is_one_number_or_many() {
    let leaky = |params: &Params, training| {
        let questions = ask(params, training, 0..1500);
        questions.iter().filter(|one| one.leaky).count() as f64 / questions.len() as f64
    };
    let params = Params { prior: Prior::Same(0.5), prior_test: PriorTest::Same(0.0), ..asking(3) };
    assert!((leaky(&params, true) - 0.5).abs() < 0.03);
    assert_eq!(leaky(&params, false), 0.0);
    assert!((leaky(&asking(3), true) - 0.262).abs() < 0.03, "the prototype's share");
    // Wordings that training never used give nothing away.
    let unseen = Params { prior: Prior::Same(0.0), prior_test: PriorTest::Same(0.5), ..asking(3) };
    let test = ask(&unseen, false, 200_000..200_500);
    let figures = question_only(&unseen, &test);
    assert!((value(&figures, "type=presence") - 0.5).abs() < 1e-9);
}

#[test]
fn captions_mention_what_kappa_says() {
    let kappa =
        Kappa { modality: 0.6, region: 0.5, finding: 0.4, count: 0.7, plane: 0.1, size: 0.2, side: 0.3 };
    let params = Params { findings_per_image: 2, task: Task::Findings, ..Params::default() };
    let knobs = knobs(&params, true);
    let mut said: BTreeMap<&str, (f64, f64, f64)> = BTreeMap::new();
    let mut texts: BTreeMap<String, Vec<(&str, String)>> = BTreeMap::new();
    for patient in 0..20_000 {
        let subject = crate::phantom::factors::Factors::draw(&knobs, patient, 0).subject;
        let facts = facts(&subject, &kappa);
        let caption = caption(&subject, &kappa, Style::Caption, 2026, (patient, 0));
        for fact in &facts {
            let entry = said.entry(fact.name).or_default();
            *entry = (
                entry.0 + f64::from(u8::from(caption.mentioned.contains(&fact.name))),
                entry.1 + 1.0,
                fact.kappa,
            );
        }
        // A text states the same facts wherever it stands: it gives away nothing that it does not mention.
        let stated: Vec<(&str, String)> =
            caption.stated(&facts).into_iter().map(|fact| (fact.name, fact.value.clone())).collect();
        let known = texts.entry(caption.text.clone()).or_insert_with(|| stated.clone());
        assert_eq!(*known, stated, "{}", caption.text);
    }
    for (name, (mentioned, count, kappa)) in said {
        let share = mentioned / count;
        let error = (kappa * (1.0 - kappa) / count).sqrt();
        assert!((share - kappa).abs() < 4.0 * error, "{name}: {share} against {kappa}");
    }
}

#[test]
fn a_report_says_what_is_absent() {
    let params = Params {
        style: Style::Report,
        weights: Weights::All,
        train: 300,
        test: 0,
        size: 28,
        ..Params::default()
    };
    let mut lengths = 0;
    for row in rows(&params) {
        let text = &row.caption.text;
        let subject = row.source.subject().unwrap();
        assert!(text.ends_with('.') && text.starts_with(char::is_uppercase), "{text}");
        assert!(text.matches('.').count() >= 2, "{text}");
        for finding in &subject.findings {
            assert!(!text.contains(&format!("No {}.", finding.name())), "{text}");
        }
        if subject.has(4) {
            assert!(!text.contains("The heart is normal."), "{text}");
        }
        lengths += text.split(' ').count();
    }
    assert!((10..20).contains(&(lengths / 300)), "{} words on average", lengths / 300);
}

#[test]
fn swapped_captions_are_those_of_earlier_rows() {
    let params = Params { caption_swap: 0.3, train: 800, test: 50, size: 28, ..Params::default() };
    let rows = rows(&params);
    let mut inconsistent = 0;
    for (index, row) in rows.iter().enumerate() {
        let Some(other) = row.place.caption_of else {
            assert!(row.is_consistent());
            continue;
        };
        assert!(other < index && row.place.is_training());
        // The caption is the other row's own, be that row's caption swapped or not.
        let own = &rows[other];
        if own.place.caption_of.is_none() {
            assert_eq!((&row.caption, &row.stated), (&own.caption, &own.stated));
        }
        inconsistent += usize::from(!row.is_consistent());
    }
    let swapped = rows.iter().filter(|row| row.place.caption_of.is_some()).count();
    assert!((190..290).contains(&swapped), "{swapped} of 800");
    assert!(inconsistent as f64 > 0.9 * swapped as f64, "{inconsistent} of {swapped} say something wrong");
}

#[test]
fn severity_grades_are_quarters() {
    let params = Params { task: Task::Severity, train: 2000, test: 0, ..Params::default() };
    let mut counts = [0.0; 5];
    for row in rows(&params) {
        assert_eq!(row.label[0] == 0, row.source.subject().unwrap().is_normal());
        counts[row.label[0] as usize] += 1.0;
    }
    let abnormal: f64 = counts[1..].iter().sum();
    for (grade, count) in counts.iter().enumerate().skip(1) {
        assert!((count / abnormal - 0.25).abs() < 0.08, "grade {grade}: {counts:?}");
    }
}

#[test]
fn bits_are_those_of_the_findings() {
    let base = Params {
        task: Task::Findings,
        findings_per_image: 2,
        weights: Weights::Chest,
        train: 600,
        test: 0,
        size: 28,
        ..Params::default()
    };
    let names = crate::phantom::labels::names(&base);
    assert_eq!(names, ["nodule", "effusion", "consolidation", "cardiomegaly"]);
    let mut two = 0;
    for row in rows(&base) {
        let subject = row.source.subject().unwrap();
        for (bit, name) in row.label.iter().zip(&names) {
            assert_eq!(*bit == 1, subject.findings.iter().any(|one| one.name() == *name));
        }
        two += usize::from(row.label.iter().sum::<i64>() == 2);
    }
    assert!((200..280).contains(&two), "{two} of 480 abnormal ones");
    let noisy = Params { label_noise: 0.2, ..base };
    let flips: f64 = rows(&noisy)
        .iter()
        .flat_map(|row| row.label.iter().zip(&row.truth).map(|(a, b)| f64::from(u8::from(a != b))))
        .sum();
    assert!((flips / 2400.0 - 0.2).abs() < 0.03, "{flips} of 2400 bits");
    let abnormal = Params {
        task: Task::Abnormal,
        label_noise: 0.2,
        train: 2000,
        test: 0,
        size: 28,
        ..Params::default()
    };
    let flipped = rows(&abnormal).iter().filter(|row| row.label != row.truth).count() as f64 / 2000.0;
    assert!((flipped - 0.2).abs() < 0.03, "{flipped}");
}

#[test]
fn imbalance_is_geometric_and_the_generator_knows_it() {
    let params = Params {
        imbalance: 0.5,
        weights: Weights::Chest,
        task: Task::FindingChest,
        train: 4000,
        test: 0,
        size: 28,
        ..Params::default()
    };
    let mut counts = [0.0; 5];
    rows(&params).iter().for_each(|row| counts[row.label[0] as usize] += 1.0 / 4000.0);
    let shares = crate::phantom::labels::probabilities(&params, &knobs(&params, true)).unwrap();
    assert!((shares[1] - 0.8 * 8.0 / 15.0).abs() < 1e-12, "{shares:?}");
    for (class, (count, share)) in counts.iter().zip(&shares).enumerate() {
        assert!((count - share).abs() < 0.03, "{}: {count} against {share}", FINDINGS[class]);
    }
}
