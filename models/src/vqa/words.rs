//! Words as vectors: tables whose padding row never changes.

use candle_core::{D, DType, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::checkpoint::CheckpointError;
use crate::initial::Start;
use crate::sizes::check_sizes;
use crate::weights::Weights;

/// Word tables.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordsConfig {
    /// Words of the vocabulary. The row behind them is that of the padding.
    pub words: usize,
    /// Whether a word that no training question has is a row of its own, behind the padding.
    #[serde(default)]
    pub own_unknown: bool,
    /// Values of a word in one table.
    #[serde(default = "default_width")]
    pub width: usize,
    /// The table beside the first.
    #[serde(default)]
    pub second: SecondTable,
}

/// What stands beside a word's vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondTable {
    /// A second table that is trained, as the mixture of co-occurring words is.
    #[default]
    Trained,
    /// A second table that stays as it is.
    Frozen,
    /// Nothing.
    None,
}

fn default_width() -> usize {
    300
}

impl WordsConfig {
    /// Tables of this many words by the published widths.
    pub fn new(words: usize) -> Self {
        Self { words, own_unknown: false, width: default_width(), second: SecondTable::Trained }
    }

    /// The id that fills a question up.
    pub fn padding(&self) -> u32 {
        self.words as u32
    }

    /// Rows of a table.
    pub fn rows(&self) -> usize {
        self.words + 1 + usize::from(self.own_unknown)
    }

    /// Values of a word in all tables.
    pub fn embedded(&self) -> usize {
        if self.second == SecondTable::None { self.width } else { 2 * self.width }
    }
}

/// One or two word tables side by side.
#[derive(Clone, Debug)]
pub struct WordTables {
    /// `[rows, width]` each.
    tables: Vec<Tensor>,
    padding: u32,
}

/// The deviation of rows that are drawn.
const DEVIATION: f64 = 0.1;

impl WordTables {
    /// Takes `{name}.emb.weight` and, with a second table, `{name}.emb_.weight`.
    ///
    /// # Errors
    /// Whatever the device reports; mismatches are told by [`Weights::finish`].
    pub fn load(
        weights: &mut Weights,
        name: &str,
        config: &WordsConfig,
    ) -> std::result::Result<Self, CheckpointError> {
        check_sizes(&[("words", config.words), ("words.width", config.width)])?;
        let shape = [config.rows(), config.width];
        let start = Start::Table { deviation: DEVIATION, zero: config.words };
        let mut tables = vec![weights.begin(&format!("{name}.emb.weight"), &shape, start)?];
        let second = format!("{name}.emb_.weight");
        match config.second {
            SecondTable::Trained => tables.push(weights.begin(&second, &shape, start)?),
            SecondTable::Frozen => tables.push(weights.frozen(&second, &shape, start)?),
            SecondTable::None => {}
        }
        Ok(Self { tables, padding: config.padding() })
    }

    /// Word ids `[batch, length]` (u32) to `[batch, length, all widths]`. No gradient reaches the padding's row.
    ///
    /// # Errors
    /// If an id has no row.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let ids = tokens.to_dtype(DType::U32)?.flatten_all()?;
        let seen = ids.ne(self.padding)?;
        let rows = |table: &Tensor| {
            let rows = table.index_select(&ids, 0)?;
            let seen = seen.to_dtype(rows.dtype())?.reshape((batch * length, 1))?;
            // The padding's row takes part as a constant.
            let constant = rows.detach().broadcast_mul(&seen.affine(-1.0, 1.0)?)?;
            rows.broadcast_mul(&seen)? + constant
        };
        let rows = self.tables.iter().map(rows).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&rows, D::Minus1)?.reshape((batch, length, ()))
    }
}

/// Which of `tokens` `[batch, length]` are words and no padding: 1 or 0 (f32), `[batch, length]`.
pub(super) fn seen_words(tokens: &Tensor, padding: u32) -> Result<Tensor> {
    tokens.to_dtype(DType::U32)?.ne(padding)?.to_dtype(DType::F32)
}
