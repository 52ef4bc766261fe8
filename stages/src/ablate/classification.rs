//! Classification without the image, or with less of it; and, zero-shot, without the text.

use std::collections::BTreeMap;

use candle_core::Tensor;
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::random::Key;

use super::condition::{Condition, Refused};
use super::embedded::{embed, known};
use super::figures::{Answer, Draw, Figure, Measured, Table as Figures, compare, method};
use super::pixels::{STATISTICS, black_image, edited, keep_border, shuffle_patches, statistics};
use super::prompts::{Texts, nonsense, uninformative};
use super::strata::Strata;
use super::{Init, Params, Results, TRAIN, VAL};
use crate::classification::{TASK, probabilities, with_predictions};
use crate::classifier::{Classifier, Prompts, encode_prompts, prototypes, to_rows, zero_shot_against};
use crate::features::Embedded;
use crate::finite::check_finite;
use crate::images::{ImageSet, Pixels, batches};
use crate::labels::Labels;
use crate::linear_probe::{Labelled, LinearProbe};
use crate::mean_image::mean_image;
use crate::model::{DEVICE, Model, tensor_error};
use crate::statistics::{ClassifierScores, Groups, Task};
use crate::table::{Column, Table, read_columns};

/// The conditions of this family.
const FAMILY: [Condition; 13] = [
    Condition::Majority,
    Condition::ImageStatistics,
    Condition::ImageOnly,
    Condition::TextOnly,
    Condition::TextPrior,
    Condition::ImageMean,
    Condition::BlankImage,
    Condition::ShuffledImage,
    Condition::ShuffledWithinStratum,
    Condition::PatchShuffled,
    Condition::BorderOnly,
    Condition::NonsensePrompts,
    Condition::UninformativePrompts,
];

/// Class logits of every tested image.
type Logits = Vec<Vec<f32>>;

/// One pass over the tested images, or several; or why there is none.
type Outcome = Result<Vec<Logits>, Refused>;

/// What all conditions share.
struct Study<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    classifier: Classifier<'a>,
    prompts: Option<Texts>,
    images: ImageSet,
    targets: Vec<Vec<i64>>,
    train: Vec<usize>,
    val: Vec<usize>,
    /// The rows that are tested; positions in logits are positions in this list.
    test: Vec<usize>,
    /// `[tested, width]`, of the model as it is.
    embeddings: Tensor,
    full: Logits,
    mean: Option<Vec<f32>>,
    /// Of the images as they are, by this model or the one that it was trained from.
    known: Option<Embedded>,
}

/// The scores of one condition, in table order.
struct Scored {
    condition: Option<Condition>,
    modality: &'static str,
    variant: Option<&'static str>,
    draws: Result<Vec<ClassifierScores>, Refused>,
}

/// Asks the classifier again under every wanted condition.
pub(super) fn ablate(params: &Params, context: &StageContext<'_>) -> Result<Results, StageError> {
    for port in ["images", "checkpoint"] {
        if context.optional_input(port).is_none() {
            return Err(StageError::failed(format!("classification needs the input `{port}`")));
        }
    }
    let model = Model::load(context.input("checkpoint")?, params.compute())?;
    let study = Study::new(params, context, &model)?;
    let wanted = params.wanted(&FAMILY);
    let mut scored = vec![study.scored(None, Ok(vec![study.full.clone()]))];
    for (done, condition) in wanted.iter().enumerate() {
        context.check_cancelled()?;
        context.progress(done as u64, wanted.len() as u64, "conditions", &[]);
        let outcome = study.outcome(*condition)?;
        if outcome.is_ok() || params.is_named(*condition) {
            scored.push(study.scored(Some(*condition), outcome));
        }
    }
    Ok(Results { metrics: study.metrics(&scored), predictions: study.predictions(&scored)? })
}

