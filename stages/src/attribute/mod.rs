//! The stage kind `attribute`: which pixels made the classifier say what it says, or find a text fit for the image.

mod again;
mod attention;
mod baseline;
mod explanation;
mod method;
mod pairs;
pub(crate) mod saliency;
mod selection;
#[cfg(test)]
mod tests;
mod wrapper;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use pipe_attribution::Passes;
use pipe_engine::cache::Digest;
use pipe_engine::{
    Artifact, DefaultCpu, InputClass, InputPort, KindDescription, Numerics, OutputPort, ParameterProblem,
    StageContext, StageError, StageKind,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::again::{Again, Changed};
pub(crate) use self::attention::first_layer;
use self::baseline::Baselines;
use self::explanation::{Counts, Explanation};
pub(crate) use self::explanation::{GREAT_GAP, attribution_error, window};
pub use self::method::Method;
pub(crate) use self::method::Reduction;
use self::pairs::{Pairs, class_parameters};
pub(crate) use self::saliency::{About, SaliencyFile, SaliencyMap, maps};
use self::selection::{Selection, select};
pub use self::wrapper::Wrapper;
use self::wrapper::check_noise;
pub(crate) use self::wrapper::{check_words, names, noise_of_words, wrapped};
use crate::artifact;
use crate::compute::{self, Compute, OUTSIDE_KEY, Precision, auto};
use crate::framing::Framing;
use crate::images::{count_passes, is_volumes, read_pixels, slices_seen};
use crate::labels::Labels;
use crate::lookup::{LookedUp, image_ids};
use crate::model::Model;

/// The rule that places the steps of Integrated Gradients; names are Captum's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quadrature {
    /// Gauss-Legendre nodes.
    #[serde(rename = "gausslegendre")]
    GaussLegendre,
    /// Left ends of equal intervals.
    RiemannLeft,
    /// Right ends.
    RiemannRight,
    /// Middles.
    RiemannMiddle,
    /// Captum's trapezoid, whose weights sum to 1 - 1/steps.
    RiemannTrapezoid,
    /// The trapezoid rule.
    Trapezoid,
}

impl From<Quadrature> for pipe_attribution::Quadrature {
    fn from(rule: Quadrature) -> Self {
        match rule {
            Quadrature::GaussLegendre => Self::GaussLegendre,
            Quadrature::RiemannLeft => Self::RiemannLeft,
            Quadrature::RiemannRight => Self::RiemannRight,
            Quadrature::RiemannMiddle => Self::RiemannMiddle,
            Quadrature::RiemannTrapezoid => Self::RiemannTrapezoid,
            Quadrature::Trapezoid => Self::Trapezoid,
        }
    }
}

/// What an image is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// Zero in the normalised space: the mean colour of the model's pre-training data, a mid grey.
    Zero,
    /// Black.
    Black,
    /// The value `constant` of the normalised space.
    Constant,
    /// The image itself, blurred.
    Blur,
    /// The mean of the training split, pixel by pixel, among images of the same modality and region.
    Mean,
    /// The image's lesion-free twin.
    Twin,
}

impl Baseline {
    /// Its name in parameters and metadata.
    fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Black => "black",
            Self::Constant => "constant",
            Self::Blur => "blur",
            Self::Mean => "mean",
            Self::Twin => "twin",
        }
    }
}

