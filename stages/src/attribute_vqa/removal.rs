//! What an answer loses without the words, and the patches, that explain it.

use pipe_attribution::Evaluator;
use pipe_attribution::metrics::removals;
use pipe_engine::StageError;
use pipe_models::random::Key;

use super::Removal;
use super::score::Layout;
use super::shares::presences;
use crate::pieces::{PieceScore, no_piece_scores, piece_scores};

/// What goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pieces {
    /// Words of the question, the image whole.
    Words,
    /// Patches of the image, the question whole.
    Patches,
}

impl Pieces {
    /// What stands before the name of a metric.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Words => "word",
            Self::Patches => "patch",
        }
    }
}

/// The scores of one explanation of a sample by one kind of pieces.
pub(super) struct Removed {
    /// The method, or the control.
    pub(super) method: &'static str,
    pub(super) pieces: Pieces,
    pub(super) scores: Vec<PieceScore>,
}

/// The control, by the name that stands in tables.
const RANDOM: &str = "random";

impl Removal {
    /// Rows and columns of patches.
    pub(super) fn grid(&self) -> [usize; 2] {
        self.patches.map(|count| count.clamp(1, 64) as usize)
    }
}

/// The values of an explanation: of words and of pixels, or why there are none.
pub(super) struct Values {
    pub(super) words: Result<Vec<f64>, String>,
    pub(super) pixels: Result<Vec<f64>, String>,
}

/// The sum of a square map of `side` over each cell of a grid; a pixel belongs to the cell that its middle lies in.
fn cells(map: &[f64], side: usize, [rows, columns]: [usize; 2]) -> Vec<f64> {
    let mut sums = vec![0.0; rows * columns];
    for (place, value) in map.iter().enumerate() {
        let (y, x) = (place / side, place % side);
        sums[(2 * y + 1) * rows / (2 * side) * columns + (2 * x + 1) * columns / (2 * side)] += value;
    }
    sums
}

/// The scores of samples `0..layouts.len()`, whose layouts have patches and words: of the method, and of values drawn
/// by a key of each sample.
///
/// # Errors
/// If the model fails or the run is stopped.
pub(super) fn removed(
    method: &'static str,
    evaluator: &Evaluator<'_>,
    layouts: &[Layout],
    explanations: &[Values],
    side: usize,
    keys: &[Key],
) -> Result<Vec<Vec<Removed>>, StageError> {
    /// What is asked about one explanation of one sample.
    struct Asked {
        sample: usize,
        method: &'static str,
        pieces: Pieces,
        values: Result<Vec<f64>, String>,
    }
    let mut asked = Vec::new();
    for (sample, (layout, own)) in layouts.iter().zip(explanations).enumerate() {
        let patches = own.pixels.as_ref().map(|map| cells(map, side, layout.grid)).map_err(String::clone);
        for (pieces, values) in [(Pieces::Words, own.words.clone()), (Pieces::Patches, patches)] {
            let key = keys[sample].sub(u64::from(pieces == Pieces::Patches));
            let draw = |values: &Vec<f64>| (1..=values.len() as u64).map(|draw| key.uniform(draw)).collect();
            let random = values.as_ref().map(draw).map_err(String::clone);
            asked.push(Asked { sample, method, pieces, values });
            asked.push(Asked { sample, method: RANDOM, pieces, values: random });
        }
    }
    let mut rows = Vec::new();
    for Asked { sample, pieces, values, .. } in &asked {
        let layout = &layouts[*sample];
        let Ok(values) = values else { continue };
        rows.extend(removals(values).into_iter().map(|present| {
            let (patches, words) = match pieces {
                Pieces::Words => (vec![true; layout.cells()], present),
                Pieces::Patches => (present, vec![true; layout.pieces.len()]),
            };
            (*sample, [patches, words].concat())
        }));
    }
    let mut scores = presences(evaluator, &rows)?.into_iter().map(f64::from);
    let mut all: Vec<Vec<Removed>> = layouts.iter().map(|_| Vec::new()).collect();
    for Asked { sample, method, pieces, values } in asked {
        let scores = match values {
            Ok(values) => {
                let own: Vec<f64> = scores.by_ref().take(3 * values.len()).collect();
                // Nothing is removed of nothing.
                let own = if values.is_empty() { Vec::new() } else { own };
                piece_scores(&values, &own)
            }
            Err(reason) => no_piece_scores(&reason),
        };
        all[sample].push(Removed { method, pieces, scores });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_summed_over_cells() {
        let map: Vec<f64> = (0..16).map(f64::from).collect();
        assert_eq!(cells(&map, 4, [2, 2]), [10.0, 18.0, 42.0, 50.0]);
        assert_eq!(cells(&map, 4, [1, 4]), [24.0, 28.0, 32.0, 36.0]);
        // The middle of the second row of pixels lies in the second of three cells.
        assert_eq!(cells(&map, 4, [3, 1]), [6.0, 22.0 + 38.0, 54.0]);
    }
}
