//! Captions and the facts that they state.

use super::factors::{Finding, Subject};
use super::general::{COLOURS, COLUMNS, ROWS, SHAPES, Scene};
use super::params::{Kappa, Style};
use super::sites::Site;
use super::stream::{Stream, key};

/// A fact of an image: its name, its value, and the probability that a caption mentions it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) kappa: f64,
}

/// A caption with the facts that it mentions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Caption {
    pub(super) text: String,
    pub(super) mentioned: Vec<&'static str>,
}

impl Caption {
    /// The facts that it states, of an image that has these.
    pub(super) fn stated<'a>(&self, facts: &'a [Fact]) -> Vec<&'a Fact> {
        facts.iter().filter(|fact| self.mentioned.contains(&fact.name)).collect()
    }
}

fn fact(name: &'static str, value: impl Into<String>, kappa: f64) -> Fact {
    Fact { name, value: value.into(), kappa }
}

/// The facts of a medical image that a caption may state.
pub(super) fn facts(subject: &Subject, kappa: &Kappa) -> Vec<Fact> {
    let site = subject.site();
    let name = subject.findings.first().map_or("none", |one| one.name());
    let mut facts = vec![
        fact("modality", site.modality, kappa.modality),
        fact("region", site.region, kappa.region),
        fact("finding", name, kappa.finding),
    ];
    if let Some(plane) = site.plane {
        facts.push(fact("plane", plane, kappa.plane));
    }
    if let Some(first) = subject.findings.first() {
        facts.push(fact("count", first.count.to_string(), kappa.count));
    }
    if let Some(second) = subject.findings.get(1) {
        facts.push(fact("second finding", format!("{} {}", second.count, second.name()), kappa.finding));
    }
    if let Some(large) = subject.large {
        facts.push(fact("size", if large { "large" } else { "small" }, kappa.size));
    }
    if let Some(left) = subject.left {
        facts.push(fact("side", if left { "left" } else { "right" }, kappa.side));
    }
    facts
}

/// The caption of a medical image, of its patient and number.
pub(super) fn caption(
    subject: &Subject,
    kappa: &Kappa,
    style: Style,
    seed: u64,
    (patient, image): (u64, u64),
) -> Caption {
    let stream = |k| Stream::new(key(seed, "medical", "caption", &[patient, image, k]));
    let phrase = phrase(subject, kappa, stream(0));
    match style {
        Style::Caption => phrase,
        Style::Report => Caption { text: report(subject, &phrase.text, stream(1)), ..phrase },
    }
}

/// What chance decides of a phrase, whatever the image shows: every caption draws the same numbers in the
/// same order, and new ones come last.
struct Choices {
    says_plane: bool,
    modality: &'static str,
    region: &'static str,
    normal: &'static str,
    verb: &'static str,
    says_size: bool,
    size_word: usize,
    name_word: usize,
    says_side: bool,
    says_organ: bool,
    says_modality: bool,
    says_region: bool,
    says_finding: bool,
    says_count: bool,
    says_second: bool,
    second_name_word: usize,
}

impl Choices {
    fn draw(site: &Site, kappa: &Kappa, mut stream: Stream) -> Self {
        let modalities: &[&str] = match site.modality {
            "xray" => &["x-ray", "radiograph"],
            "ct" => &["ct slice", "computed tomography"],
            "ultrasound" => &["ultrasound", "sonogram"],
            _ => &["histology", "stained section"],
        };
        let regions: &[&str] = match site.region {
            "chest" => &["chest", "thorax"],
            "limb" => &["limb", "femur"],
            "abdomen" => &["abdomen"],
            _ => &["tissue"],
        };
        Self {
            says_plane: stream.chance(kappa.plane),
            modality: *stream.pick(modalities),
            region: *stream.pick(regions),
            normal: *stream.pick(&["with no abnormality", "without abnormal finding", "is normal"]),
            verb: *stream.pick(&["showing", "with", "demonstrating"]),
            says_size: stream.chance(kappa.size),
            size_word: stream.below(2) as usize,
            name_word: stream.below(2) as usize,
            says_side: stream.chance(kappa.side),
            says_organ: stream.chance(0.5),
            says_modality: stream.chance(kappa.modality),
            says_region: stream.chance(kappa.region),
            says_finding: stream.chance(kappa.finding),
            says_count: stream.chance(kappa.count),
            says_second: stream.chance(kappa.finding),
            second_name_word: stream.below(2) as usize,
        }
    }
}

/// `[plane] MOD of the REG VERB NUM [SIZE] FIND [on the SIDE | in the ORGAN]`; a second finding follows the
/// first with `and`.
fn phrase(subject: &Subject, kappa: &Kappa, stream: Stream) -> Caption {
    let site = subject.site();
    let chosen = Choices::draw(site, kappa, stream);
    let mut words: Vec<&'static str> = Vec::new();
    let mut mentioned = Vec::new();
    if let (Some(plane), true) = (site.plane, chosen.says_plane) {
        words.push(plane);
        mentioned.push("plane");
    }
    if chosen.says_modality {
        words.push(chosen.modality);
        mentioned.push("modality");
    } else {
        words.push("image");
    }
    if chosen.says_region {
        words.extend(["of the", chosen.region]);
        mentioned.push("region");
    }
    if chosen.says_finding {
        mentioned.push("finding");
    }
    match subject.findings.first() {
        None if chosen.says_finding => words.push(chosen.normal),
        None => {}
        Some(first) => say_findings(subject, *first, &chosen, &mut words, &mut mentioned),
    }
    Caption { text: words.join(" "), mentioned }
}

