//! Matrix products by a kernel of our own, over a right side that lies packed in panels of 32 columns, those of f32 in
//! two strips of 16.
//!
//! A value of the result is a sum over the inner dimension in its order: fused multiply-adds from 0 on, in blocks of
//! [`DEPTH`] terms that are added in order. So its bits depend neither on the number of threads, nor on how many
//! rows there are beside it, nor on the width of the machine's vectors. (Machines without a fused multiply-add round
//! twice; their class of digits is another.)
//!
//! The tile of 12 rows and 32 columns is the largest whose sums stay in the registers of AVX-512 (Goto and van de Geijn
//! 2008): 24 of sums, two of the panel, the rest for broadcasts of the left side. That of AVX2 has the width of a strip, so
//! that a strip stays near while all rows of a block pass by it.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use self::tile::{Level, Runs, Target, Tile};
use super::product::Matrix;

#[cfg(target_arch = "x86_64")]
mod avx2;
mod half_tile;
#[cfg(test)]
mod tests;
mod tile;
mod windows;

pub(crate) use half_tile::has_half_products;
pub(super) use windows::{Windows, sums_in_place};

/// Columns of a panel.
const COLUMNS: usize = 32;
/// Columns of a strip: a cache line of f32.
const STRIP: usize = 16;
/// Terms of a partial sum: a panel of that depth fits into the cache of the second level beside the rows.
pub(super) const DEPTH: usize = 768;
/// The most rows of a block: those that a panel is used for while it is in the cache.
const BLOCK: usize = 144;
/// Rows of a full tile where registers are widest.
const TILE: usize = 12;
/// Lines from one packed row to the next; not a power of two, whose rows would share the sets of the cache.
const STRIDE: usize = DEPTH / STRIP + 1;

/// One row of a strip: a cache line.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([f32; STRIP]);

/// The right side of a product, `[depth, columns]`, strip by strip or panel by panel; zeros fill the last one.
pub(super) struct Panels {
    lines: Lines,
    depth: usize,
    columns: usize,
}

enum Lines {
    /// Strips.
    Full(Vec<Line>),
    /// Panels of bf16: so the left side is rounded to that too, and the sums are of f32.
    Half(Vec<half_tile::Pairs>),
}

/// Values that are packed sooner than other threads are woken.
const SMALL: usize = 1 << 13;
/// Multiplications that are done sooner than other threads are woken.
pub(super) const SMALL_PRODUCT: usize = SMALL * COLUMNS;

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
        let lines = packed(b.rows, b.columns, STRIP, parallel, |group, columns, lines: &mut [Line]| {
            pack_group(b, group * GROUP, columns, lines);
        });
        Self { lines: Lines::Full(lines), depth: b.rows, columns: b.columns }
    }

    /// Packs a matrix for a product in bf16, on a machine that [has such](has_half_products).
    pub(super) fn pack_half<T: half_tile::Narrow>(b: Matrix<'_, T>, parallel: bool) -> Self {
        let lines = packed(b.rows.div_ceil(2), b.columns, COLUMNS, parallel, |group, columns, lines| {
            half_tile::pack_group(b, 2 * group * GROUP, columns, lines);
        });
        Self { lines: Lines::Half(lines), depth: b.rows, columns: b.columns }
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }
}

/// The lines of a matrix of so many columns, `width` of them together, `depth` lines each: `pack` fills those of a group of
/// rows and of columns that are together, which are empty before.
fn packed<L: Copy + Default + Send>(
    depth: usize,
    columns: usize,
    width: usize,
    parallel: bool,
    pack: impl Fn(usize, Range<usize>, &mut [L]) + Sync,
) -> Vec<L> {
    let count = columns.div_ceil(width) * depth;
    let mut lines = Vec::with_capacity(count);
    let pack_together = |(place, lines): (usize, &mut [MaybeUninit<L>])| {
        let columns = place * width..((place + 1) * width).min(columns);
        for (group, lines) in lines.chunks_mut(GROUP).enumerate() {
            let mut packed = [L::default(); GROUP];
            pack(group, columns.clone(), &mut packed[..lines.len()]);
            for (line, packed) in lines.iter_mut().zip(packed) {
                line.write(packed);
            }
        }
    };
    let parallel = parallel && count * width >= SMALL;
    let empty = &mut lines.spare_capacity_mut()[..count];
    if parallel && depth > 0 {
        empty.par_chunks_exact_mut(depth).enumerate().for_each(pack_together);
    } else if depth > 0 {
        empty.chunks_exact_mut(depth).enumerate().for_each(pack_together);
    }
    // SAFETY: the chunks are all lines of columns that are together, and each of their lines was written.
    unsafe { lines.set_len(count) };
    lines
}

