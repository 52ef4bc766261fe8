//! What questions ask: types, wordings, answers, and which of them fit an image.

use super::factors::Subject;
use super::sites::{FINDINGS, MODALITIES, PLANES, REGIONS, Site};

/// The type of a question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Topic {
    Modality,
    Plane,
    Organ,
    Abnormality,
    Presence,
    Side,
    SideCheck,
    Size,
    Count,
}

/// How the questions of a type are worded. `{f}` is the finding that is asked about, `{a f}` the same
/// with its article, `{fs}` its plural, and `{s}` a side.
pub(super) struct Grammar {
    pub(super) name: &'static str,
    /// How often it is asked, among those that fit an image.
    pub(super) weight: f64,
    /// Whether the answer is yes or no.
    pub(super) closed: bool,
    pub(super) answers: &'static [&'static str],
    /// Wordings that say nothing of the answer.
    pub(super) neutral: &'static [&'static str],
    /// For each answer, the wording that gives it away.
    pub(super) tells: &'static [&'static str],
    /// The type in VQA-RAD's words, and in SLAKE's.
    pub(super) vqa_rad: &'static str,
    pub(super) slake: &'static str,
}

const YES_NO: &[&str] = &["yes", "no"];

const GRAMMARS: [Grammar; 9] = [
    Grammar {
        name: "modality",
        weight: 0.12,
        closed: false,
        answers: &["x-ray", "ct", "ultrasound", "histology"],
        neutral: &[
            "what is the imaging modality?",
            "how was this image taken?",
            "what kind of image is this?",
        ],
        tells: &[
            "which rays cast this shadow?",
            "which scanner computed this slice?",
            "which echoes formed this fan?",
            "which stain coloured this section?",
        ],
        vqa_rad: "MODALITY",
        slake: "Modality",
    },
    Grammar {
        name: "plane",
        weight: 0.08,
        closed: false,
        answers: &PLANES,
        neutral: &["in which plane is this image?", "what plane is shown?"],
        tells: &[
            "which plane faces the viewer?",
            "which plane cuts across the body?",
            "which plane parts front from back?",
        ],
        vqa_rad: "PLANE",
        slake: "Plane",
    },
    Grammar {
        name: "organ",
        weight: 0.10,
        closed: false,
        answers: &REGIONS,
        neutral: &["which part of the body is shown?", "what region is this?"],
        tells: &[
            "what part holds the lungs?",
            "what part holds the liver?",
            "what part surrounds the long bone?",
            "what was cut for the microscope?",
        ],
        vqa_rad: "ORGAN",
        slake: "Organ",
    },
    Grammar {
        name: "abnormality",
        weight: 0.18,
        closed: false,
        answers: &FINDINGS,
        neutral: &["what is abnormal here?", "which abnormality is present?", "what finding is seen?"],
        tells: &[
            "what is unremarkable about it?",
            "what round spot is seen?",
            "what blunts the angle?",
            "what clouds the air spaces?",
            "what widens the shadow of the heart?",
            "what breaks the cortex?",
            "what is filled with fluid?",
            "what grows without a border?",
            "what calcified grain is seen?",
            "what crowds large nuclei together?",
            "what scatters small dark cells?",
        ],
        vqa_rad: "ABN",
        slake: "Abnormality",
    },
    Grammar {
        name: "presence",
        weight: 0.26,
        closed: true,
        answers: YES_NO,
        neutral: &["does the image show {a f}?", "is there {a f}?", "is {a f} present?"],
        tells: &["can the evident {f} be confirmed?", "would anyone suspect {a f}?"],
        vqa_rad: "PRES",
        slake: "Abnormality",
    },
    Grammar {
        name: "side",
        weight: 0.08,
        closed: false,
        answers: &["left", "right"],
        neutral: &["on which side is the {f}?", "is the {f} left or right?"],
        tells: &["how far to the left does the {f} lie?", "how far to the right does the {f} lie?"],
        vqa_rad: "POS",
        slake: "Position",
    },
    Grammar {
        name: "side check",
        weight: 0.08,
        closed: true,
        answers: YES_NO,
        neutral: &["is the {f} on the {s}?", "does the {f} lie on the {s}?"],
        tells: &["is the {f} clearly on the {s}?", "would anyone place the {f} on the {s}?"],
        vqa_rad: "POS",
        slake: "Position",
    },
    Grammar {
        name: "size",
        weight: 0.06,
        closed: false,
        answers: &["small", "large"],
        neutral: &["what size is the {f}?", "is the {f} small or large?"],
        tells: &["how tiny is the {f}?", "how extensive is the {f}?"],
        vqa_rad: "SIZE",
        slake: "Size",
    },
    Grammar {
        name: "count",
        weight: 0.04,
        closed: false,
        answers: &["1", "2", "3"],
        neutral: &["how many {fs} are there?", "what is the number of {fs}?"],
        tells: &[
            "how many is the single {f}?",
            "how many are the pair of {fs}?",
            "how many are the trio of {fs}?",
        ],
        vqa_rad: "COUNT",
        slake: "Quantity",
    },
];

