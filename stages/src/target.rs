//! What an explanation of a classifier explains: a class logit, or its margin over another class.

use candle_core::{D, Result, Tensor, bail};
use pipe_attribution::Score;
use pipe_engine::StageError;
use pipe_models::{ImageTower, Layer, MaybeProbe};

use crate::model::{Head, HeadDescription, Model};

/// The class of one sample that is explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ClassTarget {
    /// Index of the class in the head.
    pub(crate) class: usize,
    /// The class whose logit is subtracted: the score is then a margin.
    pub(crate) against: Option<usize>,
}

/// The logit of each sample's target (or, on request, its probability), perhaps minus another class's.
pub(crate) struct ClassScore<'a> {
    tower: &'a dyn ImageTower,
    model_head: &'a Head,
    /// `[..., width]` to `[..., classes]`.
    head: Layer,
    targets: &'a [ClassTarget],
    space: Space,
    is_multi_label: bool,
}

/// What is read off the logits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Space {
    Logit,
    Probability,
    Agreement,
    Lead,
}

impl<'a> ClassScore<'a> {
    /// The score of `model`, which needs a head, for `targets[sample]`.
    pub(crate) fn new(model: &'a Model, targets: &'a [ClassTarget]) -> std::result::Result<Self, StageError> {
        let head = model.head()?;
        let classes = head.description.classes.len();
        let indices = targets.iter().flat_map(|target| target.against.into_iter().chain([target.class]));
        if let Some(index) = indices.max().filter(|index| *index >= classes) {
            let reason = format!("class {index} is asked for; the head has {classes} classes");
            return Err(StageError::input("head.json", reason));
        }
        Ok(Self {
            tower: model.image_tower()?,
            model_head: head,
            head: Layer::Linear { weight: head.weight.detach(), bias: Some(head.bias.detach()) },
            targets,
            space: Space::Logit,
            is_multi_label: head.description.is_multi_label(),
        })
    }

    /// The probability of each target instead: softmax over the classes, or the sigmoid of an independent
    /// label's logit. What deletion and insertion follow.
    #[must_use]
    pub(crate) fn probability(mut self) -> Self {
        self.space = Space::Probability;
        self
    }

    /// Whether each target is predicted instead, 1 or 0: the class of the greatest logit, or an independent label
    /// whose logit is above 0.
    #[must_use]
    pub(crate) fn agreement(mut self) -> Self {
        self.space = Space::Agreement;
        self
    }

    /// By how much each target leads over the best other class instead: negative where it is not predicted.
    #[must_use]
    pub(crate) fn lead(mut self) -> Self {
        self.space = Space::Lead;
        self
    }

    fn read_off(&self, logits: Tensor) -> Result<Tensor> {
        match self.space {
            // The others depend on the class: they are taken off behind the choice.
            Space::Logit | Space::Lead => Ok(logits),
            Space::Agreement if self.is_multi_label => logits.gt(0.0)?.to_dtype(logits.dtype()),
            Space::Agreement => {
                let greatest = logits.max_keepdim(D::Minus1)?;
                logits.broadcast_ge(&greatest)?.to_dtype(logits.dtype())
            }
            Space::Probability if self.is_multi_label => (logits.neg()?.exp()? + 1.0)?.recip(),
            Space::Probability => {
                // candle's fused softmax has no backward pass.
                let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?.exp()?;
                shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
            }
        }
    }
}

