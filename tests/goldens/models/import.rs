//! Checkpoints of every layout, found by their files alone: folders, single files, split files.

use std::path::Path;

use candle_core::{Device, Tensor};
use pipe_models::import::{ImportOptions, Imported, Layout, import};
use pipe_models::preprocess::Pipeline;
use pipe_models::tokenizer::Cleaning;
use pipe_models::{CheckpointFiles, FoundationModel, Trainable};
use serde_json::{Value as Json, json};

use super::OUTPUT;
use crate::harness::{self, Golden};

/// A checkpoint of the goldens, and what its published format does not tell: the real ones have heads of
/// 64 values and the published context.
struct Case<'a> {
    files: CheckpointFiles,
    expected: (&'a Path, String),
    layout: Layout,
    overrides: Json,
    /// Keys of pixels, ids and text embeddings.
    keys: [&'static str; 3],
}

fn single(path: &Path) -> CheckpointFiles {
    CheckpointFiles::new([(path.file_name().unwrap().to_string_lossy().into_owned(), path.to_owned())])
}

fn load(files: &CheckpointFiles, overrides: &Json) -> Imported {
    let options = ImportOptions { config: overrides.clone(), ..ImportOptions::default() };
    import(files, &options, &Device::Cpu).unwrap_or_else(|error| panic!("{error}"))
}

fn build(imported: Imported) -> Box<dyn FoundationModel> {
    imported.config.build(imported.tensors, Trainable::Frozen).unwrap_or_else(|error| panic!("{error}"))
}

fn compare(golden: &Golden, key: &str, model: &dyn FoundationModel, keys: &[&str; 3]) {
    let model = model.as_dual_encoder().unwrap();
    let embeddings = |tower: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>, key: &str| {
        tower(&golden.input(key)).unwrap_or_else(|error| panic!("{key}: {error}"))
    };
    let images = embeddings(&|pixels| model.image_tower().embed_images(pixels, None), keys[0]);
    golden.compare(key, &images, OUTPUT);
    let texts = embeddings(&|ids| model.text_tower().embed_texts(ids, None), keys[1]);
    golden.compare(keys[2], &texts, OUTPUT);
    golden.finish_second_look();
}

#[test]
fn every_layout_is_found() {
    let Some(folder) = harness::topic("models") else { return };
    let at = |name: &str| folder.join(name);
    let biomed = at("biomedclip-tiny");
    let heads = harness::json(&biomed.join("timm_tiny.json"))["vit"]["num_heads"].clone();
    let bert_heads = harness::json(&biomed.join("bert/config.json"))["num_attention_heads"].clone();
    let pmc = harness::json(&at("pmc-clip-tiny.config.json"));
    let pmc = json!({
        "pool_heads": pmc["attnpool_heads"], "context": pmc["context_length"],
        "text": { "num_attention_heads": pmc["bert"]["heads"] },
    });
    let ct = harness::json(&at("ct-clip-tiny.config.json"));
    let ct = json!({
        "vision": { "slices": ct["frames"] }, "text": { "num_attention_heads": ct["bert"]["heads"] },
    });
    let plain = ["pixels", "input_ids", "text_embeds"];
    let openai = |name: &str| Case {
        files: single(&at(&format!("{name}.pt"))),
        expected: (&folder, format!("{name}.expected.safetensors")),
        layout: Layout::Weights,
        overrides: Json::Null,
        keys: plain,
    };
    let mut cases = vec![
        Case {
            files: CheckpointFiles::folder(&at("hf-clip-tiny")).unwrap(),
            expected: (&folder, "hf-clip-tiny/expected.safetensors".to_owned()),
            layout: Layout::HuggingFace,
            overrides: Json::Null,
            keys: plain,
        },
        openai("openai-vit-tiny"),
        openai("openai-rn-tiny"),
        openai("openai-vit-jit-tiny"),
        Case {
            files: single(&at("pmc-clip-tiny.pt")),
            expected: (&folder, "pmc-clip-tiny.expected.safetensors".to_owned()),
            layout: Layout::Weights,
            overrides: pmc.clone(),
            keys: ["pixels", "caption_ids", "clean_text_embeds_cls"],
        },
        Case {
            files: CheckpointFiles::folder(&at("pmc-clip-tiny-split")).unwrap(),
            expected: (&folder, "pmc-clip-tiny.expected.safetensors".to_owned()),
            layout: Layout::PmcClipSplit,
            overrides: pmc,
            keys: ["pixels", "caption_ids", "clean_text_embeds_cls"],
        },
        Case {
            files: single(&at("ct-clip-tiny.pt")),
            expected: (&folder, "ct-clip-tiny.expected.safetensors".to_owned()),
            layout: Layout::Weights,
            overrides: ct,
            keys: ["volume", "input_ids", "text_embeds"],
        },
    ];
    // With either file of weights.
    for weights in ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"] {
        let files = [weights, "open_clip_config.json"];
        cases.push(Case {
            files: CheckpointFiles::new(files.map(|file| (file.to_owned(), biomed.join(file)))),
            expected: (&folder, "biomedclip-tiny/expected.safetensors".to_owned()),
            layout: Layout::OpenClip,
            overrides: json!({
                "vision": { "heads": heads }, "text": { "num_attention_heads": bert_heads },
            }),
            keys: plain,
        });
    }
    for case in cases {
        let golden = Golden::open(case.expected.0, &case.expected.1);
        let imported = load(&case.files, &case.overrides);
        assert_eq!(imported.layout, case.layout, "{}", case.expected.1);
        let pipeline = match case.layout {
            Layout::HuggingFace => Pipeline::HuggingFace,
            _ => Pipeline::OpenClip,
        };
        assert_eq!(imported.preprocessor.as_ref().unwrap().pipeline, pipeline, "{}", case.expected.1);
        compare(&golden, "image_embeds", build(imported).as_ref(), &case.keys);
    }
}

