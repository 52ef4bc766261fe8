//! How well captions tell their images from others: the loss of Luo et al. (2018), "Discriminability objective for
//! training descriptive captions", of captions as they are given.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::retrieval::{Direction, Pool};
use crate::statistics::{Estimate, Groups, bootstrap_all, mean};

/// Which searches a caption is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Terms {
    /// Both, one added to the other.
    Both,
    /// The image looks for its caption among those of other images.
    Caption,
    /// The caption looks for its image among the others.
    Image,
}

/// The discriminability of captions.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Discriminability {
    /// By how much the cosine with the own one has to be above that with the hardest other one.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub margin: f64,
    /// The searches.
    pub terms: Terms,
}

impl Default for Discriminability {
    fn default() -> Self {
        Self { margin: 0.2, terms: Terms::Both }
    }
}

/// Of one caption: [margin + cosine with the hardest other one - cosine with the own one], at least 0.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Losses {
    /// Other captions for the own image. Those of the own image are no rivals.
    caption: f64,
    /// Other images for the caption.
    image: f64,
}

/// The losses of all captions of a pool, in their order. The pool is the batch of the original.
fn losses(pool: &Pool, margin: f64) -> Vec<Losses> {
    let hinge = |own: f32, others: f32| (margin + f64::from(others) - f64::from(own)).max(0.0);
    let greatest = |scores: &[f32], is_rival: &dyn Fn(usize) -> bool| {
        let rivals = scores.iter().enumerate().filter(|(place, _)| is_rival(*place));
        rivals.map(|(_, score)| *score).fold(f32::NEG_INFINITY, f32::max)
    };
    let hardest_captions: Vec<f32> = (0..pool.images.ids.len())
        .into_par_iter()
        .map(|image| {
            let scores = pool.cosines(Direction::ImageToText, image);
            greatest(&scores, &|caption| pool.owner[caption] != image)
        })
        .collect();
    let of_caption = |caption: usize| {
        let scores = pool.cosines(Direction::TextToImage, caption);
        let own = pool.owner[caption];
        Losses {
            caption: hinge(scores[own], hardest_captions[own]),
            image: hinge(scores[own], greatest(&scores, &|image| image != own)),
        }
    };
    (0..pool.captions.ids.len()).into_par_iter().map(of_caption).collect()
}

impl Discriminability {
    /// The mean over the captions of the wanted terms and, of several, of their sum, by name; with intervals over images.
    pub(crate) fn figures(&self, pool: &Pool, seed: i64) -> Vec<(&'static str, Option<Estimate>)> {
        let losses = losses(pool, self.margin);
        let term = |of: fn(&Losses) -> f64| losses.iter().map(of).collect::<Vec<f64>>();
        let caption = ("caption_retrieval_loss", term(|loss| loss.caption));
        let image = ("image_retrieval_loss", term(|loss| loss.image));
        let both = ("discriminability_loss", term(|loss| loss.caption + loss.image));
        let figures = match self.terms {
            Terms::Both => vec![both, caption, image],
            Terms::Caption => vec![caption],
            Terms::Image => vec![image],
        };
        let images: Vec<Option<String>> = pool.captions.ids.iter().cloned().map(Some).collect();
        let estimates = bootstrap_all(&Groups::new(&images), seed as u64, |weights| {
            figures.iter().map(|(_, values)| mean(values, weights)).collect()
        });
        figures.iter().map(|(name, _)| *name).zip(estimates).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieval::Vectors;

    /// Unit vectors at these angles, in degrees.
    fn vectors(rows: &[(&str, f64)]) -> Vectors {
        let mut vectors = Vectors::empty(2);
        for (id, angle) in rows {
            let (sine, cosine) = libm::sincos(angle.to_radians());
            vectors.push((*id).to_owned(), &[cosine as f32, sine as f32]).unwrap();
        }
        vectors
    }

    fn cosine(degrees: f64) -> f64 {
        libm::cos(degrees.to_radians())
    }

    #[test]
    fn the_hardest_other_one_counts_in_either_direction() {
        let images = vectors(&[("a", 0.0), ("b", 90.0)]);
        // Two captions of `a`, the second of which is nearer to `b`; one of `b`.
        let captions = vectors(&[("a", 10.0), ("a", 60.0), ("b", 80.0)]);
        let pool = Pool::new(images, captions, None).unwrap();
        let found = losses(&pool, 0.2);
        let hinge = |others: f64, own: f64| (0.2 + cosine(others) - cosine(own)).max(0.0);
        // Other captions for `a`: that of `b`, 80 degrees away. Its own second caption is none.
        let expected = [
            (hinge(80.0, 10.0), hinge(80.0, 10.0)),
            (hinge(80.0, 60.0), hinge(30.0, 60.0)),
            (hinge(30.0, 10.0), hinge(80.0, 10.0)),
        ];
        for (found, (caption, image)) in found.iter().zip(expected) {
            assert!(
                (found.caption - caption).abs() < 1e-6 && (found.image - image).abs() < 1e-6,
                "{found:?}"
            );
        }
        assert_eq!(found[0], Losses { caption: 0.0, image: 0.0 });
        assert!(found[1].image > 0.5 && found[2].caption > 0.0);

        let named = |terms: Terms| Discriminability { margin: 0.2, terms }.figures(&pool, 0);
        let both = named(Terms::Both);
        let mean = |of: fn(&Losses) -> f64| found.iter().map(of).sum::<f64>() / 3.0;
        let value = |place: usize| both[place].1.unwrap().value;
        assert!((value(0) - mean(|loss| loss.caption + loss.image)).abs() < 1e-12);
        assert!((value(1) + value(2) - value(0)).abs() < 1e-12);
        assert_eq!(named(Terms::Image), [both[2]]);
        assert_eq!(named(Terms::Caption), [both[1]]);
    }

    #[test]
    fn equal_embeddings_lose_the_margin_twice() {
        let same = || vectors(&[("a", 5.0), ("b", 5.0), ("c", 5.0)]);
        let pool = Pool::new(same(), same(), None).unwrap();
        let both = Discriminability::default().figures(&pool, 1);
        let estimate = both[0].1.unwrap();
        assert!((estimate.value - 0.4).abs() < 1e-12, "{estimate:?}");
        assert_eq!((estimate.low, estimate.high), (Some(estimate.value), Some(estimate.value)));
    }
}
