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

/// What maps are divided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scale {
    /// Nothing.
    None,
    /// Each by its largest magnitude.
    PerMap,
    /// All by the largest magnitude of any (Quantus).
    Together,
    /// All by the root of the mean square of all (Quantus).
    SecondMoment,
}

/// What is done to the maps of one call before they are compared: first scaled, then a part taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preparation {
    /// The scale.
    pub scale: Scale,
    /// The part.
    pub part: Part,
}

impl Preparation {
    /// The maps of one call, prepared.
    pub fn of(self, maps: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let scaled = match self.scale {
            Scale::None => maps.to_vec(),
            Scale::PerMap => maps.iter().map(|map| by_largest_magnitude(map)).collect(),
            Scale::Together => normalise_together(maps),
            Scale::SecondMoment => by_second_moment(maps),
        };
        match self.part {
            Part::Signed => scaled,
            part => scaled.iter().map(|map| part.of(map)).collect(),
        }
    }
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

    #[test]
    fn maps_are_scaled_before_a_part_is_taken() {
        let maps = [vec![-2.0, 1.0], vec![4.0, 0.0]];
        let of = |scale, part| Preparation { scale, part }.of(&maps);
        assert_eq!(of(Scale::PerMap, Part::Absolute), [[1.0, 0.5], [1.0, 0.0]]);
        assert_eq!(of(Scale::Together, Part::Positive), [[0.0, 0.25], [1.0, 0.0]]);
        assert_eq!(of(Scale::None, Part::Signed), maps);
        let moment = (21.0f64 / 4.0).sqrt();
        assert_eq!(of(Scale::SecondMoment, Part::Signed)[1], [4.0 / moment, 0.0]);
    }
}
