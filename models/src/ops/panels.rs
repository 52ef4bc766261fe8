//! Matrix products by a kernel of our own, over a right side that lies packed in panels of 32 columns.
//!
//! A value of the result is a sum over the inner dimension in its order: fused multiply-adds from 0 on, in blocks of
//! [`DEPTH`] terms that are added in order. So its bits depend neither on the number of threads, nor on how many
//! rows there are beside it, nor on the width of the machine's vectors. (Machines without a fused multiply-add round
//! twice; their class of digits is another.)
//!
//! The tile of 12 rows and 32 columns is the largest whose sums stay in the registers of AVX-512 (Goto and van de Geijn
//! 2008): 24 of sums, two of the panel, the rest for broadcasts of the left side.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::product::Matrix;

#[cfg(test)]
mod tests;

/// Columns of a panel.
const COLUMNS: usize = 32;
/// Terms of a partial sum: a panel of that depth fits into the cache of the second level beside the rows.
pub(super) const DEPTH: usize = 768;
/// The most rows of a block: those that a panel is used for while it is in the cache.
const BLOCK: usize = 144;
/// Rows of a full tile where registers are widest.
const TILE: usize = 12;
/// Lines from one packed row to the next; not a power of two, whose rows would share the sets of the cache.
const STRIDE: usize = DEPTH / COLUMNS + 1;

/// One row of a panel: two cache lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; COLUMNS]);

const EMPTY: Line = Line([0.0; COLUMNS]);

/// The right side of a product, `[depth, columns]`, panel by panel; zeros fill the last one.
pub(super) struct Panels {
    lines: Vec<Line>,
    depth: usize,
    columns: usize,
}

/// Values that are packed sooner than other threads are woken.
const SMALL: usize = 1 << 13;

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Nothing.
    Zero,
    /// A row, in every row.
    Row(&'a [f32]),
    /// What the result holds.
    Kept,
}

impl Panels {
    /// Packs a matrix; with `parallel`, its panels side by side.
    pub(super) fn pack(b: Matrix<'_>, parallel: bool) -> Self {
        let count = b.columns.div_ceil(COLUMNS) * b.rows;
        let mut lines = Vec::with_capacity(count);
        let pack = |(panel, lines): (usize, &mut [MaybeUninit<Line>])| {
            let columns = panel * COLUMNS..((panel + 1) * COLUMNS).min(b.columns);
            let mut packed = [EMPTY; GROUP];
            for (group, lines) in lines.chunks_mut(GROUP).enumerate() {
                pack_group(b, group * GROUP, columns.clone(), &mut packed[..lines.len()]);
                for (line, packed) in lines.iter_mut().zip(packed) {
                    line.write(packed);
                }
            }
        };
        let parallel = parallel && count * COLUMNS >= SMALL;
        let empty = &mut lines.spare_capacity_mut()[..count];
        if parallel && b.rows > 0 {
            empty.par_chunks_exact_mut(b.rows).enumerate().for_each(pack);
        } else if b.rows > 0 {
            empty.chunks_exact_mut(b.rows).enumerate().for_each(pack);
        }
        // SAFETY: the chunks are whole panels, and each of their lines was written.
        unsafe { lines.set_len(count) };
        Self { lines, depth: b.rows, columns: b.columns }
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }
}

/// Rows of the right side that are packed at a time: what a column has of them lies in one or two cache lines.
const GROUP: usize = 16;

/// Rows of the right side from `first` on, in the columns of a panel.
fn pack_group(b: Matrix<'_>, first: usize, columns: Range<usize>, lines: &mut [Line]) {
    if b.column_stride == 1 {
        for (row, line) in lines.iter_mut().enumerate() {
            let from = (first + row) * b.row_stride;
            copy_line(line, &b.values[from + columns.start..from + columns.end]);
        }
    } else if b.row_stride == 1 {
        let count = lines.len();
        let column = |column: usize| &b.values[column * b.column_stride + first..][..count];
        let together = columns.len() / 4 * 4;
        // Four columns together: their values lie beside each other in a line.
        for place in (0..together).step_by(4) {
            let four: [&[f32]; 4] = std::array::from_fn(|next| column(columns.start + place + next));
            for (row, line) in lines.iter_mut().enumerate() {
                line.0[place..place + 4].copy_from_slice(&four.map(|column| column[row]));
            }
        }
        for place in together..columns.len() {
            for (line, value) in lines.iter_mut().zip(column(columns.start + place)) {
                line.0[place] = *value;
            }
        }
    } else {
        for (row, line) in lines.iter_mut().enumerate() {
            let from = (first + row) * b.row_stride;
            for (value, column) in line.0.iter_mut().zip(columns.clone()) {
                *value = b.values[from + column * b.column_stride];
            }
        }
    }
}

