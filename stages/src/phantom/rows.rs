//! Drawing a row: picture, caption, questions and label of one place.

use pipe_engine::StageError;
use pipe_engine::cache::Digest;

use super::acquisition::{Acquisition, Picture, acquire};
use super::captions::{Caption, Fact, caption, facts, scene_caption, scene_facts};
use super::factors::{Factors, Knobs, Subject};
use super::general::Scene;
use super::labels;
use super::params::{Domain, Exposure, Params};
use super::places::{Origin, Place};
use super::questions::{Language, Question};
use crate::png;

/// What the rows of a study have in common.
pub(super) struct World<'a> {
    pub(super) params: &'a Params,
    pub(super) places: &'a [Place],
    /// How questions are worded in training, and in validation and test.
    languages: [Language; 2],
}

/// What a picture shows.
pub(super) enum Source {
    Medical(Factors),
    General(Scene),
}

/// One row, without its pixels.
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) id: String,
    pub(super) group: String,
    pub(super) source: Source,
    pub(super) facts: Vec<Fact>,
    pub(super) caption: Caption,
    /// What the caption states, be it of this image or of another.
    pub(super) stated: Vec<Fact>,
    pub(super) questions: Vec<Question>,
    /// The label before and after noise.
    pub(super) truth: Vec<i64>,
    pub(super) label: Vec<i64>,
    /// The digest of the stored file.
    pub(super) sha: Digest,
    pub(super) area: Area,
}

/// How much of a picture an expert outlines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    /// Pixels inside a mask.
    pub(super) inside: usize,
    /// Pixels inside or within the tolerance of the pointing game.
    pub(super) near: usize,
    pub(super) pixels: usize,
}

/// A picture as it is stored.
pub(super) struct Drawn {
    pub(super) picture: Picture,
    pub(super) png: Vec<u8>,
    /// The digest of the file.
    pub(super) sha: Digest,
}

impl Drawn {
    pub(super) fn new(picture: Picture) -> Result<Self, StageError> {
        let png = png::encode(&picture.pixels, picture.size, picture.size, picture.channels)?;
        Ok(Self { sha: Digest::of(&png), picture, png })
    }
}

/// The knobs of the generator in training, or in validation and test.
pub(super) fn knobs(params: &Params, training: bool) -> Knobs {
    Knobs {
        seed: params.seed as u64,
        weights: params.site_weights(),
        p_normal: params.p_normal,
        imbalance: params.imbalance,
        second: params.findings_per_image > 1,
        device_b: params.device_b,
        shortcut: if training { params.shortcut_train } else { params.shortcut_test },
        target: params.shortcut_target.finding(),
    }
}

pub(super) fn acquisition(params: &Params) -> Acquisition {
    Acquisition {
        contrast: params.contrast,
        contrast_b: params.contrast_b,
        noise_b: params.noise_b,
        blur_b: params.blur_b,
        gain: params.acquisition == Exposure::Full,
    }
}

/// The label of a medical image, before noise.
pub(super) fn truth(params: &Params, factors: &Factors, area: Area) -> Vec<i64> {
    let severity = area.share() * acquisition(params).contrast_on(factors.device_b);
    labels::of_subject(params, &factors.visible(), severity)
}

impl<'a> World<'a> {
    pub(super) fn new(params: &'a Params, places: &'a [Place]) -> Self {
        let language = |training| Language::new(params, &knobs(params, training), training);
        Self { params, places, languages: [language(true), language(false)] }
    }

    pub(super) fn language(&self, training: bool) -> &Language {
        &self.languages[usize::from(!training)]
    }

    /// Draws the row at a place.
    pub(super) fn draw(&self, place: &Place) -> Result<(Row, Drawn), StageError> {
        let params = self.params;
        let source = self.source(place.origin);
        let picture = match &source {
            Source::Medical(factors) => acquire(factors, params.size as usize, acquisition(params)),
            Source::General(scene) => scene.picture(params.size as usize),
        };
        let area = Area::of(&picture);
        let truth = match &source {
            Source::Medical(factors) => truth(params, factors, area),
            Source::General(scene) => labels::of_scene(params, scene),
        };
        let drawn = Drawn::new(picture)?;
        let (facts, own_caption) = self.caption(place, &source);
        let (caption, stated) = match place.caption_of {
            None => {
                let stated = own_caption.stated(&facts).into_iter().cloned().collect();
                (own_caption, stated)
            }
            Some(other) => {
                let other = &self.places[other];
                let (facts, caption) = self.caption(other, &self.source(other.origin));
                let stated = caption.stated(&facts).into_iter().cloned().collect();
                (caption, stated)
            }
        };
        let row = Row {
            id: place.id(params),
            group: place.group(params),
            questions: source.subject().map_or_else(Vec::new, |subject| self.questions(place, subject)),
            label: labels::noisy(params, &truth, place),
            place: place.clone(),
            sha: drawn.sha,
            source,
            facts,
            caption,
            stated,
            truth,
            area,
        };
        Ok((row, drawn))
    }

