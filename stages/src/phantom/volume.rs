//! Drawing a chest CT: anatomy and five findings in Hounsfield units, and what an expert would label.

use pipe_models::random::Key;
use rayon::prelude::*;

use super::canvas::{Noise, coverage, rotate};
use super::stream::{Stream, key};

/// The findings, in the order of their labels in the masks, which count from 1; by their names among the
/// abnormalities of CT-RATE, and in a report.
pub(super) const FINDINGS: [(&str, &str); 5] = [
    ("Lung nodule", "lung nodule"),
    ("Pleural effusion", "pleural effusion"),
    ("Consolidation", "consolidation"),
    ("Cardiomegaly", "cardiomegaly"),
    ("Arterial wall calcification", "aortic calcification"),
];
/// How often each is there, whatever the others are.
pub(super) const PREVALENCE: [f64; 5] = [0.35, 0.30, 0.25, 0.25, 0.30];
const NODULE: usize = 0;
const EFFUSION: usize = 1;
const CONSOLIDATION: usize = 2;
const CARDIOMEGALY: usize = 3;
const CALCIFICATION: usize = 4;

const ANATOMY: u64 = 1;
/// Each finding has a stream of its own: this and its place.
const LESION: u64 = 20;
const LESION_TEXTURE: u64 = 8;
const NOISE: u64 = 13;
/// Standard deviation of the noise, in Hounsfield units.
const NOISE_HU: f64 = 18.0;

/// Which side of the patient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// At the left of a slice.
    Right,
    Left,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Left => "left",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Right => Self::Left,
            Self::Left => Self::Right,
        }
    }

    /// The middle of its lung, from the left of a slice.
    fn lung(self) -> f64 {
        match self {
            Self::Right => 0.29,
            Self::Left => 0.71,
        }
    }
}

/// A finding of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    /// None where it has none: heart and aorta.
    pub(super) side: Option<Side>,
    pub(super) large: bool,
}

/// What a volume shows.
#[derive(Clone, Debug)]
pub(super) struct Chest {
    /// By the order of [`FINDINGS`].
    pub(super) findings: [Option<Finding>; 5],
    key: Key,
}

/// A volume in C order: slices from the feet up, rows from the front, columns from the patient's right.
pub(super) struct Volume {
    /// Hounsfield units.
    pub(super) voxels: Vec<i16>,
    /// The number of the finding, from 1, that an expert would outline there; 0 elsewhere.
    pub(super) labels: Vec<u8>,
}

impl Chest {
    /// The factors of a patient's volume.
    pub(super) fn draw(seed: u64, patient: u64, volume: u64) -> Self {
        let mut stream = Stream::new(key(seed, "medical", "volume-patient", &[patient]));
        let side = |one: bool| if one { Side::Right } else { Side::Left };
        // Everything is drawn, whatever of it is used: no draw depends on another.
        let there: Vec<bool> = PREVALENCE.iter().map(|share| stream.chance(*share)).collect();
        let lesion = side(stream.chance(0.5));
        let mut findings = [None; 5];
        for (place, there) in there.into_iter().enumerate() {
            let large = stream.chance(0.5);
            let side = match place {
                NODULE | EFFUSION => Some(lesion),
                // On the other side, so that neither hides the other.
                CONSOLIDATION => Some(lesion.other()),
                _ => None,
            };
            findings[place] = there.then_some(Finding { side, large });
        }
        Self { findings, key: key(seed, "medical", "volume", &[patient, volume]) }
    }

    /// The same chest without its findings: a twin that differs in nothing else.
    #[cfg(test)]
    pub(super) fn without_findings(&self) -> Self {
        Self { findings: [None; 5], key: self.key }
    }

    /// Draws it with `depth` slices of `size` by `size` voxels.
    pub(super) fn volume(&self, depth: usize, size: usize) -> Volume {
        let anatomy = Anatomy::new(self, depth, size);
        let slices: Vec<(Vec<i16>, Vec<u8>)> =
            (0..depth).into_par_iter().map(|slice| anatomy.slice(slice)).collect();
        let mut volume = Volume { voxels: Vec::new(), labels: Vec::new() };
        for (voxels, labels) in slices {
            volume.voxels.extend(voxels);
            volume.labels.extend(labels);
        }
        volume
    }
}

