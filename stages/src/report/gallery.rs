//! The gallery: for a few samples the original, its mask, and every method's map and overlay.
//!
//! Samples are chosen by a rule that is printed, never by hand.

use std::collections::{BTreeMap, BTreeSet};

use image::{DynamicImage, RgbImage};
use maud::{Markup, html};
use pipe_engine::{Artifact, StageError};

use super::picture::{Drawn, colour_bar, decode, original, outlined};
use super::pictures::Pictures;
use super::saliency::{self, Explanation, Metadata, Slice};
use super::words::{number, title};

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
    /// What a model saw of a volume.
    ///
    /// # Errors
    /// If a table cannot be read.
    fn slice(
        &self,
        axes: &BTreeMap<String, String>,
        id: &str,
        view: View,
    ) -> Result<Option<DynamicImage>, StageError>;
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

/// Which slice of a volume a map was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Slices, height and width of the maps.
    pub(super) shape: [usize; 3],
    pub(super) index: usize,
    /// Whether the model saw slices one by one, each as a flat image.
    pub(super) by_slices: bool,
}

/// A set of maps with its metadata, read for the chosen samples.
struct Shown<'a> {
    maps: &'a Maps<'a>,
    metadata: Metadata,
    explanations: BTreeMap<String, Explanation>,
    name: String,
    signed: bool,
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
            .filter_map(|explanation| explanation.map.as_ref())
            .any(|map| map.values.iter().any(|&value| value < 0.0));
        shown.push(Shown { maps: one, metadata, explanations, name: String::new(), signed });
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
    let masks = samples.masks(&wanted)?;
    let mut cases = Vec::with_capacity(chosen.len());
    for sample in &chosen {
        let image = images.get(&sample.image);
        let seen = seen(sample, &shown, image, samples)?;
        let mask = masks.get(&sample.image).map(Vec::as_slice);
        cases.push(case(&sample.id, &shown, &seen, mask, samples.label(&sample.image), pictures));
    }
    let input = maps.first().map_or("", |maps| maps.input);
    Ok(html! {
        h3 { (title(input)) }
        p .note { (rule) " " (legend(&shown, pictures)) }
        @for case in &cases { (case) }
    })
}

/// What is shown of a sample beside its maps.
struct Seen {
    original: Option<RgbImage>,
    /// Which slice that is, if the sample is a volume.
    slice: Option<Slice>,
    /// What lies under each set's map.
    under: Vec<Option<RgbImage>>,
}