impl<'a, 'c> Study<'a, 'c> {
    fn new(params: &'a Params, context: &'a StageContext<'c>, model: &'a Model) -> Result<Self, StageError> {
        let labels = Labels::read(context.input("labels")?)?;
        let classifier = Classifier::new(model, &labels, &params.prompts)?.against(&params.absent)?;
        let encode = |prompts: &Prompts| match prompts.is_empty() {
            true => Ok(None),
            false => encode_prompts(model, &classifier.description.classes, prompts).map(Some),
        };
        let absent = encode(&params.absent)?;
        let prompts = encode(&params.prompts)?.map(|present| Texts { present, absent });
        let splits = [TRAIN, VAL, params.split.as_str()];
        let images = ImageSet::read(context.input("images")?, &splits, model.preprocessor()?, context)?;
        let targets = labels.of(&images.ids)?;
        let test = images.rows(&params.split);
        if test.is_empty() {
            return Err(StageError::failed(format!(
                "there are no images of split `{}` to test",
                params.split
            )));
        }
        let learn = |split: &str| if split == params.split { Vec::new() } else { images.rows(split) };
        let (train, val) = (learn(TRAIN), learn(VAL));
        let known = known(context, &images, &splits, model, params)?;
        let values = embed(known.as_ref(), model, &images, &test, params, context)?;
        let embeddings = matrix(values, test.len())?;
        let full = to_rows(&classifier.logits(&embeddings)?)?;
        for (row, logits) in test.iter().zip(&full) {
            check_finite("logits", &images.ids[*row], logits)?;
        }
        let mean = mean_image(&images, &train);
        Ok(Self {
            params,
            context,
            classifier,
            prompts,
            images,
            targets,
            train,
            val,
            test,
            embeddings,
            full,
            mean,
            known,
        })
    }

    fn outcome(&self, condition: Condition) -> Result<Outcome, StageError> {
        let untrained = || Err(format!("there are no images of split `{TRAIN}`"));
        let no_prompts = || Err("there are no prompts: the model is not zero-shot".to_owned());
        let needs_training = !matches!(
            condition,
            Condition::BlankImage
                | Condition::ShuffledImage
                | Condition::ShuffledWithinStratum
                | Condition::PatchShuffled
                | Condition::NonsensePrompts
                | Condition::UninformativePrompts
        );
        if needs_training && self.train.is_empty() {
            return Ok(untrained());
        }
        Ok(match condition {
            Condition::Majority => Ok(vec![self.majority()]),
            Condition::ImageStatistics => Ok(vec![self.image_statistics()?]),
            Condition::ImageOnly => match self.image_only()? {
                Ok(logits) => Ok(vec![logits]),
                Err(reason) => Err(reason),
            },
            Condition::TextOnly => match self.text_only()? {
                Ok(logits) => Ok(vec![logits]),
                Err(reason) => Err(reason),
            },
            Condition::TextPrior if self.classifier.is_zero_shot() => Ok(vec![self.constant(&self.mean)?]),
            Condition::TextPrior => no_prompts(),
            // Zero-shot the mean image leaves the prompts alone: the text prior.
            Condition::ImageMean if self.classifier.is_zero_shot() => {
                Err("zero-shot it is the condition `text_prior`".to_owned())
            }
            Condition::ImageMean => Ok(vec![self.constant(&self.mean)?]),
            Condition::BlankImage => Ok(vec![self.constant(&Some(black_image(&self.images)))?]),
            Condition::ShuffledImage => {
                let name = condition.name();
                Ok(self.shuffled(name, &Strata::one(self.test.len())))
            }
            Condition::ShuffledWithinStratum => self.shuffled_within_stratum(condition.name())?,
            Condition::PatchShuffled => Ok(vec![self.patch_shuffled()?]),
            Condition::BorderOnly => Ok(vec![self.border_only()?]),
            Condition::NonsensePrompts => match &self.prompts {
                Some(prompts) => self.nonsense_prompts(prompts)?,
                None => no_prompts(),
            },
            Condition::UninformativePrompts => match &self.prompts {
                Some(prompts) => Ok(vec![self.uninformative_prompts(prompts)?]),
                None => no_prompts(),
            },
            Condition::Random
            | Condition::Popularity
            | Condition::Metadata
            | Condition::Keywords
            | Condition::WithinStratum => Err("it is a condition of retrieval".to_owned()),
            Condition::AnswerTypePrior
            | Condition::QuestionTypePrior
            | Condition::QuestionLookup
            | Condition::QuestionOnly
            | Condition::ShuffledQuestion => Err("it is a condition of questions".to_owned()),
        })
    }

