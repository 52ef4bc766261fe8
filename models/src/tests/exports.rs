//! Models that were trained here, exported, and read again: by our own description, and by the layout's alone, as a
//! stranger would.

use std::collections::BTreeMap;

use candle_core::Device;
use tempfile::TempDir;

use super::imports::found;
use super::open_clip::biomed_description;
use super::{bert, every_architecture, ids, loss_of, pixels, values, vision};
use crate::biomed_clip::BiomedClipConfig;
use crate::clip::EotRule;
use crate::export::{Companions, export};
use crate::import::Layout;
use crate::{Activation, FoundationModel, ModelConfig, Preprocessor, Trainable};

/// A model after a step against its gradient: no weight is as it was drawn.
fn trained(config: &ModelConfig) -> Box<dyn FoundationModel> {
    let model = config.random(5, &Device::Cpu, Trainable::All).unwrap();
    let copies = |model: &dyn FoundationModel| -> BTreeMap<String, Vec<f32>> {
        model.tensors().into_iter().map(|(name, tensor)| (name, values(&tensor))).collect()
    };
    let before = copies(model.as_ref());
    let loss = loss_of(model.as_ref(), pixels(model.as_ref()).as_ref(), None).unwrap();
    let gradients = loss.backward().unwrap();
    for variable in model.variables().values() {
        if let Some(gradient) = gradients.get(variable) {
            variable.set(&(variable.as_tensor() - (gradient * 0.3).unwrap()).unwrap()).unwrap();
        }
    }
    assert_ne!(copies(model.as_ref()), before, "it was trained");
    // As it is used from then on: what is frozen is computed by other operations, with other last digits.
    config.build(model.tensors(), Trainable::Frozen).unwrap()
}

/// What a model says of images and texts, to the bit.
fn embeddings(model: &dyn FoundationModel) -> Vec<Vec<u32>> {
    let images =
        model.as_image_tower().map(|tower| tower.embed_images(&pixels(model).unwrap(), None).unwrap());
    let texts = model.as_text_tower().map(|tower| tower.embed_texts(&ids(model).unwrap(), None).unwrap());
    let bits = |tensor| values(&tensor).into_iter().map(f32::to_bits).collect();
    [images, texts].into_iter().flatten().map(bits).collect()
}

/// Exports a model and reads it twice, the second time without our own configuration where the layout has one.
fn round_trip(model: &dyn FoundationModel) {
    let folder = TempDir::new().unwrap();
    let side = model.as_image_tower().map(|tower| tower.geometry().image[0]);
    let preprocessor = side.map(Preprocessor::clip);
    let companions = Companions { preprocessor: preprocessor.as_ref(), ..Companions::default() };
    export(folder.path(), model, &companions).unwrap();
    let expected = embeddings(model);
    let strange = folder.path().join("open_clip_config.json").exists();
    for reading in 0..1 + usize::from(strange) {
        if reading == 1 {
            std::fs::remove_file(folder.path().join("config.json")).unwrap();
            std::fs::remove_file(folder.path().join("preprocessor_config.json")).unwrap();
        }
        let mut imported = found(folder.path()).unwrap();
        // Our own description comes first where there is one.
        let layout = if reading == 1 { Layout::OpenClip } else { Layout::HuggingFace };
        assert_eq!(imported.layout, layout);
        assert_eq!(imported.config, model.model_config(), "reading {reading}");
        let again = imported.build(Trainable::Frozen).unwrap();
        assert!(embeddings(again.as_ref()) == expected, "reading {reading} of {:?}", model.model_config());
    }
}

#[test]
fn a_trained_model_is_read_again_to_the_bit() {
    for mut config in every_architecture() {
        // open_clip has one rule for the end of a text, and no word for others.
        if let ModelConfig::OpenAiClip(config) = &mut config {
            config.text.eot = EotRule::Greatest;
        }
        round_trip(trained(&config).as_ref());
    }
}

/// A BiomedCLIP keeps the description that it came with; what that leaves to names is in our own configuration.
#[test]
fn a_trained_biomed_clip_keeps_its_description() {
    let sizes =
        BiomedClipConfig { vision: vision(Activation::Gelu), text: bert(), context: 9, projection: 10 };
    let model = trained(&ModelConfig::BiomedClip(sizes));
    let description = biomed_description();
    let folder = TempDir::new().unwrap();
    let companions = Companions { open_clip: Some(&description), ..Companions::default() };
    export(folder.path(), model.as_ref(), &companions).unwrap();
    let mut imported = found(folder.path()).unwrap();
    assert_eq!(imported.config, model.model_config());
    assert_eq!(imported.open_clip.as_ref(), Some(&description));
    let again = imported.build(Trainable::Frozen).unwrap();
    assert!(embeddings(again.as_ref()) == embeddings(model.as_ref()));
}
