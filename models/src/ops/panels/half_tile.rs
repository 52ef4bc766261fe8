//! Tiles of a product of bf16 with sums of f32, by the dot-product instruction of AVX512-BF16.
//!
//! The left side is rounded to bf16 as it is packed, the right side when its panels are made. An instruction adds two
//! terms at once, flushes what is too small for a normal number to zero, and does not round between the two products: so
//! the bits are those of the machines that have it, in the order of the terms whatever stands beside a row.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m512, __m512bh};
use std::ops::Range;

use super::tile::Target;
use super::{BLOCK, COLUMNS, DEPTH, Kernel, Start, TILE, bf16};
use crate::ops::product::Matrix;

/// Two terms of each column of a panel: two cache lines.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(in crate::ops) struct Pairs([[bf16; 2]; COLUMNS]);

/// A cache line of a packed row: pairs of terms.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([[bf16; 2]; PAIRS]);

/// Pairs of a cache line.
const PAIRS: usize = 16;
/// Lines from one packed row to the next; odd, because rows a power of two apart would share the sets of the cache.
const STRIDE: usize = (DEPTH / 2).div_ceil(PAIRS) | 1;

/// What is rounded to bf16.
pub(in crate::ops) trait Narrow: Copy + Sync {
    /// The nearest bf16.
    fn narrow(self) -> bf16;

    /// Packs pairs of terms, from the first on, of as many columns as a panel has, `stride` values apart; whether it could.
    fn pack_columns(_values: &[Self], _stride: usize, _lines: &mut [Pairs]) -> bool {
        false
    }
}

impl Narrow for f32 {
    fn narrow(self) -> bf16 {
        bf16::from_f32(self)
    }
}

impl Narrow for bf16 {
    fn narrow(self) -> bf16 {
        self
    }

    fn pack_columns(values: &[Self], stride: usize, lines: &mut [Pairs]) -> bool {
        #[cfg(target_arch = "x86_64")]
        if stride.is_multiple_of(2) && stride * COLUMNS < i32::MAX as usize && has_half_products() {
            // SAFETY: the machine has the instructions.
            unsafe { gather(values, stride, lines) };
            return true;
        }
        false
    }
}

/// Packs pairs of terms of all columns of a panel, an even number of values apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn gather(values: &[bf16], stride: usize, lines: &mut [Pairs]) {
    use std::arch::x86_64::{__m512i, _mm512_i32gather_epi32, _mm512_loadu_si512, _mm512_store_si512};
    assert!(values.len() >= (COLUMNS - 1) * stride + 2 * lines.len(), "columns have their terms");
    // In pairs.
    let places: [i32; COLUMNS] = std::array::from_fn(|column| (column * (stride / 2)) as i32);
    // SAFETY: sixteen numbers of 32 bits each.
    let places = [0, PAIRS].map(|half| unsafe { _mm512_loadu_si512(places[half..].as_ptr().cast()) });
    for (place, line) in lines.iter_mut().enumerate() {
        let from = values[2 * place..].as_ptr().cast::<i32>();
        let to = line.0.as_mut_ptr().cast::<__m512i>();
        for (half, places) in places.into_iter().enumerate() {
            // SAFETY: every column has this pair, as was asserted, and a line is two times 64 bytes.
            unsafe { _mm512_store_si512(to.add(half), _mm512_i32gather_epi32::<4>(places, from)) };
        }
    }
}

/// Whether this machine multiplies bf16.
pub(crate) fn has_half_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Rows of the right side from `first` on (an even number), in the columns of a panel.
pub(super) fn pack_group<T: Narrow>(
    b: Matrix<'_, T>,
    first: usize,
    columns: Range<usize>,
    lines: &mut [Pairs],
) {
    let rows = (2 * lines.len()).min(b.rows - first);
    let is_full = b.row_stride == 1 && columns.len() == COLUMNS && rows == 2 * lines.len();
    if is_full
        && T::pack_columns(&b.values[columns.start * b.column_stride + first..], b.column_stride, lines)
    {
        return;
    }
    for (place, column) in columns.enumerate() {
        if b.row_stride == 1 {
            let values = &b.values[column * b.column_stride + first..][..rows];
            let (pairs, rest) = values.as_chunks::<2>();
            for (line, pair) in lines.iter_mut().zip(pairs) {
                line.0[place] = pair.map(Narrow::narrow);
            }
            if let ([last], Some(line)) = (rest, lines.last_mut()) {
                line.0[place][0] = last.narrow();
            }
        } else {
            for row in 0..rows {
                let value = b.values[(first + row) * b.row_stride + column * b.column_stride];
                lines[row / 2].0[place][row % 2] = value.narrow();
            }
        }
    }
}

/// Products of bf16.
pub(super) struct HalfKernel<'a> {
    a: Matrix<'a>,
    lines: &'a [Pairs],
    /// Lines of a panel, and those of the terms made ready.
    panel: usize,
    depth: Range<usize>,
    /// The rows made ready.
    pub(super) packed: Vec<Line>,
}

impl<'a> HalfKernel<'a> {
    pub(super) fn new(a: Matrix<'a>, lines: &'a [Pairs], depth: usize, mut packed: Vec<Line>) -> Self {
        packed.resize(BLOCK * STRIDE, Line::default());
        Self { a, lines, panel: depth.div_ceil(2), depth: 0..0, packed }
    }
}

