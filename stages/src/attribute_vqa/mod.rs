//! The stage kind `attribute.vqa`: what in the image and which words of the question made a model answer as it does,
//! and how much it owes to either.

mod attention;
mod canvas;
mod explanation;
mod occlusion;
mod removal;
mod rows;
mod score;
mod shares;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::explanation::{Counts, Explained, Explanation};
use self::rows::Rows;
use self::shown::Pictures;
use crate::artifact;
use crate::attribute::{Quadrature, Reduction, SaliencyFile, Steps, Wrapper, check_words, names};
use crate::attribute_text::{Absent, Row, WordFile};
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::framing::Framing;
use crate::images::count_passes;
use crate::lookup::images_asked_about;
use crate::table::{TableSchema, WriteOptions, row_digests, write};
use crate::vqa::{Answerer, Examples, Readings, asked};

/// The method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerMethod {
    /// Pixels and token vectors (minus their baselines) times gradients.
    InputXGradient,
    /// Pixels and token vectors minus their baselines times the mean gradients between them, on one path.
    IntegratedGradients,
    /// The fall of the score when a window of the image, or a word of the question, is absent.
    Occlusion,
    /// The attention of the model itself over cells of the image and words of the question (MEVF's stacked and bilinear
    /// attention, QCR); the same for every answer.
    Attention,
    /// The same times its gradient, positive part (Chefer et al. 2021).
    AttentionRelevance,
}

impl AnswerMethod {
    /// Its name in parameters and metadata.
    fn name(self) -> &'static str {
        match self {
            Self::InputXGradient => "input_x_gradient",
            Self::IntegratedGradients => "integrated_gradients",
            Self::Occlusion => "occlusion",
            Self::Attention => "attention",
            Self::AttentionRelevance => "attention_relevance",
        }
    }

    /// Whether it is read off the model's attention.
    fn is_attention(self) -> bool {
        matches!(self, Self::Attention | Self::AttentionRelevance)
    }
}

/// The answer whose logit is explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The likeliest answer.
    Predicted,
    /// The published answer, where the model can give it.
    True,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::Predicted => "predicted",
            Self::True => "true",
        }
    }
}

/// What stands for an absent image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Blank {
    /// Zero of what the model is given: a mid grey where an image encoder normalises, black where it sees grey values.
    Zero,
    /// Black.
    Black,
    /// The image itself, blurred.
    Blur,
}

impl Blank {
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Black => "black",
            Self::Blur => "blur",
        }
    }
}

/// How the share of the question is found: by Shapley values of its tokens and of patches of the image.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModalityShare {
    /// Random orders of tokens and patches, each walked forwards and backwards. Where all subsets are no more
    /// evaluations than that, they are evaluated, and the values are exact.
    #[schemars(range(min = 1, max = 100_000))]
    pub samples: i64,
    /// Rows and columns of patches; by default the least square with as many patches as the question has tokens.
    #[schemars(inner(range(min = 1, max = 64)))]
    pub patches: Option<[i64; 2]>,
}

impl Default for ModalityShare {
    fn default() -> Self {
        Self { samples: 10, patches: None }
    }
}

/// How explanations are scored by what goes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Removal {
    /// Rows and columns of patches of the image.
    #[schemars(inner(range(min = 1, max = 64)))]
    pub patches: [i64; 2],
}

impl Default for Removal {
    fn default() -> Self {
        Self { patches: [7; 2] }
    }
}

/// Parameters of `attribute.vqa`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method.
    pub method: AnswerMethod,
    /// What is wrapped around the method, from the inside out: averages over noisy copies of image and token embeddings
    /// (not around `occlusion`, which removes and adds nothing else), and the absolute value. They act on each value of a
    /// pixel and of a token, before channels and a word's tokens are added up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrap: Vec<Wrapper>,
    /// What wraps by noise: noisy copies of each question; 25 by default.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<i64>,
    /// What wraps by noise: its deviation, as a share of the range of the image, and of the token embeddings; 0.15 by
    /// default.
    #[schemars(range(min = 0.0, max = 10.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// The answer whose logit is explained. With branches, a question keeps the one that it takes.
    pub target: Target,
    /// What stands for an absent image, or an absent part of one.
    pub baseline: Blank,
    /// Baseline `blur`: the standard deviation in pixels of an image of 224, in proportion at other sizes.
    #[schemars(range(min = 0.01, max = 1000.0))]
    pub blur_sigma: f64,
    /// What a question without a word has in its place. A model that reads words of the training questions has no
    /// `[MASK]`: its padding stands for both.
    pub absent: Absent,
    /// Integrated Gradients: points between baseline and input.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: i64,
    /// Integrated Gradients: where the sum of the maps of an answer misses the difference of scores by more than 5 %, the steps are
    /// doubled until it does not, up to so many. By default they stay what they are.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_steps: Option<i64>,
    /// Integrated Gradients: the rule that places them.
    pub quadrature: Quadrature,
    /// Occlusion: side of the window in pixels; by default the multiple of the patch that is nearest to 32 in 224, at
    /// least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub window: Option<i64>,
    /// Occlusion: distance between windows in pixels; by default half of that, at least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub stride: Option<i64>,
    /// Whether and how the share of the question in each answer is found.
    pub modality_share: Option<ModalityShare>,
    /// Whether explanations are scored by what the answer loses without words and patches, most and least relevant first,
    /// beside values that know nothing. Three passes a word and a patch, and as many for the control.
    pub removal: Option<Removal>,
    /// The splits whose questions are explained; all if empty.
    pub splits: Vec<String>,
    /// At most this many questions, the first in the order of the table that pass the filter below. With a limit the
    /// whole table is one action: which questions are the first depends on all before them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Only questions that the model answers right.
    pub only_correct: bool,
    /// Whether random weights take the place of the model's: the control for an explanation. Questions, branches and
    /// targets are still chosen by the model as it is.
    pub random_weights: bool,
    /// Decides random weights and orders.
    pub seed: i64,
    /// Questions, steps, windows or subsets per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the models compute: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the encoder's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
}