    fn key(&self, condition: &str, draw: u64) -> Key {
        Key::derive("pipe ablate/1", self.params.seed as u64, &[condition.into(), draw.into()])
    }

    /// The share of each class in the training split, as logits.
    fn majority(&self) -> Logits {
        let description = &self.classifier.description;
        let is_multi_label = description.is_multi_label();
        let positive = |class: usize, row: &usize| match is_multi_label {
            true => self.targets[*row][class] == 1,
            false => self.targets[*row][0] == class as i64,
        };
        let logit = |class: usize| {
            let count = self.train.iter().filter(|row| positive(class, row)).count() as f64;
            let share = count / self.train.len() as f64;
            (if is_multi_label { libm::log(share / (1.0 - share)) } else { libm::log(share) }) as f32
        };
        let logits: Vec<f32> = (0..description.classes.len()).map(logit).collect();
        vec![logits; self.test.len()]
    }

    fn probe(
        &self,
        width: usize,
        mut features: impl FnMut(&[usize]) -> Result<Vec<f32>, StageError>,
    ) -> Result<(LinearProbe, Vec<f32>), StageError> {
        let targets = |rows: &[usize]| rows.iter().map(|row| &self.targets[*row]).collect::<Vec<_>>();
        let (train, val, test) = (features(&self.train)?, features(&self.val)?, features(&self.test)?);
        let (train_targets, val_targets) = (targets(&self.train), targets(&self.val));
        let probe = LinearProbe::train(
            Labelled { features: &train, width, targets: &train_targets },
            Labelled { features: &val, width, targets: &val_targets },
            &self.classifier.description,
            self.params.c,
        )?;
        Ok((probe, test))
    }

    /// A regression on brightness; features are standardised by the training split.
    fn image_statistics(&self) -> Result<Logits, StageError> {
        let raw = |rows: &[usize]| -> Vec<f32> {
            rows.iter().flat_map(|row| statistics(self.images.square(*row))).collect()
        };
        let train = raw(&self.train);
        let count = self.train.len() as f32;
        let column = |index: usize| train.iter().skip(index).step_by(STATISTICS);
        let scales: Vec<(f32, f32)> = (0..STATISTICS)
            .map(|index| {
                let mean = column(index).sum::<f32>() / count;
                let variance =
                    column(index).map(|value| (value - mean) * (value - mean)).sum::<f32>() / count;
                (mean, if variance > 0.0 { variance.sqrt() } else { 1.0 })
            })
            .collect();
        let standardised = |rows: &[usize]| {
            let scaled = |(index, value): (usize, f32)| {
                let (mean, deviation) = scales[index % STATISTICS];
                (value - mean) / deviation
            };
            Ok(raw(rows).into_iter().enumerate().map(scaled).collect())
        };
        let (probe, test) = self.probe(STATISTICS, standardised)?;
        Ok(probe.logits(&test, STATISTICS))
    }

    fn load(&self, port: &str) -> Result<Option<Model>, StageError> {
        let load = |artifact| Model::load(artifact, self.params.compute());
        self.context.optional_input(port).map(load).transpose()
    }

    /// The model whose tower a probe of one modality stands on, if it is not the one that is asked: as `init` says, where
    /// `unimodal` gives the counterpart. Or why there is none.
    fn probed(
        &self,
        unimodal: impl FnOnce() -> Result<Result<Model, Refused>, StageError>,
    ) -> Result<Result<Option<Model>, Refused>, StageError> {
        let base = self.load("base")?;
        Ok(match self.params.init {
            Init::Clip => Ok(base),
            Init::Random => {
                let own = base.as_ref().unwrap_or(self.classifier.model);
                Ok(Some(own.randomised(self.params.seed)?))
            }
            Init::Unimodal => unimodal()?.map(Some),
        })
    }

