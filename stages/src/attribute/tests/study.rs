//! Chest phantoms with a classifier of them, and the maps that the stage makes.

use super::*;

pub(super) const SIDE: usize = 28;

/// Remembers what was said, and asks to stop after a number of progress reports.
#[derive(Default)]
pub(super) struct Host {
    pub(super) lines: Mutex<Vec<String>>,
    pub(super) reports: Mutex<Vec<(u64, u64)>>,
    pub(super) stop_after: Option<usize>,
}

impl StageHost for Host {
    fn progress(&self, done: u64, total: u64, _: &str, _: &[(&str, f64)]) {
        self.reports.lock().unwrap().push((done, total));
    }
    fn log(&self, line: &str) {
        self.lines.lock().unwrap().push(line.to_owned());
    }
    fn warn(&self, message: &str) {
        self.lines.lock().unwrap().push(format!("warning: {message}"));
    }
    fn cancelled(&self) -> bool {
        self.stop_after.is_some_and(|most| self.reports.lock().unwrap().len() >= most)
    }
}

/// Chest phantoms and a classifier of them.
pub(super) struct Study {
    pub(super) folder: TempDir,
    pub(super) artifacts: BTreeMap<String, Artifact>,
    pub(super) runs: Cell<usize>,
}

impl Study {
    pub(super) fn new() -> Self {
        let study = Self { folder: TempDir::new().unwrap(), artifacts: BTreeMap::new(), runs: Cell::new(0) };
        let params = serde_json::json!({
            "domain": "medical", "weights": "chest", "task": "finding-chest", "size": SIDE, "seed": 4,
            "train": 12, "val": 0, "test": 14, "twins": ["device", "lesion"],
        });
        let params = serde_json::from_value(params).unwrap();
        let artifacts = study.run(&IngestPhantom, &params, &[], &Host::default()).unwrap();
        Self { artifacts, ..study }.with_checkpoint()
    }

    pub(super) fn with_checkpoint(mut self) -> Self {
        let config = ClipConfig::from_json(
            r#"{"projection_dim": 8,
                "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "image_size": 28, "patch_size": 7},
                "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6}}"#,
        )
        .unwrap();
        let clip = ClipModel::random(&config, 2, &DEVICE, Trainable::Frozen).unwrap();
        self.store("checkpoint", Box::new(clip), SIDE, 8);
        self
    }

    /// Another architecture with random weights as the classifier.
    pub(super) fn with_network(mut self, config: &ModelConfig, side: usize, width: usize) -> Self {
        let network = config.random(3, &DEVICE, Trainable::Frozen).unwrap();
        self.store("checkpoint", network, side, width);
        self
    }

    /// Stores a model with a random head behind embeddings of `width`.
    pub(super) fn store(&mut self, name: &str, network: Box<dyn FoundationModel>, side: usize, width: usize) {
        let labels = crate::table::metadata(&self.artifacts["labels"]).unwrap();
        let classes: Vec<String> = serde_json::from_str(&labels["label_names"]).unwrap();
        let values =
            |key: u64, count: usize| (1..=count).map(|draw| Key(key).normal(draw as u64) as f32).collect();
        let weight: Vec<f32> = values(5, classes.len() * width);
        let bias: Vec<f32> = values(6, classes.len());
        let head = Head {
            input: HeadInput::Embedding,
            weight: Tensor::from_vec(weight, (classes.len(), width), &DEVICE).unwrap(),
            bias: Tensor::from_vec(bias, classes.len(), &DEVICE).unwrap(),
            description: HeadDescription { classes, task: labels["task"].clone() },
        };
        let model = Model::new(network, Some(Preprocessor::clip(side)), None).with_head(head);
        let folder = self.folder.path().join(format!("model-{side}"));
        std::fs::create_dir(&folder).unwrap();
        model.save(&mut OutputWriter::new(folder.clone())).unwrap();
        self.artifacts.insert(name.to_owned(), artifact("checkpoint", &folder));
    }

    /// Runs a kind on some artifacts of the study; gives its outputs.
    pub(super) fn run<K: StageKind>(
        &self,
        kind: &K,
        params: &K::Params,
        inputs: &[(&str, &Artifact)],
        host: &Host,
    ) -> Result<BTreeMap<String, Artifact>, StageError> {
        let run = self.runs.replace(self.runs.get() + 1);
        let folder = |port: &str| self.folder.path().join(format!("{run}-{port}"));
        let ports = kind.outputs(params);
        let mut outputs = BTreeMap::new();
        for port in &ports {
            std::fs::create_dir_all(folder(&port.name)).unwrap();
            outputs.insert(port.name.clone(), OutputWriter::new(folder(&port.name)));
        }
        let inputs = inputs.iter().map(|(name, artifact)| {
            let input =
                InputArtifact { axes: BTreeMap::new(), stage: String::new(), artifact: (*artifact).clone() };
            ((*name).to_owned(), vec![input])
        });
        let scratch = self.folder.path().to_owned();
        let mut context = StageContext::new(inputs.collect(), outputs, host, 1, scratch, "{}".to_owned());
        StageKind::run(kind, params, &mut context)?;
        Ok(ports
            .into_iter()
            .map(|port| (port.name.clone(), artifact(port.artifact.0, &folder(&port.name))))
            .collect())
    }

    pub(super) fn attribute(&self, params: &Params, host: &Host) -> Result<Artifact, StageError> {
        let inputs: Vec<(&str, &Artifact)> = ["images", "labels", "checkpoint", "twins"]
            .iter()
            .map(|name| (*name, &self.artifacts[*name]))
            .collect();
        Ok(self.run(&Attribute, params, &inputs, host)?.remove("saliency").unwrap())
    }

    pub(super) fn maps(&self, params: &Params) -> Maps {
        let artifact = self.attribute(params, &Host::default()).unwrap();
        Maps(read_file(&artifact.single_file().unwrap().location).unwrap())
    }
}

pub(super) fn artifact(kind: &str, folder: &std::path::Path) -> Artifact {
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            ArtifactFile {
                path: entry.file_name().to_str().unwrap().to_owned(),
                bytes: entry.metadata().unwrap().len(),
                location: entry.path(),
            }
        })
        .collect();
    Artifact { artifact_type: kind.to_owned(), digest: Digest::of(b""), files, origin: None }
}

/// A saliency file in memory.
pub(super) struct Maps(pub(super) RecordBatch);

impl Maps {
    pub(super) fn text(&self, name: &str) -> Vec<Option<String>> {
        texts(&self.0, name).unwrap()
    }

    pub(super) fn numbers(&self, name: &str) -> Vec<Option<f32>> {
        self.0.column_by_name(name).unwrap().as_primitive::<Float32Type>().iter().collect()
    }

    pub(super) fn rows(&self) -> Vec<&[f32]> {
        let (values, shape) = tensors(&self.0, "saliency").unwrap();
        values.chunks_exact(shape.iter().product()).collect()
    }
}

pub(super) fn params(method: Method, baseline: Baseline) -> Params {
    Params { method, baseline, steps: 20, batch: 5, ..Params::default() }
}
