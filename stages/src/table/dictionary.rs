//! The dictionary of result tables: what each column means, made of the schemas themselves.

use super::schema::{Field, Kind, TableSchema};

/// Further columns that some stages add to a schema: name, type, meaning.
type More = &'static [(&'static str, &'static str, &'static str)];

/// A table of the dictionary: its schema, where it comes from, and what else its stages may add.
struct Entry {
    schema: TableSchema,
    what: &'static str,
    more: More,
}

/// Tables of Parquet.
const ENTRIES: &[Entry] = &[
    Entry {
        schema: TableSchema::metrics(),
        what: "Figures with intervals, one row each: every evaluation, comparison and ablation writes this one table.",
        more: &[
            ("subgroup", "category", "the subgroup that the figure is of; null: all samples"),
            ("dataset", "category", "the data set, where one table has figures of several"),
        ],
    },
    Entry {
        schema: TableSchema::predictions(),
        what: "Predictions, one row per sample: what every later figure is computed from.",
        more: &[
            ("question", "text", "the question (questions about images)"),
            ("predicted_answer", "text", "the answer of the model, as text"),
            ("candidates", "list of text", "the likeliest answers, in the order of `scores`"),
            ("phrase_type", "category", "how the question was phrased, as published"),
            (
                "training_twin",
                "bool",
                "whether MEVF trained on a templated wording of the question (VQA-RAD)",
            ),
            ("(subgroup)", "text", "the column that `subgroup` named, under its own name"),
            ("condition", "category", "what the model was given instead (ablations)"),
            ("draw", "int64", "the number of the random draw of a condition"),
            ("rank", "int64", "the rank of the match, from 0 (ablated retrieval)"),
        ],
    },
    Entry { schema: TableSchema::ranks(), what: "Retrieval ranks, one row per query.", more: &[] },
    Entry {
        schema: TableSchema::attribution_scores(),
        what: "Scores of explanations, one row per sample, method and metric.",
        more: &[
            ("target", "category", "the class that was explained"),
            ("map_baseline", "category", "the reference image that the map was made with"),
            ("score", "category", "the score of the model that the metric follows"),
            ("better", "category", "which way the metric is better: `higher`, `lower`, or `none`"),
            ("parameters", "json", "the parameters that the value depends on"),
            ("correct", "bool", "whether the model is right about the sample; null: not known"),
            (
                "group_id",
                "text",
                "what the image belongs to, such as a patient: intervals are drawn over these",
            ),
            (
                "step",
                "int64",
                "of metrics `..._step`: the layers that were drawn anew, or which one; null: no such metric",
            ),
            (
                "kept_share",
                "float64",
                "of robustness: the share of changed images whose predicted class stayed; null: no such metric",
            ),
        ],
    },
    Entry {
        schema: TableSchema::similarities(),
        what: "How alike two maps of an image are, one row per image and measure.",
        more: &[],
    },
    Entry {
        schema: TableSchema::training_log(),
        what: "Learning curves, one row per figure and epoch.",
        more: &[],
    },
    Entry {
        schema: TableSchema::images(),
        what: "Images, one row per distinct image. Phantoms add `truth_...`: see [phantoms](phantoms.md).",
        more: &[],
    },
    Entry { schema: TableSchema::volumes(), what: "Volumes, one row per distinct volume.", more: &[] },
    Entry { schema: TableSchema::labels(), what: "Class labels of images.", more: &[] },
    Entry {
        schema: TableSchema::captions(),
        what: "Captions of images; several per image are allowed.",
        more: &[],
    },
    Entry {
        schema: TableSchema::questions(),
        what: "Questions about images, with answers as published.",
        more: &[(
            "training_twin",
            "bool",
            "of a test question, whether MEVF trained on a templated wording of it (VQA-RAD)",
        )],
    },
    Entry { schema: TableSchema::masks(), what: "Masks of regions in images.", more: &[] },
    Entry {
        schema: TableSchema::boxes(),
        what: "Boxes around things in images, in pixels from the top left.",
        more: &[],
    },
    Entry {
        schema: TableSchema::checks(),
        what: "What an ingest counted, and what splits share.",
        more: &[],
    },
    Entry { schema: TableSchema::rejects(), what: "Rows that an ingest left out, and why.", more: &[] },
    Entry { schema: TableSchema::knowledge(), what: "Facts of a knowledge graph.", more: &[] },
    Entry { schema: TableSchema::tokens(), what: "Token ids of texts.", more: &[] },
    Entry {
        schema: TableSchema::expected(),
        what: "Figures that the planted truths of phantoms imply.",
        more: &[],
    },
];

