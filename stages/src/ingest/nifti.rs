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
/// Slices that are read before they are sorted into columns, and voxels of each that are turned at once: what is near in
/// the file and what is near in memory are both touched together.
const TOGETHER: usize = 32;

/// A volume.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Nifti {
    /// Stored values `[x, y, z]`, z fastest.
    pub(crate) voxels: Voxels,
    /// Their numbers along x, y, z.
    pub(crate) shape: [usize; 3],
    /// Millimetres from one to the next along x, y, z.
    pub(crate) spacing: [f32; 3],
    /// Values are `slope * voxel + intercept`.
    pub(crate) slope: f64,
    /// See `slope`.
    pub(crate) intercept: f64,
}

/// Voxels in the type that they are stored in, but for those of more than 16 bits, which are f32.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Voxels {
    I8(Vec<i8>),
    U8(Vec<u8>),
    I16(Vec<i16>),
    U16(Vec<u16>),
    F32(Vec<f32>),
}

impl Voxels {
    /// A stored value.
    #[cfg(test)]
    pub(crate) fn value(&self, place: usize) -> f64 {
        match self {
            Self::I8(voxels) => voxels[place].into(),
            Self::U8(voxels) => voxels[place].into(),
            Self::I16(voxels) => voxels[place].into(),
            Self::U16(voxels) => voxels[place].into(),
            Self::F32(voxels) => voxels[place].into(),
        }
    }
}

/// Numbers as they are written, low byte first unless `big`.
macro_rules! number {
    ($kind:ty, $bytes:expr, $big:expr) => {{
        let mut bytes = [0; size_of::<$kind>()];
        bytes.copy_from_slice(&$bytes[..size_of::<$kind>()]);
        if $big { <$kind>::from_be_bytes(bytes) } else { <$kind>::from_le_bytes(bytes) }
    }};
}

