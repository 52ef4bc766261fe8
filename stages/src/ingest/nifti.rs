//! NIfTI-1 volumes, plain or gzipped, read slice by slice.
//!
//! A file is untrusted: sizes are bounded before memory is taken for them, and what follows the voxels is
//! not read.

use std::io::Read;

use super::source::SourceFile;

/// More voxels than this are in no scan.
const VOXEL_LIMIT: usize = 1 << 29;
/// Extensions between header and voxels are at most this long.
const OFFSET_LIMIT: usize = 16 << 20;
const HEADER: usize = 348;

/// A volume.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Nifti {
    /// Stored values `[x, y, z]`, z fastest.
    pub(crate) voxels: Vec<f32>,
    /// Their numbers along x, y, z.
    pub(crate) shape: [usize; 3],
    /// Millimetres from one to the next along x, y, z.
    pub(crate) spacing: [f32; 3],
    /// Values are `slope * voxel + intercept`.
    pub(crate) slope: f64,
    /// See `slope`.
    pub(crate) intercept: f64,
}

/// How a voxel is stored.
#[derive(Clone, Copy)]
struct Voxel {
    bytes: usize,
    read: fn(&[u8], bool) -> f32,
}

/// Numbers as they are written, low byte first unless `big`.
macro_rules! number {
    ($kind:ty, $bytes:expr, $big:expr) => {{
        let mut bytes = [0; size_of::<$kind>()];
        bytes.copy_from_slice(&$bytes[..size_of::<$kind>()]);
        if $big { <$kind>::from_be_bytes(bytes) } else { <$kind>::from_le_bytes(bytes) }
    }};
}

macro_rules! voxel {
    ($kind:ty) => {
        Voxel { bytes: size_of::<$kind>(), read: |bytes, big| number!($kind, bytes, big) as f32 }
    };
}

impl Voxel {
    fn of(datatype: i16) -> Option<Self> {
        Some(match datatype {
            2 => voxel!(u8),
            4 => voxel!(i16),
            8 => voxel!(i32),
            16 => voxel!(f32),
            64 => voxel!(f64),
            256 => voxel!(i8),
            512 => voxel!(u16),
            768 => voxel!(u32),
            _ => return None,
        })
    }
}

/// Reads a volume; the reason if it cannot be used.
pub(crate) fn read(file: &SourceFile) -> Result<Nifti, String> {
    let mut bytes = file.open_gzip()?;
    read_from(&mut bytes)
}

fn read_from(input: &mut dyn Read) -> Result<Nifti, String> {
    let mut header = [0; HEADER];
    input.read_exact(&mut header).map_err(|error| format!("it ends in its header: {error}"))?;
    let big = match (number!(i32, header, false), number!(i32, header, true)) {
        (348, _) => false,
        (_, 348) => true,
        (540, _) | (_, 540) => return Err("it is NIfTI-2; NIfTI-1 is read".to_owned()),
        _ => return Err("it does not begin as a NIfTI file does".to_owned()),
    };
    match &header[344..348] {
        b"n+1\0" => {}
        b"ni1\0" => return Err("its voxels are in another file (.img); one file is read".to_owned()),
        _ => return Err("it is no NIfTI-1 file".to_owned()),
    }
    let short = |at: usize| number!(i16, header[at..], big);
    let single = |at: usize| number!(f32, header[at..], big);
    let shape = shape(std::array::from_fn(|axis| short(40 + 2 * axis)))?;
    let datatype = short(70);
    let voxel =
        Voxel::of(datatype).ok_or_else(|| format!("its voxels are of type {datatype}, which is not read"))?;
    if usize::from(short(72).unsigned_abs()) != 8 * voxel.bytes {
        return Err(format!("its voxels of type {datatype} have {} bits", short(72)));
    }
    let spacing = std::array::from_fn(|axis| single(80 + 4 * axis).abs());
    let offset = single(108);
    if !(offset >= HEADER as f32 && offset <= OFFSET_LIMIT as f32) {
        return Err(format!("its voxels begin at byte {offset}"));
    }
    let (slope, intercept) = (f64::from(single(112)), f64::from(single(116)));
    // A slope of 0 says that there is none.
    let (slope, intercept) = if slope == 0.0 || !slope.is_finite() || !intercept.is_finite() {
        (1.0, 0.0)
    } else {
        (slope, intercept)
    };
    let mut skipped = vec![0; offset as usize - HEADER];
    input.read_exact(&mut skipped).map_err(|error| format!("it ends before its voxels: {error}"))?;

    let [width, height, depth] = shape;
    let mut voxels = vec![0.0; width * height * depth];
    let mut slice = vec![0; width * height * voxel.bytes];
    for z in 0..depth {
        input
            .read_exact(&mut slice)
            .map_err(|error| format!("it ends in slice {} of {depth}: {error}", z + 1))?;
        for (place, bytes) in slice.chunks_exact(voxel.bytes).enumerate() {
            let value = (voxel.read)(bytes, big);
            if !value.is_finite() {
                return Err(format!("a voxel of slice {} is {value}", z + 1));
            }
            let (x, y) = (place % width, place / width);
            voxels[(x * height + y) * depth + z] = value;
        }
    }
    Ok(Nifti { voxels, shape, spacing, slope, intercept })
}