/// Parameters of `attribute`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The method.
    pub method: Method,
    /// What is wrapped around the method, from the inside out: `["noise_mean", "smoothing"]` blurs the mean over noisy
    /// copies of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub wrap: Vec<Wrapper>,
    /// The class whose logit is explained: `predicted`, `true`, or a class by its name. Multi-label
    /// heads: each predicted label (the likeliest if there is none), or each true one.
    pub target: String,
    /// A text: what is explained is each image's similarity with it, `exp(scale) * cosine`, and the checkpoint needs no
    /// head. With the input `captions` it is the similarity with the image's own captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A class whose logit is subtracted: what is explained is then the margin between the two. Of similarities: a
    /// text whose similarity is subtracted, or `others`, the mean over the captions of all other images.
    pub against: Option<String>,
    /// What the image is compared with, by Input x Gradient, Integrated Gradients, DeepLIFT, occlusion, RISE, the
    /// Shapley family and meaningful perturbation.
    pub baseline: Baseline,
    /// Baseline `constant`: the value, in the normalised space.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub constant: f64,
    /// Baseline `blur`: the standard deviation in pixels; by default 10 for an image of 224.
    #[schemars(range(min = 0.01, max = 1000.0))]
    pub blur_sigma: Option<f64>,
    /// Integrated Gradients: points between baseline and image.
    #[schemars(range(min = 1, max = 10_000))]
    pub steps: i64,
    /// Integrated Gradients: the rule that places them.
    pub quadrature: Quadrature,
    /// Occlusion: side of the window in pixels; by default the multiple of the patch that is nearest to
    /// 32 in 224, at least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub window: Option<i64>,
    /// Occlusion: distance between windows in pixels; by default half of that, at least one patch.
    #[schemars(range(min = 1, max = 4096))]
    pub stride: Option<i64>,
    /// Occlusion: whether each window covers one channel alone. The map is then the sum over channels of their falls, and
    /// costs a pass per window and channel.
    #[serde(skip_serializing_if = "is_false")]
    pub per_channel: bool,
    /// Occlusion of volumes: slices of a window; by default in proportion, as `window`.
    #[schemars(range(min = 1, max = 4096))]
    pub slices: Option<i64>,
    /// Occlusion of volumes: slices from one window to the next; by default in proportion, as `stride`.
    #[schemars(range(min = 1, max = 4096))]
    pub slice_stride: Option<i64>,
    /// SmoothGrad, its relatives, Gradient SHAP and what wraps by noise: noisy copies of each image.
    #[schemars(range(min = 1, max = 10_000))]
    pub draws: i64,
    /// SmoothGrad, its relatives, Gradient SHAP and what wraps by noise: the deviation of the noise, as a share of the
    /// range of the image.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise: f64,
    /// `wrap` with `smoothing`: the standard deviation in pixels; by default 16 for an image of 224.
    #[schemars(range(min = 0.01, max = 1000.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// Attention rollout and relevance: only so many of the last layers; all by default. Chefer et al. take 1 of CLIP.
    #[schemars(range(min = 1, max = 1000))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_layers: Option<i64>,
    /// RISE: masks.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub masks: i64,
    /// RISE: cells of a mask along a side.
    #[schemars(range(min = 1, max = 64))]
    pub cells: i64,
    /// Shapley values and Kernel SHAP: blocks along each side of the image.
    #[schemars(range(min = 1, max = 64))]
    pub blocks: i64,
    /// Kernel SHAP: subsets of blocks; at least two more than blocks.
    #[schemars(range(min = 3, max = 1_000_000))]
    pub coalitions: i64,
    /// Meaningful perturbation and iterative saliency (whose authors take 200): steps of descent.
    #[schemars(range(min = 1, max = 100_000))]
    pub descent_steps: i64,
    /// The splits that are explained; all if empty.
    pub splits: Vec<String>,
    /// At most this many images, the first in the order of the table that pass the filters below. With a
    /// limit the whole table is one action: which images are the first depends on all before them.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Only images of these true classes; all if empty.
    pub classes: Vec<String>,
    /// Only images that the model classifies correctly.
    pub only_correct: bool,
    /// Whether random weights take the place of the model's: the control for an explanation. Images,
    /// targets and baselines are still chosen by the model as it is.
    pub random_weights: bool,
    /// Decides random weights, noise and masks.
    pub seed: i64,
    /// Images, steps or windows per pass through the model.
    #[schemars(range(min = 1, max = 4096))]
    pub batch: i64,
    /// Where the model computes: `auto` (the first GPU that can be used, else the CPU), `cpu`, `cuda:0` (or
    /// another number) or `metal`.
    pub device: String,
    /// The data type of the model's weights and activations; on a CPU half types save memory, not time.
    pub precision: Precision,
}

