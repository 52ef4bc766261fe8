//! The table of methods and families of models in `docs/attribution.md`: it says what the stage does.

use pipe_models::Activation;
use pipe_models::clip::{EotRule, OpenAiClipConfig, OpenAiImage, TextConfig};
use serde_json::json;

use super::*;
use crate::finetune::TrainMasker;
use crate::testing::{Made, run};

/// The families, as the columns of the table name them.
const FAMILIES: [&str; 4] =
    ["vision transformer", "CLIP's residual network", "residual network with a mean", "CT-ViT, of volumes"];

/// A method does what the table says, for the reason that the table gives.
#[test]
fn the_table_of_methods_is_what_the_stage_does() {
    let transformer = Study::new();
    let trunk = ResNetConfig { width: 4, blocks: [1, 1, 1, 1], image: 64 };
    let text = TextConfig {
        vocabulary: 20,
        width: 8,
        hidden: 16,
        layers: 1,
        heads: 2,
        positions: 6,
        activation: Activation::QuickGelu,
        epsilon: 1e-5,
        eot: EotRule::Greatest,
        bos: 18,
        pad: 0,
    };
    let pooled = OpenAiClipConfig {
        image: OpenAiImage::ResNet { trunk: trunk.clone(), pool_heads: 2 },
        text,
        projection: 8,
    };
    let pooled = Study::new().with_network(&ModelConfig::OpenAiClip(pooled), 64, 8);
    let plain = Study::new().with_network(&ModelConfig::ResNet(trunk.into()), 64, 4 * 8 * 4);
    let flat = [transformer, pooled, plain];
    let maskers: Vec<Made> = flat.iter().map(masker).collect();
    let volumes = Volumes::new();
    let mut reasons: Vec<String> = Vec::new();
    let mut lines = vec![
        format!("| method | {} |", FAMILIES.join(" | ")),
        format!("| --- |{}", " --- |".repeat(FAMILIES.len())),
    ];
    for name in names() {
        let method: Method = serde_json::from_value(name.clone().into()).unwrap();
        let params = Params { limit: Some(1), ..small(method) };
        let mut cells: Vec<String> = flat
            .iter()
            .zip(&maskers)
            .map(|(study, masker)| {
                let mut inputs: Vec<(&str, &Artifact)> = ["images", "labels", "checkpoint"]
                    .iter()
                    .map(|name| (*name, &study.artifacts[*name]))
                    .collect();
                inputs.push(("masker", &masker["masker"]));
                status(&run(&Attribute, &serde_json::to_value(&params).unwrap(), &inputs).unwrap())
            })
            .collect();
        cells.push(volumes.status(&params));
        let cells = cells.into_iter().map(|status| match status.strip_prefix("not_applicable: ") {
            None => "yes".to_owned(),
            Some(reason) => {
                let place = reasons.iter().position(|known| known == reason).unwrap_or_else(|| {
                    reasons.push(reason.to_owned());
                    reasons.len() - 1
                });
                format!("no ({})", place + 1)
            }
        });
        lines.push(format!("| `{name}` | {} |", cells.collect::<Vec<_>>().join(" | ")));
    }
    let mut table = lines.join("\n");
    table.push('\n');
    for (number, reason) in (1..).zip(&reasons) {
        table.push_str(&format!("\n{number}. {reason}"));
    }
    let docs = include_str!("../../../../docs/attribution.md");
    assert!(docs.contains(&table), "the table in docs/attribution.md has to be\n\n{table}\n");
}

/// Settings that cost little.
fn small(method: Method) -> Params {
    Params {
        draws: 2,
        masks: 4,
        cells: 2,
        blocks: 2,
        coalitions: 12,
        descent_steps: 2,
        steps: 2,
        ..params(method, Baseline::Zero)
    }
}

fn status(made: &Made) -> String {
    let maps = read_file(&made["saliency"].single_file().unwrap().location).unwrap();
    texts(&maps, "status").unwrap()[0].clone().unwrap()
}

fn masker(study: &Study) -> Made {
    let inputs: Vec<(&str, &Artifact)> =
        ["images", "labels", "checkpoint"].iter().map(|name| (*name, &study.artifacts[*name])).collect();
    run(&TrainMasker, &json!({ "selector_epochs": 0, "epochs": 1, "width": 2 }), &inputs).unwrap()
}

/// Phantom volumes, and a CT-CLIP with a random head.
struct Volumes {
    chests: Made,
    checkpoint: Artifact,
    _folder: TempDir,
}

impl Volumes {
    fn new() -> Self {
        let params = json!({ "domain": "volume", "seed": 5, "size": 36, "train": 1, "val": 0, "test": 1 });
        let chests = run(&IngestPhantom, &params, &[]).unwrap();
        let text = r#"{"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 12}"#;
        let vision = CtVitConfig {
            width: 16,
            codes: 8,
            image: 16,
            slices: 4,
            patch: 8,
            patch_slices: 2,
            spatial_layers: 1,
            temporal_layers: 1,
            heads: 2,
            head_width: 8,
            hidden: 12,
        };
        let config = CtClipConfig {
            vision,
            text: BertConfig::from_json(text).unwrap(),
            context: 8,
            projection: 8,
            adaptation: Adaptation::Native,
            quantiser: QuantiserGradient::StraightThrough,
            classes: None,
        };
        let network = ModelConfig::CtClip(config).random(3, &DEVICE, Trainable::Frozen).unwrap();
        let labels = crate::table::metadata(&chests["labels"]).unwrap();
        let classes: Vec<String> = serde_json::from_str(&labels["label_names"]).unwrap();
        let head = Head {
            input: HeadInput::Embedding,
            weight: Tensor::ones((classes.len(), 8), candle_core::DType::F32, &DEVICE).unwrap(),
            bias: Tensor::zeros(classes.len(), candle_core::DType::F32, &DEVICE).unwrap(),
            description: HeadDescription { classes, task: labels["task"].clone() },
        };
        let folder = TempDir::new().unwrap();
        let model = Model::new(network, None, None).with_head(head);
        model.save(&mut OutputWriter::new(folder.path().to_owned())).unwrap();
        Self { chests, checkpoint: artifact("checkpoint", folder.path()), _folder: folder }
    }

    fn status(&self, params: &Params) -> String {
        let inputs = [("images", &self.chests["volumes"]), ("checkpoint", &self.checkpoint)];
        status(&run(&Attribute, &serde_json::to_value(params).unwrap(), &inputs).unwrap())
    }
}
