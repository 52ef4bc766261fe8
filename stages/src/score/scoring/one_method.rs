//! The maps of one method, scored by every metric that is defined for them.

use std::collections::BTreeMap;

use pipe_attribution::metrics::{Mask, Prediction};
use pipe_engine::StageError;
use rayon::prelude::*;

use super::super::explaining::{ByMap, Explaining};
use super::super::faithfulness::{Asked, Faithfulness, score_space, uses_baseline};
use super::super::map_metrics::Settings;
use super::super::metric::{Metric, Needs};
use super::super::rows::Row;
use super::super::{Mode, ScoreSpace};
use super::{Asking, MapOf, Scoring};

impl Scoring<'_, '_> {
    /// All metrics of the maps of one method.
    pub(super) fn score(
        &self,
        maps: &[(usize, MapOf)],
        asking: &Asking<'_, '_>,
        prediction: Prediction,
    ) -> Result<Vec<Row>, StageError> {
        let settings = self.settings(maps);
        let undefined =
            |metric: &Metric| self.shape.depth.and_then(|_| metric.undefined_of_volumes()).map(str::to_owned);
        let of = |needs: Needs| -> Vec<Metric> {
            let wanted = |metric: &Metric| metric.needs() == needs && undefined(metric).is_none();
            self.metrics.iter().copied().filter(wanted).collect()
        };
        let mut values: BTreeMap<Metric, Vec<Result<f64, String>>> = BTreeMap::new();
        for metric in &self.metrics {
            if let Some(reason) = undefined(metric) {
                values.insert(*metric, vec![Err(reason); maps.len()]);
            }
        }
        values.extend(self.faithful(
            &of(Needs::Model),
            maps,
            asking.faithfulness.as_ref().copied(),
            &settings,
            prediction,
        )?);
        let mut steps: BTreeMap<Metric, Vec<Vec<Result<f64, String>>>> = BTreeMap::new();
        let mut kept: BTreeMap<Metric, Vec<Option<f64>>> = BTreeMap::new();
        for (metric, by_map) in
            self.explained_again(&of(Needs::Method), maps, asking.explaining.as_ref().copied())?
        {
            values.insert(metric, by_map.values);
            steps.insert(metric, by_map.steps);
            kept.insert(metric, by_map.kept);
        }
        for metric in &self.metrics {
            let of_metric = match metric.needs() {
                _ if undefined(metric).is_some() => continue,
                Needs::Model | Needs::Method => continue,
                Needs::Predictions => self.among_others(*metric, maps, asking.predicted, &settings),
                Needs::Nothing | Needs::Mask => maps
                    .par_iter()
                    .map(|(subject, map)| self.of_map(*metric, *subject, map.as_deref(), &settings))
                    .collect(),
            };
            values.insert(*metric, of_metric);
        }
        let mut rows = Vec::new();
        for metric in &self.metrics {
            let values = values.remove(metric).unwrap_or_default();
            let row = |step: Option<usize>| {
                move |((subject, _), value): (&(usize, MapOf), _)| Row {
                    subject: *subject,
                    metric: *metric,
                    step,
                    value,
                    kept: None,
                }
            };
            let kept = kept.remove(metric).unwrap_or_default();
            let kept = kept.into_iter().chain(std::iter::repeat(None));
            let own = maps.iter().zip(values).map(row(None)).zip(kept);
            rows.extend(own.map(|(row, kept)| Row { kept, ..row }));
            // Why there is no value is said once, above.
            for (place, values) in steps.remove(metric).unwrap_or_default().into_iter().enumerate() {
                let own = maps.iter().zip(values).filter(|(_, value)| value.is_ok());
                rows.extend(own.map(row(Some(place + 1))));
            }
        }
        Ok(rows)
    }

