//! Which rows there are, and which of them are copies of others.
//!
//! A row's place (split, patient, image) names it and decides everything that is its own; its origin is
//! the place whose picture it shows, which is the same but for planted leaks and duplicates. A place
//! depends on the rows before it only, so that further rows change none.

use std::collections::BTreeMap;

use super::params::Params;
use super::stream::{Stream, key};

pub(super) const TRAIN: &str = "train";
pub(super) const VAL: &str = "val";
pub(super) const TEST: &str = "test";

/// What a picture is drawn from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Origin {
    /// Whether the knobs of training are meant, or those of validation and test.
    pub(super) training: bool,
    pub(super) patient: u64,
    /// The number of the image among the patient's.
    pub(super) image: u64,
}

/// One row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) split: &'static str,
    pub(super) patient: u64,
    pub(super) image: u64,
    pub(super) origin: Origin,
    /// The training row whose image, or whose patient, this test row shows.
    pub(super) leak_of: Option<String>,
    /// Whether it is another image of that patient instead of the same one.
    pub(super) near: bool,
    /// The first row of the split that shows the same image.
    pub(super) duplicate_of: Option<String>,
    /// Whose caption it has, if another row's: an earlier one of training, by its place in the table.
    pub(super) caption_of: Option<usize>,
}

impl Place {
    pub(super) fn id(&self, params: &Params) -> String {
        let Self { split, patient, image, .. } = self;
        format!("phantom-{}-{}/{split}/{patient:06}/{image}", params.domain.name(), params.seed)
    }

    /// The group inside which images are not independent. A copy to the byte hides under a patient number
    /// of its own; another image of a training patient has that patient's.
    pub(super) fn group(&self, params: &Params) -> String {
        let patient = if self.near { self.origin.patient } else { self.patient };
        format!("phantom-{}-{}/{patient:06}", params.domain.name(), params.seed)
    }

    pub(super) fn is_training(&self) -> bool {
        self.split == TRAIN
    }

    /// A number that no other row has, with room for `k` below 100.
    pub(super) fn number(&self, k: u64) -> i64 {
        ((self.patient * 10 + self.image) * 100 + k) as i64
    }
}

/// The rows of all splits, in the order train, val, test.
pub(super) fn places(params: &Params) -> Vec<Place> {
    let mut all: Vec<Place> = Vec::new();
    let mut seen: BTreeMap<(&str, Origin), usize> = BTreeMap::new();
    let splits = [
        (TRAIN, 0, params.train),
        (VAL, 100_000, params.val),
        (TEST, 200_000 + 100_000 * params.test_offset, params.test),
    ];
    for (split, first, count) in splits {
        let start = all.len();
        for (row, (patient, image)) in images(params, first as u64).take(count as usize).enumerate() {
            let mut place = new(split, patient, image);
            let chance = |purpose: &str| stream(params, purpose, &place);
            let leak = chance("leak").f(0.0, 1.0);
            let mut duplicate = chance("duplicate");
            let mut swap = chance("swap");
            let repeats = duplicate.chance(params.duplicates) && row > 0;
            if split == TEST && leak < params.leak {
                place.origin = all[row].origin;
            } else if split == TEST && leak < params.leak + params.leak_near {
                // Numbers of test patients are no numbers of images, so this is one that training lacks.
                let training = Origin { training: false, image: patient, ..all[row].origin };
                place = Place { origin: training, near: true, leak_of: Some(all[row].id(params)), ..place };
            } else if repeats {
                place.origin = all[start + duplicate.below(row as u64) as usize].origin;
            }
            if split == TRAIN && swap.chance(params.caption_swap) && row > 0 {
                place.caption_of = Some(swap.below(row as u64) as usize);
            }
            let known =
                |split: &'static str| seen.get(&(split, place.origin)).map(|row| all[*row].id(params));
            if let Some(earlier) = known(split) {
                place.duplicate_of = Some(earlier);
            }
            if split == TEST
                && let Some(training) = known(TRAIN)
            {
                place.leak_of = Some(training);
            }
            seen.entry((split, place.origin)).or_insert(all.len());
            all.push(place);
        }
    }
    all
}

fn new(split: &'static str, patient: u64, image: u64) -> Place {
    let origin = Origin { training: split == TRAIN, patient, image };
    Place { split, patient, image, origin, leak_of: None, near: false, duplicate_of: None, caption_of: None }
}

/// Patients from number `first`, each with its images.
fn images(params: &Params, first: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    (first..).flat_map(move |patient| {
        let mut stream = Stream::new(key(params.seed as u64, params.domain.name(), "images", &[patient]));
        let images = 1 + stream.weighted(&params.images_per_patient) as u64;
        (0..images).map(move |image| (patient, image))
    })
}

fn stream(params: &Params, purpose: &str, place: &Place) -> Stream {
    let Place { patient, image, .. } = place;
    Stream::new(key(params.seed as u64, params.domain.name(), purpose, &[*patient, *image]))
}
