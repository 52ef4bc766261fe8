//! Tiles of a product of f32: the innermost loops.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

use pulp::{Arch, NullaryFnOnce};

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::{COLUMNS, Line, STRIP, Start, TILE};

/// One tile of a product of f32, of at most as many rows as the left side has.
pub(super) struct Tile<'a> {
    /// Rows of the left side from the tile's first on, `a_stride` apart.
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    pub(super) runs: Runs,
    /// The terms of the right side: one strip, or two of equally many lines.
    pub(super) strips: [&'a [Line]; 2],
    pub(super) to: Target<'a>,
}

/// Where the terms of a row lie: runs of so many beside each other, the first of each so far from that of the one before.
#[derive(Clone, Copy)]
pub(super) struct Runs {
    pub(super) length: usize,
    pub(super) stride: usize,
}

impl Runs {
    /// All terms beside each other.
    pub(super) fn one(terms: usize) -> Self {
        Self { length: terms.max(1), stride: 0 }
    }
}

impl Tile<'_> {
    /// Lines of both strips for each run, and where its terms begin in the first row.
    ///
    /// # Panics
    /// If the left side does not have so many rows with all terms, or a second strip is shorter than the first.
    #[inline(always)]
    pub(super) fn runs(&self, rows: usize) -> impl Iterator<Item = (usize, [&[Line]; 2])> {
        let Runs { length, stride } = self.runs;
        let [first, second] = self.strips;
        let last = first.len().div_ceil(length).saturating_sub(1);
        let terms = first.len().min(length);
        assert!(
            first.is_empty() || self.a.len() >= (rows - 1) * self.a_stride + last * stride + terms,
            "a tile has its rows"
        );
        assert!(
            if self.to.columns > STRIP { second.len() == first.len() } else { second.is_empty() },
            "a tile has its strips"
        );
        // Of one strip the other has no lines, and no chunks.
        let mut second = second.chunks(length);
        let with_second = move |(run, lines)| (run * stride, [lines, second.next().unwrap_or_default()]);
        first.chunks(length).enumerate().map(with_second)
    }
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
    #[cfg(target_arch = "x86_64")]
    Avx2,
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
            if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
            if std::is_x86_feature_detected!("fma") {
                return Self::Fused;
            }
        }
        if cfg!(target_arch = "aarch64") { Self::Fused } else { Self::Plain }
    }

    /// All whose instructions this machine has, but for the one that is not fused.
    #[cfg(test)]
    pub(super) fn all_of_machine() -> Vec<Self> {
        let mut all = vec![Self::Fused];
        #[cfg(target_arch = "x86_64")]
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            all.push(Self::Avx2);
        }
        if !all.contains(&Self::of_machine()) {
            all.push(Self::of_machine());
        }
        all
    }

    /// Whether so many columns, this far apart, are [gathered](Self::gather).
    pub(super) fn gathers(self, columns: usize, stride: usize) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => columns == STRIP && stride * STRIP < i32::MAX as usize,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => true,
            // Neither does; where there are no others, what they would be asked for has no use.
            Self::Fused | Self::Plain => {
                let _ = (columns, stride);
                false
            }
        }
    }

    /// Packs rows of so many columns of a strip, which lie `stride` values apart.
    ///
    /// # Panics
    /// If a column has fewer values than there are lines, or this level does not [gather](Self::gathers) them.
    pub(super) fn gather(self, values: &[f32], columns: usize, stride: usize, lines: &mut [Line]) {
        assert!(
            columns <= STRIP && values.len() >= columns.saturating_sub(1) * stride + lines.len(),
            "columns have their terms"
        );
        assert!(self.gathers(columns, stride), "only levels that gather do");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a level is the machine's, and every column has as many values as there are lines.
            Self::Avx512 => unsafe { gather(values, stride, lines) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { avx2::gather(values, columns, stride, lines) },
            Self::Fused | Self::Plain => {}
        }
    }

    /// Columns of a full tile: one strip or two.
    pub(super) fn width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => STRIP,
            _ => COLUMNS,
        }
    }

    /// Rows of a full tile of so many columns.
    pub(super) fn height(self, columns: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => TILE,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::height(columns),
            // Twelve registers of sums, if a register holds eight values.
            Self::Fused | Self::Plain => 3,
        }
    }

    /// Computes a tile of `height` rows, of at most so many columns as the level's [width](Self::width).
    ///
    /// # Safety
    /// The machine has the instructions, and `tile.to` is valid for the tile's rows and columns; it has values there if
    /// it starts with them.
    pub(super) unsafe fn run(self, height: usize, tile: Tile<'_>) {
        #[cfg(target_arch = "x86_64")]
        match self {
            // SAFETY: the caller's promise.
            Self::Avx512 => unsafe {
                return match tile.to.columns <= STRIP {
                    true => tiles::<1>(height, tile),
                    false => tiles::<2>(height, tile),
                };
            },
            // SAFETY: the caller's promise.
            Self::Avx2 => unsafe { return avx2::run(height, tile) },
            Self::Fused | Self::Plain => {}
        }
        let fused = self == Self::Fused;
        match height {
            1 => Arch::new().dispatch(Portable::<1> { tile, fused }),
            2 => Arch::new().dispatch(Portable::<2> { tile, fused }),
            _ => Arch::new().dispatch(Portable::<3> { tile, fused }),
        }
    }
}

