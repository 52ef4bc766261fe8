//! The parameters of `ingest.phantom`, and which of them contradict each other.

use pipe_engine::ParameterProblem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sites::{FINDINGS, SITES, XRAY_CHEST};
use super::topics::Topic;

/// Which world is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// X-ray, CT, ultrasound and histology.
    Medical,
    /// Coloured shapes.
    General,
    /// Chest CT volumes with reports and the abnormalities of CT-RATE.
    Volume,
}

impl Domain {
    /// The name in ids and keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Medical => "medical",
            Self::General => "general",
            Self::Volume => "volume",
        }
    }
}

/// Which medical sites are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// All seven.
    All,
    /// The five of the study.
    Thesis,
    /// Chest x-rays only.
    Chest,
}

/// What the labels say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// The finding, among all.
    Finding,
    /// The finding of a chest x-ray, among five.
    FindingChest,
    /// Whether there is one.
    Abnormal,
    /// Which findings there are: one bit for each that the sites can have.
    Findings,
    /// How much there is to see, from 0 (none) to 4: area of the lesions times their contrast, in steps.
    Severity,
    /// The modality.
    Modality,
    /// General: the shape of the largest object.
    Shape,
    /// General: its colour.
    Colour,
    /// General: how many objects there are.
    Count,
}

/// What the corner marker is correlated with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the variants are names of findings")]
pub enum Target {
    Abnormal,
    Nodule,
    Effusion,
    Consolidation,
    Cardiomegaly,
    Fracture,
    Cyst,
    Mass,
    Stone,
    Tumor,
    Inflammation,
}

impl Target {
    /// The finding, as an index into [`FINDINGS`]; nothing where any finding will do.
    pub(super) fn finding(self) -> Option<usize> {
        match self as usize {
            0 => None,
            finding => Some(finding),
        }
    }
}

/// A counterfactual of a test row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Twin {
    /// The same row without its lesion.
    Lesion,
    /// With its marker toggled.
    Marker,
    /// On the other device.
    Device,
    /// With its lesion on the other side.
    Side,
}

/// What happens to a drawing until it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    /// Brightness varies, then noise is added.
    Full,
    /// Noise is all that varies: for figures of detectability in closed form.
    NoiseOnly,
}

/// The files of which published data set are written beside the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// MedMNIST's archive of six arrays, for `ingest.medmnist`. The label of a volume is whether it has a nodule.
    Medmnist,
    /// CT-RATE's folder of NIfTI files and tables, for `ingest.ct_rate`.
    CtRate,
}

/// How captions are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// One phrase.
    Caption,
    /// The phrase as a sentence, then sentences about what is absent.
    Report,
}

/// Which published data set's columns the questions fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuestionSchema {
    /// VQA-RAD: `question_type`, `phrase_type`, `organ`.
    VqaRad,
    /// SLAKE: `content_type`, `base_type`, `triple`, `organ`; and boxes of lesions as a table of their own.
    Slake,
}

/// Probabilities that a caption mentions a fact of its image.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Kappa {
    /// X-ray, CT, ultrasound or histology.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub modality: f64,
    /// The part of the body.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub region: f64,
    /// What is found, or that nothing is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub finding: f64,
    /// How many there are.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub count: f64,
    /// The plane.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub plane: f64,
    /// Small or large.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub size: f64,
    /// Left or right.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub side: f64,
}

impl Default for Kappa {
    fn default() -> Self {
        Self { modality: 1.0, region: 1.0, finding: 1.0, count: 1.0, plane: 0.7, size: 0.85, side: 0.9 }
    }
}

/// Shares of questions whose wording gives the answer away.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Prior {
    /// The same share for every type of question.
    Same(#[schemars(range(min = 0.0, max = 1.0))] f64),
    /// A share for each type.
    ByType(PriorByType),
}

/// Shares of questions whose wording gives the answer away, by type of question.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PriorByType {
    /// What kind of image it is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub modality: f64,
    /// In which plane.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub plane: f64,
    /// Of which part of the body.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub organ: f64,
    /// What the finding is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub abnormality: f64,
    /// Whether a finding is there.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub presence: f64,
    /// On which side it is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub side: f64,
    /// Whether it is on a side.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub side_check: f64,
    /// How large it is.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub size: f64,
    /// How many there are.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub count: f64,
}

