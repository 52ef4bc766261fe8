//! The sizes of the published models.

use crate::bert::{BertConfig, BertPooling};
use crate::biomed_clip::BiomedClipConfig;
use crate::clip::{EotRule, OpenAiClipConfig, OpenAiImage, TextConfig};
use crate::ct_clip::{Adaptation, CtClipConfig, CtVitConfig, QuantiserGradient};
use crate::pmc_clip::{FusionConfig, PmcClipConfig};
use crate::resnet::{PlainResNetConfig, ResNetConfig};
use crate::vit::VisionConfig;
use crate::{Activation, ModelConfig};

/// The names that [`published`] knows.
pub const PUBLISHED: [&str; 13] = [
    "clip-vit-b-32",
    "clip-vit-b-16",
    "clip-vit-l-14",
    "clip-rn50",
    "biomed-clip",
    "pmc-clip",
    "ct-clip",
    "pubmed-bert",
    "vit-b-16",
    "resnet50",
    "resnet18",
    "medmnist-resnet18",
    "medmnist-resnet18-3d",
];

/// The configuration of a published model by name; the CLIPs in OpenAI's layout.
pub fn published(name: &str) -> Option<ModelConfig> {
    let transformer = |vision: VisionConfig, text: TextConfig, projection| {
        ModelConfig::OpenAiClip(OpenAiClipConfig {
            image: OpenAiImage::Transformer(vision),
            text,
            projection,
        })
    };
    Some(match name {
        "clip-vit-b-32" => transformer(vit_base(32, Activation::QuickGelu, 1e-5), clip_text(512), 512),
        "clip-vit-b-16" => transformer(vit_base(16, Activation::QuickGelu, 1e-5), clip_text(512), 512),
        "clip-vit-l-14" => {
            let base = vit_base(14, Activation::QuickGelu, 1e-5);
            transformer(
                VisionConfig { width: 1024, hidden: 4096, layers: 24, heads: 16, ..base },
                clip_text(768),
                768,
            )
        }
        "clip-rn50" => ModelConfig::OpenAiClip(OpenAiClipConfig {
            image: OpenAiImage::ResNet { trunk: resnet50(), pool_heads: 32 },
            text: clip_text(512),
            projection: 1024,
        }),
        "biomed-clip" => ModelConfig::BiomedClip(BiomedClipConfig {
            vision: vit_base(16, Activation::Gelu, 1e-6),
            text: BertConfig::default(),
            context: 256,
            projection: 512,
        }),
        "pmc-clip" => ModelConfig::PmcClip(PmcClipConfig {
            image: resnet50(),
            pool_heads: 32,
            text: BertConfig::default(),
            context: 77,
            pooling: BertPooling::Cls,
            projection: 768,
            fusion: Some(FusionConfig { layers: 4, heads: 8, hidden: 3072 }),
        }),
        "ct-clip" => ModelConfig::CtClip(CtClipConfig {
            vision: CtVitConfig {
                width: 512,
                codes: 8192,
                image: 480,
                slices: 240,
                patch: 20,
                patch_slices: 10,
                spatial_layers: 4,
                temporal_layers: 4,
                heads: 8,
                head_width: 32,
                hidden: 1365,
            },
            text: BertConfig::default(),
            context: 512,
            projection: 512,
            adaptation: Adaptation::Native,
            quantiser: QuantiserGradient::StraightThrough,
            classes: None,
        }),
        "pubmed-bert" => ModelConfig::Bert(BertConfig::default()),
        "vit-b-16" => ModelConfig::TimmVit(vit_base(16, Activation::Gelu, 1e-6)),
        "resnet50" => ModelConfig::ResNet(resnet50().into()),
        "resnet18" => ModelConfig::ResNet(PlainResNetConfig::resnet18()),
        "medmnist-resnet18" => ModelConfig::ResNet(PlainResNetConfig::medmnist()),
        "medmnist-resnet18-3d" => ModelConfig::ResNet(PlainResNetConfig::medmnist_3d()),
        _ => return None,
    })
}

fn vit_base(patch: usize, activation: Activation, epsilon: f64) -> VisionConfig {
    VisionConfig {
        width: 768,
        hidden: 3072,
        layers: 12,
        heads: 12,
        image: 224,
        patch,
        channels: 3,
        activation,
        epsilon,
    }
}

fn clip_text(width: usize) -> TextConfig {
    TextConfig {
        vocabulary: 49408,
        width,
        hidden: 4 * width,
        layers: 12,
        heads: width / 64,
        positions: 77,
        activation: Activation::QuickGelu,
        epsilon: 1e-5,
        eot: EotRule::Greatest,
        bos: 49406,
        pad: 0,
    }
}

fn resnet50() -> ResNetConfig {
    ResNetConfig { width: 64, blocks: [3, 4, 6, 3], image: 224 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_configuration_that_reads_back() {
        for name in PUBLISHED {
            let config = published(name).unwrap_or_else(|| panic!("{name} is published"));
            assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config, "{name}");
        }
        assert_eq!(published("gpt"), None);
    }
}
