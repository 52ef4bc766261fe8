//! Sufficiency (Dasgupta, Frost and Moshkovitz 2022): do samples with like maps have like predictions?

use super::{Mode, Undefined, Value};

/// The distance of two maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Distance {
    /// Each feature over its variance among the maps.
    #[default]
    StandardisedEuclidean,
    /// Plain. Quantus raises an error.
    Euclidean,
}

/// For each sample the share of its neighbours that have its predicted class. Neighbours are other
/// samples whose map's standardised Euclidean distance, over the greatest distance of any two, is at most
/// `threshold`. `maps` are magnitudes, normalised together; a figure depends on the whole set.
///
/// A feature that does not vary is left out (reference), so that maps that are all the same are neighbours, or makes
/// every distance undefined, so that nobody has a neighbour (Quantus). Without a neighbour the value is undefined
/// (reference) or 0 (Quantus).
pub fn sufficiency(
    maps: &[Vec<f64>],
    predicted: &[usize],
    threshold: f64,
    distance: Distance,
    mode: Mode,
) -> Vec<Value> {
    let count = maps.len();
    if mode == Mode::Quantus && distance == Distance::Euclidean {
        return vec![
            Err(Undefined::Refused("its distance takes a variance that only one distance has"));
            count
        ];
    }
    let variances = match distance {
        Distance::StandardisedEuclidean => variances(maps),
        Distance::Euclidean => vec![1.0; maps.first().map_or(0, Vec::len)],
    };
    if mode == Mode::Quantus && variances.contains(&0.0) {
        return vec![Ok(0.0); count];
    }
    let distance = |a: &[f64], b: &[f64]| {
        let terms = a.iter().zip(b).zip(&variances).filter(|(_, variance)| **variance > 0.0);
        terms.map(|((a, b), variance)| (a - b).powi(2) / variance).sum::<f64>().sqrt()
    };
    let distances: Vec<Vec<f64>> =
        maps.iter().map(|a| maps.iter().map(|b| distance(a, b)).collect()).collect();
    let greatest = distances.iter().flatten().copied().fold(0.0, f64::max);
    (0..count)
        .map(|sample| {
            let near = |other: &usize| *other != sample && distances[sample][*other] <= threshold * greatest;
            let neighbours: Vec<usize> = (0..count).filter(near).collect();
            let same = neighbours.iter().filter(|other| predicted[**other] == predicted[sample]).count();
            match (neighbours.len(), mode) {
                (0, Mode::Quantus) => Ok(0.0),
                (0, Mode::Reference) => Err(Undefined::NoNeighbour),
                (count, _) => Ok(same as f64 / count as f64),
            }
        })
        .collect()
}

/// The variance of each feature over the stack of the maps with themselves: both sides of the comparison
/// are the same maps.
fn variances(maps: &[Vec<f64>]) -> Vec<f64> {
    let count = maps.len();
    let degrees = (2 * count).saturating_sub(1) as f64;
    (0..maps.first().map_or(0, Vec::len))
        .map(|feature| {
            let mean = maps.iter().map(|map| map[feature]).sum::<f64>() / count as f64;
            2.0 * maps.iter().map(|map| (map[feature] - mean).powi(2)).sum::<f64>() / degrees
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_class() {
        let share = |maps: &[Vec<f64>], predicted: &[usize], threshold, mode| {
            sufficiency(maps, predicted, threshold, Distance::StandardisedEuclidean, mode)
        };
        let maps = [vec![0.0, 0.0], vec![0.1, 0.1], vec![1.0, 1.0]];
        let values = share(&maps, &[0, 0, 1], 0.5, Mode::Reference);
        assert_eq!(values, [Ok(1.0), Ok(1.0), Err(Undefined::NoNeighbour)]);
        assert_eq!(share(&maps, &[0, 1, 1], 0.5, Mode::Quantus), [Ok(0.0), Ok(0.0), Ok(0.0)]);
        let flat = [vec![0.0, 1.0], vec![1.0, 1.0]];
        assert_eq!(share(&flat, &[0, 0], 1.0, Mode::Quantus), [Ok(0.0), Ok(0.0)]);
        assert_eq!(share(&flat, &[0, 0], 1.0, Mode::Reference)[0], Ok(1.0));
        let same = [vec![0.3, 1.0], vec![0.3, 1.0], vec![0.3, 1.0]];
        assert_eq!(share(&same, &[0, 0, 1], 0.6, Mode::Reference), [Ok(0.5), Ok(0.5), Ok(0.0)]);
        assert_eq!(share(&same[..1], &[0], 0.6, Mode::Reference), [Err(Undefined::NoNeighbour)]);
        let plain = |mode| sufficiency(&flat, &[0, 0], 1.0, Distance::Euclidean, mode);
        assert!(plain(Mode::Quantus)[0].is_err() && plain(Mode::Reference)[0] == Ok(1.0));
    }
}