/// Rows of the right side that are packed at a time: what a column has of them lies in one or two cache lines.
const GROUP: usize = 16;

/// Rows of the right side from `first` on, in the columns of a strip.
fn pack_group(b: Matrix<'_>, first: usize, columns: Range<usize>, lines: &mut [Line]) {
    if b.column_stride == 1 {
        for (row, line) in lines.iter_mut().enumerate() {
            let from = (first + row) * b.row_stride;
            copy_line(line, &b.values[from + columns.start..from + columns.end]);
        }
    } else if b.row_stride == 1 && Level::of_machine().gathers(columns.len(), b.column_stride) {
        let values = &b.values[columns.start * b.column_stride + first..];
        Level::of_machine().gather(values, columns.len(), b.column_stride, lines);
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
    match values.as_array::<STRIP>() {
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
    let product = Product { a, b, scale, start, out: out.as_mut_ptr(), row_stride };
    // SAFETY: `check` compared the sizes, and `out` is borrowed mutably.
    unsafe { product.rectangle(0..a.rows, 0..b.count()) }
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
    if a.rows * a.columns * b.columns < SMALL_PRODUCT {
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
        let product = Product { a, b, scale, start, out: out.pointer(), row_stride };
        // SAFETY: as in `multiply`; tasks write to rectangles that do not overlap.
        unsafe { product.rectangle(rows, panels) }
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
    /// The same in bf16.
    static PACKED_HALF: Cell<Vec<half_tile::Line>> = const { Cell::new(Vec::new()) };
}

/// A product, and where it goes.
#[derive(Clone, Copy)]
struct Product<'a> {
    a: Matrix<'a>,
    b: &'a Panels,
    scale: f32,
    start: Start<'a>,
    out: *mut f32,
    row_stride: usize,
}

impl Product<'_> {
    /// The part in these rows and panels.
    ///
    /// # Safety
    /// `out` is valid for the rows of `a` and the columns of `b` at this stride, and nobody else touches the rectangle
    /// meanwhile.
    unsafe fn rectangle(self, rows: Range<usize>, panels: Range<usize>) {
        let Self { a, b, .. } = self;
        match &b.lines {
            Lines::Full(lines) => {
                let mut kernel = FullKernel::new(a, lines, b.depth, PACKED.take());
                // SAFETY: the caller's promise.
                unsafe { self.walk(&mut kernel, rows, panels) };
                PACKED.set(kernel.packed);
            }
            Lines::Half(lines) => {
                let mut kernel = half_tile::HalfKernel::new(a, lines, b.depth, PACKED_HALF.take());
                // SAFETY: the caller's promise.
                unsafe { self.walk(&mut kernel, rows, panels) };
                PACKED_HALF.set(kernel.packed);
            }
        }
    }

    /// Computes a rectangle tile by tile.
    ///
    /// # Safety
    /// As [`Self::rectangle`].
    unsafe fn walk(self, kernel: &mut impl Kernel, rows: Range<usize>, panels: Range<usize>) {
        let Self { a, b, scale, start, out, row_stride } = self;
        for first in rows.clone().step_by(BLOCK) {
            let count = BLOCK.min(rows.end - first);
            // Without terms there still is a start.
            for from in (0..a.columns.max(1)).step_by(DEPTH) {
                kernel.prepare(first..first + count, from..(from + DEPTH).min(a.columns));
                let (width, end) = (kernel.width(), (panels.end * COLUMNS).min(b.columns));
                for column in (panels.start * COLUMNS..end).step_by(width) {
                    let columns = column..(column + width).min(end);
                    let start = match start {
                        _ if from > 0 => Start::Kept,
                        Start::Row(row) => Start::Row(&row[columns.clone()]),
                        start => start,
                    };
                    let full = kernel.height(columns.len());
                    for row in (0..count).step_by(full) {
                        let height = full.min(count - row);
                        // SAFETY: the place lies inside the result.
                        let out = unsafe { out.add((first + row) * row_stride + columns.start) };
                        let to = Target { columns: columns.len(), scale, start, out, row_stride };
                        // SAFETY: the tile lies inside the rectangle, and its rows were made ready.
                        unsafe { kernel.tile(row, height, column, to) };
                    }
                }
            }
        }
    }
}

/// What computes the tiles of a product.
trait Kernel {
    /// Columns of a full tile, a part of those of a panel.
    fn width(&self) -> usize;

    /// Rows of a full tile of so many columns.
    fn height(&self, columns: usize) -> usize;

    /// Makes ready rows of the left side, and terms of them.
    fn prepare(&mut self, rows: Range<usize>, depth: Range<usize>);

    /// Computes a tile: from a row on, counted from the first one made ready, and from a column on, over the terms made
    /// ready.
    ///
    /// # Safety
    /// The rows were made ready, and the target is valid for them and its columns.
    unsafe fn tile(&self, row: usize, height: usize, column: usize, to: Target<'_>);
}

/// Products of f32.
struct FullKernel<'a> {
    a: Matrix<'a>,
    lines: &'a [Line],
    /// Lines of a strip, and those of the terms made ready.
    strip: usize,
    depth: Range<usize>,
    level: Level,
    /// The rows made ready: where they lie, if they are read there, and how far apart.
    in_place: Option<usize>,
    stride: usize,
    packed: Vec<Line>,
}

impl<'a> FullKernel<'a> {
    fn new(a: Matrix<'a>, lines: &'a [Line], strip: usize, mut packed: Vec<Line>) -> Self {
        packed.resize(BLOCK * STRIDE, Line::default());
        Self { a, lines, strip, depth: 0..0, level: Level::of_machine(), in_place: None, stride: 0, packed }
    }
}

impl Kernel for FullKernel<'_> {
    fn width(&self) -> usize {
        self.level.width()
    }

    fn height(&self, columns: usize) -> usize {
        self.level.height(columns)
    }

    fn prepare(&mut self, rows: Range<usize>, depth: Range<usize>) {
        let a = self.a;
        self.depth = depth.clone();
        if is_read_in_place(a) {
            self.in_place = Some((rows.start * a.row_stride + depth.start).min(a.values.len()));
            self.stride = a.row_stride;
        } else {
            self.in_place = None;
            self.stride = pack_rows(a, rows, depth, &mut self.packed);
        }
    }

    unsafe fn tile(&self, row: usize, height: usize, column: usize, to: Target<'_>) {
        let left = match self.in_place {
            Some(first) => &self.a.values[first..],
            None => floats(&self.packed),
        };
        let tile = Tile {
            a: &left[(row * self.stride).min(left.len())..],
            a_stride: self.stride,
            runs: Runs::one(self.depth.len()),
            strips: strips(self.lines, self.strip, column, to.columns, self.depth.clone()),
            to,
        };
        // SAFETY: the caller's promise, and the level is the machine's.
        unsafe { self.level.run(height, tile) };
    }
}

