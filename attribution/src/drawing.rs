//! Maps on one scale for drawing, as Captum's `visualize_image_attr` brings them there.

/// Which values of a signed map are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sign {
    /// All: the result lies in \[-1, 1\].
    #[default]
    All,
    /// Those for the target: in \[0, 1\].
    Positive,
    /// Those against it, upside down: in \[0, 1\].
    Negative,
    /// All without their sign: in \[0, 1\].
    Absolute,
}

/// The share of the absolute mass that is drawn at full colour, Captum's 2 %.
pub const OUTLIERS: f64 = 0.02;

/// The absolute value at which all but `outliers` of the absolute mass is reached, a share of mass and no
/// percentile of pixels: few extreme values do not make the rest invisible. 0 for a map of zeros.
pub fn drawing_scale(values: &[f32], outliers: f64) -> f32 {
    let mut sorted: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let total: f64 = sorted.iter().map(|&value| f64::from(value)).sum();
    let mut mass = 0.0;
    for &value in &sorted {
        mass += f64::from(value);
        if mass >= total * (1.0 - outliers) && value > 0.0 {
            return value;
        }
    }
    0.0
}

/// The values that `sign` draws, divided by their [`drawing_scale`] and cut off at 1. A map without such
/// values is blank, zero everywhere, where Captum fails.
pub fn normalised(map: &[f32], sign: Sign, outliers: f64) -> Vec<f32> {
    let drawn: Vec<f32> = map
        .iter()
        .map(|value| match sign {
            Sign::All => *value,
            Sign::Positive => value.max(0.0),
            Sign::Negative => (-value).max(0.0),
            Sign::Absolute => value.abs(),
        })
        .collect();
    let scale = drawing_scale(&drawn, outliers);
    drawn.into_iter().map(|value| if scale > 0.0 { (value / scale).clamp(-1.0, 1.0) } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_leaves_two_percent_of_the_mass_out() {
        // 98 ones and one value of 2: the ones hold 98 % of a mass of 100.
        let mut values = vec![1.0; 98];
        values.push(-2.0);
        assert_eq!(drawing_scale(&values, OUTLIERS), 1.0);
        assert_eq!(drawing_scale(&[0.0; 4], OUTLIERS), 0.0);
        assert_eq!(drawing_scale(&[], OUTLIERS), 0.0);
    }

    #[test]
    fn signs_choose_what_is_drawn() {
        let map = [4.0, -2.0, 0.0, 1.0];
        let of = |sign| normalised(&map, sign, 0.0);
        assert_eq!(of(Sign::All), [1.0, -0.5, 0.0, 0.25]);
        assert_eq!(of(Sign::Positive), [1.0, 0.0, 0.0, 0.25]);
        assert_eq!(of(Sign::Negative), [0.0, 1.0, 0.0, 0.0]);
        assert_eq!(of(Sign::Absolute), [1.0, 0.5, 0.0, 0.25]);
        assert_eq!(normalised(&[0.0, 3.0], Sign::Negative, OUTLIERS), [0.0, 0.0]);
    }
}
