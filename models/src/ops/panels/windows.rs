//! Products whose left side is what a window sees of an image, read where it lies: a convolution without a matrix of
//! patches.
//!
//! Channels last, the terms of an output pixel are runs of the image, one for each row of the kernel, and those of the
//! next pixel in the row lie a step further. The sums have the order and so the bits of a product over patches.

use std::mem::MaybeUninit;

use super::tile::{Level, Runs, Target, Tile};
use super::{BLOCK, DEPTH, Lines, Panels, Start, strips};

/// What a window sees of some rows of an image that has its padding.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Windows<'a> {
    pub(in crate::ops) values: &'a [f32],
    /// Positions of the window along a row, and values from one to the next.
    pub(in crate::ops) columns: usize,
    pub(in crate::ops) step: usize,
    /// Values from one row of positions to the next.
    pub(in crate::ops) row_step: usize,
    /// Terms of a row of the window, and values from one to the next.
    pub(in crate::ops) run: usize,
    pub(in crate::ops) run_step: usize,
}

/// Whether rows of a window, of so many terms each, can be summed where they lie: at once, or in partial sums that end where
/// rows do, or parts of one row.
pub(in crate::ops) fn sums_in_place(run: usize, terms: usize) -> bool {
    terms <= DEPTH || DEPTH.is_multiple_of(run) || run.is_multiple_of(DEPTH)
}

impl Windows<'_> {
    /// `out = start + a b`, where the rows of `a` are what the window sees at its positions, row by row: `out` has
    /// `b.columns` values for each, and decides how many rows of positions there are. Each value is written.
    ///
    /// # Panics
    /// If the panels are not of f32, or their terms are not [summed in place](sums_in_place); if the image is smaller than what is seen, or `out`
    /// is not of whole rows; if it starts with what it holds.
    pub(in crate::ops) fn multiply(self, b: &Panels, start: Start<'_>, out: &mut [MaybeUninit<f32>]) {
        let Lines::Full(lines) = &b.lines else { panic!("windows are multiplied in f32") };
        assert!(b.depth.is_multiple_of(self.run) && sums_in_place(self.run, b.depth), "a window's terms");
        let (level, row_values) = (Level::of_machine(), self.columns * b.columns);
        assert!(out.len().is_multiple_of(row_values), "the result is of whole rows");
        match start {
            Start::Zero => {}
            Start::Row(row) => assert_eq!(row.len(), b.columns, "a row of the result"),
            Start::Kept => panic!("the result holds nothing yet"),
        }
        #[cfg(test)]
        crate::ops::product::count();
        let runs = Runs { length: self.run.min(DEPTH), stride: self.run_step };
        // A tile's columns are used for as many rows as stay in the cache beside it.
        let block = BLOCK.div_ceil(self.columns) * row_values;
        for (index, out) in out.chunks_mut(block).enumerate() {
            let first = index * BLOCK.div_ceil(self.columns);
            // The first partial sum writes what the others are added to.
            for from in (0..b.depth).step_by(DEPTH) {
                let (terms, start) =
                    (from..(from + DEPTH).min(b.depth), if from > 0 { Start::Kept } else { start });
                let image = &self.values[from / self.run * self.run_step + from % self.run..];
                for first_column in (0..b.columns).step_by(level.width()) {
                    let columns = first_column..(first_column + level.width()).min(b.columns);
                    let strips = strips(lines, b.depth, first_column, columns.len(), terms.clone());
                    let start = match start {
                        Start::Row(row) => Start::Row(&row[columns.clone()]),
                        start => start,
                    };
                    // Equal tiles: each has enough sums that no sum waits for itself.
                    let tiles = self.columns.div_ceil(level.height(columns.len()));
                    let height = self.columns.div_ceil(tiles);
                    for (row, out) in out.chunks_exact_mut(row_values).enumerate() {
                        for column in (0..self.columns).step_by(height) {
                            let height = height.min(self.columns - column);
                            let place = column * b.columns + columns.start;
                            let tile = Tile {
                                a: &image[(first + row) * self.row_step + column * self.step..],
                                a_stride: self.step,
                                runs,
                                strips,
                                to: Target {
                                    columns: columns.len(),
                                    scale: 1.0,
                                    start,
                                    out: out[place..].as_mut_ptr().cast(),
                                    row_stride: b.columns,
                                },
                            };
                            // SAFETY: the level is the machine's. The tile's last value is that of the last column of
                            // position `column + height - 1`, which lies in the row, since both are at most its ends; what is
                            // added to was written for the terms before.
                            unsafe { level.run(height, tile) };
                        }
                    }
                }
            }
        }
    }
}