impl Score for ClassScore<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> Result<Tensor> {
        let mut classes = Vec::with_capacity(samples.len());
        let mut others = Vec::with_capacity(samples.len());
        for sample in samples {
            let Some(target) = self.targets.get(*sample) else {
                bail!("sample {sample} is scored, but there are targets for {} samples", self.targets.len());
            };
            classes.push(target.class as u32);
            others.push(target.against);
        }
        let embeddings = self.model_head.seen(&self.tower.embed_images(input, probe)?)?;
        let logits = self.read_off(self.head.apply(&embeddings, "head", probe)?)?;
        let pick = |classes: Vec<u32>| {
            let index = Tensor::from_vec(classes, (samples.len(), 1), logits.device())?;
            logits.gather(&index, 1)?.squeeze(1)
        };
        if self.space == Space::Lead {
            let count = logits.dim(D::Minus1)? as u32;
            let own = Tensor::from_vec(classes.clone(), (samples.len(), 1), logits.device())?;
            let all = Tensor::arange(0, count, logits.device())?.unsqueeze(0)?;
            let is_own = all.broadcast_eq(&own)?;
            let never = Tensor::new(f32::NEG_INFINITY, logits.device())?.broadcast_as(logits.shape())?;
            let best = is_own.where_cond(&never, &logits)?.max(D::Minus1)?;
            return pick(classes)? - best;
        }
        let scores = pick(classes)?;
        if others.iter().all(Option::is_none) {
            return Ok(scores);
        }
        // Samples without another class subtract their own logit times zero.
        let weights: Vec<f32> = others.iter().map(|other| f32::from(u8::from(other.is_some()))).collect();
        let weights = Tensor::from_vec(weights, samples.len(), logits.device())?;
        let others = pick(others.into_iter().map(|other| other.unwrap_or(0) as u32).collect())?;
        scores - (others * weights)?
    }
}

