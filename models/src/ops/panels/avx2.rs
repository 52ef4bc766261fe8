//! Tiles of a product of f32 in the registers of AVX2: twelve of sums, whatever the width.
//!
//! A register holds eight columns. A product of few columns, as most convolutions of small networks are, takes one
//! register a row, and so twice the rows; the empty part of a strip is not computed.

use std::arch::x86_64::{
    __m256, _mm_castps_pd, _mm_movehl_ps, _mm_store_ss, _mm_storel_pd, _mm_storeu_ps, _mm256_add_ps,
    _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_load_ps,
    _mm256_loadu_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_shuffle_ps, _mm256_store_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use super::tile::{Target, Tile};
use super::{Line, Start};

/// Columns of a register.
const EIGHT: usize = 8;

/// Rows of a full tile of so many columns.
pub(super) fn height(columns: usize) -> usize {
    if columns <= EIGHT { 12 } else { 6 }
}

/// Computes a tile of `height` rows, at most as many as [`height`] says, and of one strip.
///
/// # Safety
/// The machine has AVX2 and fused multiply-adds, and `tile.to` is valid for the tile's rows and columns.
pub(super) unsafe fn run(height: usize, tile: Tile<'_>) {
    debug_assert!(height <= self::height(tile.to.columns), "a tile of {height} rows");
    let is_narrow = tile.to.columns <= EIGHT;
    // SAFETY: the caller's promise.
    unsafe {
        match (is_narrow, height) {
            (true, 1) => sums::<1, 1>(&tile),
            (true, 2) => sums::<2, 1>(&tile),
            (true, 3) => sums::<3, 1>(&tile),
            (true, 4) => sums::<4, 1>(&tile),
            (true, 5) => sums::<5, 1>(&tile),
            (true, 6) => sums::<6, 1>(&tile),
            (true, 7) => sums::<7, 1>(&tile),
            (true, 8) => sums::<8, 1>(&tile),
            (true, 9) => sums::<9, 1>(&tile),
            (true, 10) => sums::<10, 1>(&tile),
            (true, 11) => sums::<11, 1>(&tile),
            (true, _) => sums::<12, 1>(&tile),
            (false, 1) => sums::<1, 2>(&tile),
            (false, 2) => sums::<2, 2>(&tile),
            (false, 3) => sums::<3, 2>(&tile),
            (false, 4) => sums::<4, 2>(&tile),
            (false, 5) => sums::<5, 2>(&tile),
            (false, _) => sums::<6, 2>(&tile),
        }
    }
}

/// A tile of as many columns as so many registers hold.
///
/// # Safety
/// `tile.to` is valid for the tile's rows and columns.
#[target_feature(enable = "avx2,fma")]
unsafe fn sums<const ROWS: usize, const EIGHTS: usize>(tile: &Tile<'_>) {
    let mut sums = [[_mm256_setzero_ps(); EIGHTS]; ROWS];
    let stride = tile.a_stride;
    for (run, [lines, _]) in tile.runs(ROWS) {
        // SAFETY: the runs of all rows lie in the left side, as was asserted.
        let a = unsafe { tile.a.as_ptr().add(run) };
        for (place, line) in lines.iter().enumerate() {
            let mut b = [_mm256_setzero_ps(); EIGHTS];
            for (eight, b) in b.iter_mut().enumerate() {
                // SAFETY: a line is 16 floats at a multiple of 64 bytes.
                *b = unsafe { _mm256_load_ps(line.0.as_ptr().add(eight * EIGHT)) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let value = _mm256_broadcast_ss(unsafe { &*a.add(row * stride + place) });
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm256_fmadd_ps(value, b, *sum);
                }
            }
        }
    }
    // Only moved here, in loops that are unrolled: what a function were given would lie in memory all along.
    let mut values = [[[0.0; EIGHT]; EIGHTS]; ROWS];
    for (values, sums) in values.iter_mut().zip(sums) {
        for (values, sums) in values.iter_mut().zip(sums) {
            // SAFETY: eight values.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), sums) };
        }
    }
    // SAFETY: the caller's promise.
    unsafe { store(&values, tile.to) };
}

/// Writes `start + scale * sums`.
///
/// # Safety
/// The target is valid for the rows of the sums and its columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const ROWS: usize, const EIGHTS: usize>(
    sums: &[[[f32; EIGHT]; EIGHTS]; ROWS],
    to: Target<'_>,
) {
    let scale = _mm256_set1_ps(to.scale);
    for eight in 0..EIGHTS {
        let place = eight * EIGHT;
        let columns = to.columns.saturating_sub(place).min(EIGHT);
        let start = match to.start {
            // SAFETY: a row has a value for each column.
            Start::Row(row) => unsafe { load(row.as_ptr().wrapping_add(place), columns) },
            Start::Zero | Start::Kept => _mm256_setzero_ps(),
        };
        for (row, sums) in sums.iter().enumerate() {
            let out = to.out.wrapping_add(row * to.row_stride + place);
            let start = match to.start {
                // SAFETY: the caller lets us read and write the tile's columns.
                Start::Kept => unsafe { load(out, columns) },
                Start::Zero | Start::Row(_) => start,
            };
            // SAFETY: eight sums.
            let sums = unsafe { _mm256_loadu_ps(sums[eight].as_ptr()) };
            let value = _mm256_add_ps(start, _mm256_mul_ps(scale, sums));
            // SAFETY: as above.
            unsafe { store_first(out, columns, value) };
        }
    }
}