impl Params {
    /// Where and how precisely the encoder computes.
    fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }

    /// The steps of Integrated Gradients.
    fn integration(&self) -> Steps {
        Steps { first: self.steps, most: self.most_steps, quadrature: self.quadrature }
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            method: AnswerMethod::IntegratedGradients,
            wrap: Vec::new(),
            draws: None,
            noise: None,
            target: Target::Predicted,
            baseline: Blank::Zero,
            blur_sigma: 10.0,
            absent: Absent::Word,
            steps: 50,
            most_steps: None,
            quadrature: Quadrature::GaussLegendre,
            window: None,
            stride: None,
            modality_share: None,
            removal: None,
            splits: vec!["test".to_owned()],
            limit: None,
            only_correct: false,
            random_weights: false,
            seed: 0,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

/// Explains answers.
pub struct AttributeVqa;

impl StageKind for AttributeVqa {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "attribute.vqa",
            summary: "what in the image and which words of the question made a model answer as it does",
            implementation: 3,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("questions", &[artifact::QUESTIONS], "the questions, with answers")
                    .class(InputClass::Map),
                InputPort::required("images", &[artifact::IMAGES], "their images").class(InputClass::Lookup),
                InputPort::required("model", &[artifact::ANSWER_MODEL], "the model that answers"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![
            OutputPort::new("saliency", artifact::SALIENCY, "one map per question"),
            OutputPort::new("words", artifact::WORD_SALIENCY, "the words of each question with their values"),
            OutputPort::new(
                "shares",
                artifact::ATTRIBUTION_SCORES,
                "the share of the question in each answer: by Shapley values, if they are asked for, and by \
                 Integrated Gradients, if that is the method; and scores of the explanations, if they are asked for",
            ),
        ]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems: Vec<ParameterProblem> = compute::check(&params.device).into_iter().collect();
        problems.extend(params.integration().problems(params.method.name()));
        let mut wrong = |path: &str, message: String, help: &str| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: Some(help.to_owned()) });
        };
        if let (Some(window), Some(stride)) = (params.window, params.stride)
            && stride > window
        {
            wrong(
                "stride",
                format!("windows of {window} that stand {stride} apart leave gaps"),
                "a stride of at most the window covers every pixel",
            );
        }
        if params.method == AnswerMethod::Occlusion && params.wrap.iter().any(|wrapper| wrapper.takes_noise())
        {
            wrong(
                "wrap",
                "occlusion of image and question goes by what is there, which takes no noise".to_owned(),
                "only `absolute` is defined here; other methods take noise",
            );
        }
        if params.method.is_attention() && !params.wrap.is_empty() {
            wrong(
                "wrap",
                format!(
                    "`{}` is a map of positive values that the model has, not of an input",
                    params.method.name()
                ),
                "leave it out; other methods take wrappers",
            );
        }
        problems.extend(check_words(&params.wrap));
        problems
    }

    /// Not with a limit, which counts questions of the whole table.
    fn is_row_wise(&self, params: &Params, _has: &dyn Fn(&str) -> bool) -> bool {
        params.limit.is_none()
    }

    fn lookup(
        &self,
        params: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, images): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        images_asked_about(parts, images, &params.splits).map(Some)
    }

    fn outside_key(&self) -> &'static [&'static str] {
        &OUTSIDE_KEY
    }

    fn numerics(&self, params: &Params) -> Option<String> {
        params.compute().numerics()
    }

    fn take_devices(&self, params: &mut Params, gpus: &[usize]) {
        compute::take_gpu(&mut params.device, gpus);
    }

    fn run(&self, params: &Params, context: &mut StageContext<'_>) -> Result<(), StageError> {
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let table = asked(context.input("questions")?, &splits)?;
        let examples = Examples::of(&table, context.input("images")?)?;
        let answerer = Answerer::load(context.input("model")?, params.compute())?;
        let drawn = match params.random_weights {
            true => Some(Answerer::load(context.input("model")?, params.compute())?.randomised(params.seed)?),
            false => None,
        };
        let description = &answerer.description;
        let pictures = Pictures::read(&answerer, &examples)?;
        let vocabulary = description.vocabulary();
        let readings =
            Readings::new(&examples, &vocabulary, answerer.tower(), true, description.modality, context)?;
        let digests = row_digests(&table);
        let metadata = metadata(params, &answerer, context.provenance());
        let side = pictures.side;
        let output = context.output("saliency")?;
        let mut maps =
            SaliencyFile::new(output, &[side, side], "logit", &description.answers, metadata.clone())?
                .of_questions();
        let mut words = WordFile::new(context.output("words")?, "logit", metadata)?;
        let mut shares = Rows::default();
        let explanation = Explanation {
            params,
            answerer: &answerer,
            explained: drawn.as_ref().unwrap_or(&answerer),
            examples: &examples,
            digests: &digests,
            pictures: &pictures,
            readings: &readings,
            context,
        };
        let counts = explanation.explain(|explained| {
            let asked = &examples.asked[explained.question];
            let about = explanation.about(explained.question);
            let answer = explained.target.map(|target| description.answers[target].clone());
            shares.add(params, &examples, &explained, answer.as_deref());
            let Explained { target, correct, map, words: own, .. } = explained;
            maps.add(&asked.id, about, target, Some(correct), map)?;
            words.add(Row {
                id: asked.id.clone(),
                target: answer,
                index: target,
                caption: asked.question.clone(),
                outcome: own,
            })
        })?;
        let sees = pictures.are_seen();
        maps.finish(context.output("saliency")?)?;
        words.finish(context.output("words")?)?;
        let provenance = context.provenance().to_owned();
        let options = WriteOptions::row_wise(context, &provenance);
        write(context.output("shares")?, &TableSchema::attribution_scores(), &shares.table(params), options)?;
        summarise(params, &counts, sees, context);
        Ok(())
    }
}

