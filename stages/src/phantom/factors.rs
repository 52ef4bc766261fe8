//! The record of factors that a medical row is made of.

use pipe_models::random::Key;

use super::sites::{FINDINGS, SITES, Site};
use super::stream::{Stream, key};

/// Weights of 1, 2 and 3 where a finding can be counted.
const COUNTS: [f64; 3] = [0.5, 0.25, 0.25];
/// Where the second finding of an image has its streams.
const SECOND: u64 = 20;

/// The knobs of the generator that decide factors.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) seed: u64,
    pub(super) weights: Vec<f64>,
    pub(super) p_normal: f64,
    /// The n-th finding of a site has the weight `imbalance`^n.
    pub(super) imbalance: f64,
    /// Whether half of the patients with a finding have a second one.
    pub(super) second: bool,
    pub(super) device_b: f64,
    /// Correlation of the marker with the target.
    pub(super) shortcut: f64,
    /// The finding that the marker goes with; nothing: any.
    pub(super) target: Option<usize>,
}

/// A finding and how often it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Index into [`FINDINGS`], never 0.
    pub(super) finding: usize,
    pub(super) count: usize,
}

impl Finding {
    pub(super) fn name(self) -> &'static str {
        FINDINGS[self.finding]
    }
}

/// What there is to be seen in a medical image: what labels, captions and questions speak of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Subject {
    /// Index into [`SITES`].
    pub(super) site: usize,
    /// None, one, or two different ones.
    pub(super) findings: Vec<Finding>,
    /// The patient's side; null where no finding has one.
    pub(super) left: Option<bool>,
    /// Null where no finding has a size.
    pub(super) large: Option<bool>,
}

impl Subject {
    fn new(site: usize, findings: Vec<Finding>, left: bool, large: bool) -> Self {
        let sided = findings.iter().any(|one| SITES[site].has_side(one.finding));
        let sized = findings.iter().any(|one| Site::has_size(one.finding));
        Self { site, findings, left: sided.then_some(left), large: sized.then_some(large) }
    }

    pub(super) fn site(&self) -> &'static Site {
        &SITES[self.site]
    }

    pub(super) fn is_normal(&self) -> bool {
        self.findings.is_empty()
    }

    /// The first finding, as an index into [`FINDINGS`]: 0 where there is none.
    pub(super) fn finding(&self) -> usize {
        self.findings.first().map_or(0, |one| one.finding)
    }

    pub(super) fn has(&self, finding: usize) -> bool {
        self.findings.iter().any(|one| one.finding == finding)
    }

    pub(super) fn is_large(&self) -> bool {
        self.large == Some(true)
    }
}

/// One row of the medical domain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Factors {
    pub(super) subject: Subject,
    pub(super) device_b: bool,
    pub(super) marker: bool,
    pub(super) marker_right: bool,
    /// Scale and shift of the patient's frame.
    pub(super) frame: (f64, f64, f64),
    pub(super) image: Key,
    /// Whether the lesion is drawn: false in its lesion-free twin.
    pub(super) lesion: bool,
}

