//! The gallery: for a few samples the original, its mask, and every method's map and overlay.
//!
//! Samples are chosen by a rule that is printed, never by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use image::{DynamicImage, GrayImage, RgbImage};
use maud::{Markup, html};
use pipe_engine::{Artifact, StageError};

use super::picture::{Drawn, colour_bar, decode, original, outlined};
use super::pictures::Pictures;
use super::saliency::{self, Explanation, Explanations, Map, Metadata, Plane, Slice};
use super::strip::strip;
use super::words::{number, title};
use crate::framing::Framing;

/// One artifact of maps and the keys that tell it apart.
pub(super) struct Maps<'a> {
    pub(super) input: &'a str,
    pub(super) axes: &'a BTreeMap<String, String>,
    pub(super) artifact: &'a Artifact,
}

/// What is known of the samples beside their maps.
pub(super) trait Samples {
    /// The encoded image of each wanted sample.
    ///
    /// # Errors
    /// If a table cannot be read.
    fn images(
        &self,
        axes: &BTreeMap<String, String>,
        ids: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Vec<u8>>, StageError>;
    /// What a model saw of a volume, as grey values in C order.
    ///
    /// # Errors
    /// If a table cannot be read.
    fn volume(
        &self,
        axes: &BTreeMap<String, String>,
        id: &str,
        view: View,
    ) -> Result<Option<Vec<u8>>, StageError>;
    /// The encoded mask of each wanted sample that has one.
    ///
    /// # Errors
    /// If a table cannot be read.
    fn masks(&self, ids: &BTreeSet<String>) -> Result<BTreeMap<String, Vec<u8>>, StageError>;
    /// The sample's label in words.
    fn label(&self, id: &str) -> Option<&str>;
    /// Whether the sample has a mask.
    fn has_mask(&self, id: &str) -> bool;
}

/// How a model saw a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Slices, height and width of the maps.
    pub(super) shape: [usize; 3],
    /// Whether the model saw slices one by one, each as a flat image.
    pub(super) by_slices: bool,
}

/// A set of maps with its metadata, read for the chosen samples.
struct Shown<'a> {
    maps: &'a Maps<'a>,
    metadata: Metadata,
    explanations: Explanations,
    /// Where its maps lie on their images, if the file says so.
    framing: Option<Framing>,
    name: String,
    signed: bool,
}

impl Shown<'_> {
    /// The explanations of a sample, one per target.
    fn of(&self, id: &str) -> &[Explanation] {
        self.explanations.get(id).map_or(&[], Vec::as_slice)
    }

    /// Whether its maps are of volumes.
    fn has_volumes(&self) -> bool {
        self.explanations.values().flatten().any(|explanation| !explanation.strip.is_empty())
    }
}

