//! How much a map changes when the image hardly does.

use pipe_attribution::metrics::{
    Baseline, Draws, Part, Preparation, Robustness, Scale, Value, translated, translations,
};

use super::super::metric::Metric;
use super::{Chunk, Images, QUANTUS_TRANSLATIONS, noise_of};

impl Chunk<'_, '_, '_> {
    pub(super) fn robustness(&self, metric: Metric) -> pipe_attribution::Result<Vec<Value>> {
        let (mode, noise) = (self.mode(), noise_of(metric, self.params()));
        let scale = if self.is_quantus() { Scale::Together } else { Scale::PerMap };
        let preparation = match metric {
            Metric::LocalLipschitzEstimate => Preparation { scale, part: Part::Signed },
            Metric::Continuity => Preparation { scale, part: Part::Absolute },
            Metric::MaxSensitivity | Metric::AvgSensitivity if !self.is_quantus() => {
                Preparation { scale, part: Part::Signed }
            }
            _ => Preparation { scale: Scale::None, part: Part::Signed },
        };
        let explain = |images: &Images<'_>| self.explain_again(images);
        let outputs = |images: &Images<'_>| self.logits(images);
        let representations = |images: &Images<'_>| self.representations(images);
        // Reference leaves draws out that change the prediction; Quantus does so for the relative ones.
        let is_relative = matches!(
            metric,
            Metric::RelativeInputStability
                | Metric::RelativeOutputStability
                | Metric::RelativeRepresentationStability
        );
        let watched = is_relative || !self.is_quantus();
        let shape = self.setting.shape;
        let shifts = match self.is_quantus() {
            true => translations(shape.width, QUANTUS_TRANSLATIONS, mode),
            false => translations(shape.width, self.params().draws.max(1) as usize, mode),
        };
        let moved = |draw: usize, place: usize| {
            let image = self.samples[place].image;
            translated(image, shape, shifts[draw], Baseline::Black.value(image))
        };
        let noisy = |draw: usize, place: usize| self.noisy(noise, "pipe robustness/1", draw, place);
        let draws = match metric {
            Metric::Continuity => Draws { count: shifts.len(), image: &moved },
            _ => Draws { count: self.params().draws.max(1) as usize, image: &noisy },
        };
        let robustness = Robustness {
            samples: self.samples,
            draws,
            explain: &explain,
            preparation,
            outputs: if watched { Some(&outputs) } else { None },
        };
        let drawn = match metric {
            Metric::MaxSensitivity | Metric::AvgSensitivity => match self.sensitivity.take() {
                Some(drawn) => drawn,
                None => robustness.sensitivity()?,
            },
            Metric::LocalLipschitzEstimate => robustness.local_lipschitz()?,
            Metric::RelativeInputStability => robustness.relative_input_stability(mode)?,
            Metric::RelativeOutputStability => robustness.relative_output_stability(&outputs, mode)?,
            Metric::RelativeRepresentationStability => {
                robustness.relative_representation_stability(&representations, mode)?
            }
            _ => robustness.continuity()?,
        };
        if watched {
            *self.kept.borrow_mut() = drawn.kept_shares();
        }
        let values =
            if metric == Metric::AvgSensitivity { drawn.average(mode) } else { drawn.greatest(mode) };
        if matches!(metric, Metric::MaxSensitivity | Metric::AvgSensitivity) {
            *self.sensitivity.borrow_mut() = Some(drawn);
        }
        Ok(values)
    }
}
