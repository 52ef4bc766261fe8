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

/// All modalities, in the order of classes.
pub(super) const MODALITIES: [&str; 4] = ["xray", "ct", "ultrasound", "histology"];

/// All parts of the body.
pub(super) const REGIONS: [&str; 4] = ["chest", "abdomen", "limb", "tissue"];

/// All planes.
pub(super) const PLANES: [&str; 3] = ["frontal", "axial", "coronal"];

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

impl Site {
    /// Weight of each finding: the n-th has `imbalance`^n.
    pub(super) fn finding_weights(&self, imbalance: f64) -> Vec<f64> {
        let mut weight = 1.0;
        self.findings
            .iter()
            .map(|_| {
                let own = weight;
                weight *= imbalance;
                own
            })
            .collect()
    }

    /// The findings but one, with their weights.
    pub(super) fn other_findings(&self, finding: usize, imbalance: f64) -> Vec<(usize, f64)> {
        let weights = self.finding_weights(imbalance);
        self.findings.iter().copied().zip(weights).filter(|(other, _)| *other != finding).collect()
    }

    /// Whether a finding is on the patient's left or right here.
    pub(super) fn has_side(&self, finding: usize) -> bool {
        self.has_sides && FINDINGS[finding] != "cardiomegaly"
    }

    /// Whether a finding is small or large.
    pub(super) fn has_size(finding: usize) -> bool {
        FINDINGS[finding] != "fracture"
    }

    /// Whether there may be two or three of a finding here.
    pub(super) fn is_countable(&self, finding: usize) -> bool {
        self.region != "limb" && ["nodule", "cyst", "stone"].contains(&FINDINGS[finding])
    }
}
