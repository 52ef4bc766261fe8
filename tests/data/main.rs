//! The example pipelines of data sets, run by the program itself on the sample data (`PIPE_DATA`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use tempfile::TempDir;

/// A folder of the sample data; prints why a test is skipped where it is missing.
fn data(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("PIPE_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"), PathBuf::from);
    let path = root.join(name);
    if path.exists() {
        return Some(path.canonicalize().expect("what exists has a path"));
    }
    println!("SKIPPED data/{name}: `{}` does not exist (set PIPE_DATA)", path.display());
    None
}

/// A pipeline in a folder of its own.
struct Project {
    folder: TempDir,
    pipeline: String,
    variables: Vec<String>,
}

impl Project {
    /// A copy of an example.
    fn example(name: &str, variables: &[(&str, &str)]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines").join(name);
        Self::new(name, &std::fs::read_to_string(path).expect("an example is text"), variables)
    }

    fn new(name: &str, text: &str, variables: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().expect("there is room for a folder");
        std::fs::create_dir(folder.path().join(".pipe")).expect("a folder is made");
        std::fs::write(folder.path().join(name), text).expect("a file is written");
        let variables =
            variables.iter().flat_map(|(name, value)| ["--var".to_owned(), format!("{name}={value}")]);
        Self { folder, pipeline: name.to_owned(), variables: variables.collect() }
    }

    fn pipe(&self, command: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pipe"))
            .arg(command)
            .arg(&self.pipeline)
            .args(&self.variables)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("PIPE_STORE")
            .env_remove("PIPE_RESULTS")
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"))
            .output()
            .expect("the program starts")
    }