/// The gallery of one input.
///
/// # Errors
/// If an artifact cannot be read.
pub(super) fn gallery(
    maps: &[Maps<'_>],
    samples: &dyn Samples,
    most: usize,
    pictures: &mut Pictures,
) -> Result<Markup, StageError> {
    let mut counts: BTreeMap<Sample, usize> = BTreeMap::new();
    for one in maps {
        let mut own = BTreeSet::new();
        saliency::read(one.artifact, |id, image| {
            own.insert(Sample { id: id.to_owned(), image: image.to_owned() });
            false
        })?;
        for sample in own {
            *counts.entry(sample).or_default() += 1;
        }
    }
    let (chosen, rule) = choose(&counts, samples, most);
    let wanted: BTreeSet<String> = chosen.iter().map(|sample| sample.image.clone()).collect();
    let ids: BTreeSet<&str> = chosen.iter().map(|sample| sample.id.as_str()).collect();
    let mut shown = Vec::new();
    for one in maps {
        let (metadata, explanations) = saliency::read(one.artifact, |id, _| ids.contains(id))?;
        let signed = explanations
            .values()
            .flatten()
            .flat_map(|explanation| &explanation.maps)
            .any(|map| map.values.iter().any(|&value| value < 0.0));
        let framing = Framing::read(|key| metadata.get(key));
        shown.push(Shown { maps: one, metadata, explanations, framing, name: String::new(), signed });
    }
    name_all(&mut shown);
    let mut images: BTreeMap<String, DynamicImage> = BTreeMap::new();
    for one in &shown {
        let missing: BTreeSet<String> =
            wanted.iter().filter(|id| !images.contains_key(*id)).cloned().collect();
        if missing.is_empty() {
            break;
        }
        for (id, bytes) in samples.images(one.maps.axes, &missing)? {
            images.extend(decode(&bytes).map(|image| (id, image)));
        }
    }
    let input = maps.first().map_or("", |maps| maps.input);
    let has_sheets = pictures.begin_sheet(input) && !chosen.is_empty();
    let masks = samples.masks(&wanted)?;
    let mut cases = Vec::with_capacity(chosen.len());
    for sample in &chosen {
        let image = images.get(&sample.image);
        let seen = seen(sample, &shown, image, samples)?;
        let mask = masks.get(&sample.image).map(Vec::as_slice);
        cases.push(case(&sample.id, &shown, &seen, mask, samples.label(&sample.image), pictures));
    }
    Ok(html! {
        h3 { (title(input)) }
        p .note { (rule) " " (legend(&shown, pictures)) }
        @if has_sheets {
            @let table = format!("sheets/{input}.csv");
            p .note { "For print: sheets of these pictures; " a href=(table) { (table) } " says what stands where." }
        }
        @for case in &cases { (case) }
    })
}

/// What is shown of a sample beside its maps.
#[derive(Default)]
struct Seen {
    /// The image, or the central slices of a volume.
    originals: Vec<(RgbImage, Option<Slice>)>,
    /// What lies under each set's maps: the grey volume as that set's model saw it.
    volumes: Vec<Option<Rc<Vec<u8>>>>,
}

/// The image of a sample, or its volume as each set's model saw it.
fn seen(
    sample: &Sample,
    shown: &[Shown<'_>],
    image: Option<&DynamicImage>,
    samples: &dyn Samples,
) -> Result<Seen, StageError> {
    if let Some(image) = image {
        return Ok(Seen { originals: vec![(original(image), None)], volumes: vec![None; shown.len()] });
    }
    let mut seen = Seen::default();
    let mut known: Vec<(View, &BTreeMap<String, String>, Option<Rc<Vec<u8>>>)> = Vec::new();
    for one in shown {
        let map = one.of(&sample.id).iter().flat_map(|explanation| &explanation.maps).next();
        let Some(map) = map else {
            seen.volumes.push(None);
            continue;
        };
        let of = map.slice.map_or([1, map.height, map.width], |slice| slice.of);
        let view = View { shape: of, by_slices: one.metadata.contains_key("volumes") };
        let place = known.iter().position(|(other, axes, _)| (*other, *axes) == (view, one.maps.axes));
        let volume = match place {
            Some(place) => known[place].2.clone(),
            None => {
                let volume = samples.volume(one.maps.axes, &sample.image, view)?.map(Rc::new);
                known.push((view, one.maps.axes, volume.clone()));
                volume
            }
        };
        // The central slices, as the first of the models saw them.
        if let Some(volume) = volume.as_ref().filter(|_| seen.originals.is_empty()) {
            let planes = if map.slice.is_some() { &Plane::ALL[..] } else { &Plane::ALL[..1] };
            for plane in planes {
                let slice = Slice { plane: *plane, index: plane.count(of) / 2, of };
                let picture = grey_slice(volume, slice);
                seen.originals.extend(picture.map(|picture| (picture, map.slice.map(|_| slice))));
            }
        }
        seen.volumes.push(volume);
    }
    Ok(seen)
}

/// A slice of a grey volume as a picture.
fn grey_slice(volume: &[u8], slice: Slice) -> Option<RgbImage> {
    let [height, width] = slice.plane.size(slice.of);
    let values = slice.plane.cut(volume, slice.of, slice.index);
    let picture = GrayImage::from_raw(width as u32, height as u32, values)?;
    Some(original(&picture.into()))
}

/// What is explained: an image, or a question about one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Sample {
    id: String,
    image: String,
}

/// The samples that most artifacts explain, one class after the other.
fn choose(counts: &BTreeMap<Sample, usize>, samples: &dyn Samples, most: usize) -> (Vec<Sample>, String) {
    let top = counts.values().copied().max().unwrap_or(0);
    let common: Vec<&Sample> =
        counts.iter().filter(|(_, count)| **count == top).map(|(sample, _)| sample).collect();
    let masked: Vec<&Sample> =
        common.iter().copied().filter(|sample| samples.has_mask(&sample.image)).collect();
    let only_masked = !masked.is_empty();
    let pool = if only_masked { masked } else { common };
    let mut classes: BTreeMap<Option<&str>, Vec<&Sample>> = BTreeMap::new();
    for sample in pool {
        classes.entry(samples.label(&sample.image)).or_default().push(sample);
    }
    let longest = classes.values().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|turn| classes.values().filter_map(move |own| own.get(turn)));
    let chosen: Vec<Sample> = in_turn.take(most).map(|sample| (*sample).clone()).collect();
    let rule = format!(
        "Shown are {} of {} explained samples{}: the first of each class in the order of their ids, then the \
         second, and so on.",
        chosen.len(),
        counts.len(),
        if only_masked { ", among those with a mask" } else { "" }
    );
    (chosen, rule)
}

