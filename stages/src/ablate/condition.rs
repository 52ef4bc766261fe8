//! The conditions under which a model is asked again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a model, or something simpler in its place, is given to see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing: the most frequent class of the training split.
    Majority,
    /// Nothing: candidates in random order (in closed form).
    Random,
    /// The most frequent training answer to questions of its answer type.
    AnswerTypePrior,
    /// The most frequent training answer to questions of its type and answer type.
    QuestionTypePrior,
    /// The most frequent training answer to the very question; to its answer type where training does not have it.
    QuestionLookup,
    /// The question alone: the input `question_only`, trained with `modality = "question"`.
    QuestionOnly,
    /// Mean, deviation and a histogram of each image's brightness, in a logistic regression: finds
    /// shortcuts of acquisition.
    ImageStatistics,
    /// The image alone: a linear probe on the tower that `init` names, with the head's budget; of questions, the
    /// input `image_only`, trained with `modality = "image"`.
    ImageOnly,
    /// The text of each sample alone, such as the report of a scan: a linear probe on the text tower that `init` names.
    TextOnly,
    /// The prompts alone: zero-shot, with the mean training image in the place of every image.
    TextPrior,
    /// The mean training image in the place of every image.
    ImageMean,
    /// A black image in the place of every image.
    BlankImage,
    /// The image of another sample.
    ShuffledImage,
    /// The image of another sample of the same stratum: what is left is lost to the details of images.
    ShuffledWithinStratum,
    /// The question of another sample.
    ShuffledQuestion,
    /// The image in pieces, which change places: texture without shape.
    PatchShuffled,
    /// The rim of the image around the mean training image.
    BorderOnly,
    /// Zero-shot, with random words in the place of those that tell the classes apart.
    NonsensePrompts,
    /// Zero-shot, with the texts of all classes for each of them.
    UninformativePrompts,
    /// Candidates by their mean similarity to the training queries: the same order for every query.
    Popularity,
    /// Candidates by agreement of the stratum that the image suggests with the one the words suggest.
    Metadata,
    /// The image's keywords, through the text tower, in the place of the image.
    Keywords,
    /// Candidates of the query's stratum only: what is found beyond the stratum.
    WithinStratum,
}

impl Condition {
    /// All, in the order of tables.
    pub(super) const ALL: [Self; 23] = [
        Self::Majority,
        Self::Random,
        Self::AnswerTypePrior,
        Self::QuestionTypePrior,
        Self::QuestionLookup,
        Self::QuestionOnly,
        Self::ImageStatistics,
        Self::ImageOnly,
        Self::TextOnly,
        Self::TextPrior,
        Self::ImageMean,
        Self::BlankImage,
        Self::ShuffledImage,
        Self::ShuffledWithinStratum,
        Self::ShuffledQuestion,
        Self::PatchShuffled,
        Self::BorderOnly,
        Self::NonsensePrompts,
        Self::UninformativePrompts,
        Self::Popularity,
        Self::Metadata,
        Self::Keywords,
        Self::WithinStratum,
    ];

    /// The name in parameters and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Majority => "majority",
            Self::Random => "random",
            Self::AnswerTypePrior => "answer_type_prior",
            Self::QuestionTypePrior => "question_type_prior",
            Self::QuestionLookup => "question_lookup",
            Self::QuestionOnly => "question_only",
            Self::ImageStatistics => "image_statistics",
            Self::ImageOnly => "image_only",
            Self::TextOnly => "text_only",
            Self::TextPrior => "text_prior",
            Self::ImageMean => "image_mean",
            Self::BlankImage => "blank_image",
            Self::ShuffledImage => "shuffled_image",
            Self::ShuffledWithinStratum => "shuffled_within_stratum",
            Self::ShuffledQuestion => "shuffled_question",
            Self::PatchShuffled => "patch_shuffled",
            Self::BorderOnly => "border_only",
            Self::NonsensePrompts => "nonsense_prompts",
            Self::UninformativePrompts => "uninformative_prompts",
            Self::Popularity => "popularity",
            Self::Metadata => "metadata",
            Self::Keywords => "keywords",
            Self::WithinStratum => "within_stratum",
        }
    }

    /// How its figures are set against the full model's.
    pub(super) fn role(self) -> Role {
        match self {
            Self::Majority | Self::Random => Role::Floor,
            Self::ImageOnly | Self::TextOnly | Self::TextPrior | Self::QuestionOnly => Role::Monomodal,
            Self::AnswerTypePrior | Self::QuestionTypePrior | Self::QuestionLookup => Role::Simpler,
            Self::ImageStatistics | Self::Popularity | Self::Metadata | Self::Keywords => Role::Simpler,
            Self::ShuffledImage | Self::ShuffledWithinStratum | Self::ShuffledQuestion => Role::Permuted,
            Self::ImageMean
            | Self::BlankImage
            | Self::PatchShuffled
            | Self::BorderOnly
            | Self::NonsensePrompts
            | Self::UninformativePrompts => Role::Replaced,
            Self::WithinStratum => Role::Restricted,
        }
    }
}

/// How the figures of a condition are set against the full model's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    /// The model as it is.
    Full,
    /// What needs no input at all: A_0.
    Floor,
    /// A model of one modality: what synergy is counted beyond.
    Monomodal,
    /// Something simpler than a model of one modality.
    Simpler,
    /// The full model, an input permuted between samples.
    Permuted,
    /// The full model, an input replaced.
    Replaced,
    /// The full model on an easier question.
    Restricted,
}

/// A condition that the inputs do not allow, with the reason.
pub(super) type Refused = String;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_parameters_and_none_is_left_out() {
        for condition in Condition::ALL {
            assert_eq!(serde_json::json!(condition), condition.name());
        }
        let mut all = Condition::ALL.to_vec();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), Condition::ALL.len());
    }
}
