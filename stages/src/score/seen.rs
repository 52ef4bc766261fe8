//! What a model saw of images and volumes, their masks, and what their pixels become: in the geometry of the maps.

use std::collections::{BTreeMap, BTreeSet};

use pipe_attribution::metrics::{Mask, Shape};
use pipe_engine::{Artifact, StageContext, StageError};
use pipe_models::Preprocessor;
use pipe_models::preprocess::{Fit, Slices};

use super::choice::CHANNELS;
use super::references::References;
use super::{Baseline, Mode, Params, masks};
use crate::artifact;
use crate::framing::Framing;
use crate::images::{ImageSet, Pixels, is_volumes, read_pixels_of};
use crate::mean_image::MeanImages;
use crate::model::Model;
use crate::volumes::{MaskSet, SliceSet, VolumeRows, VolumeSet};

/// What is known of the maps before images are read.
pub(super) struct Shown<'a, 'c> {
    pub(super) params: &'a Params,
    /// Slices, height and width of the maps.
    pub(super) sides: [usize; 3],
    /// What a model of flat images saw of volumes, if it saw them slice by slice.
    pub(super) slices: Option<String>,
    pub(super) of_answers: bool,
    pub(super) framing: Option<Framing>,
    pub(super) model: Option<&'a Model>,
    /// The images that maps explain.
    pub(super) wanted: BTreeSet<&'a str>,
    pub(super) context: &'a StageContext<'c>,
}

/// Images with what belongs to them.
pub(super) struct Seen {
    pub(super) images: Box<dyn Pixels>,
    pub(super) masks: Option<BTreeMap<String, Mask>>,
    pub(super) removed: References,
    /// Mean training images, for the control that compares with them.
    pub(super) means: Option<MeanImages>,
    pub(super) shape: Shape,
}

impl Shown<'_, '_> {
    /// Flat images, or the one slice that was seen of volumes.
    ///
    /// # Errors
    /// If an input is damaged, or the maps are not of the size of the model's images.
    pub(super) fn flat(&self) -> Result<Seen, StageError> {
        let Self { params, context, wanted, .. } = self;
        let [_, height, width] = self.sides;
        let shape = Shape::flat(CHANNELS, height, width);
        let preprocessor = self.preprocessor()?;
        let own = context.input("images")?;
        let images = ImageSet::read_only(own, wanted, &preprocessor, context)?;
        let masks = match context.optional_input("masks") {
            Some(artifact) if is_volume_masks(artifact) => {
                let see = |masks: &MaskSet, place| masks.slices(place, &preprocessor);
                Some(self.volume_masks(artifact, see)?)
            }
            Some(artifact) => {
                Some(masks::read(artifact, &params.regions, &preprocessor, &|id| wanted.contains(id))?)
            }
            None => None,
        };
        let read_means = |artifact| MeanImages::read(artifact, own, &images.ids, &preprocessor, context);
        // Without images nothing is compared with a mean.
        let means = match context.optional_input("reference").filter(|_| images.len() > 0) {
            Some(artifact) => Some(read_means(artifact)?),
            None => None,
        };
        let removed = match params.removal() {
            Baseline::Mean if images.len() > 0 => References::Mean(match &means {
                Some(means) => means.clone(),
                None => read_means(own)?,
            }),
            _ => self.removed(&images, shape),
        };
        Ok(Seen { images: Box::new(images), masks, removed, means, shape })
    }

