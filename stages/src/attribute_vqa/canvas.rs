//! Maps of several sizes as one.

/// Adds a square map to another of perhaps another side. A value spreads evenly over what its pixel covers, so that
/// sums stay what they are.
pub(super) fn spread(map: &[f32], side: usize, canvas: &mut [f64], canvas_side: usize) {
    if side == canvas_side {
        map.iter().zip(canvas).for_each(|(value, sum)| *sum += f64::from(*value));
        return;
    }
    let shares = shares(side, canvas_side);
    for (from_y, rows) in shares.iter().enumerate() {
        for (y, of_row) in rows {
            for (from_x, columns) in shares.iter().enumerate() {
                let value = f64::from(map[from_y * side + from_x]) * of_row;
                for (x, of_column) in columns {
                    canvas[y * canvas_side + x] += value * of_column;
                }
            }
        }
    }
}

/// For each of `from` pixels along a line the pixels among `to` that it overlaps, with the share of it in each.
fn shares(from: usize, to: usize) -> Vec<Vec<(usize, f64)>> {
    let of = |pixel: usize| {
        // In units of 1 / (from * to).
        let (start, end) = (pixel * to, (pixel + 1) * to);
        let touched = start / from..end.div_ceil(from);
        touched
            .map(|other| {
                let overlap = end.min((other + 1) * from) - start.max(other * from);
                (other, overlap as f64 / to as f64)
            })
            .collect()
    };
    (0..from).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stay_what_they_are() {
        for (from, to) in [(4, 2), (2, 4), (3, 5), (5, 3), (84, 28), (6, 6)] {
            let map: Vec<f32> = (0..from * from).map(|place| (place % 7) as f32 - 2.0).collect();
            let mut canvas = vec![0.0; to * to];
            spread(&map, from, &mut canvas, to);
            let sum: f32 = map.iter().sum();
            assert!((canvas.iter().sum::<f64>() - f64::from(sum)).abs() < 1e-9, "{from} {to}");
        }
        let mut canvas = vec![0.0; 4];
        spread(&[1.0; 16], 4, &mut canvas, 2);
        assert_eq!(canvas, [4.0; 4]);
        let mut canvas = vec![0.0; 9];
        spread(&[9.0, 0.0, 0.0, 0.0], 2, &mut canvas, 3);
        let first: Vec<f64> = canvas[..3].iter().map(|value| (value * 1e9).round() / 1e9).collect();
        assert_eq!(first, [4.0, 2.0, 0.0]);
    }
}
