//! All stage kinds of the program, one line each.

use pipe_engine::Registry;
use pipe_models::device::{numerics_class, survey};
use pipe_models::{DeviceName, Precision};

/// The registry with every kind.
pub fn registry() -> Registry {
    Registry::new()
        // Of what computes without a model. Models say theirs by their parameters.
        .with_numerics(numerics_class(DeviceName::Cpu, Precision::F32))
        .with_devices(survey)
        .with(crate::ablate::Ablate)
        .with(crate::attribute::Attribute)
        .with(crate::checkpoint::Checkpoint)
        .with(crate::compare::Compare)
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
        .with(crate::phantom::IngestPhantom)
        .with(crate::report::Report)
        .with(crate::retrieve::EvaluateRetrieve)
        .with(crate::score::Score)
        .with(crate::tokenize::Tokenize)
        .with(crate::tokenizer::TrainTokenizer)
}
