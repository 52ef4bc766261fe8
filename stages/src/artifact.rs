//! The types of the artifacts that flow between stages.

use pipe_engine::ArtifactType;

/// Images with their split, one row per distinct image.
pub const IMAGES: ArtifactType = ArtifactType("table<images>");
/// Volumes with their split, one row per distinct volume.
pub const VOLUMES: ArtifactType = ArtifactType("table<volumes>");
/// Class labels of images.
pub const LABELS: ArtifactType = ArtifactType("table<labels>");
/// Captions of images.
pub const CAPTIONS: ArtifactType = ArtifactType("table<captions>");
/// Questions about images, with answers.
pub const QUESTIONS: ArtifactType = ArtifactType("table<questions>");
/// Masks of regions in images.
pub const MASKS: ArtifactType = ArtifactType("table<masks>");
/// The region of each voxel of a volume.
pub const VOLUME_MASKS: ArtifactType = ArtifactType("table<volume_masks>");
/// What an ingest counted, and what splits share.
pub const CHECKS: ArtifactType = ArtifactType("table<checks>");
/// Boxes around things in images.
pub const BOXES: ArtifactType = ArtifactType("table<boxes>");
/// A folder that stands alone: tables by split, with descriptions for people and machines.
pub const DATASET: ArtifactType = ArtifactType("dataset");
/// A model with its card: a folder that stands alone.
pub const MODEL_FOLDER: ArtifactType = ArtifactType("model_folder");
/// The answer of a query.
pub const QUERY: ArtifactType = ArtifactType("table<query>");
/// Facts, one row each.
pub const KNOWLEDGE: ArtifactType = ArtifactType("table<knowledge>");
/// Contact sheets: the first images of each split as PNG files.
pub const SHEETS: ArtifactType = ArtifactType("sheets");
/// What an ingest left out, and why.
pub const REJECTS: ArtifactType = ArtifactType("table<rejects>");
/// Token ids of texts.
pub const TOKENS: ArtifactType = ArtifactType("table<tokens>");
/// Figures that a generator's planted truths imply.
pub const EXPECTED: ArtifactType = ArtifactType("table<expected>");
/// Predictions, one row per sample.
pub const PREDICTIONS: ArtifactType = ArtifactType("table<predictions>");
/// Figures with confidence intervals, one row per figure.
pub const METRICS: ArtifactType = ArtifactType("table<metrics>");
/// Retrieval ranks, one row per query.
pub const RANKS: ArtifactType = ArtifactType("table<ranks>");
/// Scores of explanations, one row per sample, method and metric.
pub const ATTRIBUTION_SCORES: ArtifactType = ArtifactType("table<attribution_scores>");
/// How alike two maps of an image are, one row per image and measure.
pub const SIMILARITIES: ArtifactType = ArtifactType("table<similarities>");
/// Learning curves, one row per figure and epoch.
pub const TRAINING_LOG: ArtifactType = ArtifactType("table<training_log>");
/// Learning curves as an event file of TensorBoard.
pub const TENSORBOARD: ArtifactType = ArtifactType("tensorboard");
/// A model: configuration, tensors, tokeniser, preprocessing; perhaps a head.
pub const CHECKPOINT: ArtifactType = ArtifactType("checkpoint");
/// A model that answers questions: description, tensors, the files of its image encoder.
pub const ANSWER_MODEL: ArtifactType = ArtifactType("answer_model");
/// A network that finds what a classifier sees a class by: description and tensors.
pub const MASKER: ArtifactType = ArtifactType("masker");
/// Weights of the small networks by which MEVF sees an image.
pub const IMAGE_WEIGHTS: ArtifactType = ArtifactType("image_weights");
/// A tokeniser: `tokenizer.json`.
pub const TOKENIZER: ArtifactType = ArtifactType("tokenizer");
/// Embeddings as an Arrow file.
pub const EMBEDDINGS: ArtifactType = ArtifactType("embeddings");
/// Saliency maps as an Arrow file.
pub const SALIENCY: ArtifactType = ArtifactType("saliency");
/// Words of captions with their values, as an Arrow file.
pub const WORD_SALIENCY: ArtifactType = ArtifactType("word_saliency");
/// A page for people.
pub const REPORT: ArtifactType = ArtifactType("report");