/// Tables that open by memory map, and hold tensors.
const ARROW: &[(&str, &str, More)] = &[
    (
        "embeddings",
        "Embeddings of images or texts, one row each; `modality` and the checkpoint are in the metadata of the file.",
        &[
            ("image_id", "text", "the image, or the image that the text belongs to"),
            ("split", "text", "the split"),
            (
                "embedding",
                "tensor [width] of float32",
                "the embedding; of length 1 if `normalised` in the metadata says so",
            ),
        ],
    ),
    (
        "saliency",
        "Saliency maps, one row per image and target; method, model, layer and baseline are in the metadata of the file.",
        &[
            ("id", "text", "the image; the question or caption, with its image in `image_id`"),
            ("target_kind", "text", "what was explained: a class, or the similarity to a text"),
            ("target", "text", "the class or text that was explained"),
            ("target_index", "int32", "its number, from 0"),
            (
                "correct",
                "bool",
                "whether the model classifies the image right, of independent labels this one; null: not known",
            ),
            ("score", "float32", "the score that was explained, of the image"),
            ("score_baseline", "float32", "the same of the reference image; null: the method has none"),
            ("completeness_gap", "float32", "how far the sum of the map is from the difference of the two"),
            ("status", "text", "`ok`, `all_zero`, or `not_applicable: ` and the reason"),
            ("valid", "bool", "whether there is a map"),
            ("min", "float32", "the smallest value of the map"),
            ("max", "float32", "the largest value of the map"),
            ("sum", "float32", "the sum of the map"),
            ("saliency", "tensor [y, x] of float32", "the map, channels summed; null where `valid` is false"),
        ],
    ),
    (
        "word_saliency",
        "Values of the words of captions, one row per caption; columns as in `saliency`, and these instead of the map.",
        &[
            ("caption", "text", "the caption"),
            ("tokens", "list of text", "its words"),
            ("offsets", "list of int32", "begin and end of each word in bytes, one after the other"),
            ("values", "list of float32", "the value of each word"),
        ],
    ),
];

/// The dictionary in Markdown.
pub(crate) fn dictionary() -> String {
    let mut page = String::from(
        "# Data dictionary\n\n\
         Made by `pipe schema --tables`; a test keeps it current. Every table is a folder of Parquet files \
         (`part-00000.parquet`, ...); every column may be null in the files, and \"required\" says that none of ours is. \
         A number that is undefined is null, never NaN, with a `reason` beside it. The axes of a study (`model=...`) are \
         folders, and columns for whoever asks for hive partitions. Stages may add further columns after these.\n",
    );
    for Entry { schema, what, more } in ENTRIES {
        page.push_str(&format!("\n## `{}`\n\n{what}\n\n{HEAD}", schema.name));
        for field in schema.fields {
            let required = if field.required { "required" } else { "" };
            let meaning = meaning(schema.name, field.name).unwrap_or_default();
            page.push_str(&row(field.name, type_name(field), required, meaning));
        }
        for (name, kind, meaning) in *more {
            page.push_str(&row(name, kind, "where it applies", meaning));
        }
    }
    for (name, what, columns) in ARROW {
        page.push_str(&format!("\n## `{name}` (Arrow)\n\n{what}\n\n{HEAD}"));
        for (column, kind, meaning) in *columns {
            page.push_str(&row(column, kind, "", meaning));
        }
    }
    page
}

const HEAD: &str = "| column | type | | meaning |\n| --- | --- | --- | --- |\n";

fn row(name: &str, kind: &str, required: &str, meaning: &str) -> String {
    format!("| `{name}` | {kind} | {required} | {meaning} |\n")
}

