//! Images, masks, a tiny CLIP with random weights, and maps that are made by hand.

use super::*;

pub(super) const SIDE: usize = 8;
pub(super) const PIXELS: usize = SIDE * SIDE;
pub(super) const CLASSES: usize = 3;
/// The images; the first three are the training split.
pub(super) const IDS: [&str; 6] = ["t0", "t1", "t2", "a", "b", "c"];
/// The test images that have a mask: all but `c`.
pub(super) const MASKED: [&str; 2] = ["a", "b"];

/// Remembers what was said, and asks to stop after a number of progress reports.
#[derive(Default)]
pub(super) struct Host {
    pub(super) warnings: Mutex<Vec<String>>,
    pub(super) reports: Mutex<Vec<(u64, u64)>>,
    pub(super) stop_after: Option<usize>,
}

impl StageHost for Host {
    fn progress(&self, done: u64, total: u64, _: &str, _: &[(&str, f64)]) {
        self.reports.lock().unwrap().push((done, total));
    }
    fn log(&self, _: &str) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
    fn cancelled(&self) -> bool {
        self.stop_after.is_some_and(|most| self.reports.lock().unwrap().len() >= most)
    }
}

/// Images, masks, a model, and maps that are added by hand.
pub(super) struct Study {
    pub(super) folder: TempDir,
    pub(super) inputs: BTreeMap<String, Vec<InputArtifact>>,
}

/// The mask: two rows of four pixels.
pub(super) fn inside(pixel: usize) -> bool {
    (2..4).contains(&(pixel / SIDE)) && (1..5).contains(&(pixel % SIDE))
}

pub(super) fn perfect() -> Vec<f32> {
    (0..PIXELS).map(|pixel| f32::from(u8::from(inside(pixel)))).collect()
}

pub(super) fn noise(key: u64) -> Vec<f32> {
    (1..=PIXELS as u64).map(|draw| Key(key).normal(draw) as f32).collect()
}