/// The image of a sample, or the slices of its volume that maps were made of.
fn seen(
    sample: &Sample,
    shown: &[Shown<'_>],
    image: Option<&DynamicImage>,
    samples: &dyn Samples,
) -> Result<Seen, StageError> {
    if let Some(image) = image {
        let original = original(image);
        return Ok(Seen {
            under: vec![Some(original.clone()); shown.len()],
            original: Some(original),
            slice: None,
        });
    }
    let of_slice = |one: &Shown<'_>, index: Option<usize>| -> Result<Option<RgbImage>, StageError> {
        let map = one.explanations.get(&sample.id).and_then(|explanation| explanation.map.as_ref());
        let Some(map) = map else { return Ok(None) };
        let Slice { index: own, count } = map.slice.unwrap_or(Slice { index: 0, count: 1 });
        let view = View {
            shape: [count, map.height, map.width],
            index: index.unwrap_or(own),
            by_slices: one.metadata.contains_key("volumes"),
        };
        Ok(samples.slice(one.maps.axes, &sample.image, view)?.as_ref().map(original))
    };
    let under = shown.iter().map(|one| of_slice(one, None)).collect::<Result<Vec<_>, _>>()?;
    // The central slice, as the first of the models saw it.
    let with_map = shown.iter().find_map(|one| Some((one, one.explanations.get(&sample.id)?.map.as_ref()?)));
    let slice = with_map.and_then(|(_, map)| map.slice);
    let slice = slice.map(|Slice { count, .. }| Slice { index: count / 2, count });
    let original = match with_map {
        Some((one, _)) => of_slice(one, slice.map(|slice| slice.index))?,
        None => None,
    };
    Ok(Seen { original, slice, under })
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
        let told = ["method", "model", "layer", "baseline", "reference"];
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
    let differing: BTreeSet<&String> = differing.into_values().collect();
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
    html! {
        "Within a row all maps are drawn on one scale, after division by the value printed below each map: the \
         one under which 98 % of its absolute mass lies. Overlays are half map, half grey original, enlarged \
         without smoothing. "
        @if let Some([first, second]) = shown.first().and_then(sides) {
            (bar(true, &format!("more in {second}"), &format!("more in {first}")))
        } @else if shown.iter().any(|one| one.signed) { (bar(true, "against the target", "for it")) }
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
    let question =
        shown.iter().find_map(|one| one.explanations.get(id)?.question.as_deref().map(str::to_owned));
    let picture = seen.original.as_ref();
    let outline =
        picture.zip(mask.and_then(decode)).map(|(picture, mask)| outlined(picture, &mask.to_luma8()));
    html! {
        section .case {
            h4 { (id) @if let Some(label) = label { " \u{2013} " (label) } }
            @if let Some(question) = question { p { (question) } }
            div .strip {
                figure {
                    @match picture {
                        Some(picture) => {
                            img src=(pictures.source(picture)) alt=(format!("original of {id}")) width="112";
                        },
                        None => { p .reason { "no image was given" } },
                    }
                    figcaption { "original" @if let Some(slice) = seen.slice { ", " (in_words(slice)) } }
                }
                @if let Some(outline) = &outline {
                    figure {
                        img src=(pictures.source(outline)) alt=(format!("original of {id} with its mask outlined")) width="112";
                        figcaption { "mask outlined" }
                    }
                }
                @for (one, under) in shown.iter().zip(&seen.under) {
                    (explained(id, one, under.as_ref(), pictures))
                }
            }
        }
    }
}

fn explained(id: &str, one: &Shown<'_>, picture: Option<&RgbImage>, pictures: &mut Pictures) -> Markup {
    let explanation = one.explanations.get(id);
    let map = explanation.and_then(|explanation| explanation.map.as_ref());
    html! {
        figure .pair {
            @match (map, explanation) {
                (Some(map), Some(explanation)) => {
                    @let drawn = Drawn::new(map, one.signed);
                    @let (row, column) = peak(map);
                    img src=(pictures.source(&drawn.picture())) width="112"
                        alt=(format!("map of {} for {id}, greatest at row {row}, column {column}", one.name));
                    @if let Some(picture) = picture {
                        img src=(pictures.source(&drawn.overlay(picture))) width="112"
                            alt=(format!("overlay of {} on {id}", one.name));
                    }
                    figcaption {
                        b { (one.name) } br;
                        @if let Some(slice) = map.slice { "most salient " (in_words(slice)) br; }
                        @if explanation.status == "all_zero" { "zero everywhere" } @else { "scale " (number(f64::from(drawn.divisor))) }
                        @if let Some(target) = &explanation.target { ", target " (target) }
                        @if let Some(score) = explanation.score { ", score " (number(score)) }
                        @if let Some(gap) = explanation.completeness_gap { ", completeness gap " (number(gap)) }
                    }
                },
                (_, Some(explanation)) => {
                    p .reason { (explanation.status) }
                    figcaption { b { (one.name) } }
                },
                (_, None) => {
                    p .reason { "not explained" }
                    figcaption { b { (one.name) } }
                },
            }
        }
    }
}

fn in_words(Slice { index, count }: Slice) -> String {
    format!("slice {} of {count}", index + 1)
}

/// Row and column of the greatest value; the first of equal ones.
fn peak(map: &saliency::Map) -> (usize, usize) {
    let mut best = 0;
    for (index, value) in map.values.iter().enumerate() {
        if *value > map.values[best] {
            best = index;
        }
    }
    (best / map.width, best % map.width)
}