/// The index of the class `name` in a head.
pub(crate) fn class_index(
    description: &HeadDescription,
    name: &str,
) -> std::result::Result<usize, StageError> {
    description.classes.iter().position(|class| class == name).ok_or_else(|| {
        let message =
            format!("`{name}` is no class of the checkpoint's head; those are {:?}", description.classes);
        StageError::failed(message)
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use pipe_models::{ClipConfig, ClipModel, Preprocessor, Trainable};

    use super::*;
    use crate::model::{DEVICE, HeadInput};

    fn model(classes: usize) -> Model {
        let config = ClipConfig::from_json(
            r#"{"projection_dim": 8,
                "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
                "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6}}"#,
        )
        .unwrap();
        let clip = ClipModel::random(&config, 3, &DEVICE, Trainable::Frozen).unwrap();
        let names = (0..classes).map(|class| format!("c{class}")).collect();
        let head = Head {
            input: HeadInput::Embedding,
            description: HeadDescription { classes: names, task: "multi-class".to_owned() },
            weight: Tensor::randn(0f32, 1.0, (classes, 8), &DEVICE).unwrap(),
            bias: Tensor::randn(0f32, 1.0, classes, &DEVICE).unwrap(),
        };
        Model::new(Box::new(clip), Some(Preprocessor::clip(8)), None).with_head(head)
    }

    #[test]
    fn rows_are_scored_by_the_target_of_their_sample() {
        let model = model(3);
        let pixels = Tensor::randn(0f32, 1.0, (3, 3, 8, 8), &DEVICE).unwrap();
        let logits = model.logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
        let target = |class, against| ClassTarget { class, against };
        let targets = [target(2, None), target(0, Some(1))];
        let score = ClassScore::new(&model, &targets).unwrap();
        let scores = score.score(&pixels, &[1, 0, 1], None).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(scores, [logits[0][0] - logits[0][1], logits[1][2], logits[2][0] - logits[2][1]]);
        assert!(score.score(&pixels, &[0, 1, 2], None).is_err(), "there are two samples");
        let plain = [target(1, None)];
        let score = ClassScore::new(&model, &plain).unwrap();
        let scores = score.score(&pixels, &[0, 0, 0], None).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(scores, [logits[0][1], logits[1][1], logits[2][1]]);
    }

    #[test]
    fn probabilities_are_of_the_task() {
        let mut model = model(3);
        let pixels = Tensor::randn(0f32, 1.0, (2, 3, 8, 8), &DEVICE).unwrap();
        let logits = model.logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
        let targets = [ClassTarget { class: 2, against: None }, ClassTarget { class: 0, against: None }];
        let probabilities = |model: &Model| {
            let score = ClassScore::new(model, &targets).unwrap().probability();
            score.score(&pixels, &[0, 1], None).unwrap().to_vec1::<f32>().unwrap()
        };
        let softmax = |row: usize, class: usize| {
            logits[row][class].exp() / logits[row].iter().map(|logit| logit.exp()).sum::<f32>()
        };
        let sigmoid = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        for (ours, expected) in probabilities(&model).into_iter().zip([softmax(0, 2), softmax(1, 0)]) {
            assert!((ours - expected).abs() < 1e-6);
        }
        model.head.as_mut().unwrap().description.task = "multi-label, binary-class".to_owned();
        for (ours, expected) in
            probabilities(&model).into_iter().zip([sigmoid(logits[0][2]), sigmoid(logits[1][0])])
        {
            assert!((ours - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn agreement_is_with_the_prediction() {
        let mut model = model(3);
        let pixels = Tensor::randn(0f32, 1.0, (5, 3, 8, 8), &DEVICE).unwrap();
        let logits = model.logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
        let targets: Vec<ClassTarget> = (0..3).map(|class| ClassTarget { class, against: None }).collect();
        let agreements = |model: &Model, class: usize| {
            let score = ClassScore::new(model, &targets).unwrap().agreement();
            score.score(&pixels, &[class; 5], None).unwrap().to_vec1::<f32>().unwrap()
        };
        for class in 0..3 {
            let is_greatest = |row: &Vec<f32>| row.iter().all(|logit| *logit <= row[class]);
            let expected: Vec<f32> = logits.iter().map(|row| f32::from(u8::from(is_greatest(row)))).collect();
            assert_eq!(agreements(&model, class), expected);
        }
        model.head.as_mut().unwrap().description.task = "multi-label, binary-class".to_owned();
        let expected: Vec<f32> = logits.iter().map(|row| f32::from(u8::from(row[1] > 0.0))).collect();
        assert_eq!(agreements(&model, 1), expected);
    }

    #[test]
    fn a_lead_is_that_over_the_best_other_class() {
        let model = model(3);
        let pixels = Var::randn(0f32, 1.0, (3, 3, 8, 8), &DEVICE).unwrap();
        let logits = model.logits(&pixels, None).unwrap().to_vec2::<f32>().unwrap();
        let targets: Vec<ClassTarget> = (0..3).map(|class| ClassTarget { class, against: None }).collect();
        let score = ClassScore::new(&model, &targets).unwrap().lead();
        let leads = score.score(&pixels, &[0, 1, 2], None).unwrap();
        for (class, (lead, row)) in leads.to_vec1::<f32>().unwrap().into_iter().zip(&logits).enumerate() {
            let others = (0..3).filter(|other| *other != class).map(|other| row[other]);
            assert!((lead - (row[class] - others.fold(f32::NEG_INFINITY, f32::max))).abs() < 1e-6);
        }
        let gradients = leads.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&pixels).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(gradient.iter().all(|value| value.is_finite()) && gradient.iter().any(|value| *value != 0.0));
    }

    #[test]
    fn the_graph_leads_to_the_pixels() {
        let model = model(3);
        let targets = [ClassTarget { class: 1, against: Some(0) }];
        let score = ClassScore::new(&model, &targets).unwrap();
        let pixels = Var::randn(0f32, 1.0, (1, 3, 8, 8), &DEVICE).unwrap();
        let gradients = score.score(&pixels, &[0], None).unwrap().sum_all().unwrap().backward().unwrap();
        let size =
            gradients.get(&pixels).unwrap().abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0);
    }

    #[test]
    fn a_class_outside_the_head_is_named() {
        let model = model(2);
        let targets = [ClassTarget { class: 0, against: Some(2) }];
        let error = ClassScore::new(&model, &targets).err().unwrap().to_string();
        assert!(error.contains("class 2") && error.contains("2 classes"), "{error}");
        let description = &model.head().unwrap().description;
        assert_eq!(class_index(description, "c1").unwrap(), 1);
        assert!(class_index(description, "c7").unwrap_err().to_string().contains("c7"));
    }
}