/// An ellipsoid along the axes.
#[derive(Clone, Copy)]
struct Ellipsoid {
    centre: [f64; 3],
    radii: [f64; 3],
}

impl Ellipsoid {
    /// Centre and radii as x, y, z.
    const fn new(centre: [f64; 3], radii: [f64; 3]) -> Self {
        Self { centre, radii }
    }

    /// Signed distance, negative inside; a cylinder along z where that radius is infinite.
    fn distance(&self, at: [f64; 3]) -> f64 {
        let mut sum = 0.0;
        for ((at, centre), radius) in at.iter().zip(self.centre).zip(self.radii) {
            let along = (at - centre) / radius;
            sum += along * along;
        }
        let least = self.radii[0].min(self.radii[1]).min(self.radii[2]);
        (sum.sqrt() - 1.0) * least
    }
}

const fn cylinder(x: f64, y: f64, a: f64, b: f64) -> Ellipsoid {
    Ellipsoid::new([x, y, 0.5], [a, b, f64::INFINITY])
}

/// Everything that does not change from voxel to voxel.
struct Anatomy<'a> {
    chest: &'a Chest,
    depth: usize,
    size: usize,
    edge: f64,
    liver_hu: f64,
    aorta_hu: f64,
    heart: Ellipsoid,
    nodule: (Ellipsoid, f64),
    effusion_level: f64,
    consolidation: (Ellipsoid, Noise),
    /// The middle of a plaque along the aorta, half its length, and the direction of its wall.
    plaque: (f64, f64, (f64, f64)),
}

const FAT: Ellipsoid = cylinder(0.5, 0.5, 0.46, 0.34);
const MUSCLE: Ellipsoid = cylinder(0.5, 0.5, 0.43, 0.31);
/// The ribs lie in this one's surface.
const CAGE: Ellipsoid = cylinder(0.5, 0.5, 0.40, 0.285);
const SPINE: Ellipsoid = cylinder(0.5, 0.72, 0.05, 0.05);
const AORTA: Ellipsoid = cylinder(0.455, 0.62, 0.028, 0.028);
const LIVER: Ellipsoid = Ellipsoid::new([0.33, 0.5, 1.08], [0.28, 0.27, 0.28]);

fn lung(side: Side) -> Ellipsoid {
    Ellipsoid::new([side.lung(), 0.48, 0.5], [0.15, 0.225, 0.47])
}

impl<'a> Anatomy<'a> {
    fn new(chest: &'a Chest, depth: usize, size: usize) -> Self {
        let mut anatomy = Stream::new(chest.key.sub(ANATOMY));
        let liver_hu = 62.0 + anatomy.j(6.0);
        let aorta_hu = anatomy.f(150.0, 160.0);
        let mut r = 0.125 + anatomy.j(0.008);
        if chest.findings[CARDIOMEGALY].is_some() {
            r += 0.06;
        }
        let stream = |finding: usize| Stream::new(chest.key.sub(LESION + finding as u64));
        let of = |finding: usize| {
            chest.findings[finding].unwrap_or(Finding { side: Some(Side::Right), large: false })
        };
        let x = |finding: usize| of(finding).side.map_or(0.5, Side::lung);
        let (mut one, nodule) = (stream(NODULE), of(NODULE));
        let radius = if nodule.large { one.f(0.075, 0.095) } else { one.f(0.042, 0.052) };
        let centre = [x(NODULE) + one.j(0.05), 0.46 + one.j(0.10), 0.5 + one.j(0.22)];
        let nodule = (Ellipsoid::new(centre, [radius; 3]), one.f(20.0, 90.0));
        let mut one = stream(CONSOLIDATION);
        let r3 = if of(CONSOLIDATION).large { one.f(0.09, 0.11) } else { one.f(0.06, 0.07) };
        let centre = [x(CONSOLIDATION) + one.j(0.03), 0.46 + one.j(0.10), 0.5 + one.j(0.2)];
        let texture = Noise::new(15, chest.key.sub(LESION_TEXTURE));
        let mut plaque = stream(CALCIFICATION);
        let half = if of(CALCIFICATION).large { 0.25 } else { 0.12 };
        Self {
            depth,
            size,
            edge: (0.6 / size as f64).max(0.008),
            liver_hu,
            aorta_hu,
            heart: Ellipsoid::new([0.54, 0.42, 0.66], [r, 0.95 * r, 1.25 * r]),
            nodule,
            effusion_level: if of(EFFUSION).large { 0.50 } else { 0.585 },
            consolidation: (Ellipsoid::new(centre, [r3; 3]), texture),
            plaque: (0.5 + plaque.j(0.2), half, rotate(1.0, 0.0, plaque.j(0.9))),
            chest,
        }
    }

