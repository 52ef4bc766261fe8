//! Where models attend to image and question together.

/// The attention over the visual tokens of an image, by a question, that a model shows to a probe of
/// [`super::Mode::Observed`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JointAttention {
    /// Over visual tokens by the vector of the whole question, once or several times: the names of maps
    /// `[batch, 1, 1, visual tokens]`.
    Stacked(Vec<String>),
    /// Over pairs of visual tokens and words, glimpses as heads: the name of maps
    /// `[batch, glimpses, visual tokens, words]`, of which each sums to 1.
    Pairs(String),
}
