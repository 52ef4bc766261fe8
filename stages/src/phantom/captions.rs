//! Captions and the facts that they state.

use super::factors::Factors;
use super::general::{COLOURS, COLUMNS, ROWS, SHAPES, Scene};
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

const KAPPA_PLANE: f64 = 0.7;
const KAPPA_SIZE: f64 = 0.85;
const KAPPA_SIDE: f64 = 0.9;

fn fact(name: &'static str, value: impl Into<String>, kappa: f64) -> Fact {
    Fact { name, value: value.into(), kappa }
}

/// The facts of a medical image that a caption may state.
pub(super) fn facts(factors: &Factors) -> Vec<Fact> {
    let site = factors.site();
    let mut facts = vec![
        fact("modality", site.modality, 1.0),
        fact("region", site.region, 1.0),
        fact("finding", factors.finding_name(), 1.0),
    ];
    if let Some(plane) = site.plane {
        facts.push(fact("plane", plane, KAPPA_PLANE));
    }
    if factors.finding != 0 {
        facts.push(fact("count", factors.count.to_string(), 1.0));
    }
    if let Some(large) = factors.large {
        facts.push(fact("size", if large { "large" } else { "small" }, KAPPA_SIZE));
    }
    if let Some(left) = factors.left {
        facts.push(fact("side", if left { "left" } else { "right" }, KAPPA_SIDE));
    }
    facts
}

/// The caption of a medical image: `[plane] MOD of the REG VERB NUM [SIZE] FIND [on the SIDE | in the
/// ORGAN]`.
pub(super) fn caption(factors: &Factors, seed: u64) -> Caption {
    let mut stream = Stream::new(key(seed, "medical", "caption", &[factors.patient, 0, 0]));
    let site = factors.site();
    let mut words: Vec<&str> = Vec::new();
    let mut mentioned = vec!["modality", "region", "finding"];
    let says_plane = stream.chance(KAPPA_PLANE);
    if let (Some(plane), true) = (site.plane, says_plane) {
        words.push(plane);
        mentioned.push("plane");
    }
    let modality: &[&str] = match site.modality {
        "xray" => &["x-ray", "radiograph"],
        "ct" => &["ct slice", "computed tomography"],
        "ultrasound" => &["ultrasound", "sonogram"],
        _ => &["histology", "stained section"],
    };
    words.push(*stream.pick(modality));
    words.push("of the");
    let region: &[&str] = match site.region {
        "chest" => &["chest", "thorax"],
        "limb" => &["limb", "femur"],
        "abdomen" => &["abdomen"],
        _ => &["tissue"],
    };
    words.push(*stream.pick(region));
    let normal = *stream.pick(&["with no abnormality", "without abnormal finding", "is normal"]);
    let verb = *stream.pick(&["showing", "with", "demonstrating"]);
    let says_size = stream.chance(KAPPA_SIZE);
    let size_word = stream.below(2) as usize;
    let name_word = stream.below(2) as usize;
    let says_side = stream.chance(KAPPA_SIDE);
    let says_organ = stream.chance(0.5);
    if factors.finding == 0 {
        words.push(normal);
        return Caption { text: words.join(" "), mentioned };
    }
    words.push(verb);
    words.push(["a", "two", "three"][factors.count.clamp(1, 3) - 1]);
    mentioned.push("count");
    if let (Some(large), true) = (factors.large, says_size) {
        words.push(if large { ["large", "big"][size_word] } else { ["small", "little"][size_word] });
        mentioned.push("size");
    }
    let plural = factors.count > 1;
    words.push(match (factors.finding_name(), plural) {
        ("effusion", _) => ["effusion", "fluid"][name_word],
        ("consolidation", _) => ["consolidation", "opacity"][name_word],
        ("cardiomegaly", _) => ["cardiomegaly", "enlarged heart"][name_word],
        ("nodule", true) => "nodules",
        ("cyst", true) => "cysts",
        ("stone", true) => "stones",
        (name, _) => name,
    });
    if let (Some(left), true) = (factors.left, says_side) {
        words.push(if left { "on the left" } else { "on the right" });
        mentioned.push("side");
    } else if let (Some(organ), true) = (organ(factors), says_organ) {
        words.push("in the");
        words.push(organ);
    }
    Caption { text: words.join(" "), mentioned }
}

/// Where the finding lies. It says no more than the finding itself, save on which side an abdominal
/// one is, so there it is left out.
fn organ(factors: &Factors) -> Option<&'static str> {
    match (factors.site().region, factors.finding_name()) {
        (_, "cardiomegaly") => None,
        ("chest", _) => Some("lung"),
        ("limb", _) => Some("bone"),
        ("abdomen", "stone") if factors.site().modality == "ct" => Some("kidney"),
        ("tissue", _) => Some("tissue"),
        _ => None,
    }
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
pub(super) fn scene_caption(scene: &Scene, seed: u64) -> Caption {
    let mut stream = Stream::new(key(seed, "general", "caption", &[scene.patient, 0, 0]));
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