/// Names each set of maps by the keys in which they differ.
fn name_all(shown: &mut [Shown<'_>]) {
    let keys = |one: &Shown<'_>| -> BTreeMap<String, String> {
        let told = ["method", "wrap", "model", "layer", "baseline", "reference"];
        let mut keys: BTreeMap<String, String> = told
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), one.metadata.get(*name)?.clone())))
            .collect();
        keys.extend(one.maps.axes.clone());
        keys
    };
    let all: Vec<BTreeMap<String, String>> = shown.iter().map(keys).collect();
    let names: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    // An axis often says what the file says too: what has the same values everywhere is told once.
    let mut differing: BTreeMap<Vec<Option<&String>>, &String> = BTreeMap::new();
    for name in names {
        let values: Vec<Option<&String>> = all.iter().map(|keys| keys.get(name)).collect();
        if values.iter().any(|value| *value != values[0]) {
            differing.entry(values).or_insert(name);
        }
    }
    let mut differing: BTreeSet<&String> = differing.into_values().collect();
    // The layer follows from the method nearly always: it is told where it alone tells maps apart.
    let told = |names: &BTreeSet<&String>| -> BTreeSet<Vec<Option<&String>>> {
        all.iter().map(|keys| names.iter().map(|name| keys.get(*name)).collect()).collect()
    };
    let without: BTreeSet<&String> = differing.iter().copied().filter(|name| *name != "layer").collect();
    if told(&without).len() == told(&differing).len() {
        differing = without;
    }
    for (one, keys) in shown.iter_mut().zip(&all) {
        let parts: Vec<&str> =
            differing.iter().filter_map(|name| keys.get(*name)).map(String::as_str).collect();
        one.name = match (parts.as_slice(), keys.get("method")) {
            ([], Some(method)) => method.clone(),
            ([], None) => title(one.maps.input),
            (parts, _) => parts.join(" \u{b7} "),
        };
    }
}

