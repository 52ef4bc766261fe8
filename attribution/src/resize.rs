//! Maps at another size.

/// How a map is brought to another size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interpolation {
    /// The value of the cell that covers a pixel.
    Nearest,
    /// Linear between the centres of cells; beyond the outermost they are continued (OpenCV's linear,
    /// PyTorch's bilinear with `align_corners=False`).
    Centres,
    /// Linear, with the outermost cells on the outermost pixels (`align_corners=True`).
    Corners,
}

impl Interpolation {
    /// Where pixel `place` of `to` lies among `from` cells: two neighbours, and the share of the second.
    fn place(self, place: usize, from: usize, to: usize) -> (usize, usize, f64) {
        let at = match self {
            Self::Nearest => return (place * from / to, place * from / to, 0.0),
            Self::Centres => ((place as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0),
            Self::Corners if to == 1 => 0.0,
            Self::Corners => place as f64 * (from - 1) as f64 / (to - 1) as f64,
        };
        let first = (at as usize).min(from - 1);
        (first, (first + 1).min(from - 1), at - first as f64)
    }
}

/// A map of any number of axes (`[rows, columns]`, `[slices, rows, columns]`) at another size, axis after
/// axis.
pub fn resize(map: &[f32], from: &[usize], to: &[usize], interpolation: Interpolation) -> Vec<f32> {
    debug_assert_eq!((map.len(), from.len()), (from.iter().product(), to.len()));
    let mut values: Vec<f64> = map.iter().map(|value| f64::from(*value)).collect();
    let mut shape = from.to_vec();
    for axis in (0..shape.len()).rev() {
        let (length, target) = (shape[axis], to[axis]);
        let stride: usize = shape[axis + 1..].iter().product();
        let outer: usize = shape[..axis].iter().product();
        let mut resized = Vec::with_capacity(outer * target * stride);
        for line in 0..outer {
            for place in 0..target {
                let (first, second, share) = interpolation.place(place, length, target);
                let at = |cell: usize| (line * length + cell) * stride;
                for inner in 0..stride {
                    let (a, b) = (values[at(first) + inner], values[at(second) + inner]);
                    resized.push(if share == 0.0 { a } else { a * (1.0 - share) + b * share });
                }
            }
        }
        values = resized;
        shape[axis] = target;
    }
    values.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_puts_cells_where_it_says() {
        let of = |interpolation| resize(&[0.0, 4.0], &[1, 2], &[1, 4], interpolation);
        assert_eq!(of(Interpolation::Nearest), [0.0, 0.0, 4.0, 4.0]);
        assert_eq!(of(Interpolation::Centres), [0.0, 1.0, 3.0, 4.0]);
        assert_eq!(resize(&[0.0, 3.0], &[2], &[4], Interpolation::Corners), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(resize(&[5.0], &[1, 1], &[2, 3], Interpolation::Corners), [5.0; 6]);
        let map: Vec<f32> = (0..12).map(|value| value as f32).collect();
        for interpolation in [Interpolation::Nearest, Interpolation::Centres, Interpolation::Corners] {
            assert_eq!(resize(&map, &[3, 4], &[3, 4], interpolation), map);
        }
    }

    #[test]
    fn volumes_are_interpolated_along_every_axis() {
        let map = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0];
        let large = resize(&map, &[2, 2, 2], &[3, 3, 3], Interpolation::Corners);
        assert_eq!(large[13], 3.5);
        assert_eq!((large[0], large[26]), (0.0, 7.0));
    }
}