    /// A linear probe on the texts of samples.
    fn text_only(&self) -> Result<Result<Logits, Refused>, StageError> {
        let Some(captions) = self.context.optional_input("captions") else {
            return Ok(Err("the input `captions` was left out".to_owned()));
        };
        let texts = match texts_of(captions, &self.images.ids)? {
            Ok(texts) => texts,
            Err(reason) => return Ok(Err(reason)),
        };
        let other =
            match self.probed(|| Ok(Err("the input `unimodal` is a model without text".to_owned())))? {
                Ok(other) => other,
                Err(reason) => return Ok(Err(reason)),
            };
        let model = other.as_ref().unwrap_or(self.classifier.model);
        if model.text_tower().is_err() {
            return Ok(Err("the model has no text tower".to_owned()));
        }
        let of = |rows: &[usize]| {
            let texts: Vec<&str> = rows.iter().map(|row| texts[*row].as_str()).collect();
            model.embed_texts(&texts, self.params.batch, self.context)
        };
        let tested = of(&self.test)?;
        let width = tested.len() / self.test.len();
        let (probe, test) =
            self.probe(width, |rows| if rows == self.test { Ok(tested.clone()) } else { of(rows) })?;
        Ok(Ok(probe.logits(&test, width)))
    }

    /// A linear probe on a tower that knows no text.
    fn image_only(&self) -> Result<Result<Logits, Refused>, StageError> {
        let counterpart = || Ok(self.load("unimodal")?.ok_or("the input `unimodal` was left out".to_owned()));
        let other = match self.probed(counterpart)? {
            Ok(other) => other,
            Err(reason) => return Ok(Err(reason)),
        };
        let model = other.as_ref().unwrap_or(self.classifier.model);
        let same_pixels = model.preprocessor()? == self.images.preprocessor();
        let reread = match same_pixels {
            true => None,
            false => {
                let splits = [TRAIN, VAL, self.params.split.as_str()];
                let artifact = self.context.input("images")?;
                Some(ImageSet::read(artifact, &splits, model.preprocessor()?, self.context)?)
            }
        };
        let images = reread.as_ref().unwrap_or(&self.images);
        let is_full = std::ptr::eq(model, self.classifier.model);
        let width = model.image_tower()?.embedding_width();
        let (probe, test) = self.probe(width, |rows| {
            if is_full && rows == self.test {
                return self.embeddings.flatten_all().and_then(|flat| flat.to_vec1()).map_err(tensor_error);
            }
            embed(self.known.as_ref(), model, images, rows, self.params, self.context)
        })?;
        Ok(Ok(probe.logits(&test, width)))
    }

    /// The same image in the place of every one.
    fn constant(&self, image: &Option<Vec<f32>>) -> Result<Logits, StageError> {
        let image = image.as_deref().unwrap_or_default();
        let side = self.images.preprocessor().side;
        let pixels = Tensor::from_slice(image, (1, 3, side, side), &DEVICE).map_err(tensor_error)?;
        let logits = to_rows(&self.classifier.logits(&self.classifier.embed(&pixels)?)?)?;
        Ok(vec![logits[0].clone(); self.test.len()])
    }

    /// The classifier reads one image at a time, so another image is another row of its logits.
    fn shuffled(&self, condition: &str, strata: &Strata) -> Vec<Logits> {
        let draw = |draw: u64| {
            let other = strata.derangement(self.key(condition, draw));
            other.into_iter().map(|row| self.full[row].clone()).collect()
        };
        (0..self.params.permutations as u64).map(draw).collect()
    }

    fn shuffled_within_stratum(&self, condition: &str) -> Result<Outcome, StageError> {
        let Some(column) = &self.params.stratum else {
            return Ok(Err("no column was named as `stratum`".to_owned()));
        };
        let values = self.images.column(self.context.input("images")?, column)?;
        let values: Vec<Option<String>> = self.test.iter().map(|row| values[*row].clone()).collect();
        let strata = Strata::by_value(&values);
        if strata.count() < 2 {
            return Ok(Err(format!("the column `{column}` makes one stratum of all samples")));
        }
        Ok(Ok(self.shuffled(condition, &strata)))
    }

    /// The classifier's logits of changed images; `edit` gets the position of each in the tested rows.
    fn edited(&self, edit: impl Fn(usize, &mut [f32])) -> Result<Logits, StageError> {
        let mut logits = Vec::with_capacity(self.test.len());
        for rows in batches(&self.test, self.params.batch) {
            self.context.check_cancelled()?;
            let pixels = edited(&self.images, rows, &edit)?;
            logits.extend(to_rows(&self.classifier.logits(&self.classifier.embed(&pixels)?)?)?);
        }
        Ok(logits)
    }