    fn settings(&self, maps: &[(usize, MapOf)]) -> Settings {
        let valid = || maps.iter().filter_map(|(_, map)| map.as_ref().ok());
        let together = (self.params.mode == Mode::Quantus).then(|| {
            let greatest = valid().flatten().fold(0.0f64, |greatest, value| greatest.max(value.abs()));
            (greatest, valid().count())
        });
        Settings {
            mode: self.params.mode.into(),
            width: self.shape.width,
            tolerance: self.params.tolerance_of(self.shape),
            together,
        }
    }

    fn of_map(
        &self,
        metric: Metric,
        subject: usize,
        map: Result<&[f64], &String>,
        settings: &Settings,
    ) -> Result<f64, String> {
        let map = map.map_err(String::clone)?;
        match metric.needs() {
            Needs::Nothing => settings.alone(metric, map).map_err(|reason| reason.to_string()),
            _ => settings.localised(metric, map, self.mask(subject).ok_or("the image has no mask")?),
        }
    }

    fn mask(&self, subject: usize) -> Option<&Mask> {
        self.masks.as_ref()?.get(&self.subjects[subject].image)
    }

    /// Metrics that ask the model, of those maps that can be asked about.
    fn faithful(
        &self,
        metrics: &[Metric],
        maps: &[(usize, MapOf)],
        faithfulness: Result<&Faithfulness<'_, '_>, &String>,
        settings: &Settings,
        prediction: Prediction,
    ) -> Result<Vec<(Metric, Vec<Result<f64, String>>)>, StageError> {
        let places = self.places();
        let greatest = settings.together.map_or(1.0, |(greatest, _)| greatest);
        let mut all = Vec::new();
        // Those that remove pixels are not defined where there is nothing to put in their place, nor those that follow a
        // margin where it is one over the class itself.
        let spaces = [ScoreSpace::Logit, ScoreSpace::Probability, ScoreSpace::Agreement];
        for (removes, space) in
            [true, false].into_iter().flat_map(|removes| spaces.map(|space| (removes, space)))
        {
            let is_one = |metric: &Metric| {
                (uses_baseline(*metric), score_space(*metric, self.params)) == (removes, space)
            };
            let follows_margin =
                space == ScoreSpace::Logit || (self.of_texts && space == ScoreSpace::Probability);
            let metrics: Vec<Metric> = metrics.iter().copied().filter(is_one).collect();
            if metrics.is_empty() {
                continue;
            }
            let (outcomes, asked) = self.applicable(maps, &|subject| {
                faithfulness.map_err(String::clone)?;
                if self.classes[subject].is_none() {
                    return Err("the map explains no class, so there is no score to follow".to_owned());
                }
                let against = faithfulness.ok().and_then(|faithfulness| faithfulness.against);
                if self.of_texts && space == ScoreSpace::Agreement {
                    return Err("a text alone is not predicted".to_owned());
                }
                if follows_margin && against.is_some() && against == self.classes[subject] {
                    return Err("the class is the one whose logit is subtracted".to_owned());
                }
                if !self.is_asked_about(subject) {
                    let limit = self.params.model_limit.unwrap_or_default();
                    return Err(format!("the model is asked about the first {limit} images only"));
                }
                if removes { self.removed.check(places[subject]) } else { Ok(()) }
            });
            let values = match faithfulness {
                Ok(faithfulness) => faithfulness.values(&metrics, &asked, greatest, prediction)?,
                Err(_) => vec![Vec::new(); metrics.len()],
            };
            for (metric, values) in metrics.into_iter().zip(values) {
                let values = values.into_iter().map(|value| value.map_err(|reason| reason.to_string()));
                all.push((metric, filled(&outcomes, values)));
            }
        }
        Ok(all)
    }