fn type_name(field: &Field) -> &'static str {
    match field.kind {
        Kind::Utf8 => "text",
        Kind::Category => "category",
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Float64 => "float64",
        Kind::ListInt64 => "list of int64",
        Kind::ListInt32 => "list of int32",
        Kind::ListFloat32 => "list of float32",
        Kind::ThreeInt32 => "three int32",
        Kind::ThreeFloat32 => "three float32",
        Kind::ListUtf8 => "list of text",
        Kind::Image => "struct of bytes and path",
        Kind::Binary => "bytes",
    }
}

/// What a column means; in most tables the same.
fn meaning(schema: &str, column: &str) -> Option<&'static str> {
    Some(match (schema, column) {
        ("metrics", "split") => "the split that was evaluated",
        ("metrics", "modality") => {
            "what the model was given: `image`, `text`, `both`; in ablations the condition's"
        }
        ("metrics", "method") => {
            "what else tells figures of one metric apart: a direction, a condition, a test"
        }
        ("metrics", "metric") => "the name of the figure, such as `auroc` or `recall@1`",
        ("metrics", "k") => "the k of recall@k and the like",
        ("metrics", "class") => "the class that the figure is of; null: all classes",
        ("metrics", "value") => "the value; null: undefined, see `reason`",
        ("metrics", "ci_low") => "the lower bound of the 95 % interval",
        ("metrics", "ci_high") => "the upper bound of the 95 % interval",
        ("metrics", "n") => "the number of samples",
        ("metrics", "seed") => "the seed of what was drawn, if anything was",
        ("metrics", "matching") => "how answers were compared: `exact` or `normalised`",
        ("metrics" | "attribution_scores" | "similarities", "reason") => {
            "why there is no value, or what is particular about its interval"
        }
        ("metrics", "task") => "the task: `classification`, `retrieval`, `vqa`, ...",
        (_, "protocol") => "the protocol of the data set, such as `published-1797`",
        ("predictions", "id") => "the sample: an image, a question, a query",
        ("predictions", "patient") => {
            "the patient or group that the sample belongs to: intervals are drawn over these"
        }
        ("predictions", "image") => "the image of the sample",
        ("predictions", "article") => "the article that the sample comes from",
        ("predictions", "target") => "the classes that are right; for questions the number of the answer",
        ("predictions", "prediction") => "the classes that were predicted",
        ("predictions", "scores") => "the scores of the classes, or of the candidates",
        ("predictions", "correct") => "whether the prediction is right",
        ("predictions", "answer") => "the answer that is right, as text",
        ("predictions" | "questions", "answer_type") => {
            "the type of the answer as annotated: `CLOSED`, `OPEN`"
        }
        ("predictions" | "questions", "question_type") => "the type of the question as published",
        ("ranks", "id") => "the query",
        ("ranks", "direction") => "`image_to_text` or `text_to_image`",
        ("ranks", "rank") => "the rank of the best match, from 0; ties by their order in the pool",
        ("ranks", "rank_optimistic") => "the same if ties were won",
        ("ranks", "rank_pessimistic") => "the same if ties were lost",
        ("ranks", "pool_size") => "how many candidates there were",
        ("ranks", "pool_hash") => "a digest of the candidates: ranks of other pools are no comparison",
        ("similarities", "id") => "the image, or the question",
        ("similarities", "first_target") => "the class that the first map explains",
        ("similarities", "second_target") => "the class that the second map explains",
        ("similarities", "metric") => "what both maps are compared by",
        ("similarities", "value") => "how alike they are; null: see `reason`",
        ("attribution_scores", "id") => "the image",
        ("attribution_scores", "method") => "the method that made the map, or the control",
        ("attribution_scores", "metric") => "what the map was scored with",
        ("attribution_scores", "baseline") => "what took the place of pixels, where any were taken away",
        ("attribution_scores", "value") => "the score; null: see `reason`",
        ("attribution_scores", "mask_share") => {
            "the share of the image that the mask covers: what chance would score"
        }
        ("attribution_scores", "mode") => "the definition: `reference` (the paper's) or `quantus`",
        ("training_log", "epoch") => "the epoch, from 1",
        ("training_log", "step") => "the number of optimiser steps so far",
        ("training_log", "metric") => "the name of the figure, such as `loss`",
        ("training_log", "value") => "its value; null: it was not a number",
        ("images", "image") => "the encoded file; Hugging Face's `Image`",
        ("images", "width") => "in pixels",
        ("images", "height") => "in pixels",
        ("images", "channels") => "1 grey, 3 colour",
        ("images" | "volumes", "sha") => "SHA-256 of the file, or of the voxels",
        ("images" | "volumes", "modality") => "how it was taken, such as `x-ray`",
        ("images" | "volumes", "region") => "the region of the body",
        ("images" | "volumes", "licence") => "the licence of this item",
        ("images" | "volumes", "group_id") => {
            "what belongs together, such as a patient: splits and intervals respect it"
        }
        ("volumes", "voxels") => "the values in C order, little endian",
        ("volumes", "dtype") => "their type",
        ("volumes", "shape") => "depth, height, width",
        ("volumes", "spacing") => "millimetres between voxels, in the same order",
        ("labels", "label") => "the classes, as numbers from 0; a list even where it holds one",
        ("captions", "caption_id") => "the number of the caption",
        ("captions", "caption") => "the caption",
        ("captions", "cuis") => "concepts of UMLS",
        ("captions", "keywords") => "keywords",
        ("questions", "qid") => "the number of the question",
        ("questions", "question") => "the question as published",
        ("questions", "answer") => "the answer as published",
        ("questions", "answer_norm") => "the answer after normalisation",
        ("questions", "question_types") => "all types, where several are published",
        ("questions", "phrase_type") => "how it was phrased: free form or paraphrase",
        ("questions" | "knowledge", "lang") => "the language",
        ("questions", "content_type") => "what it asks about, as published",
        ("questions", "base_type") => "whether it needs knowledge beyond the image",
        ("questions", "triple") => "the fact that it needs",
        ("questions", "link_id") => "what links a question with its paraphrases",
        ("questions", "organ") => "the organ, as published",
        ("masks", "region") => "what the mask outlines",
        ("masks", "mask") => "the mask as a PNG file: what is not 0 is inside",
        ("masks", "pixels") => "how many pixels are inside",
        ("boxes", "region") => "what is in the box",
        ("boxes", "x") => "its left edge",
        ("boxes", "y") => "its upper edge",
        ("boxes", "width") => "its width",
        ("boxes", "height") => "its height",
        ("checks", "check") => "what was counted or compared",
        ("checks", "split") => "the split; null: all",
        ("checks", "other") => "the split that it was compared with",
        ("checks", "value") => "what was counted, such as a class",
        ("checks", "count") => "how many",
        ("checks", "examples") => "the first of them",
        ("rejects", "file") => "the file",
        ("rejects", "row") => "the row in it, from 1",
        ("rejects", "id") => "the item, if it has a name",
        ("rejects", "reason") => "why it was left out",
        ("knowledge", "head") => "the subject",
        ("knowledge", "relation") => "the relation",
        ("knowledge", "tail") => "the object",
        ("knowledge", "graph") => "the graph that it belongs to",
        ("tokens", "id") => "the text",
        ("tokens", "ids") => "its token ids",
        ("tokens", "length") => "their number",
        ("tokens", "truncated") => "whether the text was longer than the context",
        ("expected", "quantity") => "what is predicted",
        ("expected", "split") => "of which split; null: of all",
        ("expected", "subset") => "of which part of it",
        ("expected", "value") => "the value that follows",
        ("expected", "lower") => "the least that chance makes likely",
        ("expected", "upper") => "the most that chance makes likely",
        ("expected", "formula") => "how it follows",
        (_, "image_id") => "the image",
        (_, "split") => "`train`, `val` or `test`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_explained() {
        for Entry { schema, .. } in ENTRIES {
            for field in schema.fields {
                assert!(meaning(schema.name, field.name).is_some(), "{}.{}", schema.name, field.name);
            }
        }
        // A pipe would end the cell.
        assert!(
            dictionary()
                .lines()
                .filter(|line| line.starts_with("| "))
                .all(|line| line.matches('|').count() == 5)
        );
    }
}
