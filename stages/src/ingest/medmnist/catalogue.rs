//! What is published of the 18 sets: package `medmnist` 3.0.2, files of Zenodo record 10519652.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A set of MedMNIST, by the name of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dataset {
    /// Colon histology.
    Pathmnist,
    /// Chest X-ray.
    Chestmnist,
    /// Dermatoscope.
    Dermamnist,
    /// Retinal OCT.
    Octmnist,
    /// Chest X-ray.
    Pneumoniamnist,
    /// Fundus.
    Retinamnist,
    /// Breast ultrasound.
    Breastmnist,
    /// Blood-cell microscope.
    Bloodmnist,
    /// Kidney-cortex microscope.
    Tissuemnist,
    /// Abdominal CT, axial.
    Organamnist,
    /// Abdominal CT, coronal.
    Organcmnist,
    /// Abdominal CT, sagittal.
    Organsmnist,
    /// Abdominal CT.
    Organmnist3d,
    /// Chest CT.
    Nodulemnist3d,
    /// Shape mask from CT.
    Adrenalmnist3d,
    /// Chest CT.
    Fracturemnist3d,
    /// Shape mask from MRA.
    Vesselmnist3d,
    /// Electron microscope.
    Synapsemnist3d,
}

impl Dataset {
    /// What is published of it.
    pub(super) fn published(self) -> &'static Published {
        &CATALOGUE[self as usize]
    }
}

/// What labels mean. It follows from the set, never from the shape of an array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Task {
    MultiClass,
    BinaryClass,
    /// Independent bits, one per class.
    MultiLabel,
    /// Grades; trained and scored as plain classes.
    OrdinalRegression,
}

impl Task {
    /// The name that the package gives it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MultiClass => "multi-class",
            Self::BinaryClass => "binary-class",
            Self::MultiLabel => "multi-label, binary-class",
            Self::OrdinalRegression => "ordinal-regression",
        }
    }
}

/// What a sample is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A picture of one channel.
    Grey,
    /// A picture of three channels, channels last.
    Colour,
    /// A cube of one channel.
    Volume,
}

impl Kind {
    /// The shape of one sample of this side, as it stands in the file.
    pub(super) fn shape(self, side: u64) -> Vec<u64> {
        match self {
            Self::Grey => vec![side, side],
            Self::Colour => vec![side, side, 3],
            Self::Volume => vec![side, side, side],
        }
    }

    /// The sides that files are published in.
    pub(super) fn sides(self) -> &'static [u64] {
        if self == Self::Volume { &[28, 64] } else { &[28, 64, 128, 224] }
    }
}

/// A set as published.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) flag: &'static str,
    pub(super) task: Task,
    /// Names of the classes, in index order.
    pub(super) classes: &'static [&'static str],
    /// Samples for training, validation and testing.
    pub(super) counts: [u64; 3],
    pub(super) kind: Kind,
    pub(super) modality: &'static str,
    pub(super) licence: &'static str,
    /// MD5 of the file of each side.
    pub(super) md5: &'static [&'static str],
}

impl Published {
    /// The name of the file of this side.
    pub(super) fn file_name(&self, side: u64) -> String {
        if side == 28 { format!("{}.npz", self.flag) } else { format!("{}_{side}.npz", self.flag) }
    }
}

/// The published file that has this MD5, as its set and side.
pub(super) fn identify(md5: &str) -> Option<(&'static Published, u64)> {
    CATALOGUE.iter().find_map(|published| {
        let index = published.md5.iter().position(|known| *known == md5)?;
        Some((published, published.kind.sides()[index]))
    })
}