    /// Runs it; a second time there is nothing to do.
    fn run(&self, arguments: &[&str]) {
        let output = self.pipe("run", arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = self.pipe("plan", &[&["--check"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// The parts of a published table: `stage/port/axis=value`.
    fn parts(&self, table: &str) -> Vec<PathBuf> {
        let name = self.pipeline.trim_end_matches(".toml");
        let folder = self.folder.path().join("results").join(name).join(table);
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut parts: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        parts.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
        parts.sort();
        parts
    }

    fn rows(&self, table: &str) -> i64 {
        let rows = |part: &PathBuf| {
            let file = std::fs::File::open(part).expect("a part opens");
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a part is Parquet");
            reader.metadata().file_metadata().num_rows()
        };
        self.parts(table).iter().map(rows).sum()
    }

    /// The counts of a check by split (by value, where there is one) of a table of checks.
    fn checks(&self, table: &str, check: &str) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for part in self.parts(table) {
            let file = std::fs::File::open(part).expect("a part opens");
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
            for batch in reader.expect("a part is Parquet") {
                let batch = batch.expect("rows decode");
                let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
                let (checks, splits) = (column("check"), column("split"));
                let (others, numbers) = (column("other"), column("count"));
                for row in 0..batch.num_rows() {
                    if checks.as_string::<i32>().value(row) != check {
                        continue;
                    }
                    let text = |array: &dyn Array| match array.is_valid(row) {
                        true => array.as_string::<i32>().value(row).to_owned(),
                        false => String::new(),
                    };
                    let key = format!("{} {}", text(&splits), text(&others)).trim().to_owned();
                    counts.insert(key, numbers.as_primitive::<Int64Type>().value(row));
                }
            }
        }
        counts
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// The bytes of each sample of an array of bytes in a `.npz` file.
fn samples(file: &Path, array: &str) -> Vec<Vec<u8>> {
    let opened = std::fs::File::open(file).expect("a file opens");
    let mut archive = zip::ZipArchive::new(opened).expect("an npz file is a ZIP archive");
    let mut bytes = Vec::new();
    let mut member = archive.by_name(&format!("{array}.npy")).expect("an array is there");
    member.read_to_end(&mut bytes).expect("an array is read");
    let array = npyz::NpyFile::new(&bytes[..]).expect("an array has a header");
    let count = array.shape()[0] as usize;
    let values = array.into_vec::<u8>().expect("an array of bytes");
    values.chunks_exact(values.len() / count).map(<[u8]>::to_vec).collect()
}

/// How many samples a file of MedMNIST has, and how many test images are equal to a training image.
fn counted(file: &Path) -> (i64, i64) {
    let [train, val, test] = ["train", "val", "test"].map(|split| samples(file, &format!("{split}_images")));
    let known: BTreeSet<&Vec<u8>> = train.iter().collect();
    let shared = test.iter().filter(|image| known.contains(image)).count();
    ((train.len() + val.len() + test.len()) as i64, shared as i64)
}

#[test]
fn medmnist() {
    let (Some(breast), Some(adrenal)) =
        (data("medmnist/breastmnist.npz"), data("medmnist/adrenalmnist3d.npz"))
    else {
        return;
    };
    let folder = breast.parent().expect("a file lies in a folder").to_owned();
    let variables = [("data", text(&folder)), ("partial", "true"), ("epochs", "1")];
    let project = Project::example("medmnist.toml", &variables);
    project.run(&[]);
    for (file, kind, set) in [(&breast, "images", "breastmnist"), (&adrenal, "volumes", "adrenalmnist3d")] {
        let (rows, shared) = counted(file);
        assert_eq!(project.rows(&format!("{kind}/{kind}/dataset={set}")), rows, "{set}");
        assert_eq!(
            project.checks(&format!("{kind}/checks/dataset={set}"), "same image")["test train"],
            shared
        );
        let figures = if kind == "images" { "classified" } else { "volumes_classified" };
        assert!(project.rows(&format!("{figures}/predictions/dataset={set}")) > 0, "{set} is classified");
        let card = project.folder.path().join(format!("results/medmnist/{kind}_card/folder/dataset={set}"));
        assert!(
            card.join("croissant.json").is_file() && card.join("README.md").is_file(),
            "{}",
            card.display()
        );
    }
}

/// The records of a published file.
fn records(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a file is text");
    serde_json::from_str(&text).expect("a list of records")
}

#[test]
fn questions() {
    let (Some(vqa_rad), Some(slake)) = (data("vqa-rad"), data("slake")) else { return };
    let variables = [
        ("vqa_rad", text(&vqa_rad)),
        ("slake", text(&slake)),
        ("partial", "true"),
        ("missing_images", "\"keep\""),
    ];
    let project = Project::example("vqa-data.toml", &variables);
    project.run(&[]);
    let public = records(&vqa_rad.join("VQA_RAD Dataset Public.json"));
    let field = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().trim().to_lowercase();
    let frame = |record: &Value| {
        Some(field(record, "question_frame")).filter(|text| !["", "null"].contains(&text.as_str()))
    };
    let is_test = |record: &&Value| field(record, "phrase_type").starts_with("test_");
    // What a clean wording must not be: the question or the templated wording of a test record.
    let tested: BTreeSet<(String, String)> = public
        .iter()
        .filter(is_test)
        .flat_map(|record| {
            let wordings = std::iter::once(field(record, "question")).chain(frame(record));
            wordings.map(|wording| (field(record, "image_name"), wording)).collect::<Vec<_>>()
        })
        .collect();
    let frames: Vec<(String, String)> =
        public.iter().filter_map(|record| Some((field(record, "image_name"), frame(record)?))).collect();
    let clean = frames.iter().filter(|frame| !tested.contains(frame)).count();
    for (protocol, added) in [("published-1797", 0), ("mevf-3064", frames.len()), ("clean-2773", clean)] {
        let rows = project.rows(&format!("vqa_rad/questions/protocol={protocol}"));
        assert_eq!(rows, (public.len() + added) as i64, "{protocol}");
    }
    let english = ["train.json", "validate.json", "test.json"]
        .iter()
        .flat_map(|name| records(&slake.join(name)))
        .filter(|record| record["q_lang"] == "en");
    assert_eq!(project.rows("slake/questions"), english.count() as i64);
    assert_eq!(project.checks("slake/checks", "image asked about")["test train"], 0);
}

/// How many files below a folder have a name that `is_wanted` accepts.
fn files(folder: &Path, is_wanted: &dyn Fn(&str) -> bool) -> i64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |path: PathBuf| match path.is_dir() {
        true => files(&path, is_wanted),
        false => i64::from(path.file_name().is_some_and(|name| is_wanted(&name.to_string_lossy()))),
    };
    entries.map(|entry| count(entry.expect("an entry").path())).sum()
}

/// How many lines of a file are not empty; none if it is not there.
fn lines(file: &Path) -> i64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).count() as i64
}

#[test]
fn captions() {
    let (Some(roco), Some(rocov2), Some(pmc)) = (data("roco"), data("rocov2"), data("fixture-pmc-oa")) else {
        return;
    };
    let variables = [
        ("roco", text(&roco)),
        ("rocov2", text(&rocov2)),
        ("pmc_oa", text(&pmc)),
        ("partial", "true"),
        ("missing_images", "\"keep\""),
    ];
    let project = Project::example("caption-data.toml", &variables);
    project.run(&["roco", "rocov2", "pmc_oa"]);
    let published =
        ["train", "validation", "test"].map(|split| roco.join(split).join("radiology/captions.txt"));
    assert_eq!(project.rows("roco/captions"), published.iter().map(|file| lines(file)).sum::<i64>());
    let images = files(&rocov2, &|name| name.ends_with(".jpg"));
    assert_eq!((project.rows("rocov2/captions"), project.rows("rocov2/images")), (images, images));
    let pairs: i64 =
        ["train", "valid", "test"].map(|name| lines(&pmc.join(format!("{name}.jsonl")))).iter().sum();
    assert_eq!(project.rows("pmc_oa/captions"), pairs);
    assert_eq!(project.rows("pmc_oa/images"), files(&pmc.join("images"), &|_| true));
}

#[test]
fn scans() {
    let Some(folder) = data("fixture-ct-rate/dataset") else { return };
    let project = Project::example("ct-rate.toml", &[("data", text(&folder)), ("partial", "true")]);
    project.run(&[]);
    let first = files(&folder, &|name| name.ends_with("_1.nii.gz"));
    assert_eq!(project.rows("scans/volumes"), first);
    assert_eq!((project.rows("scans/labels"), project.rows("scans/captions")), (first, first));
}

/// Images of one's own, and the table that comes of them, read as if it were from Hugging Face.
#[test]
fn own_images() {
    let Some(images) = data("rocov2/train_images") else { return };
    let mut csv = "file,finding,patient,report\n".to_owned();
    for (number, file) in std::fs::read_dir(&images).expect("a folder").enumerate() {
        let file = file.expect("an entry").file_name();
        let finding = ["mass", "none"][number % 2];
        csv += &format!("{},{finding},p{},\"a {finding}, perhaps\"\n", file.to_string_lossy(), number / 2);
    }
    let folder = TempDir::new().expect("there is room for a folder");
    let table = folder.path().join("rows.csv");
    std::fs::write(&table, csv).expect("a file is written");
    let project = Project::example("own-images.toml", &[("images", text(&images)), ("table", text(&table))]);
    project.run(&["folder"]);
    let count = files(&images, &|_| true);
    assert_eq!((project.rows("folder/images"), project.rows("folder/captions")), (count, count));
    assert!(project.checks("folder/checks", "same group").iter().all(|(splits, count)| {
        let mut two = splits.split(' ');
        two.next() == two.next() || *count == 0
    }));

    let parquet = folder.path().join("parquet");
    std::fs::create_dir(&parquet).expect("a folder is made");
    for (number, part) in project.parts("folder/images").iter().enumerate() {
        std::fs::copy(part, parquet.join(format!("{number}.parquet"))).expect("a file is copied");
    }
    let again = Project::new(
        "again.toml",
        "[pipeline]\nname = \"again\"\nformat = 1\n[stage.rows]\nkind = \"ingest.huggingface\"\n\
         inputs = { source = \"file:${source}\" }\n\
         params = { columns = { id = \"image_id\", split = \"split\", group = \"group_id\" } }\n\
         [vars]\nsource = \"\"\n",
        &[("source", text(&parquet))],
    );
    again.run(&[]);
    assert_eq!(again.rows("rows/images"), count);
}