impl Default for PriorByType {
    fn default() -> Self {
        Self {
            modality: 0.2,
            plane: 0.2,
            organ: 0.2,
            abnormality: 0.3,
            presence: 0.4,
            side: 0.3,
            side_check: 0.0,
            size: 0.3,
            count: 0.3,
        }
    }
}

impl PriorByType {
    fn of(&self, topic: Topic) -> f64 {
        match topic {
            Topic::Modality => self.modality,
            Topic::Plane => self.plane,
            Topic::Organ => self.organ,
            Topic::Abnormality => self.abnormality,
            Topic::Presence => self.presence,
            Topic::Side => self.side,
            Topic::SideCheck => self.side_check,
            Topic::Size => self.size,
            Topic::Count => self.count,
        }
    }
}

impl Prior {
    /// The share among questions of a type.
    pub(super) fn of(&self, topic: Topic) -> f64 {
        match self {
            Self::Same(share) => *share,
            Self::ByType(shares) => shares.of(topic),
        }
    }
}

/// How the language of validation and test differs from that of training.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "said at `PriorTest`, so that editors show one list of words")]
pub enum PriorRule {
    Same,
    Anti,
}

/// Language priors in validation and test.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PriorTest {
    /// `same`: as in training. `anti`: wordings that gave an answer away in training stand where another
    /// answer is right.
    Rule(PriorRule),
    /// The same share for every type of question.
    Same(#[schemars(range(min = 0.0, max = 1.0))] f64),
    /// A share for each type.
    ByType(PriorByType),
}

