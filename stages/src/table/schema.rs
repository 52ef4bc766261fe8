//! The schema of every table that stages exchange: one per modality, not one per data set.

use super::column::Column;

/// The type of a column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the variants are those of `Column`")]
pub enum Kind {
    Utf8,
    /// Text with few different values: written with a dictionary.
    Category,
    Bool,
    Int32,
    Int64,
    Float64,
    ListInt64,
    ListInt32,
    ListFloat32,
    /// Lists of three: sizes along the axes of a volume.
    ThreeInt32,
    /// Lists of three: lengths along the axes of a volume.
    ThreeFloat32,
    ListUtf8,
    Image,
    Binary,
}

impl Kind {
    /// Whether a value is a list of three.
    pub(crate) fn is_three(self) -> bool {
        matches!(self, Self::ThreeInt32 | Self::ThreeFloat32)
    }

    /// Whether a column is of this type.
    pub(crate) fn fits(self, column: &Column) -> bool {
        matches!(
            (self, column),
            (Self::Utf8 | Self::Category, Column::Utf8(_))
                | (Self::Bool, Column::Bool(_))
                | (Self::Int32, Column::Int32(_))
                | (Self::Int64, Column::Int64(_))
                | (Self::Float64, Column::Float64(_))
                | (Self::ListInt64, Column::ListInt64(_))
                | (Self::ListInt32, Column::ListInt32(_))
                | (Self::ThreeInt32, Column::ListInt32(_))
                | (Self::ListFloat32 | Self::ThreeFloat32, Column::ListFloat32(_))
                | (Self::ListUtf8, Column::ListUtf8(_))
                | (Self::Image, Column::Image(_))
                | (Self::Binary, Column::Binary(_))
        )
    }
}

/// A column of a schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Whether every row has a value. On disk every column is nullable all the same.
    pub required: bool,
}

/// A schema: columns in their order; a table may have further columns after them.
#[derive(Clone, Debug)]
pub struct TableSchema {
    /// Its name: part of every digest.
    pub name: &'static str,
    /// Raised when columns change: part of every digest.
    pub version: i64,
    /// The columns.
    pub fields: &'static [Field],
    /// Rows of a row group.
    pub row_group: usize,
}

const fn must(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: true }
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, required: false }
}