/// The terms of a tile's columns from `column` on: of its one or two strips, which have so many lines each.
fn strips(lines: &[Line], strip: usize, column: usize, columns: usize, terms: Range<usize>) -> [&[Line]; 2] {
    let of = |place: usize| &lines[place * strip..][terms.clone()];
    let first = column / STRIP;
    [of(first), if columns > STRIP { of(first + 1) } else { &[] }]
}

/// Whether the left side is read where it lies: row by row, and not at a distance at which the rows of a tile would share
/// the sets of the nearest cache.
fn is_read_in_place(a: Matrix<'_>) -> bool {
    const CONFLICT: usize = 512;
    a.column_stride == 1 && !a.row_stride.is_multiple_of(CONFLICT)
}

/// Copies a block of the left side, row by row; returns the distance of its rows, which is an odd number of lines.
fn pack_rows(a: Matrix<'_>, rows: Range<usize>, depth: Range<usize>, packed: &mut [Line]) -> usize {
    let terms = depth.len();
    let stride = terms.div_ceil(STRIP) | 1;
    if a.column_stride == 1 {
        for (row, lines) in rows.zip(packed.chunks_exact_mut(stride)) {
            let from = row * a.row_stride;
            let values = a.values[from + depth.start..from + depth.end].chunks(STRIP);
            lines.iter_mut().zip(values).for_each(|(line, values)| copy_line(line, values));
        }
    } else {
        // Of a transposed matrix the rows lie beside each other: a run of terms of all rows stays in the cache.
        for group in (0..terms).step_by(GROUP) {
            for term in group..(group + GROUP).min(terms) {
                let from = (depth.start + term) * a.column_stride;
                for (row, lines) in rows.clone().zip(packed.chunks_exact_mut(stride)) {
                    lines[term / STRIP].0[term % STRIP] = a.values[from + row * a.row_stride];
                }
            }
        }
    }
    stride * STRIP
}

/// Lines as the numbers that they are.
fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is `STRIP` floats and nothing else.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * STRIP) }
}