/// Parameters of `ingest.phantom`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which world is drawn.
    pub domain: Domain,
    /// Decides every row.
    pub seed: i64,
    /// Side of the images in pixels, or of the slices of a volume.
    #[schemars(range(min = 28, max = 224))]
    pub size: i64,
    /// Slices of a volume; by default two thirds of `size`.
    #[schemars(range(min = 8, max = 224))]
    pub depth: Option<i64>,
    /// Rows to train on; their patients are numbered from 0.
    #[schemars(range(min = 0, max = 100_000))]
    pub train: i64,
    /// Rows to validate on; patients from 100,000.
    #[schemars(range(min = 0, max = 100_000))]
    pub val: i64,
    /// Rows to test on; patients from 200,000.
    #[schemars(range(min = 0, max = 100_000))]
    pub test: i64,
    /// Another range of test patients: from 200,000 + 100,000 times this.
    #[schemars(range(min = 0, max = 1000))]
    pub test_offset: i64,
    /// Which medical sites are drawn.
    pub weights: Weights,
    /// What the labels say.
    pub task: Task,
    /// Share of patients without a finding.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub p_normal: f64,
    /// Class imbalance: the n-th finding of a site has the weight `imbalance`^n, counted from 0. With
    /// anything but 1, questions about presence have a language prior, which `expected` knows.
    #[schemars(range(min = 0.01, max = 100.0))]
    pub imbalance: f64,
    /// With 2, half of the patients with a finding have another one of the same site.
    #[schemars(range(min = 1, max = 2))]
    pub findings_per_image: i64,
    /// Weights of 1, 2 and 3 images of a patient: finding, side and size are the patient's, position and
    /// noise the image's.
    #[schemars(length(min = 1, max = 3), inner(range(min = 0.0)))]
    pub images_per_patient: Vec<f64>,
    /// Lesion contrast; 1 is plain to see, .01 to .05 is at the limit of detection.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub contrast: f64,
    /// Share of training labels that are replaced by another one.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_noise: f64,
    /// The same of validation and test labels.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub label_noise_test: f64,
    /// Correlation of the corner marker with `shortcut_target` in training: 0 is a fair coin.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub shortcut_train: f64,
    /// The same in validation and test.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub shortcut_test: f64,
    /// What the marker is correlated with: any abnormality, or one finding.
    pub shortcut_target: Target,
    /// Share of patients on device B, which is noisier and weaker.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub device_b: f64,
    /// Factor on the contrast of device B.
    #[schemars(range(min = 0.0, max = 2.0))]
    pub contrast_b: f64,
    /// Factor on the noise of device B.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub noise_b: f64,
    /// Whether device B blurs.
    pub blur_b: bool,
    /// What happens to a drawing until it is stored.
    pub acquisition: Exposure,
    /// How captions are written.
    pub style: Style,
    /// Probabilities that a caption mentions a fact.
    pub kappa: Kappa,
    /// Share of training captions that are taken from an earlier row.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub caption_swap: f64,
    /// Questions about each training image; with 0 there is no port `questions`.
    #[schemars(range(min = 0, max = 40))]
    pub questions: i64,
    /// Questions about each validation and test image, if other than `questions`.
    #[schemars(range(min = 0, max = 40))]
    pub questions_test: Option<i64>,
    /// Which published columns the questions fill.
    pub schema: QuestionSchema,
    /// Whether each question is asked a second time in other words, linked by `link_id`.
    pub paraphrase: bool,
    /// Shares of questions whose wording gives the answer away, in training: one number, or one for each
    /// type.
    pub prior: Prior,
    /// The same in validation and test: `same`, `anti`, one number, or one for each type.
    pub prior_test: PriorTest,
    /// Share of test images that are a copy of a training image, to the byte.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub leak: f64,
    /// Share of test images that are another image of a training patient.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub leak_near: f64,
    /// Share of images that repeat an earlier one of their split, to the byte.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub duplicates: f64,
    /// Counterfactuals of the test rows, as a table of their own.
    pub twins: Vec<Twin>,
    /// The same in the files of a published data set, as the port `export`: a source for its reader.
    pub export: Option<Export>,
    /// Rows of a part of the tables of images, questions or volumes, on average; by default 256, or 8 volumes.
    #[schemars(range(min = 1, max = 65536))]
    pub shard_rows: Option<i64>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            domain: Domain::Medical,
            seed: 2026,
            size: 48,
            depth: None,
            train: 1000,
            val: 0,
            test: 250,
            test_offset: 0,
            weights: Weights::Thesis,
            task: Task::Finding,
            p_normal: 0.2,
            imbalance: 1.0,
            findings_per_image: 1,
            images_per_patient: vec![1.0],
            contrast: 1.0,
            label_noise: 0.0,
            label_noise_test: 0.0,
            shortcut_train: 0.0,
            shortcut_test: 0.0,
            shortcut_target: Target::Abnormal,
            device_b: 0.25,
            contrast_b: 0.5,
            noise_b: 2.0,
            blur_b: true,
            acquisition: Exposure::Full,
            style: Style::Caption,
            kappa: Kappa::default(),
            caption_swap: 0.0,
            questions: 0,
            questions_test: None,
            schema: QuestionSchema::VqaRad,
            paraphrase: false,
            prior: Prior::ByType(PriorByType::default()),
            prior_test: PriorTest::Rule(PriorRule::Same),
            leak: 0.0,
            leak_near: 0.0,
            duplicates: 0.0,
            twins: Vec::new(),
            export: None,
            shard_rows: None,
        }
    }
}

impl Params {
    /// Weight of each site of [`SITES`].
    pub(super) fn site_weights(&self) -> Vec<f64> {
        let weight = |index: usize| match self.weights {
            Weights::All => SITES[index].weight_all,
            Weights::Thesis => SITES[index].weight_thesis,
            Weights::Chest => f64::from(u8::from(index == XRAY_CHEST)),
        };
        (0..SITES.len()).map(weight).collect()
    }

    /// The findings that the sites can have, as ascending indices into [`FINDINGS`], without `none`.
    pub(super) fn findings(&self) -> Vec<usize> {
        let weights = self.site_weights();
        let drawn = |finding: &usize| {
            SITES.iter().zip(&weights).any(|(site, weight)| *weight > 0.0 && site.findings.contains(finding))
        };
        (1..FINDINGS.len()).filter(drawn).collect()
    }

    /// Questions about each image of a split.
    pub(super) fn questions_in(&self, training: bool) -> u64 {
        let test = self.questions_test.unwrap_or(self.questions);
        if training { self.questions as u64 } else { test as u64 }
    }