/// Bytes of a voxel of a type that is read.
fn bytes_of(datatype: i16) -> Option<usize> {
    match datatype {
        2 | 256 => Some(1),
        4 | 512 => Some(2),
        8 | 16 | 768 => Some(4),
        64 => Some(8),
        _ => None,
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
    let unknown = || format!("its voxels are of type {datatype}, which is not read");
    let bytes = bytes_of(datatype).ok_or_else(unknown)?;
    if usize::from(short(72).unsigned_abs()) != 8 * bytes {
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

    macro_rules! stored {
        ($kind:ty as $kept:ty) => {
            slices(input, shape, size_of::<$kind>(), |bytes| number!($kind, bytes, big) as $kept)?
        };
    }
    let voxels = match datatype {
        2 => Voxels::U8(stored!(u8 as u8)),
        4 => Voxels::I16(stored!(i16 as i16)),
        8 => Voxels::F32(stored!(i32 as f32)),
        16 => Voxels::F32(stored!(f32 as f32)),
        64 => Voxels::F32(stored!(f64 as f32)),
        256 => Voxels::I8(stored!(i8 as i8)),
        512 => Voxels::U16(stored!(u16 as u16)),
        768 => Voxels::F32(stored!(u32 as f32)),
        _ => return Err(unknown()),
    };
    Ok(Nifti { voxels, shape, spacing, slope, intercept })
}

/// Reads the voxels, x fastest in the file and z in memory, each of so many `bytes`.
fn slices<T>(
    input: &mut dyn Read,
    shape: [usize; 3],
    bytes: usize,
    value: impl Fn(&[u8]) -> T,
) -> Result<Vec<T>, String>
where
    T: Copy + Default + Into<f64>,
{
    let [width, height, depth] = shape;
    let plane = width * height;
    let mut voxels = vec![T::default(); plane * depth];
    let mut block = Vec::new();
    for first in (0..depth).step_by(TOGETHER) {
        let count = TOGETHER.min(depth - first);
        block.resize(count * plane * bytes, 0);
        for (slice, read) in block.chunks_exact_mut(plane * bytes).enumerate() {
            let cut = |error| format!("it ends in slice {} of {depth}: {error}", first + slice + 1);
            input.read_exact(read).map_err(cut)?;
        }
        let mut tile = [T::default(); TOGETHER * TOGETHER];
        for start in (0..plane).step_by(TOGETHER) {
            let places = TOGETHER.min(plane - start);
            for (slice, read) in block.chunks_exact(plane * bytes).enumerate() {
                let read = read[start * bytes..(start + places) * bytes].chunks_exact(bytes);
                for (voxel, bytes) in tile[slice..].iter_mut().step_by(TOGETHER).zip(read) {
                    *voxel = value(bytes);
                    let number: f64 = (*voxel).into();
                    if !number.is_finite() {
                        return Err(format!("a voxel of slice {} is {number}", first + slice + 1));
                    }
                }
            }
            for (place, column) in (start..start + places).zip(tile.chunks_exact(TOGETHER)) {
                let (x, y) = (place % width, place / width);
                let start = (x * height + y) * depth + first;
                voxels[start..start + count].copy_from_slice(&column[..count]);
            }
        }
    }
    Ok(voxels)
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
        let at = |x: usize, y: usize, z: usize| read.voxels.value((x * 3 + y) * 4 + z);
        assert!(matches!(read.voxels, Voxels::I16(_)), "16 bits are kept as such");
        assert_eq!((at(1, 0, 0), at(0, 1, 0), at(0, 0, 1), at(1, 2, 3)), (1.0, 2.0, 6.0, 23.0));
    }

    /// More slices and more voxels of a slice than are turned at once, and no multiple of them.
    #[test]
    fn large_volumes_are_turned_voxel_by_voxel() {
        let [width, height, depth] = [9, 11, 2 * TOGETHER + 5];
        let voxels: Vec<i16> = (0..width * height * depth).map(|voxel| voxel as i16).collect();
        let read = parse(&file([width as i16, height as i16, depth as i16], &voxels)).unwrap();
        for (place, voxel) in voxels.iter().enumerate() {
            let (x, y, z) = (place % width, place / width % height, place / (width * height));
            assert_eq!(read.voxels.value((x * height + y) * depth + z), f64::from(*voxel), "{x}, {y}, {z}");
        }
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

    /// The same numbers in every type.
    #[test]
    fn every_type_is_read_as_its_numbers() {
        let numbers = [1u8, 2, 3, 100, 101, 127];
        let types: [(i16, usize, fn(u8) -> Vec<u8>); 8] = [
            (2, 1, |number| vec![number]),
            (4, 2, |number| i16::from(number).to_le_bytes().to_vec()),
            (8, 4, |number| i32::from(number).to_le_bytes().to_vec()),
            (16, 4, |number| f32::from(number).to_le_bytes().to_vec()),
            (64, 8, |number| f64::from(number).to_le_bytes().to_vec()),
            (256, 1, |number| (number as i8).to_le_bytes().to_vec()),
            (512, 2, |number| u16::from(number).to_le_bytes().to_vec()),
            (768, 4, |number| u32::from(number).to_le_bytes().to_vec()),
        ];
        for (datatype, size, stored) in types {
            let mut bytes = file([6, 1, 1], &[]);
            bytes[70..72].copy_from_slice(&datatype.to_le_bytes());
            bytes[72..74].copy_from_slice(&(8 * size as i16).to_le_bytes());
            bytes.extend(numbers.iter().flat_map(|number| stored(*number)));
            let read = parse(&bytes).unwrap();
            let found: Vec<f64> = (0..6).map(|place| read.voxels.value(place)).collect();
            assert_eq!(found, numbers.map(f64::from), "type {datatype}");
        }
        let mut bytes = file([1, 1, 1], &[]);
        bytes[70..72].copy_from_slice(&16i16.to_le_bytes());
        bytes[72..74].copy_from_slice(&32i16.to_le_bytes());
        bytes.extend(f32::NAN.to_le_bytes());
        assert!(parse(&bytes).unwrap_err().contains("a voxel of slice 1 is NaN"));
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