pub(super) fn png(image: &image::DynamicImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

impl Study {
    pub(super) fn new() -> Self {
        let study = Self { folder: TempDir::new().unwrap(), inputs: BTreeMap::new() };
        study.with_images().with_masks()
    }

    pub(super) fn folder(&self, name: &str) -> std::path::PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    pub(super) fn add(&mut self, input: &str, axes: &[(&str, &str)], folder: &Path) {
        let files = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                let location = entry.unwrap().path();
                let path = location.file_name().unwrap().to_str().unwrap().to_owned();
                ArtifactFile { path, bytes: location.metadata().unwrap().len(), location }
            })
            .collect();
        let artifact = Artifact {
            artifact_type: input.to_owned(),
            digest: Digest::of(folder.to_str().unwrap().as_bytes()),
            files,
            origin: None,
        };
        let axes = axes.iter().map(|(axis, value)| ((*axis).to_owned(), (*value).to_owned())).collect();
        let input_artifact = InputArtifact { axes, stage: String::new(), artifact };
        self.inputs.entry(input.to_owned()).or_default().push(input_artifact);
    }

    pub(super) fn table(&mut self, input: &str, schema: &TableSchema, table: &Table) {
        let folder = self.folder(input);
        let mut writer = OutputWriter::new(folder.clone());
        write(&mut writer, schema, table, WriteOptions::text("{}")).unwrap();
        self.add(input, &[], &folder);
    }

    pub(super) fn with_images(mut self) -> Self {
        let picture = |index: usize| {
            let image = RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
                Rgb([(x * 20) as u8, (y * 30) as u8, index as u8 * 40])
            });
            Some((png(&image.into()), format!("{index}.png")))
        };
        let column = |value: &dyn Fn(usize) -> String| Column::texts((0..IDS.len()).map(value));
        let number = |value: i32| Column::Int32(vec![Some(value); IDS.len()]);
        let table = Table::new()
            .with("image_id", Column::texts(IDS))
            .with("split", column(&|index| if index < 3 { "train" } else { "test" }.to_owned()))
            .with("image", Column::Image((0..IDS.len()).map(picture).collect()))
            .with("width", number(SIDE as i32))
            .with("height", number(SIDE as i32))
            .with("channels", number(3))
            .with("sha", column(&|index| format!("{index}")));
        self.table("images", &TableSchema::images(), &table);
        self
    }

    pub(super) fn with_masks(mut self) -> Self {
        let mask = GrayImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
            Luma([u8::from(inside(y as usize * SIDE + x as usize)) * 255])
        });
        let mask = Some((png(&mask.into()), "mask.png".to_owned()));
        let table = Table::new()
            .with("image_id", Column::texts(MASKED))
            .with("split", Column::texts(["test"; 2]))
            .with("region", Column::texts(["lung", "heart"]))
            .with("mask", Column::Image(vec![mask; 2]))
            .with("pixels", Column::Int64(vec![Some(8); 2]));
        self.table("masks", &TableSchema::masks(), &table);
        self
    }

    /// A model with a head.
    pub(super) fn with_checkpoint(mut self) -> Self {
        let config = ClipConfig::from_json(
            r#"{"projection_dim": 8,
                "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "image_size": 8, "patch_size": 4},
                "text_config": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 6}}"#,
        )
        .unwrap();
        let values = |key: u64, count: u64| -> Vec<f32> {
            (1..=count).map(|draw| Key(key).normal(draw) as f32).collect()
        };
        let head = Head {
            input: crate::model::HeadInput::Embedding,
            weight: Tensor::from_vec(values(5, CLASSES as u64 * 8), (CLASSES, 8), &DEVICE).unwrap(),
            bias: Tensor::from_vec(values(6, CLASSES as u64), CLASSES, &DEVICE).unwrap(),
            description: HeadDescription {
                classes: ["none", "nodule", "effusion"].map(str::to_owned).into(),
                task: "multi-class".to_owned(),
            },
        };
        let clip = ClipModel::random(&config, 2, &DEVICE, Trainable::Frozen).unwrap();
        let model = Model::new(Box::new(clip), Some(Preprocessor::clip(SIDE)), None).with_head(head);
        let folder = self.folder("checkpoint");
        model.save(&mut OutputWriter::new(folder.clone())).unwrap();
        self.add("checkpoint", &[], &folder);
        self
    }

    pub(super) fn with_reference(mut self) -> Self {
        let images = self.inputs["images"].clone();
        self.inputs.insert("reference".to_owned(), images);
        self
    }

    /// Maps of a method, one per test image, with what the file says beside them.
    pub(super) fn with_maps(self, method: &str, maps: &[(&str, &[f32])]) -> Self {
        self.with_maps_of(method, &[], &[], maps)
    }

    pub(super) fn with_maps_of(
        self,
        method: &str,
        axes: &[(&str, &str)],
        metadata: &[(&str, &str)],
        maps: &[(&str, &[f32])],
    ) -> Self {
        self.with_columns(method, axes, metadata, maps, Vec::new())
    }

    /// The same with more columns.
    pub(super) fn with_columns(
        mut self,
        method: &str,
        axes: &[(&str, &str)],
        metadata: &[(&str, &str)],
        maps: &[(&str, &[f32])],
        more: Vec<(Field, ArrayRef)>,
    ) -> Self {
        let known = self.inputs.get("saliency").map_or(0, Vec::len);
        let folder = self.folder(&format!("saliency-{known}"));
        let text = |name: &str, values: Vec<&str>| -> (Field, ArrayRef) {
            (Field::new(name, DataType::Utf8, true), Arc::new(StringArray::from(values)))
        };
        let values: Vec<f32> = maps.iter().flat_map(|(_, map)| map.iter().copied()).collect();
        // A map that is called so is not applicable.
        let status = |id: &str| if id == "b" && method == "partial" { "not_applicable: why" } else { "ok" };
        let classes: ArrayRef = Arc::new(Int32Array::from(vec![1; maps.len()]));
        let mut columns = vec![
            text("id", maps.iter().map(|(id, _)| *id).collect()),
            text("target", vec!["nodule"; maps.len()]),
            (Field::new("target_index", DataType::Int32, true), classes),
            text("status", maps.iter().map(|(id, _)| status(id)).collect()),
            tensor_column("saliency", &[SIDE, SIDE], &["y", "x"], values).unwrap(),
        ];
        columns.extend(more);
        let mut all: HashMap<String, String> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        all.insert("method".to_owned(), method.to_owned());
        write_file(&folder.join("saliency.arrow"), columns, all).unwrap();
        self.add("saliency", axes, &folder);
        self
    }

    /// Maps that the stage `attribute` makes of the test images.
    pub(super) fn with_explained(mut self, params: serde_json::Value) -> Self {
        let known = self.inputs.get("saliency").map_or(0, Vec::len);
        let folder = self.folder(&format!("saliency-{known}"));
        let outputs = [("saliency".to_owned(), OutputWriter::new(folder.clone()))].into();
        let inputs = ["images", "checkpoint"].map(|name| (name.to_owned(), self.inputs[name].clone()));
        let (host, scratch) = (Host::default(), self.folder.path().to_owned());
        let mut context = StageContext::new(inputs.into(), outputs, &host, 1, scratch, "{}".to_owned());
        let params: attribute::Params = serde_json::from_value(params).unwrap();
        StageKind::run(&Attribute, &params, &mut context).unwrap();
        self.add("saliency", &[], &folder);
        self
    }

    pub(super) fn run_with(&self, params: &Params, host: &Host) -> Result<Scores, StageError> {
        let folder = TempDir::new().unwrap();
        let outputs = [("scores".to_owned(), OutputWriter::new(folder.path().to_owned()))].into();
        let scratch = self.folder.path().to_owned();
        let mut context = StageContext::new(self.inputs.clone(), outputs, host, 1, scratch, "{}".to_owned());
        StageKind::run(&Score, params, &mut context)?;
        let files = std::fs::read_dir(folder.path()).unwrap().map(|entry| {
            let location = entry.unwrap().path();
            let path = location.file_name().unwrap().to_str().unwrap().to_owned();
            ArtifactFile { path, bytes: 0, location }
        });
        let artifact = Artifact {
            artifact_type: String::new(),
            digest: Digest::of(b""),
            files: files.collect(),
            origin: None,
        };
        Ok(Scores { table: read(&artifact).unwrap(), artifact, _folder: folder })
    }

    pub(super) fn run(&self, params: &Params) -> Scores {
        self.run_with(params, &Host::default()).unwrap()
    }

    pub(super) fn error(&self, params: &Params) -> String {
        let error = self.run_with(params, &Host::default()).err().expect("an error");
        error.to_string()
    }
}