/// What the files say of their contents beside the provenance.
fn metadata(params: &Params, answerer: &Answerer, provenance: &str) -> HashMap<String, String> {
    let description = &answerer.description;
    let encoder = answerer.encoder.as_ref().map(|encoder| format!(", {}", encoder.describe()));
    let model = format!("{}{}", description.architecture.name(), encoder.unwrap_or_default());
    let (layer, baseline, channels) = match params.method.is_attention() {
        true => ("attention of image and question", "none", Reduction::Grid.name()),
        false => ("pixels and token embeddings", params.baseline.name(), "sum"),
    };
    let mut metadata = HashMap::from([
        ("method".to_owned(), params.method.name().to_owned()),
        ("model".to_owned(), model),
        ("layer".to_owned(), layer.to_owned()),
        ("baseline".to_owned(), baseline.to_owned()),
        ("absent".to_owned(), params.absent.name().to_owned()),
        ("channels".to_owned(), channels.to_owned()),
        ("target".to_owned(), params.target.name().to_owned()),
        ("params".to_owned(), compute::keyed(params)),
        ("pipe".to_owned(), provenance.to_owned()),
    ]);
    // The whole image is seen, whatever its proportions.
    metadata.extend(Framing::Whole.entries());
    if !params.wrap.is_empty() {
        metadata.insert("wrap".to_owned(), names(&params.wrap));
    }
    if params.random_weights {
        metadata.insert("random_weights".to_owned(), params.seed.to_string());
    }
    metadata
}

/// Says what was done and what is remarkable about it.
fn summarise(params: &Params, counts: &Counts, sees: bool, context: &StageContext<'_>) {
    let line = format!(
        "{}: {} questions, {} forward and {} backward passes",
        params.method.name(),
        counts.questions,
        counts.passes.forward,
        counts.passes.backward
    );
    context.host().log(&line);
    count_passes(context, counts.passes);
    if counts.questions == 0 && counts.not_applicable == 0 && !context.is_part() {
        context.warn("no question passes the filters: nothing is explained");
    }
    if counts.incomplete > 0 {
        context.warn(&format!(
            "{} of {} questions: the sum over image and question misses the difference of scores by more than 5 %; \
             more `steps` come closer, and `most_steps` takes more where they are needed",
            counts.incomplete, counts.questions
        ));
    }
    if counts.all_zero > 0 && !sees {
        context.host().log("the model looks at no image: its maps are zero everywhere");
    } else if counts.all_zero > 0 {
        context.warn(&format!("{} of {} maps: zero everywhere", counts.all_zero, counts.questions));
    }
    if counts.not_applicable > 0 {
        context.host().log(&format!("{} rows are not applicable; each says why", counts.not_applicable));
    }
}
