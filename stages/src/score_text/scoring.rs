//! From files of words to the table of scores, caption by caption.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use candle_core::Tensor;
use pipe_attribution::metrics::{Engine, Shape, removals};
use pipe_attribution::{Evaluator, Passes, Score, TextSimilarity, Word, absent_ids, words};
use pipe_engine::{StageContext, StageError};
use pipe_models::random::Key;
use pipe_models::{Encoded, MaybeProbe};
use serde_json::json;

use super::Params;
use super::words::{Subject, Valued, Words};
use crate::attribute::attribution_error;
use crate::attribute_text::{Absent, absent_id};
use crate::images::{Pixels, read_pixels_of};
use crate::model::{DEVICE, Model, checkpoint_error, tensor_error};
use crate::pieces::{PieceScore, no_piece_scores, piece_scores};
use crate::table::{Column, Table};

/// A stored score may differ from the one that the model gives now by this share of it: rounding, in other batches.
const SAME: f32 = 0.01;

/// Values that know nothing of the model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Control {
    /// Uniform noise.
    Random,
    /// The letters of a word: long words say more than short ones, in any text.
    Length,
}

impl Control {
    const ALL: [Self; 2] = [Self::Random, Self::Length];

    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Length => "length",
        }
    }

    fn values(self, subject: &Subject, places: &[[usize; 2]], seed: u64) -> Vec<f64> {
        let key = Key::derive("pipe random words/1", seed, &[subject.id.as_str().into()]);
        let value = |(counter, [start, end]): (u64, &[usize; 2])| match self {
            Self::Random => key.uniform(counter),
            Self::Length => subject.caption.get(*start..*end).map_or(0, |word| word.chars().count()) as f64,
        };
        (1u64..).zip(places).map(value).collect()
    }
}

/// One method, or one control: what tells its rows apart.
struct Explained {
    method: String,
    absent: Option<String>,
    axes: BTreeMap<String, String>,
    /// The words of each subject, or why there are none; a subject that the method did not explain is missing.
    words: BTreeMap<usize, Result<Valued, String>>,
}

/// A row of the table.
struct Row {
    explained: usize,
    subject: usize,
    score: PieceScore,
}

/// Everything that is read before the first caption is scored.
pub(super) struct Scoring<'a, 'c> {
    params: &'a Params,
    context: &'a StageContext<'c>,
    model: Model,
    images: Box<dyn Pixels>,
    subjects: Vec<Subject>,
    /// Methods, then controls.
    explained: Vec<Explained>,
    /// Axes that tell words of one method apart.
    axes: Vec<String>,
}

impl<'a, 'c> Scoring<'a, 'c> {
    /// Reads all inputs.
    ///
    /// # Errors
    /// If an input is damaged, or two hold the same words.
    pub(super) fn read(params: &'a Params, context: &'a StageContext<'c>) -> Result<Self, StageError> {
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let files = context.inputs("words").iter().map(Words::read).collect::<Result<Vec<_>, _>>()?;
        let mut known = BTreeSet::new();
        for file in &files {
            if !known.insert((&file.method, &file.absent, &file.axes)) {
                let reason = format!("two inputs hold words by {} and no axis tells them apart", file.method);
                return Err(StageError::input("words", reason));
            }
        }
        let axes = varying_axes(&files);
        let limit = params.limit.map_or(usize::MAX, |limit| limit.max(1) as usize);
        let mut subjects: Vec<Subject> = Vec::new();
        let mut places: BTreeMap<Subject, usize> = BTreeMap::new();
        for (subject, _) in files.iter().flat_map(|file| &file.rows) {
            if !places.contains_key(subject) && subjects.len() < limit {
                places.insert(subject.clone(), subjects.len());
                subjects.push(subject.clone());
            }
        }
        let mut explained: Vec<Explained> = files
            .into_iter()
            .map(|Words { method, absent, axes, rows }| {
                let own =
                    rows.into_iter().filter_map(|(subject, words)| Some((*places.get(&subject)?, words)));
                Explained { method, absent, axes, words: own.collect() }
            })
            .collect();
        let controls = Control::ALL.map(|control| {
            let place = |subject: usize| {
                let valued = explained.iter().find_map(|one| one.words.get(&subject)?.as_ref().ok())?;
                let values = control.values(&subjects[subject], &valued.places, params.seed as u64);
                Some((subject, Ok(Valued { places: valued.places.clone(), values, score: valued.score })))
            };
            let words = (0..subjects.len()).filter_map(place).collect();
            Explained { method: control.name().to_owned(), absent: None, axes: BTreeMap::new(), words }
        });
        explained.extend(controls);
        let wanted: BTreeSet<&str> = subjects.iter().map(|subject| subject.image.as_str()).collect();
        let images = read_pixels_of(context.input("images")?, &wanted, &model, context)?;
        if subjects.is_empty() {
            context.warn("no caption is explained: there are no scores");
        }
        Ok(Self { params, context, model, images, subjects, explained, axes })
    }