/// A table of scores.
pub(super) struct Scores {
    pub(super) table: Table,
    pub(super) artifact: Artifact,
    pub(super) _folder: TempDir,
}

impl Scores {
    /// The value and reason of one row.
    pub(super) fn row(&self, id: &str, method: &str, metric: &str) -> (Option<f64>, Option<String>) {
        let (ids, methods) = (self.table.strings("id").unwrap(), self.table.strings("method").unwrap());
        let metrics = self.table.strings("metric").unwrap();
        let rows: Vec<usize> = (0..ids.len())
            .filter(|row| ids[*row] == id && methods[*row] == method && metrics[*row] == metric)
            .collect();
        assert_eq!(rows.len(), 1, "{id} {method} {metric}");
        let row = rows[0];
        (self.table.float64("value").unwrap()[row], self.table.utf8("reason").unwrap()[row].clone())
    }

    pub(super) fn value(&self, id: &str, method: &str, metric: &str) -> f64 {
        let (value, reason) = self.row(id, method, metric);
        value.unwrap_or_else(|| panic!("{id} {method} {metric}: {reason:?}"))
    }

    pub(super) fn distinct(&self, column: &str) -> Vec<String> {
        let mut values: Vec<String> = self.table.utf8(column).unwrap().iter().flatten().cloned().collect();
        values.sort();
        values.dedup();
        values
    }
}

pub(super) fn maps_of(map: &[f32]) -> [(&'static str, &[f32]); 3] {
    [("a", map), ("b", map), ("c", map)]
}