    /// Rows of a part of the tables of images or volumes, on average.
    pub(super) fn part_rows(&self) -> usize {
        let usual = if self.domain == Domain::Volume { 8 } else { 256 };
        self.shard_rows.map_or(usual, |rows| rows as usize)
    }

    /// Whether there is a table of boxes, which SLAKE has.
    pub(super) fn has_boxes(&self) -> bool {
        self.schema == QuestionSchema::Slake && self.domain != Domain::Volume
    }

    /// Whether there is a table of questions.
    pub(super) fn has_questions(&self) -> bool {
        self.questions > 0 || self.questions_test.is_some_and(|count| count > 0)
    }

    /// Parameters that contradict each other.
    pub(super) fn contradictions(&self) -> Vec<ParameterProblem> {
        let mut problems = Problems::default();
        self.check_domain(&mut problems);
        self.check_labels(&mut problems);
        if self.domain != Domain::Volume {
            self.check_copies(&mut problems);
            self.check_language(&mut problems);
        }
        if self.train + self.val + self.test == 0 {
            problems.add("train", "there are no rows to draw", "set `train`, `val` or `test`");
        }
        let weights = &self.images_per_patient;
        if weights.iter().any(|weight| !weight.is_finite() || *weight < 0.0)
            || weights.iter().all(|weight| *weight == 0.0)
        {
            problems.add(
                "images_per_patient",
                "weights are numbers from 0, not all of them 0",
                "`[0.6, 0.25, 0.15]` gives 60 % of the patients one image, 25 % two and 15 % three",
            );
        }
        if self.export == Some(Export::CtRate) && self.domain != Domain::Volume {
            problems.add("export", "CT-RATE has volumes", "set `domain = \"volume\"`");
        }
        if self.export == Some(Export::Medmnist) && self.domain == Domain::Volume {
            let [slices, rows, _] = super::volumes::shape(self);
            if slices != rows {
                problems.add("export", "MedMNIST's volumes are cubes", "set `depth` as `size`");
            }
        }
        problems.0
    }

    /// How many channels pictures have where all have as many.
    pub(super) fn channels(&self) -> usize {
        let weights = self.site_weights();
        let coloured =
            SITES.iter().zip(&weights).any(|(site, weight)| *weight > 0.0 && site.modality == "histology");
        if self.domain == Domain::General || coloured { 3 } else { 1 }
    }

    fn check_domain(&self, problems: &mut Problems) {
        let general_task = matches!(self.task, Task::Shape | Task::Colour | Task::Count);
        if self.domain == Domain::Volume {
            return self.check_volumes(problems);
        }
        if self.depth.is_some() {
            problems.add("depth", "images have no depth", "leave it out, or set `domain = \"volume\"`");
        }
        if self.domain == Domain::Medical {
            if general_task {
                problems.add(
                    "task",
                    "the medical domain has no objects",
                    "use finding, finding-chest, findings, abnormal, severity or modality",
                );
            }
            return;
        }
        let usual = Self::default();
        // `finding` is the default, and means `shape` here.
        if !general_task && self.task != usual.task {
            problems.add("task", "the general domain has no findings", "use shape, colour or count");
        }
        let medical = [
            ("p_normal", self.p_normal != usual.p_normal),
            ("imbalance", self.imbalance != usual.imbalance),
            ("findings_per_image", self.findings_per_image != usual.findings_per_image),
            ("images_per_patient", self.images_per_patient != usual.images_per_patient),
            ("contrast", self.contrast != usual.contrast),
            ("shortcut_train", self.shortcut_train != usual.shortcut_train),
            ("shortcut_test", self.shortcut_test != usual.shortcut_test),
            ("shortcut_target", self.shortcut_target != usual.shortcut_target),
            ("device_b", self.device_b != usual.device_b),
            ("contrast_b", self.contrast_b != usual.contrast_b),
            ("noise_b", self.noise_b != usual.noise_b),
            ("blur_b", self.blur_b != usual.blur_b),
            ("acquisition", self.acquisition != usual.acquisition),
            ("style", self.style != usual.style),
            ("kappa", self.kappa != usual.kappa),
            ("questions", self.has_questions()),
            ("leak_near", self.leak_near != usual.leak_near),
            ("twins", !self.twins.is_empty()),
        ];
        for (name, _) in medical.into_iter().filter(|(_, changed)| *changed) {
            problems.add(
                name,
                "the general domain has no patients, lesions, markers, devices or questions",
                "leave it out, or set `domain = \"medical\"`",
            );
        }
    }

