//! What is done to a map before it is scored: signs and scale.

/// What of a signed map is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The values as they are.
    Signed,
    /// Evidence for the target only: negative values become 0.
    Positive,
    /// Magnitudes.
    Absolute,
}

impl Part {
    /// This part of a map.
    pub fn of(self, map: &[f64]) -> Vec<f64> {
        map.iter()
            .map(|value| match self {
                Self::Signed => *value,
                Self::Positive => value.max(0.0),
                Self::Absolute => value.abs(),
            })
            .collect()
    }
}

/// A map of pixels as one of features: the same values in each of `channels` planes.
pub fn in_channels(map: &[f64], channels: usize) -> Vec<f64> {
    map.repeat(channels)
}

/// Divides by `scale`; a map without any mass stays as it is.
fn divided(map: &[f64], scale: f64) -> Vec<f64> {
    map.iter().map(|value| if scale > 0.0 { value / scale } else { *value }).collect()
}

fn largest_magnitude<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().fold(0.0f64, |largest, value| largest.max(value.abs()))
}

/// A map over its largest magnitude, so that it lies in [-1, 1].
pub fn by_largest_magnitude(map: &[f64]) -> Vec<f64> {
    divided(map, largest_magnitude(map))
}

/// Maps over the largest magnitude of all of them: what Quantus does to the maps of one call, so that
/// the scale of each depends on its neighbours.
pub fn normalise_together(maps: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let scale = largest_magnitude(maps.iter().flatten());
    maps.iter().map(|map| divided(map, scale)).collect()
}

/// Maps over the root of the mean square of all of them.
pub fn by_second_moment(maps: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let count = maps.iter().map(Vec::len).sum::<usize>().max(1);
    let squares: f64 = maps.iter().flatten().map(|value| value * value).sum();
    let scale = (squares / count as f64).sqrt();
    maps.iter().map(|map| divided(map, scale)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_map() {
        let map = [-2.0, 0.0, 1.0];
        assert_eq!(Part::Signed.of(&map), map);
        assert_eq!(Part::Positive.of(&map), [0.0, 0.0, 1.0]);
        assert_eq!(Part::Absolute.of(&map), [2.0, 0.0, 1.0]);
    }

    #[test]
    fn scale_is_of_one_map_or_of_all() {
        assert_eq!(by_largest_magnitude(&[-2.0, 1.0]), [-1.0, 0.5]);
        assert_eq!(by_largest_magnitude(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(normalise_together(&[vec![1.0], vec![-4.0]]), [[0.25], [-1.0]]);
        assert_eq!(
            by_second_moment(&[vec![3.0, 1.0], vec![-1.0, -1.0]]),
            [[3.0 / 3f64.sqrt(), 1.0 / 3f64.sqrt()], [-1.0 / 3f64.sqrt(), -1.0 / 3f64.sqrt()]]
        );
    }
}