macro_rules! schema {
    ($(#[$doc:meta])* $function:ident, $name:literal, $row_group:literal, [$($field:expr),* $(,)?]) => {
        schema!($(#[$doc])* $function, $name, 1, $row_group, [$($field),*]);
    };
    ($(#[$doc:meta])* $function:ident, $name:literal, $version:literal, $row_group:literal, [$($field:expr),* $(,)?]) => {
        $(#[$doc])*
        pub const fn $function() -> TableSchema {
            const FIELDS: &[Field] = &[$($field),*];
            TableSchema { name: $name, version: $version, fields: FIELDS, row_group: $row_group }
        }
    };
}

impl TableSchema {
    schema!(
        /// One row per distinct image.
        images, "images", 1000, [
            must("image_id", Kind::Utf8), must("split", Kind::Category), must("image", Kind::Image),
            must("width", Kind::Int32), must("height", Kind::Int32), must("channels", Kind::Int32),
            must("sha", Kind::Utf8), may("modality", Kind::Category), may("region", Kind::Category),
            may("licence", Kind::Category), may("group_id", Kind::Utf8),
        ]
    );
    schema!(
        /// One row per distinct volume: voxels in C order, little endian.
        volumes, "volumes", 2, 100, [
            must("image_id", Kind::Utf8), must("split", Kind::Category), must("voxels", Kind::Binary),
            must("dtype", Kind::Category), must("shape", Kind::ThreeInt32), may("spacing", Kind::ThreeFloat32),
            must("sha", Kind::Utf8), may("modality", Kind::Category), may("region", Kind::Category),
            may("licence", Kind::Category), may("group_id", Kind::Utf8),
        ]
    );
    schema!(
        /// How alike two maps of one image are.
        similarities, "similarities", 10000, [
            must("id", Kind::Utf8), may("first_target", Kind::Category), may("second_target", Kind::Category),
            must("metric", Kind::Category), may("value", Kind::Float64), may("reason", Kind::Utf8),
        ]
    );
    schema!(
        /// What an ingest counted: samples, classes, sizes, and rows that two splits share.
        checks, "checks", 10000, [
            must("check", Kind::Category), may("split", Kind::Category), may("other", Kind::Category),
            may("value", Kind::Utf8), must("count", Kind::Int64), may("examples", Kind::ListUtf8),
        ]
    );
    schema!(
        /// Boxes in pixels from the top left.
        boxes, "boxes", 10000, [
            must("image_id", Kind::Utf8), must("split", Kind::Category), must("region", Kind::Category),
            must("x", Kind::Float64), must("y", Kind::Float64), must("width", Kind::Float64),
            must("height", Kind::Float64),
        ]
    );
    schema!(
        /// Facts of a knowledge graph.
        knowledge, "knowledge", 10000, [
            must("head", Kind::Utf8), must("relation", Kind::Utf8), must("tail", Kind::Utf8),
            may("lang", Kind::Category), may("graph", Kind::Category),
        ]
    );
    schema!(
        /// Rows that an ingest left out.
        rejects, "rejects", 10000, [
            must("file", Kind::Utf8), may("row", Kind::Int64), may("id", Kind::Utf8), must("reason", Kind::Utf8),
        ]
    );
    schema!(
        /// Class labels: a list even where it holds one.
        labels, "labels", 10000, [
            must("image_id", Kind::Utf8), must("split", Kind::Category), must("label", Kind::ListInt64),
        ]
    );
    schema!(
        /// Captions; several rows per image are allowed.
        captions, "captions", 10000, [
            must("caption_id", Kind::Int64), must("image_id", Kind::Utf8), must("split", Kind::Category),
            must("caption", Kind::Utf8), may("cuis", Kind::ListUtf8), may("keywords", Kind::ListUtf8),
        ]
    );
    schema!(
        /// Questions with answers as published.
        questions, "questions", 10000, [
            must("qid", Kind::Int64), must("image_id", Kind::Utf8), must("split", Kind::Category),
            must("question", Kind::Utf8), must("answer", Kind::Utf8), may("answer_norm", Kind::Utf8),
            may("answer_type", Kind::Category), may("question_type", Kind::Category),
            may("question_types", Kind::ListUtf8), may("phrase_type", Kind::Category), may("lang", Kind::Category),
            may("content_type", Kind::Category), may("base_type", Kind::Category), may("triple", Kind::ListUtf8),
            may("link_id", Kind::Utf8), may("organ", Kind::Category),
        ]
    );
    schema!(
        /// Masks of regions as PNG files; what is not 0 is inside.
        masks, "masks", 1000, [
            must("image_id", Kind::Utf8), must("split", Kind::Category), may("region", Kind::Category),
            must("mask", Kind::Image), must("pixels", Kind::Int64),
        ]
    );
    schema!(
        /// Token ids of texts.
        tokens, "tokens", 10000, [
            must("id", Kind::Utf8), must("split", Kind::Category), must("ids", Kind::ListInt32),
            must("length", Kind::Int32), must("truncated", Kind::Bool),
        ]
    );
    schema!(
        /// Figures that follow from planted truths.
        expected, "expected", 10000, [
            must("quantity", Kind::Category), may("split", Kind::Category), may("subset", Kind::Category),
            may("value", Kind::Float64), may("lower", Kind::Float64), may("upper", Kind::Float64),
            may("formula", Kind::Utf8),
        ]
    );
    schema!(
        /// One row per sample.
        predictions, "predictions", 10000, [
            must("id", Kind::Utf8), must("split", Kind::Category), may("protocol", Kind::Category),
            may("patient", Kind::Utf8), may("image", Kind::Utf8), may("article", Kind::Utf8),
            must("target", Kind::ListInt32), must("prediction", Kind::ListInt32),
            must("scores", Kind::ListFloat32), must("correct", Kind::Bool), may("answer", Kind::Utf8),
            may("answer_type", Kind::Category), may("question_type", Kind::Category),
        ]
    );
    schema!(
        /// One row per figure.
        metrics, "metrics", 10000, [
            must("task", Kind::Category), may("split", Kind::Category), may("modality", Kind::Category),
            may("method", Kind::Category), must("metric", Kind::Category), may("k", Kind::Int64),
            may("class", Kind::Category), may("value", Kind::Float64), may("ci_low", Kind::Float64),
            may("ci_high", Kind::Float64), must("n", Kind::Int64), may("seed", Kind::Int64),
            may("protocol", Kind::Category), may("matching", Kind::Category), may("reason", Kind::Utf8),
        ]
    );
    schema!(
        /// What a query answered: whatever columns it names.
        query, "query", 10000, []
    );
    schema!(
        /// One row per retrieval query; ranks from 0.
        ranks, "ranks", 10000, [
            must("id", Kind::Utf8), must("direction", Kind::Category), must("rank", Kind::Int64),
            must("rank_optimistic", Kind::Int64), must("rank_pessimistic", Kind::Int64),
            must("pool_size", Kind::Int64), must("pool_hash", Kind::Category),
        ]
    );
    schema!(
        /// One row per sample, method and explanation metric.
        attribution_scores, "attribution_scores", 10000, [
            must("id", Kind::Utf8), must("method", Kind::Category), must("metric", Kind::Category),
            may("baseline", Kind::Category), may("value", Kind::Float64), may("mask_share", Kind::Float64),
            must("mode", Kind::Category), may("reason", Kind::Utf8),
        ]
    );
    schema!(
        /// Learning curves.
        training_log, "training_log", 10000, [
            must("epoch", Kind::Int64), must("step", Kind::Int64), must("split", Kind::Category),
            must("metric", Kind::Category), may("value", Kind::Float64),
        ]
    );
}