impl Params {
    /// Where and how precisely the model computes.
    pub(crate) fn compute(&self) -> Compute {
        Compute::new(&self.device, self.precision)
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            method: Method::IntegratedGradients,
            wrap: Vec::new(),
            target: "predicted".to_owned(),
            text: None,
            against: None,
            baseline: Baseline::Zero,
            constant: 0.0,
            blur_sigma: None,
            steps: 50,
            quadrature: Quadrature::GaussLegendre,
            window: None,
            stride: None,
            per_channel: false,
            slices: None,
            slice_stride: None,
            draws: 25,
            noise: 0.15,
            smoothing: None,
            last_layers: None,
            masks: 4000,
            cells: 7,
            blocks: 3,
            coalitions: 200,
            descent_steps: 300,
            splits: vec!["test".to_owned()],
            limit: None,
            classes: Vec::new(),
            only_correct: false,
            random_weights: false,
            seed: 0,
            batch: 32,
            device: auto(),
            precision: Precision::F32,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Params {
    /// How the values of an attribution become one map.
    pub(crate) fn reduction(&self) -> Reduction {
        if self.per_channel { Reduction::Sum } else { self.method.reduction() }
    }

    /// The baseline's name, or that there is none.
    fn baseline_name(&self) -> &'static str {
        if self.method.has_baseline() { self.baseline.name() } else { "none" }
    }
}

/// Explains a classifier, or the similarity of images and texts.
pub struct Attribute;

impl StageKind for Attribute {
    type Params = Params;

    fn describe(&self) -> KindDescription {
        KindDescription {
            name: "attribute",
            summary: "saliency maps of a classifier, or of the similarity with captions: which pixels or voxels made the \
                      model say what it says",
            implementation: 6,
            schema_version: 1,
            numerics: Numerics::Tensor,
            cpu: DefaultCpu::All,
            inputs: vec![
                InputPort::required(
                    "images",
                    &[artifact::IMAGES, artifact::VOLUMES],
                    "the images or volumes",
                )
                .class(InputClass::Map),
                InputPort::required(
                    "checkpoint",
                    &[artifact::CHECKPOINT],
                    "the model, with a head; for captions or a text, with both towers",
                ),
                InputPort::optional(
                    "captions",
                    &[artifact::CAPTIONS],
                    "their captions, whose similarity with the image is explained instead of a class",
                )
                .class(InputClass::Lookup),
                InputPort::optional(
                    "masker",
                    &[artifact::MASKER],
                    "`trained_saliency`: the network that a stage `masker` has trained for the checkpoint",
                ),
                InputPort::optional(
                    "labels",
                    &[artifact::LABELS],
                    "their classes: for `target = \"true\"`, `classes` and `only_correct`",
                )
                .class(InputClass::Lookup),
                InputPort::optional(
                    "reference",
                    &[artifact::IMAGES],
                    "baseline `mean`: the images whose training split is averaged; by default `images`",
                ),
                InputPort::optional(
                    "twins",
                    &[artifact::IMAGES],
                    "baseline `twin`: counterfactual images, with the column `twin_of`",
                )
                .class(InputClass::Lookup),
            ],
            free_inputs: None,
        }
    }

    fn outputs(&self, _params: &Params) -> Vec<OutputPort> {
        vec![OutputPort::new("saliency", artifact::SALIENCY, "one map per image and target")]
    }