    /// Volumes, whole or slice by slice.
    ///
    /// # Errors
    /// If an input is damaged, the maps are not of the size of the model's volumes, or a parameter is one of flat
    /// images.
    pub(super) fn volumes(&self) -> Result<Seen, StageError> {
        let Self { params, context, wanted, sides, .. } = self;
        let own = context.input("images")?;
        if !is_volumes(own) {
            let reason = format!("its maps have {} slices, and `images` are flat", sides[0]);
            return Err(StageError::input("saliency", reason));
        }
        if params.mode == Mode::Quantus {
            return Err(StageError::failed(
                "`mode = \"quantus\"` is defined for flat images; these are volumes",
            ));
        }
        if params.removal() == Baseline::Mean || context.optional_input("reference").is_some() {
            return Err(StageError::failed(
                "a mean image (baseline `mean`, input `reference`) is one of flat images; these are volumes",
            ));
        }
        let [slices, _, width] = *sides;
        let by_slices = || Preprocessor { slices: Slices::Mean(slices), ..Preprocessor::clip(width) };
        let images: Box<dyn Pixels> = match (self.model, &self.slices) {
            (Some(model), _) => read_pixels_of(own, wanted, model, context)?,
            (None, Some(_)) => Box::new(SliceSet::choose(own, VolumeRows::Only(wanted), &by_slices())?),
            (None, None) => Box::new(VolumeSet::choose(own, VolumeRows::Only(wanted), *sides)?),
        };
        if images.map_shape() != sides {
            let reason = format!(
                "its maps are {sides:?} (slices, rows, columns), what the checkpoint's model sees is {:?}",
                images.map_shape()
            );
            return Err(StageError::input("saliency", reason));
        }
        let masks = match context.optional_input("masks") {
            Some(artifact) if is_volume_masks(artifact) => {
                let preprocessor = match self.model {
                    Some(model) if model.is_slice_wise() => model.preprocessor_of_slices()?.clone(),
                    _ => by_slices(),
                };
                let is_slice_wise = self.model.map_or(self.slices.is_some(), Model::is_slice_wise);
                let see = |masks: &MaskSet, place| match is_slice_wise {
                    true => masks.slices(place, &preprocessor),
                    false => masks.whole(place),
                };
                Some(self.volume_masks(artifact, see)?)
            }
            Some(_) => {
                return Err(StageError::input("masks", "they are of flat images, and the maps of volumes"));
            }
            None => None,
        };
        let shape = Shape::volume(images.black().len(), *sides);
        let removed = self.removed(images.as_ref(), shape);
        Ok(Seen { images, masks, removed, means: None, shape })
    }

    /// What happens to flat images first.
    fn preprocessor(&self) -> Result<Preprocessor, StageError> {
        let [_, side, _] = self.sides;
        match self.model {
            Some(model) if model.preprocessor()?.side != side => {
                let reason = format!(
                    "its maps are {0} x {0}, the images of the checkpoint's model {1} x {1}",
                    side,
                    model.preprocessor()?.side
                );
                Err(StageError::input("saliency", reason))
            }
            Some(model) => Ok(model.preprocessor()?.clone()),
            // The maps say where on the images they lie; those that do not are taken as CLIP's, whose models of
            // questions see the whole.
            None => {
                let fit = match self.framing {
                    Some(framing) => framing.fit(),
                    None if self.of_answers => Fit::Stretch,
                    None => Fit::Shortest(side),
                };
                Ok(Preprocessor { fit, ..Preprocessor::clip(side) })
            }
        }
    }

    /// What removed pixels become, where it needs no mean image.
    fn removed(&self, images: &dyn Pixels, shape: Shape) -> References {
        let params = self.params;
        let pixels = shape.pixels();
        match params.removal() {
            Baseline::Zero | Baseline::Mean => {
                References::Plain { channels: vec![0.0; shape.channels], pixels }
            }
            Baseline::Black => References::Plain { channels: images.black(), pixels },
            Baseline::Blur => References::Blur(shape),
            Baseline::Uniform => References::Uniform { seed: params.seed as u64 },
            Baseline::Neighbourhood => References::Neighbourhood { shape, patch: params.patch_side(shape) },
        }
    }

    /// Masks of volumes as `see` brings them to the maps.
    fn volume_masks(
        &self,
        artifact: &Artifact,
        see: impl Fn(&MaskSet, usize) -> Result<Vec<bool>, StageError>,
    ) -> Result<BTreeMap<String, Mask>, StageError> {
        let volumes = self.context.input("images")?;
        let set = MaskSet::read(artifact, volumes, &self.wanted, self.sides, &self.params.regions)?;
        let [_, height, width] = self.sides;
        let mask = |(id, inside): (String, Vec<bool>)| {
            let mask = Mask::of_volume(inside, [height, width])
                .ok_or_else(|| StageError::input(&id, "its mask has another size than its map"))?;
            Ok((id, mask))
        };
        set.each(see)?.into_iter().map(mask).collect()
    }
}

fn is_volume_masks(artifact: &Artifact) -> bool {
    artifact.artifact_type == artifact::VOLUME_MASKS.0
}