    fn source(&self, origin: Origin) -> Source {
        let Origin { training, patient, image } = origin;
        match self.params.domain {
            // Volumes have rows of their own.
            Domain::Medical | Domain::Volume => {
                Source::Medical(Factors::draw(&knobs(self.params, training), patient, image))
            }
            Domain::General => Source::General(Scene::draw(self.params.seed as u64, patient, image)),
        }
    }

    /// The facts of what a place shows, and its own caption of them.
    fn caption(&self, place: &Place, source: &Source) -> (Vec<Fact>, Caption) {
        let Params { kappa, style, .. } = self.params;
        let (seed, number) = (self.params.seed as u64, (place.patient, place.image));
        match source {
            Source::Medical(Factors { subject, .. }) => {
                (facts(subject, kappa), caption(subject, kappa, *style, seed, number))
            }
            Source::General(scene) => (scene_facts(scene), scene_caption(scene, seed, number)),
        }
    }

    fn questions(&self, place: &Place, subject: &Subject) -> Vec<Question> {
        let training = place.is_training();
        let (seed, number) = (self.params.seed as u64, (place.patient, place.image));
        let ask = |k| self.language(training).ask(subject, seed, number, k);
        (0..self.params.questions_in(training)).map(ask).collect()
    }
}

impl Source {
    pub(super) fn factors(&self) -> Option<&Factors> {
        match self {
            Self::Medical(factors) => Some(factors),
            Self::General(_) => None,
        }
    }

    pub(super) fn subject(&self) -> Option<&Subject> {
        self.factors().map(|factors| &factors.subject)
    }
}

impl Row {
    /// Whether the picture has one channel.
    pub(super) fn is_grey(&self) -> bool {
        self.source.factors().is_some_and(|factors| factors.site().modality != "histology")
    }

    /// Whether all that the caption states is true of the image.
    pub(super) fn is_consistent(&self) -> bool {
        let holds = |stated: &Fact| {
            self.facts.iter().any(|fact| fact.name == stated.name && fact.value == stated.value)
        };
        self.stated.iter().all(holds)
    }
}

impl Area {
    /// The area of all masks together.
    pub(super) fn of(picture: &Picture) -> Self {
        let (mask, size) = (picture.mask(), picture.size);
        let near = dilated(&mask, size, tolerance(size));
        let count = |mask: &[bool]| mask.iter().filter(|inside| **inside).count();
        Self { inside: count(&mask), near: count(&near), pixels: mask.len() }
    }

    /// The share of the picture that is inside.
    pub(super) fn share(self) -> f64 {
        self.inside as f64 / self.pixels as f64
    }
}

/// Pixels around a mask that the tolerant pointing game accepts: 15 of 224, in proportion.
pub(super) fn tolerance(size: usize) -> f64 {
    15.0 * size as f64 / 224.0
}

/// The pixels within `radius` of the mask.
fn dilated(mask: &[bool], size: usize, radius: f64) -> Vec<bool> {
    // Pixels inside among the first of each row: a stretch of a row is asked in one step.
    let before: Vec<usize> = mask
        .chunks(size)
        .flat_map(|row| {
            let counts = row.iter().scan(0, |count, inside| {
                *count += usize::from(*inside);
                Some(*count)
            });
            std::iter::once(0).chain(counts).collect::<Vec<_>>()
        })
        .collect();
    let reach = radius.floor() as usize;
    let widths: Vec<usize> =
        (0..=reach).map(|dy| (radius * radius - (dy * dy) as f64).sqrt().floor() as usize).collect();
    let near = |x: usize, y: usize| {
        (y.saturating_sub(reach)..(y + reach + 1).min(size)).any(|row| {
            let width = widths[row.abs_diff(y)];
            let (from, to) = (x.saturating_sub(width), (x + width + 1).min(size));
            before[row * (size + 1) + to] > before[row * (size + 1) + from]
        })
    };
    (0..size * size).map(|index| near(index % size, index / size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dilated_point_is_a_disc() {
        let mut mask = vec![false; 81];
        mask[4 * 9 + 4] = true;
        let near = dilated(&mask, 9, 2.3);
        for (index, near) in near.into_iter().enumerate() {
            let (x, y) = ((index % 9) as f64 - 4.0, (index / 9) as f64 - 4.0);
            assert_eq!(near, x * x + y * y <= 2.3 * 2.3, "({x}, {y})");
        }
        assert!(dilated(&[false; 81], 9, 3.0).iter().all(|near| !near));
    }
}
