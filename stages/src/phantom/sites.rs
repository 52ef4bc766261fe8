//! The sites of the medical domain and what can be found there.

/// All findings; a class label is an index into it, or into a sub-list of it.
pub(super) const FINDINGS: [&str; 11] = [
    "none",
    "nodule",
    "effusion",
    "consolidation",
    "cardiomegaly",
    "fracture",
    "cyst",
    "mass",
    "stone",
    "tumor",
    "inflammation",
];

/// The classes of the chest task.
pub(super) const CHEST: [&str; 5] = ["none", "nodule", "effusion", "consolidation", "cardiomegaly"];

/// A modality and region in one plane.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) modality: &'static str,
    pub(super) region: &'static str,
    pub(super) plane: Option<&'static str>,
    /// Indices into [`FINDINGS`].
    pub(super) findings: &'static [usize],
    pub(super) has_sides: bool,
    pub(super) weight_all: f64,
    pub(super) weight_thesis: f64,
}

pub(super) const XRAY_CHEST: usize = 0;
pub(super) const XRAY_LIMB: usize = 1;
pub(super) const CT_CHEST: usize = 2;
pub(super) const CT_AXIAL: usize = 3;
pub(super) const CT_CORONAL: usize = 4;
pub(super) const ULTRASOUND: usize = 5;

const fn site(
    modality: &'static str,
    region: &'static str,
    plane: Option<&'static str>,
    findings: &'static [usize],
    has_sides: bool,
    weights: (f64, f64),
) -> Site {
    Site { modality, region, plane, findings, has_sides, weight_all: weights.0, weight_thesis: weights.1 }
}

pub(super) const SITES: [Site; 7] = [
    site("xray", "chest", Some("frontal"), &[1, 2, 3, 4], true, (0.30, 0.40)),
    site("xray", "limb", Some("frontal"), &[5, 6], false, (0.10, 0.0)),
    site("ct", "chest", Some("axial"), &[1, 2, 3], true, (0.15, 0.0)),
    site("ct", "abdomen", Some("axial"), &[6, 7, 8], true, (0.10, 0.14)),
    site("ct", "abdomen", Some("coronal"), &[6, 7, 8], true, (0.10, 0.14)),
    site("ultrasound", "abdomen", None, &[6, 7, 8], false, (0.12, 0.12)),
    site("histology", "tissue", None, &[9, 10], false, (0.13, 0.20)),
];