/// Copies at most a line of values.
fn copy_line(line: &mut Line, values: &[f32]) {
    match values.as_array::<COLUMNS>() {
        Some(values) => line.0 = *values,
        None => line.0[..values.len()].copy_from_slice(values),
    }
}

/// Rows of a task of which a pool gives each thread equally many: any number gives the same bits.
pub(super) fn task_rows(rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let tasks = threads * rows.div_ceil(threads * BLOCK).max(1);
    rows.div_ceil(tasks).next_multiple_of(TILE).max(4 * TILE)
}

/// `out = start + scale * a b` on this thread; rows of `out` lie `row_stride` apart.
pub(super) fn multiply(
    a: Matrix<'_>,
    b: &Panels,
    scale: f32,
    start: Start<'_>,
    out: &mut [f32],
    row_stride: usize,
) {
    check(a, b, start, out.len(), row_stride);
    // SAFETY: `check` compared the sizes, and `out` is borrowed mutably.
    unsafe { rectangle(a, 0..a.rows, b, 0..b.count(), scale, start, out.as_mut_ptr(), row_stride) }
}

/// As [`multiply`], by all threads of the pool.
pub(super) fn multiply_parallel(
    a: Matrix<'_>,
    b: &Panels,
    scale: f32,
    start: Start<'_>,
    out: &mut [f32],
    row_stride: usize,
) {
    if a.rows * a.columns * b.columns < SMALL * COLUMNS {
        return multiply(a, b, scale, start, out, row_stride);
    }
    check(a, b, start, out.len(), row_stride);
    let out = Destination(out.as_mut_ptr());
    let (height, threads) = (task_rows(a.rows), rayon::current_num_threads());
    let blocks = a.rows.div_ceil(height);
    // Few rows: the columns are shared too.
    let groups = if blocks >= threads { 1 } else { (2 * threads).div_ceil(blocks.max(1)).min(b.count()) };
    let width = b.count().div_ceil(groups.max(1));
    (0..blocks * groups).into_par_iter().for_each(|task| {
        let (block, group) = (task / groups, task % groups);
        let rows = block * height..((block + 1) * height).min(a.rows);
        let panels = (group * width).min(b.count())..((group + 1) * width).min(b.count());
        // SAFETY: as in `multiply`; tasks write to rectangles that do not overlap.
        unsafe { rectangle(a, rows, b, panels, scale, start, out.pointer(), row_stride) }
    });
}

/// A matrix that several threads write to, each to its own part.
#[derive(Clone, Copy)]
struct Destination(*mut f32);

// SAFETY: a pointer is a number; what is written through it is argued for where it is used.
unsafe impl Send for Destination {}
// SAFETY: as above.
unsafe impl Sync for Destination {}

impl Destination {
    fn pointer(self) -> *mut f32 {
        self.0
    }
}

fn check(a: Matrix<'_>, b: &Panels, start: Start<'_>, length: usize, row_stride: usize) {
    assert_eq!(a.columns, b.depth, "inner dimensions agree");
    let last = if a.rows == 0 || b.columns == 0 { 0 } else { (a.rows - 1) * row_stride + b.columns };
    assert!(row_stride >= b.columns && length >= last, "the result fits");
    if let Start::Row(row) = start {
        assert_eq!(row.len(), b.columns, "a row of the result");
    }
    #[cfg(test)]
    super::product::count();
}