impl Factors {
    /// The factors of one of a patient's images. The streams of patient and image are drawn in a fixed
    /// order; what came later has streams of its own, so that no older row changes.
    pub(super) fn draw(knobs: &Knobs, patient: u64, image: u64) -> Self {
        let mut person = Stream::new(key(knobs.seed, "medical", "patient", &[patient]));
        let site = person.weighted(&knobs.weights);
        let normal = person.chance(knobs.p_normal);
        let known = SITES[site].findings;
        let weights = SITES[site].finding_weights(knobs.imbalance);
        let first =
            if knobs.imbalance == 1.0 { *person.pick(known) } else { known[person.weighted(&weights)] };
        let left = person.chance(0.5);
        let large = person.chance(0.5);
        let device_b = person.chance(knobs.device_b);
        let frame = (person.f(0.93, 1.05), person.j(0.02), person.j(0.02));
        let mut another = Stream::new(key(knobs.seed, "medical", "second", &[patient]));
        let has_second = another.chance(0.5) && knobs.second;
        let rest = SITES[site].other_findings(first, knobs.imbalance);
        let second = rest[another.weighted(&rest.iter().map(|(_, weight)| *weight).collect::<Vec<_>>())].0;

        let image = key(knobs.seed, "medical", "image", &[patient, image]);
        let mut picture = Stream::new(image);
        let several = picture.weighted(&COUNTS) + 1;
        let several_second = Stream::new(image.sub(SECOND)).weighted(&COUNTS) + 1;
        let findings = match (normal, has_second) {
            (true, _) => vec![],
            (false, false) => vec![(first, several)],
            (false, true) => vec![(first, several), (second, several_second)],
        };
        let findings = findings.into_iter().map(|(finding, several)| Finding {
            finding,
            count: if SITES[site].is_countable(finding) { several } else { 1 },
        });
        let subject = Subject::new(site, findings.collect(), left, large);
        let follows = knobs.target.map_or(!subject.is_normal(), |finding| subject.has(finding));
        let share = if follows { 1.0 + knobs.shortcut } else { 1.0 - knobs.shortcut } / 2.0;
        let marker = picture.chance(share);
        let marker_right = picture.chance(0.5);
        Self { subject, device_b, marker, marker_right, frame, image, lesion: true }
    }

    pub(super) fn site(&self) -> &'static Site {
        self.subject.site()
    }

    /// What is to be seen: nothing is found where the lesion is not drawn.
    pub(super) fn visible(&self) -> Subject {
        match self.lesion {
            true => self.subject.clone(),
            false => Subject { findings: Vec::new(), left: None, large: None, ..self.subject.clone() },
        }
    }

    /// Whether a lesion is drawn.
    pub(super) fn shows_lesion(&self) -> bool {
        self.lesion && !self.subject.is_normal()
    }

    /// The key of the streams of a finding.
    pub(super) fn finding_key(&self, index: usize) -> Key {
        if index == 0 { self.image } else { self.image.sub(SECOND) }
    }
}

/// Every subject that the generator can draw, with its probability.
pub(super) fn subjects(knobs: &Knobs) -> Vec<(Subject, f64)> {
    let mut all = Vec::new();
    let total: f64 = knobs.weights.iter().sum();
    for (site, weight) in knobs.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        let share = weight / total;
        let mut sets: Vec<(Vec<usize>, f64)> = vec![(vec![], share * knobs.p_normal)];
        let abnormal = share * (1.0 - knobs.p_normal);
        let weights = SITES[site].finding_weights(knobs.imbalance);
        let sum: f64 = weights.iter().sum();
        for (first, weight) in SITES[site].findings.iter().zip(&weights) {
            let probability = abnormal * weight / sum;
            let single = if knobs.second { 0.5 } else { 1.0 };
            sets.push((vec![*first], probability * single));
            let rest = SITES[site].other_findings(*first, knobs.imbalance);
            let sum: f64 = rest.iter().map(|(_, weight)| weight).sum();
            for (second, weight) in rest {
                sets.push((vec![*first, second], probability * (1.0 - single) * weight / sum));
            }
        }
        for (set, probability) in sets.into_iter().filter(|(_, probability)| *probability > 0.0) {
            for (findings, share) in counted(site, &set) {
                for (left, large) in [(false, false), (false, true), (true, false), (true, true)] {
                    let subject = Subject::new(site, findings.clone(), left, large);
                    all.push((subject, probability * share / 4.0));
                }
            }
        }
    }
    all
}

/// The findings with every number of them that can be drawn.
fn counted(site: usize, set: &[usize]) -> Vec<(Vec<Finding>, f64)> {
    let mut all = vec![(Vec::new(), 1.0)];
    for finding in set {
        let counts: &[f64] = if SITES[site].is_countable(*finding) { &COUNTS } else { &[1.0] };
        all = all
            .into_iter()
            .flat_map(|(before, share): (Vec<Finding>, f64)| {
                counts.iter().enumerate().map(move |(index, weight)| {
                    let mut findings = before.clone();
                    findings.push(Finding { finding: *finding, count: index + 1 });
                    (findings, share * weight)
                })
            })
            .collect();
    }
    all
}