/// The tokeniser that comes with open_clip's files cleans as open_clip does, that of a Hugging Face
/// folder does what its file says.
#[test]
fn tokenisers_come_with_their_layout() {
    let Some(folder) = harness::topic("models") else { return };
    let at = |name: &str, path: &str| (name.to_owned(), folder.join(path));
    for (config, cleaning) in [
        (vec![at("weights.pt", "openai-vit-tiny.pt")], Cleaning::OpenClip),
        (
            vec![
                at("config.json", "hf-clip-tiny/config.json"),
                at("model.safetensors", "hf-clip-tiny/model.safetensors"),
            ],
            Cleaning::AsStored,
        ),
    ] {
        let tokenizer = at("tokenizer.json", "clip-bpe/tokenizer.json");
        let files = CheckpointFiles::new(config.into_iter().chain([tokenizer]));
        assert_eq!(load(&files, &Json::Null).tokenizer.unwrap().cleaning(), cleaning);
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(folder) = harness::topic("models") else { return };
    let message = |files: &[(&str, &str)], overrides: Json| {
        let files = files.iter().map(|(name, path)| ((*name).to_owned(), folder.join(path)));
        let options = ImportOptions { config: overrides, ..ImportOptions::default() };
        let imported = import(&CheckpointFiles::new(files), &options, &Device::Cpu);
        match imported.and_then(|imported| imported.config.build(imported.tensors, Trainable::Frozen)) {
            Ok(_) => panic!("it was accepted"),
            Err(error) => error.to_string(),
        }
    };
    let openai = ("a.pt", "openai-vit-tiny.pt");
    let several = message(&[openai, ("b.pt", "openai-rn-tiny.pt")], Json::Null);
    assert!(several.contains("`a.pt`, `b.pt`"), "{several}");
    assert!(message(&[("readme.md", "README.md")], Json::Null).contains("config.json"));
    let typo = message(&[openai], json!({ "text": { "head": 3 } }));
    assert!(typo.contains("`text.head`") && typo.contains("`heads`"), "{typo}");
    // Weights of another size than the configuration: every mismatch at once.
    let files = [
        ("config.json", "hf-clip-tiny/config.json"),
        ("model.safetensors", "hf-clip-tiny/model.safetensors"),
    ];
    let sizes = message(&files, json!({ "projection_dim": 8 }));
    assert!(
        sizes.contains("text_projection.weight") && sizes.contains("visual_projection.weight"),
        "{sizes}"
    );
    // The configuration of one model beside the weights of another.
    let files = [("config.json", "hf-clip-tiny/config.json"), ("pytorch_model.bin", "openai-vit-tiny.pt")];
    let names = message(&files, Json::Null);
    assert!(
        names.contains("is missing") && names.contains("is not a tensor of this architecture"),
        "{names}"
    );
}