    /// Scores every method and every control.
    ///
    /// # Errors
    /// If the model fails, or the run is stopped.
    pub(super) fn table(&self) -> Result<Table, StageError> {
        let mut rows = Vec::new();
        let all: Vec<usize> = (0..self.subjects.len()).collect();
        for chunk in all.chunks(self.images.at_a_time(self.params.batch).max(1) as usize) {
            self.context.check_cancelled()?;
            self.chunk(chunk, &mut rows)?;
            let done = chunk.last().map_or(0, |last| last + 1) as u64;
            self.context.progress(done, all.len() as u64, "captions", &[]);
        }
        rows.sort_by_key(|row: &Row| (row.explained, row.subject));
        Ok(self.tabulate(&rows))
    }

    /// Scores some captions: those whose image is there share batches.
    fn chunk(&self, chunk: &[usize], rows: &mut Vec<Row>) -> Result<(), StageError> {
        let places = self.images.places();
        let image = |subject: &usize| places.get(self.subjects[*subject].image.as_str()).copied();
        let (found, images): (Vec<usize>, Vec<usize>) =
            chunk.iter().filter_map(|subject| Some((*subject, image(subject)?))).unzip();
        let texts = if found.is_empty() { None } else { Some(self.texts(&found, &images)?) };
        for (place, explained) in self.explained.iter().enumerate() {
            let mut asked: Vec<(usize, &Valued)> = Vec::new();
            let mut outcome = |subject: &usize| -> Option<Result<(), String>> {
                Some(explained.words.get(subject)?.as_ref().map_err(String::clone).and_then(|valued| {
                    let missing = || "the caption's image is not in the table of images".to_owned();
                    let row = found.iter().position(|one| one == subject).ok_or_else(missing)?;
                    texts.as_ref().map_or(Ok(()), |texts| texts.check(row, valued))?;
                    asked.push((row, valued));
                    Ok(())
                }))
            };
            let outcomes: Vec<(usize, Result<(), String>)> =
                chunk.iter().filter_map(|subject| Some((*subject, outcome(subject)?))).collect();
            let answers = match &texts {
                Some(texts) => self.ask(texts, &asked)?,
                None => Vec::new(),
            };
            let mut answers = asked.iter().zip(answers);
            for (subject, outcome) in outcomes {
                let scores = match outcome.map(|()| answers.next()) {
                    Ok(Some(((_, valued), scores))) => piece_scores(&valued.values, &scores),
                    Ok(None) => no_piece_scores("the model gave no score"),
                    Err(reason) => no_piece_scores(&reason),
                };
                rows.extend(scores.into_iter().map(|score| Row { explained: place, subject, score }));
            }
        }
        Ok(())
    }