/// Packs rows of all columns of a strip, which lie `stride` values apart.
///
/// # Safety
/// Every column has as many values as there are lines.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn gather(values: &[f32], stride: usize, lines: &mut [Line]) {
    use std::arch::x86_64::{_mm512_i32gather_ps, _mm512_loadu_si512, _mm512_store_ps};
    let places: [i32; STRIP] = std::array::from_fn(|column| (column * stride) as i32);
    // SAFETY: sixteen numbers of 32 bits each.
    let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
    for (row, line) in lines.iter_mut().enumerate() {
        // SAFETY: the caller's promise, and a line is 16 floats at a multiple of 64 bytes.
        unsafe {
            let from = values.as_ptr().add(row);
            _mm512_store_ps(line.0.as_mut_ptr(), _mm512_i32gather_ps::<4>(places, from));
        }
    }
}

/// A tile of `height` rows, in the registers of AVX-512.
///
/// # Safety
/// As [`avx512`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tiles<const STRIPS: usize>(height: usize, tile: Tile<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match height {
            1 => avx512::<1, STRIPS>(tile),
            2 => avx512::<2, STRIPS>(tile),
            3 => avx512::<3, STRIPS>(tile),
            4 => avx512::<4, STRIPS>(tile),
            5 => avx512::<5, STRIPS>(tile),
            6 => avx512::<6, STRIPS>(tile),
            7 => avx512::<7, STRIPS>(tile),
            8 => avx512::<8, STRIPS>(tile),
            9 => avx512::<9, STRIPS>(tile),
            10 => avx512::<10, STRIPS>(tile),
            11 => avx512::<11, STRIPS>(tile),
            _ => avx512::<12, STRIPS>(tile),
        }
    }
}

/// A tile in the registers of AVX-512, of one strip or two.
///
/// # Safety
/// `tile.to` is valid for the tile's rows and columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const ROWS: usize, const STRIPS: usize>(tile: Tile<'_>) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_load_ps, _mm512_set1_ps, _mm512_setzero_ps};
    let mut sums: [[__m512; STRIPS]; ROWS] = [[_mm512_setzero_ps(); STRIPS]; ROWS];
    let stride = tile.a_stride;
    for (first, strips) in tile.runs(ROWS) {
        // SAFETY: the runs of all rows lie in the left side, as was asserted.
        let a = unsafe { tile.a.as_ptr().add(first) };
        let terms = strips[0].len();
        for place in 0..terms {
            let mut b = [_mm512_setzero_ps(); STRIPS];
            for (strip, b) in strips.iter().zip(&mut b) {
                // SAFETY: a second strip has as many lines as the first, as was asserted; each is 16 floats at a multiple of 64
                // bytes.
                *b = unsafe { _mm512_load_ps(strip.as_ptr().add(place).cast()) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let value = _mm512_set1_ps(unsafe { *a.add(row * stride + place) });
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(value, b, *sum);
                }
            }
        }
    }
    // The caller's promise is that of the macro.
    store!(&sums, tile.to);
}

/// A tile by loops: the safe twin of [`avx512`] and of those of AVX2, and the kernel of other machines.
struct Portable<'a, const ROWS: usize> {
    tile: Tile<'a>,
    fused: bool,
}

impl<const ROWS: usize> NullaryFnOnce for Portable<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        match (self.tile.to.columns <= STRIP, self.fused) {
            (true, true) => self.write::<1, true>(),
            (true, false) => self.write::<1, false>(),
            (false, true) => self.write::<2, true>(),
            (false, false) => self.write::<2, false>(),
        }
    }
}

impl<const ROWS: usize> Portable<'_, ROWS> {
    #[inline(always)]
    fn write<const STRIPS: usize, const FUSED: bool>(self) {
        let to = self.tile.to;
        for (row, sums) in sums::<ROWS, STRIPS, FUSED>(&self.tile).iter().enumerate() {
            for (column, sum) in sums.as_flattened().iter().enumerate().take(to.columns) {
                let out = to.out.wrapping_add(row * to.row_stride + column);
                let first = match to.start {
                    Start::Zero => 0.0,
                    Start::Row(row) => row[column],
                    // SAFETY: the caller of `Level::run` promises this place, and that there is a value.
                    Start::Kept => unsafe { out.read() },
                };
                // SAFETY: as above; nobody else touches it.
                unsafe { out.write(first + to.scale * sum) };
            }
        }
    }
}

#[inline(always)]
fn sums<const ROWS: usize, const STRIPS: usize, const FUSED: bool>(
    tile: &Tile<'_>,
) -> [[[f32; STRIP]; STRIPS]; ROWS] {
    let mut sums = [[[0.0f32; STRIP]; STRIPS]; ROWS];
    for (first, strips) in tile.runs(ROWS) {
        let terms = strips[0].len();
        let strips: [&[Line]; STRIPS] = std::array::from_fn(|strip| &strips[strip][..terms]);
        let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &tile.a[row * tile.a_stride + first..][..terms]);
        for place in 0..terms {
            for (sums, row) in sums.iter_mut().zip(rows) {
                let value = row[place];
                for (sums, strip) in sums.iter_mut().zip(strips) {
                    for (sum, b) in sums.iter_mut().zip(strip[place].0) {
                        *sum = if FUSED { value.mul_add(b, *sum) } else { value * b + *sum };
                    }
                }
            }
        }
    }
    sums
}