/// A question that can be asked of an image, with its answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Case {
    /// The finding that is asked about.
    pub(super) finding: Option<usize>,
    /// The side that is asked about: left or right.
    pub(super) left: Option<bool>,
    /// Index into the answers of the type.
    pub(super) answer: usize,
    /// Its share among the questions of this type of this image.
    pub(super) probability: f64,
}

impl Topic {
    pub(super) const ALL: [Self; 9] = [
        Self::Modality,
        Self::Plane,
        Self::Organ,
        Self::Abnormality,
        Self::Presence,
        Self::Side,
        Self::SideCheck,
        Self::Size,
        Self::Count,
    ];

    pub(super) fn grammar(self) -> &'static Grammar {
        &GRAMMARS[self as usize]
    }

    /// Whether a question in neutral words needs words and image together: of either alone, yes and no are
    /// equally likely.
    pub(super) fn needs_both(self) -> bool {
        matches!(self, Self::Presence | Self::SideCheck)
    }

    /// Whether the type fits some image of a site.
    fn fits_site(self, site: &Site) -> bool {
        match self {
            Self::Modality | Self::Organ | Self::Abnormality | Self::Presence => true,
            Self::Plane => site.plane.is_some(),
            Self::Side | Self::SideCheck => site.findings.iter().any(|finding| site.has_side(*finding)),
            Self::Size => site.findings.iter().any(|finding| Site::has_size(*finding)),
            Self::Count => site.findings.iter().any(|finding| site.is_countable(*finding)),
        }
    }

    /// What can be asked of an image; nothing where the type does not fit it. Drawing a question and
    /// computing what is expected of it both read this list.
    pub(super) fn cases(self, subject: &Subject) -> Vec<Case> {
        let site = subject.site();
        let of_image = |answer: Option<usize>| {
            let case = |answer| Case { finding: None, left: None, answer, probability: 1.0 };
            answer.map(case).into_iter().collect()
        };
        let place = |known: &[&str], name: &str| known.iter().position(|one| *one == name);
        match self {
            Self::Modality => of_image(place(&MODALITIES, site.modality)),
            Self::Plane => of_image(site.plane.and_then(|plane| place(&PLANES, plane))),
            Self::Organ => of_image(place(&REGIONS, site.region)),
            // Of two findings, neither is *the* abnormality.
            Self::Abnormality => of_image((subject.findings.len() < 2).then_some(subject.finding())),
            Self::Presence => presence(subject),
            Self::Side => of_findings(subject, |subject, finding| {
                let left = subject.left.filter(|_| site.has_side(finding))?;
                Some(vec![(None, usize::from(!left))])
            }),
            Self::SideCheck => of_findings(subject, |subject, finding| {
                let left = subject.left.filter(|_| site.has_side(finding))?;
                Some(vec![(Some(left), 0), (Some(!left), 1)])
            }),
            Self::Size => of_findings(subject, |subject, finding| {
                let large = subject.large.filter(|_| Site::has_size(finding))?;
                Some(vec![(None, usize::from(large))])
            }),
            Self::Count => {
                let count = |finding| subject.findings.iter().find(|one| one.finding == finding);
                of_findings(subject, |_, finding| {
                    let one = count(finding).filter(|_| site.is_countable(finding))?;
                    Some(vec![(None, one.count - 1)])
                })
            }
        }
    }
}