    fn slice(&self, slice: usize) -> (Vec<i16>, Vec<u8>) {
        let voxels = self.size * self.size;
        let (mut units, mut labels) = (Vec::with_capacity(voxels), Vec::with_capacity(voxels));
        let noise = self.chest.key.sub(NOISE);
        let z = (slice as f64 + 0.5) / self.depth as f64;
        for index in 0..voxels {
            let x = ((index % self.size) as f64 + 0.5) / self.size as f64;
            let y = ((index / self.size) as f64 + 0.5) / self.size as f64;
            let (value, label) = self.at([x, y, z]);
            let value = value + NOISE_HU * noise.normal((slice * voxels + index) as u64 + 1);
            units.push((value + 0.5).floor().clamp(-1024.0, 3071.0) as i16);
            labels.push(label);
        }
        (units, labels)
    }

    /// The noiseless value, and the finding that an expert would outline there.
    fn at(&self, at: [f64; 3]) -> (f64, u8) {
        let [x, y, z] = at;
        let inside = |shape: &Ellipsoid| coverage(shape.distance(at), self.edge);
        let mut value = -1000.0;
        let mut label = 0;
        let mix = |value: &mut f64, unit: f64, q: f64| *value = *value * (1.0 - q) + unit * q;
        mix(&mut value, -90.0, inside(&FAT));
        mix(&mut value, 45.0, inside(&MUSCLE));
        let turn = 9.0 * z + 0.8 * (x - 0.5).abs();
        let rib = (turn - turn.floor() - 0.5).abs() - 0.12;
        let shell = CAGE.distance(at).abs() - 0.012;
        mix(&mut value, 300.0, coverage(shell, self.edge) * coverage(rib, 0.05));
        for side in [Side::Right, Side::Left] {
            mix(&mut value, -820.0, inside(&lung(side)));
        }
        // What lies in a lung stays in it.
        let within = |finding: Finding| finding.side.map_or(0.0, |side| inside(&lung(side)));
        let mut outline = |finding: usize, q: f64| {
            if q > 0.5 {
                label = finding as u8 + 1;
            }
        };
        if let Some(finding) = self.chest.findings[CONSOLIDATION] {
            let (shape, texture) = &self.consolidation;
            let q = within(finding) * coverage(shape.distance(at), 0.02);
            mix(&mut value, 40.0, q * (0.8 + 0.2 * texture.at(x, y)));
            outline(CONSOLIDATION, q);
        }
        mix(&mut value, self.liver_hu, inside(&LIVER));
        let heart = inside(&self.heart);
        mix(&mut value, 50.0, heart);
        if self.chest.findings[CARDIOMEGALY].is_some() {
            outline(CARDIOMEGALY, heart);
        }
        if let Some(finding) = self.chest.findings[NODULE] {
            let q = within(finding) * inside(&self.nodule.0) * (1.0 - heart);
            mix(&mut value, self.nodule.1, q);
            outline(NODULE, q);
        }
        if let Some(finding) = self.chest.findings[EFFUSION] {
            let behind = coverage(self.effusion_level - y, self.edge);
            let q = within(finding) * behind * (1.0 - inside(&LIVER));
            mix(&mut value, 10.0, q);
            outline(EFFUSION, q);
        }
        mix(&mut value, 420.0, inside(&SPINE));
        mix(&mut value, self.aorta_hu, inside(&AORTA));
        if self.chest.findings[CALCIFICATION].is_some() {
            let (middle, half, (cos, sin)) = self.plaque;
            let wall = coverage(AORTA.distance(at).abs() - 0.01, self.edge);
            let facing = (x - 0.455) * cos + (y - 0.62) * sin;
            let q =
                wall * coverage((z - middle).abs() - half, self.edge) * f64::from(u8::from(facing > 0.008));
            mix(&mut value, 700.0, q);
            outline(CALCIFICATION, q);
        }
        (value, label)
    }
}
