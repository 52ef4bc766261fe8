//! Maps of a file explained again, by the method that made them: for metrics that change the image or the
//! model.

use std::cell::OnceCell;
use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::metrics::Shifted;
use pipe_attribution::{AttributionError, Evaluator, Inputs, Passes, Score};
use pipe_engine::{StageContext, StageError};

use super::baseline::Baselines;
use super::explanation::Explanation;
use super::saliency::maps;
use super::{Baseline, Params, Reduction, Wrapper};
use crate::images::{Pixels, count_passes};
use crate::model::{DEVICE, Model, tensor_error};
use crate::target::{ClassScore, ClassTarget, class_index};

/// The method of a file of maps with everything that it needs beside the model.
pub(crate) struct Again<'a, 'c> {
    params: Params,
    /// The class whose logit is subtracted.
    against: Option<usize>,
    baselines: Baselines,
    images: &'a dyn Pixels,
    context: &'a StageContext<'c>,
}

/// Images that are explained: which of the set each was made from, and for which target.
#[derive(Clone, Copy)]
pub(crate) struct Changed<'a> {
    /// The place in the image set of each sample.
    pub(crate) places: &'a [usize],
    /// The target of each sample.
    pub(crate) targets: &'a [ClassTarget],
    /// Pixels `[3, side, side]` beside the sample that they were made from.
    pub(crate) images: &'a [(usize, &'a [f32])],
    /// What the model takes off every value first.
    pub(crate) shift: Option<f32>,
}

impl<'a, 'c> Again<'a, 'c> {
    /// The method that `params`, what a file of maps says of its parameters, describes.
    ///
    /// # Errors
    /// If an input is damaged. Inside: why the method cannot be had again.
    pub(crate) fn new(
        params: Option<&str>,
        batch: i64,
        model: &Model,
        images: &'a dyn Pixels,
        context: &'a StageContext<'c>,
    ) -> Result<Result<Self, String>, StageError> {
        let parsed = params.map(serde_json::from_str::<Params>);
        let mut params = match parsed {
            Some(Ok(params)) => params,
            Some(Err(error)) => {
                return Ok(Err(format!("the parameters of the map are not known here: {error}")));
            }
            None => return Ok(Err("the map does not say by which parameters it was made".to_owned())),
        };
        params.batch = batch;
        if params.random_weights {
            return Ok(Err("the map is of a model with random weights".to_owned()));
        }
        if params.method.has_baseline() && params.baseline == Baseline::Twin {
            return Ok(Err("the map compares images with twins, which are no input here".to_owned()));
        }
        let against = match params.against.as_deref() {
            Some(name) => match class_index(&model.head()?.description, name) {
                Ok(class) => Some(class),
                Err(error) => return Ok(Err(error.to_string())),
            },
            None => None,
        };
        let baselines = Baselines::read(&params, model, images, context)?;
        Ok(Ok(Self { params, against, baselines, images, context }))
    }

    /// The target of a map of `class`.
    pub(crate) fn target(&self, class: usize) -> ClassTarget {
        ClassTarget { class, against: self.against }
    }

    /// Why an image of the set cannot be explained, if so.
    pub(crate) fn check(&self, place: usize) -> Result<(), String> {
        self.baselines.check(place)
    }

    /// The score that the method explains.
    pub(crate) fn score<'t>(
        &self,
        model: &'t Model,
        targets: &'t [ClassTarget],
    ) -> Result<ClassScore<'t>, StageError> {
        let score = ClassScore::new(model, targets)?;
        Ok(self.params.method.explained(score))
    }

    fn inputs(&self, images: &[(usize, &[f32])]) -> Result<Inputs, StageError> {
        let shape = self.images.map_shape();
        let values: Vec<f32> = images.iter().flat_map(|(_, image)| image.iter().copied()).collect();
        let channels = values.len() / (images.len() * shape.iter().product::<usize>()).max(1);
        let shape = [vec![images.len(), channels], shape].concat();
        let values = Tensor::from_vec(values, shape, &DEVICE).map_err(tensor_error)?;
        let samples = images.iter().map(|(sample, _)| *sample).collect();
        Inputs::of_samples(&values, samples).map_err(|error| StageError::failed(error.to_string()))
    }

    /// The map of each changed image by `model`, which may differ from the one that was explained first. A map
    /// that has values that are not finite is NaN everywhere.
    ///
    /// # Errors
    /// If the model fails or the run is stopped. Inside: why the method is not defined for the model.
    pub(crate) fn explain(
        &self,
        model: &Model,
        changed: Changed<'_>,
    ) -> Result<Result<Vec<Vec<f64>>, String>, StageError> {
        if changed.images.is_empty() {
            return Ok(Ok(Vec::new()));
        }
        let score = self.score(model, changed.targets)?;
        let shifted;
        let score: &dyn Score = match changed.shift {
            Some(shift) => {
                shifted = Shifted { score: &score, shift: f64::from(shift) };
                &shifted
            }
            None => &score,
        };
        let explanation = Explanation {
            params: &self.params,
            model,
            images: self.images,
            baselines: &self.baselines,
            context: self.context,
            masker: None,
            channels: OnceCell::new(),
        };
        let method = match explanation.method(changed.places, changed.targets)? {
            Ok(method) => method,
            Err(reason) => return Ok(Err(reason)),
        };
        let observer = |_: Passes| match self.context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(score, self.images.at_a_time(self.params.batch).max(1) as usize)
            .observed(&observer);
        let attribution = method.attribute(&evaluator, &self.inputs(changed.images)?);
        count_passes(self.context, evaluator.passes());
        let attribution = match attribution {
            Err(AttributionError::NotApplicable(reason)) => return Ok(Err(reason)),
            Err(AttributionError::Stopped) => return Err(StageError::Cancelled),
            other => other.map_err(|error| StageError::failed(error.to_string()))?,
        };
        let shape = self.images.map_shape();
        let maps = maps(&attribution, self.params.reduction(), &shape).map_err(tensor_error)?;
        let values = maps.into_iter().map(|map| match map {
            Ok(map) => map.values().iter().map(|value| f64::from(*value)).collect(),
            Err(_) => vec![f64::NAN; shape.iter().product()],
        });
        Ok(Ok(values.collect()))
    }

    /// The baseline image of each sample, as its method compared it.
    ///
    /// # Errors
    /// If a baseline cannot be read. Inside: why there is none, or why the sum of the map means nothing.
    pub(crate) fn baselines(
        &self,
        places: &[usize],
        images: &[(usize, &[f32])],
    ) -> Result<Result<Vec<Vec<f32>>, String>, StageError> {
        if !self.params.method.has_baseline() || self.params.method.reduction() == Reduction::GreatestAbsolute
        {
            return Ok(Err("the method compares the image with nothing".to_owned()));
        }
        let keeps_sum = self.params.wrap.iter().all(|wrapper| *wrapper == Wrapper::Smoothing);
        if self.params.method.explains_choice() || !keeps_sum {
            return Ok(Err("the sum of such a map is no difference of scores".to_owned()));
        }
        if self.params.method.repeats_values() {
            let reason = "each pixel of a window or block has the value of the whole, so that the sum of the map is no \
                          difference of scores";
            return Ok(Err(reason.to_owned()));
        }
        let baselines = self.baselines.of(&self.params, places)?;
        let inputs = self.inputs(images)?;
        let rows = baselines.of(&inputs).map_err(|error| StageError::failed(error.to_string()))?;
        Ok(Ok((0..images.len()).map(|row| rows.row(row).to_vec()).collect()))
    }
}