    fn check(&self, params: &Params) -> Vec<ParameterProblem> {
        let mut problems: Vec<ParameterProblem> = compute::check(&params.device).into_iter().collect();
        let mut wrong = |path: &str, message: String, help: &str| {
            problems.push(ParameterProblem { path: path.to_owned(), message, help: Some(help.to_owned()) });
        };
        let trapezoid = matches!(params.quadrature, Quadrature::RiemannTrapezoid | Quadrature::Trapezoid);
        if params.method == Method::IntegratedGradients && trapezoid && params.steps < 2 {
            wrong("steps", "a trapezoid has two ends".to_owned(), "give at least 2 steps");
        }
        for (path, window, stride) in
            [("stride", params.window, params.stride), ("slice_stride", params.slices, params.slice_stride)]
        {
            if let (Some(window), Some(stride)) = (window, stride)
                && stride > window
            {
                wrong(
                    path,
                    format!("windows of {window} that stand {stride} apart leave gaps"),
                    "a stride of at most the window covers everything",
                );
            }
        }
        let blocks = params.blocks * params.blocks;
        if params.method == Method::ShapleyValues && blocks > 16 {
            wrong(
                "blocks",
                format!("{blocks} blocks have 2^{blocks} subsets"),
                "at most 4 a side can be exact; `kernel_shap` takes more",
            );
        }
        if params.method == Method::KernelShap && params.coalitions < blocks + 2 {
            wrong(
                "coalitions",
                format!("{} subsets do not tell {blocks} blocks apart", params.coalitions),
                "give several times as many as there are blocks",
            );
        }
        let target = params.text.as_ref().unwrap_or(&params.target);
        if params.against.as_ref() == Some(target) {
            wrong(
                "against",
                format!("`{target}` minus itself is 0 everywhere"),
                "name another one, or leave it out",
            );
        }
        problems.extend(check_noise(&params.wrap, params.method.averages_noise()));
        if params.per_channel && params.method != Method::Occlusion {
            problems.push(ParameterProblem {
                path: "per_channel".to_owned(),
                message: format!("`{}` moves no window", params.method.name()),
                help: Some("leave it out, or choose `occlusion`".to_owned()),
            });
        }
        if params.text.is_some() {
            problems.extend(class_parameters(params));
        }
        problems
    }

    /// Not with a limit, which counts images of the whole table, nor where the mean of the explained table
    /// itself is the baseline, or the captions of other images have a part in what is explained.
    fn is_row_wise(&self, params: &Params, has: &dyn Fn(&str) -> bool) -> bool {
        let needs_all =
            params.baseline == Baseline::Mean && params.method.has_baseline() && !has("reference");
        let needs_captions = has("captions") && pairs::needs_all(params);
        params.limit.is_none() && !needs_all && !needs_captions
    }

    fn lookup(
        &self,
        params: &Params,
        (_, parts): (&str, &[Artifact]),
        (port, input): (&str, &Artifact),
    ) -> Result<Option<Vec<Digest>>, StageError> {
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let ids = parts.iter().map(|part| image_ids(part, &splits)).collect::<Result<Vec<_>, _>>()?;
        let found = match port {
            // The classes of the table are those of each of its rows.
            "labels" => {
                let classes = format!("{:?}", Labels::read(input)?.description);
                LookedUp::read(input, "image_id", &classes)?
            }
            "captions" => LookedUp::read(input, "image_id", "")?,
            _ => LookedUp::read(input, "twin_of", "")?,
        };
        Ok(Some(ids.iter().map(|ids| found.digest(ids)).collect()))
    }