    fn patch_shuffled(&self) -> Result<Logits, StageError> {
        let (side, grid) = (self.images.preprocessor().side, self.params.grid as usize);
        if grid > side {
            return Err(StageError::failed(format!(
                "an image of {side} pixels has no {grid} x {grid} cells"
            )));
        }
        let seed = self.params.seed as u64;
        self.edited(|row, image| {
            let parts = [Condition::PatchShuffled.name().into(), self.images.ids[row].as_str().into()];
            shuffle_patches(image, side, grid, Key::derive("pipe ablate/1", seed, &parts));
        })
    }

    fn border_only(&self) -> Result<Logits, StageError> {
        let side = self.images.preprocessor().side;
        let width = (self.params.border * side as f64).round() as usize;
        let inside = self.mean.as_deref().unwrap_or_default();
        self.edited(|_, image| keep_border(image, side, width, inside))
    }

    fn nonsense_prompts(&self, prompts: &Texts) -> Result<Outcome, StageError> {
        let model = self.classifier.model;
        let (tokenizer, pad) = (model.tokenizer()?, model.text_tower()?.pad_id());
        let mut draws = Vec::new();
        for draw in 0..self.params.permutations as u64 {
            let key = self.key(Condition::NonsensePrompts.name(), draw);
            let Some(prompts) = nonsense(prompts, tokenizer, pad, key) else {
                return Ok(Err("the vocabulary has no words beside those of the prompts".to_owned()));
            };
            draws.push(self.zero_shot(&prompts)?);
        }
        Ok(Ok(draws))
    }

    /// One text for all classes: one logit, as often as there are classes.
    fn uninformative_prompts(&self, prompts: &Texts) -> Result<Logits, StageError> {
        let classes = self.classifier.description.classes.len();
        let logits = self.zero_shot(&uninformative(prompts))?;
        Ok(logits.into_iter().map(|logit| vec![logit[0]; classes]).collect())
    }

    /// The logits of the tested images by other texts.
    fn zero_shot(&self, texts: &Texts) -> Result<Logits, StageError> {
        let model = self.classifier.model;
        let present = prototypes(model, &texts.present)?;
        let absent = texts.absent.as_ref().map(|absent| prototypes(model, absent)).transpose()?;
        to_rows(&zero_shot_against(model, &self.embeddings, &present, absent.as_ref())?)
    }