fn legend(shown: &[Shown<'_>], pictures: &mut Pictures) -> Markup {
    let mut bar = |signed: bool, low: &str, high: &str| {
        let source = pictures.source(&colour_bar(signed));
        html! {
            span .scale { (low) " " img src=(source) alt="colour scale" width="128" height="12"; " " (high) }
        }
    };
    let mut pairs = Vec::new();
    for pair in shown.iter().filter_map(sides) {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    html! {
        "Within a row all maps are drawn on one scale, after division by the value printed below each map: the \
         one under which 98 % of its absolute mass lies. Overlays are half map, half grey original, enlarged \
         without smoothing; what a model did not see of an image is the grey original alone. "
        @if shown.iter().any(Shown::has_volumes) {
            "Of volumes three slices are shown, in each direction the one of the greatest absolute sum, and a strip of \
             slices that share a scale; greys run from -1000 to 1000 HU, or over all values of 8-bit volumes, whatever \
             a model's window. "
        }
        @for [first, second] in &pairs { (bar(true, &format!("more in {second}"), &format!("more in {first}"))) " " }
        @if pairs.is_empty() && shown.iter().any(|one| one.signed) { (bar(true, "against the target", "for it")) }
        @if shown.iter().any(|one| !one.signed) { (bar(false, "0", "1")) }
    }
}

/// What was subtracted: first and second, if the maps are differences.
fn sides<'a>(shown: &'a Shown<'_>) -> Option<[&'a str; 2]> {
    let name = |side: &str| shown.metadata.get(side).map(String::as_str);
    (name("method") == Some("difference"))
        .then(|| [name("first").unwrap_or("first"), name("second").unwrap_or("second")])
}

fn case(
    id: &str,
    shown: &[Shown<'_>],
    seen: &Seen,
    mask: Option<&[u8]>,
    label: Option<&str>,
    pictures: &mut Pictures,
) -> Markup {
    // Maps of another data set's samples are no gap of this one's.
    let dataset = |one: &Shown<'_>| one.maps.axes.get("dataset").cloned();
    let datasets: Vec<_> = shown.iter().filter(|one| !one.of(id).is_empty()).map(dataset).collect();
    let question =
        shown.iter().flat_map(|one| one.of(id)).find_map(|explanation| explanation.question.clone());
    let flat = seen.originals.first().filter(|(_, slice)| slice.is_none());
    let outline =
        flat.zip(mask.and_then(decode)).map(|((picture, _), mask)| outlined(picture, &mask.to_luma8()));
    pictures.begin_row(id);
    html! {
        section .case {
            h4 { (id) @if let Some(label) = label { " \u{2013} " (label) } }
            @if let Some(question) = question { p { (question) } }
            div .strip {
                @for (picture, slice) in &seen.originals {
                    figure {
                        @let name = slice.map_or_else(String::new, |slice| format!(", {}", in_words(slice)));
                        @let heading = slice.map_or_else(|| "original".to_owned(), |slice| format!("original, {}", slice.plane.name()));
                        @let shows = format!("original of {id}{name}");
                        img src=(pictures.on_sheet(&heading, &shows, picture)) alt=(shows) width="112";
                        figcaption { "original" (name) }
                    }
                }
                @if seen.originals.is_empty() {
                    figure { p .reason { "no image was given" } figcaption { "original" } }
                }
                @if let Some(outline) = &outline {
                    figure {
                        @let shows = format!("original of {id} with its mask outlined");
                        img src=(pictures.on_sheet("mask outlined", &shows, outline)) alt=(shows) width="112";
                        figcaption { "mask outlined" }
                    }
                }
                @for (one, volume) in shown.iter().zip(&seen.volumes) {
                    @if one.of(id).is_empty() && datasets.contains(&dataset(one)) {
                        figure .pair {
                            p .reason { "not explained" }
                            figcaption { b { (one.name) } }
                        }
                    }
                    @for explanation in one.of(id) {
                        (explained(id, one, explanation, &Under { flat: flat.map(|(picture, _)| picture), volume: volume.as_deref() }, pictures))
                    }
                }
            }
        }
    }
}

/// What lies under maps: an image, or a volume.
pub(super) struct Under<'a> {
    flat: Option<&'a RgbImage>,
    volume: Option<&'a Vec<u8>>,
}

impl Under<'_> {
    /// The picture under a map, and where the map lies on it. Nothing where that is not known.
    pub(super) fn of(&self, map: &Map, framing: Option<Framing>) -> Option<(RgbImage, Framing)> {
        if let Some(volume) = self.volume {
            // Of a model that sees one slice it is the only one.
            let only = Slice { plane: Plane::Axial, index: 0, of: [1, map.height, map.width] };
            return Some((grey_slice(volume, map.slice.unwrap_or(only))?, Framing::Whole));
        }
        let picture = self.flat.filter(|_| map.slice.is_none())?;
        // A map of the image's own proportions can only be of the whole.
        let (width, height) = picture.dimensions();
        let skew = (u64::from(width) * map.height as u64).abs_diff(u64::from(height) * map.width as u64);
        let is_alike = skew < map.width.max(map.height) as u64;
        let framing = framing.or_else(|| is_alike.then_some(Framing::Whole))?;
        Some((picture.clone(), framing))
    }
}

