//! Rows of f64 in whole registers, and the two loops over them that linear probes spend their time in. Every sum has one
//! order on every machine, and however many rows are read at a time.
//!
//! Around them stand loops and no closures that compute: what the compiler leaves as a function of its own is not compiled
//! for the machine's widest instructions, and every fused multiply-add in it is a call.

/// Partial sums of a product.
pub(super) const LANES: usize = 8;
/// Rows that are read at a time.
pub(super) const TOGETHER: usize = 4;

/// A piece of a row. It begins where a cache line does: loads that cross one take twice as long.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
#[repr(align(64))]
pub(super) struct Lanes(pub(super) [f64; LANES]);

/// Values as pieces; of whole pieces.
pub(super) fn pieces(values: &[f64]) -> Vec<Lanes> {
    values.as_chunks().0.iter().map(|piece| Lanes(*piece)).collect()
}

/// Pieces as values.
pub(super) fn values(row: &[Lanes]) -> impl Iterator<Item = f64> {
    row.iter().flat_map(|piece| piece.0)
}

pub(super) fn at(row: &[Lanes], place: usize) -> f64 {
    row[place / LANES].0[place % LANES]
}

pub(super) fn at_mut(row: &mut [Lanes], place: usize) -> &mut f64 {
    &mut row[place / LANES].0[place % LANES]
}

/// The products of some rows with others of the same length, `[M][N]`.
#[inline(always)]
pub(super) fn products<const M: usize, const N: usize>(
    rows: [&[Lanes]; M],
    others: [&[Lanes]; N],
) -> [[f64; N]; M] {
    /// Lanes that are summed up at a time: so the sums of two rows with four stay in the registers of AVX2.
    const HALF: usize = LANES / 2;
    let length = rows[0].len();
    let (rows, others) = (rows.map(|row| &row[..length]), others.map(|other| &other[..length]));
    let mut sums = [[[0.0; LANES]; N]; M];
    for begin in [0, HALF] {
        let mut halves = [[[0.0f64; HALF]; N]; M];
        for place in 0..length {
            for (row, halves) in rows.iter().zip(&mut halves) {
                for (other, half) in others.iter().zip(halves) {
                    // Values of their own stay in registers.
                    let mut lanes = *half;
                    for (lane, sum) in lanes.iter_mut().enumerate() {
                        *sum = row[place].0[begin + lane].mul_add(other[place].0[begin + lane], *sum);
                    }
                    *half = lanes;
                }
            }
        }
        for (sums, halves) in sums.iter_mut().zip(&halves) {
            for (lanes, half) in sums.iter_mut().zip(halves) {
                lanes[begin..begin + HALF].copy_from_slice(half);
            }
        }
    }
    sums.map(|sums| sums.map(|lanes| lanes.iter().sum()))
}

/// Adds to each of `sums` multiples of `rows`, one after the other.
#[inline(always)]
pub(super) fn add_multiples<const R: usize, const S: usize>(
    sums: [&mut [Lanes]; S],
    rows: [&[Lanes]; R],
    factors: [[f64; R]; S],
) {
    let length = rows[0].len();
    let rows = rows.map(|row| &row[..length]);
    let mut sums = sums.map(|sum| &mut sum[..length]);
    for place in 0..length {
        let mut now = [[0.0; LANES]; S];
        for (now, sum) in now.iter_mut().zip(&sums) {
            *now = sum[place].0;
        }
        for (index, row) in rows.iter().enumerate() {
            for (lanes, factors) in now.iter_mut().zip(&factors) {
                let mut added = *lanes;
                for (lane, x) in added.iter_mut().zip(row[place].0) {
                    *lane = factors[index].mul_add(x, *lane);
                }
                *lanes = added;
            }
        }
        for (sum, now) in sums.iter_mut().zip(now) {
            sum[place] = Lanes(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn row(key: u64, length: usize) -> Vec<Lanes> {
        let values: Vec<f64> = (0..length * LANES).map(|place| Key(key).normal(place as u64)).collect();
        pieces(&values)
    }

    /// A sum is the same to the bit beside which others it is computed, and it is that of the definition.
    #[test]
    fn sums_do_not_depend_on_what_is_computed_beside_them() {
        for length in [0, 1, 3, 9] {
            let rows: Vec<Vec<Lanes>> = (0..6).map(|key| row(key, length)).collect();
            let together: [[f64; 4]; 2] = products(
                std::array::from_fn(|index| &rows[index][..]),
                std::array::from_fn(|index| &rows[2 + index][..]),
            );
            for (index, together) in together.iter().enumerate() {
                for (other, together) in rows[2..].iter().zip(together) {
                    let [[alone]] = products([&rows[index][..]], [&other[..]]);
                    assert_eq!(alone.to_bits(), together.to_bits());
                    let exact: f64 = values(&rows[index]).zip(values(other)).map(|(a, b)| a * b).sum();
                    assert!((exact - alone).abs() < 1e-12, "{exact} {alone}");
                }
            }
            let factors = [[0.5, -1.25, 3.0, 0.1], [1.0, 2.0, -0.3, 7.0]];
            let (mut first, mut second) = (rows[4].clone(), rows[5].clone());
            let four = std::array::from_fn(|index| &rows[index][..]);
            add_multiples::<4, 2>([&mut first, &mut second], four, factors);
            for (start, (sum, factors)) in rows[4..].iter().zip([first, second].iter().zip(factors)) {
                let mut alone = start.clone();
                for (factor, row) in factors.into_iter().zip(&rows) {
                    add_multiples([&mut alone[..]], [&row[..]], [[factor]]);
                }
                assert_eq!(&alone, sum);
                for (place, found) in values(sum).enumerate() {
                    let rest: f64 =
                        factors.iter().zip(&rows).map(|(factor, row)| factor * at(row, place)).sum();
                    assert!((at(start, place) + rest - found).abs() < 1e-12);
                }
            }
        }
    }
}