/// The first values of a register from memory, and zeros.
///
/// # Safety
/// `from` is valid for `count` values, at most eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load(from: *const f32, count: usize) -> __m256 {
    if count == EIGHT {
        // SAFETY: the caller's promise.
        return unsafe { _mm256_loadu_ps(from) };
    }
    let mut values = [0.0; EIGHT];
    for (place, value) in values.iter_mut().enumerate().take(count) {
        // SAFETY: the caller's promise.
        *value = unsafe { *from.add(place) };
    }
    // SAFETY: eight values.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

/// Writes the first values of a register: in parts of four, two and one, which takes less than a masked store does.
///
/// # Safety
/// `to` is valid for `count` values, at most eight.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store_first(to: *mut f32, count: usize, value: __m256) {
    // SAFETY: the caller's promise: the parts are the bits of `count`.
    unsafe {
        if count == EIGHT {
            return _mm256_storeu_ps(to, value);
        }
        let (mut to, mut rest) = (to, _mm256_castps256_ps128(value));
        if count & 4 != 0 {
            _mm_storeu_ps(to, rest);
            (to, rest) = (to.add(4), _mm256_extractf128_ps::<1>(value));
        }
        if count & 2 != 0 {
            _mm_storel_pd(to.cast(), _mm_castps_pd(rest));
            (to, rest) = (to.add(2), _mm_movehl_ps(rest, rest));
        }
        if count & 1 != 0 {
            _mm_store_ss(to, rest);
        }
    }
}

/// Packs rows of so many columns of a strip, which lie `stride` values apart: squares of eight are turned in registers.
///
/// # Safety
/// The machine has AVX2, and every column has as many values as there are lines.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gather(values: &[f32], columns: usize, stride: usize, lines: &mut [Line]) {
    let (squares, rest) = lines.as_chunks_mut::<EIGHT>();
    let (turned, whole) = (squares.len() * EIGHT, columns / EIGHT * EIGHT);
    for (square, lines) in squares.iter_mut().enumerate() {
        for first in (0..whole).step_by(EIGHT) {
            let columns: [__m256; EIGHT] = std::array::from_fn(|column| {
                // SAFETY: the caller's promise.
                unsafe { _mm256_loadu_ps(values.as_ptr().add((first + column) * stride + square * EIGHT)) }
            });
            for (line, row) in lines.iter_mut().zip(transposed(columns)) {
                // SAFETY: a line is 16 floats at a multiple of 64 bytes.
                unsafe { _mm256_store_ps(line.0.as_mut_ptr().add(first), row) };
            }
        }
        for column in whole..columns {
            let values = &values[column * stride + square * EIGHT..][..EIGHT];
            lines.iter_mut().zip(values).for_each(|(line, value)| line.0[column] = *value);
        }
    }
    for column in 0..columns {
        let values = &values[column * stride + turned..][..rest.len()];
        rest.iter_mut().zip(values).for_each(|(line, value)| line.0[column] = *value);
    }
}

/// The columns of eight rows.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transposed(rows: [__m256; EIGHT]) -> [__m256; EIGHT] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Pairs of rows, then fours; each register has those of one column below, and of the fourth next above.
    let fours = |a, b, c, d| {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
        ]
    };
    let (upper, lower) = (fours(a, b, c, d), fours(e, f, g, h));
    std::array::from_fn(|column| {
        let (upper, lower) = (upper[column % 4], lower[column % 4]);
        if column < 4 {
            _mm256_permute2f128_ps::<0x20>(upper, lower)
        } else {
            _mm256_permute2f128_ps::<0x31>(upper, lower)
        }
    })
}