/// The three sizes of a volume; further axes may have one place alone.
fn shape(dim: [i16; 8]) -> Result<[usize; 3], String> {
    let wrong = || format!("its sizes are {dim:?}; three are expected");
    let axes = usize::try_from(dim[0]).map_err(|_| wrong())?;
    if !(3..=7).contains(&axes) || dim[4..=axes].iter().any(|size| *size != 1) {
        return Err(wrong());
    }
    let shape = [dim[1], dim[2], dim[3]].map(|size| usize::try_from(size).unwrap_or(0));
    // Three sizes below 2^15 do not overflow.
    match shape.iter().product::<usize>() {
        0 => Err(wrong()),
        voxels if voxels > VOXEL_LIMIT => {
            Err(format!("it has {voxels} voxels; at most {VOXEL_LIMIT} are read"))
        }
        _ => Ok(shape),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of i16 voxels, x fastest.
    pub(crate) fn file(shape: [i16; 3], voxels: &[i16]) -> Vec<u8> {
        let mut bytes = vec![0; 352];
        bytes[..4].copy_from_slice(&348i32.to_le_bytes());
        for (axis, size) in [3, shape[0], shape[1], shape[2], 1, 1, 1, 1].into_iter().enumerate() {
            bytes[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&size.to_le_bytes());
        }
        bytes[70..72].copy_from_slice(&4i16.to_le_bytes());
        bytes[72..74].copy_from_slice(&16i16.to_le_bytes());
        for (axis, size) in [1.0f32, 0.75, 0.75, 1.5].into_iter().enumerate() {
            bytes[76 + 4 * axis..80 + 4 * axis].copy_from_slice(&size.to_le_bytes());
        }
        bytes[108..112].copy_from_slice(&352f32.to_le_bytes());
        bytes[344..348].copy_from_slice(b"n+1\0");
        bytes.extend(voxels.iter().flat_map(|voxel| voxel.to_le_bytes()));
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Nifti, String> {
        read_from(&mut &bytes[..])
    }

    #[test]
    fn x_is_fastest_in_the_file_and_z_in_memory() {
        let voxels: Vec<i16> = (0..24).collect();
        let read = parse(&file([2, 3, 4], &voxels)).unwrap();
        assert_eq!((read.shape, read.spacing), ([2, 3, 4], [0.75, 0.75, 1.5]));
        assert_eq!((read.slope, read.intercept), (1.0, 0.0));
        let at = |x: usize, y: usize, z: usize| read.voxels[(x * 3 + y) * 4 + z];
        assert_eq!((at(1, 0, 0), at(0, 1, 0), at(0, 0, 1), at(1, 2, 3)), (1.0, 2.0, 6.0, 23.0));
    }

    #[test]
    fn the_other_byte_order_reads_alike() {
        let voxels: Vec<i16> = (-3..3).collect();
        let little = file([1, 2, 3], &voxels);
        let mut big = little.clone();
        for (start, bytes) in [(0, 4), (70, 2), (72, 2), (108, 4)] {
            big[start..start + bytes].reverse();
        }
        (40..56).step_by(2).chain((352..364).step_by(2)).for_each(|start| big[start..start + 2].reverse());
        (76..108).step_by(4).for_each(|start| big[start..start + 4].reverse());
        assert_eq!(parse(&big), parse(&little));
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let whole = file([2, 3, 4], &[0; 24]);
        assert!(parse(&whole[..300]).unwrap_err().contains("ends in its header"));
        assert!(parse(&whole[..whole.len() - 1]).unwrap_err().contains("ends in slice 4 of 4"));
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = whole.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&changed).unwrap_err()
        };
        assert!(with(0, &540i32.to_le_bytes()).contains("NIfTI-2"));
        assert!(with(344, b"ni1\0").contains(".img"));
        assert!(with(42, &0i16.to_le_bytes()).contains("three are expected"));
        assert!(with(42, &(-2i16).to_le_bytes()).contains("three are expected"));
        assert!(with(70, &128i16.to_le_bytes()).contains("type 128"));
        assert!(with(72, &8i16.to_le_bytes()).contains("8 bits"));
        assert!(with(108, &f32::NAN.to_le_bytes()).contains("begin at byte"));
        // Sizes that are merely claimed take no memory.
        let mut huge = whole.clone();
        for axis in 1..4 {
            huge[40 + 2 * axis..42 + 2 * axis].copy_from_slice(&30_000i16.to_le_bytes());
        }
        assert!(parse(&huge).unwrap_err().contains("at most"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_header_is_read_or_refused(changes in prop::collection::vec((0usize..352, any::<u8>()), 0..8)) {
            let mut bytes = file([2, 3, 4], &[5; 24]);
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
