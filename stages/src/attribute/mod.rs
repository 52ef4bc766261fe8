//! The stage kind `attribute`: which pixels made the classifier say what it says, or find a text fit for the image.

mod again;
mod attention;
mod baseline;
mod explanation;
mod method;
mod pairs;
mod params;
pub(crate) mod saliency;
mod selection;
mod steps;
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

pub(crate) use self::again::{Again, Changed};
pub(crate) use self::attention::first_layer;
use self::baseline::Baselines;
use self::explanation::{Counts, Explanation};
pub(crate) use self::explanation::{GREAT_GAP, attribution_error, window};
pub use self::method::Method;
pub(crate) use self::method::Reduction;
use self::pairs::Pairs;
pub(crate) use self::pairs::similarity_head;
pub use self::params::{Baseline, Params, Quadrature};
pub(crate) use self::saliency::{About, SaliencyFile, SaliencyMap, maps};
use self::selection::{Selection, select};
pub(crate) use self::steps::Steps;
pub use self::wrapper::Wrapper;
pub(crate) use self::wrapper::{check_words, names, noise_of_words, wrapped};
use crate::artifact;
use crate::compute::{self, OUTSIDE_KEY};
use crate::framing::Framing;
use crate::images::{count_passes, is_volumes, read_pixels, slices_seen};
use crate::labels::Labels;
use crate::lookup::{LookedUp, image_ids};
use crate::model::Model;

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
        params.problems()
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
            "{} of {} {}: the sum misses the difference of scores by more than 5 %; more `steps` come closer, and \
             `most_steps` takes more where they are needed",
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
