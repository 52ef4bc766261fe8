//! Captions and the facts that they state.

use super::factors::{Finding, Subject};
use super::general::{COLOURS, COLUMNS, ROWS, SHAPES, Scene};
use super::params::{Kappa, Style};
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

/// `[plane] MOD of the REG VERB NUM [SIZE] FIND [on the SIDE | in the ORGAN]`; a second finding follows the
/// first with `and`.
fn phrase(subject: &Subject, kappa: &Kappa, mut stream: Stream) -> Caption {
    let site = subject.site();
    let mut words: Vec<&str> = Vec::new();
    let mut mentioned = Vec::new();
    let says_plane = stream.chance(kappa.plane);
    let modality: &[&str] = match site.modality {
        "xray" => &["x-ray", "radiograph"],
        "ct" => &["ct slice", "computed tomography"],
        "ultrasound" => &["ultrasound", "sonogram"],
        _ => &["histology", "stained section"],
    };
    let modality = *stream.pick(modality);
    let region: &[&str] = match site.region {
        "chest" => &["chest", "thorax"],
        "limb" => &["limb", "femur"],
        "abdomen" => &["abdomen"],
        _ => &["tissue"],
    };
    let region = *stream.pick(region);
    let normal = *stream.pick(&["with no abnormality", "without abnormal finding", "is normal"]);
    let verb = *stream.pick(&["showing", "with", "demonstrating"]);
    let says_size = stream.chance(kappa.size);
    let size_word = stream.below(2) as usize;
    let name_word = stream.below(2) as usize;
    let says_side = stream.chance(kappa.side);
    let says_organ = stream.chance(0.5);
    let says_modality = stream.chance(kappa.modality);
    let says_region = stream.chance(kappa.region);
    let says_finding = stream.chance(kappa.finding);
    let says_count = stream.chance(kappa.count);
    let says_second = stream.chance(kappa.finding);
    let second_name_word = stream.below(2) as usize;

    if let (Some(plane), true) = (site.plane, says_plane) {
        words.push(plane);
        mentioned.push("plane");
    }
    if says_modality {
        words.push(modality);
        mentioned.push("modality");
    } else {
        words.push("image");
    }
    if says_region {
        words.extend(["of the", region]);
        mentioned.push("region");
    }
    if says_finding {
        mentioned.push("finding");
    }
    let Some(first) = subject.findings.first() else {
        if says_finding {
            words.push(normal);
        }
        return Caption { text: words.join(" "), mentioned };
    };
    let second = subject.findings.get(1).filter(|_| says_second);
    let size = subject.large.filter(|_| says_size);
    let side = subject.left.filter(|_| says_side);
    if !says_finding && !says_count && second.is_none() && size.is_none() && side.is_none() {
        return Caption { text: words.join(" "), mentioned };
    }
    words.push(verb);
    if says_count {
        words.push(number(first));
        mentioned.push("count");
    }
    let size = size.map(|large| {
        mentioned.push("size");
        if large { ["large", "big"][size_word] } else { ["small", "little"][size_word] }
    });
    // The size is said of the first finding that has one.
    let of_second = second.is_some() && first.name() == "fracture";
    words.extend(size.filter(|_| !of_second));
    let several = says_count && first.count > 1;
    words.push(match (says_finding, several) {
        (true, several) => noun(first, several, name_word),
        (false, false) => "abnormality",
        (false, true) => "abnormalities",
    });
    if let Some(second) = second {
        mentioned.push("second finding");
        words.extend(["and", number(second)]);
        words.extend(size.filter(|_| of_second));
        words.push(noun(second, second.count > 1, second_name_word));
    }
    if let Some(left) = side {
        words.push(if left { "on the left" } else { "on the right" });
        mentioned.push("side");
    } else if let Some(organ) =
        organ(subject).filter(|_| says_organ && says_modality && says_region && says_finding)
    {
        words.extend(["in the", organ]);
    }
    Caption { text: words.join(" "), mentioned }
}

fn number(finding: &Finding) -> &'static str {
    ["a", "two", "three"][finding.count.clamp(1, 3) - 1]
}

fn noun(finding: &Finding, several: bool, word: usize) -> &'static str {
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