    /// Captions as the model reads them.
    fn texts(&self, subjects: &[usize], images: &[usize]) -> Result<Texts<'_>, StageError> {
        let encoder = self.model.dual_encoder()?;
        let (tower, tokenizer) = (self.model.text_tower()?, self.model.tokenizer()?);
        let captions = || subjects.iter().map(|subject| self.subjects[*subject].caption.as_str());
        let encoded: Vec<Encoded> = captions()
            .map(|caption| tokenizer.encode(caption, tower.context_length(), tower.pad_id()))
            .collect::<Result<_, _>>()
            .map_err(checkpoint_error)?;
        let of_texts: Vec<Vec<Word>> =
            captions().zip(&encoded).map(|(caption, encoded)| words(caption, &encoded.offsets)).collect();
        let absent = absent_id(&self.model, self.params.absent)?;
        let ids: Vec<u32> = encoded.iter().flat_map(|encoded| encoded.ids.iter().copied()).collect();
        let without: Vec<u32> = encoded
            .iter()
            .zip(&of_texts)
            .flat_map(|(encoded, words)| absent_ids(&encoded.ids, words, absent))
            .collect();
        let tensor = |ids: Vec<u32>| Tensor::from_vec(ids, (subjects.len(), tower.context_length()), &DEVICE);
        let pixels = self.images.batch(images)?;
        let made = || -> candle_core::Result<Texts<'_>> {
            let embeddings = encoder.image_tower().embed_images(&pixels, None)?;
            let score = TextSimilarity::new(encoder, &tensor(ids)?, &embeddings)?;
            let tokens = score.embeddings()?;
            let baseline = match self.params.absent {
                Absent::Zero => tokens.zeros_like()?,
                Absent::Word | Absent::Padding => score.embeddings_of(&tensor(without)?)?,
            };
            let (_, positions, width) = tokens.dims3()?;
            Ok(Texts {
                whole: score.score(&tokens, &(0..subjects.len()).collect::<Vec<_>>(), None)?.to_vec1()?,
                score: Flat(score),
                shape: Shape::flat(1, positions, width),
                present: tokens.flatten_from(1)?.to_vec2()?,
                absent: baseline.flatten_from(1)?.to_vec2()?,
                words: of_texts,
            })
        };
        made().map_err(tensor_error)
    }

    /// The scores of each of these captions, by its row, with words removed in the order of their values.
    fn ask(&self, texts: &Texts<'_>, asked: &[(usize, &Valued)]) -> Result<Vec<Vec<f64>>, StageError> {
        let questions: Vec<(usize, Vec<bool>)> = asked
            .iter()
            .flat_map(|(row, valued)| {
                removals(&valued.values).into_iter().map(move |present| (*row, present))
            })
            .collect();
        let rows: Vec<usize> = questions.iter().map(|(row, _)| *row).collect();
        let observer = |_: Passes| match self.context.check_cancelled() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let evaluator = Evaluator::new(&texts.score, self.params.batch.max(1) as usize).observed(&observer);
        let width = texts.shape.width;
        let (words, present, absent) = (&texts.words, &texts.present, &texts.absent);
        let fill = |question: usize, text: &mut [f32]| {
            let (row, kept) = &questions[question];
            text.copy_from_slice(&present[*row]);
            for (word, _) in words[*row].iter().zip(kept).filter(|(_, kept)| !**kept) {
                for token in &word.tokens {
                    let own = token * width..(token + 1) * width;
                    text[own.clone()].copy_from_slice(&absent[*row][own]);
                }
            }
        };
        let scores = Engine::new(&evaluator, texts.shape).scores(&rows, fill).map_err(attribution_error)?;
        let mut scores = scores.into_iter();
        let own = |(_, valued): &(usize, &Valued)| scores.by_ref().take(3 * valued.values.len()).collect();
        Ok(asked.iter().map(own).collect())
    }

    fn tabulate(&self, rows: &[Row]) -> Table {
        let text = |value: &dyn Fn(&Row) -> Option<String>| Column::Utf8(rows.iter().map(value).collect());
        let of = |row: &Row| &self.explained[row.explained];
        let subject = |row: &Row| &self.subjects[row.subject];
        let asks = |row: &Row, value: &str| row.score.asks.then(|| value.to_owned());
        let finite = |row: &Row| row.score.value.as_ref().ok().copied().filter(|value| value.is_finite());
        let reason = |row: &Row| match &row.score.value {
            Err(reason) => Some(reason.clone()),
            Ok(value) if !value.is_finite() => Some("the value is not finite".to_owned()),
            Ok(_) => None,
        };
        let parameters = |row: &Row| {
            let is_random = of(row).method == Control::Random.name();
            if is_random { json!({ "seed": self.params.seed }) } else { json!({}) }
        };
        let mut table = Table::new()
            .with("id", text(&|row| Some(subject(row).id.clone())))
            .with("method", text(&|row| Some(of(row).method.clone())))
            .with("metric", text(&|row| Some(format!("word_{}", row.score.metric))))
            .with("baseline", text(&|row| asks(row, self.params.absent.name())))
            .with("value", Column::Float64(rows.iter().map(finite).collect()))
            .with("mask_share", Column::Float64(vec![None; rows.len()]))
            .with("mode", text(&|_| Some("reference".to_owned())))
            .with("reason", text(&reason))
            .with("target", text(&|row| Some(subject(row).image.clone())))
            .with("map_baseline", text(&|row| of(row).absent.clone()))
            .with("score", text(&|row| asks(row, "similarity")))
            .with("better", text(&|row| Some(row.score.better.to_owned())))
            .with("parameters", text(&|row| Some(parameters(row).to_string())))
            .with("group_id", text(&|row| Some(subject(row).image.clone())));
        for axis in &self.axes {
            table = table.with(axis, text(&|row| of(row).axes.get(axis).cloned()));
        }
        let axes: Vec<&str> =
            std::iter::once("map_baseline").chain(self.axes.iter().map(String::as_str)).collect();
        table.with_metadata("axes", json!(axes).to_string())
    }
}