    fn key_neutral(&self) -> &'static [&'static str] {
        &["slices", "slice_stride"]
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
        let splits: Vec<&str> = params.splits.iter().map(String::as_str).collect();
        let artifact = context.input("images")?;
        let seen = slices_seen(artifact, &model);
        let images = read_pixels(artifact, &splits, &model, context)?;
        let images = images.as_ref();
        let pairs = Pairs::read(params, images, context)?;
        let selection = match &pairs {
            Some(pairs) => pairs.select(params, images.ids().len()),
            None => {
                let labels = context.optional_input("labels").map(Labels::read).transpose()?;
                select(params, &model, images, labels.as_ref(), context)?
            }
        };
        let baselines = match selection.rows.is_empty() {
            // What nothing is compared with need not be read.
            true => Baselines::plain(images),
            false => Baselines::read(params, &model, images, context)?,
        };
        let wants_masker = params.method == Method::TrainedSaliency
            && !params.random_weights
            && pairs.is_none()
            && crate::masker::sizes(&model, 1)?.is_ok();
        let masker = match context.optional_input("masker").filter(|_| wants_masker) {
            Some(masker) => Some(Arc::new(crate::masker::load(masker, &model)?)),
            None if wants_masker => {
                let reason = "`trained_saliency` needs the network that a stage `masker` has trained for this checkpoint";
                return Err(StageError::input("masker", reason));
            }
            None => None,
        };
        let mut model = if params.random_weights { model.randomised(params.seed)? } else { model };
        if let Some(pairs) = &pairs {
            model.head = Some(pairs.head(&model, images.ids().len(), params.batch, context)?);
        }
        let target = match (&pairs, &params.text) {
            (Some(_), Some(text)) => text,
            (Some(_), None) => "caption",
            (None, _) => params.target.as_str(),
        };
        let mut metadata = metadata(params, target, &model, context.provenance())?;
        if let Some(seen) = seen {
            metadata.insert("volumes".to_owned(), seen);
        }
        if !is_volumes(context.input("images")?) {
            metadata.extend(Framing::of(model.preprocessor()?).entries());
        }
        let target_kind = match params.method {
            _ if params.against.is_some() => "margin",
            method if method.explains_probability() => "probability",
            method if method.explains_lead() => "lead",
            _ if pairs.is_some() => "similarity",
            _ => "logit",
        };
        let classes = &model.head()?.description.classes;
        let output = context.output("saliency")?;
        let mut file = SaliencyFile::new(output, &images.map_shape(), target_kind, classes, metadata)?;
        if pairs.is_some() {
            file = file.of_pairs();
        }
        let explanation = Explanation {
            params,
            model: &model,
            images,
            baselines: &baselines,
            context,
            masker,
            channels: OnceCell::new(),
        };
        let counts = explanation.write(&selection.rows, &mut file)?;
        file.finish(context.output("saliency")?)?;
        summarise(params, &selection, &counts, context);
        Ok(())
    }
}

/// What the file says of its maps beside the provenance.
fn metadata(
    params: &Params,
    target: &str,
    model: &Model,
    provenance: &str,
) -> Result<HashMap<String, String>, StageError> {
    let mut metadata = HashMap::from([
        ("method".to_owned(), params.method.name().to_owned()),
        ("model".to_owned(), model.describe()),
        ("layer".to_owned(), params.method.layer(model.image_tower()?, params.last_layers)),
        ("baseline".to_owned(), params.baseline_name().to_owned()),
        ("channels".to_owned(), params.reduction().name().to_owned()),
        ("target".to_owned(), target.to_owned()),
        ("params".to_owned(), compute::keyed(params)),
        ("pipe".to_owned(), provenance.to_owned()),
    ]);
    if params.random_weights {
        metadata.insert("random_weights".to_owned(), params.seed.to_string());
    }
    if !params.wrap.is_empty() {
        metadata.insert("wrap".to_owned(), names(&params.wrap));
    }
    if let Some(against) = &params.against {
        metadata.insert("against".to_owned(), against.clone());
    }
    Ok(metadata)
}

/// Says what was done and what is remarkable about it.
fn summarise(params: &Params, selection: &Selection, counts: &Counts, context: &StageContext<'_>) {
    let line = format!(
        "{}: {} maps of {} images, {} forward and {} backward passes, {} more forward passes to select images",
        params.method.name(),
        counts.maps,
        selection.images,
        counts.passes.forward,
        counts.passes.backward,
        selection.passes
    );
    context.host().log(&line);
    count_passes(context, counts.passes);
    count_passes(context, Passes { forward: selection.passes as u64, backward: 0 });
    let plural = |count: usize| if count == 1 { "map" } else { "maps" };
    if selection.images == 0 && !context.is_part() {
        context.warn("no image passes the filters: there are no maps");
    }
    if counts.incomplete > 0 {
        context.warn(&format!(
            "{} of {} {}: the sum misses the difference of scores by more than 5 %; more `steps` come closer",
            counts.incomplete,
            counts.maps,
            plural(counts.maps)
        ));
    }
    if counts.all_zero > 0 {
        context.warn(&format!(
            "{} of {} {}: zero everywhere",
            counts.all_zero,
            counts.maps,
            plural(counts.maps)
        ));
    }
    if counts.not_applicable > 0 {
        context.host().log(&format!("{} rows are not applicable; each says why", counts.not_applicable));
    }
}