/// The part from the verb on; nothing where nothing of the findings is mentioned.
fn say_findings(
    subject: &Subject,
    first: Finding,
    chosen: &Choices,
    words: &mut Vec<&'static str>,
    mentioned: &mut Vec<&'static str>,
) {
    let &Choices { says_finding, says_count, .. } = chosen;
    let second = subject.findings.get(1).copied().filter(|_| chosen.says_second);
    let size = subject.large.filter(|_| chosen.says_size);
    let side = subject.left.filter(|_| chosen.says_side);
    if !says_finding && !says_count && second.is_none() && size.is_none() && side.is_none() {
        return;
    }
    words.push(chosen.verb);
    if says_count {
        words.push(number(first));
        mentioned.push("count");
    }
    let size = size.map(|large| {
        mentioned.push("size");
        if large { ["large", "big"][chosen.size_word] } else { ["small", "little"][chosen.size_word] }
    });
    // The size is said of the first finding that has one.
    let of_second = second.is_some() && !Site::has_size(first.finding);
    words.extend(size.filter(|_| !of_second));
    let several = says_count && first.count > 1;
    words.push(match (says_finding, several) {
        (true, several) => noun(first, several, chosen.name_word),
        (false, false) => "abnormality",
        (false, true) => "abnormalities",
    });
    if let Some(second) = second {
        mentioned.push("second finding");
        words.extend(["and", number(second)]);
        words.extend(size.filter(|_| of_second));
        words.push(noun(second, second.count > 1, chosen.second_name_word));
    }
    let says_organ = chosen.says_organ && chosen.says_modality && chosen.says_region && says_finding;
    if let Some(left) = side {
        words.push(if left { "on the left" } else { "on the right" });
        mentioned.push("side");
    } else if let Some(organ) = organ(subject).filter(|_| says_organ) {
        words.extend(["in the", organ]);
    }
}

fn number(finding: Finding) -> &'static str {
    ["a", "two", "three"][finding.count.clamp(1, 3) - 1]
}

fn noun(finding: Finding, several: bool, word: usize) -> &'static str {
    match (finding.name(), several) {
        ("effusion", _) => ["effusion", "fluid"][word],
        ("consolidation", _) => ["consolidation", "opacity"][word],
        ("cardiomegaly", _) => ["cardiomegaly", "enlarged heart"][word],
        ("nodule", true) => "nodules",
        ("cyst", true) => "cysts",
        ("stone", true) => "stones",
        (name, _) => name,
    }
}

/// Where the finding lies. It says no more than the finding itself, save on which side an abdominal
/// one is, so there it is left out; likewise where there are two findings.
fn organ(subject: &Subject) -> Option<&'static str> {
    let [only] = subject.findings.as_slice() else { return None };
    match (subject.site().region, only.name()) {
        (_, "cardiomegaly") => None,
        ("chest", _) => Some("lung"),
        ("limb", _) => Some("bone"),
        ("abdomen", "stone") if subject.site().modality == "ct" => Some("kidney"),
        ("tissue", _) => Some("tissue"),
        _ => None,
    }
}

/// The phrase as a sentence, and one or more sentences about what is absent. They say nothing that does
/// not follow from the findings that are named.
fn report(subject: &Subject, phrase: &str, mut stream: Stream) -> String {
    let mut text = phrase[..1].to_uppercase() + &phrase[1..] + ".";
    let absent: Vec<&str> = subject
        .site()
        .findings
        .iter()
        .filter(|finding| !subject.has(**finding))
        .map(|finding| Finding { finding: *finding, count: 1 }.name())
        .collect();
    let mut named: Vec<&str> = absent.iter().copied().filter(|_| stream.chance(0.5)).collect();
    if named.is_empty() {
        named.extend(absent.first());
    }
    for name in named {
        match name {
            "cardiomegaly" => text.push_str(" The heart is normal."),
            name => text.push_str(&format!(" No {name}.")),
        }
    }
    text
}

/// The facts of a general scene: everything, always mentioned.
pub(super) fn scene_facts(scene: &Scene) -> Vec<Fact> {
    const NAMES: [[&str; 4]; 2] = [
        ["shape", "colour", "size", "place"],
        ["second shape", "second colour", "second size", "second place"],
    ];
    let mut facts = vec![fact("count", scene.objects.len().to_string(), 1.0)];
    for (object, names) in scene.objects.iter().zip(NAMES) {
        facts.push(fact(names[0], SHAPES[object.shape], 1.0));
        facts.push(fact(names[1], COLOURS[object.colour], 1.0));
        facts.push(fact(names[2], if object.large { "large" } else { "small" }, 1.0));
        facts.push(fact(names[3], format!("{} {}", object.row, object.column), 1.0));
    }
    facts
}

/// The caption of a general scene: `[picture of | image showing |] a SIZE COLOUR SHAPE PLACE [and ...]`.
pub(super) fn scene_caption(scene: &Scene, seed: u64, (number, image): (u64, u64)) -> Caption {
    let mut stream = Stream::new(key(seed, "general", "caption", &[number, image, 0]));
    let mut text = (*stream.pick(&["picture of ", "image showing ", ""])).to_owned();
    for (index, object) in scene.objects.iter().enumerate() {
        let word = stream.below(2) as usize;
        if index > 0 {
            text.push_str(" and ");
        }
        let size = if object.large { ["large", "big"][word] } else { ["small", "little"][word] };
        text.push_str(&format!("a {size} {} {} ", COLOURS[object.colour], SHAPES[object.shape]));
        if (object.row, object.column) == (1, 1) {
            text.push_str("in the centre");
        } else {
            text.push_str(&format!("on the {} {}", ROWS[object.row], COLUMNS[object.column]));
        }
    }
    let mentioned = scene_facts(scene).iter().map(|fact| fact.name).collect();
    Caption { text, mentioned }
}