    /// Volumes are drawn from few knobs: whatever else is set would change nothing.
    fn check_volumes(&self, problems: &mut Problems) {
        let Self { domain, seed, size, depth, train, val, test, test_offset, export, shard_rows, .. } = *self;
        let images_per_patient = self.images_per_patient.clone();
        let known = Self {
            domain,
            seed,
            size,
            depth,
            train,
            val,
            test,
            test_offset,
            export,
            shard_rows,
            images_per_patient,
            ..Self::default()
        };
        let table = |params: &Self| match serde_json::to_value(params) {
            Ok(serde_json::Value::Object(table)) => table,
            _ => serde_json::Map::new(),
        };
        let (set, known) = (table(self), table(&known));
        for name in set.keys().filter(|name| set.get(*name) != known.get(*name)) {
            problems.add(name, "volumes are drawn without it", "leave it out, or set `domain = \"medical\"`");
        }
    }

    fn check_labels(&self, problems: &mut Problems) {
        if self.domain != Domain::Medical {
            return;
        }
        if self.task == Task::FindingChest && self.weights != Weights::Chest {
            problems.add("task", "`finding-chest` labels chest x-rays only", "set `weights = \"chest\"`");
        }
        if self.findings_per_image > 1 && matches!(self.task, Task::Finding | Task::FindingChest) {
            problems.add(
                "findings_per_image",
                "an image with two findings has no single one as its label",
                "set `task = \"findings\"`, one bit for each",
            );
        }
        if let Some(finding) = self.shortcut_target.finding()
            && !self.findings().contains(&finding)
        {
            let known: Vec<&str> = self.findings().into_iter().map(|finding| FINDINGS[finding]).collect();
            problems.add(
                "shortcut_target",
                &format!("no site that is drawn has the finding `{}`", FINDINGS[finding]),
                &format!("use abnormal or one of {}", known.join(", ")),
            );
        }
    }

    fn check_copies(&self, problems: &mut Problems) {
        if self.leak + self.leak_near > 1.0 {
            problems.add(
                "leak_near",
                "`leak` and `leak_near` are shares of the same rows and make more than 1",
                "lower one of them",
            );
        }
        if self.leak + self.leak_near > 0.0 && self.train < self.test {
            problems.add(
                "train",
                "each leaked test row has a training row of its own, so there have to be at least as many",
                "raise `train` to `test`, or leave out `leak` and `leak_near`",
            );
        }
    }

    fn check_language(&self, problems: &mut Problems) {
        let Kappa { modality, region, finding, .. } = self.kappa;
        for (name, kappa) in [("modality", modality), ("region", region), ("finding", finding)] {
            if self.style == Style::Report && kappa < 1.0 {
                problems.add(
                    &format!("kappa.{name}"),
                    &format!("what a report says to be absent gives away a {name} that it leaves out"),
                    &format!("leave `kappa.{name}` at 1, or `style` at \"caption\""),
                );
            }
        }
        if self.domain == Domain::Medical && !self.has_questions() {
            let usual = Self::default();
            let asked = [
                ("schema", self.schema != usual.schema),
                ("paraphrase", self.paraphrase),
                ("prior", self.prior != usual.prior),
                ("prior_test", self.prior_test != usual.prior_test),
            ];
            for (name, _) in asked.into_iter().filter(|(_, changed)| *changed) {
                problems.add(name, "there are no questions", "set `questions`, such as `questions = 2`");
            }
        }
    }
}

/// Collects problems.
#[derive(Default)]
struct Problems(Vec<ParameterProblem>);

impl Problems {
    fn add(&mut self, path: &str, message: &str, help: &str) {
        let (path, message, help) = (path.to_owned(), message.to_owned(), Some(help.to_owned()));
        self.0.push(ParameterProblem { path, message, help });
    }
}
