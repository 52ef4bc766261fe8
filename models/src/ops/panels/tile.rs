//! Tiles of a product of f32: the innermost loops.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

use pulp::{Arch, NullaryFnOnce};

use super::{COLUMNS, Line, Start, TILE};

/// One tile of a product of f32, of at most as many rows as the left side has.
pub(super) struct Tile<'a> {
    /// Rows of the left side from the tile's first on, `a_stride` apart.
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) panel: &'a [Line],
    pub(super) to: Target<'a>,
}

/// Where the sums of a tile go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) columns: usize,
    pub(super) scale: f32,
    pub(super) start: Start<'a>,
    pub(super) out: *mut f32,
    pub(super) row_stride: usize,
}

/// Writes `start + scale * sums` of a tile in the registers of AVX-512. No function, whose argument would have to lie in
/// memory while the sums are made.
///
/// # Safety
/// The machine has AVX-512, and the target is valid for the rows of the sums and its columns.
#[cfg(target_arch = "x86_64")]
macro_rules! store {
    ($sums:expr, $to:expr) => {{
        let (sums, to) = ($sums, $to);
        use std::arch::x86_64::{
            _mm512_add_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
            _mm512_setzero_ps,
        };
        const HALF: usize = COLUMNS / 2;
        let scale = _mm512_set1_ps(to.scale);
        let halves = [to.columns.min(HALF), to.columns.saturating_sub(HALF)];
        for (half, columns) in halves.into_iter().enumerate().take(sums[0].len()) {
            let mask = ((1u32 << columns) - 1) as u16;
            let first = match to.start {
                // SAFETY: the mask is that of the row's values in this half.
                Start::Row(row) => unsafe {
                    _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(half * HALF))
                },
                Start::Zero | Start::Kept => _mm512_setzero_ps(),
            };
            for (row, sums) in sums.iter().enumerate() {
                let out = to.out.wrapping_add(row * to.row_stride + half * HALF);
                // SAFETY: masked to the tile's columns, where the caller lets us read and write.
                let first = match to.start {
                    Start::Kept => unsafe { _mm512_maskz_loadu_ps(mask, out) },
                    Start::Zero | Start::Row(_) => first,
                };
                let value = _mm512_add_ps(first, _mm512_mul_ps(scale, sums[half]));
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_ps(out, mask, value) };
            }
        }
    }};
}

#[cfg(target_arch = "x86_64")]
pub(super) use store;

/// Which instructions compute tiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// What the compiler makes of loops, with fused multiply-adds.
    Fused,
    /// The same without.
    Plain,
}

impl Level {
    pub(super) fn of_machine() -> Self {
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

    /// Whether columns this far apart are gathered.
    pub(super) fn gathers(self, stride: usize) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Avx512 && stride * COLUMNS < i32::MAX as usize;
        #[cfg(not(target_arch = "x86_64"))]
        return stride == 0 && false;
    }

    /// Rows of a full tile.
    pub(super) fn height(self) -> usize {
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
    /// The machine has the instructions, and `tile.to` is valid for the tile's rows and columns.
    pub(super) unsafe fn run(self, height: usize, tile: Tile<'_>) {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512 {
            // SAFETY: the caller's promise.
            unsafe {
                // Half of a panel may be empty.
                match tile.to.columns <= COLUMNS / 2 {
                    true => tiles::<1>(height, tile),
                    false => tiles::<2>(height, tile),
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

/// Packs rows of all columns of a panel, which lie `stride` values apart.
///
/// # Safety
/// Every column has as many values as there are lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gather(values: &[f32], stride: usize, lines: &mut [Line]) {
    use std::arch::x86_64::{_mm512_i32gather_ps, _mm512_loadu_si512, _mm512_store_ps};
    const HALF: usize = COLUMNS / 2;
    let places: [i32; COLUMNS] = std::array::from_fn(|column| (column * stride) as i32);
    // SAFETY: sixteen numbers of 32 bits each.
    let places = [0, HALF].map(|half| unsafe { _mm512_loadu_si512(places[half..].as_ptr().cast()) });
    for (row, line) in lines.iter_mut().enumerate() {
        for (half, places) in places.into_iter().enumerate() {
            // SAFETY: the caller's promise, and a line is 32 floats at a multiple of 64 bytes.
            unsafe {
                let from = values.as_ptr().add(row);
                _mm512_store_ps(line.0.as_mut_ptr().add(half * HALF), _mm512_i32gather_ps::<4>(places, from));
            }
        }
    }
}

/// A tile of `height` rows, in the registers of AVX-512.
///
/// # Safety
/// As [`avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tiles<const HALVES: usize>(height: usize, tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match height {
            1 => avx512::<1, HALVES>(tile),
            2 => avx512::<2, HALVES>(tile),
            3 => avx512::<3, HALVES>(tile),
            4 => avx512::<4, HALVES>(tile),
            5 => avx512::<5, HALVES>(tile),
            6 => avx512::<6, HALVES>(tile),
            7 => avx512::<7, HALVES>(tile),
            8 => avx512::<8, HALVES>(tile),
            9 => avx512::<9, HALVES>(tile),
            10 => avx512::<10, HALVES>(tile),
            11 => avx512::<11, HALVES>(tile),
            _ => avx512::<12, HALVES>(tile),
        }
    }
}

/// A tile in the registers of AVX-512, of the first half of a panel's columns or of both.
///
/// # Safety
/// `tile.to` is valid for the tile's rows and columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize, const HALVES: usize>(tile: Tile<'_>) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_load_ps, _mm512_set1_ps, _mm512_setzero_ps};
    const HALF: usize = COLUMNS / 2;
    assert!(
        tile.panel.is_empty() || tile.a.len() >= (ROWS - 1) * tile.a_stride + tile.panel.len(),
        "a tile has its rows"
    );
    let mut sums: [[__m512; HALVES]; ROWS] = [[_mm512_setzero_ps(); HALVES]; ROWS];
    let (a, stride) = (tile.a.as_ptr(), tile.a_stride);
    for (place, line) in tile.panel.iter().enumerate() {
        let mut b = [_mm512_setzero_ps(); HALVES];
        for (half, b) in b.iter_mut().enumerate() {
            // SAFETY: a line is 32 floats at a multiple of 64 bytes.
            *b = unsafe { _mm512_load_ps(line.0.as_ptr().add(half * HALF)) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the last row has as many values as the panel has lines, as was asserted.
            let value = _mm512_set1_ps(unsafe { *a.add(row * stride + place) });
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = _mm512_fmadd_ps(value, b, *sum);
            }
        }
    }
    // The caller's promise is that of the macro.
    store!(&sums, tile.to);
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
                std::slice::from_raw_parts_mut(
                    tile.to.out.wrapping_add(row * tile.to.row_stride),
                    tile.to.columns,
                )
            };
            for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                let first = match tile.to.start {
                    Start::Zero => 0.0,
                    Start::Row(row) => row[column],
                    Start::Kept => *out,
                };
                *out = first + tile.to.scale * sum;
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