thread_local! {
    /// The packed left side, kept for the next product. It is taken out while it is used, so that nothing is borrowed.
    static PACKED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// The part of a product in these rows and panels.
///
/// # Safety
/// `out` is valid for the rows of `a` and the columns of `b` at this stride, and nobody else touches the rectangle
/// meanwhile.
#[allow(clippy::too_many_arguments, reason = "a product is all of this")]
unsafe fn rectangle(
    a: Matrix<'_>,
    rows: Range<usize>,
    b: &Panels,
    panels: Range<usize>,
    scale: f32,
    start: Start<'_>,
    out: *mut f32,
    row_stride: usize,
) {
    let level = Level::of_machine();
    let mut packed = PACKED.take();
    packed.resize(BLOCK * STRIDE, EMPTY);
    let in_place = is_read_in_place(a);
    for first in rows.clone().step_by(BLOCK) {
        let count = BLOCK.min(rows.end - first);
        // Without terms there still is a start.
        for from in (0..a.columns.max(1)).step_by(DEPTH) {
            let depth = from..(from + DEPTH).min(a.columns);
            let (left, left_stride) = if in_place {
                (&a.values[(first * a.row_stride + from).min(a.values.len())..], a.row_stride)
            } else {
                pack_rows(a, first..first + count, depth.clone(), &mut packed)
            };
            for panel in panels.clone() {
                let lines = &b.lines[panel * b.depth..][depth.clone()];
                let columns = panel * COLUMNS..((panel + 1) * COLUMNS).min(b.columns);
                let start = match start {
                    _ if from > 0 => Start::Kept,
                    Start::Row(row) => Start::Row(&row[columns.clone()]),
                    start => start,
                };
                let mut row = 0;
                while row < count {
                    let height = level.height().min(count - row);
                    let tile = Tile {
                        a: &left[(row * left_stride).min(left.len())..],
                        a_stride: left_stride,
                        panel: lines,
                        columns: columns.len(),
                        scale,
                        start,
                        // SAFETY: the place lies inside the result.
                        out: unsafe { out.add((first + row) * row_stride + columns.start) },
                        row_stride,
                    };
                    // SAFETY: the tile lies inside the rectangle, and the level is the machine's.
                    unsafe { level.run(height, tile) };
                    row += height;
                }
            }
        }
    }
    PACKED.set(packed);
}

/// Whether the left side is read where it lies: row by row, and not at a distance at which the rows of a tile would share
/// the sets of the nearest cache.
fn is_read_in_place(a: Matrix<'_>) -> bool {
    const CONFLICT: usize = 512;
    a.column_stride == 1 && !a.row_stride.is_multiple_of(CONFLICT)
}

/// Copies a block of the left side, row by row; returns it with the distance of its rows, which is an odd number of lines.
fn pack_rows<'p>(
    a: Matrix<'_>,
    rows: Range<usize>,
    depth: Range<usize>,
    packed: &'p mut [Line],
) -> (&'p [f32], usize) {
    let terms = depth.len();
    let stride = terms.div_ceil(COLUMNS) | 1;
    if a.column_stride == 1 {
        for (row, lines) in rows.zip(packed.chunks_exact_mut(stride)) {
            let from = row * a.row_stride;
            let values = a.values[from + depth.start..from + depth.end].chunks(COLUMNS);
            lines.iter_mut().zip(values).for_each(|(line, values)| copy_line(line, values));
        }
    } else {
        // Of a transposed matrix the rows lie beside each other: a run of terms of all rows stays in the cache.
        for group in (0..terms).step_by(GROUP) {
            for term in group..(group + GROUP).min(terms) {
                let from = (depth.start + term) * a.column_stride;
                for (row, lines) in rows.clone().zip(packed.chunks_exact_mut(stride)) {
                    lines[term / COLUMNS].0[term % COLUMNS] = a.values[from + row * a.row_stride];
                }
            }
        }
    }
    (floats(packed), stride * COLUMNS)
}

/// Lines as the numbers that they are.
fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is `COLUMNS` floats and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * COLUMNS) }
}

/// One tile of the result, of at most as many rows as the left side has.
struct Tile<'a> {
    /// Rows of the left side from the tile's first on, `a_stride` apart.
    a: &'a [f32],
    a_stride: usize,
    panel: &'a [Line],
    columns: usize,
    scale: f32,
    start: Start<'a>,
    out: *mut f32,
    row_stride: usize,
}

/// Which instructions compute tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// What the compiler makes of loops, with fused multiply-adds.
    Fused,
    /// The same without.
    Plain,
}

impl Level {
    fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if std::is_x86_feature_detected!("fma") {
                return Self::Fused;
            }
        }
        if cfg!(target_arch = "aarch64") { Self::Fused } else { Self::Plain }
    }

    /// Rows of a full tile.
    fn height(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => TILE,
            // Twelve registers of sums, if a register holds eight values.
            Self::Fused | Self::Plain => 3,
        }
    }

    /// Computes a tile of `height` rows.
    ///
    /// # Safety
    /// The machine has the instructions, and `tile.out` is valid for the tile's rows and columns.
    unsafe fn run(self, height: usize, tile: Tile<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512 {
            // SAFETY: the caller's promise.
            unsafe {
                match height {
                    1 => avx512::<1>(tile),
                    2 => avx512::<2>(tile),
                    3 => avx512::<3>(tile),
                    4 => avx512::<4>(tile),
                    5 => avx512::<5>(tile),
                    6 => avx512::<6>(tile),
                    7 => avx512::<7>(tile),
                    8 => avx512::<8>(tile),
                    9 => avx512::<9>(tile),
                    10 => avx512::<10>(tile),
                    11 => avx512::<11>(tile),
                    _ => avx512::<12>(tile),
                }
            }
            return;
        }
        let fused = self == Self::Fused;
        match height {
            1 => Arch::new().dispatch(Portable::<1> { tile, fused }),
            2 => Arch::new().dispatch(Portable::<2> { tile, fused }),
            _ => Arch::new().dispatch(Portable::<3> { tile, fused }),
        }
    }
}

