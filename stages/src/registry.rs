//! All stage kinds of the program, one line each.

use pipe_engine::{Registry, Template};
use pipe_models::device::{numerics_class, survey};
use pipe_models::{DeviceName, Precision};

/// The registry with every kind.
pub fn registry() -> Registry {
    Registry::new()
        .with_figures(crate::artifact::METRICS, crate::metrics::figures)
        .with_figures(crate::artifact::CHECKS, crate::ingest::checks::figures)
        .with_aggregates(&[
            crate::artifact::EXPECTED,
            crate::artifact::METRICS,
            crate::artifact::TENSORBOARD,
            crate::artifact::TRAINING_LOG,
        ])
        .with_tables(crate::query::TABLES)
        .with_sheets(crate::report::sheets)
        .with_comparison(crate::comparison::differences)
        // Of what computes without a model. Models say theirs by their parameters.
        .with_numerics(numerics_class(DeviceName::Cpu, Precision::F32))
        .with_devices(survey)
        .with(crate::ablate::Ablate)
        .with(crate::attribute::Attribute)
        .with(crate::attribute_text::AttributeText)
        .with(crate::attribute_vqa::AttributeVqa)
        .with(crate::card::Card)
        .with(crate::card::ModelCard)
        .with(crate::checkpoint::Checkpoint)
        .with(crate::command::Command)
        .with(crate::compare::Compare)
        .with(crate::compare_saliency::CompareSaliency)
        .with(crate::corrupt::Corrupt)
        .with(crate::embed::Embed)
        .with(crate::evaluate_classify::EvaluateClassify)
        .with(crate::finetune::FinetuneClassify)
        .with(crate::finetune::FinetuneContrastive)
        .with(crate::ingest::IngestCtRate)
        .with(crate::ingest::IngestHuggingFace)
        .with(crate::ingest::IngestImages)
        .with(crate::ingest::IngestMedmnist)
        .with(crate::ingest::IngestPmc)
        .with(crate::ingest::IngestRoco)
        .with(crate::ingest::IngestSlake)
        .with(crate::ingest::IngestVqaRad)
        .with(crate::finetune::TrainMasker)
        .with(crate::mosaic::Mosaic)
        .with(crate::overlap::Overlap)
        .with(crate::phantom::IngestPhantom)
        .with(crate::finetune::PretrainAutoencoder)
        .with(crate::finetune::PretrainMeta)
        .with(crate::query::RunQuery)
        .with(crate::report::Report)
        .with(crate::resplit::Resplit)
        .with(crate::retrieve::EvaluateRetrieve)
        .with(crate::evaluate_vqa::EvaluateVqa)
        .with(crate::finetune::FinetuneVqa)
        .with(crate::score::Score)
        .with(crate::score_grid::ScoreGrid)
        .with(crate::score_reliability::ScoreReliability)
        .with(crate::score_text::ScoreText)
        .with(crate::tokenize::Tokenize)
        .with(crate::tokenizer::TrainTokenizer)
        .with_template(Template {
            name: "classify",
            summary: "does a model classify better when it has seen captions first?",
            text: include_str!("../templates/classify.toml"),
        })
        .with_template(Template {
            name: "retrieval",
            summary: "does a model find the caption of an image, and the image of a caption?",
            text: include_str!("../templates/retrieval.toml"),
        })
        .with_template(Template {
            name: "bias",
            summary: "how much of a score is owed to something else than the disease?",
            text: include_str!("../templates/bias.toml"),
        })
        .with_template(Template {
            name: "vqa",
            summary: "does a model look at the image, or does the question give the answer away?",
            text: include_str!("../templates/vqa.toml"),
        })
        .with_template(Template {
            name: "attribution",
            summary: "do explanations point at the lesion?",
            text: include_str!("../templates/attribution.toml"),
        })
        .with_template(Template {
            name: "labels",
            summary: "what if an image shows several findings at once, or grades in an order?",
            text: include_str!("../templates/labels.toml"),
        })
}
