//! The stage kind `attribute.text`: which words made an image-text model find a caption fit for its image.

mod explanation;
mod file;
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

pub(crate) use self::explanation::absent_id;
use self::explanation::{Captions, Counts, Explanation};
pub(crate) use self::file::{Row, WordFile, WordValues};
use crate::artifact;
use crate::attribute::{Quadrature, Steps, Wrapper, check_words, names};
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::images::{count_passes, read_pixels_of};
use crate::lookup::{LookedUp, image_ids};
use crate::model::Model;

/// The method.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WordMethod {
    /// Token embedding (minus the baseline's) times gradient.
    InputXGradient,
    /// Token embedding minus the baseline's times the mean gradient between them.
    IntegratedGradients,
    /// The fall of the score when a word is absent.
    Occlusion,
    /// The Shapley value of each word, from all subsets of words.
    ShapleyValues,
    /// Shapley values from some subsets, by a weighted regression.
    #[serde(rename = "kernel_shap")]
    KernelShap,
    /// The product of attention maps times their gradients (Chefer et al. 2021): the share of each word in the
    /// relevance for the pooled token, not negative.
    AttentionRelevance,
}

impl WordMethod {
    fn name(self) -> &'static str {
        match self {
            Self::InputXGradient => "input_x_gradient",
            Self::IntegratedGradients => "integrated_gradients",
            Self::Occlusion => "occlusion",
            Self::ShapleyValues => "shapley_values",
            Self::KernelShap => "kernel_shap",
            Self::AttentionRelevance => "attention_relevance",
        }
    }
}

/// What stands for an absent word. Marks and padding stay as they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// The embedding of `[MASK]` where the tokeniser has it, else of padding.
    Word,
    /// The embedding of padding.
    Padding,
    /// Zero, also at marks: no word of the language.
    Zero,
}

impl Absent {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Word => "word",
            Self::Padding => "padding",
            Self::Zero => "zero",
        }
    }
}

/// Parameters of `attribute.text`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method.
    pub method: WordMethod,
    /// What is wrapped around the method, from the inside out: averages over noisy copies of the token embeddings, and
    /// the absolute value. They act on each value of a token, before a word's are added up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrap: Vec<Wrapper>,
    /// What wraps by noise: noisy copies of each caption; 25 by default.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<i64>,
    /// What wraps by noise: its deviation, as a share of the range of the caption's token embeddings; 0.15 by default.
    #[schemars(range(min = 0.0, max = 10.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// What a caption without a word has in its place.
    pub absent: Absent,
    /// Integrated Gradients: points between baseline and caption.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: i64,
    /// Integrated Gradients: where the sum of the words of a caption misses the difference of scores by more than 5 %, the steps are
    /// doubled until it does not, up to so many. By default they stay what they are.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub most_steps: Option<i64>,
    /// Integrated Gradients: the rule that places them.
    pub quadrature: Quadrature,
    /// Kernel SHAP: subsets of words.
    #[schemars(range(min = 4, max = 1_000_000))]
    pub samples: i64,
    /// Attention relevance: only so many of the last layers; all by default. Chefer et al. take 1 of CLIP.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_layers: Option<i64>,
    /// The splits whose captions are explained; all if empty.
    pub splits: Vec<String>,
    /// At most this many captions, the first in the order of the table. With a limit the whole table is one
    /// action: which captions are the first depends on all before them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Whether random weights take the place of the model's: the control for an explanation.
    pub random_weights: bool,
    /// Decides random weights and subsets.
    pub seed: i64,
    /// Captions, steps or subsets per pass through the text tower.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory (`bf16`
    /// also time, with AVX512-BF16).
    pub precision: Precision,
}