    /// What of a sample a condition leaves to see.
    fn modality(&self, condition: Option<Condition>) -> &'static str {
        match condition {
            Some(Condition::TextOnly) => "text",
            None if self.classifier.is_zero_shot() => "both",
            Some(Condition::PatchShuffled | Condition::BorderOnly) if self.classifier.is_zero_shot() => {
                "both"
            }
            None
            | Some(
                Condition::ImageStatistics
                | Condition::ImageOnly
                | Condition::PatchShuffled
                | Condition::BorderOnly
                | Condition::NonsensePrompts
                | Condition::UninformativePrompts,
            ) => "image",
            Some(
                Condition::TextPrior
                | Condition::BlankImage
                | Condition::ShuffledImage
                | Condition::ShuffledWithinStratum,
            ) if self.classifier.is_zero_shot() => "text",
            Some(_) => "none",
        }
    }

    fn scored(&self, condition: Option<Condition>, outcome: Outcome) -> Scored {
        let description = &self.classifier.description;
        let targets: Vec<Vec<i64>> = self.test.iter().map(|row| self.targets[*row].clone()).collect();
        let score = |logits: Logits| {
            let scores = logits.iter().map(|logits| probabilities(logits, description)).collect();
            ClassifierScores::new(Task::parse(&description.task), scores, targets.clone())
        };
        let is_trained = matches!(condition, Some(Condition::ImageOnly | Condition::TextOnly));
        let variant = is_trained.then_some(match self.params.init {
            Init::Clip => "clip",
            Init::Unimodal => "unimodal",
            Init::Random => "random",
        });
        Scored {
            condition,
            modality: self.modality(condition),
            variant,
            draws: outcome.map(|draws| draws.into_iter().map(score).collect()),
        }
    }

    fn metrics(&self, scored: &[Scored]) -> Vec<crate::metrics::Metric> {
        let names = ["accuracy".to_owned(), "auroc".to_owned()];
        let draw = |scores: &'_ ClassifierScores| -> Vec<Answer> {
            (0..scores.len())
                .map(|row| Answer {
                    prediction: scores.prediction(row).to_vec(),
                    right: scores.is_right(row),
                })
                .collect()
        };
        let measured: Vec<Measured<'_>> = scored
            .iter()
            .map(|scored| {
                let draws = scored.draws.as_ref().map_err(Clone::clone);
                let draws = draws.map(|draws| {
                    let of = |scores: &'_ ClassifierScores| draw(scores);
                    draws
                        .iter()
                        .map(|scores| Draw { figures: figures(scores), answers: of(scores) })
                        .collect()
                });
                let Scored { condition, modality, variant, .. } = *scored;
                Measured { condition, modality, variant, draws }
            })
            .collect();
        let groups: Vec<Option<String>> =
            self.test.iter().map(|row| self.images.groups[*row].clone()).collect();
        let groups = Groups::new(&groups);
        let table = Figures {
            task: TASK,
            split: &self.params.split,
            names: &names,
            prefix: "",
            groups: &groups,
            samples: self.test.len(),
            parts: &[],
            margin: self.params.margin,
            seed: self.params.seed,
        };
        let mut metrics = compare(table, &measured);
        for metric in &mut metrics {
            metric.protocol = Some(self.classifier.protocol().to_owned());
        }
        metrics
    }

    fn predictions(&self, scored: &[Scored]) -> Result<Table, StageError> {
        let mut all = Table::new();
        let texts = |of: &dyn Fn(usize) -> String| Column::texts(self.test.iter().map(|row| of(*row)));
        let id = |row: usize| self.images.ids[row].clone();
        for scored in scored {
            let draws = scored.draws.as_deref().unwrap_or_default();
            for (draw, scores) in draws.iter().enumerate() {
                let count = scores.len();
                let patients = self.test.iter().map(|row| self.images.groups[*row].clone()).collect();
                let table = Table::new()
                    .with("id", texts(&id))
                    .with("split", texts(&|row| self.images.splits[row].clone()))
                    .with("patient", Column::Utf8(patients))
                    .with("image", texts(&id));
                let draw = (draws.len() > 1).then_some(draw as i64);
                let table = with_predictions(table, scores, &self.classifier.description)
                    .with(
                        "condition",
                        Column::Utf8(vec![Some(method(scored.condition, scored.variant)); count]),
                    )
                    .with("draw", Column::Int64(vec![draw; count]));
                all = if all.rows() == 0 { table } else { all.append(table)? };
            }
        }
        Ok(all)
    }
}

/// The figures that every condition is compared by, in the order of their names.
fn figures(scores: &ClassifierScores) -> Vec<Figure<'_>> {
    vec![
        Box::new(|weights: &[f64]| scores.accuracy(weights)),
        Box::new(|weights: &[f64]| scores.auroc(weights)),
    ]
}

/// The text of each image: its first caption; or that some have none.
fn texts_of(captions: &Artifact, images: &[String]) -> Result<Result<Vec<String>, Refused>, StageError> {
    let table = read_columns(captions, &["image_id", "caption"])?;
    let mut known: BTreeMap<&str, &str> = BTreeMap::new();
    for (id, text) in table.strings("image_id")?.into_iter().zip(table.strings("caption")?) {
        if !text.trim().is_empty() {
            known.entry(id).or_insert(text);
        }
    }
    let missing: Vec<&String> = images.iter().filter(|id| !known.contains_key(id.as_str())).collect();
    Ok(match missing.first() {
        Some(first) => Err(format!("{} images have no text, the first of them `{first}`", missing.len())),
        None => Ok(images.iter().map(|id| known[id.as_str()].to_owned()).collect()),
    })
}

/// Values as rows.
fn matrix(values: Vec<f32>, rows: usize) -> Result<Tensor, StageError> {
    let width = values.len() / rows;
    Tensor::from_vec(values, (rows, width), &DEVICE).map_err(tensor_error)
}