impl Kernel for HalfKernel<'_> {
    fn width(&self) -> usize {
        COLUMNS
    }

    fn height(&self, _: usize) -> usize {
        TILE
    }

    fn prepare(&mut self, rows: Range<usize>, depth: Range<usize>) {
        let a = self.a;
        self.depth = depth.start / 2..depth.end.div_ceil(2);
        for (row, lines) in rows.zip(self.packed.chunks_exact_mut(STRIDE)) {
            if a.column_stride == 1 {
                let from = row * a.row_stride;
                narrow_row(&a.values[from + depth.start..from + depth.end], lines);
            } else {
                for (place, term) in depth.clone().enumerate() {
                    let value = a.values[row * a.row_stride + term * a.column_stride];
                    lines[place / 2 / PAIRS].0[place / 2 % PAIRS][place % 2] = value.narrow();
                }
                if depth.len() % 2 == 1 {
                    lines[depth.len() / 2 / PAIRS].0[depth.len() / 2 % PAIRS][1] = bf16::ZERO;
                }
            }
        }
    }

    unsafe fn tile(&self, row: usize, height: usize, column: usize, to: Target<'_>) {
        let panel = &self.lines[column / COLUMNS * self.panel..][self.depth.clone()];
        let left = &self.packed[row * STRIDE..];
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise; panels of bf16 are made only where the machine multiplies them.
        unsafe {
            match height {
                1 => dots::<1>(left, panel, to),
                2 => dots::<2>(left, panel, to),
                3 => dots::<3>(left, panel, to),
                4 => dots::<4>(left, panel, to),
                5 => dots::<5>(left, panel, to),
                6 => dots::<6>(left, panel, to),
                7 => dots::<7>(left, panel, to),
                8 => dots::<8>(left, panel, to),
                9 => dots::<9>(left, panel, to),
                10 => dots::<10>(left, panel, to),
                11 => dots::<11>(left, panel, to),
                _ => dots::<12>(left, panel, to),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("{:?}", (left.len(), height, panel.len(), to.columns));
    }
}

/// Rounds a row to bf16; an odd last term has a zero beside it.
fn narrow_row(values: &[f32], lines: &mut [Line]) {
    #[cfg(target_arch = "x86_64")]
    if has_half_products() {
        // SAFETY: the machine has the instructions.
        unsafe { narrow_row_fast(values, lines) };
        return;
    }
    for (line, values) in lines.iter_mut().zip(values.chunks(2 * PAIRS)) {
        *line = Line::default();
        for (place, value) in values.iter().enumerate() {
            line.0[place / 2][place % 2] = value.narrow();
        }
    }
}

/// As [`narrow_row`]. What is too small for a normal number becomes zero.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn narrow_row_fast(values: &[f32], lines: &mut [Line]) {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_maskz_loadu_ps};
    for (line, values) in lines.iter_mut().zip(values.chunks(2 * PAIRS)) {
        let (low, high) = (values.len().min(PAIRS), values.len().saturating_sub(PAIRS));
        let mask = |count: usize| ((1u32 << count) - 1) as u16;
        // SAFETY: masked to the values that there are.
        let parts = unsafe {
            [
                _mm512_maskz_loadu_ps(mask(low), values.as_ptr()),
                _mm512_maskz_loadu_ps(mask(high), values.as_ptr().wrapping_add(PAIRS)),
            ]
        };
        let both: __m512bh = _mm512_cvtne2ps_pbh(parts[1], parts[0]);
        // SAFETY: both are 32 numbers of 16 bits, and any bits are a bf16.
        *line = unsafe { std::mem::transmute::<__m512bh, Line>(both) };
    }
}

/// A tile in the registers of AVX-512: rows of the left side from the first of `left` on, times a panel.
///
/// # Safety
/// The target is valid for these rows and its columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dots<const ROWS: usize>(left: &[Line], panel: &[Pairs], to: Target<'_>) {
    use std::arch::x86_64::{
        __m512i, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    };
    assert!(
        panel.is_empty() || left.len() >= (ROWS - 1) * STRIDE + panel.len().div_ceil(PAIRS),
        "a tile has its rows"
    );
    let as_pairs = |register: __m512i| {
        // SAFETY: both are 512 bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(register) }
    };
    let mut sums: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    let rows = left.as_ptr().cast::<i32>();
    for (place, pairs) in panel.iter().enumerate() {
        let from = pairs.0.as_ptr().cast::<__m512i>();
        // SAFETY: two cache lines at a multiple of 64 bytes.
        let b = unsafe { [_mm512_load_si512(from), _mm512_load_si512(from.add(1))] }.map(as_pairs);
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the last row has as many pairs as the panel has lines, as was asserted, and a pair has 32 bits.
            let value = as_pairs(_mm512_set1_epi32(unsafe { *rows.add(row * STRIDE * PAIRS + place) }));
            sums[0] = _mm512_dpbf16_ps(sums[0], value, b[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], value, b[1]);
        }
    }
    // The caller's promise is that of the macro.
    super::tile::store!(&sums, to);
}