impl Params {
    /// Where and how precisely the model computes.
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
            method: WordMethod::IntegratedGradients,
            wrap: Vec::new(),
            draws: None,
            noise: None,
            absent: Absent::Word,
            steps: 50,
            most_steps: None,
            quadrature: Quadrature::GaussLegendre,
            samples: 200,
            last_layers: None,
            splits: vec!["test".to_owned()],
            limit: None,
            random_weights: false,
            seed: 0,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

/// Explains the similarity of images and captions by words.
pub struct AttributeText;

impl StageKind for AttributeText {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "attribute.text",
            summary: "what each word of a caption adds to its similarity with the image",
            implementation: 1,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required("captions", &[artifact::CAPTIONS], "the captions").class(InputClass::Map),
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "their images or volumes",
                )
                .class(InputClass::Lookup),
                InputPort::required("checkpoint", &[artifact::CHECKPOINT], "the model, with a tokeniser"),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("words", artifact::WORD_SALIENCY, "the words of each caption with their values")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems: Vec<ParameterProblem> = compute::check(&params.device).into_iter().collect();
        problems.extend(params.integration().problems(params.method.name()));
        problems.extend(check_words(&params.wrap));
        if params.method == WordMethod::AttentionRelevance && !params.wrap.is_empty() {
            problems.push(ParameterProblem {
                path: "wrap".to_owned(),
                message: "relevance along attention is a share of each word, not a value of its tokens"
                    .to_owned(),
                help: Some("leave it out, or choose another method".to_owned()),
            });
        }
        problems
    }

    fn is_row_wise(&self, params: &Params, _has: &dyn Fn(&str) -> bool) -> bool {
        params.limit.is_none()
    }

    fn lookup(
        &self,
        params: &Params,
        (_, parts): (&str, &[Artifact]),
        (_, input): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let ids = parts.iter().map(|part| image_ids(part, &splits)).collect::<Result<Vec<_>, _>>()?;
        let found = LookedUp::read(input, "image_id", "")?;
        Ok(Some(ids.iter().map(|ids| found.digest(ids)).collect()))
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
        let model = Model::load(context.input("checkpoint")?, params.compute())?;
        let model = if params.random_weights { model.randomised(params.seed)? } else { model };
        let captions = Captions::read(params, &model, context)?;
        let images = read_pixels_of(context.input("images")?, &captions.image_ids(), &model, context)?;
        let metadata = metadata(params, &model, context.provenance());
        let mut file = WordFile::new(context.output("words")?, "similarity", metadata)?;
        let explanation =
            Explanation { params, model: &model, captions: &captions, images: images.as_ref(), context };
        let counts = explanation.write(&mut file)?;
        file.finish(context.output("words")?)?;
        summarise(params, &counts, context);
        Ok(())
    }
}

/// What the file says of its words beside the provenance.
fn metadata(params: &Params, model: &Model, provenance: &str) -> HashMap<String, String> {
    let (layer, baseline) = match params.method {
        WordMethod::AttentionRelevance => ("attention", "none"),
        _ => ("token embeddings", params.absent.name()),
    };
    let mut metadata = HashMap::from([
        ("method".to_owned(), params.method.name().to_owned()),
        ("model".to_owned(), model.describe()),
        ("layer".to_owned(), layer.to_owned()),
        ("baseline".to_owned(), baseline.to_owned()),
        ("params".to_owned(), compute::keyed(params)),
        ("pipe".to_owned(), provenance.to_owned()),
    ]);
    if !params.wrap.is_empty() {
        metadata.insert("wrap".to_owned(), names(&params.wrap));
    }
    if params.random_weights {
        metadata.insert("random_weights".to_owned(), params.seed.to_string());
    }
    metadata
}

/// Says what was done and what is remarkable about it.
fn summarise(params: &Params, counts: &Counts, context: &StageContext<'_>) {
    let line = format!(
        "{}: {} captions, {} forward and {} backward passes of the text tower",
        params.method.name(),
        counts.captions,
        counts.passes.forward,
        counts.passes.backward
    );
    context.host().log(&line);
    count_passes(context, counts.passes);
    if counts.captions == 0 && counts.not_applicable == 0 && !context.is_part() {
        context.warn("no caption is in the splits that are explained");
    }
    if counts.truncated > 0 {
        context.warn(&format!(
            "{} captions are longer than the model's context: their last words are not explained",
            counts.truncated
        ));
    }
    if counts.not_applicable > 0 {
        context.host().log(&format!("{} rows are not applicable; each says why", counts.not_applicable));
    }
}
