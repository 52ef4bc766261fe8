//! The record of factors that a medical row is made of.

use pipe_models::random::Key;

use super::sites::{FINDINGS, SITES, Site};
use super::stream::{Stream, key};

/// The knobs of the generator that decide factors.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) seed: u64,
    pub(super) weights: Vec<f64>,
    pub(super) p_normal: f64,
    pub(super) device_b: f64,
    /// Correlation of the marker with abnormality.
    pub(super) shortcut: f64,
}

/// One row of the medical domain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Factors {
    pub(super) patient: u64,
    pub(super) site: usize,
    /// Index into [`FINDINGS`]; 0 is none.
    pub(super) finding: usize,
    /// The patient's side; null where the finding has none.
    pub(super) left: Option<bool>,
    pub(super) large: Option<bool>,
    pub(super) count: usize,
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
    /// The factors of a patient's first image.
    pub(super) fn draw(knobs: &Knobs, patient: u64) -> Self {
        let mut person = Stream::new(key(knobs.seed, "medical", "patient", &[patient]));
        let site = person.weighted(&knobs.weights);
        let normal = person.chance(knobs.p_normal);
        let finding = *person.pick(SITES[site].findings);
        let left = person.chance(0.5);
        let large = person.chance(0.5);
        let device_b = person.chance(knobs.device_b);
        let frame = (person.f(0.93, 1.05), person.j(0.02), person.j(0.02));
        let finding = if normal { 0 } else { finding };
        let name = FINDINGS[finding];
        let side = SITES[site].has_sides && !["none", "cardiomegaly"].contains(&name);
        let sized = !["none", "fracture"].contains(&name);

        let image = key(knobs.seed, "medical", "image", &[patient, 0]);
        let mut picture = Stream::new(image);
        let several = picture.weighted(&[0.5, 0.25, 0.25]) + 1;
        let share = if finding == 0 { 1.0 - knobs.shortcut } else { 1.0 + knobs.shortcut } / 2.0;
        let marker = picture.chance(share);
        let marker_right = picture.chance(0.5);
        let countable = ["nodule", "cyst", "stone"].contains(&name) && SITES[site].region != "limb";
        Self {
            patient,
            site,
            finding,
            left: side.then_some(left),
            large: sized.then_some(large),
            count: match (finding, countable) {
                (0, _) => 0,
                (_, true) => several,
                (_, false) => 1,
            },
            device_b,
            marker,
            marker_right,
            frame,
            image,
            lesion: true,
        }
    }

    pub(super) fn site(&self) -> &'static Site {
        &SITES[self.site]
    }

    pub(super) fn finding_name(&self) -> &'static str {
        FINDINGS[self.finding]
    }

    pub(super) fn is_large(&self) -> bool {
        self.large == Some(true)
    }
}