/// The maps of one target with their overlays.
fn explained(
    id: &str,
    one: &Shown<'_>,
    explanation: &Explanation,
    under: &Under<'_>,
    pictures: &mut Pictures,
) -> Markup {
    let name = match &explanation.target {
        Some(target) if one.of(id).len() > 1 => format!("{} of {target}", one.name),
        _ => one.name.clone(),
    };
    html! {
        @if explanation.maps.is_empty() {
            figure .pair {
                p .reason { (explanation.status) }
                figcaption {
                    b { (one.name) }
                    @if let Some(target) = &explanation.target { br; "target " (target) }
                }
            }
        }
        @for map in &explanation.maps {
            @let drawn = Drawn::new(map, one.signed);
            @let (row, column) = peak(map);
            @let plane = map.slice.map_or_else(String::new, |slice| format!(", {}", in_words(slice)));
            @let picture = under.of(map, one.framing);
            figure .pair {
                @let direction = map.slice.map_or_else(String::new, |slice| format!(", {}", slice.plane.name()));
                @let shows = format!("map of {name} for {id}{plane}, greatest at row {row}, column {column}");
                img src=(pictures.on_sheet(&format!("{}{direction}", one.name), &shows, &drawn.picture())) width="112" alt=(shows);
                @if let Some((picture, framing)) = &picture {
                    @let shows = format!("overlay of {name} on {id}{plane}");
                    @let overlay = drawn.overlay(picture, *framing);
                    img src=(pictures.on_sheet(&format!("{}, overlay{direction}", one.name), &shows, &overlay)) width="112" alt=(shows);
                }
                figcaption {
                    b { (one.name) } br;
                    @if let Some(slice) = map.slice { "most salient " (in_words(slice)) br; }
                    @if explanation.status == "all_zero" { "zero everywhere" } @else { "scale " (number(f64::from(drawn.divisor))) }
                    @if let Some(target) = &explanation.target { ", target " (target) }
                    @if let Some(score) = explanation.score { ", score " (number(score)) }
                    @if let Some(gap) = explanation.completeness_gap { ", completeness gap " (number(gap)) }
                    @if picture.is_none() && under.flat.is_some() {
                        br; "no overlay: the file does not say where on the image the map lies"
                    }
                }
            }
        }
        (strip(id, &name, (&explanation.strip, one.signed), under, pictures))
    }
}

pub(super) fn in_words(slice: Slice) -> String {
    format!("{} slice {} of {}", slice.plane.name(), slice.index + 1, slice.plane.count(slice.of))
}

/// Row and column of the greatest value; the first of equal ones.
fn peak(map: &Map) -> (usize, usize) {
    let mut best = 0;
    for (index, value) in map.values.iter().enumerate() {
        if *value > map.values[best] {
            best = index;
        }
    }
    (best / map.width, best % map.width)
}