/// In the order of [`Dataset`].
static CATALOGUE: [Published; 18] = [
    Published {
        flag: "pathmnist",
        task: Task::MultiClass,
        classes: &[
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ],
        counts: [89_996, 10_004, 7180],
        kind: Kind::Colour,
        modality: "colon histology",
        licence: "CC-BY-4.0",
        md5: &[
            "a8b06965200029087d5bd730944a56c1",
            "55aa9c1e0525abe5a6b9d8343a507616",
            "ac42d08fb904d92c244187169d1fd1d9",
            "2c51a510bcdc9cf8ddb2af93af1eadec",
        ],
    },
    Published {
        flag: "chestmnist",
        task: Task::MultiLabel,
        classes: &[
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ],
        counts: [78_468, 11_219, 22_433],
        kind: Kind::Grey,
        modality: "chest X-ray",
        licence: "CC-BY-4.0",
        md5: &[
            "02c8a6516a18b556561a56cbdd36c4a8",
            "9de6cd0b934ebb5b7426cfba5efbae16",
            "db107e5590b27930b62dbaf558aebee3",
            "45bd33e6f06c3e8cdb481c74a89152aa",
        ],
    },
    Published {
        flag: "dermamnist",
        task: Task::MultiClass,
        classes: &[
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ],
        counts: [7007, 1003, 2005],
        kind: Kind::Colour,
        modality: "dermatoscope",
        licence: "CC-BY-NC-4.0",
        md5: &[
            "0744692d530f8e62ec473284d019b0c7",
            "b70a2f5635c6199aeaa28c31d7202e1f",
            "2defd784463fa5243564e855ed717de1",
            "8974907d8e169bef5f5b96bc506ae45d",
        ],
    },
    Published {
        flag: "octmnist",
        task: Task::MultiClass,
        classes: &["choroidal neovascularization", "diabetic macular edema", "drusen", "normal"],
        counts: [97_477, 10_832, 1000],
        kind: Kind::Grey,
        modality: "retinal OCT",
        licence: "CC-BY-4.0",
        md5: &[
            "c68d92d5b585d8d81f7112f81e2d0842",
            "e229e9440236b774d9f0dfef9d07bdaf",
            "0a97e76651ace45c5d943ee3f65b63ae",
            "abc493b6d529d5de7569faaef2773ba3",
        ],
    },
    Published {
        flag: "pneumoniamnist",
        task: Task::BinaryClass,
        classes: &["normal", "pneumonia"],
        counts: [4708, 524, 624],
        kind: Kind::Grey,
        modality: "chest X-ray",
        licence: "CC-BY-4.0",
        md5: &[
            "28209eda62fecd6e6a2d98b1501bb15f",
            "8f4eceb4ccffa70c672198ea285246c6",
            "05b46931834c231683c68f40c47b2971",
            "d6a3c71de1b945ea11211b03746c1fe1",
        ],
    },
    Published {
        flag: "retinamnist",
        task: Task::OrdinalRegression,
        classes: &["0", "1", "2", "3", "4"],
        counts: [1080, 120, 400],
        kind: Kind::Colour,
        modality: "fundus",
        licence: "CC-BY-4.0",
        md5: &[
            "bd4c0672f1bba3e3a89f0e4e876791e4",
            "afda852cc34dcda56f86ad2b2457dbcc",
            "e48e916a24454daf90583d4e6efb1a18",
            "eae7e3b6f3fcbda4ae613ebdcbe35348",
        ],
    },
    Published {
        flag: "breastmnist",
        task: Task::BinaryClass,
        classes: &["malignant", "normal, benign"],
        counts: [546, 78, 156],
        kind: Kind::Grey,
        modality: "breast ultrasound",
        licence: "CC-BY-4.0",
        md5: &[
            "750601b1f35ba3300ea97c75c52ff8f6",
            "742edef2a1fd1524b2efff4bd7ba9364",
            "363e4b3f8d712e9b5de15470a2aaadf1",
            "b56378a6eefa9fed602bb16d192d4c8b",
        ],
    },
    Published {
        flag: "bloodmnist",
        task: Task::MultiClass,
        classes: &[
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ],
        counts: [11_959, 1712, 3421],
        kind: Kind::Colour,
        modality: "blood-cell microscope",
        licence: "CC-BY-4.0",
        md5: &[
            "7053d0359d879ad8a5505303e11de1dc",
            "2b94928a2ae4916078ca51e05b6b800b",
            "adace1e0ed228fccda1f39692059dd4c",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ],
    },
    Published {
        flag: "tissuemnist",
        task: Task::MultiClass,
        classes: &[
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ],
        counts: [165_466, 23_640, 47_280],
        kind: Kind::Grey,
        modality: "kidney-cortex microscope",
        licence: "CC-BY-4.0",
        md5: &[
            "ebe78ee8b05294063de985d821c1c34b",
            "123ece2eba09d0aa5d698fda57103344",
            "61b955355d7425a89687b06cca3ce0c2",
            "b077128c4a949f0a4eb01517f9037b9c",
        ],
    },
    Published {
        flag: "organamnist",
        task: Task::MultiClass,
        classes: &[
            "bladder",
            "femur-left",
            "femur-right",
            "heart",
            "kidney-left",
            "kidney-right",
            "liver",
            "lung-left",
            "lung-right",
            "pancreas",
            "spleen",
        ],
        counts: [34_561, 6491, 17_778],
        kind: Kind::Grey,
        modality: "abdominal CT, axial",
        licence: "CC-BY-4.0",
        md5: &[
            "68e3f8846a6bd62f0c9bf841c0d9eacc",
            "2dcccc29b88e6da5a01161ef20cda288",
            "eeae80d0a227a8d099027e1b3cfd3b60",
            "50747347e05c87dd3aaf92c49f9f3170",
        ],
    },
    Published {
        flag: "organcmnist",
        task: Task::MultiClass,
        classes: &[
            "bladder",
            "femur-left",
            "femur-right",
            "heart",
            "kidney-left",
            "kidney-right",
            "liver",
            "lung-left",
            "lung-right",
            "pancreas",
            "spleen",
        ],
        counts: [12_975, 2392, 8216],
        kind: Kind::Grey,
        modality: "abdominal CT, coronal",
        licence: "CC-BY-4.0",
        md5: &[
            "b9ceb9546e10131b32923c5bbeaea2b1",
            "3ce34a8724ea6f548e6db4744d03b6a9",
            "773c1f009daa3fe5d9a2a201b2a7ed94",
            "050f5e875dc056f6768abf94ec9995d1",
        ],
    },
    Published {
        flag: "organsmnist",
        task: Task::MultiClass,
        classes: &[
            "bladder",
            "femur-left",
            "femur-right",
            "heart",
            "kidney-left",
            "kidney-right",
            "liver",
            "lung-left",
            "lung-right",
            "pancreas",
            "spleen",
        ],
        counts: [13_932, 2452, 8827],
        kind: Kind::Grey,
        modality: "abdominal CT, sagittal",
        licence: "CC-BY-4.0",
        md5: &[
            "9ab87b696fb54e2a387ebe992d6ed5f1",
            "53a6d115339d874c25e309a994ff46d3",
            "ded0c5fa01a95dc4978b956f613e9b8e",
            "b354719e553fbbb2513d5533f52a4cb1",
        ],
    },
    Published {
        flag: "organmnist3d",
        task: Task::MultiClass,
        classes: &[
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ],
        counts: [971, 161, 610],
        kind: Kind::Volume,
        modality: "abdominal CT",
        licence: "CC-BY-4.0",
        md5: &["a0c5a1ff56af4f155c46d46fbb45a2fe", "58a2205adf14a9d0a189cb06dc78bf10"],
    },
    Published {
        flag: "nodulemnist3d",
        task: Task::BinaryClass,
        classes: &["benign", "malignant"],
        counts: [1158, 165, 310],
        kind: Kind::Volume,
        modality: "chest CT",
        licence: "CC-BY-4.0",
        md5: &["8755a7e9e05a4d9ce80a24c3e7a256f3", "c47c5b7d457bf6332200d2ea6d64ecd8"],
    },
    Published {
        flag: "adrenalmnist3d",
        task: Task::BinaryClass,
        classes: &["normal", "hyperplasia"],
        counts: [1188, 98, 298],
        kind: Kind::Volume,
        modality: "shape mask from CT",
        licence: "CC-BY-4.0",
        md5: &["bbd3c5a5576322bc4cdfea780653b1ce", "17721accfe9fb005146a47d33bc54b2f"],
    },
    Published {
        flag: "fracturemnist3d",
        task: Task::MultiClass,
        classes: &["buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"],
        counts: [1027, 103, 240],
        kind: Kind::Volume,
        modality: "chest CT",
        licence: "CC-BY-4.0",
        md5: &["6aa7b0143a6b42da40027a9dda61302f", "f01d7e6316aedf4210da0da5b7437b42"],
    },
    Published {
        flag: "vesselmnist3d",
        task: Task::BinaryClass,
        classes: &["vessel", "aneurysm"],
        counts: [1335, 191, 382],
        kind: Kind::Volume,
        modality: "shape mask from MRA",
        licence: "CC-BY-4.0",
        md5: &["b41fd4f7e7e2feedddb201585ecafa1b", "6bb274a8846e1097066dcd64e2c4520f"],
    },
    Published {
        flag: "synapsemnist3d",
        task: Task::BinaryClass,
        classes: &["inhibitory synapse", "excitatory synapse"],
        counts: [1230, 177, 352],
        kind: Kind::Volume,
        modality: "electron microscope",
        licence: "CC-BY-4.0",
        md5: &["1235b78a3cd6280881dd7850a78eadb6", "43bd14ebf3af9d3dd072446fedc14d5e"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_found_under_its_name() {
        for (index, published) in CATALOGUE.iter().enumerate() {
            let json = serde_json::Value::String(published.flag.to_owned());
            let dataset: Dataset = serde_json::from_value(json).unwrap();
            assert_eq!(dataset as usize, index);
            assert_eq!(dataset.published().flag, published.flag);
            assert_eq!(published.md5.len(), published.kind.sides().len());
        }
    }

    #[test]
    fn a_file_is_known_by_its_md5() {
        let (published, side) = identify("b56378a6eefa9fed602bb16d192d4c8b").unwrap();
        assert_eq!(
            (published.file_name(side).as_str(), published.counts),
            ("breastmnist_224.npz", [546, 78, 156])
        );
        assert!(identify("d41d8cd98f00b204e9800998ecf8427e").is_none());
    }

    /// The volumes are 9,996 in all.
    #[test]
    fn counts_add_up_to_the_published_totals() {
        let total = |volume: bool| -> u64 {
            let sets = CATALOGUE.iter().filter(|set| (set.kind == Kind::Volume) == volume);
            sets.flat_map(|set| set.counts).sum()
        };
        assert_eq!(total(true), 9_996);
        assert_eq!(total(false), 707_962);
    }
}