    /// Metrics that explain again, of those maps that can be.
    fn explained_again(
        &self,
        metrics: &[Metric],
        maps: &[(usize, MapOf)],
        explaining: Result<&Explaining<'_, '_>, &String>,
    ) -> Result<Vec<(Metric, ByMap)>, StageError> {
        let places = self.places();
        let mut all = Vec::new();
        for is_costly in [false, true] {
            let metrics: Vec<Metric> =
                metrics.iter().copied().filter(|metric| metric.is_costly() == is_costly).collect();
            if metrics.is_empty() {
                continue;
            }
            let (outcomes, asked) = self.applicable(maps, &|subject| {
                let explaining = explaining.map_err(String::clone)?;
                if self.classes[subject].is_none() {
                    return Err("the map explains no class that could be explained again".to_owned());
                }
                match (is_costly, &self.explained) {
                    (true, Some(chosen)) if !self.is_explained(subject) => {
                        return Err(format!(
                            "only a random subset of {} images is explained again",
                            chosen.len()
                        ));
                    }
                    (false, _) if !self.is_asked_about(subject) => {
                        let limit = self.params.model_limit.unwrap_or_default();
                        return Err(format!("the model is asked about the first {limit} images only"));
                    }
                    _ => {}
                }
                explaining.again.check(places[subject])
            });
            let classes: Vec<usize> =
                asked.iter().map(|asked| self.classes[asked.subject].unwrap_or(0)).collect();
            let values = match explaining {
                Ok(explaining) => explaining.values(&metrics, &asked, &classes)?,
                Err(_) => metrics.iter().map(|_| ByMap::default()).collect(),
            };
            let of_all = |by_map: ByMap| ByMap {
                kept: in_places(&outcomes, by_map.kept),
                values: filled(&outcomes, by_map.values),
                steps: by_map.steps.into_iter().map(|values| filled(&outcomes, values)).collect(),
            };
            all.extend(metrics.into_iter().zip(values.into_iter().map(of_all)));
        }
        Ok(all)
    }

    /// Metrics that compare each image with the others.
    fn among_others(
        &self,
        metric: Metric,
        maps: &[(usize, MapOf)],
        predicted: Option<&[usize]>,
        settings: &Settings,
    ) -> Vec<Result<f64, String>> {
        let (outcomes, asked) = self.applicable(maps, &|_| match self.of_texts {
            true => Err("texts are no classes that could be predicted".to_owned()),
            false => Ok(()),
        });
        let classes: Vec<usize> =
            asked.iter().map(|asked| predicted.map_or(0, |predicted| predicted[asked.subject])).collect();
        let maps: Vec<&[f64]> = asked.iter().map(|asked| asked.map).collect();
        let patch = self.params.patch_side(self.shape);
        let values = settings.among_others(metric, &maps, &classes, self.shape, patch);
        filled(&outcomes, values.into_iter().map(|value| value.map_err(|reason| reason.to_string())))
    }

    /// Which maps a metric is defined for, and why not for the others; `check` is asked about their subjects.
    fn applicable<'m>(
        &self,
        maps: &'m [(usize, MapOf)],
        check: &dyn Fn(usize) -> Result<(), String>,
    ) -> (Vec<Result<(), String>>, Vec<Asked<'m>>) {
        let places = self.places();
        let mut asked = Vec::new();
        let outcome = |(subject, map): &'m (usize, MapOf)| {
            let map = map.as_ref().map_err(String::clone)?;
            check(*subject)?;
            asked.push(Asked { subject: *subject, image: places[*subject], map });
            Ok(())
        };
        let outcomes = maps.iter().map(outcome).collect();
        (outcomes, asked)
    }
}

/// The values of those maps that a metric is defined for, in the places of all.
fn filled(
    outcomes: &[Result<(), String>],
    values: impl IntoIterator<Item = Result<f64, String>>,
) -> Vec<Result<f64, String>> {
    let mut values = values.into_iter();
    let missing = || Err("the model gave no value".to_owned());
    let value =
        |outcome: &Result<(), String>| outcome.clone().and_then(|()| values.next().unwrap_or_else(missing));
    outcomes.iter().map(value).collect()
}

/// What is known of those maps that a metric is defined for, in the places of all.
fn in_places(outcomes: &[Result<(), String>], known: Vec<Option<f64>>) -> Vec<Option<f64>> {
    let mut known = known.into_iter();
    outcomes.iter().map(|outcome| outcome.as_ref().ok().and_then(|()| known.next().flatten())).collect()
}
