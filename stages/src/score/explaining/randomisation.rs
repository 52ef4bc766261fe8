//! Whether a map depends on the model, and on the class.

use pipe_attribution::AttributionError;
use pipe_attribution::metrics::{
    LayerSimilarities, Part, Perturbation, Preparation, Randomisation, Scale, Similarity, Value, flat_ssim,
    other_class, random_logit, range, ssim, volume_ssim,
};

use super::super::Likeness;
use super::super::metric::Metric;
use super::{BINS, Chunk, Images, SMOOTH_NOISE};
use crate::target::ClassTarget;

impl Chunk<'_, '_, '_> {
    /// How like two maps are, by what a metric compares them with.
    fn likeness(&self, metric: Metric, a: &[f64], b: &[f64]) -> Value {
        let shape = self.setting.shape;
        match self.params().likeness_of(metric) {
            Likeness::Spearman => Similarity::Spearman.of(a, b),
            Likeness::Pearson => Similarity::Pearson.of(a, b),
            Likeness::Kendall => Similarity::Kendall.of(a, b),
            Likeness::Cosine => Similarity::Cosine.of(a, b),
            Likeness::Ssim if self.is_quantus() => flat_ssim(a, b),
            Likeness::Ssim => match shape.depth {
                Some(_) => volume_ssim(a, b, shape.axes()),
                None => ssim(a, b, shape.width),
            },
        }
    }

    pub(super) fn randomisation(&self, metric: Metric) -> pipe_attribution::Result<Vec<Value>> {
        let quantus = self.is_quantus();
        let preparation = match metric {
            // The histogram's bins follow the map.
            Metric::EfficientParameterRandomisation | Metric::EntropyCorrelation => {
                Preparation { scale: Scale::None, part: Part::Signed }
            }
            Metric::SmoothParameterRandomisation if quantus => {
                Preparation { scale: Scale::SecondMoment, part: Part::Absolute }
            }
            // That of windows depends on the scale of both.
            _ if self.params().likeness_of(metric) == Likeness::Ssim => Preparation {
                scale: if quantus { Scale::Together } else { Scale::PerMap },
                part: Part::Absolute,
            },
            // Ranks and angles have none.
            _ => Preparation { scale: Scale::None, part: Part::Absolute },
        };
        let explain = |layers: &[usize], images: &Images<'_>| self.explain_random(layers, images);
        let randomisation = Randomisation {
            samples: self.samples,
            layers: self.setting.layers.len(),
            order: self.params().order_of(metric).into(),
            preparation,
            explain: &explain,
        };
        let likeness = |a: &[f64], b: &[f64]| self.likeness(metric, a, b);
        let mode = self.mode();
        match metric {
            Metric::EfficientParameterRandomisation => randomisation.entropy_rise(BINS),
            Metric::EntropyCorrelation if self.setting.of_texts => Err(AttributionError::NotApplicable(
                "a text alone has no distribution over classes".to_owned(),
            )),
            Metric::EntropyCorrelation
                if self.carried(self.setting.model.head())?.description.is_multi_label() =>
            {
                let reason = "independent labels have no distribution over classes";
                Err(AttributionError::NotApplicable(reason.to_owned()))
            }
            Metric::EntropyCorrelation => {
                let outputs =
                    |layers: &[usize], images: &Images<'_>| self.random_probabilities(layers, images);
                Ok(randomisation.entropies(BINS, &outputs)?.correlations())
            }
            Metric::SmoothParameterRandomisation => {
                let noisy = |step: usize, draw: usize, place: usize| {
                    let image = self.samples[place].image;
                    let key =
                        self.key("pipe smooth randomisation/1", place).sub(step as u64).sub(draw as u64);
                    Perturbation::Normal { deviation: SMOOTH_NOISE }.add(image, key, range(image))
                };
                let draws = self.params().draws.max(1) as usize;
                Ok(self.averaged(randomisation.smooth_similarities(draws, &noisy, &likeness, mode)?))
            }
            _ => Ok(self.averaged(randomisation.similarities(&likeness)?)),
        }
    }

    /// The mean over layers; each of them is remembered.
    fn averaged(&self, similarities: LayerSimilarities) -> Vec<Value> {
        let outcome = |value: &Value| value.clone().map_err(|reason| reason.to_string());
        let layers = similarities.layers.iter().map(|layer| layer.iter().map(outcome).collect());
        *self.layers.borrow_mut() = layers.collect();
        similarities.average(self.mode())
    }

    pub(super) fn random_logit(&self) -> pipe_attribution::Result<Vec<Value>> {
        let not_applicable = |reason: &str| AttributionError::NotApplicable(reason.to_owned());
        if self.setting.of_texts {
            return Err(not_applicable(
                "the map explains the similarity with a text, and there are no other classes",
            ));
        }
        if self.targets.iter().any(|target| target.against.is_some()) {
            return Err(not_applicable("the map explains a margin between two classes"));
        }
        let classes = self.carried(self.setting.model.head())?.description.classes.len();
        let others: Option<Vec<ClassTarget>> = (0..self.targets.len())
            .map(|place| {
                let key = self.key("pipe random logit/1", place);
                let class = other_class(key, self.targets[place].class, classes)?;
                Some(ClassTarget { class, against: None })
            })
            .collect();
        let others = others.ok_or_else(|| not_applicable("the model knows one class only"))?;
        let explain = |images: &Images<'_>| self.explain(self.setting.model, &others, None, images);
        let likeness = |a: &[f64], b: &[f64]| self.likeness(Metric::RandomLogit, a, b);
        if self.is_quantus() {
            let preparation = Preparation { scale: Scale::Together, part: Part::Signed };
            return random_logit(self.samples, &explain, preparation, &likeness);
        }
        let preparation = Preparation { scale: Scale::PerMap, part: Part::Signed };
        random_logit(self.samples, &explain, preparation, &likeness)
    }
}