/// Captions as a model reads them, with their images.
struct Texts<'a> {
    score: Flat<'a>,
    /// One channel of tokens by values.
    shape: Shape,
    /// The token embeddings of each caption, and of the same without its words.
    present: Vec<Vec<f32>>,
    absent: Vec<Vec<f32>>,
    words: Vec<Vec<Word>>,
    /// The similarity of each caption as it is.
    whole: Vec<f32>,
}

impl Texts<'_> {
    /// Whether the words of a file are those of the caption in this row.
    fn check(&self, row: usize, valued: &Valued) -> Result<(), String> {
        let own: Vec<[usize; 2]> =
            self.words[row].iter().map(|word| [word.place.start, word.place.end]).collect();
        if own != valued.places {
            return Err("the words are not those that the model's tokeniser gives".to_owned());
        }
        let whole = self.whole[row];
        match valued.score {
            Some(score) if (score - whole).abs() > SAME * whole.abs().max(1.0) => {
                Err(format!("the words explain a similarity of {score}, and the model gives {whole}"))
            }
            _ => Ok(()),
        }
    }
}

/// A similarity of token embeddings that come as images of one channel.
struct Flat<'a>(TextSimilarity<'a>);

impl Score for Flat<'_> {
    fn score(&self, input: &Tensor, samples: &[usize], probe: MaybeProbe<'_>) -> candle_core::Result<Tensor> {
        self.0.score(&input.squeeze(1)?, samples, probe)
    }
}

/// The axes that differ among the inputs. Those that do not are the axes of this stage's own folder.
fn varying_axes(files: &[Words]) -> Vec<String> {
    let names: BTreeSet<&String> = files.iter().flat_map(|file| file.axes.keys()).collect();
    let values = |name: &String| files.iter().map(|file| file.axes.get(name)).collect::<BTreeSet<_>>();
    names.into_iter().filter(|name| values(name).len() > 1).cloned().collect()
}