/// Yes or no by a fair coin. Yes asks for a finding that is there, no for another one of the same site,
/// each of them as likely as any: so a wording says nothing of the answer, whatever finding it names.
/// Normal images are not asked, or "no" would be the likelier answer.
fn presence(subject: &Subject) -> Vec<Case> {
    let absent: Vec<usize> =
        subject.site().findings.iter().copied().filter(|finding| !subject.has(*finding)).collect();
    if subject.is_normal() || absent.is_empty() {
        return Vec::new();
    }
    let case = |finding, answer, among: usize| Case {
        finding: Some(finding),
        left: None,
        answer,
        probability: 0.5 / among as f64,
    };
    let present = subject.findings.iter().map(|one| case(one.finding, 0, subject.findings.len()));
    present.chain(absent.iter().map(|finding| case(*finding, 1, absent.len()))).collect()
}

/// The questions of each finding: (side asked about, answer), all equally likely.
fn of_findings(
    subject: &Subject,
    questions: impl Fn(&Subject, usize) -> Option<Vec<(Option<bool>, usize)>>,
) -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    for one in &subject.findings {
        for (left, answer) in questions(subject, one.finding).unwrap_or_default() {
            all.push(Case { finding: Some(one.finding), left, answer, probability: 0.0 });
        }
    }
    let share = 1.0 / all.len().max(1) as f64;
    all.iter_mut().for_each(|case| case.probability = share);
    all
}

/// The types that fit an image, with their shares, which sum to 1.
///
/// Presence has the same share for every abnormal image of a site, whatever else fits it. If its share were
/// larger where there is no side or number to ask for, then findings with few such questions would be
/// asked for oftener by those that have them than by others, and "no" be the likelier answer there.
pub(super) fn topics(subject: &Subject) -> Vec<(Topic, f64)> {
    let weight = |topics: &[Topic]| topics.iter().map(|topic| topic.grammar().weight).sum::<f64>();
    let of_site: Vec<Topic> =
        Topic::ALL.into_iter().filter(|topic| topic.fits_site(subject.site())).collect();
    let mut shares = Vec::new();
    if !Topic::Presence.cases(subject).is_empty() {
        shares.push((Topic::Presence, Topic::Presence.grammar().weight / weight(&of_site)));
    }
    let rest = 1.0 - shares.iter().map(|(_, share)| share).sum::<f64>();
    let others: Vec<Topic> = of_site
        .into_iter()
        .filter(|topic| *topic != Topic::Presence && !topic.cases(subject).is_empty())
        .collect();
    let sum = weight(&others);
    shares.extend(others.into_iter().map(|topic| (topic, rest * topic.grammar().weight / sum)));
    shares
}

/// A wording with its finding and side filled in.
pub(super) fn worded(pattern: &str, case: &Case) -> String {
    let mut text = pattern.to_owned();
    if let Some(finding) = case.finding {
        let name = FINDINGS[finding];
        let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        text = text
            .replace("{a f}", &format!("{article} {name}"))
            .replace("{fs}", &format!("{name}s"))
            .replace("{f}", name);
    }
    if let Some(left) = case.left {
        text = text.replace("{s}", if left { "left" } else { "right" });
    }
    text
}
