//! What a model of flat images sees of a volume.

/// More slices of one volume than a model is shown.
pub const MOST_SLICES: usize = 1024;

/// Which slices of a volume a model of flat images sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Slices {
    /// The central one, grey.
    #[default]
    Central,
    /// The central one and its neighbours, as red, green and blue.
    Triplet,
    /// So many, spread evenly, each grey: the embedding of the volume is the mean of theirs.
    Mean(usize),
}

impl Slices {
    /// How many flat images stand for a volume.
    pub fn count(self) -> usize {
        match self {
            Self::Central | Self::Triplet => 1,
            Self::Mean(count) => count,
        }
    }

    /// The slices of a volume of `depth` slices (at least one) that become red, green and blue of each flat
    /// image: those at the centres of equal parts of the volume; where there is one part, slice `depth / 2`.
    pub fn of(self, depth: usize) -> Vec<[usize; 3]> {
        let centre = depth / 2;
        match self {
            Self::Central => vec![[centre; 3]],
            Self::Triplet => vec![[centre.saturating_sub(1), centre, (centre + 1).min(depth - 1)]],
            Self::Mean(count) => {
                (0..count).map(|part| [((2 * part + 1) * depth / (2 * count)).min(depth - 1); 3]).collect()
            }
        }
    }

    /// In words, for the provenance of a result.
    pub fn describe(self) -> String {
        match self {
            Self::Central => "the central slice".to_owned(),
            Self::Triplet => "the central slice and its neighbours as red, green and blue".to_owned(),
            Self::Mean(count) => format!("the mean of the embeddings of {count} slices"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_stand_in_the_middle_of_their_parts() {
        assert_eq!(Slices::Central.of(28), [[14; 3]]);
        assert_eq!(Slices::Triplet.of(28), [[13, 14, 15]]);
        assert_eq!(Slices::Mean(1).of(28), Slices::Central.of(28));
        assert_eq!(Slices::Mean(4).of(8), [[1; 3], [3; 3], [5; 3], [7; 3]]);
        let all: Vec<usize> = Slices::Mean(28).of(28).into_iter().map(|slice| slice[0]).collect();
        assert_eq!(all, (0..28).collect::<Vec<_>>());
        // Fewer slices than parts are shown several times.
        assert_eq!(Slices::Mean(4).of(2), [[0; 3], [0; 3], [1; 3], [1; 3]]);
        for slices in [Slices::Central, Slices::Triplet, Slices::Mean(3)] {
            assert!(slices.of(1).iter().flatten().all(|slice| *slice == 0));
            assert_eq!(slices.of(5).len(), slices.count());
        }
    }
}