/// A tile in the registers of AVX-512.
///
/// # Safety
/// `tile.out` is valid for the tile's rows and columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize>(tile: Tile<'_>) {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_load_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };
    const HALF: usize = COLUMNS / 2;
    assert!(
        tile.panel.is_empty() || tile.a.len() >= (ROWS - 1) * tile.a_stride + tile.panel.len(),
        "a tile has its rows"
    );
    let mut sums: [[__m512; 2]; ROWS] = [[_mm512_setzero_ps(); 2]; ROWS];
    let (a, stride) = (tile.a.as_ptr(), tile.a_stride);
    for (place, line) in tile.panel.iter().enumerate() {
        // SAFETY: a line is 32 floats at a multiple of 64 bytes.
        let b = unsafe { [_mm512_load_ps(line.0.as_ptr()), _mm512_load_ps(line.0.as_ptr().add(HALF))] };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the last row has as many values as the panel has lines, as was asserted.
            let value = _mm512_set1_ps(unsafe { *a.add(row * stride + place) });
            sums[0] = _mm512_fmadd_ps(value, b[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(value, b[1], sums[1]);
        }
    }
    let scale = _mm512_set1_ps(tile.scale);
    for (half, columns) in [tile.columns.min(HALF), tile.columns.saturating_sub(HALF)].into_iter().enumerate()
    {
        let mask = ((1u32 << columns) - 1) as u16;
        let first = match tile.start {
            // SAFETY: the mask is that of the row's values in this half.
            Start::Row(row) => unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(half * HALF)) },
            Start::Zero | Start::Kept => _mm512_setzero_ps(),
        };
        for (row, sums) in sums.iter().enumerate() {
            let out = tile.out.wrapping_add(row * tile.row_stride + half * HALF);
            // SAFETY: masked to the tile's columns, where the caller lets us read and write.
            let first = match tile.start {
                Start::Kept => unsafe { _mm512_maskz_loadu_ps(mask, out) },
                Start::Zero | Start::Row(_) => first,
            };
            let value = _mm512_add_ps(first, _mm512_mul_ps(scale, sums[half]));
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(out, mask, value) };
        }
    }
}

/// A tile by loops: the safe twin of [`avx512`], and the kernel of other machines.
struct Portable<'a, const ROWS: usize> {
    tile: Tile<'a>,
    fused: bool,
}

impl<const ROWS: usize> NullaryFnOnce for Portable<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { tile, fused } = self;
        let sums = if fused {
            sums::<ROWS, true>(tile.a, tile.a_stride, tile.panel)
        } else {
            sums::<ROWS, false>(tile.a, tile.a_stride, tile.panel)
        };
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the caller of `Level::run` promises these places, and nobody else touches them.
            let out = unsafe {
                std::slice::from_raw_parts_mut(tile.out.wrapping_add(row * tile.row_stride), tile.columns)
            };
            for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                let first = match tile.start {
                    Start::Zero => 0.0,
                    Start::Row(row) => row[column],
                    Start::Kept => *out,
                };
                *out = first + tile.scale * sum;
            }
        }
    }
}

#[inline(always)]
fn sums<const ROWS: usize, const FUSED: bool>(
    a: &[f32],
    stride: usize,
    panel: &[Line],
) -> [[f32; COLUMNS]; ROWS] {
    let mut sums = [[0.0f32; COLUMNS]; ROWS];
    if panel.is_empty() {
        return sums;
    }
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &a[row * stride..][..panel.len()]);
    for (place, line) in panel.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let value = row[place];
            for (sum, b) in sums.iter_mut().zip(line.0) {
                *sum = if FUSED { value.mul_add(b, *sum) } else { value * b + *sum };
            }
        }
    }
    sums
}
